"""OpenAI's dialect: chat completions, completions and models, with the extras llama-server adds to its replies."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shimmy import __version__
from shimmy.api.fields import read_model
from shimmy.api.openai_parse import ReplyOptions, chat_call, completion_call
from shimmy.api.stream import EventStream, unless_gone
from shimmy.errors import Internal
from shimmy.generate import generate
from shimmy.messages import Finished, GenerateRequest, Piece

if TYPE_CHECKING:
    from shimmy.api.exchange import Exchange
    from shimmy.api.fields import Json
    from shimmy.generate import Generation
    from shimmy.messages import ModelDefaults
    from shimmy.registry import Model

FINGERPRINT = f"shimmy-{__version__}"


@dataclass(frozen=True, slots=True)
class Form:
    """What differs between the replies of the two routes. `head` + a JSON string + `tail` is one choice of a chunk."""

    id_prefix: str
    kind: str
    chunk_kind: str
    opening_choice: str
    head: str
    tail: str
    last: dict[str, object]  # the choice that carries the finish reason
    whole: Callable[[str], dict[str, object]]  # the choice of a reply that is not streamed


CHAT = Form(
    id_prefix="chatcmpl-",
    kind="chat.completion",
    chunk_kind="chat.completion.chunk",
    opening_choice='{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}',
    head='{"index":0,"delta":{"content":',
    tail='},"logprobs":null,"finish_reason":null}',
    last={"delta": {}},
    whole=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
)
TEXT = Form(
    id_prefix="cmpl-",
    kind="text_completion",
    chunk_kind="text_completion",
    opening_choice="",
    head='{"index":0,"text":',
    tail=',"logprobs":null,"finish_reason":null}',
    last={"text": ""},
    whole=lambda text: {"text": text},
)


async def chat_completions(exchange: "Exchange") -> None:
    body = await exchange.json()
    call = chat_call(body, exchange.services.config, _defaults(exchange, body))
    await _answer(exchange, call.jobs[0], call.options, CHAT)


async def completions(exchange: "Exchange") -> None:
    body = await exchange.json()
    call = completion_call(body, exchange.services.config, _defaults(exchange, body))
    await _answer(exchange, call.jobs[0], call.options, TEXT)


def _defaults(exchange: "Exchange", body: "Json") -> "ModelDefaults":
    services = exchange.services
    return services.registry.resolve(read_model(body, services.config.default_model)).defaults


async def models(exchange: "Exchange") -> None:
    registry = exchange.services.registry
    names = [(model.name, model) for model in registry.catalog.models] + registry.aliases()
    await exchange.reply({"object": "list", "data": [_model_object(model, name) for name, model in names]})


async def model(exchange: "Exchange") -> None:
    model = exchange.services.registry.resolve(exchange.rest)
    await exchange.reply(_model_object(model, model.name))


async def _answer(exchange: "Exchange", request: GenerateRequest, options: ReplyOptions, form: Form) -> None:
    generation = generate(exchange.services, request)
    envelope = _envelope(form, generation.model.name, is_chunk=options.stream)
    if options.stream:
        chunks = Chunks(envelope, form, include_usage=options.include_usage)
        await EventStream(exchange, generation, chunks).run()
        return
    try:
        text, finished = await unless_gone(exchange, _collect(generation))
    finally:
        await generation.aclose()
    choice = {"index": 0, **form.whole(text), "logprobs": None, "finish_reason": finished.reason}
    await exchange.reply(envelope | {"choices": [choice], "usage": _usage(finished), "timings": _timings(finished)})


async def _collect(generation: "Generation") -> tuple[str, Finished]:
    """The whole text."""
    await generation.accepted()
    texts: list[str] = []
    finished = None
    async for event in generation:
        if isinstance(event, Piece):
            texts.append(event.text)
        elif isinstance(event, Finished):
            finished = event
    if finished is None:
        raise Internal("the generation ended without a reason")
    return "".join(texts), finished


class Chunks:
    """Frames of a streamed reply. What stays the same in all of them is encoded once."""

    def __init__(self, envelope: dict[str, object], form: Form, *, include_usage: bool) -> None:
        self._envelope = envelope
        self._form = form
        self._include_usage = include_usage
        before = f'data: {json.dumps(envelope, separators=(",", ":"))[:-1]},"choices":['
        # Where usage is asked for, OpenAI sends null in every chunk but the one that has it.
        after = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self.opening = (before + form.opening_choice + after).encode() if form.opening_choice else b""
        self._before = before + form.head
        self._after = form.tail + after

    def piece(self, text: str) -> bytes:
        return f"{self._before}{json.dumps(text)}{self._after}".encode()

    def last(self, finished: Finished) -> bytes:
        """The finish reason, the usage where it is asked for, and the end: one write. Timings are in the last chunk."""
        choice = {"index": 0, **self._form.last, "logprobs": None, "finish_reason": finished.reason}
        chunks: list[dict[str, object]] = [{"choices": [choice]}]
        if self._include_usage:
            chunks[0]["usage"] = None
            chunks.append({"choices": [], "usage": _usage(finished)})
        chunks[-1]["timings"] = _timings(finished)
        events = [json.dumps(self._envelope | chunk, separators=(",", ":")) for chunk in chunks]
        return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()


def _envelope(form: Form, model_name: str, *, is_chunk: bool) -> dict[str, object]:
    return {
        "id": form.id_prefix + os.urandom(12).hex(),
        "object": form.chunk_kind if is_chunk else form.kind,
        "created": int(time.time()),
        "model": model_name,
        "system_fingerprint": FINGERPRINT,
    }


def _usage(finished: Finished) -> dict[str, object]:
    usage = finished.usage
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_completion,
        "total_tokens": usage.n_prompt + usage.n_completion,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached},
    }


def _timings(finished: Finished) -> dict[str, float]:
    """llama-server's names; `prompt_n` counts the tokens that were computed, `cache_n` those that were not."""
    usage, timings = finished.usage, finished.timings
    drafts = {"draft_n": timings.n_drafted, "draft_n_accepted": timings.n_accepted} if timings.n_drafted else {}
    return {
        "cache_n": usage.n_cached,
        **_rate("prompt", usage.n_prompt - usage.n_cached, timings.prompt_ms),
        **_rate("predicted", usage.n_completion, timings.predicted_ms),
        **drafts,
    }


def _rate(stage: str, n_tokens: int, total_ms: float) -> dict[str, float]:
    return {
        f"{stage}_n": n_tokens,
        f"{stage}_ms": round(total_ms, 3),
        f"{stage}_per_token_ms": round(total_ms / n_tokens, 3) if n_tokens else 0.0,
        f"{stage}_per_second": round(1000 * n_tokens / total_ms, 3) if total_ms else 0.0,
    }


def _model_object(model: "Model", name: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": model.mtime_ns // 10**9,
        "owned_by": "shimmy",
        "meta": {
            "architecture": model.architecture,
            "quantization": model.quantization,
            "n_params": model.n_params,
            "n_ctx_train": model.n_ctx_train,
            "size": model.size_bytes,
        },
    }
