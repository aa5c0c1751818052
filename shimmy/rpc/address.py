"""The address of another machine. Light: the options know it. Knows no sockets."""

from dataclasses import dataclass

DEFAULT_PORT = 50052  # llama.cpp's


@dataclass(frozen=True, slots=True)
class Address:
    """Where a machine listens: a name or an address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`HOST:PORT`, `[v6]:PORT`, `HOST` or `v6`; raises ValueError."""
        host, colon, port = text.strip().rpartition(":")
        if not colon or text.endswith("]") or (text.count(":") > 1 and not text.startswith("[")):
            host, port = text.strip(), str(DEFAULT_PORT)
        host = host.removeprefix("[").removesuffix("]").lower()
        if not host or not host.isascii() or any(not (char.isalnum() or char in "-._:%") for char in host):
            raise ValueError("must be HOST:PORT, such as 10.0.0.2:50052, box.lan:50052 or [fd00::2]:50052")
        if not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError("must end with a port from 1 to 65535, such as :50052")
        return cls(host, int(port))

    @property
    def is_here(self) -> bool:
        """Whether it can only be this machine."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")
