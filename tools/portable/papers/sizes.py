"""`python -m tools.portable.papers.sizes FILE` prints what each part of a portable file weighs, as a table.

Knows the format of the table. How the parts lie in the file stands in tools/portable/contents.py.
"""

import argparse
import sys
from pathlib import Path

from tools.portable.contents import archive_start, read_files, unpacked
from tools.portable.expected_contents import plain_name

BOOTLOADER, REST = "outer bootloader", "scripts and tables"
_WHAT = {
    BOOTLOADER: "unpacks the others",
    "libpython.so": "CPython with zlib, liblzma and libffi",
    "PYZ.pyz": "Python modules",
    "base_library.zip": "Python modules that a start needs first",
    "llama_cpp/lib/variants.xz": "llama.cpp's computations for each kind of processor",
    "llama_cpp/lib/libllama.so.z": "llama.cpp",
    "llama_cpp/lib/libggml-base.so.z": "llama.cpp",
    "llama_cpp/lib/libggml.so.z": "llama.cpp",
    "llguidance.xz": "grammars and JSON schemas",
    "numpy.xz": "arithmetic for quantised SafeTensors",
    "weight-loops.xz": "loops over quantised SafeTensors",
    "cuda.so": "llama.cpp's computations on NVIDIA's GPUs",
    "cuda.sha256": "what that has to be",
    "vulkan.xz": "llama.cpp's computations on GPUs",
    "vulkan.sha256": "what the unpacked one has to be",
    "rpc.xz": "llama.cpp's half for several machines",
    "rpc.sha256": "what the unpacked one has to be",
    "ssl.xz": "OpenSSL",
    "markupsafe/_speedups.so": "escaping in chat templates",
    "shimmy.inner": "inner bootloader, which starts Python",
}
_C_LIBRARY = "glibc, for systems without"


def table(program: Path) -> str:
    """Rows of the parts, the largest first, in Markdown: bytes in the file, and bytes when it is used."""
    rows: dict[str, tuple[int, int]] = {}
    for name, stored, content in read_files(program):
        if "." in name and not name.startswith("pyi"):
            rows[plain_name(name)] = stored, sum(len(data) for _, data in unpacked(name, content))
    size_bytes = program.stat().st_size
    in_front = archive_start(program.read_bytes())
    rows[BOOTLOADER] = in_front, in_front
    rest = size_bytes - sum(stored for stored, _ in rows.values())
    rows[REST] = rest, rest
    lines = [
        f"| part of `{program.name}` | what | bytes in the file | unpacked |",
        "|---|---|---:|---:|",
    ]
    for name, (stored, full) in sorted(rows.items(), key=lambda row: -row[1][0]):
        what = _C_LIBRARY if name.startswith("libc/") else _WHAT.get(name, "")
        lines.append(f"| {name if name in {BOOTLOADER, REST} else f'`{name}`'} | {what} | {stored:,} | {full:,} |")
    lines.append(f"| all | | {size_bytes:,} | {sum(full for _, full in rows.values()):,} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table of the file that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.portable.papers.sizes", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("file", type=Path, help="a portable file")
    sys.stdout.write(table(parser.parse_args().file))


if __name__ == "__main__":
    main()
