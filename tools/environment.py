"""The virtual environments: `.venv` to work in and build with, others for the benchmark's peer and for clients.

Knows the pins of pyproject.toml. The engine is not among what it installs, because that is built: see tools/engine.py.
"""

import platform
import shutil
import sys
from pathlib import Path

from tools.steps import CACHE, VENV, Stamp, key_of, pip, requirements, run, say, venv_python

ENGINE_PACKAGE = "llama-cpp-python"
PEER_VENV = CACHE / "peer-venv"


def make_environment(venv: Path = VENV, extras: tuple[str, ...] = ("dev", "build")) -> None:
    """Make the environment with the pinned packages, unless it is there already with the same pins and Python."""
    packages = [name for name in requirements(*extras) if not name.startswith(ENGINE_PACKAGE)]
    stamp = Stamp(venv / "shimmy-stamp", key_of(platform.python_version(), sys.base_prefix, *packages))
    if stamp.holds():
        return
    say(f"environment: installing {len(packages)} pinned packages into `{venv.name}` (about a minute)")
    if venv.exists():
        shutil.rmtree(venv)
    run([sys.executable, "-m", "venv", venv])
    pip(venv_python(venv), "install", *packages)
    stamp.write()
