"""The clients that the tests speak through, as their users install them: Python's in an environment of their own, and
OpenAI's for Node.

Knows where they lie. The pins of the first are in pyproject.toml, those of the second in the tests' own package.json.
"""

from tools.engine import install_engine
from tools.environment import make_environment
from tools.node_packages import install_node_packages
from tools.steps import CACHE, ROOT, say

CLIENTS_VENV = CACHE / "clients-venv"
NODE_FOLDER = CACHE / "clients-node"
NODE_PINS = ROOT / "tests" / "clients" / "package.json"


def install_clients() -> None:
    """Make both environments; without npm on this machine that of Node is left out, and the tests skip it."""
    make_environment(CLIENTS_VENV, ("clients",))
    install_engine(CLIENTS_VENV)  # the tests serve the source tree from here, and compute what lm-eval must find
    if not install_node_packages(NODE_PINS, NODE_FOLDER):
        say("clients: there is no npm here, so the tests that need Node will be skipped")
