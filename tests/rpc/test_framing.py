"""What passes between a client and its engine: sizes that make sense, no more memory than there is, kept weights."""

import asyncio
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from shimmy.rpc import framing, tensor_store
from shimmy.rpc.framing import PROTOCOL, Command, Framing, FramingError, ToClient, ToEngine
from shimmy.rpc.tensor_store import TensorStore
from tools.engine_sources import engine_sources

TENSOR = 296
HELLO = bytes((Command.HELLO,)) + struct.pack("<Q", 24) + bytes(24)
WELCOME = struct.pack("<Q", 28) + bytes((7, 0, 0, 0)) + bytes(24)


def request(command: Command, payload: bytes = b"", size: int | None = None) -> bytes:
    return bytes((command,)) + struct.pack("<Q", len(payload) if size is None else size) + payload


def answer(payload: bytes) -> bytes:
    return struct.pack("<Q", len(payload)) + payload


def allocate(n_bytes: int) -> bytes:
    return request(Command.ALLOC_BUFFER, struct.pack("<IQ", 0, n_bytes))


class Connection:
    """A client, an engine, and the framing between them; bytes come in pieces of `step`."""

    def __init__(self, left_bytes: int = 10**6, store: TensorStore | None = None, step: int = 10**9) -> None:
        self.framing = Framing(lambda: left_bytes, total_bytes=10**9, store=store)
        self.engine, self.client = b"", b""
        self._step = step

    def ask(self, data: bytes) -> "Connection":
        asyncio.run(self._ask(data))
        return self

    async def _ask(self, data: bytes) -> None:
        for start in range(0, len(data), self._step):
            async for part in self.framing.requests(data[start : start + self._step]):
                if isinstance(part, ToEngine):
                    self.engine += part.data
                else:
                    assert isinstance(part, ToClient)
                    self.client += part.data

    def say(self, data: bytes) -> "Connection":
        for start in range(0, len(data), self._step):
            self.client += self.framing.responses(data[start : start + self._step])
        return self

    def begun(self, n_bytes: int = 0) -> "Connection":
        """Greeted, with a buffer of so many bytes."""
        self.ask(HELLO).say(WELCOME)
        if n_bytes:
            self.ask(allocate(n_bytes)).say(answer(struct.pack("<QQ", 0xBEEF, n_bytes)))
        return self


def test_it_is_the_protocol_of_the_engine() -> None:
    ggml = engine_sources() / "vendor" / "llama.cpp" / "ggml"
    header = (ggml / "include" / "ggml-rpc.h").read_text()
    words = ("MAJOR", "MINOR", "PATCH")
    found = [re.search(rf"RPC_PROTO_{word}_VERSION +(\d+)", header) for word in words]
    assert tuple(int(match[1]) for match in found if match) == PROTOCOL
    source = (ggml / "src" / "ggml-rpc" / "ggml-rpc.cpp").read_text()
    listed = re.search(r"enum rpc_cmd \{(.*?)\}", source, re.DOTALL)
    assert listed
    names = re.findall(r"RPC_CMD_(\w+)", listed[1])
    assert names[: len(Command)] == [command.name for command in Command]
    assert names[len(Command) :] == ["NONE", "COUNT"]


