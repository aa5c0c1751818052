"""The variant with AMX sets its tiles up as ggml asks: all 64 bytes of their configuration are stored before they are
loaded (GCC 12 dropped 56 of them). Read from the built library, as most machines have no AMX to run it; where there is
some, tests/engine/cpu_variants/test_variant_trust.py computes with it."""

import platform
import re
import subprocess
from pathlib import Path

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER

WITH_AMX = [name for name, needed in variants.VARIANTS if "amx_tile" in needed]
CONFIGURATION_BYTES = 64
# Bytes that a store with a register of this kind writes, or with this letter at the end of its name.
REGISTERS = {"zmm": 64, "ymm": 32, "xmm": 16, "r": 8, "e": 4}
SUFFIXES = {"b": 1, "w": 2, "l": 4, "q": 8}
PLACE = r"(-?0x[0-9a-f]+|-?[0-9]+)?\((%r\w+)\)"
STORE = re.compile(rf"\t(v?mov\w*)\s+(?:\$\S+|%(zmm|ymm|xmm|r|e)\w*),{PLACE}")
LOAD = re.compile(rf"\tldtilecfg\s*{PLACE}")

# What GCC 12 makes of ggml_tile_config_init with its own header.
AS_GCC_12_HAS_IT = """
   1000:\tpxor   %xmm0,%xmm0
   1004:\tmovb   $0x1,-0x48(%rsp)
   1009:\tmovups %xmm0,-0x47(%rsp)
   100e:\tldtilecfg -0x48(%rsp)
"""


def stored_before_loads(listing: str) -> list[set[int]]:
    """For each load of a configuration, which of its bytes the instructions before it in its block store."""
    found = []
    stores: list[tuple[str, int, int]] = []  # base register, offset, bytes
    for line in listing.splitlines():
        if (store := STORE.search(line)) is not None:
            name, register, offset, base = store.groups()
            n_bytes = REGISTERS[register] if register else SUFFIXES[name[-1]]
            stores.append((base, int(offset or "0", 16), n_bytes))
        elif (load := LOAD.search(line)) is not None:
            start, base = int(load[1] or "0", 16), load[2]
            written = {byte for at, offset, n_bytes in stores if at == base for byte in range(offset, offset + n_bytes)}
            found.append({byte - start for byte in written} & {*range(CONFIGURATION_BYTES)})
        elif re.search(r"\t(j\w+|call|ret)\b", line):
            stores = []
    return found


def test_what_gcc_12_has_is_noticed() -> None:
    (stored,) = stored_before_loads(AS_GCC_12_HAS_IT)
    assert stored == {*range(17)}


def test_tiles_are_configured_whole() -> None:
    assert WITH_AMX
    for name in WITH_AMX if platform.machine() == "x86_64" else []:
        library = Path(LIBRARY_FOLDER, f"libggml-cpu-{name}.so")
        listing = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
        ).stdout
        loads = stored_before_loads(listing)
        assert loads, "the variant does not configure tiles any more"
        assert all(stored == {*range(CONFIGURATION_BYTES)} for stored in loads)
