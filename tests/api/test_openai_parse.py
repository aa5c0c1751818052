"""Request bodies to GenerateRequest: every field good and bad, and the words of the refusals."""

import math
from dataclasses import fields, replace
from math import inf

import pytest

from shimmy import config
from shimmy.api.exchange import decode_object
from shimmy.api.fields import SAMPLING
from shimmy.api.openai_parse import NOT_SERVED, chat_request, completion_request, reply_options
from shimmy.errors import BadRequest
from shimmy.messages import (
    ChatPrompt,
    GenerateRequest,
    Message,
    ModelDefaults,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)

CONFIG = config.load({}, {})
TURN = {"role": "user", "content": "hi"}


def chat(**body: object) -> GenerateRequest:
    return chat_request({"model": "m", "messages": [TURN]} | body, CONFIG)


def completion(**body: object) -> GenerateRequest:
    return completion_request({"model": "m", "prompt": "hi"} | body, CONFIG)


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


BROUGHT = ModelDefaults((("temperature", 0.3), ("seed", 4)), n_predict=9, stop=("END",), system="Be brief.")


def test_what_a_model_brings_holds_where_nobody_says_otherwise() -> None:
    body: dict[str, object] = {"model": "m", "messages": [TURN]}
    system = Message("system", "Be brief.")
    brought = chat_request(body, CONFIG, BROUGHT)
    assert brought == GenerateRequest(
        "m",
        ChatPrompt((system, Message("user", "hi"))),
        SamplingParams(temperature=0.3, seed=4),
        n_predict=9,
        stop=("END",),
    )
    text = completion_request({"model": "m", "prompt": "hi"}, CONFIG, BROUGHT)
    assert text == replace(brought, prompt=TextPrompt("hi"))
    other = chat_request(body | {"temperature": 1, "max_tokens": 5, "stop": [], "seed": -1}, CONFIG, BROUGHT)
    assert (other.sampling, other.n_predict, other.stop) == (SamplingParams(temperature=1), 5, ())
    assert chat_request(body | {"max_tokens": -1}, CONFIG, BROUGHT).n_predict is None
    server = config.load({"temp": "0.8", "n_predict": "7"}, {})
    assert chat_request(body, server, BROUGHT).sampling == SamplingParams(temperature=0.8, seed=4)
    assert chat_request(body, server, BROUGHT).n_predict == 7


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_conversation_keeps_its_own_system_message(role: str) -> None:
    own = {"role": role, "content": "Be long."}
    for messages in ([own, TURN], [TURN, own]):
        prompt = chat_request({"model": "m", "messages": messages}, CONFIG, BROUGHT).prompt
        assert prompt == chat(messages=messages).prompt


def test_the_servers_defaults_hold_where_a_field_is_null_or_missing() -> None:
    own = replace(CONFIG, sampling=SamplingParams(seed=42, temperature=0.2), n_predict=9)
    body: dict[str, object] = {"model": "m", "prompt": "hi", "seed": None, "top_k": 3, "max_tokens": None}
    request = completion_request(body, own)
    assert request.sampling == SamplingParams(seed=42, temperature=0.2, top_k=3)
    assert request.n_predict == 9
    assert completion_request(body | {"seed": -1, "n_predict": -1}, own).sampling.seed is None
    assert completion_request(body | {"seed": -1, "n_predict": -1}, own).n_predict is None


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
        (inf, "expected a finite number, got inf"),
        (1e39, "expected a finite number, got 1e+39"),
        (10**400, f"expected a finite number, got 1{'0' * 39}"),
    ],
)
def test_a_number_must_be_one(name: str, value: object, complaint: str) -> None:
    error = refusal(**{name: value})
    assert error.message == f"{name}: {complaint}"
    assert error.param == name


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
        ({"stop": ""}, "stop: expected a string that is not empty, got an empty one"),
        ({"stop": ["a", ""]}, "stop[1]: expected a string that is not empty, got an empty one"),
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
        ({"model": None}, "model: expected a string, got null"),
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
        chat_request(body, CONFIG)
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
    assert chat(stop=[]).stop == chat(stop=None).stop == ()


def test_cache_prompt_is_honoured() -> None:
    assert chat().cache_prompt
    assert not chat(cache_prompt=False).cache_prompt


