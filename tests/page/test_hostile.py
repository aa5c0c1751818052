"""What a model may write to harm the person in front of it: nothing of it runs, loads, or holds the page up."""

import time

import pytest
from playwright.sync_api import expect

from tests.page.driving import Chat, answer_with

OUTPUTS = {
    "picture": "<img src=x onerror=\"document.title='owned'\">",
    "script": "<script>document.title='owned'</script>\n\n<svg onload=\"document.title='owned'\"></svg>",
    "frame": "<iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>",
    "address": "[click](javascript:document.title='owned') [b](JaVaScRiPt:document.title='owned')",
    "data": "[x](data:text/html,<script>document.title='owned'</script>) ![y](data:text/html,z)",
    "picture of another server": "![x](http://127.0.0.1:9/x.png) ![](https://example.org/pixel)",
    "code": "```js\n</code></pre><img src=x onerror=\"document.title='owned'\">\n```",
    "language": '```"><img src=x onerror=alert(1)>\nx\n```\n```__proto__\nx\n```\n```constructor\nx\n```',
    "table": "|<img src=x onerror=alert(1)>|\n|---|\n|[a](javascript:alert(1))|",
    "style": "<style>body{display:none}</style><link rel=stylesheet href=//x>",
    "form": "<form action=https://example.org><input name=key></form><base href=https://example.org>",
}
LONG = {
    "one line": "a" * 1_000_000,
    "lines": "a\n" * 500_000,
    "quotes": ">" * 90_000,
    "lists": "- " * 45_000,
    "stairs": "\n".join(" " * (2 * depth) + "- a" for depth in range(300)),
    "brackets": "[" * 90_000,
    "pictures": "![" * 45_000,
    "stars": "*a_" * 30_000,
    "ticks": "`a``" * 22_000,
    "table": "|a" * 20_000 + "\n" + "|-" * 20_000,
    "address": "a" * 90_000 + "@",
    "code": "```js\n" + "/*" * 14_000 + "\n```",
    "code of blanks": "```js\n" + "\n" * 29_000 + "\n```",
    "dollars": "$a" * 45_000,
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_nothing_runs_and_nothing_is_loaded(chat: Chat, output: str) -> None:
    requests: list[str] = []
    answer_with(chat.page, [{"content": output[:7]}, {"content": output[7:] + "\n\nthe end"}])
    chat.page.on("request", lambda request: requests.append(request.url))
    chat.ask("hello")
    expect(chat.reply).to_contain_text("the end")
    assert chat.page.title() == "Shimmy"
    elsewhere = [url for url in requests if not url.startswith(chat.url)]
    assert elsewhere == []
    assert chat.page.locator("img, iframe, object, embed, base, article style, article link, article form").count() == 0
    for link in chat.reply.get_by_role("link").all():
        assert (link.get_attribute("href") or "").startswith(("http:", "https:", "mailto:"))
    expect(chat.box).to_be_visible()


def test_controls_that_turn_text_around_are_shown(chat: Chat) -> None:
    answer_with(chat.page, [{"content": "a\u202eb `c\u2066d`\n\n```\ne\u202ef\n```"}])
    chat.ask("hello")
    expect(chat.text).to_contain_text("a\u2039U+202E\u203ab c\u2039U+2066\u203ad")
    expect(chat.reply.locator("pre")).to_have_text("e\u2039U+202E\u203af")


@pytest.mark.parametrize("output", LONG.values(), ids=LONG)
def test_a_long_reply_does_not_hold_the_page_up(chat: Chat, output: str) -> None:
    """The longest that the page does not answer meanwhile, and what it takes to draw the reply again."""
    n_pieces = 20
    size = len(output) // n_pieces + 1
    answer_with(chat.page, [{"content": output[start : start + size]} for start in range(0, len(output), size)])
    chat.page.evaluate("""() => {
        window.pause = 0;
        let last = performance.now();
        setInterval(() => {
            const now = performance.now();
            window.pause = Math.max(window.pause, now - last);
            last = now;
        }, 10);
    }""")
    started = time.monotonic()
    chat.ask("hello")
    chat.wait_for_end()
    expect(chat.reply).to_contain_text("Copy")
    chat.box.fill("still here")
    assert chat.page.evaluate("window.pause") < 5000
    assert time.monotonic() - started < 50


def test_a_tool_call_of_a_hostile_model_is_text(chat: Chat) -> None:
    function = {"name": "<img src=x onerror=alert(1)>", "arguments": '{"a": "<script>alert(1)</script>'}
    call = {"index": 0, "id": '"><img src=x onerror=alert(1)>', "function": function}
    answer_with(chat.page, [{"tool_calls": [call]}], "tool_calls")
    chat.ask("hello")
    expect(chat.reply.get_by_text("Calls <img src=x onerror=alert(1)>")).to_be_visible()
    assert chat.page.locator("img").count() == 0
