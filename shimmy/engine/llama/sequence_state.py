"""The cells of one sequence as bytes, for a place outside the KV pool, and back.

Knows llama.cpp's states; nothing of files or jobs. A state of llama.cpp lacks the cells that a sliding window has
passed: such a sequence could be continued, but neither rewound nor shared in part. So a state here has several pieces:
that of the whole sequence, and those of the windows of its beginnings, which are put back one after the other.
Format: for each piece its length (8 bytes, little-endian) and what llama_state_seq_get_data_ext gave.
"""

import ctypes
from collections.abc import Iterator
from struct import Struct
from typing import Any

from shimmy.engine.llama.binding import llama

_LENGTH = Struct("<Q")
_ALL, _WINDOW_ONLY = 0, llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY

State = list[bytes | memoryview]


class States:
    """Reads and writes the sequences of one context."""

    def __init__(self, model: Any, context: Any, n_sequences: int, *, can_rewind: bool) -> None:
        """For the context behind the pointer `context`, of the model behind `model`."""
        self._context = context
        self._memory = llama.llama_get_memory(context)
        self._n_sequences = n_sequences
        self._can_rewind = can_rewind
        self._n_window: int = llama.llama_model_n_swa(model) if can_rewind else 0

    def size(self, sequence: int) -> int:
        """About how many bytes `save` would copy."""
        return int(llama.llama_state_seq_get_size_ext(self._context, sequence, _ALL))

    def save(self, sequence: int, n_tokens: int) -> State | None:
        """The state of `sequence`, whose cells are those of `n_tokens`, in parts that belong together in this order.

        None where the pool does not have all of them any more.
        """
        if not self._is_whole(sequence, n_tokens):
            return None
        pieces = [self._piece(sequence, _ALL)]
        if n_tokens > self._n_window > 0 and self._has_windows(sequence):
            spare = self._empty_sequence(but=sequence)
            if spare is None:
                return None
            # The end of each of these beginnings is the start of what the piece before has.
            for n_first in range((n_tokens - 1) // self._n_window * self._n_window, 0, -self._n_window):
                llama.llama_memory_seq_cp(self._memory, sequence, spare, 0, n_first)
                pieces.append(self._piece(spare, _WINDOW_ONLY))
                self._clear(spare)
        if not all(pieces):
            return None
        return [part for piece in pieces for part in (_LENGTH.pack(len(piece)), piece)]

    def load(self, sequence: int, n_tokens: int, data: memoryview) -> bool:
        """Give the empty `sequence` the cells of `n_tokens` out of `data`: the joined parts of a `save` of the same
        model with the same engine, writable, and verified by the caller, since llama.cpp does not check them.

        False, and `sequence` is empty, where they do not fit into the pool.
        """
        first, *windows = _split(data)
        is_loaded = self._set(sequence, first, _ALL)
        if is_loaded and windows:
            spare = self._empty_sequence(but=sequence)
            is_loaded = spare is not None and all(self._add(sequence, spare, window) for window in windows)
        if is_loaded and self._is_whole(sequence, n_tokens):
            return True
        self._clear(sequence)
        return False

    def _add(self, sequence: int, spare: int, window: memoryview) -> bool:
        """Give `sequence` the cells of `window` for the positions before its own."""
        n_missing = llama.llama_memory_seq_pos_min(self._memory, sequence)
        is_loaded = self._set(spare, window, _WINDOW_ONLY)
        if is_loaded and n_missing > 0:
            llama.llama_memory_seq_cp(self._memory, spare, sequence, 0, n_missing)
        self._clear(spare)
        return is_loaded

    def _is_whole(self, sequence: int, n_tokens: int) -> bool:
        """Whether the sequence has all positions; a recurrent memory has one cell, which stands for all of them."""
        first = llama.llama_memory_seq_pos_min(self._memory, sequence) if self._can_rewind else 0
        return first == 0 and bool(llama.llama_memory_seq_pos_max(self._memory, sequence) == n_tokens - 1)

    def _has_windows(self, sequence: int) -> bool:
        """Whether some layers have a cache of their own for their window."""
        return bool(llama.llama_state_seq_get_size_ext(self._context, sequence, _WINDOW_ONLY) < self.size(sequence))

    def _empty_sequence(self, but: int) -> int | None:
        others = (sequence for sequence in range(self._n_sequences) if sequence != but)
        return next((other for other in others if llama.llama_memory_seq_pos_max(self._memory, other) < 0), None)

    def _piece(self, sequence: int, flags: int) -> memoryview:
        """A state of llama.cpp; empty where it could not be read."""
        n_bytes = llama.llama_state_seq_get_size_ext(self._context, sequence, flags)
        buffer = (ctypes.c_uint8 * n_bytes)()
        n_written = llama.llama_state_seq_get_data_ext(self._context, buffer, n_bytes, sequence, flags)
        return memoryview(buffer).cast("B") if n_written == n_bytes else memoryview(b"")

    def _set(self, sequence: int, piece: memoryview, flags: int) -> bool:
        buffer = (ctypes.c_uint8 * len(piece)).from_buffer(piece)
        return bool(llama.llama_state_seq_set_data_ext(self._context, buffer, len(piece), sequence, flags))

    def _clear(self, sequence: int) -> None:
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)


def _split(data: memoryview) -> Iterator[memoryview]:
    while data:
        (n_bytes,) = _LENGTH.unpack_from(data)
        yield data[_LENGTH.size : _LENGTH.size + n_bytes]
        data = data[_LENGTH.size + n_bytes :]
