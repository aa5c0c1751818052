"""Mesa's Vulkan on the processor, for tests: the system's own, or Debian's package, unpacked in the cache.

Knows what a program needs in its environment to find that device and no other. Nothing of it goes into the program.
"""

import json
import sysconfig
from pathlib import Path

from tools import debian_tools
from tools.steps import CACHE, BuildError

PACKAGE = "mesa-vulkan-drivers"
_FOLDER = CACHE.resolve() / "lavapipe"
_SYSTEM = Path("/usr/lib")
_PLACE = str(sysconfig.get_config_var("MULTIARCH"))  # in which Debian's libraries of this machine lie
_DRIVER, _LOADER = "libvulkan_lvp.so", "libvulkan.so.1"


def environment() -> dict[str, str]:
    """For a program that is to find the device; raises BuildError where it can neither be found nor fetched.

    What the driver compiles is kept in the checkout: the first tokens on it take many seconds.
    """
    folder = _libraries(_SYSTEM) or _libraries(debian_tools.unpacked(PACKAGE).resolve() / "usr" / "lib")
    if folder is None:
        raise BuildError(f"Debian's package `{PACKAGE}` is not what it was: it has no `{_DRIVER}`")
    _FOLDER.mkdir(exist_ok=True)
    driver = _FOLDER / "driver.json"
    driver.write_text(
        json.dumps(
            {
                "file_format_version": "1.0.0",
                "ICD": {"library_path": str(folder / _DRIVER), "api_version": "1.3.0"},
            }
        )
    )
    return {
        "VK_DRIVER_FILES": str(driver),
        "VK_ICD_FILENAMES": str(driver),  # what loaders before 1.3.207 read
        "LD_LIBRARY_PATH": str(folder),
        "MESA_SHADER_CACHE_DIR": str(_FOLDER / "shaders"),
    }


def _libraries(usr_lib: Path) -> Path | None:
    """The folder of the libraries, where it has the driver and the loader."""
    folder = usr_lib / _PLACE
    return folder if all((folder / name).exists() for name in (_DRIVER, _LOADER)) else None
