"""Families of models that write calls in their own way, with their own templates, from the request to the reply.

Each is a model of random weights with the template of its family: what it says, a grammar alone makes a call.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall
from tests.conversations import conversations
from tests.drawn_tools import drawn_tools
from tests.e2e.harness import CHAT, Json, Server, serving
from tests.e2e.processes import DEADLINE_S
from tests.real_templates import real_templates
from tests.rendering_oracle import ALL, NEEDS_TOOLS, rendered
from tests.tiny_models import write_tiny_bpe, write_tiny_model

N_CONVERSATIONS = 50
N_CALLS = int(os.environ.get("SHIMMY_TEST_CALLS", "3"))  # of each family
N_CUTS = int(os.environ.get("SHIMMY_TEST_CUTS", "4"))  # of one call of each family; many: behind each of its tokens
SPACE = "\u2581"  # as vocabularies of SentencePiece write a space: they cannot say the marks that have it
MARK_LENGTH = 26  # more than any mark behind a thought has: Solar Open writes `<|end|><|begin|>assistant`
N_WEIGHTS = 4  # to make random ones takes longer than to write them
# Their templates print the types of arguments and lose themselves in one that has none.
TYPED_ONLY = (
    *("CohereForAI-c4ai-command-r-plus-tool_use", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
)
# A budget of thinking ends the first of several thoughts, and random weights may begin another and find no end.
THINKS_AGAIN = ("muse-glimmer",)
# Names that say nothing: llama.cpp looks for some families' names and expects their vocabularies then.
MODELS = {family: f"family{number}" for number, family in enumerate(ALL)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("families")
    for number, family in enumerate(ALL):
        name, template = MODELS[family], real_templates()[family]
        if SPACE in template:
            write_tiny_bpe(folder, name, n_ctx_train=16384, chat_template=template)
        else:
            write_tiny_model(folder, name, n_ctx_train=16384, chat_template=template, seed=number % N_WEIGHTS)
    # Drafts change the shape of batches, and that the last bit of a number: a seed would not always give the same text.
    with serving(folder / "server", "--model-path", folder, "--no-speculation") as running:
        yield running


@pytest.fixture(scope="module", params=ALL)
def family(request: pytest.FixtureRequest) -> str:
    """Of the module, so that all tests of a family come one after the other: its model is loaded once."""
    name: str = request.param
    return name


def sent(turn: Message) -> Json:
    """A turn as clients of OpenAI's API send it."""
    message: Json = {"role": turn.role, "content": turn.content}
    if turn.reasoning_content is not None:
        message["reasoning_content"] = turn.reasoning_content
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    if turn.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    return message


def declared(tool: Tool) -> Json:
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}


def prompt_of(server: Server, family: str, prompt: ChatPrompt) -> str:
    body: Json = {
        "model": MODELS[family],
        "messages": [*map(sent, prompt.messages)],
        "tools": [*map(declared, prompt.tools)],
    }
    reply = server.post("/apply-template", body)
    assert reply.status == 200, reply.json()
    text: str = reply.json()["prompt"]
    return text


def test_prompts_are_what_transformers_renders(server: Server, family: str) -> None:
    n_compared = 0
    for prompt in conversations(11, N_CONVERSATIONS):
        expected = rendered(family, prompt)
        if expected is not None:
            assert prompt_of(server, family, prompt) == expected
            n_compared += 1
    assert n_compared >= N_CONVERSATIONS // 2


def choices_of(tools: list[Json], number: int) -> Json:
    """The fields that ask for calls, each way in its turn."""
    names = [tool["function"]["name"] for tool in tools]
    name = names[number % len(names)]
    one = {"type": "function", "function": {"name": name}}
    allowed = {"mode": "required", "tools": [one]}
    ways: tuple[Json, ...] = (
        {"tool_choice": "required", "parallel_tool_calls": True},
        {"tool_choice": "required", "parallel_tool_calls": False},
        {"tool_choice": one},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}, "parallel_tool_calls": False},
        # Any reply that is no call is `{}` then, and the model may choose.
        {"tool_choice": "auto", "response_format": {"type": "json_schema", "json_schema": NOTHING}},
    )
    return ways[number % len(ways)]


NOTHING: Json = {"name": "nothing", "strict": True, "schema": {"type": "object", "additionalProperties": False}}