@pytest.mark.parametrize("step", [1, 7, 10**9])
def test_a_conversation_passes_as_it_is(step: int) -> None:
    data = os.urandom(500)
    asked = [
        allocate(1000),
        request(Command.SET_TENSOR, bytes(TENSOR) + b"\0" + bytes(8) + data),
        request(Command.GRAPH_COMPUTE, os.urandom(600)),
        request(Command.GET_TENSOR, bytes(TENSOR) + struct.pack("<QQ", 0, 300)),
        request(Command.DEVICE_COUNT),
        request(Command.FREE_BUFFER, struct.pack("<Q", 0xBEEF)),
        request(Command.GRAPH_RECOMPUTE, bytes(4)),
    ]
    answers = {0: answer(struct.pack("<QQ", 0xBEEF, 1024)), 3: answer(os.urandom(300)), 4: answer(bytes(4))}
    connection = Connection(step=step).begun()
    for index, each in enumerate(asked):
        connection.ask(each)
        if index in answers:
            connection.say(answers[index])
        if index == 2:
            assert connection.framing.n_bytes == 1024
    assert connection.engine == HELLO + b"".join(asked)
    assert connection.client == WELCOME + b"".join(answers.values())
    assert connection.framing.n_bytes == 0


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (request(Command.SET_TENSOR, size=2**63), "9223372036854775808 bytes for SET_TENSOR"),
        (request(Command.SET_TENSOR, size=2**40), "bytes for SET_TENSOR"),
        (request(Command.SET_TENSOR, size=304), "bytes for SET_TENSOR"),
        (request(Command.SET_TENSOR, size=305 + 1001), "bytes for SET_TENSOR"),
        (request(Command.GRAPH_COMPUTE, size=2**63), "bytes for GRAPH_COMPUTE"),
        (request(Command.GRAPH_COMPUTE, size=7), "bytes for GRAPH_COMPUTE"),
        (request(Command.FREE_BUFFER, size=2**64 - 1), "bytes for FREE_BUFFER"),
        (request(Command.ALLOC_BUFFER, bytes(11)), "bytes for ALLOC_BUFFER"),
        (request(Command.GET_TENSOR, bytes(TENSOR) + struct.pack("<QQ", 0, 2**63)), "bytes of a tensor"),
        (request(Command.GET_TENSOR, bytes(TENSOR) + struct.pack("<QQ", 0, 1001)), "bytes of a tensor"),
        (HELLO, "a second one"),
        (b"\x12" + bytes(8), "unknown command 18"),
        (b"\xff" + bytes(8), "unknown command 255"),
        (request(Command.DEVICE_COUNT) * 2, "before it has the answer"),
        (allocate(1) * 2, "before it has the answer"),
    ],
)
def test_what_makes_no_sense_does_not_reach_the_engine(sent: bytes, fault: str) -> None:
    connection = Connection().begun(1000)
    before = connection.engine
    with pytest.raises(FramingError, match=fault):
        connection.ask(sent)
    assert len(connection.engine) - len(before) <= 9 + 12  # what was in order before it


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n", request(Command.DEVICE_COUNT), bytes(9), HELLO[:1] + bytes(8)]
)
def test_who_does_not_begin_with_a_greeting(first: bytes) -> None:
    connection = Connection()
    with pytest.raises(FramingError):
        connection.ask(first)
    assert connection.engine == b""


def test_random_bytes_reach_the_engine_only_in_form() -> None:
    for _ in range(300):
        connection = Connection().begun(1000)
        try:
            connection.ask(os.urandom(200))
        except FramingError:
            continue
        sent = connection.engine[len(HELLO) + 21 :]
        if sent:  # by chance, the beginning of something in form
            assert sent[0] in set(Command)
            assert struct.unpack_from("<Q", sent, 1)[0] <= framing._MAX_GRAPH


def test_memory_that_there_is_not_is_refused_in_the_words_of_the_engine() -> None:
    connection = Connection(left_bytes=1000).begun()
    connection.ask(allocate(1001))
    assert connection.engine == HELLO
    assert connection.client == WELCOME + answer(bytes(16))
    connection.ask(allocate(1000)).say(answer(bytes(16)))  # and the engine may have less
    assert connection.framing.n_bytes == 0


def test_it_tells_what_is_free_in_the_place_of_the_engine() -> None:
    connection = Connection(left_bytes=1000).begun().ask(request(Command.GET_DEVICE_MEMORY, bytes(4)))
    assert connection.client == WELCOME + answer(struct.pack("<QQ", 1000, 10**9))
    assert connection.engine == HELLO
    of_gpu = Connection(left_bytes=1000)
    of_gpu.framing = Framing(lambda: 1000)
    of_gpu.begun().ask(request(Command.GET_DEVICE_MEMORY, bytes(4)))
    assert of_gpu.engine == HELLO + request(Command.GET_DEVICE_MEMORY, bytes(4))


@pytest.mark.parametrize(
    "said", [answer(b"x"), answer(bytes(5)), struct.pack("<Q", 2**63), answer(bytes(4)) + bytes(8)]
)
def test_an_engine_that_answers_what_it_was_not_asked(said: bytes) -> None:
    connection = Connection().begun().ask(request(Command.DEVICE_COUNT))
    with pytest.raises(FramingError, match="the engine answers what it was not asked"):
        connection.say(said)


# -- weights that are kept ---------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "weights", 10_000)


def asks_for(hash_: int, offset: int = 5) -> bytes:
    return request(Command.SET_TENSOR_HASH, b"t" * TENSOR + struct.pack("<QQ", offset, hash_))


def sends(data: bytes, offset: int = 5) -> bytes:
    return request(Command.SET_TENSOR, b"t" * TENSOR + b"\1" + struct.pack("<Q", offset) + data)


