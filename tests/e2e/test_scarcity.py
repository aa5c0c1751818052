"""Machines that give no threads or no room: what stands in the way reaches the caller, and the server goes on."""

import json
import sys
from pathlib import Path

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, PROGRAM, chat_body
from tests.e2e.processes import wait_for
from tests.tiny_models import write_tiny_model

WITHOUT_THREADS = (sys.executable, str(Path(__file__).with_name("no_threads.py")), *PROGRAM)


def test_where_no_thread_can_be_started_the_server_serves_and_tells_why_no_model_loads(
    start: StartServer, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_tiny_model(folder, "alpha")
    server = start("--model-path", folder, program=WITHOUT_THREADS)
    for path, body in ((CHAT, chat_body("hello")), ("/tokenize", {"model": "alpha", "content": "hello"})):
        reply = server.post(path, body)
        assert (reply.status, reply.error["code"]) == (503, "model_unavailable"), reply.body
        assert "allows no more threads" in reply.error["message"]
        assert "ulimit -u" in reply.error["message"]
    assert server.post("/api/models/discover", {}).status == 200
    write_tiny_model(folder, "beta")
    wait_for("the new model", lambda: "beta" in json.dumps(server.get("/v1/models").json()))
    assert server.get("/health").status == 200
    assert "Traceback" not in server.log
    assert server.stop() == 0
