"""What OpenAI's replies are made of, streamed or not: the envelope, messages with their calls, usage and timings.

Where llama-server adds something to a reply (`timings`, `reasoning_content`), it is here too.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from shimmy import __version__
from shimmy.api.openai.logprobs import TextLogprobs, chat_logprobs
from shimmy.api.openai.parse import ReplyOptions
from shimmy.api.request_fields.field_kinds import Json
from shimmy.api.request_fields.reasoning import n_reasoning
from shimmy.generation import CompletedJob
from shimmy.messages.event import Accepted, Finished, FinishReason
from shimmy.messages.reply import Delta
from shimmy.messages.request import ToolCall
from shimmy.text.reply_parser import Reply, ReplyParser
from shimmy.text.text_argument import text_in

FINGERPRINT = f"shimmy-{__version__}"


@dataclass(frozen=True, slots=True)
class Form:
    """What differs between the envelopes of the two routes."""

    id_prefix: str
    kind: str
    chunk_kind: str


CHAT = Form("chatcmpl-", "chat.completion", "chat.completion.chunk")
TEXT = Form("cmpl-", "text_completion", "text_completion")


def envelope(form: Form, model_name: str, *, is_chunk: bool) -> Json:
    return {
        "id": form.id_prefix + os.urandom(12).hex(),
        "object": form.chunk_kind if is_chunk else form.kind,
        "created": int(time.time()),
        "model": model_name,
        "system_fingerprint": FINGERPRINT,
    }


def chat_choice(index: int, whole: CompletedJob, options: ReplyOptions) -> tuple[Json, int]:
    """A choice, and how many of its tokens were reasoning."""
    parser, reply = ReplyParser(whole.accepted.format, split_reasoning=options.splits_reasoning), Reply()
    reply.add(parser.feed(whole.said.text))
    reply.add(parser.flush())
    message: Json = {"role": "assistant", "content": reply.content or (None if reply.calls else ""), "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    calls = [_call(call, options) for call in reply.calls]
    if calls and options.is_legacy:
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    choice: Json = {
        "index": index,
        "message": message,
        "logprobs": None if options.n_logprobs is None else chat_logprobs(whole.said.logprobs),
        "finish_reason": finish_reason(whole.finished, has_calls=bool(calls), options=options),
    }
    return choice, n_reasoning(Delta(reasoning=reply.reasoning), whole.said)


def _call(call: ToolCall, options: ReplyOptions) -> Json:
    if call.name in options.text_tools:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": text_in(call.arguments)}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def text_choice(index: int, whole: CompletedJob, options: ReplyOptions) -> tuple[Json, int]:
    """A choice as the model wrote it; its reasoning is not told apart."""
    choice: Json = {
        "index": index,
        "text": whole.echo.text + whole.said.text,
        "logprobs": None if options.n_logprobs is None else _text_logprobs(whole),
        "finish_reason": whole.finished.reason,
    }
    return choice, 0


def _text_logprobs(whole: CompletedJob) -> Json:
    """Those of the prompt, where it is told, and those of the reply in one."""
    logprobs = TextLogprobs()
    echoed, said = logprobs.part(whole.echo), logprobs.part(whole.said)
    return {name: [*echoed[name], *said[name]] for name in said}


def finish_reason(finished: Finished, *, has_calls: bool, options: ReplyOptions) -> str:
    """A reply that was cut off is that first of all, also where a call was."""
    if not has_calls or finished.reason is not FinishReason.STOP:
        return finished.reason
    return "function_call" if options.is_legacy else "tool_calls"


def kept(wholes: Sequence[CompletedJob], options: ReplyOptions) -> list[CompletedJob]:
    """What is told of each prompt's jobs: all, in their order, or of more than that the most likely ones."""
    if options.n == options.best_of:
        return list(wholes)
    groups = (wholes[start : start + options.best_of] for start in range(0, len(wholes), options.best_of))
    return [whole for group in groups for whole in sorted(group, key=_likelihood, reverse=True)[: options.n]]


def _likelihood(whole: CompletedJob) -> float:
    """The mean of the log-probabilities of its tokens; a reply of none comes last."""
    logprobs = [token.chosen.logprob for token in whole.said.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else -inf


def usage(ended: Sequence[Finished], options: ReplyOptions, n_reasoned: int) -> Json:
    """What all jobs took together; those of one prompt share it, and it was cached as far as it was for the first."""
    groups = [ended[start : start + options.best_of] for start in range(0, len(ended), options.best_of)]
    n_prompt = sum(group[0].usage.n_prompt for group in groups)
    n_cached = sum(min(finished.usage.n_cached for finished in group) for group in groups)
    n_completion = sum(finished.usage.n_completion for finished in ended)
    counts: Json = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }
    if n_reasoned:
        counts["completion_tokens_details"] = {"reasoning_tokens": min(n_reasoned, n_completion)}
    return counts


def warned(accepted: Accepted, options: ReplyOptions) -> list[str]:
    """What the caller asked for and does not get, as this side and the worker know it."""
    return [*options.warnings, *accepted.warnings]


def timings(finished: Finished) -> dict[str, float]:
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
