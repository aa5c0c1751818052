"""The works of others in the library for NVIDIA's GPUs, beside llama.cpp, with their licences.

Knows what is linked into the library, and where each keeps the text of its licence.
"""

from pathlib import Path

from tools.cuda.toolkit import host_compiler, package_version, toolkit
from tools.portable.papers.components import ENGINE, Component
from tools.steps import BuildError

# Their agreement, by which Attachment A lets the runtime library be handed on within a program.
_NVIDIA = "LicenseRef-NVIDIA-CUDA"


def components() -> list[Component]:
    """What is linked into it or compiled from headers."""
    runtime, headers = package_version("nvidia-cuda-runtime"), package_version("nvidia-cuda-cccl")
    gcc = host_compiler()[1]
    return [
        Component("CUDA Runtime", runtime, _NVIDIA, f"pkg:pypi/nvidia-cuda-runtime@{runtime}", ENGINE),
        Component(
            "CUDA Core Compute Libraries",
            headers,
            "Apache-2.0 WITH LLVM-exception AND BSD-3-Clause AND BSL-1.0",
            f"pkg:pypi/nvidia-cuda-cccl@{headers}",
            ENGINE,
        ),
        Component("libstdc++", gcc, "GPL-3.0-or-later WITH GCC-exception-3.1", f"pkg:generic/libstdcpp@{gcc}", ENGINE),
    ]


def license_texts() -> dict[str, str]:
    """Of those; the licence of llama.cpp is in each file's papers."""
    notices = Path(f"/usr/share/doc/gcc-{host_compiler()[1].partition('.')[0]}-base/copyright")
    if not notices.exists():
        raise BuildError(f"`{notices}` is missing: the file is handed on with what stands there")
    return {_NVIDIA: toolkit().license_file.read_text(), "libstdc++": notices.read_text()}
