"""Which models there are, how they stand, and a server that has none yet."""

import re
import shutil
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.e2e.harness import Server, serving
from tests.page.driving import Chat


def test_a_model_is_loaded_and_unloaded_and_its_events_appear(page: Page, models: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--model-path", models) as server:
        chat = Chat(page, server.port)
        chat.open("models")
        card = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="alpha"))
        expect(card).to_contain_text("not loaded")
        chat.press("Load alpha", within=card)
        expect(card.get_by_text("loaded", exact=True)).to_be_visible()
        expect(card).to_contain_text(re.compile(r"processor \(\w+\)"))
        events = page.get_by_role("log", name="Events")
        expect(events).to_contain_text(re.compile(r"alpha is loaded in [\d.]+ m?s"))
        chat.press("Unload alpha", within=card)
        expect(card).to_contain_text("not loaded")
        expect(events).to_contain_text("alpha was unloaded")


def test_layers_on_a_gpu_and_why_there_are_no_more(page: Page, server: Server) -> None:
    def answer(route: Route) -> None:
        """As a server with a GPU would: there is none where the tests run."""
        reply = route.fetch()
        told = reply.json()
        for model in told["models"]:
            if model["name"] == "alpha":
                model |= {"device": "Vulkan0", "n_device_layers": 2, "n_layers": 3, "device_note": "2 of 3 layers fit"}
        route.fulfill(response=reply, json=told)

    page.route("**/api/models", answer)
    chat = Chat(page, server.port)
    chat.open("models")
    chat.press("Look for new files")  # the first list comes with the events
    card = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="alpha"))
    expect(card).to_contain_text("2 of 3 layers: Vulkan0")
    expect(card).to_contain_text("2 of 3 layers fit")


def test_a_file_that_is_not_served_says_why(page: Page, server: Server) -> None:
    Chat(page, server.port).open("models")
    section = page.locator("section").filter(has=page.get_by_role("heading", name="Not served"))
    expect(section.get_by_role("heading", name="broken")).to_be_visible()
    expect(section.locator("p").first).not_to_be_empty()


def test_a_broken_file_shows_when_it_comes_and_goes(page: Page, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(models / "alpha.gguf", folder)
    with serving(tmp_path / "server", "--model-path", folder) as server:
        Chat(page, server.port).open("models")
        expect(page.get_by_role("heading", name="alpha")).to_be_visible()
        shutil.copy(models / "broken.gguf", folder)
        expect(page.get_by_role("heading", name="broken")).to_be_visible()
        expect(page.get_by_role("log")).to_contain_text("broken cannot be served: ")
        (folder / "broken.gguf").unlink()
        expect(page.get_by_role("heading", name="broken")).to_have_count(0)


def test_a_server_without_a_model_says_what_to_do_and_goes_on_when_one_comes(
    page: Page, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(models / "broken.gguf", folder)
    with serving(tmp_path / "server", "--model-path", folder) as server:
        chat = Chat(page, server.port)
        chat.open()
        expect(page.get_by_role("heading", name="No model yet")).to_be_visible()
        expect(page.get_by_text(f"{folder / 'broken.gguf'} cannot be served: ")).to_be_visible()
        shutil.copy(models / "alpha.gguf", folder)
        chat.ask("hello world")
        chat.wait_for_text()
        chat.press("Stop", within=chat.reply)


def test_the_server_shows_its_figures_errors_and_lines_for_programs(chat: Chat) -> None:
    chat.set(Longest_reply="8")
    chat.ask("hello")
    chat.wait_for_end()
    chat.page.get_by_label("Top-p").fill("5")
    chat.press("Regenerate", within=chat.reply)
    expect(chat.reply.get_by_role("alert")).to_contain_text("top_p")
    page = chat.page
    page.get_by_role("link", name="Server").click()
    expect(page.get_by_text("tokens written").locator("xpath=following-sibling::dd")).to_have_text(re.compile(r"[1-9]"))
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="smollm2-135m-instruct.q4-1"))
    expect(row).to_contain_text(re.compile(r"[1-9][\d.]*K? of [\d.]+K tokens"))
    expect(row.get_by_role("meter", name="KV cache of smollm2-135m-instruct.q4-1")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Time from a request to its first token: up to"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Tokens a second, now"))).to_be_visible()
    expect(page.locator("section").filter(has=page.get_by_role("heading", name="Last errors"))).to_contain_text("top_p")
    expect(page.locator("pre")).to_contain_text(f"curl {chat.url}v1/chat/completions")
    page.get_by_role("link", name="Models").click()
    card = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="smollm2-135m-instruct.q4-1"))
    expect(card).to_contain_text(re.compile(r"context in use\s*[1-9][\d.]*K? tokens"))
    page.get_by_role("link", name="Server").click()
    chat.press("python")
    expect(page.locator("pre")).to_contain_text(f'base_url="{chat.url}v1"')
    chat.press("javascript")
    expect(page.locator("pre")).to_contain_text('model: "smollm2-135m-instruct.q4-1"')


def test_a_model_is_deleted_after_a_second_word(page: Page, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    with serving(tmp_path / "server", "--model-path", folder) as server:
        chat = Chat(page, server.port)
        chat.open("models")
        chat.press("Delete alpha")
        chat.press("Keep")
        assert (folder / "alpha.gguf").exists()
        chat.press("Delete alpha")
        page.get_by_role("button", name=re.compile(r"^Delete [\d.]+ [KM]B$")).click()
        expect(page.get_by_role("heading", name="alpha")).to_have_count(0)
        assert not (folder / "alpha.gguf").exists()
