"""How many prompt rows join a decode, so that the next tokens of streams and the first ones of prompts come soon.

Knows row counts and measured times, learnt while serving; nothing of jobs or of the engine, but that some batch sizes
suit its kernels.
"""

# A decode with prompt rows may take so long: a pause that a reader of a stream notices and bears,
_TARGET_S = 0.3
# or so many times as long as a decode without prompt rows, where these are slow already.
_TARGET_DECODES = 4
# Rows of a whole batch. llama.cpp's fast attention works on tiles of 64 rows (GGML_FA_TILE_Q); rows of smaller batches,
# and those beyond the last full tile, cost up to twice as much.
_SIZES = (16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048)
# Up to this size the pause may be twice as long: smaller batches have a higher cost for each row.
_SMALL = 128
# Prompts advance by at least so many rows. Decodes with fewer do not show the cost of a row.
_LEAST_ROWS = 16
# A decode reads all weights, however few rows it has, which is the time of a decode of one row. Prompt rows that take
# so many times as long are computed at nearly the speed of any number of rows.
_WORTH_DECODES = 4
# The number of rows beside streams before any prompt was measured.
_FIRST_ROWS = 128
# A decode may be so many times as long for forced tokens of one job, which the other jobs wait for.
_HARDLY_LONGER = 1.05
_WEIGHT = 0.5  # of the latest measurement: the cost of a row grows with the length of its context
_MAX_SURPRISE = 2.0  # a decode that takes so many times the expected time was disturbed, and counts as that


class PrefillBudget:
    """Measured times of one model on this machine."""

    def __init__(self) -> None:
        self._decodes_s: dict[int, float] = {}  # of so many rows, without prompts
        self._row_s = 0.0  # of a prompt's row; 0: not known

    def observe(self, n_decode_rows: int, n_prompt_rows: int, seconds: float) -> None:
        """A decode of so many rows, the tokens of streams and the rest prompts, took `seconds` in all."""
        if not n_prompt_rows:
            self._decodes_s[n_decode_rows] = _learn(self._decodes_s.get(n_decode_rows, seconds), seconds)
        elif n_prompt_rows >= _LEAST_ROWS:
            row_s = max(0.0, seconds - self._decode_s(n_decode_rows)) / n_prompt_rows
            self._row_s = _learn(self._row_s or row_s, row_s)

    def n_prompt_rows(self, n_decode_rows: int, n_streams: int, n_prompts: int) -> int:
        """How many rows of `n_prompts` prompts may join the `n_decode_rows` rows of `n_streams` streams in a decode.

        Streams wait longer where there are more waiting prompts than streams.
        """
        if not self._row_s:
            return _FIRST_ROWS
        decode_s = self._decode_s(n_decode_rows)
        n_rows = _LEAST_ROWS
        for size in _SIZES:
            pause_s = _TARGET_S if size > _SMALL else 2 * _TARGET_S
            limit_s = max(pause_s, _TARGET_DECODES * decode_s) * max(1.0, n_prompts / n_streams)
            if decode_s + (size - n_decode_rows) * self._row_s <= limit_s:
                n_rows = max(n_rows, size - n_decode_rows)
        return n_rows

    def n_enough_rows(self) -> int:
        """The number of prompt rows beyond which a decode gets hardly faster for each row."""
        if not self._row_s or 1 not in self._decodes_s:
            return _SIZES[-1]
        return max(_LEAST_ROWS, round(_WORTH_DECODES * self._decodes_s[1] / self._row_s))

    def n_more_rows(self, n_rows: int, n_most: int) -> int:
        """How many rows, at most `n_most`, make a decode of `n_rows` rows without prompts hardly longer.

        The cost of a further row is the mean cost of a row beyond the fewest measured rows, and at least that of a
        prompt's row: rows are cheapest in prompts, and measurements of different times are uncertain.
        """
        fewest = min(self._decodes_s, default=n_rows)
        if fewest >= n_rows or n_rows not in self._decodes_s or not self._row_s:
            return 0
        decode_s = self._decodes_s[n_rows]
        row_s = max(self._row_s, (decode_s - self._decodes_s[fewest]) / (n_rows - fewest))
        spare_s = (_HARDLY_LONGER - 1) * decode_s
        return n_most if n_most * row_s <= spare_s else int(spare_s / row_s)

    def _decode_s(self, n_rows: int) -> float:
        """The time of a decode of `n_rows` without prompts; of the next smaller measured size where it is unknown."""
        return self._decodes_s.get(max((known for known in self._decodes_s if known <= n_rows), default=0), 0.0)


def _learn(known_s: float, seconds: float) -> float:
    return known_s + _WEIGHT * (min(seconds, _MAX_SURPRISE * known_s) - known_s)
