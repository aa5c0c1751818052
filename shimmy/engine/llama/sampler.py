"""One job's choice of tokens with llama.cpp's samplers, within what a guide allows; and how likely tokens were.

Knows ctypes and llama.cpp's rules; nothing of a chain's stages (`sampler_chain`) or of what a guide allows and why.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shimmy.engine.llama.binding import llama
from shimmy.errors import Internal

if TYPE_CHECKING:
    from shimmy.engine.schedule.task import Guide

_CANDIDATE_BYTES = 12
_BIAS_BYTES = 8  # of a llama_logit_bias, which is a token and a float
# Moving one run of candidates takes as long as the engine's look at so many candidates.
_MOVE_COST = 50
# The float -infinity is 00 00 80 FF: two of its bytes, for a token that is forbidden, and those of 0.0 for any other.
_THIRD_OF_INFINITY = bytes.maketrans(b"01", b"\x80\0")
_LAST_OF_INFINITY = bytes.maketrans(b"01", b"\xff\0")
_SMALLEST = 1e-45  # float above 0
_N_COMPARED = 10  # tokens among which the probability of the best one is computed
_Apply = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(llama.llama_token_data_array))


class _Interface(ctypes.Structure):
    """llama_sampler_i of include/llama.h: pointers to functions, all but `apply` may be null."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("accept", ctypes.c_void_p),
        ("apply", _Apply),
        ("others", ctypes.c_void_p * 9),
    )


class Candidates:
    """The candidates of a row, while a function looks at them: (id, logit, p) for each token, in the order of ids."""

    def __init__(self, struct: Any) -> None:
        self._struct = struct
        self.n_tokens: int = struct.size
        address = ctypes.addressof(struct.data.contents)
        memory = (ctypes.c_char * (_CANDIDATE_BYTES * self.n_tokens)).from_address(address)
        self._memory = memoryview(memory).cast("B")
        self.logits = self._memory.cast("f")[1::3]
        self.probabilities = self._memory.cast("f")[2::3]
        self.ids = self._memory.cast("i")[0::3]

    def apply(self, sampler: Any) -> None:
        llama.llama_sampler_apply(sampler, self._struct)

    @property
    def n_left(self) -> int:
        """How many candidates are left after a sampler has removed some."""
        return int(self._struct.size)

    @property
    def selected(self) -> int:
        """The token that a chain has picked."""
        return int(self._struct.data[self._struct.selected].id)  # some samplers move the beginning of the array

    def keep(self, mask: bytes) -> int:
        """Remove all tokens but those whose bits are set in `mask`, if any are; returns the number of set bits.

        The lowest bit of a byte comes first; bits beyond the vocabulary mean nothing.
        """
        allowed = int.from_bytes(mask, "little") & ((1 << self.n_tokens) - 1)
        edges = allowed ^ (allowed << 1)
        n_runs = edges.bit_count() // 2
        if allowed and (n_runs * _MOVE_COST < self.n_tokens or not self._forbid_others(allowed)):
            self._move_runs(_places(edges))
        return allowed.bit_count()

    def _move_runs(self, edges: list[int]) -> None:
        """Move the runs of candidates together: each run goes from an edge with an even index to the next one."""
        n_kept = 0
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            run = self._memory[_CANDIDATE_BYTES * start : _CANDIDATE_BYTES * end]
            self._memory[_CANDIDATE_BYTES * n_kept :][: len(run)] = run
            n_kept += end - start
        self._struct.size = n_kept

    def _forbid_others(self, allowed: int) -> bool:
        """Let the engine forbid and drop all other tokens, where there are too many runs to move.

        That drops what is 10^45 times less likely than the best, too. If it has, all is as before, and the answer no.
        """
        before = self._memory.tobytes()
        biases = bytearray(_BIAS_BYTES * self.n_tokens)
        memoryview(biases).cast("i")[0::2] = self.ids
        flags = f"{allowed:0{self.n_tokens}b}"[::-1].encode()
        biases[6::_BIAS_BYTES] = flags.translate(_THIRD_OF_INFINITY)
        biases[7::_BIAS_BYTES] = flags.translate(_LAST_OF_INFINITY)
        pointer = (llama.llama_logit_bias * self.n_tokens).from_buffer(biases)
        forbid = llama.llama_sampler_init_logit_bias(self.n_tokens, self.n_tokens, pointer)
        drop = llama.llama_sampler_init_min_p(_SMALLEST, 1)
        for sampler in (forbid, drop):
            self.apply(sampler)
            llama.llama_sampler_free(sampler)
        if self.n_left == allowed.bit_count():
            return True
        self._memory[:] = before
        self._struct.sorted = False
        return False