def test_unknown_fields_and_those_without_effect_are_ignored() -> None:
    assert chat(user="u", metadata={}, store=True, service_tier="auto", parallel_tool_calls=True, foo=[1]) == chat()


@pytest.mark.parametrize("name", NOT_SERVED)
def test_a_field_that_is_not_served_yet_is_refused_unless_it_asks_for_nothing(name: str) -> None:
    for idle in (None, *NOT_SERVED[name]):
        assert chat(**{name: idle}) == chat()
    for active in (2, True, "x", ["x"], {"x": 1}):
        error = refusal(**{name: active})
        assert error.message.startswith(f"{name}: this value is not supported yet; leave the field out")
        assert error.param == name


def test_a_boolean_does_not_pass_for_a_number_that_asks_for_nothing() -> None:
    assert refusal(n=True).param == "n"
    assert refusal(logprobs=0).param == "logprobs"


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
    ],
)
def test_messages_are_read(turn: object, read: Message) -> None:
    assert message(turn) == read


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [
        ("hi", ": expected a message object, got a string"),
        ({"content": "a"}, ".role: expected a string, got null"),
        ({"role": ["user"], "content": "a"}, ".role: expected a string, got an array"),
        (
            {"role": "king", "content": "a"},
            '.role: expected one of system, developer, user, assistant, tool, function, got "king"',
        ),
        ({"role": "user", "content": 5}, ".content: expected a string or an array of parts, got a number"),
        ({"role": "user"}, ".content: expected a string or an array of parts, got null"),
        ({"role": "assistant", "content": None}, ".content: expected a string or an array of parts, got null"),
        ({"role": "user", "content": "\udc00"}, ".content: expected Unicode text, got a lone surrogate"),
        ({"role": "user", "content": ["a"]}, ".content[0]: expected a part object, got a string"),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text: expected a string, got null"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            '.content[0]: parts of type "image_url" are not supported yet',
        ),
        ({"role": "user", "content": "a", "name": 5}, ".name: expected a string, got a number"),
        ({"role": "tool", "content": "a", "tool_call_id": 5}, ".tool_call_id: expected a string, got a number"),
        ({"role": "assistant", "tool_calls": 5}, ".tool_calls: expected an array, got a number"),
        ({"role": "assistant", "tool_calls": [5]}, ".tool_calls[0]: expected an object, got a number"),
        (
            {"role": "assistant", "tool_calls": [{"type": "custom"}]},
            '.tool_calls[0].type: expected "function", got "custom"',
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            ".tool_calls[0].function.arguments: expected a string of JSON, got an object",
        ),
        (
            {"role": "assistant", "content": "a", "function_call": {"name": "f"}},
            ".function_call: not supported; write it as tool_calls",
        ),
    ],
)
def test_a_bad_message_is_refused_by_its_path(turn: object, complaint: str) -> None:
    error = refusal(messages=[TURN, turn])
    assert error.message == f"messages[1]{complaint}"
    assert error.param == error.message.partition(": ")[0]


def test_a_prompt_is_text_or_token_ids_or_one_of_them_in_an_array() -> None:
    assert completion(prompt="").prompt == TextPrompt("")
    assert completion(prompt=["a"]).prompt == TextPrompt("a")
    assert completion(prompt=[1, 0, 2]).prompt == completion(prompt=[[1, 0, 2]]).prompt == TokenPrompt((1, 0, 2))


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        (None, "prompt: expected a string or an array of token ids, got null"),
        ({}, "prompt: expected a string or an array of token ids, got an object"),
        ([], "prompt: expected a string or an array of token ids, got an empty array"),
        ([[]], "prompt[0]: expected a string or an array of token ids, got an empty array"),
        (["a", "b"], "prompt: 2 prompts in one request are not supported yet; send a request for each"),
        ([[1], [2]], "prompt: 2 prompts in one request are not supported yet; send a request for each"),
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


def test_reply_options() -> None:
    assert not reply_options({}).stream
    options = reply_options({"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}})
    assert options.stream
    assert options.include_usage
    assert not reply_options({"stream": True, "stream_options": {"include_usage": None}}).include_usage
    for body, param in (
        ({"stream": "true"}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ):
        with pytest.raises(BadRequest) as caught:
            reply_options(body)  # type: ignore[arg-type] # each is a decoded JSON object
        assert caught.value.param == param


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
        (b'{"a": 1' + b"0" * 5000 + b"}", "a number with too many digits"),
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
