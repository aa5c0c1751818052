"""Models over several machines, which here are processes of this one: the same text, and what follows when a machine
is killed, stopped, busy, somebody else's or under fire. The key's channel and the limits of messages have tests of
their own in tests/rpc; two network namespaces are in test_two_networks.py."""

import asyncio
import os
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from time import monotonic

import pytest

from shimmy.rpc.channel import Channel, ChannelError, connect
from shimmy.rpc.framing import PROTOCOL, Command
from shimmy.system.backends import RPC, VULKAN
from tests.e2e.conftest import StartServer
from tests.e2e.harness import COMPLETION, ENDLESS, FROZEN_FILE, HOST, PROMPTS, Json, Server, run
from tests.e2e.processes import command_line, wait_for
from tests.e2e.rpc_machine import KEY, LIMIT_S, Machine, key_file, machine
from tests.e2e.test_vulkan import COMPILES_S, use_llvmpipe

N_TOKENS = 24
ALL = 3  # layers of the tiny models, with their output
MANY = 100
SLACK_S = 10.0  # for a busy machine, beside the heartbeat

pytestmark = pytest.mark.skipif(not FROZEN_FILE and RPC.built() is None, reason="not made: `python3 build.py rpc`")

StartMachine = Callable[..., Machine]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[StartMachine]:
    """Starts machines of the test's own."""
    numbers = count()
    with ExitStack() as machines:

        def start_machine(*arguments: str | Path, key: bytes | None = KEY) -> Machine:
            return machines.enter_context(machine(tmp_path / f"machine-{next(numbers)}", *arguments, key=key))

        yield start_machine


def options(folder: Path, *machines: Machine, key: bytes = KEY) -> tuple[str | Path, ...]:
    addresses = ",".join(each.address for each in machines)
    timeouts = ("--rpc-timeout", str(LIMIT_S), "--worker-timeout", "60")
    return ("--device", "none", "--rpc", addresses, "--rpc-key-file", key_file(folder, key), *timeouts)


def n_files_at_rest(there: Machine) -> int:
    """What it has open without a client, when it has had one: the first opens files that stay."""

    async def come_and_go() -> None:
        channel, answer = await _asked(there, {"protocol": PROTOCOL, "want": "compute", "devices": ["CPU"]})
        assert answer == {"granted": True}
        channel.abort()

    asyncio.run(come_and_go())
    wait_for("the engine's end", lambda: not there.engines())
    return wait_for("the number of open files", there.n_open_files)


def entry(server: Server, name: str = "alpha") -> Json:
    return server.get(f"/api/models/{name}/status").json()


def test_two_machines_and_the_processor_write_the_same_text_and_everything_says_so(
    tmp_path: Path, start: StartServer, other: StartMachine, server: Server
) -> None:
    first, second = other(), other()
    spread = start(*options(tmp_path, first, second))
    for prompt in PROMPTS[:3]:
        assert spread.chat(prompt, max_tokens=N_TOKENS) == server.chat(prompt, max_tokens=N_TOKENS)
    told = entry(spread)
    names = f"{first.address}/CPU, {second.address}/CPU"
    assert (told["device"], told["n_device_layers"], told["n_layers"]) == (names, 2, ALL)
    assert told["memory"]["device_bytes"] > 0
    assert f'shimmy_model_gpu_layers{{model="alpha",device="{names}"}} 2' in spread.get("/metrics").body.decode()
    assert f"2 of {ALL} layers on {first.address}/CPU" in spread.log
    assert f"{names}: 2 of {ALL}" in run(tmp_path, "ps", "--url", spread.url).stdout
    assert len(first.engines()) == len(second.engines()) == 1
    spread.post("/api/models/alpha/unload", {})
    wait_for("the engines' end", lambda: not first.engines() and not second.engines())


def test_streams_at_once_a_long_prompt_and_two_models(
    tmp_path: Path, start: StartServer, other: StartMachine, server: Server
) -> None:
    there = other()
    spread = start(*options(tmp_path, there), "--gpu-layers", "all")
    prompts = [*PROMPTS[:3], " ".join(PROMPTS + PROMPTS[:12])]
    alone = [server.chat(prompt, max_tokens=N_TOKENS) for prompt in prompts]
    streams = [spread.stream(prompt, max_tokens=N_TOKENS) for prompt in prompts]
    assert [stream.finish().text for stream in streams] == alone
    assert entry(spread)["n_device_layers"] == ALL
    assert spread.chat(PROMPTS[0], "beta", max_tokens=8) == server.chat(PROMPTS[0], "beta", max_tokens=8)
    assert len(there.engines()) == 2