def check_calls(choice: Json, body: Json) -> list[Json]:
    """The calls of a reply, after a look at all that has to hold for them."""
    calls: list[Json] = choice["message"].get("tool_calls") or []
    is_cut = choice["finish_reason"] == "length"
    if is_cut and body["model"] in {MODELS[family] for family in THINKS_AGAIN}:
        return []
    if is_cut:  # random weights find no end to their calls: the last is not whole
        assert body.get("parallel_tool_calls", True)
        calls = calls[:-1]
    if body["tool_choice"] == "auto" and not calls:
        assert choice["finish_reason"] == "stop"
        assert json.loads(choice["message"]["content"]) == {}
        return []
    assert calls
    assert is_cut or choice["finish_reason"] == "tool_calls"
    assert not (choice["message"]["content"] or "").strip()
    assert len({call["id"] for call in calls}) == len(calls)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in body["tools"]}
    wish = body["tool_choice"]
    if isinstance(wish, dict):
        named = wish["function"] if "function" in wish else wish["allowed_tools"]["tools"][0]["function"]
        assert {call["function"]["name"] for call in calls} == {named["name"]}
    if "function" in wish or not body.get("parallel_tool_calls", True):
        assert len(calls) == 1
    for call in calls:
        assert call["type"] == "function"
        assert call["id"]
        arguments = json.loads(call["function"]["arguments"])
        Draft202012Validator(schemas[call["function"]["name"]]).validate(arguments)
    return calls


def streamed(server: Server, body: Json) -> Json:
    """The choice of a streamed reply, put together from its deltas."""
    reply = server.request("POST", CHAT, body | {"stream": True}, deadline_s=4 * DEADLINE_S)
    lines = reply.body.decode().splitlines()
    assert "data: [DONE]" in lines, lines[-3:]
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    message: Json = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for choice in (choice for event in events for choice in event["choices"]):
        reason = choice["finish_reason"] or reason
        for name in ("content", "reasoning_content"):
            message[name] += choice["delta"].get(name) or ""
        for part in choice["delta"].get("tool_calls", []):
            if part["index"] == len(message["tool_calls"]):
                message["tool_calls"].append(
                    {"id": part["id"], "type": part["type"], "function": {"name": "", "arguments": ""}}
                )
            function = message["tool_calls"][part["index"]]["function"]
            for name in ("name", "arguments"):
                function[name] += part["function"].get(name) or ""
    return {"message": message, "finish_reason": reason}


def without_ids(choice: Json) -> Json:
    message = choice["message"]
    said = {name: message.get(name) or "" for name in ("content", "reasoning_content")}
    return {
        **said,
        "calls": [call["function"] for call in message.get("tool_calls") or []],
        "ends": choice["finish_reason"],
    }


def tools_for(family: str, seed: int) -> list[Json]:
    return drawn_tools(seed, are_typed=family in TYPED_ONLY)


def asked(family: str, seed: int) -> Json:
    return {
        "model": MODELS[family],
        "messages": [{"role": "user", "content": "hi"}],
        "thinking_budget_tokens": 4,
        "temperature": 1.2,
        "max_tokens": 1024,
        "seed": seed,
    }


@pytest.mark.timeout(60 + N_CALLS * 3)
def test_calls_are_forced_in_each_way(server: Server, family: str) -> None:
    first = ALL.index(family)  # so that a few calls of each are all ways together
    for number in range(first, first + N_CALLS):
        tools = tools_for(family, number)
        body = asked(family, number) | {"tools": tools, **choices_of(tools, number)}
        is_compared = number % 3 == 0
        body["cache_prompt"] = not is_compared
        reply = server.request("POST", CHAT, body, deadline_s=4 * DEADLINE_S)
        assert reply.status == 200, reply.json()
        assert not reply.json().get("warnings"), reply.json()["warnings"]
        (choice,) = reply.json()["choices"]
        check_calls(choice, body)
        if is_compared:
            whole = streamed(server, body)
            check_calls(whole, body)
            assert without_ids(whole) == without_ids(choice)


