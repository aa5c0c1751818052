"""What the tests of the page need: a browser, Playwright for Python in an environment of its own, and axe.

Knows where they lie. The pins are in pyproject.toml and in the tests' own package.json. A browser is the system's, or
Debian's package.
"""

import os
import shutil
from pathlib import Path

from tools.engine import install_engine
from tools.environment import make_environment
from tools.node_packages import install_node_packages
from tools.steps import CACHE, ROOT, BuildError, run, say

PAGE_VENV = CACHE / "page-venv"
NODE_FOLDER = CACHE / "page-node"
NODE_PINS = ROOT / "tests" / "page" / "package.json"
AXE = NODE_FOLDER / "node_modules" / "axe-core" / "axe.min.js"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def install_page_tools() -> None:
    """Make all of it; without npm the tests of accessibility are skipped."""
    make_environment(PAGE_VENV, ("page",))
    install_engine(PAGE_VENV)  # the tests may serve the source tree from here
    if _found() is None:
        _install_browser()
    if not install_node_packages(NODE_PINS, NODE_FOLDER):
        say("page: there is no npm here, so the tests of accessibility will be skipped")


def chromium() -> Path:
    """The browser."""
    found = _found()
    if found is None:
        raise BuildError("there is no Chromium: `python3 build.py page` installs Debian's, as root")
    return found


def _found() -> Path | None:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return None if found is None else Path(found)


def _install_browser() -> None:
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise BuildError("there is no Chromium: install your system's package of it")
    say("page: installing Debian's `chromium` (400 MB)")
    run(["apt-get", "update"])
    run(["apt-get", "install", "--yes", "--no-install-recommends", "chromium"], DEBIAN_FRONTEND="noninteractive")
