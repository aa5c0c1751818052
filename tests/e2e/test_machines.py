"""The main job on whatever machine this is: short enough for emulated processors, see tests/roots/arm64.py."""

import json
import os
from pathlib import Path

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, ENDLESS, PROMPTS, Stream, chat_body, run

# The one that was made for this processor, where the machine is known.
EXPECTED_VARIANT = os.environ.get("SHIMMY_TEST_EXPECTED_VARIANT")
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def test_a_server_answers_and_leaves_nothing_behind(start: StartServer) -> None:
    server = start()
    assert {model["id"] for model in server.get("/v1/models").json()["data"]} == {"alpha", "beta"}
    assert server.chat(PROMPTS[0])
    with Stream(server.port, CHAT, chat_body(PROMPTS[1], "beta")) as stream:
        assert stream.finish().text
    structured = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    reply = server.post(CHAT, chat_body("hello", response_format=structured) | ENDLESS)
    assert json.loads(reply.json()["choices"][0]["message"]["content"]).keys() == {"n"}
    assert f"CPU variant {EXPECTED_VARIANT or ''}" in server.log
    assert server.stop() == 0
    assert not list(server.temporary.iterdir())


def test_gpus_are_found_or_it_is_said_why_not(tmp_path: Path) -> None:
    ended = run(tmp_path, "gpu-info", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert told["devices"] or told["reason"]
