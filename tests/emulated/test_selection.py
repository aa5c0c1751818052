"""On older processors, which SHIMMY_EMULATOR (`make emulated`) takes the place of, the engine's best variant is found,
computes right, and the others are not even reported: /proc/cpuinfo tells of the real processor there, and only the
processor itself knows better."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import sys
from shimmy.engine import loading
cpu = loading.trusted_backend(None, sys.argv[1])
print(cpu.name, cpu.note)
"""


@pytest.mark.parametrize(
    ("processor", "variant"),
    [
        ("qemu64", "x64"),
        ("Nehalem", "sse42"),
        ("Westmere", "sse42"),
        ("SandyBridge", "sandybridge"),
        ("IvyBridge", "ivybridge"),
        ("Haswell", "haswell"),
    ],
)
def test_the_best_variant_of_an_older_processor_computes(tmp_path: Path, processor: str, variant: str) -> None:
    command = [os.environ["SHIMMY_EMULATOR"], "-cpu", processor, sys.executable, "-c", _SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [variant]
