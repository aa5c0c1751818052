"""Pulls as the API has them: a process that says what happens, for all who asked for the same."""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shimmy import config
from shimmy.api.admin import pulls
from shimmy.api.app import create_app
from tests.fakes import Call, Reply, fetch, on_loop, services, until

FILES = {"event": "files", "files": [{"name": "m.gguf", "size_bytes": 5}], "total_bytes": 5}
PROGRESS = {
    "event": "progress", "file": "m.gguf", "completed_bytes": 2, "total_bytes": 5, "bytes_per_s": 1, "eta_s": None,
}  # fmt: skip
DONE = {"event": "done", "path": "/nowhere/m.gguf", "total_bytes": 5}
SAYS = """
import json, pathlib, sys, time
for number, line in enumerate(json.loads(sys.argv[1])):
    if line == "wait":
        pathlib.Path(sys.argv[2]).joinpath(f"waits-{number}").touch()
        while not pathlib.Path(sys.argv[2], "go").exists():
            time.sleep(0.01)
    else:
        print(json.dumps(line), flush=True)
"""

Says = Callable[..., list[str]]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Says:
    """Has the process of a pull print these; returns the references of those that were started."""

    def make(*lines: object) -> list[str]:
        started: list[str] = []

        def command(_config: object, reference: str) -> Sequence[str]:
            started.append(reference)
            return [sys.executable, "-c", SAYS, json.dumps(lines), str(tmp_path)]

        monkeypatch.setattr(pulls, "_command", command)
        monkeypatch.setattr(pulls, "executable", lambda: None)
        return started

    return make


def call(app: Any, **fields: object) -> Call:
    return Call(app, "POST", "/api/models/pull", json.dumps({"model": "o/n"} | fields).encode())


def events(reply: Reply) -> list[tuple[str, Any]]:
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", reply.body.decode())
    return [(kind, json.loads(data)) for kind, data in found]


def app() -> Any:
    return create_app(services(models=[], model_path=["/nowhere"]))


@on_loop
async def test_a_stream_has_what_happens_to_the_end(says: Says) -> None:
    says({"event": "resolving", "reference": "o/n"}, FILES, PROGRESS, DONE)
    reply = await fetch(app(), "POST", "/api/models/pull", {"model": "o/n"})
    assert reply.status == 200
    assert reply.headers[b"content-type"].startswith(b"text/event-stream")
    told = events(reply)
    assert [kind for kind, _ in told] == ["resolving", "files", "progress", "done"]
    assert told[-1][1] == {"path": "/nowhere/m.gguf", "total_bytes": 5, "models": []}


@on_loop
async def test_one_reply_comes_when_all_is_there(says: Says) -> None:
    says(FILES, PROGRESS, DONE)
    reply = await fetch(app(), "POST", "/api/models/pull", {"model": "o/n", "stream": False})
    assert reply.json() == {"model": "o/n", "path": "/nowhere/m.gguf", "total_bytes": 5, "models": []}


@on_loop
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_at_the_beginning_is_a_status(says: Says, stream: bool) -> None:
    says({"event": "resolving", "reference": "o/n"}, {"event": "error", "code": "not_found", "message": "no o/n"})
    reply = await fetch(app(), "POST", "/api/models/pull", {"model": "o/n", "stream": stream})
    assert (reply.status, reply.json()["error"]["message"]) == (404, "no o/n")


@on_loop
async def test_a_later_error_is_the_last_event(says: Says, tmp_path: Path) -> None:
    says(FILES, PROGRESS, "wait", {"event": "error", "code": "pull_failed", "message": "the disk is full"})
    one = call(app())
    task = one.start()
    await one.write()
    (tmp_path / "go").touch()
    await task
    last = [one.sent.get_nowait()["body"] for _ in range(one.sent.qsize())][-2]
    assert last.startswith(b"event: error\n")
    assert b"the disk is full" in last


@on_loop
async def test_a_process_that_just_ends_is_an_error(says: Says) -> None:
    says(FILES)
    reply = await fetch(app(), "POST", "/api/models/pull", {"model": "o/n", "stream": False})
    assert reply.status == 500


@on_loop
async def test_those_who_ask_for_the_same_share_it(says: Says, tmp_path: Path) -> None:
    started = says(FILES, PROGRESS, PROGRESS, "wait", DONE)
    one_app = app()
    first, second = call(one_app), call(one_app, stream=False)
    tasks = [first.start(), second.start()]
    await until((tmp_path / "waits-3").exists)
    third = call(one_app)
    tasks.append(third.start())
    first.leave()
    (tmp_path / "go").touch()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert started == ["o/n"]
    assert second.reply().json()["path"] == "/nowhere/m.gguf"
    assert events(third.reply())[-1][1]["path"] == "/nowhere/m.gguf"


