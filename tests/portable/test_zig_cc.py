"""The words of GCC that the compiler of portable builds is told in its own."""

import subprocess

import pytest

from tools.steps import ROOT

ZIG_CC = ROOT / "tools" / "portable" / "zig-cc"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["-O2", "a file.c"], ["-O2", "a file.c"]),
        (["-march=armv8-a"], ["-mcpu=generic+v8a"]),
        (["-march=armv8.2-a+dotprod"], ["-mcpu=generic+v8_2a+dotprod"]),
        (["-march=armv8.2-a+dotprod+fp16+sve"], ["-mcpu=generic+v8_2a+dotprod+fullfp16+sve"]),
        (["-march=armv8.6-a+dotprod+fp16+i8mm"], ["-mcpu=generic+v8_6a+dotprod+fullfp16+i8mm"]),
        (["-march=armv9.2-a+dotprod+sme"], ["-mcpu=generic+v9_2a+dotprod+sme"]),
        (["-march=haswell", "-mavx512f"], ["-march=haswell", "-mavx512f"]),
        (["-Wl,-h,libx.so.1", "-Wl,-hlibx.so.1"], ["-Wl,-soname,libx.so.1"] * 2),
        (["x.o", "-lgcc_s", "-latomic", "-lm"], ["x.o", "-lm"]),
    ],
)
def test_options(given: list[str], expected: list[str]) -> None:
    said = subprocess.run([ZIG_CC, "printf", "%s\n", "triple", *given], capture_output=True, text=True, check=True)
    tool, _, triple, *options = ["%s", *said.stdout.splitlines()]
    assert (tool, triple, options) == ("%s", "triple", expected)
