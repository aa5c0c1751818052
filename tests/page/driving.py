"""What a person does on the page, in words of the page. Knows its labels, not its elements."""

import json
import re
from collections.abc import Sequence
from typing import Any

from playwright.sync_api import Locator, Page, Route, expect

Json = dict[str, Any]


class Chat:
    """The page in a tab, at the chat."""

    def __init__(self, page: Page, port: int) -> None:
        self.page = page
        self.url = f"http://127.0.0.1:{port}/"

    def open(self, view: str = "chat") -> None:
        self.page.goto(f"{self.url}#{view}")

    def choose(self, model: str) -> None:
        choice = self.page.get_by_role("combobox", name="Model", exact=True)
        expect(choice.locator("option", has_text=model)).to_be_attached()
        choice.select_option(model)

    @property
    def box(self) -> Locator:
        return self.page.get_by_role("textbox", name="Your message")

    def ask(self, text: str) -> None:
        self.box.fill(text)
        expect(self.page.get_by_role("button", name="Send", exact=True).last).to_be_enabled()
        self.box.press("Enter")

    @property
    def reply(self) -> Locator:
        """The last reply."""
        return self.page.get_by_role("article", name="Reply of").last

    @property
    def text(self) -> Locator:
        return self.reply.locator("> .markdown, > .plain")

    def wait_for_end(self) -> None:
        expect(self.reply).to_have_attribute("aria-busy", "false")

    def wait_for_text(self) -> None:
        expect(self.text).not_to_be_empty()

    def wait_for_more(self, than: str) -> None:
        """A few letters more of the reply than these."""
        longer = re.compile(rf".{{{len(than) + 5},}}", re.DOTALL)
        expect(self.text).to_have_text(longer, use_inner_text=True)

    def press(self, name: str, *, within: Locator | None = None, exact: bool = True) -> None:
        (within or self.page).get_by_role("button", name=name, exact=exact).first.click()

    def set(self, **settings: str) -> None:
        """Fill boxes of the settings by their labels, with `_` for spaces."""
        if self.page.get_by_label("System prompt").count() == 0:
            self.press("Settings")
        for label, value in settings.items():
            self.page.get_by_label(label.replace("_", " ")).first.fill(value)

    def has_titles(self, *titles: str) -> None:
        """Wait until these are the conversations, the latest first."""
        conversations = self.page.get_by_role("complementary", name="Conversations")
        expect(conversations.locator("li .title")).to_have_text([*titles])


def answer_with(page: Page, deltas: Sequence[Json], finish: str = "stop") -> list[Json]:
    """Have replies say this, whatever the model would; returns the bodies of the requests as they come."""
    bodies: list[Json] = []
    chunks: list[Json] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    usage = {"prompt_tokens": 41, "completion_tokens": 68, "prompt_tokens_details": {"cached_tokens": 24}}
    chunks.append({"choices": [], "usage": usage, "timings": {"predicted_per_second": 212.0}})
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def answer(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(status=200, content_type="text/event-stream", body=stream)

    page.route("**/v1/chat/completions", answer)
    return bodies
