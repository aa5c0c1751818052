"""Addresses and names that a server listens on, with a resolver of the test's own."""

import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from shimmy.http import listening
from shimmy.http.listening import BindError, listen, raise_descriptor_limit
from shimmy.option_kinds import DEFAULT_PORT, LAST_AUTO_PORT, Bind

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture(name="names")
def _names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[socket.AddressFamily, tuple[Any, ...]]]]:
    """Names of this test's machine, and their addresses."""
    names: dict[str, list[tuple[socket.AddressFamily, tuple[Any, ...]]]] = {}

    def resolve(host: bytes | str, *_: object, **__: object) -> list[tuple[Any, ...]]:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in names[name] for _ in "ab"]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return names


@contextmanager
def listened(host: str, port: int | None = 0) -> Iterator[Sequence[tuple[str, int]]]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(one) for one in listen(Bind(host, port))]
        yield [one.getsockname()[:2] for one in listeners]


def reach(address: tuple[str, int]) -> None:
    with socket.socket() as client:
        client.connect(address)


def test_an_address_is_listened_on_without_asking_for_its_name(names: object) -> None:
    assert not names
    with listened("127.0.0.3") as ((host, port),):
        assert host == "127.0.0.3"
        reach((host, port))


def test_a_name_is_listened_on_at_each_of_its_addresses_with_one_port(names: dict[str, Any]) -> None:
    names["box"] = [(V4, ("127.0.0.1", 0)), (V4, ("127.0.0.2", 0))]
    with listened("box") as addresses:
        assert [host for host, _ in addresses] == ["127.0.0.1", "127.0.0.2"]
        assert len({port for _, port in addresses}) == 1
        for address in addresses:
            reach(address)


def test_an_address_that_is_not_here_is_passed_over(names: dict[str, Any]) -> None:
    names["box"] = [(V6, ("2001:db8::1", 0, 0, 0)), (V4, ("127.0.0.1", 0)), (V4, ("192.0.2.1", 0))]
    with listened("box") as addresses:
        assert [host for host, _ in addresses] == ["127.0.0.1"]


def test_a_port_that_one_address_lacks_is_tried_again_where_any_will_do(names: dict[str, Any]) -> None:
    names["box"] = [(V4, ("127.0.0.1", 0)), (V4, ("127.0.0.2", 0))]
    taken: list[socket.socket] = []
    plain = listening._listener

    def unlucky(address: Any, port: int, *, is_alone: bool) -> socket.socket:
        listener = plain(address, port, is_alone=is_alone)
        if address[1][0] == "127.0.0.1" and len(taken) < 2:
            taken.append(socket.create_server(("127.0.0.2", listener.getsockname()[1])))
        return listener

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listening, "_listener", unlucky)
        with listened("box") as addresses:
            assert len(addresses) == 2
            assert len(taken) == 2
    for listener in taken:
        listener.close()


def test_a_port_in_use_is_told_with_its_number(names: dict[str, Any]) -> None:
    names["box"] = [(V4, ("127.0.0.1", 0)), (V4, ("127.0.0.2", 0))]
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BindError, match=f"^cannot listen on box, port {port}: Addr.* in use; end .*--bind"):
            listen(Bind("box", port))
        with socket.create_server(("127.0.0.1", port)):
            pass  # nothing was left open


def test_the_first_free_port_is_taken_where_none_is_named() -> None:
    with listened("127.0.0.1", None) as ((_, first),), listened("127.0.0.1", None) as ((_, second),):
        assert DEFAULT_PORT <= first < second <= LAST_AUTO_PORT


@pytest.mark.parametrize("host", ["nobody", "no\udcffbody", "a" * 300, "bücher", "a..b", "[::1", "1.2.3.4.5"])
def test_a_name_that_nobody_has_is_told(names: dict[str, Any], host: str) -> None:
    assert not names
    with pytest.raises(BindError, match=r"^cannot listen on .*no address or name that is known here"):
        listen(Bind(host, 0))


def test_a_name_of_another_machine_is_told(names: dict[str, Any]) -> None:
    names["far"] = [(V4, ("192.0.2.1", 0))]
    with pytest.raises(BindError, match=r"^cannot listen on far, port 0: "):
        listen(Bind("far", 0))


def test_the_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 128), hard))
    try:
        n_files = raise_descriptor_limit()
        assert n_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 128
        assert raise_descriptor_limit() == n_files
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_written_does_not_wait_for_more() -> None:
    """Asyncio switches Nagle's algorithm off for sockets that say they are TCP's; accepted ones say what these do."""
    (listener,) = listen(Bind("127.0.0.1", 0))
    with listener:
        assert listener.proto == socket.IPPROTO_TCP
