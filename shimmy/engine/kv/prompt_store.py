"""Decides which prompts are written to the disk and read back, and when: the layer between KV pool and prompt files.

Knows which reads and writes are worth their bytes and the time of jobs; nothing of files. Belongs to the thread that
decodes. Files are read and written on threads of their own, so no stream waits for the disk.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shimmy.engine.kv.prompt_files import Cells, Found, PromptFiles, Stored
from shimmy.messages.model_info import PromptCacheStats

# Reading has to save so many tokens of computing, and at least this share of what is read.
_WORTH_READING = 128
_WORTH_READING_SHARE = 1 / 8
# While jobs run, at most so much is copied out of the pool at once: the jobs wait for a few milliseconds.
_MAX_STALL_BYTES = 32 * 10**6

Scales = tuple[float, ...]


class PromptBackend(Protocol):
    """The engine that has the cells: `llama.LlamaBackend`."""

    def save_sequence(self, sequence: int, n_tokens: int) -> Cells | None: ...
    def load_sequence(self, sequence: int, n_tokens: int, data: memoryview) -> bool: ...
    def sequence_bytes(self, sequence: int) -> int: ...


class _Reading:
    """One file that is being read into memory, on a thread of its own where the system allows one."""

    def __init__(self, cache: PromptFiles, stored: Stored) -> None:
        self.stored = stored
        self.cells: memoryview | None = None
        self._cache = cache
        self._thread = threading.Thread(target=self._read, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system allows no more threads: read the file here
            self._read()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        if not self.is_done:
            self._thread.join()

    def _read(self) -> None:
        self.cells = self._cache.read(self.stored)


@dataclass(frozen=True, slots=True)
class Ready:
    """The cells of `tokens`, in memory; a prompt begins with the first `n_tokens` of them."""

    tokens: list[int]
    n_tokens: int
    cells: memoryview


class PromptStore:
    """Asks `cache` for the prompts of one worker, by the keys that `key_of` has for the scales of its adapters."""

    def __init__(
        self,
        cache: PromptFiles,
        key_of: Callable[[Scales], bytes | None],
        backend: PromptBackend,
        tell: Callable[[PromptCacheStats], None] = lambda _: None,
    ) -> None:
        """`tell` is called with what was found and what was not."""
        self._cache = cache
        self._key_of = key_of
        self._backend = backend
        self._tell = tell
        self._reading: _Reading | None = None  # one at a time, so that memory holds no more

    # -- from the disk -------------------------------------------------------------------------------------------

    def is_coming(self, prompt: Sequence[int], scales: Scales, n_resident: int, *, wait: bool) -> bool:
        """Whether more of `prompt` than its first `n_resident` tokens will be in memory soon: it should not start yet.

        With `wait` (no job runs) the call waits for the read, and the answer is False.
        """
        found = self._worth_reading(prompt, scales, n_resident)
        if found is None:
            return False
        reading = self._reading
        if reading is not None and reading.stored != found.stored and wait:
            reading.wait()
        if reading is None or (reading.stored != found.stored and reading.is_done):
            reading = self._reading = _Reading(self._cache, found.stored)
        if wait:
            reading.wait()
        return reading.stored != found.stored or not reading.is_done

    def take(self, prompt: Sequence[int], scales: Scales, n_resident: int) -> Ready | None:
        """The cells read for a prompt that starts now, where they have more than `n_resident` of its tokens."""
        if len(prompt) - n_resident <= _WORTH_READING:
            return None
        found, reading = self._worth_reading(prompt, scales, n_resident), self._reading
        if found is not None and reading is not None and reading.stored == found.stored:
            self._reading = None
            if reading.cells is not None:
                self._tell(PromptCacheStats(n_hits=1, n_tokens=found.n_tokens, read_bytes=len(reading.cells)))
                return Ready(found.stored.tokens.tolist(), found.n_tokens, reading.cells)
        self._tell(PromptCacheStats(n_misses=1))
        return None

    def _worth_reading(self, prompt: Sequence[int], scales: Scales, n_resident: int) -> Found | None:
        if len(prompt) - n_resident <= _WORTH_READING:
            return None
        key = self._key_of(scales)
        found = None if key is None else self._cache.find(key, prompt)
        if found is None:
            return None
        n_gained = found.n_tokens - n_resident
        is_worth = n_gained >= max(_WORTH_READING, _WORTH_READING_SHARE * len(found.stored.tokens))
        return found if is_worth else None

    def put(self, ready: Ready, sequence: int) -> bool:
        """Give the empty `sequence` the cells of all tokens of `ready`; False, and it is empty, where that failed."""
        return self._backend.load_sequence(sequence, len(ready.tokens), ready.cells)

    # -- to the disk ---------------------------------------------------------------------------------------------

    def keep(self, tokens: Sequence[int], scales: Scales, sequence: int, *, is_urgent: bool = False) -> bool:
        """Copy the cells of a sequence that holds `tokens`, and write them, where they are worth it and the disk lacks
        them; returns whether that was begun. With `is_urgent` (jobs run) only small copies are made."""
        if self._cache.is_writing:
            return False
        key = self._key_of(scales)
        if key is None or not self._cache.lacks(key, tokens):
            return False
        n_bytes = self._backend.sequence_bytes(sequence)
        if n_bytes > self._cache.max_bytes or (is_urgent and n_bytes > _MAX_STALL_BYTES):
            return False
        cells = self._backend.save_sequence(sequence, len(tokens))
        return cells is not None and self._cache.keep(key, tokens, cells)

    @property
    def is_writing(self) -> bool:
        """Whether `keep` would do nothing now."""
        return self._cache.is_writing

    def rest(self) -> None:
        """While no job waits: free cells that were read and never used."""
        self._reading = None

    def flush(self, timeout_s: float) -> None:
        """Wait for what is being written."""
        self._cache.flush(timeout_s)
