"""The shaders as a file of assembler: each name has the bytes and the size of its file."""

import subprocess
from pathlib import Path

import pytest

from tools.steps import BuildError
from tools.vulkan.shaders import Shaders, _write_assembler

SHADERS = {"add_f32": b"\3\2#\7 add", "mul_f32": b"\3\2#\7 a longer one"}
PRINTS = """
#include <stdint.h>
#include <stdio.h>
extern const uint64_t add_f32_len, mul_f32_len;
extern const unsigned char add_f32_data[], mul_f32_data[];
int main(void) {
    fwrite(add_f32_data, 1, add_f32_len, stdout);
    fwrite(mul_f32_data, 1, mul_f32_len, stdout);
    return (uintptr_t)add_f32_data % 8 + (uintptr_t)mul_f32_data % 8;
}
"""


def generated(folder: Path) -> Shaders:
    made = Shaders(folder)
    made.spirv.mkdir()
    declared = []
    for name, content in SHADERS.items():
        (made.spirv / f"{name}.spv").write_bytes(content)
        declared.append(f"extern const uint64_t {name}_len;\nextern const unsigned char {name}_data[];\n")
    made.header.write_text("#include <cstdint>\n\n" + "\n".join(declared) + "extern const void * add_data[2][2][2];\n")
    return made


def test_a_program_has_each_shader_by_its_name(tmp_path: Path) -> None:
    made = generated(tmp_path)
    _write_assembler(made)
    (tmp_path / "main.c").write_text(PRINTS)
    subprocess.run(["cc", "-o", "program", made.assembler.name, "main.c"], cwd=tmp_path, check=True)
    ended = subprocess.run([tmp_path / "program"], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"".join(SHADERS.values()))


def test_the_text_is_another_where_a_shader_is(tmp_path: Path) -> None:
    made = generated(tmp_path)
    _write_assembler(made)
    before = made.assembler.read_text()
    (tmp_path / "spirv" / "add_f32.spv").write_bytes(b"\3\2#\7 sub")  # as long
    _write_assembler(made)
    assert made.assembler.read_text() != before


@pytest.mark.parametrize("change", ["lost", "unknown"])
def test_shaders_that_are_not_the_declared_ones(tmp_path: Path, change: str) -> None:
    made = generated(tmp_path)
    (tmp_path / "spirv" / "add_f32.spv").rename(tmp_path / f"{change}.spv")
    if change == "unknown":
        (tmp_path / "unknown.spv").rename(tmp_path / "spirv" / "unknown.spv")
    with pytest.raises(BuildError, match=r"not the expected ones: \['add_f32'"):
        _write_assembler(made)