@pytest.mark.thorough
@pytest.mark.timeout(1000)
@pytest.mark.skipif(not FROZEN_FILE and VULKAN.built() is None, reason="this build has no Vulkan")
def test_a_device_of_another_machine(
    tmp_path: Path, start: StartServer, other: StartMachine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_llvmpipe(monkeypatch)
    there = other("--device", "Vulkan0")
    spread = start(*options(tmp_path, there), "--worker-timeout", "10m", "--load-timeout", "10m")
    body = {"model": "alpha", "prompt": PROMPTS[0], "max_tokens": 12, "temperature": 0}
    reply = spread.request("POST", COMPLETION, body, deadline_s=COMPILES_S)
    assert reply.json()["choices"][0]["text"] == server.post(COMPLETION, body).json()["choices"][0]["text"]
    told = entry(spread)
    assert (told["device"], told["n_device_layers"]) == (f"{there.address}/Vulkan0", ALL)


def ends_in_time(server: Server, harm: Callable[[], None]) -> str:
    """What a stream that is running says when a machine is harmed."""
    with server.stream(PROMPTS[0], **ENDLESS, ignore_eos=True) as stream:
        stream.read(3)
        harm()
        began_s = monotonic()
        while stream.error is None and stream._read_event():
            pass
        assert monotonic() - began_s < LIMIT_S + SLACK_S
    assert stream.error is not None, "the stream ended as if nothing had been"
    message: str = stream.error["message"]
    return message


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_machine_that_goes_away_fails_its_jobs_and_the_rest_go_on_without_it(
    tmp_path: Path, start: StartServer, other: StartMachine, number: signal.Signals
) -> None:
    lost, stays = other(), other()
    server = start(*options(tmp_path, lost, stays))
    text = server.chat(PROMPTS[1], max_tokens=N_TOKENS)
    said = ends_in_time(server, lambda: os.kill(lost.pid, number))
    assert lost.address in said
    assert server.chat(PROMPTS[1], max_tokens=N_TOKENS) == text  # loaded again, from what is left
    told = entry(server)
    assert told["device"] == f"{stays.address}/CPU"
    assert f"{lost.address} is not used" in told["device_note"]
    assert server.metric("shimmy_worker_deaths_total", "alpha") == 1
    wait_for("the end of what it had there", lambda: len(stays.engines()) == 1)
    if number == signal.SIGSTOP:
        os.kill(lost.pid, signal.SIGCONT)
        wait_for("the end of the lost engine", lambda: not lost.engines())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_of_a_machine_that_goes_away_costs_no_more_than_its_jobs(
    tmp_path: Path, start: StartServer, other: StartMachine, number: signal.Signals
) -> None:
    there = other()
    server = start(*options(tmp_path, there))
    text = server.chat(PROMPTS[1], max_tokens=N_TOKENS)
    n_files = there.n_open_files()
    said = ends_in_time(server, lambda: os.kill(there.engines()[0], number))
    assert f"{there.address}: the engine" in said
    assert server.chat(PROMPTS[1], max_tokens=N_TOKENS) == text
    assert entry(server)["device"] == f"{there.address}/CPU"
    wait_for("nothing to be left over", lambda: len(there.engines()) == 1 and there.n_open_files() <= n_files)


def test_a_server_that_is_killed_leaves_nothing_behind(tmp_path: Path, start: StartServer, other: StartMachine) -> None:
    there = other()
    n_files = n_files_at_rest(there)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        server = start(*options(tmp_path, there))
        server.chat(PROMPTS[0], max_tokens=2)
        os.kill(server.worker(), number)
        wait_for("nothing to be left over", lambda: not there.engines() and there.n_open_files() <= n_files)


def test_another_key_and_nobody_there_leave_the_processor(
    tmp_path: Path, start: StartServer, other: StartMachine
) -> None:
    there = other()
    server = start(*options(tmp_path, there, key=b"another key that is long enough"))
    assert server.chat(PROMPTS[0], max_tokens=2)
    told = entry(server)
    assert told["device"] is None
    assert "it has another key: `--rpc-key-file` has to be the same" in told["device_note"]
    assert "127.0.0.1: it has another key" in there.log
    there.destroy()
    server = start(*options(tmp_path, there))
    assert server.chat(PROMPTS[0], max_tokens=2)
    assert f"{there.address} is not used: nothing listens there" in entry(server)["device_note"]


def test_a_prompt_that_is_answered_without_the_machine_says_so(
    tmp_path: Path, other: StartMachine, models: Path
) -> None:
    there = other()
    common = ("generate", models / "alpha.gguf", "hello", "-n", "2", "--device", "none", "--rpc", there.address)
    done = run(tmp_path, *common)
    assert done.returncode == 0
    assert f"does not use all of `--rpc`: {there.address} is not used: it has another key" in done.stderr
    wait_for("the line of the log", lambda: "127.0.0.1: it has no key" in there.log)
    assert "not used" not in run(tmp_path, *common, "--rpc-key-file", key_file(tmp_path)).stderr
    wait_for("the line of the log", lambda: re.search(r" has left$", there.log, re.MULTILINE))
    told = run(tmp_path, "run", *common[1:]).stderr
    assert f"alpha is not computed as was asked: {there.address} is not used: it has another key" in told


@pytest.mark.skipif(not FROZEN_FILE, reason="has no outer process")
def test_nothing_is_left_where_the_outer_process_is_killed(
    tmp_path: Path, other: StartMachine, start: StartServer
) -> None:
    there = other()
    server = start(*options(tmp_path, there))
    server.chat(PROMPTS[0], max_tokens=2)
    left = [there.pid, *there.engines()]
    assert there.process.pid not in left
    there.process.kill()
    wait_for("the end of all", lambda: not any(filter(None, map(command_line, left))))


def test_a_machine_that_is_needed_and_not_there(tmp_path: Path, start: StartServer, other: StartMachine) -> None:
    there = other()
    there.destroy()
    needy = [each for each in options(tmp_path, there) if each not in ("--device", "none")]
    server = start(*needy, "--device-required")
    reply = server.post(COMPLETION, {"model": "alpha", "prompt": "hello", "max_tokens": 2})
    assert reply.status == 503
    assert "nothing listens there" in reply.error["message"]


def test_a_machine_with_as_many_clients_as_it_takes_is_busy(
    tmp_path: Path, start: StartServer, other: StartMachine
) -> None:
    there = other("--max-clients", "1")
    server = start(*options(tmp_path, there))
    server.chat(PROMPTS[0], max_tokens=2)
    server.chat(PROMPTS[0], "beta", max_tokens=2)
    assert entry(server)["device"] == f"{there.address}/CPU"
    assert "it is busy: it has as many clients as it takes at once, 1" in entry(server, "beta")["device_note"]
    server.post("/api/models/alpha/unload", {})
    wait_for("the engine's end", lambda: not there.engines())
    server.post("/api/models/beta/unload", {})
    server.chat(PROMPTS[0], "beta", max_tokens=2)
    assert entry(server, "beta")["device"] == f"{there.address}/CPU"


def test_a_hundred_strangers_keep_no_client_out(tmp_path: Path, start: StartServer, other: StartMachine) -> None:
    there = other()
    n_files = n_files_at_rest(there)
    strangers = [socket.create_connection((HOST, there.port)) for _ in range(MANY)]
    for index, stranger in enumerate(strangers):
        if index % 3 == 1:
            stranger.sendall(os.urandom(3000))
        if index % 3 == 2:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    server = start(*options(tmp_path, there))
    server.chat(PROMPTS[0], max_tokens=2)
    assert entry(server)["device"] == f"{there.address}/CPU"
    for stranger in strangers:  # each is sent away, those that said nothing too
        stranger.settimeout(LIMIT_S + SLACK_S)
        try:
            while stranger.recv(4096):
                pass
        except ConnectionResetError:
            pass
        stranger.close()
    server.post("/api/models/alpha/unload", {})
    wait_for("nothing to be left over", lambda: there.n_open_files() <= n_files)
    assert there.log.count("WARNING") <= MANY / 2


async def _asked(there: Machine, wish: Json) -> tuple[Channel, Json]:
    channel = await connect(HOST, there.port, KEY.strip(), LIMIT_S)
    await channel.say(wish)
    return channel, await channel.hear()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (bytes((Command.SET_TENSOR,)) + struct.pack("<Q", 2**63), "9223372036854775808 bytes for SET_TENSOR"),
        (b"\xff" + bytes(8), "unknown command 255"),
        (bytes((Command.HELLO,)) + struct.pack("<Q", 24) + bytes(24), "second one"),
    ],
)
def test_who_has_the_key_and_sends_nonsense_is_told_and_costs_an_engine(
    other: StartMachine, sent: bytes, reason: str
) -> None:
    there = other()
    n_files = n_files_at_rest(there)

    async def attack() -> str:
        channel, answer = await _asked(there, {"protocol": PROTOCOL, "want": "compute", "devices": ["CPU"]})
        assert answer == {"granted": True}
        await channel.send(bytes((Command.HELLO,)) + struct.pack("<Q", 24) + bytes(24))
        welcome = b""
        while len(welcome) < 36:
            piece = await channel.receive()
            assert isinstance(piece, bytes)
            welcome += piece
        assert welcome == struct.pack("<Q", 28) + bytes((*PROTOCOL, 0)) + bytes(24)
        await channel.send(sent)
        ended = await channel.hear()
        channel.abort()
        return str(ended["ended"])

    assert reason in asyncio.run(attack())
    wait_for("nothing to be left over", lambda: not there.engines() and there.n_open_files() <= n_files)
    assert there.process.poll() is None


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({}, "another version"),
        ({"protocol": [6, 0, 0], "want": "look"}, "another version"),
        ({"protocol": PROTOCOL, "want": "all"}, "does not know what is wanted"),
        ({"protocol": PROTOCOL, "want": "compute", "devices": ["Vulkan7"]}, "no such devices; it has CPU"),
        ({"protocol": PROTOCOL, "want": "compute", "devices": []}, "no such devices"),
        ({"protocol": PROTOCOL, "want": "compute", "devices": {"CPU": 1}}, "no such devices"),
        ({"protocol": PROTOCOL, "want": "compute", "devices": ["CPU", "CPU"]}, "no such devices"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(other: StartMachine, wish: Json, reason: str) -> None:
    there = other()

    async def ask() -> str:
        channel, answer = await _asked(there, wish)
        channel.abort()
        return str(answer["refused"])

    assert reason in asyncio.run(ask())
    assert not there.engines()


async def _heard_to_the_end(channel: Channel) -> None:
    while True:
        await channel.receive()


def test_a_client_that_falls_silent_is_let_go(other: StartMachine) -> None:
    there = other()

    async def fall_silent() -> None:
        channel, answer = await _asked(there, {"protocol": PROTOCOL, "want": "compute", "devices": ["CPU"]})
        assert answer == {"granted": True}
        with pytest.raises(ChannelError):
            await _heard_to_the_end(channel)

    asyncio.run(fall_silent())
    wait_for("the engine's end", lambda: not there.engines())
    assert f"has left: no sign of life for {LIMIT_S} s" in there.log


def test_who_may_connect(tmp_path: Path, other: StartMachine, start: StartServer) -> None:
    there = other("--allow", "10.0.0.0/8,fd00::/8")
    server = start(*options(tmp_path, there))
    server.chat(PROMPTS[0], max_tokens=2)
    assert entry(server)["device"] is None
    assert "127.0.0.1 is not allowed to connect (`--allow`)" in there.log


def test_a_machine_without_a_key_serves_its_own(other: StartMachine, start: StartServer) -> None:
    there = other(key=None)
    server = start("--device", "none", "--rpc", there.address)
    server.chat(PROMPTS[0], max_tokens=2)
    assert entry(server)["device"] == f"{there.address}/CPU"
    variables = Path(f"/proc/{there.engines()[0]}/environ").read_bytes().split(b"\0")
    assert not [each for each in variables if each.startswith(b"SHIMMY_")]


def test_memory_that_is_lent_is_not_exceeded(tmp_path: Path, other: StartMachine, start: StartServer) -> None:
    there = other("--memory", "1K")
    server = start(*options(tmp_path, there))
    server.chat(PROMPTS[0], max_tokens=2)
    told = entry(server)
    assert told["device"] is None
    assert "not one of its layers fits" in told["device_note"]


def test_what_is_refused_at_the_start(tmp_path: Path) -> None:
    wide = run(tmp_path, "rpc-worker", "--bind", "0.0.0.0:0")
    assert wide.returncode == 2
    assert "so a key is needed: `--rpc-key-file FILE`" in wide.stderr
    assert "`head -c 32 /dev/urandom | base64 > FILE` makes one" in wide.stderr
    short = run(tmp_path, "rpc-worker", "--rpc-key-file", key_file(tmp_path, b"fifteen bytes.."))
    assert short.returncode == 2
    assert "has 15 bytes, and 16 are the least" in short.stderr
    far = run(tmp_path, "serve", "--rpc", "10.0.0.2:50052")
    assert far.returncode == 2
    assert "another machine needs a key" in far.stderr
    for flag, value in (("allow", "10.0.0.300"), ("bind", "host:99999"), ("memory", "much"), ("max-clients", "0")):
        assert run(tmp_path, "rpc-worker", f"--{flag}", value).returncode == 2


def test_it_ends_when_it_is_asked_to(other: StartMachine, tmp_path: Path, start: StartServer) -> None:
    there = other()
    server = start(*options(tmp_path, there))
    server.chat(PROMPTS[0], max_tokens=2)
    engines = there.engines()
    there.process.terminate()
    assert there.process.wait(SLACK_S) == 0
    assert not any(filter(None, map(command_line, engines)))
