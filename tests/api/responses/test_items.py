"""Input items of Responses: what is read, how the API lists it, and which conversation comes of it."""

import json
from functools import cache
from typing import Any

import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from shimmy.api.responses.conversation import conversation
from shimmy.api.responses.items import Input, Item, identified, new_id, sealed
from shimmy.errors import BadRequest, NotFound
from shimmy.messages.request import Message, ToolCall

adapter = cache(TypeAdapter)  # to make one takes 50 ms

WEATHER = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Rome"}'}
PATCH = {"type": "custom_tool_call", "call_id": "call_2", "name": "patch", "input": 'a "b"'}
PATCHED = {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"}
RAIN = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}


def unknown(_item_id: str) -> Item | None:
    return None


def items(*values: object) -> list[Item]:
    return identified(Input().read([*values], "input"), unknown)[0]


def turns(*values: object, instructions: str = "") -> tuple[Message, ...]:
    return conversation(items(*values), instructions)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_text_is_a_message_of_the_user() -> None:
    (item,), (made_id,) = identified(Input().read("hi", "input"), unknown)
    assert item == {
        "id": made_id,
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "hi"}],
        "status": "completed",
    }
    assert conversation([item]) == (Message("user", "hi"),)


def test_every_kind_of_item_becomes_one_that_the_api_can_list() -> None:
    given = [
        user("hi"),
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "hello", "phase": "final_answer"},
        {
            "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [
                {"type": "output_text", "text": "I am", "annotations": []},
                {"type": "refusal", "refusal": "no"},
            ],
        },
        WEATHER,
        RAIN,
        RAIN | {"output": [{"type": "input_text", "text": "sun"}]},
    ]  # fmt: skip
    whole = items(*given)
    for item in whole:
        adapter(ResponseItem).validate_python(item, strict=True)
    assert [item["id"].split("_")[0] for item in whole] == ["msg", "msg", "rs", "msg", "msg", "fc", "fco", "fco"]
    assert whole[2]["id"] == "rs_1"
    assert items(*whole) == whole  # what a client sends back is what it got


def test_ids_cannot_be_guessed() -> None:
    assert new_id("resp") != new_id("resp")
    assert len(new_id("resp")) == len("resp_") + 48


def test_what_the_assistant_does_in_a_row_is_one_turn() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    call = ToolCall("call_1", "weather", '{"city":"Rome"}')
    other = ToolCall("call_2", "time", "{}")
    assert turns(
        user("weather?"),
        thought,
        {"role": "assistant", "content": "I look."},
        WEATHER,
        {"type": "function_call", "call_id": "call_2", "name": "time", "arguments": "{}"},
        RAIN,
        RAIN
        | {"call_id": "call_2", "output": [{"type": "input_text", "text": "1"}, {"type": "input_text", "text": "2"}]},
        thought,
        {"role": "assistant", "content": "Rain."},
        {"role": "assistant", "content": "At 12."},
    ) == (
        Message("user", "weather?"),
        Message("assistant", "I look.", tool_calls=(call, other), reasoning_content="hm"),
        Message("tool", "rain", name="weather", tool_call_id="call_1"),
        Message("tool", "1\n2", name="time", tool_call_id="call_2"),
        Message("assistant", "Rain.", reasoning_content="hm"),
        Message("assistant", "At 12."),
    )


def test_instructions_at_the_head_are_one_message() -> None:
    given = ({"role": "developer", "content": "be brief"}, user("hi"), {"role": "system", "content": "be kind"})
    head = Message("system", "be good\n\nbe brief")
    assert turns(*given, instructions="be good") == (head, Message("user", "hi"), Message("system", "be kind"))


def test_sealed_reasoning_is_read_where_there_is_none_in_the_open() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed("hm, é")}
    assert turns(item) == (Message("assistant", None, reasoning_content="hm, é"),)
    assert turns(item | {"content": [{"type": "reasoning_text", "text": "open"}]})[0].reasoning_content == "open"
    short = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]}
    assert turns(short) == (Message("assistant", None, reasoning_content="short"),)
    assert turns(item | {"encrypted_content": "gAAAAB-of_another_server=="}) == ()
    assert turns(item | {"encrypted_content": "/////w=="}) == ()


def test_what_nobody_called_is_a_text_with_its_name() -> None:
    goal = {
        "type": "function_call_output",
        "id": "fco_1",
        "name": "goal_objective",
        "namespace": "agent",
        "output": "win",
    }
    assert turns(goal) == (Message("user", "[agent.goal_objective]\nwin"),)
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert turns({"type": "function_call_output", "output": parts}) == (Message("user", "[tool]\na\nb"),)
    patched = {"type": "custom_tool_call_output", "name": "apply_patch", "output": "done"}
    assert turns(patched) == (Message("user", "[apply_patch]\ndone"),)
    for call_id in ("", "call_nobody_made"):
        assert turns(goal | {"call_id": call_id}) == turns(goal)
        assert turns(patched | {"call_id": call_id}) == turns(patched)
    assert turns(WEATHER, RAIN | {"name": "weather"})[1].role == "tool"


