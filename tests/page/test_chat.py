"""A conversation with a real model, with everything that can be done to it."""

import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.e2e.harness import ENDLESS, serving
from tests.models import demo_model
from tests.page.driving import Chat, Json, answer_with
from tests.tiny_models import write_tiny_model


def test_a_question_is_answered_with_figures_and_is_there_after_a_reload(chat: Chat) -> None:
    chat.set(Longest_reply="40")
    chat.ask("Say hello.")
    chat.wait_for_end()
    expect(chat.text).not_to_be_empty()
    expect(chat.reply).to_contain_text(re.compile(r"\d+ tokens · [\d.]+ tokens/s · first token after"))
    said = chat.text.inner_text()
    chat.has_titles("Say hello.")
    chat.page.reload()
    expect(chat.text).to_have_text(said)
    chat.has_titles("Say hello.")


def test_a_reply_streams_is_stopped_and_gone_on_with(chat: Chat) -> None:
    chat.choose("alpha")
    chat.ask("hello world")
    chat.wait_for_text()
    chat.box.press("Escape")
    chat.wait_for_end()
    expect(chat.reply).to_contain_text("stopped")
    before = chat.text.inner_text()
    with chat.page.expect_request("**/v1/chat/completions") as request:
        chat.press("Go on", within=chat.reply)
    body = request.value.post_data_json
    assert body["continue_final_message"]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
    chat.wait_for_more(before)
    chat.press("Stop", within=chat.reply)
    chat.wait_for_end()


def test_a_reply_that_waits_says_for_what(page: Page, models: Path, tmp_path: Path) -> None:
    arguments = ("--model-path", demo_model(), "--model-path", models, "--parallel", "1")
    with serving(tmp_path, *arguments) as server:
        chat = Chat(page, server.port)
        chat.open()
        chat.choose("alpha")
        with (
            server.stream("hello world", **ENDLESS).read(),
            server.stream("hello user", return_progress=True) as second,
        ):
            assert second.next_progress() == {"queue_position": 1}
            chat.ask("hello assistant")
            expect(chat.reply).to_contain_text("Waiting for its turn: number 2 in the queue")
            second.leave()
            expect(chat.reply).to_contain_text("Waiting for its turn: the next")
        chat.wait_for_text()
        chat.press("Stop", within=chat.reply)
        chat.press("New conversation")
        chat.choose("smollm2-135m-instruct.q4-1")
        chat.ask("How is the weather? " * 1500)
        expect(chat.reply).to_contain_text(re.compile(r"Reading the prompt: [1-9]\d? %"))
        chat.press("Stop", within=chat.reply)
        chat.wait_for_end()
        expect(chat.reply).not_to_contain_text("Reading")


def test_a_model_without_a_chat_template_is_told(page: Page, models: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "plain", chat_template=None)
    with serving(tmp_path / "server", "--model-path", tmp_path / "plain.gguf", "--model-path", models) as server:
        chat = Chat(page, server.port)
        chat.open()
        told = page.get_by_text("plain has no chat template: a generic one is used")
        chat.choose("alpha")
        expect(told).to_have_count(0)
        chat.choose("plain")
        expect(told).to_be_visible()


def test_regenerating_and_editing_make_versions(chat: Chat) -> None:
    bodies = answer_with(chat.page, [{"content": "first"}])
    chat.ask("one")
    expect(chat.text).to_have_text("first")
    answer_with(chat.page, [{"content": "second"}])
    chat.press("Regenerate", within=chat.reply)
    expect(chat.text).to_have_text("second")
    expect(chat.reply).to_contain_text("2 of 2")
    chat.press("Version before", within=chat.reply)
    expect(chat.text).to_have_text("first")
    question = chat.page.get_by_role("article", name="You")
    chat.press("Edit", within=question)
    question.get_by_role("textbox").fill("another")
    chat.press("Send", within=question)
    expect(question).to_contain_text("2 of 2")
    expect(chat.text).to_have_text("second")
    chat.press("Version before", within=question)
    expect(chat.page.get_by_text("one", exact=True).last).to_be_visible()
    chat.page.reload()
    expect(question).to_contain_text("1 of 2")
    assert bodies[0]["messages"] == [{"role": "user", "content": "one"}]


def test_settings_show_the_defaults_and_are_sent(chat: Chat) -> None:
    chat.press("Settings")
    expect(chat.page.get_by_label("Top-k")).to_have_attribute("placeholder", "40")
    expect(chat.page.get_by_label("Temperature")).to_have_attribute("placeholder", "0")
    bodies = answer_with(chat.page, [{"content": "yes"}])
    chat.set(System_prompt="Be brief.", Temperature="0.5", Longest_reply="7", Stop_at="END\nFIN")
    chat.page.get_by_label("Reasoning").select_option("low")
    chat.ask("hello")
    expect(chat.text).to_have_text("yes")
    (body,) = bodies
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.5, 7, ["END", "FIN"])
    assert body["reasoning_effort"] == "low"


def test_a_value_that_is_no_number_is_said_and_a_value_that_the_server_refuses_too(chat: Chat) -> None:
    chat.set(Temperature="warm")
    chat.ask("hello")
    expect(chat.reply.get_by_role("alert")).to_contain_text("Temperature is not a number: warm")
    chat.set(Temperature="")
    chat.page.get_by_label("Top-p").fill("5")
    chat.press("Try again", within=chat.reply)
    expect(chat.reply.get_by_role("alert")).to_contain_text("top_p")


def test_a_schema_is_kept_to(chat: Chat) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
    chat.set(JSON_Schema_of_the_reply=json.dumps(schema | {"additionalProperties": False}))
    chat.ask("Where?")
    chat.wait_for_end()
    assert json.loads(chat.text.inner_text()) == {"city": "Oslo"}


