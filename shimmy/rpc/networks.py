"""Which machines may connect, by their addresses. Knows no sockets."""

import ipaddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def network(text: str) -> Network:
    """`10.0.0.5`, `10.0.0.0/24`, `fd00::/8`; raises ValueError."""
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f"`{text}` is no address or network such as 10.0.0.5, 10.0.0.0/24 or fd00::/8") from None


def is_allowed(host: str, networks: tuple[Network, ...]) -> bool:
    """Whether the address `host` is in one of the `networks`; without any, each is allowed."""
    if not networks:
        return True
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in each for each in networks)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address `host`."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
