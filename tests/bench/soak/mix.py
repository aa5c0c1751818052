"""What clients ask that is right, and what they do to models: a function for each kind, and how often it comes up.

Each returns when the reply was as it has to be, and raises Refused or Failed where it was not.
"""

import math
import re
from collections.abc import Awaitable, Callable

from jsonschema import Draft202012Validator

from tests.bench.soak.client import Client, Json
from tests.bench.soak.replies import Choice, choices, parsed, require, response

CHAT, COMPLETION, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
EMBEDDINGS = "/v1/embeddings"

SCHEMA: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["river", "harbor", "island"]},
    },
    "required": ["name", "count", "kind"],
    "additionalProperties": False,
}
GRAMMAR, OBEYED = 'root ::= ("yes" | "no") " " [0-9] [0-9]?', re.compile(r"(yes|no) [0-9][0-9]?")
TOOL: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}, "days": {"type": "integer", "enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
# Each of them is drawn now and then, beside the others.
ODD_FIELDS: tuple[Json, ...] = (
    {"top_k": 1}, {"min_p": 0.2}, {"mirostat": 2}, {"xtc_probability": 0.5}, {"dry_multiplier": 0.8},
    {"repeat_penalty": 1.2, "repeat_last_n": 64}, {"presence_penalty": 1.0}, {"logit_bias": {"7": -100}},
    {"cache_prompt": False}, {"ignore_eos": True}, {"user": "ann"}, {"typical_p": 0.7}, {"seed": -1},
)  # fmt: skip
MAX_TOKENS, MAX_GUIDED_TOKENS = 48, 160


def _fields(client: Client) -> Json:
    fields: Json = {
        "temperature": client.random.choice((0, 0.8, 1.2)),
        "max_tokens": client.random.randint(1, MAX_TOKENS),
    }
    if client.chance(0.3):
        fields |= client.random.choice(ODD_FIELDS)
    if client.chance(0.5):
        fields["seed"] = client.random.randrange(2**32)
    if client.chance(0.5):
        fields["stream"] = True
        if client.chance(0.5):
            fields["stream_options"] = {"include_usage": True}
    return fields


def _chat(client: Client, **fields: object) -> Json:
    return {
        "model": client.text_model(),
        "messages": [{"role": "user", "content": client.prompt()}],
        **_fields(client),
        **fields,
    }


async def _choices(client: Client, path: str, body: Json) -> list[Choice]:
    return choices(await client.ask(path, body), body)


async def chat(client: Client) -> None:
    """A new conversation, one that goes on, or one that was edited in the middle."""
    is_new = not client.chats or client.chance(0.3)
    messages = [] if is_new else client.random.choice(client.chats)
    if len(messages) > 2 and client.chance(0.3):
        messages = messages[: 2 * client.random.randrange(len(messages) // 2)]
    messages = [*messages, {"role": "user", "content": client.prompt() if is_new else client.words(20)}]
    body = _chat(client, messages=messages)
    (choice,) = await _choices(client, CHAT, body)
    if len(messages) < 9:
        client.chats = [*client.chats[-3:], [*messages, {"role": "assistant", "content": choice.text}]]


async def completion(client: Client) -> None:
    await _choices(client, COMPLETION, {"model": client.text_model(), "prompt": client.prompt(), **_fields(client)})


async def several(client: Client) -> None:
    """Several choices of one prompt, or several prompts."""
    n = client.random.randint(2, 4)
    if client.chance(0.3):
        prompts = [client.words(10) for _ in range(n)]
        body: Json = {"model": client.text_model(), "prompt": prompts, **_fields(client)}
        await _choices(client, COMPLETION, body)
    elif client.chance(0.2):
        body = {"model": client.text_model(), "prompt": client.prompt(), **_fields(client), "stream": False}
        await _choices(client, COMPLETION, body | {"n": n - 1, "best_of": n})
    else:
        await _choices(client, CHAT, _chat(client, n=n))


async def schema(client: Client) -> None:
    wish = {"type": "json_schema", "json_schema": {"name": "record", "schema": SCHEMA, "strict": True}}
    body = _chat(client, response_format=wish, max_tokens=MAX_GUIDED_TOKENS, ignore_eos=False)
    for choice in await _choices(client, CHAT, body):
        if choice.reason == "stop":
            require(Draft202012Validator(SCHEMA).is_valid(parsed(choice.text)), f"against its schema: {choice.text!r}")


async def grammar(client: Client) -> None:
    body: Json = {"model": client.text_model(), "prompt": client.prompt(), **_fields(client)}
    body |= {"grammar": GRAMMAR, "max_tokens": 16, "ignore_eos": False}
    for choice in await _choices(client, COMPLETION, body):
        is_obeyed = choice.reason == "length" or OBEYED.fullmatch(choice.text)
        require(is_obeyed, f"against its grammar: {choice.text!r}")


async def tools(client: Client) -> None:
    body = _chat(client, tools=[TOOL], max_tokens=MAX_GUIDED_TOKENS, ignore_eos=False)
    body["tool_choice"] = client.random.choice(("auto", "required", "none"))
    (choice,) = await _choices(client, CHAT, body)
    if choice.reason == "length":
        return
    require(bool(choice.calls) == (choice.reason == "tool_calls"), f"calls {choice.calls}, {choice.reason}")
    require(choice.calls or body["tool_choice"] != "required", f"no call: {choice.text!r}")
    for name, arguments in choice.calls.values():
        checked = Draft202012Validator(TOOL["function"]["parameters"])
        require(name == "get_weather" and checked.is_valid(parsed(arguments)), f"a call: {name} {arguments}")


async def logprobs(client: Client) -> None:
    if client.chance(0.5):
        body = _chat(client, logprobs=True, top_logprobs=client.random.randint(0, 20))
        (choice,) = await _choices(client, CHAT, body)
        require(all(entry["logprob"] <= 1e-6 for entry in choice.logprobs), "a probability above one")
        require(choice.logprobs or not choice.text, "no log-probabilities")
        return
    body = {"model": client.text_model(), "prompt": client.words(20), **_fields(client), "logprobs": 3}
    body["echo"] = client.chance(0.5)
    (choice,) = await _choices(client, COMPLETION, body)
    require(not body["echo"] or choice.text.startswith(body["prompt"]), f"no echo: {choice.text!r}")
    require(choice.tokens, "no tokens")


async def stops(client: Client) -> None:
    stop = [client.random.choice(("a", "e", " ", "the", "er")), client.words(1)]
    for choice in await _choices(client, CHAT, _chat(client, stop=stop)):
        require(not any(text in choice.text for text in stop), f"{stop} in {choice.text!r}")


async def respond(client: Client) -> None:
    """A response; some are remembered, gone on from, and forgotten."""
    is_streamed, store = client.chance(0.5), client.chance(0.3)
    body: Json = {"model": client.text_model(), "input": client.prompt(), "stream": is_streamed, "store": store}
    body["max_output_tokens"] = client.random.randint(16, 16 + MAX_TOKENS)
    first = response(await client.ask(RESPONSES, body), is_streamed=is_streamed)
    if not store:
        return
    ids = [first["id"]]
    try:
        body |= {"previous_response_id": first["id"], "input": client.words(10)}
        second = response(await client.ask(RESPONSES, body), is_streamed=is_streamed)
        ids.append(second["id"])
        (await client.ask(f"{RESPONSES}/{ids[-1]}", None, "GET")).good()
    finally:
        for name in ids:
            (await client.ask(f"{RESPONSES}/{name}", None, "DELETE")).good()


async def embed(client: Client) -> None:
    texts = [client.words(12) for _ in range(client.random.randint(1, 12))]
    answer = await client.ask(EMBEDDINGS, {"model": client.models.encoder, "input": texts, "encoding_format": "float"})
    vectors = [item["embedding"] for item in answer.good().json()["data"]]
    require(len(vectors) == len(texts), f"{len(vectors)} vectors of {len(texts)} texts")
    for vector in vectors:
        require(math.isclose(math.hypot(*vector), 1, abs_tol=1e-4), "a vector of another length")


async def tokens(client: Client) -> None:
    model, text = client.models.steady, client.words(20)
    ids = (await client.ask("/tokenize", {"model": model, "content": text})).good().json()["tokens"]
    again = (await client.ask("/detokenize", {"model": model, "tokens": ids})).good().json()["content"]
    require(again.strip() == text, f"{text!r} became {again!r}")
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    require(
        text in (await client.ask("/apply-template", body)).good().json()["prompt"], "the text is not in its prompt"
    )


async def look(client: Client) -> None:
    path = client.random.choice(
        ("/", "/health", "/ready", "/version", "/metrics", "/openapi.json", "/docs", "/v1/models", "/api/models")
    )
    answer = await client.ask(path, None, client.random.choice(("GET", "GET", "HEAD")))
    require(answer.status == 200, f"{path}: {answer.status}")


async def leave(client: Client) -> None:
    """Go away: before the request is whole, before the reply begins, or in the middle of it."""
    path, body = client.random.choice(
        (
            (CHAT, _chat(client, max_tokens=None, ignore_eos=True)),
            (CHAT, _chat(client, max_tokens=None, n=3)),
            (COMPLETION, {"model": client.text_model(), "prompt": client.prompt(), "ignore_eos": True}),
            (RESPONSES, {"model": client.text_model(), "input": client.prompt(), "stream": True, "store": False}),
            (EMBEDDINGS, {"model": client.models.encoder, "input": [client.words(40) for _ in range(100)]}),
        )
    )
    share = client.random.random() if client.chance(0.2) else 1.0
    await client.connection.leave(path, body, client.random.uniform(0, 0.5), share)


async def watch(client: Client) -> None:
    """Events of models, for a moment."""
    await client.connection.leave("/api/events", None, client.random.uniform(0, 0.5))


async def swap(client: Client) -> None:
    client.replace_model()
    if client.chance(0.3):
        require((await client.ask("/api/models/discover", None)).status == 200, "discover")


async def load(client: Client) -> None:
    name = client.random.choice((client.models.other, client.models.encoder))
    (await client.ask(f"/api/models/{name}/load", None)).good()


async def unload(client: Client) -> None:
    name = client.random.choice((client.models.other, client.models.encoder))
    (await client.ask(f"/api/models/{name}/unload", None)).good()


Ask = Callable[[Client], Awaitable[None]]
# And how often each comes up.
MIX: dict[Ask, float] = {
    chat: 20, completion: 12, several: 6, schema: 6, grammar: 4, tools: 5, logprobs: 5, stops: 4, respond: 8, embed: 8,
    tokens: 3, look: 4, leave: 8, watch: 1, swap: 1, load: 1, unload: 1,
}  # fmt: skip
