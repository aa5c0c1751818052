"""The channel: both ends prove the key, data and objects pass whole, and whoever is silent, gone or somebody else is
told from the rest in time."""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from shimmy.rpc.channel import MAX_RECORD_BYTES, Channel, ChannelError, Streams, accept, connect, tls_context
from shimmy.rpc.key import NO_KEY

KEY, OTHER_KEY = b"a key of sixteen bytes or more", b"another key of sixteen bytes or more"
LIMIT_S = 0.4
AMPLE_S = 10.0  # where nothing is to run out

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


class Machine:
    """The other end: what it serves with, and the error that it ended with."""

    def __init__(self, serve: Serve, *, speaks_tls: bool = True) -> None:
        self._serve, self._speaks_tls = serve, speaks_tls
        self.errors: list[Exception] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> int:
        context = tls_context(is_server=True) if self._speaks_tls else None
        self._server = await asyncio.start_server(self._one, "127.0.0.1", 0, ssl=context)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except ChannelError as exc:
            self.errors.append(exc)
        finally:
            writer.transport.abort()


async def _echo(channel: Channel) -> None:
    while True:
        heard = await channel.receive()
        await (channel.send(heard) if isinstance(heard, bytes) else channel.say(heard))


async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _echo(await accept(Streams(reader, writer), KEY, AMPLE_S))


def test_data_and_objects_pass_whole() -> None:
    async def talk() -> None:
        async with Machine(served) as port:
            channel = await connect("localhost", port, KEY, AMPLE_S)
            data = os.urandom(3 * MAX_RECORD_BYTES + 1)
            sending = asyncio.create_task(channel.send(data))
            got = b""
            while len(got) < len(data):
                piece = await channel.receive()
                assert isinstance(piece, bytes)
                got += piece
            await sending
            assert got == data
            await channel.say({"want": "ö"})
            assert await channel.hear() == {"want": "ö"}
            channel.abort()

    run(talk())


def test_beats_keep_a_quiet_channel_open() -> None:
    async def talk() -> None:
        async def beating(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            channel = await accept(Streams(reader, writer), KEY, LIMIT_S)
            beat = asyncio.create_task(channel.beat())
            try:
                await _echo(channel)
            finally:
                beat.cancel()

        machine = Machine(beating)
        async with machine as port:
            channel = await connect("127.0.0.1", port, KEY, LIMIT_S)
            beat = asyncio.create_task(channel.beat())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3 * LIMIT_S):
                    await channel.receive()
            await channel.say({"still": "here"})
            assert await channel.hear() == {"still": "here"}
            beat.cancel()
            channel.abort()
        assert [str(error) for error in machine.errors if "closed" not in str(error) and "lost" not in str(error)] == []

    run(talk())


def test_silence_ends_both_ends() -> None:
    async def talk() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            channel = await accept(Streams(reader, writer), KEY, LIMIT_S)
            await channel.receive()

        machine = Machine(silent)
        async with machine as port:
            channel = await connect("127.0.0.1", port, KEY, LIMIT_S)
            with pytest.raises(ChannelError, match=r"no sign of life for 0\.4 s|closed the connection"):
                await channel.receive()
            channel.abort()
            await asyncio.sleep(LIMIT_S)
        assert [str(error) for error in machine.errors] == ["no sign of life for 0.4 s"]

    run(talk())


def test_a_machine_that_computes_for_longer_than_the_limit_gets_all_that_is_under_way() -> None:
    """It beats all the while and reads nothing, so that no room for more is left on the way."""
    size, limit_s = 50 * 10**6, 1.0

    async def talk() -> None:
        async def computing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            channel = await accept(Streams(reader, writer), KEY, limit_s)
            beat = asyncio.create_task(channel.beat())
            await asyncio.sleep(3 * limit_s)
            n_bytes = 0
            while n_bytes < size:
                n_bytes += len(await channel.receive())
            await channel.say({"got": n_bytes})
            await channel.receive()
            beat.cancel()

        async with Machine(computing) as port:
            channel = await connect("127.0.0.1", port, KEY, limit_s)
            sending = asyncio.create_task(channel.send(bytes(size)))
            assert await channel.hear() == {"got": size}
            await sending
            channel.abort()

    run(talk())


