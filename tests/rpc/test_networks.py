"""Addresses of machines, the networks that may connect, and keys."""

from pathlib import Path

import pytest

from shimmy.rpc.address import Address
from shimmy.rpc.key import NO_KEY, read_key
from shimmy.rpc.networks import is_allowed, is_loopback, network


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("box.lan:7", Address("box.lan", 7), "box.lan:7"),
        ("Box", Address("box", 50052), "box:50052"),
        ("10.0.0.2", Address("10.0.0.2", 50052), "10.0.0.2:50052"),
        ("[fd00::2]:7", Address("fd00::2", 7), "[fd00::2]:7"),
        ("fd00::2", Address("fd00::2", 50052), "[fd00::2]:50052"),
        ("[fe80::1%eth0]", Address("fe80::1%eth0", 50052), "[fe80::1%eth0]:50052"),
    ],
)
def test_addresses(text: str, address: Address, shown: str) -> None:
    assert Address.parse(text) == address
    assert str(address) == shown
    assert Address.parse(shown) == address


def test_who_is_allowed() -> None:
    networks = (network("10.0.0.0/24"), network("fd00::/8"), network("192.168.1.5"))
    for host in ("10.0.0.7", "fd00::1", "fd00::1%eth0", "192.168.1.5", "::ffff:10.0.0.7"):
        assert is_allowed(host, networks)
    for host in ("10.0.1.7", "fe80::1", "192.168.1.6", "::ffff:10.0.1.7", "127.0.0.1", "::1"):
        assert not is_allowed(host, networks)
        assert is_allowed(host, ())
    with pytest.raises(ValueError, match="is no address or network"):
        network("10.0.0.0/33")
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "0.0.0.0", "::", "10.0.0.1")] == [
        True,
        True,
        *[False] * 3,
    ]


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"  0123456789abcdef\n")
    assert read_key(path) == b"0123456789abcdef"
    assert read_key(None) == NO_KEY
    path.write_bytes(b"0123456789abcde\n")
    with pytest.raises(ValueError, match=r"has 15 bytes, and 16 .*`head -c 32 /dev/urandom"):
        read_key(path)
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_key(path)
