"""What ggml's RPC says over a connection, followed message by message: the engine behind never sees a size that makes
no sense, gets no more memory than it may, and weights that this machine has kept need not travel again.

Knows the form of the messages (ggml-rpc.cpp) and nothing of tensors in them; neither sockets nor processes. A request
is a byte, a size (8 bytes, little-endian) and so many bytes; an answer is a size and so many bytes. Clients wait for an
answer before they ask the next thing that has one.
"""

import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

PROTOCOL = (7, 0, 0)  # of ggml-rpc.h; both machines have to have the same

_TENSOR = 296  # sizeof(rpc_tensor)
_SET_HEAD = _TENSOR + 1 + 8  # the tensor, whether to keep the data, and where they begin
_MAX_GRAPH = 64 * 2**20
_MAX_SMALL = 16 * _TENSOR  # what is looked at as a whole
_SIZE = struct.Struct("<Q")
_ALLOCATE = struct.Struct("<IQ")
_ALLOCATED = struct.Struct("<QQ")
_GET = struct.Struct(f"<{_TENSOR}xQQ")
_HASH = struct.Struct(f"<{_TENSOR}sQQ")


class Command(IntEnum):
    """ggml's rpc_cmd."""

    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    SET_TENSOR_HASH = 7
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    INIT_TENSOR = 12
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16
    MEMSET_TENSOR = 17


# Bytes of a request, and of its answer; None: there is no answer. Of those left out here, the size is not fixed.
_SIZES: dict[Command, tuple[int, int | None]] = {
    Command.ALLOC_BUFFER: (12, 16),
    Command.GET_ALIGNMENT: (4, 8),
    Command.GET_MAX_SIZE: (4, 8),
    Command.BUFFER_GET_BASE: (8, 8),
    Command.FREE_BUFFER: (8, None),
    Command.BUFFER_CLEAR: (9, None),
    Command.SET_TENSOR_HASH: (_TENSOR + 16, 1),
    Command.COPY_TENSOR: (2 * _TENSOR, 1),
    Command.GET_DEVICE_MEMORY: (4, 16),
    Command.INIT_TENSOR: (_TENSOR, None),
    Command.GET_ALLOC_SIZE: (4 + 11 * _TENSOR, 8),
    Command.HELLO: (24, 28),
    Command.DEVICE_COUNT: (0, 4),
    Command.GRAPH_RECOMPUTE: (4, None),
    Command.MEMSET_TENSOR: (_TENSOR + 17, None),
}


class FramingError(Exception):
    """The client, or the engine, sends what it must not; the message says what."""


class Writing(Protocol):
    """Weights that are being kept."""

    async def add(self, data: bytes) -> None: ...
    async def finish(self) -> None: ...
    async def drop(self) -> None: ...


class Store(Protocol):
    """Weights of this machine, by the hashes that clients give them."""

    async def find(self, hash_: int, max_bytes: int) -> tuple[int, AsyncIterator[bytes]] | None:
        """Their size, and the bytes in pieces; None where there are none."""
        ...

    async def begin(self, hash_: int, size: int) -> Writing | None: ...


@dataclass(frozen=True, slots=True)
class ToEngine:
    """Bytes to pass on."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ToClient:
    """An answer of ours, in the place of the engine's."""

    data: bytes