class Probe:
    """A sampler that gives Python the candidates: llama.cpp makes them from the logits a hundred times faster."""

    context: Any = None  # the one for text; a pool that is resized has a new one

    def __init__(self) -> None:
        self._look: Callable[[Candidates], None] | None = None
        self._error: Exception | None = None
        # The engine calls this pointer while it has the sampler; a collected callback would be a segfault.
        self._interface = _Interface(apply=_Apply(self._on_apply))
        interface = ctypes.cast(ctypes.pointer(self._interface), ctypes.POINTER(llama.llama_sampler_i))
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        llama.llama_sampler_chain_add(self._chain, llama.llama_sampler_init(interface, None))

    def look(self, row: int, function: Callable[[Candidates], None]) -> None:
        """Call `function` with the candidates of a row of the last decode; raises what it raises."""
        self._look, self._error = function, None
        llama.llama_sampler_sample(self._chain, self.context, row)
        if self._error is not None:
            raise self._error

    def _on_apply(self, _sampler: object, pointer: Any) -> None:
        struct = pointer.contents
        try:
            assert self._look is not None
            self._look(Candidates(struct))
        except Exception as exc:  # noqa: BLE001 - no exception passes through C; `look` raises it
            self._error = exc
        struct.selected = 0  # anything else than a candidate would abort the process


class LlamaSampler:
    """One job's sampler chain, freed by `close`; all but `accept` belong to the thread that decodes."""

    def __init__(self, chain: Any, probe: Probe, *, has_history: bool, never: frozenset[int] = frozenset()) -> None:
        """With `has_history` the chain depends on the tokens it was shown, so it must not see one that is not taken.

        `never` are the tokens that its biases rule out.
        """
        self._chain = chain
        self._probe = probe
        self._has_history = has_history
        self._never = never
        self._token = 0

    def sample(self, row: int) -> int:
        """Pick a token from the logits of batch row `row`, and remember it as history."""
        return int(llama.llama_sampler_sample(self._chain, self._probe.context, row))

    def sample_within(self, row: int, guide: "Guide") -> int:
        """Pick a token that `guide` allows, and remember it as history; raises what the guide raises.

        As in llama.cpp, the chain picks freely first, and only when that is not allowed it picks again from what is:
        most picks are allowed, and then no mask over the whole vocabulary has to be computed.
        """
        if self._has_history:
            self._probe.look(row, self._pick)
        else:
            self._token = self.sample(row)  # quicker, and what it remembers makes no difference
        if not guide.allows(self._token):
            mask = guide.allowed()
            self._probe.look(row, lambda candidates: self._pick_of(candidates, mask))
        llama.llama_sampler_accept(self._chain, self._token)
        return self._token

    def _pick(self, candidates: Candidates) -> None:
        candidates.apply(self._chain)
        self._token = candidates.selected

    def _pick_of(self, candidates: Candidates, mask: bytes) -> None:
        n_allowed = candidates.keep(mask)
        if not n_allowed:
            raise Internal("the grammar of the request leaves no token to go on with")
        if n_allowed <= len(self._never) and self._never.issuperset(candidates.ids[:n_allowed]):
            # The biases rule out every allowed token: take the one with the best logit, as the chain would see none.
            self._token = candidates.ids[max(range(n_allowed), key=candidates.logits.__getitem__)]
        else:
            self._pick(candidates)

    def accept(self, tokens: Sequence[int]) -> None:
        """Show the chain tokens that it did not pick: those that a guide has forced."""
        for token in tokens:
            llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        if self._chain:
            llama.llama_sampler_free(self._chain)
            self._chain = None


class Likelihood:
    """Log-probabilities of tokens, before any sampler."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._softmax = llama.llama_sampler_init_dist(0)  # also picks a token, which is not used
        self._best: dict[int, Any] = {}  # top-k samplers by their k
        self._few = llama.llama_sampler_init_top_k(_N_COMPARED)

    def of(self, row: int, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """The log-probability of `token` in a row of the last decode, and of the `n_top` best tokens, best first."""
        n_kept = max(1, n_top)
        if n_kept not in self._best:
            self._best[n_kept] = llama.llama_sampler_init_top_k(n_kept)
        chosen = math.nan
        top: list[tuple[int, float]] = []

        def look(candidates: Candidates) -> None:
            nonlocal chosen
            logit = candidates.logits[token]
            candidates.apply(self._softmax)
            candidates.apply(self._best[n_kept])
            # The probability of the most likely token is never so small that it is inexact.
            log_total = candidates.logits[0] - math.log(candidates.probabilities[0])
            chosen = logit - log_total
            n_told = min(n_top, candidates.n_left)
            top.extend((candidates.ids[place], candidates.logits[place] - log_total) for place in range(n_told))

        self._probe.look(row, look)
        return chosen, top

    def best(self, row: int) -> tuple[int, float]:
        """The most likely token in a row of the last decode, and its probability among the few most likely ones.

        As llama.cpp does with a draft model (common/speculative.cpp): the whole vocabulary is looked at once.
        """
        found = 0, math.nan

        def look(candidates: Candidates) -> None:
            nonlocal found
            candidates.apply(self._few)
            candidates.apply(self._softmax)
            found = candidates.ids[0], candidates.probabilities[0]

        self._probe.look(row, look)
        return found


def _places(number: int) -> list[int]:
    """The places of the set bits, lowest first; quick where few of many are set."""
    words = memoryview(number.to_bytes(8 * (number.bit_length() // 64 + 1), "little")).cast("Q")
    places = []
    for start, word in enumerate(words):
        while word:
            lowest = word & -word
            places.append(64 * start + lowest.bit_length() - 1)
            word ^= lowest  # noqa: PLW2901
    return places