def check_beginning(whole: Json, cut: Json) -> None:
    """A reply that was cut short is the beginning of the whole, both as `without_ids` gives them. Thoughts may end with
    half of the mark behind them, as they might have gone on with the same letters."""
    assert not cut["content"]
    thoughts, all_thoughts = cut["reasoning_content"], whole["reasoning_content"]
    if not cut["calls"]:
        half = thoughts.removeprefix(all_thoughts).strip()
        assert all_thoughts.startswith(thoughts) or (half[0] in "<[" and len(half) < MARK_LENGTH)
        return
    *before, last = cut["calls"]
    *same_before, same = whole["calls"][: len(cut["calls"])]
    assert (before, last["name"], thoughts) == (same_before, same["name"], all_thoughts)
    assert same["arguments"].startswith(last["arguments"])


@pytest.mark.timeout(60 + N_CUTS * 2)
def test_a_call_that_is_cut_is_the_beginning_of_the_whole(server: Server, family: str) -> None:
    number = ALL.index(family)
    body = asked(family, number) | {"tools": tools_for(family, number), "tool_choice": "required"}
    body |= {"parallel_tool_calls": False, "cache_prompt": False}
    reply = server.request("POST", CHAT, body, deadline_s=4 * DEADLINE_S)
    (choice,) = reply.json()["choices"]
    check_calls(choice, body)
    whole, n_tokens = without_ids(choice), reply.json()["usage"]["completion_tokens"]
    lengths = sorted({n_tokens * part // (N_CUTS + 1) for part in range(1, N_CUTS + 1)} - {0, n_tokens})
    assert len(lengths) >= min(N_CUTS, n_tokens - 1)
    for n_most in lengths:
        short = body | {"max_tokens": n_most}
        if n_most % 2:
            cut = streamed(server, short)
        else:
            (cut,) = server.request("POST", CHAT, short, deadline_s=4 * DEADLINE_S).json()["choices"]
        assert cut["finish_reason"] == "length"
        check_beginning(whole, without_ids(cut))


def test_a_model_is_left_to_answer_and_is_told_no_tools_where_none_may_be_called(server: Server, family: str) -> None:
    tools = tools_for(family, 1)
    body = asked(family, 1) | {"tools": tools, "max_tokens": 6}
    for choice in ("auto", None):
        reply = server.post(CHAT, body | {"tool_choice": choice})
        assert reply.status == 200, reply.json()
        assert reply.json()["choices"][0]["finish_reason"] in {"length", "stop", "tool_calls"}
    if family not in NEEDS_TOOLS:
        untold = server.post(CHAT, body | {"tool_choice": "none"})
        assert untold.status == 200, untold.json()
        assert not untold.json()["choices"][0]["message"].get("tool_calls")
        without = server.post(CHAT, {name: value for name, value in body.items() if name != "tools"})
        assert untold.json()["usage"]["prompt_tokens"] == without.json()["usage"]["prompt_tokens"]


def test_a_reply_and_its_results_are_shown_as_the_template_wants_it(server: Server, family: str) -> None:
    tools = tools_for(family, 0)
    body = asked(family, 7) | {"tools": tools, "tool_choice": "required"}
    (choice,) = server.request("POST", CHAT, body, deadline_s=4 * DEADLINE_S).json()["choices"]
    check_calls(choice, body)
    said = choice["message"]
    calls = tuple(ToolCall(each["id"], **each["function"]) for each in said["tool_calls"])
    turn = Message("assistant", said["content"], tool_calls=calls, reasoning_content=said.get("reasoning_content"))
    results = [Message("tool", f"result {number}", tool_call_id=call.id) for number, call in enumerate(calls)]
    user, functions = Message("user", "hi"), [tool["function"] for tool in tools]
    offered = tuple(Tool(each["name"], each["description"], json.dumps(each["parameters"])) for each in functions)
    for further in ((), (Message("assistant", "Done."), Message("user", "Thanks!"))):
        prompt = ChatPrompt((user, turn, *results, *further), tools=offered)
        short = prompt
        if rendered(family, prompt) is None:  # Mistral's templates take ids of nine characters
            ids = {call.id: f"callid{number:03}" for number, call in enumerate(calls)}
            short_calls = tuple(replace(call, id=ids[call.id]) for call in calls)
            named = [replace(result, tool_call_id=ids[result.tool_call_id or ""]) for result in results]
            short = replace(prompt, messages=(user, replace(turn, tool_calls=short_calls), *named, *further))
        expected = rendered(family, short)
        assert expected is not None
        shown = prompt_of(server, family, short)
        assert shown == expected
        if short is not prompt:
            server_ids = prompt_of(server, family, prompt)
            assert len(server_ids) == len(expected)