def test_a_call_without_arguments_may_say_nothing_of_them() -> None:
    without = {name: value for name, value in WEATHER.items() if name != "arguments"}
    for item in (without, without | {"arguments": None}, without | {"arguments": ""}):
        assert turns(item)[0].tool_calls[0].arguments == ""


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ({"type": "input_image", "image_url": "data:image/png;base64,AAAA"}, "a picture"),
        ({"type": "computer_screenshot", "file_id": "f"}, "a picture"),
        ({"type": "input_file", "file_data": "AAAA"}, "a file"),
        ({"type": "input_audio", "data": "AAAA"}, "a recording"),
        ({"type": "hologram"}, "a part of type hologram"),
    ],
)
def test_what_is_no_text_in_the_result_of_a_tool_becomes_one_line(part: dict[str, str], line: str) -> None:
    output = [{"type": "input_text", "text": "seen:"}, part]
    for call, answer in ((WEATHER, RAIN), (PATCH, PATCHED)):
        assert turns(call, answer | {"output": output})[1].content == f"seen:\n[{line}, which this model cannot see]"
    with pytest.raises(BadRequest):
        turns({"role": "user", "content": [part]})


def test_calls_keep_their_namespace_and_their_text() -> None:
    asked, answered = turns(PATCH | {"namespace": "n"}, PATCHED)
    assert asked.tool_calls == (ToolCall("call_2", "n__patch", '{"input": "a \\"b\\""}'),)
    assert answered == Message("tool", "done", name="n__patch", tool_call_id="call_2")


def test_items_about_tools_that_another_server_ran_are_kept() -> None:
    given: list[dict[str, object]] = [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "mcp_call", "name": "look", "server_label": "s", "arguments": "{}", "output": "found"},
        {"type": "mcp_list_tools", "id": None, "server_label": "s", "tools": []},
        {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "out", "stderr": "err"}]},
        {"type": "local_shell_call_output", "id": "l", "output": "listed"},
        {"type": "image_generation_call", "id": "ig", "result": "AAAA"},
        {"type": "tool_search_call", "arguments": {}}, {"type": "tool_search_output", "tools": []},
        {"type": "compaction", "encrypted_content": "x"},
    ]  # fmt: skip
    kept = items(*given)
    assert all(item["id"] for item in kept)
    assert [{**item, "id": None} for item in kept] == [{**item, "id": None} for item in given]
    assert [turn.content for turn in conversation(kept)] == [
        "[look]\nfound", "[shell_call_output]\nout\nerr", "[local_shell_call_output]\nlisted",
    ]  # fmt: skip


def test_a_reference_stands_for_the_item() -> None:
    stored = items(user("hi"))[0]
    found, made_ids = identified(Input().read([{"id": stored["id"]}], "input"), lambda _: stored)
    assert found == [stored]
    assert not made_ids
    with pytest.raises(NotFound, match="Item with id 'msg_unknown' not found"):
        items({"type": "item_reference", "id": "msg_unknown"})


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (5, "input"),
        ([5], "input[0]"),
        ([{}], "input[0].role"),
        ([{"type": 5}], "input[0].type"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "user", "content": None}], "input[0].content"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([{"role": "user", "content": "\ud800"}], "input[0].content"),
        ([user("x") | {"id": "x" * 129}], "input[0].id"),
        ([{"type": "web_seach_call", "id": "ws_1"}], "input[0].type"),
        ([{"type": "web_search_call", "id": 5}], "input[0].id"),
        ([WEATHER | {"arguments": {}}], "input[0].arguments"),
        ([WEATHER | {"call_id": ""}], "input[0].call_id"),
        ([{"type": "function_call_output"}], "input[0].output"),
        ([{"type": "custom_tool_call_output"}], "input[0].output"),
        ([PATCH | {"input": None}], "input[0].input"),
        ([RAIN], "input"),
        ([RAIN | {"call_id": ""}], "input"),
        ([RAIN | {"name": ""}], "input"),
        ([PATCHED | {"call_id": ""}], "input"),
        ([{"type": "reasoning", "summary": "text"}], "input[0].summary"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(value: object, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        conversation(identified(Input().read(value, "input"), unknown)[0])
    assert caught.value.param == param


def test_a_body_full_of_items_takes_no_time_that_grows_with_its_square() -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x" * 100}]}
    # If each item copied the turn it belongs to, this would copy 10**12 bytes and never end.
    n_items = 100_000
    (turn,) = conversation([*items(thought) * n_items, *items(WEATHER) * n_items])
    assert len(turn.tool_calls) == n_items


def test_the_schema_of_an_input_names_every_kind() -> None:
    text = json.dumps(Input().schema())
    for kind in ("message", "function_call", "function_call_output", "reasoning", "item_reference", "input_text"):
        assert f'"{kind}"' in text