def test_probabilities_of_tokens_and_another_way_from_one_of_them(chat: Chat) -> None:
    chat.set(Longest_reply="12")
    chat.page.get_by_label("Record the probabilities").check()
    chat.ask("What is the capital of France?")
    chat.wait_for_end()
    chat.press("Tokens", within=chat.reply)
    tokens = chat.reply.get_by_role("group", name="Tokens").get_by_role("button")
    assert tokens.count() >= 5
    expect(tokens.nth(2)).to_have_attribute("title", re.compile(r"\d %"))
    before = "".join(tokens.all_inner_texts()[:2])
    tokens.nth(2).click()
    row = chat.reply.get_by_role("row").filter(has=chat.page.get_by_role("button", name="Go on from this")).first
    other = row.get_by_role("rowheader").inner_text()
    chat.press("Go on from this", within=row)
    expect(chat.reply).to_contain_text("2 of 2")
    chat.wait_for_end()
    assert chat.text.inner_text().startswith((before + other).strip()[:10])


def test_reasoning_is_folded_and_calls_are_shown_and_take_results(chat: Chat) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"in": '}}
    rest = {"index": 0, "function": {"arguments": '"Oslo"}'}}
    deltas: list[Json] = [{"reasoning_content": "Let me think."}, {"content": "I ask."}, {"tool_calls": [call]}]
    answer_with(chat.page, [*deltas, {"tool_calls": [rest]}], "tool_calls")
    chat.ask("How is the weather?")
    expect(chat.reply.get_by_text("Calls weather")).to_be_visible()
    expect(chat.reply.locator(".call code")).to_have_text('{\n  "in": "Oslo"\n}')
    expect(chat.reply.get_by_text("Let me think.")).to_be_hidden()
    chat.reply.get_by_text("Reasoning").click()
    expect(chat.reply.get_by_text("Let me think.")).to_be_visible()
    bodies = answer_with(chat.page, [{"content": "It rains."}])
    chat.reply.get_by_label("Result of weather").fill("rain")
    chat.press("Give to the model", within=chat.reply)
    expect(chat.text).to_have_text("It rains.")
    sent = bodies[0]["messages"]
    assert sent[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"in": "Oslo"}'}
    assert sent[2] == {"role": "tool", "tool_call_id": "call_1", "content": "rain"}


MARKDOWN = """# Title

Some *text* with `code`, **bold** and [a link](https://example.org/a).

| name | size |
|---|---:|
| a | 1 |

```python
def add(a, b):
    return a + b
```

- one
  1. two

$$x_1 = \\frac{a*b}{c*d}$$ and \\(y_1*z_1\\)
"""


def test_markdown_with_a_table_and_code_that_can_be_copied(chat: Chat) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer_with(chat.page, [{"content": MARKDOWN}])
    chat.ask("hello")
    expect(chat.reply.get_by_role("heading", name="Title")).to_be_visible()
    expect(chat.reply.get_by_role("cell", name="1", exact=True)).to_be_visible()
    expect(chat.reply.get_by_role("link", name="a link")).to_have_attribute("href", "https://example.org/a")
    expect(chat.reply.locator(".hl-kwd").first).to_have_text("def")
    expect(chat.reply.locator("ul ol li")).to_have_text("two")
    assert chat.reply.locator(".maths").all_inner_texts() == ["$$x_1 = \\frac{a*b}{c*d}$$", "\\(y_1*z_1\\)"]
    chat.press("Copy code", within=chat.reply)
    expect(chat.reply.get_by_text("Copied")).to_be_visible()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "def add(a, b):\n    return a + b"


def test_conversations_are_switched_exported_imported_and_deleted(chat: Chat, tmp_path: Path) -> None:
    answer_with(chat.page, [{"content": "yes"}])
    for title in ("first", "second"):
        chat.press("New conversation")
        chat.ask(title)
        expect(chat.text).to_have_text("yes")
    chat.has_titles("second", "first")
    chat.press("first")
    expect(chat.page.get_by_role("article", name="You")).to_contain_text("first")
    with chat.page.expect_download() as download:
        chat.press("Export")
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    chat.press("Delete “first”")
    expect(chat.page.get_by_role("article")).to_have_count(0)
    chat.press("Delete all")
    chat.press("Delete 1")
    expect(chat.page.get_by_text("Ask something.")).to_be_visible()
    chat.has_titles()
    chat.page.get_by_label("File to import").set_input_files(file)
    expect(chat.page.get_by_role("button", name="second", exact=True)).to_be_visible()
    chat.has_titles("second", "first")
    chat.press("second")
    expect(chat.text).to_have_text("yes")
    expect(chat.reply).to_contain_text("68 tokens · 212 tokens/s")


def test_a_file_of_anyone_is_read_with_care(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "odd.json"
    messages = {
        "aa": {"role": "user", "content": "kept", "parent": None}, "bb": {"role": "user", "content": 5, "parent": "aa"},
        "cc": {"role": "assistant", "content": "x", "parent": "dd"},
        "dd": {"role": "assistant", "content": "y", "parent": "cc"},
        "__proto__": {"role": "user", "content": "z", "parent": None}, "ee": None,
    }  # fmt: skip
    file.write_text(json.dumps({"conversations": [None, 5, {"messages": []}, {"title": "odd", "messages": messages}]}))
    chat.page.get_by_label("File to import").set_input_files(file)
    chat.press("odd")
    expect(chat.page.get_by_role("article")).to_have_count(1)
    expect(chat.page.get_by_role("article")).to_contain_text("kept")
    file.write_text("no JSON")
    chat.page.get_by_label("File to import").set_input_files(file)
    expect(chat.page.get_by_role("alert")).to_contain_text("not JSON")