@on_loop
async def test_a_pull_ends_with_the_last_who_wants_it(says: Says, tmp_path: Path) -> None:
    says(FILES, "wait", DONE)
    one_app = app()
    only = call(one_app)
    task = only.start()
    await until((tmp_path / "waits-1").exists)
    running = one_app.state.pulls._running["o/n"]
    only.leave()
    await asyncio.gather(task, return_exceptions=True)
    assert running.task.cancelled()
    assert running._process.returncode is not None
    assert not one_app.state.pulls._running


@on_loop
async def test_everybody_is_told_that_a_pull_was_stopped(says: Says, tmp_path: Path) -> None:
    says(FILES, "wait", DONE)
    parts = services(models=[], model_path=["/nowhere"])
    listener = parts.events.listen()
    only = call(create_app(parts))
    task = only.start()
    await until((tmp_path / "waits-1").exists)
    only.leave()
    await asyncio.gather(task, return_exceptions=True)
    parts.events.close()
    told = [(event.kind, event.model) async for event in listener]
    assert told == [("pull_files", "o/n"), ("pull_stopped", "o/n")]


@on_loop
async def test_a_newcomer_hears_the_last_of_each_kind(says: Says, tmp_path: Path) -> None:
    waiting = {"event": "waiting", "reason": "the server is busy", "seconds": 1}
    says(FILES, *[PROGRESS, waiting] * 50, "wait", DONE)
    one_app = app()
    first = call(one_app)
    tasks = [first.start()]
    await until((tmp_path / "waits-101").exists)
    running = one_app.state.pulls._running["o/n"]
    await until(lambda: running._n_told == 101)
    second = call(one_app)
    tasks.append(second.start())
    (tmp_path / "go").touch()
    await asyncio.gather(*tasks)
    assert [kind for kind, _ in events(second.reply())] == ["files", "progress", "waiting", "done"]


@on_loop
@pytest.mark.parametrize(
    "reference", ["o/n\0", "o/n\nfalse line", "o n", "o/n\u2028", "o/n\u00a0", "\u202eo/n", "x" * 1025, "x" * 200_000]
)
async def test_what_cannot_name_a_model_starts_no_process(says: Says, reference: str) -> None:
    started = says(DONE)
    reply = await fetch(app(), "POST", "/api/models/pull", {"model": reference})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "model")
    assert len(reply.body) < 1000
    assert not started


@on_loop
async def test_a_reference_that_the_process_refuses_is_the_models_fault(says: Says) -> None:
    says({"event": "error", "code": "invalid_value", "message": "`x` does not name a model to pull"})
    reply = await fetch(app(), "POST", "/api/models/pull", {"model": "x"})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "model")


@on_loop
async def test_more_than_a_few_at_once_are_refused(says: Says, tmp_path: Path) -> None:
    says(FILES, "wait", DONE)
    one_app = app()
    calls = [call(one_app, model=f"o/{number}") for number in range(pulls.MAX_PULLS)]
    tasks = [each.start() for each in calls]
    await until(lambda: hasattr(one_app.state, "pulls") and len(one_app.state.pulls._running) == pulls.MAX_PULLS)
    assert (await fetch(one_app, "POST", "/api/models/pull", {"model": "o/n"})).status == 503
    (tmp_path / "go").touch()
    await asyncio.gather(*tasks)
    assert (await fetch(one_app, "POST", "/api/models/pull", {"model": "o/n"})).status == 200


@on_loop
@pytest.mark.parametrize("body", [{}, {"model": ""}, {"model": 7}, {"model": "o/n", "stream": 1}])
async def test_bodies_are_checked(says: Says, body: object) -> None:
    started = says(DONE)
    assert (await fetch(app(), "POST", "/api/models/pull", body)).status == 400
    assert not started


def test_the_process_is_told_where_this_server_looks() -> None:
    usual = pulls._command(config.load({}, {}), "--evil")
    assert list(usual[-5:]) == ["pull", "--json", "--public-only", "--", "--evil"]
    own = pulls._command(config.load({"model_dirs": ["/a:/b"], "model_path": ["/c"]}, {}), "o/n")
    assert list(own[-8:]) == ["--model-path", "/c", "--model-dirs", "/a", "--model-dirs", "/b", "--", "o/n"]


@on_loop
async def test_models_are_suggested_that_can_be_pulled() -> None:
    reply = (await fetch(create_app(services()), "GET", "/api/suggestions")).json()
    assert 1 <= len(reply["suggestions"]) <= 3
    assert all(":" in each["model"] and each["size_bytes"] > 0 for each in reply["suggestions"])
