"""Which CPU variants of ggml fit this processor, best first, and where their libraries are.

Knows processor flags, the names ggml gives its variants, and the archive the frozen file carries them in; nothing of
llama.cpp. ggml checks the processor again when it loads one (its own score function), so a wrong guess here costs
speed and never an illegal instruction.

The archive (written by `build.py`) begins with a line of JSON, `[[size_bytes, [[name, size_bytes], ...]], ...]`: the xz
streams behind it, and the libraries in each, one after the other. Libraries of one stream resemble each other, so that
together they take a quarter of what they take one by one; those of common processors come first, because a reader has
to decompress what stands before its own in the stream.
"""

import ctypes
import json
import lzma
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from shimmy.engine.llama.unpack_libraries import bring_archives, telling_damage, unpacked
from shimmy.errors import ModelUnavailable
from shimmy.system.unpacked_folder import DAMAGED

ARCHIVE_NAME = "variants.xz"
LIBRARY_PREFIX = "libggml-cpu-"

_SSE42 = frozenset({"sse4_2"})
_AVX = _SSE42 | {"avx"}
_F16C = _AVX | {"f16c"}
_FMA = _F16C | {"fma"}
_AVX2 = _FMA | {"avx2", "bmi2"}
_AVX512 = _AVX2 | {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}
_VBMI, _VNNI, _BF16 = "avx512vbmi", "avx512_vnni", "avx512_bf16"
_FP16 = frozenset({"asimddp", "asimdhp"})

# Name and needed flags of each variant as /proc/cpuinfo spells them, in the order of ggml's scores. Sources:
# ggml_add_cpu_backend_variant in ggml/src/CMakeLists.txt, and ggml/src/ggml-cpu/arch/*/cpu-feats.cpp.
VARIANTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("sapphirerapids", _AVX512 | {_VBMI, _VNNI, _BF16, "amx_tile", "amx_int8"}),
    ("zen4", _AVX512 | {_VBMI, _VNNI, _BF16}),
    ("cooperlake", _AVX512 | {_VNNI, _BF16}),
    ("icelake", _AVX512 | {_VBMI, _VNNI}),
    ("cascadelake", _AVX512 | {_VNNI}),
    ("cannonlake", _AVX512 | {_VBMI}),
    ("skylakex", _AVX512),
    ("alderlake", _AVX2 | {"avx_vnni"}),
    ("haswell", _AVX2),
    ("piledriver", _FMA),
    ("ivybridge", _F16C),
    ("sandybridge", _AVX),
    ("sse42", _SSE42),
    ("x64", frozenset()),
    ("armv9.2_2", _FP16 | {"sve", "i8mm", "sve2", "sme"}),
    ("armv9.2_1", _FP16 | {"sve", "i8mm", "sme"}),
    ("armv8.6_2", _FP16 | {"sve", "i8mm", "sve2"}),
    ("armv8.6_1", _FP16 | {"sve", "i8mm"}),
    ("armv8.2_3", _FP16 | {"sve"}),
    ("armv8.2_2", _FP16),
    ("armv8.2_1", frozenset({"asimddp"})),
    ("armv8.0_1", frozenset()),
)

_Sizes = list[tuple[str, int]]  # of the libraries of a stream, unpacked, in bytes


# Bits of AT_HWCAP and AT_HWCAP2 on ARM64, by their names in /proc/cpuinfo: Linux, arch/arm64/include/uapi/asm/hwcap.h.
_ARM_CAPABILITIES = (
    (16, {10: "asimdhp", 20: "asimddp", 22: "sve"}),
    (26, {1: "sve2", 13: "i8mm", 14: "bf16", 23: "sme"}),
)


def processor_flags(
    cpuinfo: Path = Path("/proc/cpuinfo"), capabilities: Callable[[int], int] | None = None
) -> frozenset[str] | None:
    """The flags of the processor; None where the system does not tell. `capabilities` is the C library's `getauxval`.

    On ARM64 the kernel tells each process what all processors have. The list of processors is worth less there: of a
    machine with two kinds the first may have more, and an emulator shows the list of the machine it runs on.
    """
    if capabilities is None and os.uname().machine == "aarch64":
        capabilities = ctypes.CDLL(None).getauxval
        capabilities.restype = ctypes.c_ulong
    return _listed_flags(cpuinfo) if capabilities is None else _arm_flags(capabilities)


def _arm_flags(capabilities: Callable[[int], int]) -> frozenset[str]:
    words = ((capabilities(number), names) for number, names in _ARM_CAPABILITIES)
    return frozenset(name for word, names in words for bit, name in names.items() if word >> bit & 1)


def _listed_flags(cpuinfo: Path) -> frozenset[str] | None:
    """The flags of the first processor."""
    try:
        with cpuinfo.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "flags":
                    return frozenset(value.split())
    except OSError:
        return None
    return None


def ranked(available: frozenset[str], flags: frozenset[str] | None) -> list[str]:
    """The names among `available` that a processor with `flags` can run, best first; with None every name."""
    return [name for name, needed in VARIANTS if name in available and (flags is None or needed <= flags)]


def libraries(folder: Path, forced: str | None) -> Iterator[tuple[str, str]]:
    """Name and path of each variant worth trying, best first; only `forced` when it is given.

    An installed engine has the libraries in `folder` beside libllama. The frozen file has them packed there, and one
    is unpacked beside the archive when the iterator gets to it. Raises ModelUnavailable when it cannot be, and when
    `forced` is none of those that are there.
    """
    archive = folder / ARCHIVE_NAME
    bring_archives(folder)
    if archive.exists():
        with archive.open("rb") as file:
            available = frozenset(name for _, sizes in _streams(file) for name, _ in sizes)
    else:
        paths = {path.stem.removeprefix(LIBRARY_PREFIX): path for path in folder.glob(f"{LIBRARY_PREFIX}*.so")}
        available = frozenset(paths)
    if forced is not None and forced not in available:
        names = ", ".join(name for name, _ in VARIANTS if name in available)
        raise ModelUnavailable(f"there is no CPU variant `{forced}`; there are: {names}")
    for name in [forced] if forced else ranked(available, processor_flags()):
        if archive.exists():
            library = folder / f"{LIBRARY_PREFIX}{name}.so"
            yield name, str(unpacked(library, partial(_unpack, archive, name)))
        else:
            yield name, str(paths[name])


def _streams(file: BinaryIO) -> Iterator[tuple[int, _Sizes]]:
    """Where each stream of the archive begins, and what is in it. Raises ModelUnavailable for a damaged archive."""
    try:
        index: list[tuple[int, _Sizes]] = json.loads(file.readline())
    except ValueError as exc:
        raise ModelUnavailable(DAMAGED) from exc
    start = file.tell()
    for n_bytes, sizes in index:
        yield start, sizes
        start += n_bytes


def _unpack(archive: Path, wanted: str) -> bytes:
    """The library of a variant; what stands behind it in its stream is not even decompressed."""
    with archive.open("rb") as file:
        for start, sizes in _streams(file):
            before = 0
            for name, n_bytes in sizes:
                if name == wanted:
                    file.seek(start)
                    with telling_damage(), lzma.open(file) as stream:
                        stream.read(before)
                        return stream.read(n_bytes)
                before += n_bytes
    raise ModelUnavailable(f"the packed engine has no CPU variant `{wanted}`")
