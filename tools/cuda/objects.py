"""The objects of ggml's CUDA backend, each compiled once.

Knows which sources the backend has, how they are compiled, and for which GPUs. An object stays in the cache under a
name made of all that it is compiled from, so that a build that was ended goes on where it was.
"""

import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.cuda.toolkit import COMPILER_VERSION, FOLDER, host_compiler, toolkit
from tools.engine_sources import engine_sources, engine_version, ggml_sources
from tools.portable.libraries import N_JOBS
from tools.steps import BuildError, key_of, key_of_files, say

INCLUDE = Path(__file__).with_name("include")

_TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "f16")
# Types of a KV cache, keys and values, for which there is a kernel of their own; the others are computed as F16.
_KV_TYPES = ("q4_0-q4_0", "q8_0-q8_0", "f16-f16", "bf16-bf16")
# Kernels for GPUs without tensor cores are needed for those sizes of heads alone that those with them leave over; for
# the others there is unused_kernels.cpp.
_TILE_SIZES = (40, 72)
_REPORT_INTERVAL_S = 60


@dataclass(frozen=True)
class Code:
    """A kind of GPU that kernels are compiled for (`compute_…`), and the GPUs that get machine code of it."""

    kind: int
    machine_code: tuple[int, ...]
    is_kept: bool = False  # for GPUs to come, whose drivers compile it

    @property
    def flags(self) -> list[str]:
        """For nvcc."""
        made = [f"sm_{number}" for number in self.machine_code] + [f"compute_{self.kind}"] * self.is_kept
        return [f"--generate-code=arch=compute_{self.kind},code=[{','.join(made)}]"]


# Machine code runs on later GPUs of its generation too: that of 8.0 on 8.6, of 12.0 on all of 12. One kind at least
# must be below 8.9, and one not: for mixtures of experts the backend starts as many threads as the GPU may have, and
# the kernel is compiled for as many as its kind may have (mul_mat_vec_q_moe in mmvq.cu).
ALL_GPUS = (Code(75, (75,)), Code(80, (80,)), Code(89, (89, 90, 120), is_kept=True))
ONE_GPU = (Code(80, (80,)),)  # for checks of the build


def sources() -> list[Path]:
    """The backend's sources: first those without which nothing links, then instances of templates."""
    folder = ggml_sources() / "src" / "ggml-cuda"
    instances = folder / "template-instances"
    names = [f"fattn-vec-instance-{types}.cu" for types in _KV_TYPES]
    names += [f"fattn-tile-instance-dkq{size}-dv{size}.cu" for size in _TILE_SIZES]
    found = [instances / name for name in names]
    for pattern in ("mmq*.cu", "mmf*.cu", "fattn-mma*.cu"):
        found += sorted(instances.glob(pattern))
    return [*sorted(folder.glob("*.cu")), *found]


def compiled(files: Sequence[Path], codes: Sequence[Code] = ALL_GPUS) -> list[Path]:
    """The objects of CUDA sources, in their order; those that are missing are compiled now."""
    common = _common_key(codes)
    objects = [_object(file, common) for file in files]
    missing = [(file, made) for file, made in zip(files, objects, strict=True) if not made.exists()]
    if missing:
        say(f"cuda: compiling {len(missing)} of {len(files)} sources")
        progress = _Progress(len(missing))
        with ThreadPoolExecutor(int(N_JOBS)) as threads:
            for _ in threads.map(lambda pair: _compile(pair[0], pair[1], codes), missing):
                progress.step()
    return objects


def key_of_objects(files: Sequence[Path], codes: Sequence[Code] = ALL_GPUS) -> str:
    """Names what the objects are compiled from."""
    common = _common_key(codes)
    return key_of(*(_object(file, common).name for file in files))


def _object(file: Path, common: str) -> Path:
    return FOLDER / "objects" / f"{file.stem}-{key_of(common, file.read_bytes())}.o"


def _common_key(codes: Sequence[Code]) -> str:
    """Names what all objects depend on: any header may be in any source."""
    ggml = ggml_sources()
    headers = sorted([*(ggml / "src").glob("*.h"), *(ggml / "include").glob("*.h")])
    headers += sorted(path for path in (ggml / "src" / "ggml-cuda").rglob("*") if path.suffix in {".cuh", ".h"})
    own = key_of_files(INCLUDE.iterdir())
    versions = (engine_version(), COMPILER_VERSION, host_compiler()[1])
    return key_of(own, *versions, repr(_flags(codes)), *(path.read_bytes() for path in headers))


def _flags(codes: Sequence[Code]) -> list[str]:
    """What does not depend on where things lie. Without a level, nvcc optimises for the GPU alone (as by -O3); what
    runs on the processor starts kernels, for which -O1 is enough."""
    flags = ["-std=c++17", "-use_fast_math", "-extended-lambda", "-compress-mode=size", "-w"]
    flags += ["-Xcompiler=-fPIC,-O1,-w,-fvisibility=hidden", "-DNDEBUG", "-D_GNU_SOURCE", "-D_XOPEN_SOURCE=600"]
    defines = ["GGML_BACKEND_BUILD", "GGML_BACKEND_DL", "GGML_BACKEND_SHARED", "GGML_SHARED", "GGML_SCHED_MAX_COPIES=4"]
    defines += ["GGML_CUDA_USE_GRAPHS", f'GGML_CUDA_FA_QUANTS="{",".join(_KV_TYPES)}"']
    for keys in _TYPES:
        for values in _TYPES:
            has_kernel = int(f"{keys}-{values}" in _KV_TYPES)
            defines.append(f"GGML_CUDA_FA_{keys}_{values}".upper() + f"={has_kernel}")
    return [*flags, *(f"-D{name}" for name in defines), *(flag for code in codes for flag in code.flags)]


def _compile(file: Path, made: Path, codes: Sequence[Code]) -> None:
    unfinished = made.with_suffix(".part.o")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    folders = [ggml_sources() / "src" / "ggml-cuda", ggml_sources() / "src", ggml_sources() / "include", INCLUDE]
    places = [f"-Xcompiler=-ffile-prefix-map={engine_sources()}=.", *(f"-I{folder}" for folder in folders)]
    command: list[str | Path] = [
        toolkit().nvcc,
        "-ccbin",
        host_compiler()[0],
        *_flags(codes),
        *places,
        "-x",
        "cu",
        "-c",
        file,
    ]
    result = subprocess.run([*command, "-o", unfinished], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"`{file.name}` does not compile:\n{result.stderr[-3000:]}")
    unfinished.rename(made)


class _Progress:
    """Tells a person who waits for an hour how far it is."""

    def __init__(self, n_all: int) -> None:
        self.n_all = n_all
        self.n_done = 0
        self.start_s = self.last_s = time.monotonic()

    def step(self) -> None:
        self.n_done += 1
        now_s = time.monotonic()
        if now_s - self.last_s < _REPORT_INTERVAL_S and self.n_done < self.n_all:
            return
        self.last_s = now_s
        say(f"cuda: {self.n_done} of {self.n_all}, {int(now_s - self.start_s) // 60} min")
