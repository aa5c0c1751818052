"""The library for NVIDIA's GPUs: what it is made of, and that a part of it, for one kind of GPU, asks for nothing that
a system need not have and opens on one without a driver, or with a bad one.

Without a GPU nothing here computes: see tests/gpu/run.sh.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpus.fake_driver import HOPPER, compile_driver
from tools.cuda import objects
from tools.cuda.library import CUBLAS, LIBRARY, check
from tools.cuda.partial import partial_library
from tools.cuda.toolkit import Toolkit
from tools.engine import library_folder
from tools.engine_sources import engine_sources
from tools.portable.elf import ElfFile
from tools.portable.weak_versions import newer_versions
from tools.steps import ROOT, BuildError

KERNELS = engine_sources() / "vendor" / "llama.cpp" / "ggml" / "src" / "ggml-cuda"
# As ggml opens a backend that finds no device: asked, closed, and then the process ends.
OPENED_AND_CLOSED = """
import _ctypes, ctypes, sys
engine = ctypes.CDLL(sys.argv[1])
opened = ctypes.CDLL(sys.argv[2])
opened.ggml_backend_init.restype = ctypes.c_void_p
registry = opened.ggml_backend_init()
engine.ggml_backend_reg_name.restype = ctypes.c_char_p
engine.ggml_backend_reg_dev_count.restype = ctypes.c_size_t
print(engine.ggml_backend_reg_name(ctypes.c_void_p(registry)).decode())
print(engine.ggml_backend_reg_dev_count(ctypes.c_void_p(registry)))
_ctypes.dlclose(opened._handle)
"""


@pytest.fixture(scope="session")
def partial(cuda: Toolkit) -> Path:  # noqa: ARG001 that is what compiles
    """With the backend's own file alone: what answers for its devices."""
    return partial_library([KERNELS / "ggml-cuda.cu"])


def opened(library: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    command: list[str | Path] = [
        sys.executable,
        "-c",
        OPENED_AND_CLOSED,
        library_folder() / "libggml-base.so.0",
        library,
    ]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=60)


def test_each_kernel_is_compiled_or_stood_in_for() -> None:
    in_use = {path.name for path in objects.sources()}
    assert len(in_use) == len(objects.sources()) > 130
    stood_in = re.findall(r"^UNUSED\((\d+), (\d+)\)$", (CUBLAS.parent / "unused_kernels.cpp").read_text(), re.MULTILINE)
    tiles = {f"fattn-tile-instance-dkq{keys}-dv{values}.cu" for keys, values in stood_in}
    # Of pairs of types of a KV cache those that no option gives: they are computed as F16.
    pairs = {path.name for path in KERNELS.rglob("fattn-vec-instance-*.cu")} - in_use
    assert {path.name for path in KERNELS.rglob("*.cu")} == in_use | tiles | pairs
    assert not in_use & tiles


def test_only_gpus_with_tensor_cores_are_compiled_for_and_the_others_need_no_kernel_that_is_stood_in_for() -> None:
    """Where attention is given to kernels for GPUs without tensor cores: for these sizes alone."""
    text = (KERNELS / "fattn.cu").read_text()
    assert "if (turing_mma_available(cc) && Q->ne[0] != 40 && Q->ne[0] != 72) {" in text
    assert min(number for code in objects.ALL_GPUS for number in code.machine_code) == 75
    kinds = [code.kind for code in objects.ALL_GPUS]
    assert any(kind < 89 for kind in kinds)
    assert any(kind >= 89 for kind in kinds)


def test_an_object_is_compiled_once_and_again_when_its_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile_it(file: Path, made: Path, _codes: object) -> None:
        compiled.append(file.name)
        made.parent.mkdir(exist_ok=True)
        made.touch()

    monkeypatch.setattr(objects, "FOLDER", tmp_path)
    monkeypatch.setattr(objects, "_compile", compile_it)
    monkeypatch.setattr(objects, "host_compiler", lambda: ("g++", "12.2.0"))
    source, other = tmp_path / "one.cu", tmp_path / "other.cu"
    source.write_text("1")
    other.write_text("2")
    first = objects.compiled([source, other])
    assert objects.compiled([source, other]) == first
    assert sorted(compiled) == ["one.cu", "other.cu"]
    source.write_text("3")
    assert objects.compiled([source, other])[1] == first[1]
    assert objects.compiled([source], objects.ONE_GPU) != objects.compiled([source])
    assert len(compiled) == 4


def test_the_library_asks_for_the_engine_and_an_old_system(partial: Path) -> None:
    content = partial.read_bytes()
    file = ElfFile(content)
    assert "libggml-base.so.0" in file.libraries()
    assert not [name for name in file.libraries() if "cu" in name or "stdc++" in name or "gcc" in name]
    assert newer_versions(content) == []


def test_a_library_that_asks_for_more_is_refused(tmp_path: Path) -> None:
    made = tmp_path / LIBRARY
    command: list[str | Path] = ["cc", "-shared", "-o", made, "-xc", "-", "-Wl,--no-as-needed", "-lm"]
    subprocess.run(command, input="int asked_for(void); int f(void) { return asked_for(); }", text=True, check=True)
    with pytest.raises(BuildError, match=r"asks for asked_for; .*does not ask for libggml-base"):
        check(made)


def test_without_a_driver_it_opens_and_has_no_device(partial: Path) -> None:
    result = opened(partial)
    assert (result.stdout, result.returncode) == ("CUDA\n0\n", 0), result.stderr


@pytest.mark.parametrize("number", [3, 35, 46, 100, 802, 804, 999])
def test_with_a_driver_that_fails_it_has_no_device(number: int, partial: Path, tmp_path: Path) -> None:
    folder = str(compile_driver(tmp_path).parent)
    result = opened(partial, LD_LIBRARY_PATH=folder, FAKE_CUDA=f"cuInit={number}", FAKE_CUDA_GPUS=HOPPER)
    assert (result.stdout, result.returncode) == ("CUDA\n0\n", 0), result.stderr


def test_with_a_driver_that_is_too_old_it_has_no_device(partial: Path, tmp_path: Path) -> None:
    folder = str(compile_driver(tmp_path).parent)
    result = opened(partial, LD_LIBRARY_PATH=folder, FAKE_CUDA_VERSION="12080", FAKE_CUDA_GPUS=HOPPER)
    assert (result.stdout, result.returncode) == ("CUDA\n0\n", 0), result.stderr
    assert "driver version is insufficient" in result.stderr


def test_all_of_cublas_that_the_backend_calls_is_ours() -> None:
    """The declarations are ours as well, so that another function that the backend calls does not compile."""
    declared = set(re.findall(r"\b(cublas\w+)\(", (ROOT / "tools/cuda/include/cublas_v2.h").read_text()))
    defined = set(re.findall(r"^(?:cublasStatus_t|const char \*) ?(cublas\w+)\(", CUBLAS.read_text(), re.MULTILINE))
    assert declared == defined
    assert len(defined) == 13
