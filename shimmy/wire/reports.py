"""What a worker says to its parent, written by the one and read by the other: events of jobs, answers, facts, errors.

Knows the form of each message and what a value in it can be; who acts on a message, and whether it may come now, is the
matter of `client` and `streams`. The parent trusts nothing of it: a value that cannot be is a ProtocolError, texts for
people are cut and printable, and no frame is so large that reading it holds the event loop up.
"""

import json
import math
import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import Any

from shimmy.errors import ShimmyError, from_code
from shimmy.messages.event import (
    Accepted,
    Candidate,
    Echo,
    Finished,
    FinishReason,
    JobOutput,
    Piece,
    PromptProgress,
    QueuePlace,
    Timings,
    TokenLogprob,
    Usage,
    Vectors,
)
from shimmy.messages.model_info import Adapter, LoadProgress, ModelFacts, PromptCacheStats, WorkerLoad
from shimmy.wire import values
from shimmy.wire.frames import Frame, ProtocolError, packed
from shimmy.wire.reply_format import format_to_wire, read_format

# Of one frame. Reading one of this size that is nothing but events without text takes 15 ms.
MAX_REPORT_BYTES = 160 * 1024
# Of text in one event or answer: JSON writes a character in 12 bytes at most.
MAX_TEXT = 8 * 1024
# Events are put into one frame until it has so many bytes.
_FULL_BYTES = 48 * 1024
_N_TOKENS_IN_ANSWER = 8 * 1024
_LOGPROB_BYTES = 20 * 1024  # of candidates in one event, of which JSON makes six times as many at most
_VECTOR_BYTES = 64 * 1024  # in one event
# No vocabulary in use has a token of more bytes than 512; what a candidate stands for is cut there.
_MAX_TOKEN_BYTES = 512
_MAX_CANDIDATES = 128
# Of what people get to read.
MAX_MESSAGE = 2_000
MAX_ADAPTERS = 1_000
_ADAPTERS_BYTES = 96 * 1024
MAX_WARNINGS = 32  # of one job

JobEvent = tuple[int, JobOutput | ShimmyError]

_encode = json.JSONEncoder(separators=(",", ":")).encode


# -- events of jobs ------------------------------------------------------------------------------------------------


def step_frames(events: Sequence[JobEvent], load: WorkerLoad) -> Iterator[bytes]:
    """Frames that say `events` in their order, and the load of the worker now."""
    texts: list[str] = []
    n_bytes = 0
    for job_id, event in events:
        for part in _parts(event):
            text = _encode(event_to_wire(job_id, part))
            if texts and n_bytes + len(text) > _FULL_BYTES:
                yield _step_frame(texts, load)
                texts, n_bytes = [], 0
            texts.append(text)
            n_bytes += len(text) + 1
    yield _step_frame(texts, load)


def _step_frame(texts: list[str], load: WorkerLoad) -> bytes:
    return packed(f'{{"op":"step","load":[{",".join(map(str, load))}],"events":[{",".join(texts)}]}}')