@pytest.mark.parametrize("step", [1, 10**9])
def test_weights_travel_once(store: TensorStore, step: int) -> None:
    data = os.urandom(3000)
    first = Connection(store=store, step=step).begun(4000)
    first.ask(asks_for(0xAB)).ask(sends(data))
    assert first.client.endswith(answer(b"\0"))
    assert first.engine.endswith(sends(data))
    again = Connection(store=store, step=step).begun(4000)
    before = len(again.engine)
    again.ask(asks_for(0xAB, offset=9))
    assert again.client.endswith(answer(b"\1"))
    tensor = b"t" * TENSOR + b"\0" + struct.pack("<Q", 9)
    assert again.engine[before:] == request(Command.SET_TENSOR, tensor + data)


def test_the_disk_is_never_touched_on_the_loop(store: TensorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat goes on while gigabytes are verified."""
    touched = set()

    def opened(path: Path, mode: str) -> BinaryIO:
        touched.add(threading.get_ident())
        return cast("BinaryIO", open(path, mode))  # noqa: PTH123 - `Path.open` is this one

    monkeypatch.setattr(Path, "open", opened)
    Connection(store=store).begun(4000).ask(asks_for(1)).ask(sends(bytes(3000)))
    assert Connection(store=store).begun(4000).ask(asks_for(1)).client.endswith(answer(b"\1"))
    assert touched
    assert threading.get_ident() not in touched


def test_a_client_that_leaves_while_its_weights_are_verified_leaves_at_once(
    store: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    Connection(store=store).begun(4000).ask(asks_for(1)).ask(sends(bytes(3000)))
    n_pieces = 0

    def slow(_file: BinaryIO, _size: int) -> Iterator[bytes]:
        nonlocal n_pieces
        while True:
            n_pieces += 1
            time.sleep(0.01)
            yield b"x"

    monkeypatch.setattr(tensor_store, "_pieces", slow)
    connection = Connection(store=store).begun(4000)

    async def leave() -> None:
        asking = asyncio.create_task(connection._ask(asks_for(1)))
        while n_pieces < 3:  # noqa: ASYNC110 - the loop is free meanwhile
            await asyncio.sleep(0.001)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        n_then = n_pieces
        await asyncio.sleep(0.1)
        assert n_pieces <= n_then + 1

    asyncio.run(asyncio.wait_for(leave(), 10))


def test_weights_that_did_not_come_whole_are_not_kept(store: TensorStore, tmp_path: Path) -> None:
    connection = Connection(store=store).begun(4000)
    connection.ask(asks_for(0xAB)).ask(sends(bytes(3000))[:-1])
    asyncio.run(connection.framing.close())
    assert [*(tmp_path / "weights").iterdir()] == []


def test_what_was_not_asked_for_before_is_not_kept(store: TensorStore, tmp_path: Path) -> None:
    connection = Connection(store=store).begun(4000)
    connection.ask(asks_for(0xAB)).ask(sends(bytes(100))).ask(sends(bytes(200)))
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [f"{0xAB:016x}"]


def damages() -> Iterator[tuple[str, bytes]]:
    whole = os.urandom(3000)
    yield "cut off", whole[:1500]
    yield "empty", b""
    yield "other bytes", whole + bytes(32)


@pytest.mark.parametrize("content", [damage for _, damage in damages()], ids=[name for name, _ in damages()])
def test_damaged_weights_are_removed_and_travel_again(store: TensorStore, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights" / f"{0xAB:016x}"
    path.write_bytes(content)
    connection = Connection(store=store).begun(4000)
    before = len(connection.engine)
    connection.ask(asks_for(0xAB))
    assert connection.client.endswith(answer(b"\0"))
    assert len(connection.engine) == before


def test_weights_larger_than_the_client_has_memory_are_not_sent(store: TensorStore) -> None:
    Connection(store=store).begun(4000).ask(asks_for(1)).ask(sends(bytes(3000)))
    small = Connection(store=store).begun(2000).ask(asks_for(1))
    assert small.client.endswith(answer(b"\0"))


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, 2500)
    for hash_ in (1, 2):
        Connection(store=store).begun(4000).ask(asks_for(hash_)).ask(sends(bytes(1000)))
        os.utime(tmp_path / f"{hash_:016x}", (hash_, hash_))
    Connection(store=store).begun(4000).ask(asks_for(1))  # used now
    Connection(store=store).begun(4000).ask(asks_for(3)).ask(sends(bytes(1000)))
    assert sorted(int(path.name, 16) for path in tmp_path.iterdir()) == [1, 3]
    Connection(store=store).begun(4000).ask(asks_for(4)).ask(sends(bytes(2500)))  # more than it may have
    assert sorted(int(path.name, 16) for path in tmp_path.iterdir()) == [1, 3]
