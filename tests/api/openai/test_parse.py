"""Request bodies to GenerateRequest: every field good and bad, and the words of the refusals."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import fields, replace
from math import inf
from random import Random

import pytest

from shimmy import config
from shimmy.api.body import decode_object
from shimmy.api.openai.parse import CHAT, COMPLETION, PROMPT, JobsOfBody, ReplyOptions, chat_call, completion_call
from shimmy.api.request_fields.field_kinds import NotServed, Record
from shimmy.api.request_fields.job import SAMPLING
from shimmy.errors import BadRequest
from shimmy.messages.model_info import ModelDefaults
from shimmy.messages.request import (
    ChatPrompt,
    FillPrompt,
    GenerateRequest,
    Grammar,
    GrammarKind,
    Message,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolChoice,
)

CONFIG = config.load({}, {})
TURN = {"role": "user", "content": "hi"}


def chat(**body: object) -> GenerateRequest:
    """The one job of a chat."""
    (job,) = chat_call({"model": "m", "messages": [TURN]} | body, CONFIG).jobs
    return job


def completion(**body: object) -> GenerateRequest:
    """The one job of a completion."""
    (job,) = completion_call({"model": "m", "prompt": "hi"} | body, CONFIG).jobs
    return job


def message(turn: object) -> Message:
    prompt = chat(messages=[TURN, turn]).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages[1]


def refusal(**body: object) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        chat(**body)
    return caught.value


def test_a_plain_chat_takes_every_default() -> None:
    assert chat() == GenerateRequest("m", ChatPrompt((Message("user", "hi"),)), CONFIG.sampling)


def test_sampling_fields_are_exactly_those_of_sampling_params() -> None:
    assert set(SAMPLING) == {field.name for field in fields(SamplingParams)}


@pytest.mark.parametrize(
    ("name", "written", "read"),
    [
        ("seed", 7, 7),
        ("seed", -1, None),
        ("seed", -2, 2**32 - 2),
        ("seed", 2**80 + 5, 5),
        ("temperature", 0, 0.0),
        ("temperature", 2.5, 2.5),
        ("dynatemp_range", 0.5, 0.5),
        ("dynatemp_exponent", 2, 2.0),
        ("top_k", 0, 0),
        ("top_p", 0.5, 0.5),
        ("min_p", 0, 0.0),
        ("typical_p", 0.9, 0.9),
        ("top_n_sigma", -1, -1.0),
        ("min_keep", 2, 2),
        ("repeat_last_n", -1, -1),
        ("repeat_penalty", 1.1, 1.1),
        ("presence_penalty", -2, -2.0),
        ("frequency_penalty", 2, 2.0),
        ("dry_multiplier", 0.8, 0.8),
        ("dry_base", 2, 2.0),
        ("dry_allowed_length", 3, 3),
        ("dry_penalty_last_n", 64, 64),
        ("dry_sequence_breakers", ["\n", "é"], ("\n", "é")),
        ("xtc_probability", 0.5, 0.5),
        ("xtc_threshold", 0.2, 0.2),
        ("mirostat", 2, 2),
        ("mirostat_tau", 4, 4.0),
        ("mirostat_eta", 0.2, 0.2),
        ("logit_bias", {"5": 1, "6": -100}, ((5, 1.0), (6, -inf))),
        ("logit_bias", [[5, -1.5], [6, False]], ((5, -1.5), (6, -inf))),
        ("logit_bias", {}, ()),
        ("ignore_eos", True, True),
    ],
)
def test_sampling_fields_are_honoured(name: str, written: object, read: object) -> None:
    for request in (chat(**{name: written}), completion(**{name: written})):
        value = getattr(request.sampling, name)
        assert value == read
        assert type(value) is type(read)


@pytest.mark.parametrize(
    ("given", "penalty", "window"),
    [
        ({"repetition_penalty": 1.5}, 1.5, -1),
        ({"repetition_penalty": 1.5, "repeat_last_n": 8}, 1.5, 8),
        ({"repetition_penalty": 1.5, "repeat_penalty": 1.1}, 1.1, 64),
        ({"repeat_penalty": 1.1}, 1.1, 64),
    ],
)
def test_a_repetition_penalty_goes_by_the_whole_context(given: dict[str, object], penalty: float, window: int) -> None:
    for request in (chat(**given), completion(**given)):
        assert (request.sampling.repeat_penalty, request.sampling.repeat_last_n) == (penalty, window)
    assert refusal(repetition_penalty=0).param == "repetition_penalty"


BROUGHT = ModelDefaults((("temperature", 0.3), ("seed", 4)), n_predict=9, stop=("END",), system="Be brief.")


def test_what_a_model_brings_holds_where_nobody_says_otherwise() -> None:
    body: dict[str, object] = {"model": "m", "messages": [TURN]}
    system = Message("system", "Be brief.")
    (brought,) = chat_call(body, CONFIG, BROUGHT).jobs
    assert brought == GenerateRequest(
        "m",
        ChatPrompt((system, Message("user", "hi"))),
        SamplingParams(temperature=0.3, seed=4),
        n_predict=9,
        stop=("END",),
    )
    (text,) = completion_call({"model": "m", "prompt": "hi"}, CONFIG, BROUGHT).jobs
    assert text == replace(brought, prompt=TextPrompt("hi"))
    (other,) = chat_call(body | {"temperature": 1, "max_tokens": 5, "stop": [], "seed": -1}, CONFIG, BROUGHT).jobs
    assert (other.sampling, other.n_predict, other.stop) == (SamplingParams(temperature=1), 5, ())
    assert chat_call(body | {"max_tokens": -1}, CONFIG, BROUGHT).jobs[0].n_predict is None
    server = config.load({"temp": "0.8", "n_predict": "7"}, {})
    (job,) = chat_call(body, server, BROUGHT).jobs
    assert (job.sampling, job.n_predict) == (SamplingParams(temperature=0.8, seed=4), 7)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_conversation_keeps_its_own_system_message(role: str) -> None:
    own = {"role": role, "content": "Be long."}
    for messages in ([own, TURN], [TURN, own]):
        prompt = chat_call({"model": "m", "messages": messages}, CONFIG, BROUGHT).jobs[0].prompt
        assert prompt == chat(messages=messages).prompt


def test_the_servers_defaults_hold_where_a_field_is_null_or_missing() -> None:
    own = replace(CONFIG, sampling=SamplingParams(seed=42, temperature=0.2), n_predict=9)
    body: dict[str, object] = {"model": "m", "prompt": "hi", "seed": None, "top_k": 3, "max_tokens": None}
    (request,) = completion_call(body, own).jobs
    assert request.sampling == SamplingParams(seed=42, temperature=0.2, top_k=3)
    assert request.n_predict == 9
    (request,) = completion_call(body | {"seed": -1, "n_predict": -1}, own).jobs
    assert (request.sampling.seed, request.n_predict) == (None, None)


NUMBERS = [name for name, kind in SAMPLING.items() if type(kind).__name__ == "Number"]
INTEGERS = [name for name, kind in SAMPLING.items() if type(kind).__name__ == "Integer"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("1", "expected a number, got a string"),
        (True, "expected a number, got a boolean"),
        ([1], "expected a number, got an array"),
        ({}, "expected a number, got an object"),
        (inf, "expected a number .*, got inf"),
        (1e39, r"expected a number .*, got 1e\+39"),
        (10**400, f"expected a number .*, got 1{'0' * 39}"),
    ],
)
def test_a_number_must_be_one(name: str, value: object, complaint: str) -> None:
    error = refusal(**{name: value})
    assert re.fullmatch(f"{name}: {complaint}", error.message)
    assert error.param == name


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("temperature", 101, "expected a number not above 100, got 101"),
        ("top_p", 1.01, "expected a number from 0 to 1, got 1.01"),
        ("min_p", -0.01, "expected a number from 0 to 1, got -0.01"),
        ("mirostat", 3, "expected an integer from 0 to 2, got 3"),
        ("repeat_last_n", -2, "expected an integer from -1 to 1000000, got -2"),
    ],
)
def test_a_number_must_be_one_that_llama_cpp_can_take(name: str, value: float, complaint: str) -> None:
    assert refusal(**{name: value}).message == f"{name}: {complaint}"


@pytest.mark.parametrize("name", [*INTEGERS, "max_tokens", "max_completion_tokens", "n_predict"])
@pytest.mark.parametrize("value", ["1", 1.5, 1.0, True, [], {}, 2**31, -(2**31) - 1])
def test_an_integer_must_be_one_of_32_bits(name: str, value: object) -> None:
    error = refusal(**{name: value})
    assert error.message.startswith(f"{name}: expected an integer")
    assert error.param == name


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"seed": 1.5}, "seed: expected an integer, got a number"),
        ({"seed": "1"}, "seed: expected an integer, got a string"),
        ({"top_k": 1.5}, "top_k: expected an integer, got 1.5"),
        ({"max_tokens": -2}, "max_tokens: expected an integer from -1 to 2147483647, got -2"),
        ({"ignore_eos": 1}, "ignore_eos: expected a boolean, got a number"),
        ({"keep_alive": "soon"}, "keep_alive: expected seconds, or a text like `10m`, got 'soon'"),
        ({"keep_alive": [1]}, "keep_alive: expected a number, got an array"),
        ({"cache_prompt": "yes"}, "cache_prompt: expected a boolean, got a string"),
        ({"stop": 5}, "stop: expected a string or an array of strings, got a number"),
        ({"stop": ["a", None]}, "stop[1]: expected a string, got null"),
        ({"stop": ["a"] * 65}, "stop: expected at most 64 strings, got 65"),
        ({"stop": "\ud800"}, "stop: expected Unicode text, got a lone surrogate"),
        ({"dry_sequence_breakers": "a"}, "dry_sequence_breakers: expected an array of strings, got a string"),
        ({"logit_bias": 1}, "logit_bias: expected an object or an array of [token id, bias] pairs, got a number"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a: expected a token id, got a string"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1: expected a token id, got a string"),
        ({"logit_bias": {"5": None}}, "logit_bias.5: expected a number, got null"),
        ({"logit_bias": {"5": True}}, "logit_bias.5: expected a number, got a boolean"),
        ({"logit_bias": [[1]]}, "logit_bias[0]: expected a [token id, bias] pair, got 1 values"),
        ({"logit_bias": [["a", 1]]}, "logit_bias[0]: expected a token id, got a string"),
        ({"logit_bias": [[2**31, 1]]}, "logit_bias[0]: expected a token id, got 2147483648"),
        ({"logit_bias": [5]}, "logit_bias[0]: expected a [token id, bias] pair, got a number"),
        ({"model": None}, "model: expected the name of a model, got nothing"),
        ({"model": 5}, "model: expected a string, got a number"),
        ({"messages": None}, "messages: expected an array of messages, got null"),
        ({"messages": []}, "messages: expected an array of messages, got an empty one"),
        ({"messages": {}}, "messages: expected an array of messages, got an object"),
        ({"add_generation_prompt": 1}, "add_generation_prompt: expected a boolean, got a number"),
    ],
)
def test_a_refusal_names_the_field_what_was_expected_and_what_came(body: dict[str, object], complaint: str) -> None:
    error = refusal(**body)
    assert error.message == complaint
    assert error.param == complaint.partition(":")[0]


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_required_field_that_is_missing_is_named(name: str) -> None:
    body: dict[str, object] = {"model": "m", "messages": [TURN]}
    del body[name]
    with pytest.raises(BadRequest, match="got nothing") as caught:
        chat_call(body, CONFIG)
    assert caught.value.param == name


def test_limits_and_their_precedence() -> None:
    assert chat(max_tokens=5).n_predict == 5
    assert chat(n_predict=0).n_predict == 0
    assert chat(n_predict=-1).n_predict is None
    assert chat(n_predict=3, max_tokens=5, max_completion_tokens=7).n_predict == 7
    assert refusal(max_completion_tokens=7, max_tokens="x").param == "max_tokens"


def test_stop_is_a_string_or_several() -> None:
    assert chat(stop="END").stop == ("END",)
    assert chat(stop=["a", "é"]).stop == ("a", "é")
    assert chat(stop=[]).stop == chat(stop=None).stop == chat(stop="").stop == chat(stop=["", ""]).stop == ()
    assert chat(stop=["", "a"]).stop == ("a",)


def test_cache_prompt_is_honoured() -> None:
    assert chat().cache_prompt
    assert not chat(cache_prompt=False).cache_prompt


def test_verbosity_is_a_variable_of_the_template_and_a_search_of_the_web_is_none() -> None:
    assert json.loads(chat_prompt(verbosity="high").template_arguments) == {"verbosity": "high"}
    assert options(web_search_options={}).warnings == ("web_search_options: this server does not search the web",)
    assert refusal(verbosity="loud").message == 'verbosity: expected one of low, medium, high, got "loud"'


def test_thinking_is_switched_by_the_names_of_other_servers() -> None:
    def variables(**fields: object) -> object:
        return json.loads(chat_prompt(**fields).template_arguments)

    assert variables(enable_thinking=False) == {"enable_thinking": False}
    assert variables(reasoning={"effort": "low", "exclude": True}) == {"reasoning_effort": "low"}
    assert variables(reasoning={"enabled": False}) == {"enable_thinking": False}
    assert variables(reasoning={"effort": "low"}, reasoning_effort="high") == {"reasoning_effort": "high"}
    assert variables(enable_thinking=False, chat_template_kwargs={"enable_thinking": True}) == {"enable_thinking": True}


def test_unknown_fields_and_those_without_effect_are_ignored() -> None:
    assert chat(user="u", metadata={}, store=True, service_tier="auto", parallel_tool_calls=True, foo=[1]) == chat()


@pytest.mark.parametrize(
    ("read", "name", "kind"),
    [
        (read, name, kind)
        for read, record in ((chat, CHAT), (completion, COMPLETION))
        for name, kind in record.fields.items()
        if isinstance(kind, NotServed)
    ],
)
def test_a_field_that_is_not_served_is_refused_unless_it_asks_for_nothing(
    read: Callable[..., GenerateRequest], name: str, kind: NotServed
) -> None:
    for idle in (None, *kind.idle):
        assert read(**{name: idle}) == read()
    for active in (2, True, "x", ["x"], {"x": 1}):
        with pytest.raises(BadRequest) as caught:
            read(**{name: active})
        assert caught.value.message.startswith(f"{name}: this value is not supported; leave the field out")
        assert caught.value.param == name


def test_a_boolean_does_not_pass_for_a_number_nor_a_number_for_a_boolean() -> None:
    assert refusal(n=True).param == "n"
    assert refusal(logprobs=0).param == "logprobs"
    assert refusal(best_of=True).param == "best_of"


@pytest.mark.parametrize(
    ("turn", "read"),
    [
        ({"role": "system", "content": "s"}, Message("system", "s")),
        ({"role": "developer", "content": "s"}, Message("developer", "s")),
        ({"role": "user", "content": "", "name": "Ann"}, Message("user", "", name="Ann")),
        ({"role": "user", "content": []}, Message("user", "")),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            Message("user", "a\nb"),
        ),
        (
            {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "function_call": None},
            Message("assistant", "a"),
        ),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "r", "tool_calls": []},
            Message("assistant", "a", reasoning_content="r"),
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            Message("assistant", None, tool_calls=(ToolCall("1", "f", "{}"),)),
        ),
        ({"role": "tool", "content": "42", "tool_call_id": "1"}, Message("tool", "42", tool_call_id="1")),
        ({"role": "function", "content": "42", "name": "f"}, Message("tool", "42", name="f")),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            Message("assistant", None, tool_calls=(ToolCall("", "f", "{}"),)),
        ),
        ({"role": "assistant", "content": None, "refusal": "No."}, Message("assistant", "No.")),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, Message("assistant", "No.")),
        ({"role": "assistant", "reasoning_content": "Hm."}, Message("assistant", None, reasoning_content="Hm.")),
        ({"role": "assistant", "content": None}, Message("assistant", "")),
        (
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "output_text", "text": "a"}],
            },
            Message("assistant", "a"),
        ),
        ({"role": "user", "content": [{"type": "input_text", "text": "a"}]}, Message("user", "a")),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"a": [1]}}}]},
            Message("assistant", None, tool_calls=(ToolCall("c", "f", '{"a":[1]}'),)),
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
            Message("assistant", None, tool_calls=(ToolCall("c", "f", ""),)),
        ),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": None}},
            Message("assistant", None, tool_calls=(ToolCall("", "f", ""),)),
        ),
        ({"role": "assistant", "content": [], "tool_calls": []}, Message("assistant", "")),
        ({"role": "tool", "content": None, "tool_call_id": "c"}, Message("tool", "", tool_call_id="c")),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": 'a "é"'}}],
            },
            Message("assistant", None, tool_calls=(ToolCall("c", "f", '{"input": "a \\"é\\""}'),)),
        ),
        (
            {
                "role": "tool",
                "tool_call_id": "c",
                "content": [
                    {"type": "text", "text": "seen:", "cache_control": {"type": "ephemeral"}},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
            Message("tool", "seen:\n[a picture, which this model cannot see]", tool_call_id="c"),
        ),
        (
            {"role": "tool", "content": [{"type": "x"}]},
            Message("tool", "[a part of type x, which this model cannot see]"),
        ),
    ],
)
def test_messages_are_read(turn: object, read: Message) -> None:
    assert message(turn) == read


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [
        ("hi", ": expected a message object, got a string"),
        ({"content": "a"}, ".role: expected a string, got nothing"),
        ({"role": None, "content": "a"}, ".role: expected a string, got null"),
        ({"role": ["user"], "content": "a"}, ".role: expected a string, got an array"),
        (
            {"role": "king", "content": "a"},
            '.role: expected one of system, developer, user, assistant, tool, function, got "king"',
        ),
        ({"role": "user", "content": 5}, ".content: expected a string or an array of parts, got a number"),
        ({"role": "user"}, ".content: expected a string or an array of parts, got null"),
        ({"role": "system", "content": None}, ".content: expected a string or an array of parts, got null"),
        ({"role": "user", "content": "\udc00"}, ".content: expected Unicode text, got a lone surrogate"),
        ({"role": "user", "content": ["a"]}, ".content[0]: expected a part object, got a string"),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text: expected a string, got null"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            '.content[0]: parts of type "image_url" are not supported',
        ),
        ({"role": "user", "content": "a", "name": 5}, ".name: expected a string, got a number"),
        ({"role": "tool", "content": "a", "tool_call_id": 5}, ".tool_call_id: expected a string, got a number"),
        ({"role": "assistant", "tool_calls": 5}, ".tool_calls: expected an array, got a number"),
        ({"role": "assistant", "tool_calls": [5]}, ".tool_calls[0]: expected an object, got a number"),
        (
            {"role": "assistant", "tool_calls": [{"type": "mcp", "function": {"name": "f", "arguments": ""}}]},
            '.tool_calls[0].type: expected "function", got "mcp"',
        ),
        (
            {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f"}}]},
            ".tool_calls[0].custom.input: expected a string, got nothing",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": []}}]},
            ".tool_calls[0].function.arguments: expected a string of JSON, got an array",
        ),
        (
            {"role": "assistant", "content": "a", "function_call": {"arguments": "{}"}},
            ".function_call.name: expected a string, got nothing",
        ),
        ({"role": "assistant", "content": [{"type": "refusal"}]}, ".content[0].refusal: expected a string, got null"),
        ({"role": "assistant", "content": None, "refusal": 1}, ".refusal: expected a string, got a number"),
    ],
)
def test_a_bad_message_is_refused_by_its_path(turn: object, complaint: str) -> None:
    error = refusal(messages=[TURN, turn])
    assert error.message == f"messages[1]{complaint}"
    assert error.param == error.message.partition(": ")[0]


def test_a_prompt_is_text_or_token_ids() -> None:
    assert completion(prompt="").prompt == TextPrompt("")
    assert completion(prompt=["a"]).prompt == TextPrompt("a")
    assert completion(prompt=[1, 0, 2]).prompt == completion(prompt=[[1, 0, 2]]).prompt == TokenPrompt((1, 0, 2))


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (None, f"prompt: expected {PROMPT}, got null"),
        ({}, f"prompt: expected {PROMPT}, got an object"),
        ([], f"prompt: expected {PROMPT}, got an empty array"),
        ([[]], "prompt[0]: expected a string or an array of token ids, got an empty array"),
        (["a", 5], "prompt[1]: expected a string or an array of token ids, got a number"),
        (["a"] * 257, "prompt: expected at most 256 prompts, got 257"),
        ([[["a"]]], "prompt[0][0]: expected an integer, got an array"),
        ([1, "a"], "prompt[1]: expected an integer, got a string"),
        ([1, -1], "prompt[1]: expected an integer from 0 to 2147483647, got -1"),
        ([1, True], "prompt[1]: expected an integer, got a boolean"),
    ],
)
def test_a_bad_prompt_is_refused(prompt: object, complaint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        completion(prompt=prompt)
    assert caught.value.message == complaint


def options(**body: object) -> ReplyOptions:
    return chat_call({"model": "m", "messages": [TURN]} | body, CONFIG).options


def text_call(**body: object) -> JobsOfBody:
    return completion_call({"model": "m", "prompt": "hi"} | body, CONFIG)


def text_refusal(**body: object) -> str:
    with pytest.raises(BadRequest) as caught:
        text_call(**body)
    assert caught.value.param is not None
    assert caught.value.message.startswith(f"{caught.value.param}: ")
    return caught.value.message


def test_reply_options() -> None:
    assert options() == ReplyOptions()
    asked = options(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert asked == ReplyOptions(stream=True, include_usage=True)
    assert options(stream=True, stream_options={"include_usage": None}) == ReplyOptions(stream=True)
    assert not options(reasoning_format="none").splits_reasoning
    assert options(reasoning_format="auto").splits_reasoning
    for body, param in (
        ({"stream": "true"}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"reasoning_format": "deepseek-legacy"}, "reasoning_format"),
    ):
        assert refusal(**body).param == param


def test_prompts_times_choices_are_jobs() -> None:
    call = text_call(prompt=["a", [1, 2]], n=2, seed=2**32 - 1)
    assert [(job.prompt, job.sampling.seed) for job in call.jobs] == [
        (TextPrompt("a"), 2**32 - 1),
        (TextPrompt("a"), 0),
        (TokenPrompt((1, 2)), 2**32 - 1),
        (TokenPrompt((1, 2)), 0),
    ]
    assert (call.options.n, call.options.best_of) == (2, 2)
    chats = chat_call({"model": "m", "messages": [TURN], "n": 3}, CONFIG)
    assert chats.jobs == (chat(),) * 3, "each draws a seed of its own"
    assert chats.options.n == 3


def test_best_of_asks_for_the_probabilities_it_chooses_by() -> None:
    call = text_call(n=2, best_of=3)
    assert [job.n_logprobs for job in call.jobs] == [0, 0, 0]
    assert (call.options.n, call.options.best_of, call.options.n_logprobs) == (2, 3, None)
    assert text_call(best_of=3, logprobs=4).jobs[0].n_logprobs == 4
    assert text_call(n=2, best_of=2).jobs[0].n_logprobs is None


def test_log_probabilities_are_asked_for_in_two_ways() -> None:
    for n_logprobs, body in (
        (None, {}),
        (None, {"logprobs": False, "top_logprobs": 0}),
        (0, {"logprobs": True}),
        (20, {"logprobs": True, "top_logprobs": 20}),
        (3, {"n_probs": 3}),
        (3, {"n_probs": 3, "logprobs": True}),
        (2, {"n_probs": 3, "logprobs": True, "top_logprobs": 2}),
        (None, {"n_probs": 0}),
    ):
        assert chat(**body).n_logprobs == options(**body).n_logprobs == n_logprobs
    for n_logprobs, body in (
        (None, {}),
        (0, {"logprobs": 0}),
        (5, {"logprobs": 5}),
        (3, {"n_probs": 3}),
        (3, {"n_probs": 3, "logprobs": 5}),
    ):
        assert completion(**body).n_logprobs == text_call(**body).options.n_logprobs == n_logprobs
    assert refusal(top_logprobs=2).message == "logprobs: expected true where there is top_logprobs, got nothing"
    assert refusal(logprobs=False, top_logprobs=2).message.endswith("got false")
    assert refusal(logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert text_refusal(logprobs=21) == "logprobs: expected an integer from 0 to 20, got 21"


def test_echo_and_the_gap_before_a_suffix() -> None:
    assert completion(echo=True).echo
    assert completion(suffix=" b").prompt == FillPrompt("hi", " b")
    assert completion(suffix="").prompt == TextPrompt("hi")
    assert [job.prompt for job in text_call(prompt=["a", "b"], suffix="c").jobs] == [
        FillPrompt("a", "c"),
        FillPrompt("b", "c"),
    ]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"echo": True, "suffix": "x"}, "suffix: cannot be combined with echo; leave one of them out"),
        ({"prompt": [1], "suffix": "x"}, "prompt: expected text where there is a suffix, got token ids"),
        ({"n": 3, "best_of": 2}, "best_of: expected an integer not below n, which is 3, got 2"),
        ({"best_of": 2, "stream": True}, "best_of: cannot be combined with stream; leave one of them out"),
        ({"prompt": ["a"] * 100, "n": 3}, "prompt: expected at most 256 prompts times choices, got 300"),
        ({"n": 0}, "n: expected an integer from 1 to 128, got 0"),
        ({"n": 129}, "n: expected an integer from 1 to 128, got 129"),
        ({"echo": 1}, "echo: expected a boolean, got a number"),
    ],
)
def test_what_cannot_be_honoured_together_is_refused(body: dict[str, object], complaint: str) -> None:
    assert text_refusal(**body) == complaint


def chat_prompt(**body: object) -> ChatPrompt:
    prompt = chat(**body).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


def test_reasoning_is_steered_by_effort_arguments_and_budget() -> None:
    assert chat_prompt(reasoning_effort="none").template_arguments == '{"enable_thinking":false}'
    assert chat_prompt(reasoning_effort="high").template_arguments == '{"reasoning_effort":"high"}'
    own = {"enable_thinking": True, "é": [1]}
    both = chat_prompt(reasoning_effort="none", chat_template_kwargs=own)
    assert both.template_arguments == '{"enable_thinking":true,"é":[1]}'
    assert chat_prompt(chat_template_kwargs={}).template_arguments == "{}"
    for name in ("reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget"):
        assert chat(**{name: 0}).n_thinking == 0
        assert chat(**{name: -1}).n_thinking is None
        assert refusal(**{name: -2}).param == name
    assert refusal(reasoning_effort="huge").param == "reasoning_effort"
    assert refusal(chat_template_kwargs=[]).param == "chat_template_kwargs"
    assert refusal(chat_template_kwargs={"a": "\ud800"}).param == "chat_template_kwargs"


CALLING = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
OWN = {"role": "assistant", "content": "Once upon"}


@pytest.mark.parametrize(
    ("body", "is_continued", "has_generation_prompt"),
    [
        ({"messages": [TURN]}, False, True),
        ({"messages": [TURN], "add_generation_prompt": False}, False, False),
        ({"messages": [TURN, OWN]}, True, False),
        ({"messages": [TURN, OWN], "continue_final_message": True}, True, False),
        ({"messages": [TURN, OWN], "continue_final_message": True, "add_generation_prompt": False}, True, False),
        ({"messages": [TURN, OWN], "continue_final_message": False}, False, True),
        ({"messages": [TURN, OWN], "add_generation_prompt": True}, False, True),
        ({"messages": [TURN, OWN], "add_generation_prompt": False}, False, False),
    ],
)
def test_a_reply_goes_on_with_the_assistants_last_words(
    body: dict[str, object], is_continued: bool, has_generation_prompt: bool
) -> None:
    prompt = chat_prompt(**body)
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (is_continued, has_generation_prompt)


def test_only_words_of_the_assistants_can_be_gone_on_with() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    for messages in ([TURN], [TURN, call]):
        error = refusal(messages=messages, continue_final_message=True)
        assert error.param == "continue_final_message"
    assert not chat_prompt(messages=[TURN, call]).continue_final_message
    error = refusal(messages=[TURN, OWN], continue_final_message=True, add_generation_prompt=True)
    assert error.message.startswith("continue_final_message: cannot be combined with add_generation_prompt")


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "f"}}
READ_TOOL = Tool("f", "d", '{"type":"object"}')


def test_tools_reach_the_prompt() -> None:
    prompt = chat_prompt(tools=[TOOL], parallel_tool_calls=False)
    assert (prompt.tools, prompt.tool_choice) == ((READ_TOOL,), ToolChoice(parallel=False))
    assert chat_prompt(tools=[TOOL], tool_choice="none") == chat_prompt(tools=[]) == chat_prompt()
    named = chat_prompt(tools=[TOOL], tool_choice=NAMED)
    assert named.tool_choice == ToolChoice(required=True, name="f")
    assert not options(tools=[TOOL]).is_legacy


def test_functions_are_tools_without_parallel_calls() -> None:
    functions = [TOOL["function"]]
    prompt = chat_prompt(functions=functions)
    assert (prompt.tools, prompt.tool_choice) == ((READ_TOOL,), ToolChoice(parallel=False))
    assert chat_prompt(functions=functions, function_call="none") == chat_prompt(functions=[]) == chat_prompt()
    named = chat_prompt(functions=functions, function_call={"name": "f"})
    assert named.tool_choice == ToolChoice(required=True, name="f", parallel=False)
    assert options(functions=functions).is_legacy
    assert refusal(functions=functions, tools=[TOOL]).param == "functions"
    assert refusal(functions=functions, function_call={"name": "g"}).param == "function_call"


def test_a_grammar_reaches_chats_and_completions() -> None:
    for job in (chat(grammar="root ::= x"), completion(grammar="root ::= x")):
        assert job.grammar == Grammar(GrammarKind.GBNF, "root ::= x")
    assert chat(response_format={"type": "text"}) == chat()
    assert refusal(grammar="x", response_format={"type": "json_object"}).param == "grammar"


def test_what_a_worker_objects_to_has_a_name() -> None:
    assert chat(tools=[TOOL]).constrained_by == "tools"
    assert chat(functions=[TOOL["function"]]).constrained_by == "functions"
    assert chat(tools=[TOOL], guided_regex="a").constrained_by == "guided_regex"
    assert chat(tools=[], response_format={"type": "text"}).constrained_by is None


ANYTHING: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**70, 0.5, "", "x", "auto", "function", "json_schema", "\ud800", "[[[["),
    *([], {}, [[]], [{}], ["x"], [1], {"type": "function"}, {"type": "json_schema"}, {"name": "f"}),
)


def scrambled(value: object, dice: Random) -> object:
    """`value` with something else here and there."""
    if dice.random() < 0.03:
        return dice.choice(ANYTHING)
    if isinstance(value, dict):
        return {name: scrambled(item, dice) for name, item in value.items() if dice.random() < 0.98}
    return [scrambled(item, dice) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("read", "record", "sound"),
    [
        (chat_call, CHAT, {"messages": [TURN, CALLING, OWN], "tools": [TOOL], "tool_choice": NAMED}),
        (completion_call, COMPLETION, {"prompt": ["a", [1]], "echo": True, "n": 2}),
    ],
)
def test_any_body_is_read_or_refused(read: Callable[..., JobsOfBody], record: Record, sound: dict[str, object]) -> None:
    """A thousand bodies that are wrong in some place or none: a refusal names a field."""
    dice, n_read, refusals = Random(5), 0, list[BadRequest]()
    for _ in range(1000):
        wrong = {name: scrambled(value, dice) for name, value in (sound | {"model": "m"}).items()}
        wrong[dice.choice(list(record.fields))] = dice.choice(ANYTHING)
        try:
            read(wrong, CONFIG)
        except BadRequest as error:
            refusals.append(error)
        else:
            n_read += 1
    assert min(n_read, len(refusals)) > 50
    for refused in refusals:
        assert refused.message.startswith(f"{refused.param}: ")


def test_the_tables_can_be_written_down_as_json_schema() -> None:
    for record in (CHAT, COMPLETION):
        schema = json.loads(json.dumps(record.schema()))
        assert schema["properties"].keys() == record.fields.keys()
        assert schema["required"] == list(record.required)
    messages = CHAT.schema()["properties"]["messages"]  # type: ignore[index] # it is an object
    assert (messages["type"], messages["minItems"], messages["items"]["required"]) == ("array", 1, ["role"])


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "the body is not valid JSON"),
        (b"{", "the body is not valid JSON"),
        (b"\xff{}", "the body is not UTF-8 text: byte 0 is wrong"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "a number of more than 400 characters"),
        (b"[]", "the body: expected an object, got an array"),
        (b"null", "the body: expected an object, got null"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, complaint: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_object(body)
    assert complaint in caught.value.message


def test_the_last_of_two_equal_keys_counts() -> None:
    assert decode_object(b'{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize(
    ("given", "read"), [("10m", 600), ("90s", 90), (30, 30), (0, 0), (-1, math.inf), ("-1", math.inf), (None, None)]
)
def test_keep_alive_is_a_number_of_seconds_or_a_text(given: object, read: float | None) -> None:
    assert chat(keep_alive=given).keep_alive_s == read
    assert chat().keep_alive_s is None


def test_lora_is_llama_servers_array() -> None:
    assert chat(lora=[{"id": 2, "scale": 0.5}, {"id": 0, "scale": -1, "more": 1}]).lora == ((2, 0.5), (0, -1.0))
    assert completion(prompt="p", lora=[{"id": 0, "scale": 0}]).lora == ((0, 0.0),)
    assert chat(lora=None).lora is chat(lora=[]).lora is chat().lora is None


@pytest.mark.parametrize(
    ("lora", "complaint"),
    [
        ({}, "lora: expected an array of objects with id and scale, got an object"),
        ([{"id": 0, "scale": 1}, 5], "lora[1]: expected an object with id and scale, got a number"),
        ([{"id": 0}], "lora[0].scale: expected a number, got null"),
        ([{"id": 0, "scale": "1"}], "lora[0].scale: expected a number, got a string"),
        ([{"id": 0, "scale": True}], "lora[0].scale: expected a number, got a boolean"),
        ([{"id": 0, "scale": math.nan}], "lora[0].scale: expected a finite number, got nan"),
        ([{"id": 0, "scale": 100.5}], "lora[0].scale: expected a number from -100 to 100, got 100.5"),
        ([{"scale": 1}], "lora[0].id: expected an integer, got null"),
        ([{"id": -1, "scale": 1}], "lora[0].id: expected an integer from 0 to 2147483647, got -1"),
        ([{"id": 1.0, "scale": 1}], "lora[0].id: expected an integer, got 1.0"),
        ([{"id": 0, "scale": 1}] * 257, "lora: expected at most 256 adapters, got 257"),
    ],
)
def test_a_bad_lora_is_refused_by_its_path(lora: object, complaint: str) -> None:
    error = refusal(lora=lora)
    assert error.message == complaint
    assert error.param == complaint.partition(":")[0]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"stop": ["x" * 9000, "y" * 9000]}, "stop: expected strings of at most 16384 characters together, got 18000"),
        ({"stop": "x" * 16_385}, "stop: expected strings of at most 16384 characters together, got 16385"),
        (
            {"logit_bias": {str(token): 1 for token in range(65_537)}},
            "logit_bias: expected at most 65536 biases, got 65537",
        ),
        ({"logit_bias": [[1, 1]] * 65_537}, "logit_bias: expected at most 65536 biases, got 65537"),
        ({"messages": [TURN] * 16_385}, "messages: expected at most 16384 messages, got 16385"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}] * 4097}]},
            "messages[0].content: expected at most 4096 parts, got 4097",
        ),
        ({"grammar": "x" * (2**20 + 1)}, "grammar: expected at most 1048576 characters, got 1048577"),
        ({"choice": ["x" * 300_000]}, "choice: expected strings of at most 262144 characters together, got 300000"),
    ],
    ids=["stops", "stop", "biases", "bias-pairs", "messages", "parts", "grammar", "choices"],
)  # fmt: skip
def test_there_are_bounds_on_how_much_of_something_a_body_has(fields: dict[str, object], complaint: str) -> None:
    error = refusal(**fields)
    assert error.message == complaint
    assert error.param == complaint.partition(":")[0]


def test_a_million_token_ids_are_read_and_a_wrong_one_among_them_is_named() -> None:
    tokens: list[object] = [*range(1_000_000)]
    assert completion(prompt=tokens).prompt == TokenPrompt(tuple(range(1_000_000)))
    for wrong in (True, -1, 1.0, 2**31, "1", None):
        tokens[999_999] = wrong
        with pytest.raises(BadRequest, match=r"prompt\[999999\]: expected an integer"):
            completion(prompt=tokens)
