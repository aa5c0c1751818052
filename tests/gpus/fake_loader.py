"""A Vulkan loader that does what the variables FAKE_VULKAN and FAKE_DEVICES say: see fakes/vulkan.c."""

import subprocess
from pathlib import Path

LOADER = "libvulkan.so.1"
SOURCE = Path(__file__).parent / "fakes" / "vulkan.c"
FAILS_LATER = SOURCE.with_name("fails_later.c")
GEFORCE = "2,3,1,8192,7168,10de,4,1,GeForce"  # 8 GiB, 7 of them free


def compile_loader(folder: Path, source: Path = SOURCE) -> Path:
    """The loader that `source` is, in `folder`."""
    library = folder / LOADER
    command = ["cc", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{LOADER}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library
