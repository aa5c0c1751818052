"""Writes a file again and again, as tests of mutated files do thousands of times."""

from pathlib import Path


def rewrite(path: Path, content: bytes | bytearray) -> None:
    """Like `write_bytes`, but an existing file keeps its blocks: to free and to take some takes a disk milliseconds."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()
