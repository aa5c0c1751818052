"""For everyone: by keyboard, with a screen reader, on a phone, in light and dark, with many conversations; and the
screenshots of the docs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.harness import ROOT, Server
from tests.page.driving import Chat, answer_with
from tests.page.test_chat import MARKDOWN
from tools.page import AXE

PHONE = {"width": 360, "height": 740}
SCREENSHOTS = ROOT / "docs" / "screenshots"
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="there is no npm on this machine")

REPLY = """A **fox** is a small animal of the dog family. In Python:

```python
class Fox:
    def __init__(self, name: str) -> None:
        self.name = name  # for example "Reynard"
```

| kind | weight |
|---|---:|
| red fox | 3 to 14 kg |
| fennec | 1 kg |
"""


def violations(page: Page) -> list[str]:
    """What axe finds, each with its place."""
    page.evaluate(AXE.read_text())
    found: Any = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']})")
    return [f"{each['id']}: {[node['html'][:150] for node in each['nodes']]}" for each in found["violations"]]


def _fill_chat(chat: Chat) -> None:
    answer_with(chat.page, [{"reasoning_content": "Hm."}, {"content": MARKDOWN}, {"content": REPLY}])
    chat.ask("What is a fox?")
    expect(chat.reply).to_contain_text("fennec")
    chat.press("Regenerate", within=chat.reply)
    expect(chat.reply).to_contain_text("2 of 2")


def _empty(_: Chat) -> None: ...


def _settings(chat: Chat) -> None:
    chat.press("Settings")
    expect(chat.page.get_by_label("Temperature")).to_be_visible()


def _tokens(chat: Chat) -> None:
    chat.set(Longest_reply="6")
    chat.page.get_by_label("Record the probabilities").check()
    chat.press("Settings")
    chat.ask("hello")
    chat.wait_for_end()
    chat.press("Tokens", within=chat.reply)
    chat.reply.get_by_role("group", name="Tokens").get_by_role("button").first.click()


def _broken(chat: Chat) -> None:
    chat.page.route("**/v1/chat/completions", lambda route: route.abort())
    chat.ask("hello")
    expect(chat.reply.get_by_role("alert")).to_be_visible()


def _edited(chat: Chat) -> None:
    _fill_chat(chat)
    chat.press("Edit")


def _models(chat: Chat) -> None:
    chat.page.get_by_role("link", name="Models").click()
    expect(chat.page.get_by_role("heading", name="Not served")).to_be_visible()


def _server(chat: Chat) -> None:
    chat.page.get_by_role("link", name="Server").click()
    expect(chat.page.get_by_role("heading", name="Use it from a program")).to_be_visible()
    expect(chat.page.get_by_text("tokens written")).to_be_visible()


STATES: dict[str, Callable[[Chat], None]] = {
    "empty": _empty, "chat": _fill_chat, "settings": _settings, "tokens": _tokens, "broken": _broken,
    "edited": _edited, "models": _models, "server": _server,
}  # fmt: skip


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(chat: Chat, state: str, scheme: Any) -> None:
    chat.page.emulate_media(color_scheme=scheme)
    STATES[state](chat)
    assert violations(chat.page) == []


@pytest.mark.parametrize("state", STATES)
def test_a_phone_shows_all_of_it_without_scrolling_sideways(chat: Chat, state: str) -> None:
    chat.page.set_viewport_size(PHONE)
    STATES[state](chat)
    widths = "[...document.querySelectorAll('html, main, .messages')].map((each) => each.scrollWidth)"
    assert max(chat.page.evaluate(widths)) <= PHONE["width"]


def test_the_list_of_conversations_on_a_phone(chat: Chat) -> None:
    chat.page.set_viewport_size(PHONE)
    _fill_chat(chat)
    chat.press("Conversations")
    chat.press("New conversation")
    expect(chat.page.get_by_text("Ask something.")).to_be_visible()
    chat.press("Conversations")
    chat.press("What is a fox?")
    expect(chat.text).to_be_visible()


def test_the_keyboard_reaches_everything(chat: Chat) -> None:
    _fill_chat(chat)
    chat.box.focus()
    expected = chat.page.locator(
        "button:visible:enabled, select:visible, textarea:visible, a:visible, summary:visible"
    ).count()
    reached = set()
    for _ in range(2 * expected + 10):
        chat.page.keyboard.press("Tab")
        reached.add(
            chat.page.evaluate("""() => {
            const all = [...document.querySelectorAll("button, select, textarea, a, summary")];
            return all.indexOf(document.activeElement);
        }""")
        )
    assert len(reached - {-1}) >= expected


def test_a_screen_reader_hears_of_a_reply(chat: Chat) -> None:
    answer_with(chat.page, [{"content": "yes"}])
    chat.ask("hello")
    expect(chat.page.get_by_role("status").filter(has_text="The reply is there.")).to_have_count(1)


def test_colours_can_be_chosen_and_stay(chat: Chat) -> None:
    chat.page.get_by_label("Colours").select_option("dark")
    chat.page.reload()
    assert chat.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 28)"


def test_many_long_conversations(chat: Chat, tmp_path: Path) -> None:
    """200 of 100 messages: the limits here are ten times what it may take (docs/page.md)."""
    conversations = []
    for number in range(200):
        messages = {
            f"{index:x}": {
                "role": "assistant" if index % 2 else "user", "content": f"{number}/{index} {REPLY}", "finish": "stop",
                "parent": f"{index - 1:x}" if index else None, "created": index,
            }
            for index in range(100)
        }  # fmt: skip
        conversations.append({"title": f"number {number}", "messages": messages, "leaf": f"{99:x}"})
    file = tmp_path / "many.json"
    file.write_text(json.dumps({"conversations": conversations}))
    chat.page.get_by_label("File to import").set_input_files(file)
    expect(chat.page.get_by_role("button", name="number 199", exact=True)).to_be_visible()
    took = chat.page.evaluate("""async () => {
        const button = [...document.querySelectorAll(".title")].find((each) => each.textContent.trim() === "number 7");
        const started = performance.now();
        button.click();
        const messages = () => document.querySelector(".messages").textContent;
        while (!messages().includes("7/99")) await new Promise(requestAnimationFrame);
        return performance.now() - started;
    }""")
    assert took < 3000
    chat.page.reload()
    shown = chat.page.evaluate("""async () => {
        while (document.querySelectorAll(".title").length < 200) await new Promise(requestAnimationFrame);
        return performance.now();
    }""")
    assert shown < 3000


@pytest.mark.parametrize(("name", "scheme", "size"), [
    ("light", "light", {"width": 1000, "height": 640}), ("dark", "dark", {"width": 1000, "height": 640}),
    ("phone", "light", PHONE),
])  # fmt: skip
def test_screenshots_for_the_docs(browser: Browser, server: Server, name: str, scheme: Any, size: Any) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    chat = Chat(context.new_page(), server.port)
    chat.open()
    chat.choose("smollm2-135m-instruct.q4-1")
    answer_with(chat.page, [{"content": REPLY}])
    for title in ("Name three rivers.", "What is a fox?"):
        chat.press("Conversations" if name == "phone" else "New conversation")
        if name == "phone":
            chat.press("New conversation")
        chat.ask(title)
        expect(chat.reply).to_contain_text("fennec")
    SCREENSHOTS.mkdir(exist_ok=True)
    chat.page.screenshot(path=SCREENSHOTS / f"page-{name}.png")
    context.close()
