"""How many rows a decode takes, so that the next tokens of streams and the first ones of prompts come soon.

Knows row counts and measured times, learnt while serving; nothing of jobs or of the engine, but that some batch sizes
suit its kernels.
"""

# A decode with prompt rows in it may take so long, which is a pause that a reader of a stream notices and bears,
_TARGET_S = 0.3
# or so many times as long as one without them, where that is slow already: prompts get the rest of the time.
_TARGET_DECODES = 4
# Rows of a whole batch. llama.cpp's fast attention works on tiles of 64 rows (GGML_FA_TILE_Q); rows of smaller batches,
# and those beyond the last full tile, cost up to twice as much.
_SIZES = (16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048)
# Up to this size the pause may be twice as long: smaller batches save less time than they have rows less.
_SMALL = 128
# Prompts get on by at least so many rows. Fewer in a batch tell nothing of what one costs.
_LEAST_ROWS = 16
# A decode reads all weights, however few rows it has: one of a single row takes as long as that. Prompt rows that take
# so many times as long have nearly the speed of any number of rows.
_WORTH_DECODES = 4
# A first guess, for streams that got here before any prompt was measured.
_FIRST_ROWS = 128
# So many times as long is hardly longer: forced tokens of one job may hold up others by that.
_HARDLY_LONGER = 1.05
_WEIGHT = 0.5  # of the latest measurement: what a row costs grows with what stands before it
_MAX_SURPRISE = 2.0  # what takes longer than so many times what was expected was disturbed


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
        """How many rows of `n_prompts` prompts the next decode may take while `n_streams` streams wait for it, of which
        `n_decode_rows` rows are in it. Streams wait longer where they keep more prompts than they are from starting.
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
        """With so many prompt rows a decode is about as fast for each as with more."""
        if not self._row_s or 1 not in self._decodes_s:
            return _SIZES[-1]
        return max(_LEAST_ROWS, round(_WORTH_DECODES * self._decodes_s[1] / self._row_s))

    def n_more_rows(self, n_rows: int, n_most: int) -> int:
        """How many rows, at most `n_most`, make a decode of `n_rows` rows without prompts hardly longer.

        A further row is taken to cost what one did on the way from the fewest rows that were measured, and not less
        than one of a prompt: rows are cheapest there, and what was measured with others at other times is uncertain.
        """
        fewest = min(self._decodes_s, default=n_rows)
        if fewest >= n_rows or n_rows not in self._decodes_s or not self._row_s:
            return 0
        decode_s = self._decodes_s[n_rows]
        row_s = max(self._row_s, (decode_s - self._decodes_s[fewest]) / (n_rows - fewest))
        spare_s = (_HARDLY_LONGER - 1) * decode_s
        return n_most if n_most * row_s <= spare_s else int(spare_s / row_s)

    def _decode_s(self, n_rows: int) -> float:
        """Of so many rows without prompts; where they were never measured, of the next fewer that were."""
        return self._decodes_s.get(max((known for known in self._decodes_s if known <= n_rows), default=0), 0.0)


def _learn(known_s: float, seconds: float) -> float:
    return known_s + _WEIGHT * (min(seconds, _MAX_SURPRISE * known_s) - known_s)
