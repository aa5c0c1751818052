"""The front door of the build: `python3 build.py STEP`. Each step makes what it needs, and nothing that is there.

Knows the steps and their order. Runs on any Python from 3.11 on, with nothing installed.
"""

import argparse
import sys

if sys.version_info < (3, 11):
    sys.exit("Shimmy is built with Python 3.11 or newer; run `python3.11 build.py`, or make that your `python3`.")

from tools.clients import install_clients
from tools.cuda import library as cuda
from tools.cuda.file import cuda_file
from tools.cuda.partial import check_backend
from tools.demo_models import DEMO_MODELS, fetch_model
from tools.emulator import emulator
from tools.engine import install_engine
from tools.engine_sources import source_package
from tools.environment import PEER_VENV, make_environment
from tools.page import install_page_tools
from tools.portable.freeze import freeze
from tools.portable.target import BUILD_MACHINE, TARGETS, Target
from tools.rpc import library as rpc
from tools.steps import CACHE, BuildError, locked, say
from tools.vulkan import library as vulkan
from tools.weight_loops import install_loops

# Steps that make a library for each machine.
_LIBRARIES = {"vulkan": vulkan.library, "rpc": rpc.library}
# Steps that make one file and need no other step.
_ONE_FILE = {"cuda": cuda.library, "cuda-check": check_backend, "cuda-portable": cuda_file, "emulator": emulator}


def build(step: str, model: str, machines: list[Target]) -> None:
    """Make a step and the steps before it; paths that a script would want go to standard output."""
    make_environment()
    if step in _LIBRARIES:
        for machine in machines:
            print(_LIBRARIES[step](machine))
    if step in _ONE_FILE:
        print(_ONE_FILE[step]())
    if step == "model":
        print(fetch_model(model))
    if step == "run":
        install_engine(for_this_processor=True)
        install_loops()
        print(fetch_model())
    if step in {"engine", "freeze", "peer"}:
        install_engine()
        install_loops()
    if step in {"freeze", "peer"}:
        for machine in machines:
            print(freeze(machine))
    if step == "clients":
        install_clients()
    if step == "page":
        install_page_tools()
    if step == "peer":
        make_environment(PEER_VENV, ("bench",))
        install_engine(PEER_VENV)
        print(PEER_VENV, source_package(), sep="\n")


def machine(name: str) -> Target:
    """The machine of that name. In Python 3.11, words that are choices cannot be left out."""
    if name not in TARGETS:
        raise argparse.ArgumentTypeError(f"`{name}` is none of {', '.join(TARGETS)}")
    return TARGETS[name]


def main() -> int:
    """Run the step that the command line names, one at a time in this checkout."""
    parser = argparse.ArgumentParser(description="Builds Shimmy.")
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("env", help="the virtual environment `.venv`")
    steps.add_parser("run", help="what the source tree needs to run here: an engine for this processor, a demo model")
    steps.add_parser("engine", help="llama.cpp with all CPU variants, compiled once and cached")
    model = steps.add_parser("model", help="a demo model in `models/`")
    model.add_argument("model", nargs="?", choices=[*DEMO_MODELS], default="smollm2")
    frozen_files = steps.add_parser("freeze", help="the frozen files `dist/shimmy-linux-*`, and `dist/shimmy`")
    vulkan_libraries = steps.add_parser("vulkan", help="llama.cpp's library for GPUs, which the frozen file carries")
    steps.add_parser("cuda", help="llama.cpp's library for NVIDIA's GPUs, about an hour on 2 cores")
    steps.add_parser("cuda-check", help="the backend's own part of it for one kind of GPU, in 5 minutes on 2 cores")
    steps.add_parser("cuda-portable", help="the file for any Linux with that library: `dist/shimmy-linux-x86_64-cuda`")
    rpc_libraries = steps.add_parser("rpc", help="llama.cpp's library for several machines, likewise")
    for step in (frozen_files, vulkan_libraries, rpc_libraries):
        step.add_argument("machines", nargs="*", type=machine, default=[BUILD_MACHINE], help=", ".join(TARGETS))
    steps.add_parser("emulator", help="an emulator of other processors for the tests")
    steps.add_parser("clients", help="clients of others to test with, in environments of their own (1 GB)")
    steps.add_parser("page", help="a browser and what else the tests of the page need (600 MB)")
    peer = steps.add_parser("peer", help="what the benchmark compares: the frozen file, other programs' sources")
    peer.set_defaults(machines=[BUILD_MACHINE])  # the frozen file is measured
    arguments = parser.parse_args()
    with locked(CACHE / "lock"):
        try:
            build(arguments.step, getattr(arguments, "model", ""), getattr(arguments, "machines", []))
        except BuildError as error:
            say(f"build.py: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