def _parts(event: JobOutput | ShimmyError) -> Iterator[JobOutput | ShimmyError]:
    """`event`, or several that say the same where it is too large for a frame."""
    match event:
        case Piece(text, n_tokens, logprobs) if len(text) > MAX_TEXT or len(logprobs) > 1:
            for n_before, (text_part, logprobs_part) in enumerate(_pieces(text, logprobs)):
                yield Piece(text_part, 0 if n_before else n_tokens, logprobs_part)
        case Echo(text, logprobs):
            for text_part, logprobs_part in _pieces(text, logprobs):
                yield Echo(text_part, logprobs_part)
        case Vectors(vectors) if vectors:
            n_together = max(1, _VECTOR_BYTES // max(1, len(vectors[0])))
            for start in range(0, len(vectors), n_together):
                yield Vectors(vectors[start : start + n_together])
        case _:
            yield event


def _pieces(text: str, logprobs: Sequence[TokenLogprob]) -> Iterator[tuple[str, tuple[TokenLogprob, ...]]]:
    """`text` and `logprobs` in parts that each fit into a frame; one at least."""
    texts = [text[start : start + MAX_TEXT] for start in range(0, len(text), MAX_TEXT)] or [""]
    groups: list[list[TokenLogprob]] = [[]]
    n_bytes = 0
    for logprob in logprobs:
        size = sum(64 + len(each.data[:_MAX_TOKEN_BYTES]) for each in (logprob.chosen, *logprob.top))
        if groups[-1] and n_bytes + size > _LOGPROB_BYTES:
            groups.append([])
            n_bytes = 0
        groups[-1].append(logprob)
        n_bytes += size
    for place in range(max(len(texts), len(groups))):
        # Never both at once where there are several parts of each: together they might be too large.
        yield (texts[place] if place < len(texts) else ""), tuple(groups[place]) if place < len(groups) else ()


def event_to_wire(job_id: int, event: JobOutput | ShimmyError) -> list[object]:
    match event:
        case Piece(text, n_tokens, ()):
            return [job_id, "piece", text, n_tokens]
        case Piece(text, n_tokens, logprobs):
            return [job_id, "piece", text, n_tokens, [_logprob_to_wire(each) for each in logprobs]]
        case Echo(text, logprobs):
            return [job_id, "echo", text, [_logprob_to_wire(each) for each in logprobs]]
        case QueuePlace(n_before):
            return [job_id, "place", n_before]
        case PromptProgress(n_prompt, n_cached, n_read, elapsed_ms):
            return [job_id, "reading", n_prompt, n_cached, n_read, elapsed_ms]
        case Vectors(vectors):
            return [job_id, "vectors", [b2a_base64(vector, newline=False).decode() for vector in vectors]]
        case Accepted(n_prompt, reply_format, warnings):
            told = [warning[: values.MAX_LABEL] for warning in warnings[:MAX_WARNINGS]]
            return [job_id, "accepted", n_prompt, format_to_wire(reply_format), told]
        case Finished(reason, usage, timings, stop_string):
            stopped_by = None if stop_string is None else stop_string[:MAX_TEXT]
            return [job_id, "finished", reason.value, asdict(usage), asdict(timings), stopped_by]
        case ShimmyError():
            return [job_id, "failed", error_to_wire(event)]


def read_step(message: Frame) -> tuple[WorkerLoad, Iterator[JobEvent]]:
    """The load of the worker, and the events of a `step` frame; ProtocolError when it is none."""
    try:
        n_running, n_waiting, n_kv_used = message["load"]
        events: list[Any] = message["events"]
        if type(events) is not list:
            raise TypeError
        load = WorkerLoad(values.count(n_running), values.count(n_waiting), values.count(n_kv_used))
        return load, map(read_event, events)
    except (TypeError, ValueError, KeyError) as exc:
        raise ProtocolError("a step that is none") from exc


def read_event(fields: list[Any]) -> JobEvent:
    """An event of a `step` frame; ProtocolError when it is none."""
    try:
        job_id, kind, *rest = fields
        return values.count(job_id), _EVENTS[kind](*rest)
    except (TypeError, ValueError, KeyError, OverflowError) as exc:
        raise ProtocolError("an event that is none") from exc


def _read_piece(text: object, n_tokens: object, logprobs: object = ()) -> Piece:
    if type(text) is not str or len(text) > MAX_TEXT or type(n_tokens) is not int or not 0 <= n_tokens < 2**31:
        raise ValueError("piece")
    return Piece(text, n_tokens, _read_logprobs(logprobs) if logprobs else ())


def _read_echo(text: object, logprobs: object) -> Echo:
    if type(text) is not str or len(text) > MAX_TEXT:
        raise ValueError("echo")
    return Echo(text, _read_logprobs(logprobs))


def _read_place(n_before: object) -> QueuePlace:
    return QueuePlace(values.count(n_before))


def _read_reading(n_prompt: object, n_cached: object, n_read: object, elapsed_ms: object) -> PromptProgress:
    n_all, n_resident, n_now = map(values.count, (n_prompt, n_cached, n_read))
    if max(n_resident, n_now) > n_all:
        raise ValueError("reading")
    return PromptProgress(n_all, n_resident, n_now, values.duration(elapsed_ms))


def _read_vectors(texts: object) -> Vectors:
    return Vectors(tuple(_read_vector(text) for text in values.items(texts)))


def _read_accepted(n_prompt: object, reply_format: object, warnings: object) -> Accepted:
    told = values.items(warnings)
    if len(told) > MAX_WARNINGS:
        raise ValueError("warnings")
    return Accepted(
        values.count(n_prompt),
        read_format(reply_format),
        tuple(values.printable(values.text(warning), values.MAX_LABEL) for warning in told),
    )


def _read_finished(reason: str, usage: object, timings: object, stop_string: object) -> Finished:
    stopped_by = None if stop_string is None else values.text(stop_string)
    told = values.made(Usage, usage, {int: values.count})
    if told.n_cached > told.n_prompt:
        raise ValueError("usage")
    return Finished(
        FinishReason(reason),
        told,
        values.made(Timings, timings, {int: values.count, float: values.duration}),
        stopped_by,
    )


def _logprob_to_wire(logprob: TokenLogprob) -> list[object]:
    """The chosen token and the candidates, each as its id, its bytes as Latin-1, and its logarithm (null for nan)."""
    return [
        (
            each.token,
            each.data[:_MAX_TOKEN_BYTES].decode("latin-1"),
            each.logprob if math.isfinite(each.logprob) else None,
        )
        for each in (logprob.chosen, *logprob.top)
    ]


def _read_logprobs(fields: object) -> tuple[TokenLogprob, ...]:
    return tuple(_read_logprob(each) for each in values.items(fields))


def _read_logprob(fields: object) -> TokenLogprob:
    entries = values.items(fields)
    if len(entries) > _MAX_CANDIDATES:
        raise ValueError("candidates")
    chosen, *top = (
        Candidate(
            values.count(token),
            values.text(text).encode("latin-1"),
            math.nan if logprob is None else values.number(logprob),
        )
        for token, text, logprob in entries
    )
    return TokenLogprob(chosen, tuple(top))


def _read_vector(text: object) -> bytes:
    """The floats in `text`; ValueError when one of them is no number, which JSON could not say."""
    data = a2b_base64(values.text(text), strict_mode=True)
    if len(data) % 4 or not math.isfinite(sum(struct.unpack(f"<{len(data) // 4}f", data))):
        raise ValueError("vector")
    return data


# -- answers to calls ------------------------------------------------------------------------------------------------


def result_frames(call_id: int, value: Sequence[int] | str) -> Iterator[Frame]:
    """Frames with the answer to a call: tokens or a text, in parts; all but the last one say that there is `more`."""
    size = MAX_TEXT if isinstance(value, str) else _N_TOKENS_IN_ANSWER
    last = max(0, len(value) - 1) // size * size
    for start in range(0, last + 1, size):
        yield {"op": "result", "id": call_id, "value": value[start : start + size], "more": start < last}


def failure_frame(call_id: int, error: ShimmyError) -> Frame:
    return {"op": "result", "id": call_id, "error": error_to_wire(error)}


def read_result(message: Frame) -> tuple[int, "list[int] | str | ShimmyError", bool]:
    """The call, a part of its answer or its error, and whether more is to come; ProtocolError when it is none."""
    try:
        call_id = values.count(message["id"])
        if "error" in message:
            return call_id, read_error(message["error"]), False
        value = message["value"]
        is_tokens = type(value) is list and all(type(token) is int and 0 <= token < 2**31 for token in value)
        if not is_tokens and type(value) is not str:
            raise ValueError("value")
        return call_id, value, values.truth(message["more"])
    except (TypeError, ValueError, KeyError) as exc:
        raise ProtocolError("a result that is none") from exc


# -- what is said of the model and of the worker ----------------------------------------------------------------------


def opened_frame(facts: ModelFacts) -> Frame:
    return {"op": "opened", "facts": facts_to_wire(facts)}


def facts_to_wire(facts: ModelFacts) -> Frame:
    fields = asdict(facts)
    adapters = [each | {"path": each["path"][-values.MAX_LABEL :]} for each in fields["adapters"][:MAX_ADAPTERS]]
    ends = accumulate(len(_encode(each)) + len(",") for each in adapters)
    fields["adapters"] = [each for each, end in zip(adapters, ends, strict=True) if len("[") + end <= _ADAPTERS_BYTES]
    return {name: value[: values.MAX_LABEL] if isinstance(value, str) else value for name, value in fields.items()}


def read_facts(fields: object) -> ModelFacts:
    try:
        return values.made(ModelFacts, fields, _FACTS)
    except (TypeError, ValueError, KeyError, OverflowError) as exc:
        raise ProtocolError("facts that are none") from exc


def _read_adapters(fields: object) -> tuple[Adapter, ...]:
    adapters = values.items(fields)
    if len(adapters) > MAX_ADAPTERS:
        raise ValueError("adapters")
    return tuple(values.made(Adapter, each, {str: values.label, float: values.number}) for each in adapters)


def traffic_frame(traffic: PromptCacheStats) -> Frame:
    return {"op": "prompts", **asdict(traffic)}


def read_traffic(message: Frame) -> PromptCacheStats:
    try:
        fields = {key: value for key, value in message.items() if key != "op"}
        return values.made(
            PromptCacheStats, fields, {int: values.large_count, int | None: values.optional(values.large_count)}
        )
    except (TypeError, ValueError, KeyError) as exc:
        raise ProtocolError("traffic that is none") from exc


def progress_frame(progress: LoadProgress) -> Frame:
    return {"op": "progress", "share": progress.share, "total": progress.total_bytes}


def read_progress(message: Frame) -> LoadProgress:
    try:
        share = min(1.0, values.duration(message["share"]))
        return LoadProgress(share, values.optional(values.large_count)(message["total"]))
    except (TypeError, ValueError, KeyError) as exc:
        raise ProtocolError("progress that is none") from exc


def alive_frame(stalled_s: float | None) -> Frame:
    """How long the worker has been at the same step of its work; None: it has nothing to do."""
    return {"op": "alive", "stalled_s": stalled_s}


def read_alive(message: Frame) -> float | None:
    try:
        return values.optional(values.duration)(message["stalled_s"])
    except (TypeError, ValueError, KeyError) as exc:
        raise ProtocolError("a sign of life that is none") from exc


def refused_frame(error: ShimmyError) -> Frame:
    """Why the model is not loaded."""
    return {"op": "refused", "error": error_to_wire(error)}


def dying_frame(error: ShimmyError) -> Frame:
    """Why the worker ends, as the last that it says."""
    return {"op": "dying", "error": error_to_wire(error)}


def error_to_wire(error: ShimmyError) -> Frame:
    param = None if error.param is None else error.param[: values.MAX_LABEL]
    return {"code": error.code, "message": error.message[:MAX_MESSAGE], "param": param}


def read_error(fields: object) -> ShimmyError:
    """ProtocolError when it is none."""
    try:
        known = values.members(fields)
        param = known["param"]
        return from_code(
            values.label(known["code"]),
            values.printable(values.text(known["message"]), MAX_MESSAGE),
            param=None if param is None else values.label(param),
        )
    except (TypeError, ValueError, KeyError) as exc:
        raise ProtocolError("an error that is none") from exc


_FACTS: dict[object, Callable[[Any], object]] = {
    int: values.large_count,
    int | None: values.optional(values.large_count),
    float: values.duration,
    bool: values.truth,
    str: values.label,
    str | None: values.optional(values.label),
    tuple[Adapter, ...]: _read_adapters,
}
_EVENTS: dict[str, Callable[..., JobOutput | ShimmyError]] = {
    "piece": _read_piece,
    "echo": _read_echo,
    "place": _read_place,
    "reading": _read_reading,
    "vectors": _read_vectors,
    "accepted": _read_accepted,
    "finished": _read_finished,
    "failed": read_error,
}
