"""Keys, restarts, deaths and swaps while a person looks: the page says what happened, keeps the text and goes on."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.harness import Server, serving
from tests.page.driving import Chat, answer_with
from tests.tiny_models import write_tiny_model

N_SWAPS = 20


def test_a_server_with_a_key_asks_for_it(page: Page, models: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--model-path", models, "--api-key", "secret") as server:
        chat = Chat(page, server.port)
        chat.open()
        dialog = page.get_by_role("dialog", name="This server needs a key")
        dialog.get_by_label("Key", exact=True).fill("wrong")
        chat.press("Go on", within=dialog)
        expect(dialog.get_by_role("alert")).to_contain_text("does not know this key")
        dialog.get_by_label("Key", exact=True).fill("secret")
        chat.press("Go on", within=dialog)
        expect(dialog).to_have_count(0)
        chat.ask("hello world")
        chat.wait_for_text()
        page.reload()
        expect(chat.text).not_to_be_empty()
        expect(dialog).to_have_count(0)
        chat.open("server")
        expect(page.get_by_text("SHIMMY_API_KEY").first).to_be_visible()


def test_a_worker_that_dies_in_a_reply_leaves_its_text_and_the_page_goes_on(
    page: Page, models: Path, tmp_path: Path
) -> None:
    with serving(tmp_path, "--model-path", models) as server:
        chat = Chat(page, server.port)
        chat.open()
        chat.ask("hello world")
        chat.wait_for_text()
        os.kill(server.worker(), signal.SIGKILL)
        expect(chat.reply.get_by_role("alert")).to_contain_text("What was written is kept.")
        before = chat.text.inner_text()
        chat.press("Go on", within=chat.reply)
        expect(chat.reply.get_by_role("alert")).to_have_count(0)
        chat.wait_for_more(before)
        chat.press("Stop", within=chat.reply)
        chat.open("server")
        expect(page.get_by_text("Its worker ended unasked.")).to_be_visible()


def test_a_server_that_restarts_in_a_reply(page: Page, models: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "first", "--model-path", models) as server:
        port = server.port
        chat = Chat(page, port)
        chat.open()
        chat.ask("hello world")
        chat.wait_for_text()
        server.destroy()
        expect(chat.reply.get_by_role("alert")).to_contain_text("broke off")
        expect(page.get_by_text("The server does not answer.")).to_be_visible()
    before = chat.text.inner_text()
    with serving(tmp_path / "second", "--model-path", models, bind=f"127.0.0.1:{port}"):
        expect(page.get_by_text("The server does not answer.")).to_have_count(0)
        chat.press("Go on", within=chat.reply)
        chat.wait_for_more(before)
        chat.press("Stop", within=chat.reply)


def test_a_page_that_is_loaded_again_in_a_reply_says_that_it_was_interrupted(chat: Chat) -> None:
    chat.choose("alpha")
    chat.ask("hello world")
    chat.wait_for_text()
    chat.page.reload()
    expect(chat.reply.get_by_role("alert")).to_contain_text("interrupted")
    expect(chat.text).not_to_be_empty()


@pytest.mark.timeout(180)  # of which each file takes two seconds to settle
def test_swaps_are_seen_while_a_reply_streams(page: Page, models: Path, tmp_path: Path) -> None:
    files = [write_tiny_model(tmp_path, name, seed=seed) for seed, name in enumerate(("red", "blue"))]
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(models / "alpha.gguf", folder)

    def put(index: int) -> None:
        shutil.copyfile(files[index % 2], folder / "beta.part")
        (folder / "beta.part").rename(folder / "beta.gguf")

    put(0)
    with serving(tmp_path / "server", "--model-path", folder) as server:
        assert server.post("/api/models/beta/load", {}).status == 200
        chat = Chat(page, server.port)
        chat.open()
        chat.choose("alpha")
        chat.ask("hello world")
        chat.wait_for_text()
        page.get_by_role("link", name="Models").click()
        swaps = page.get_by_role("log", name="Events").get_by_text("was replaced by its new version")
        for number in range(1, N_SWAPS + 1):
            put(number)
            expect(swaps).to_have_count(number)
        page.get_by_role("link", name="Chat").click()
        expect(chat.reply).to_have_attribute("aria-busy", "true")
        chat.press("Stop", within=chat.reply)
        chat.wait_for_end()


def test_a_conversation_of_another_model_goes_on_with_one_that_is_there(chat: Chat) -> None:
    answer_with(chat.page, [{"content": "yes"}])
    chat.page.evaluate("localStorage.setItem('shimmy.model', '\"gone\"')")
    chat.page.reload()
    chat.ask("hello")
    expect(chat.text).to_have_text("yes")
    chosen = chat.page.get_by_role("combobox", name="Model", exact=True).input_value()
    assert chosen in {"alpha", "smollm2-135m-instruct.q4-1"}


def test_a_browser_that_keeps_nothing(page: Page, server: Server) -> None:
    page.add_init_script("""
        for (const name of ["indexedDB", "localStorage", "sessionStorage"])
            Object.defineProperty(window, name, { get() { throw new DOMException("not here") } });
    """)
    answer_with(page, [{"content": "yes"}])
    chat = Chat(page, server.port)
    chat.open()
    for title in ("first", "second"):
        chat.press("New conversation")
        chat.ask(title)
        expect(chat.text).to_have_text("yes")
    chat.has_titles("second", "first")
    chat.press("first")
    expect(page.get_by_role("article", name="You")).to_contain_text("first")
