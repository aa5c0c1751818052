"""What the server's process does not load: the engine, and whatever else belongs to the workers."""

import sys

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import FROM_SOURCE
from tests.e2e.processes import mapped_files

FORBIDDEN = {"llama_cpp", "numpy", "jinja2", "llguidance", "safetensors"}


@pytest.mark.smoke
def test_the_server_imports_nothing_of_the_workers(start: StartServer) -> None:
    """Python's own list of every import, while the server answers and goes; its workers do not write one."""
    server = start(program=(sys.executable, "-X", "importtime", *FROM_SOURCE[1:]))
    assert server.chat("hello")
    assert server.post("/tokenize", {"model": "alpha", "content": "hello"}).status == 200
    assert server.post("/v1/chat/completions", {"model": "alpha", "messages": []}).status == 400
    assert server.post("/v1/completions", {"model": "alfa", "prompt": ""}).status == 404
    assert server.stop() == 0
    lines = [line for line in server.log.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert {"shimmy.server", "shimmy.pool.pool", "starlette.routing"} <= imported
    assert not FORBIDDEN & {name.partition(".")[0] for name in imported}
    assert "shimmy.engine.llama.model" not in imported
    assert not [name for name in imported if name.startswith(("shimmy.commands.terminal", "shimmy.hub"))]


@pytest.mark.frozen
def test_the_frozen_server_maps_nothing_of_the_engine(start: StartServer) -> None:
    server = start()
    assert server.chat("hello")
    mine, workers = mapped_files(server.pid), mapped_files(server.worker())
    assert any("libllama" in path for path in workers)
    assert not [path for path in mine if any(name in path for name in ("libllama", "libggml", "numpy", "markupsafe"))]