class Framing:
    """One connection. `left_bytes` says what the client may still have of the machine's memory; with `total_bytes` that
    is what it is told of each device, whose engine would tell of all that there is."""

    def __init__(
        self, left_bytes: Callable[[], int], *, total_bytes: int | None = None, store: Store | None = None
    ) -> None:
        self._left_bytes = left_bytes
        self._total_bytes = total_bytes
        self._store = store
        self._buffers: dict[int, int] = {}  # sizes of what the engine has allocated, by pointer
        self._asked: deque[tuple[Command, int]] = deque()  # what answers are due, and how long they are
        self._head = bytearray()  # of the request that begins
        self._command: Command | None = None
        self._left = 0  # bytes of the present request
        self._small: bytearray | None = None  # the present request, where it is looked at as a whole
        self._has_begun = False
        self._missing: int | None = None  # the hash of weights that this machine did not have
        self._writing: Writing | None = None
        self._answer = bytearray()
        self._answer_left = 0
        self._head_left = 0  # of the present tensor, before its data

    @property
    def n_bytes(self) -> int:
        """What the engine has allocated for this client."""
        return sum(self._buffers.values())

    async def close(self) -> None:
        """The connection has ended."""
        if self._writing is not None:
            await self._writing.drop()
            self._writing = None

    # -- from the client -----------------------------------------------------------------------------------------

    async def requests(self, data: bytes) -> AsyncGenerator[ToEngine | ToClient, None]:
        """What becomes of the next bytes of the client, one call at a time; raises FramingError."""
        start = 0
        while start < len(data):
            if self._command is None:
                n = 9 - len(self._head)
                self._head += data[start : start + n]
                start += n
                if len(self._head) == 9:
                    async for part in self._begin(self._head[0], *_SIZE.unpack_from(self._head, 1)):
                        yield part
                    self._head.clear()
                continue
            piece = data[start : start + self._left]
            start += len(piece)
            self._left -= len(piece)
            if self._small is not None:
                self._small += piece
            else:
                yield ToEngine(piece)
                if self._writing is not None:
                    await self._keep(piece)
            if not self._left:
                async for part in self._end():
                    yield part

    async def _begin(self, number: int, size: int) -> AsyncIterator[ToEngine | ToClient]:
        try:
            command = Command(number)
        except ValueError:
            raise FramingError(f"the client sent the unknown command {number}") from None
        if (command == Command.HELLO) == self._has_begun:
            raise FramingError("the client does not begin with a greeting, or sends a second one")
        self._has_begun = True
        low, high = self._range(command)
        if not low <= size <= high:
            raise FramingError(f"the client sent {size} bytes for {command.name}, which has {low} to {high}")
        self._command, self._left = command, size
        if command == Command.SET_TENSOR:
            await self._begin_weights(size)
        if size <= _MAX_SMALL and command not in (Command.SET_TENSOR, Command.GRAPH_COMPUTE):
            self._small = bytearray()
        else:
            yield ToEngine(bytes(self._head))
        if not size:
            async for part in self._end():
                yield part

    def _range(self, command: Command) -> tuple[int, int]:
        if command == Command.SET_TENSOR:
            return _SET_HEAD, _SET_HEAD + self.n_bytes
        if command == Command.GRAPH_COMPUTE:
            return 12, _MAX_GRAPH
        if command == Command.GET_TENSOR:
            return _TENSOR + 16, _TENSOR + 16
        size, _ = _SIZES[command]
        return size, size

    async def _end(self) -> AsyncIterator[ToEngine | ToClient]:
        """The present request is complete."""
        command, small = self._command, self._small
        assert command is not None
        self._command = self._small = None
        if self._writing is not None:
            await self._writing.finish()
            self._writing = None
        if small is None:
            return
        request = bytes(small)
        answer_size = self._answer_size(command, request)
        if answer_size is not None and self._asked:
            raise FramingError(f"the client asks {command.name} before it has the answer to the last thing")
        if command == Command.SET_TENSOR_HASH:
            async for part in self._kept(*_HASH.unpack(request)):
                yield part
            return
        if (own := self._own_answer(command, request)) is not None:
            yield own
            return
        if answer_size is not None:
            self._asked.append((command, answer_size))
        if command == Command.FREE_BUFFER:
            self._buffers.pop(_SIZE.unpack(request)[0], None)
        yield ToEngine(bytes((command,)) + _SIZE.pack(len(request)) + request)

    def _answer_size(self, command: Command, request: bytes) -> int | None:
        if command != Command.GET_TENSOR:
            return _SIZES[command][1]
        _, size = _GET.unpack(request)
        if size > self.n_bytes:
            raise FramingError(f"the client asks for {size} bytes of a tensor, and has {self.n_bytes}")
        return int(size)

    def _own_answer(self, command: Command, request: bytes) -> ToClient | None:
        """What is said in the place of the engine; None where it answers itself."""
        if command == Command.ALLOC_BUFFER:
            _, size = _ALLOCATE.unpack(request)
            if size > self._left_bytes():
                return _answered(_ALLOCATED.pack(0, 0))  # as the engine says that it has no memory
        if command == Command.GET_DEVICE_MEMORY and self._total_bytes is not None:
            return _answered(_ALLOCATED.pack(min(self._left_bytes(), self._total_bytes), self._total_bytes))
        return None

    # -- weights that this machine has kept ------------------------------------------------------------------------

    async def _kept(self, tensor: bytes, offset: int, hash_: int) -> AsyncIterator[ToEngine | ToClient]:
        """Have the engine set a tensor to what was kept, where it was; the client is told whether."""
        found = await self._store.find(hash_, self.n_bytes) if self._store is not None else None
        self._missing = hash_ if found is None else None
        if found is None:
            yield _answered(b"\x00")
            return
        size, pieces = found
        yield ToEngine(
            bytes((Command.SET_TENSOR,)) + _SIZE.pack(_SET_HEAD + size) + tensor + b"\x00" + _SIZE.pack(offset)
        )
        async for piece in pieces:
            size -= len(piece)
            yield ToEngine(piece)
        if size:
            raise FramingError("weights that were kept are gone while they were read")
        yield _answered(b"\x01")

    async def _begin_weights(self, size: int) -> None:
        self._head_left = _SET_HEAD
        if self._missing is not None and self._store is not None:
            self._writing = await self._store.begin(self._missing, size - _SET_HEAD)
        self._missing = None

    async def _keep(self, piece: bytes) -> None:
        n = min(self._head_left, len(piece))
        self._head_left -= n
        assert self._writing is not None
        if n < len(piece):
            await self._writing.add(piece[n:])

    # -- from the engine -----------------------------------------------------------------------------------------

    def responses(self, data: bytes) -> bytes:
        """What the client gets of the next bytes of the engine; raises FramingError for what nobody has asked for."""
        start = 0
        while start < len(data):
            if not self._answer_left:
                n = 8 - len(self._answer)
                self._answer += data[start : start + n]
                start += n
                if len(self._answer) == 8:
                    self._expect(*_SIZE.unpack(self._answer))
                continue
            piece = data[start : start + self._answer_left]
            start += len(piece)
            self._answer_left -= len(piece)
            if self._asked[0][0] == Command.ALLOC_BUFFER:
                self._answer += piece
            if not self._answer_left:
                self._end_answer()
        return data

    def _expect(self, size: int) -> None:
        if not self._asked or size != self._asked[0][1]:
            raise FramingError("the engine answers what it was not asked")
        self._answer_left = size
        if not size:
            self._end_answer()

    def _end_answer(self) -> None:
        command, _ = self._asked.popleft()
        if command == Command.ALLOC_BUFFER:
            pointer, size = _ALLOCATED.unpack_from(self._answer, 8)
            if pointer:
                self._buffers[pointer] = size
        self._answer.clear()


def _answered(payload: bytes) -> ToClient:
    return ToClient(_SIZE.pack(len(payload)) + payload)
