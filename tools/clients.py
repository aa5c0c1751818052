"""The clients that the tests speak through, as their users install them: Python's in an environment of their own, and
OpenAI's for Node.

Knows where they lie. The pins of the first are in pyproject.toml, those of the second in the tests' own package.json.
"""

import platform
import shutil

from tools.engine import install_engine
from tools.environment import make_environment
from tools.steps import CACHE, ROOT, Stamp, key_of, run, say

CLIENTS_VENV = CACHE / "clients-venv"
NODE_FOLDER = CACHE / "clients-node"
NODE_PINS = ROOT / "tests" / "clients" / "package.json"


def install_clients() -> None:
    """Make both environments; without npm on this machine that of Node is left out, and the tests skip it."""
    make_environment(CLIENTS_VENV, ("clients",))
    install_engine(CLIENTS_VENV)  # the tests serve the source tree from here, and compute what lm-eval must find
    if shutil.which("npm"):
        _install_node_packages()
    else:
        say("clients: there is no npm here, so the tests that need Node will be skipped")


def _install_node_packages() -> None:
    stamp = Stamp(NODE_FOLDER / "shimmy-stamp", key_of(NODE_PINS.read_bytes(), platform.machine()))
    if stamp.holds():
        return
    shutil.rmtree(NODE_FOLDER, ignore_errors=True)
    NODE_FOLDER.mkdir()
    shutil.copy(NODE_PINS, NODE_FOLDER)
    # No lock file: it would hold the addresses that this machine downloads from.
    run(["npm", "install", "--prefix", NODE_FOLDER, "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"])
    stamp.write()