def test_a_connection_that_the_system_gives_up_is_no_silence() -> None:
    async def talk() -> None:
        async def given_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            channel = await accept(Streams(reader, writer), KEY, AMPLE_S)
            reader.set_exception(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
            await channel.receive()

        machine = Machine(given_up)
        async with machine as port:
            channel = await connect("127.0.0.1", port, KEY, AMPLE_S)
            await asyncio.sleep(0.1)
            channel.abort()
        assert [str(error) for error in machine.errors] == ["the connection is lost"]

    run(talk())


def test_only_the_end_that_computes_ends_by_what_the_system_cannot_deliver() -> None:
    """It does not listen for beats meanwhile. The other end listens always, and sends more than has room."""
    limits = []

    async def talk() -> None:
        async def noting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await accept(Streams(reader, writer), KEY, AMPLE_S)
            limits.append(_user_timeout_ms(writer))

        async with Machine(noting) as port:
            channel = await connect("127.0.0.1", port, KEY, AMPLE_S)
            limits.append(_user_timeout_ms(channel._writer))
            while len(limits) < 2:  # noqa: ASYNC110 - the other end is a moment behind
                await asyncio.sleep(0.01)
            channel.abort()

    run(talk())
    assert sorted(limits) == [0, AMPLE_S * 1000]


def _user_timeout_ms(writer: asyncio.StreamWriter) -> int:
    connection = writer.get_extra_info("socket")
    milliseconds: int = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    return milliseconds


@pytest.mark.parametrize(
    ("key", "told"), [(OTHER_KEY, "it has another key"), (NO_KEY, "it has no key (`--rpc-key-file`)")]
)
def test_another_key_is_told_on_both_sides(key: bytes, told: str) -> None:
    async def talk() -> None:
        machine = Machine(served)
        async with machine as port:
            with pytest.raises(ChannelError, match="it has another key: `--rpc-key-file`"):
                await connect("127.0.0.1", port, key, AMPLE_S)
            await asyncio.sleep(0.1)
        assert [str(error) for error in machine.errors] == [told]

    run(talk())


def test_who_takes_each_key_but_has_none_is_no_machine_of_ours() -> None:
    async def talk() -> None:
        async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hello = await reader.readexactly(52)
            writer.write(hello)  # its own words back
            proof = await reader.readexactly(32)
            writer.write(b"\x01" + proof)  # and its own proof
            await writer.drain()
            await asyncio.sleep(1)

        async with Machine(impostor) as port:
            with pytest.raises(ChannelError, match="it does not know the key"):
                await connect("127.0.0.1", port, KEY, AMPLE_S)

    run(talk())


def test_somebody_in_between_passes_nothing_on() -> None:
    """The proofs are about the tunnel, and somebody in between has two."""

    async def talk() -> None:
        machine = Machine(served)
        async with machine as far:

            async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                context = tls_context(is_server=False)
                far_reader, far_writer = await asyncio.open_connection(
                    "127.0.0.1", far, ssl=context, server_hostname=""
                )

                async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                    while data := await source.read(4096):
                        target.write(data)

                try:
                    await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))
                finally:
                    far_writer.transport.abort()

            async with Machine(between) as port:
                with pytest.raises(ChannelError, match="another key"):
                    await connect("127.0.0.1", port, KEY, AMPLE_S)
        assert [str(error) for error in machine.errors] == ["it has another key"]

    run(talk())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", os.urandom(4096), b""])
def test_what_answers_is_something_else(answer: bytes) -> None:
    async def talk() -> None:
        async def other(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)
            await writer.drain()
            await asyncio.sleep(0.1)

        async with Machine(other, speaks_tls=False) as port:
            with pytest.raises(ChannelError, match=r"is no `shimmy rpc-worker`|cannot be reached|closed"):
                await connect("127.0.0.1", port, KEY, AMPLE_S)

    run(talk())


def test_what_answers_says_nothing() -> None:
    async def talk() -> None:
        async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(10)

        for speaks_tls in (False, True):
            async with Machine(silent, speaks_tls=speaks_tls) as port:
                with pytest.raises(ChannelError, match=r"0\.4 s"):
                    await connect("127.0.0.1", port, KEY, LIMIT_S)

    run(talk())


def test_nobody_listens_or_has_the_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ChannelError, match="nothing listens there"):
            run(connect("127.0.0.1", taken.getsockname()[1], KEY, AMPLE_S))
    with pytest.raises(ChannelError, match=r"name cannot be found|did not answer"):
        run(connect("no-such-host.invalid", 1, KEY, AMPLE_S))


@pytest.mark.parametrize(
    "record",
    [
        b"\x02\xff\xff\xff\xff",  # 4 GB of data
        b"\x02\x00\x00\x00\x00",  # none
        b"\x01\x00\x00\x00\x02[]",  # no object
        b"\x01\x00\x00\x00\x02{x",
        b"\x01\x7f\xff\xff\xff",
        b"\x03\x00\x00\x00\x01x",
        b"\x09\x00\x00\x00\x01x",
    ],
)
def test_a_record_that_makes_no_sense_ends_the_channel(record: bytes) -> None:
    async def talk() -> None:
        machine = Machine(served)
        async with machine as port:
            channel = await connect("127.0.0.1", port, KEY, AMPLE_S)
            channel._writer.write(record)
            with pytest.raises(ChannelError):
                await channel.receive()
        assert [str(error) for error in machine.errors] == ["the other end does not keep to the protocol"]

    run(talk())


def test_no_other_protocol_and_no_session_of_before() -> None:
    """Only TLS 1.2 has what the proofs are made over."""
    context = tls_context(is_server=True)
    assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_TICKET
