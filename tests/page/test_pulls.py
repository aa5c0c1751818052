"""A person who has no model yet gets one by a click, and sees how far it is."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from shimmy.catalog.suggestions import SUGGESTIONS
from tests.e2e.harness import HOST, Server, serving
from tests.e2e.terminal import CTRL_D, ENTER, in_terminal, plain
from tests.hub.servers import FakeHub, Fault
from tests.page.driving import Chat, answer_with

PROMPT = "\x1b[?2004h"  # what a terminal is told of pasting while a line is read


@pytest.fixture
def hub(models: Path) -> Iterator[FakeHub]:
    """Has all that the page may suggest, each of them a tiny model."""
    model = (models / "alpha.gguf").read_bytes()
    names = [each.reference.partition(":")[0] for each in SUGGESTIONS]
    hub = FakeHub({name: {f"{name.rpartition('/')[2]}-Q4_K_M.gguf": model} for name in names})
    with hub.running():
        yield hub


@pytest.fixture
def empty(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server as someone starts it who has nothing: no options, an empty home."""
    for name in [*os.environ]:
        if name.upper().endswith("_PROXY") or name.startswith("HF_"):
            monkeypatch.delenv(name)
    places = {"HOME": tmp_path, "HF_HOME": tmp_path / "hf", "OLLAMA_MODELS": tmp_path / "ollama"}
    for name, value in {**places, "XDG_DATA_HOME": tmp_path / "data", "HF_ENDPOINT": hub.url}.items():
        monkeypatch.setenv(name, str(value))
    with serving(tmp_path / "server") as server:
        yield server


def test_from_nothing_to_an_answer(page: Page, empty: Server) -> None:
    assert "shimmy pull " in empty.log
    chat = Chat(page, empty.port)
    chat.open()
    expect(page.get_by_role("heading", name="No model yet")).to_be_visible()
    suggested = page.get_by_role("listitem").get_by_role("button", name=re.compile("^Pull "))
    expect(suggested).not_to_have_count(0)
    assert suggested.count() <= 3
    suggested.first.click()
    chat.ask("hello world")
    chat.wait_for_text()
    chat.press("Stop", within=chat.reply)
    chat.open("models")
    expect(page.get_by_text("is there", exact=True)).to_be_visible()


def test_from_nothing_by_the_page_and_by_run(page: Page, empty: Server, tmp_path: Path, hub: FakeHub) -> None:
    """As a newcomer: a model by a click, then another one by its name in the terminal; each is asked something."""
    assert not [*tmp_path.rglob("*.gguf")]
    chat = Chat(page, empty.port)
    chat.open()
    page.get_by_role("listitem").get_by_role("button", name=re.compile("^Pull ")).last.click()
    chat.ask("hello world")
    chat.wait_for_text()
    chat.press("Stop", within=chat.reply)
    (first,) = tmp_path.rglob("*.gguf")
    another = next(
        each.reference for each in SUGGESTIONS if each.reference.partition(":")[0].replace("/", "--") not in str(first)
    )
    where = {"SHIMMY_BIND": f"{HOST}:{empty.port}"}  # a newcomer's server has the usual port
    with in_terminal(tmp_path, "run", another, "--temp", "0", "-n", "8", variables=where) as terminal:
        terminal.expect("is not on this machine. Fetch it? [Y/n] ")
        terminal.type(ENTER)
        terminal.expect("pulling ")
        terminal.expect(PROMPT)
        terminal.type("hello world" + ENTER)
        terminal.expect("\r\n")
        answer = plain(terminal.expect(PROMPT))
        assert "shimmy: " not in answer
        assert answer.replace(">>> ", "").strip()
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
    assert len([*tmp_path.rglob("*.gguf")]) == 2
    assert len(hub.paths("/signed/")) >= 2


def test_a_pull_that_fails_says_why_and_can_be_tried_again(page: Page, empty: Server) -> None:
    chat = Chat(page, empty.port)
    chat.open()
    page.get_by_label("Fetch a model").fill("o/none")
    chat.press("Pull")
    expect(page.get_by_role("alert")).to_contain_text("o/none")
    chat.press("Pull again")
    expect(page.get_by_role("alert")).to_contain_text("o/none")
    chat.press("Forget o/none")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_pull_is_stopped(page: Page, empty: Server, hub: FakeHub) -> None:
    hub.faults.extend([Fault(), *[Fault(status=503, headers={"Retry-After": "60"})] * 20])
    reference = SUGGESTIONS[0].reference
    chat = Chat(page, empty.port)
    chat.open()
    page.get_by_label("Fetch a model").fill(reference)
    chat.press("Pull")
    chat.press(f"Stop {reference}")
    expect(page.get_by_role("progressbar")).to_have_count(0)


def test_a_pull_of_somebody_else_goes_when_it_is_stopped(page: Page, empty: Server, hub: FakeHub) -> None:
    hub.faults.extend([Fault(), *[Fault(status=503, headers={"Retry-After": "60"})] * 20])
    Chat(page, empty.port).open("models")
    with closing(HTTPConnection("127.0.0.1", empty.port)) as other:
        other.request("POST", "/api/models/pull", json.dumps({"model": SUGGESTIONS[0].reference}))
        expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_count(0)


def test_progress_of_a_large_pull(page: Page, empty: Server) -> None:
    told = [
        ("resolving", {"reference": "o/n"}), ("files", {"files": [], "total_bytes": 4_000_000_000}),
        ("progress", {"completed_bytes": 10**9, "total_bytes": 4 * 10**9, "bytes_per_s": 10**7, "eta_s": 300.0}),
    ]  # fmt: skip
    stream = "".join(f"event: {kind}\ndata: {json.dumps(details)}\n\n" for kind, details in told)
    stream += 'data: {"error": {"message": "the disk is full"}}\n\n'

    def answer(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=stream)

    page.route("**/api/models/pull", answer)
    chat = Chat(page, empty.port)
    chat.open()
    page.get_by_label("Fetch a model").fill("o/n")
    chat.press("Pull")
    expect(page.get_by_role("alert")).to_contain_text("the disk is full")


def test_what_others_pull_is_seen(page: Page, empty: Server) -> None:
    chat = Chat(page, empty.port)
    chat.open()
    expect(page.get_by_role("heading", name="No model yet")).to_be_visible()
    reference = SUGGESTIONS[0].reference
    assert empty.post("/api/models/pull", {"model": reference, "stream": False}).status == 200
    answer_with(page, [{"content": "yes"}])
    chat.ask("hello")
    expect(chat.text).to_have_text("yes")
    chat.open("models")
    expect(page.get_by_text(reference)).to_be_visible()
