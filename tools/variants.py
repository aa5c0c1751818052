"""The archive of ggml's CPU variants: packs what the frozen file's worker unpacks one of.

The format and what each variant needs stand in shimmy/engine/cpu_variants/variants.py, beside the reader.
"""

import json
import lzma
from pathlib import Path

from shimmy.engine.cpu_variants.variants import ARCHIVE_NAME, LIBRARY_PREFIX, VARIANTS

__all__ = ["ARCHIVE_NAME", "pack", "read_libraries"]

# What a reader has to decompress before its own variant costs it time: those of common processors come first.
COMMON = ("haswell", "zen4", "alderlake", "icelake", "skylakex", "armv8.2_2", "armv8.0_1")


def pack(libraries: dict[str, bytes]) -> bytes:
    """The archive of these stripped libraries, by the name of the variant: a stream for each width of registers."""
    names = sorted(libraries, key=lambda name: (COMMON.index(name) if name in COMMON else len(COMMON), name))
    needed = dict(VARIANTS)
    wide = [name for name in names if "avx512f" in needed[name]]
    narrow = [name for name in names if "avx2" in needed[name] and name not in wide]
    others = [name for name in names if name not in (*wide, *narrow)]
    groups = [group for group in (wide, narrow, others) if group]
    streams = [
        lzma.compress(b"".join(libraries[name] for name in group), preset=9 | lzma.PRESET_EXTREME) for group in groups
    ]
    index = [
        (len(stream), [(name, len(libraries[name])) for name in group])
        for stream, group in zip(streams, groups, strict=True)
    ]
    return json.dumps(index).encode() + b"\n" + b"".join(streams)


def read_libraries(folder: Path) -> dict[str, bytes]:
    """All variants of this architecture, which lie in `folder` as shared libraries, by name."""
    paths = {path.stem.removeprefix(LIBRARY_PREFIX): path for path in folder.glob(f"{LIBRARY_PREFIX}*.so")}
    is_arm = any(name.startswith("arm") for name in paths)
    expected = {name for name, _ in VARIANTS if name.startswith("arm") == is_arm}
    if paths.keys() != expected:
        odd = ", ".join(sorted(paths.keys() ^ expected))
        raise ValueError(f"the engine's CPU variants and those of cpu_variants/variants.py differ in: {odd}")
    return {name: path.read_bytes() for name, path in paths.items()}
