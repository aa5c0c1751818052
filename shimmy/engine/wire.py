"""What parent and worker say to each other over their socket: frames of JSON behind a length, never pickle.

Knows how each message is written and read back; the two ends decide what to do with it. Parent to worker: `open`,
`job`, `cancel`, `call`, `share`. Worker to parent: `opened`, `refused`, `step`, `result`, `shared`.
A frame is its payload's length (4 bytes, big-endian) and the payload. Reading a malformed frame raises ProtocolError.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, cast

from shimmy.errors import ShimmyError, from_code
from shimmy.messages import (
    Accepted,
    Adapter,
    ChatPrompt,
    Event,
    Finished,
    FinishReason,
    Job,
    Message,
    ModelFacts,
    Piece,
    Prompt,
    SamplingParams,
    TextPrompt,
    Timings,
    TokenPrompt,
    ToolCall,
    Usage,
)

_LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 256 * 2**20
MAX_DRAFT_ROWS = 32

Frame = dict[str, Any]

# json.dumps and json.loads would set up as much anew for every token.
_encoder = json.JSONEncoder(separators=(",", ":"))
_decoder = json.JSONDecoder()


class ProtocolError(Exception):
    """The other end does not speak this protocol: it is broken or hostile."""


@dataclass(frozen=True, slots=True)
class Share:
    """Who else wants the processor. Threads of two workers that wait for each other would take turns at waiting."""

    n_workers: int = 1  # that decode, the one that is told among them
    n_loading: int = 0  # others that load a model, each with one thread

    def n_threads(self, n_cores: int) -> int:
        """How many of the threads that `n_cores` are good for a worker shall use."""
        return max(1, (n_cores - self.n_loading) // self.n_workers)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told before anything else."""

    model_path: str
    n_ctx: int
    n_sequences: int
    n_batch: int
    n_threads: int | None  # None: the physical cores this process may use
    cpu_variant: str | None  # None: the best this processor runs
    chat_template: str | None  # None: the model's own
    lora: tuple[tuple[str, float], ...] = ()  # path and scale of the adapters that were asked for
    siblings: tuple[str, ...] = ()  # and those that lie beside the model, which it does not depend on
    speculate: bool = True
    log_level: str = "info"
    log_format: str = "text"
    share: Share = Share()  # until another one is told

    @property
    def n_outputs(self) -> int:
        """Rows of logits that one decode may ask for: one for each sequence, or those of a draft."""
        return max(self.n_sequences, MAX_DRAFT_ROWS)


def frame(message: Mapping[str, Any]) -> bytes:
    payload = _encoder.encode(message).encode("ascii")
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Incremental: feed it what the socket gave, take the whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while (payload_start := start + _LENGTH.size) <= len(buffer):
                (n_bytes,) = _LENGTH.unpack_from(buffer, start)
                if n_bytes > MAX_FRAME_BYTES:
                    raise ProtocolError(f"a frame of {n_bytes} bytes")
                end = payload_start + n_bytes
                if end > len(buffer):
                    return
                payload, start = buffer[payload_start:end], end
                yield _parse(payload)
        finally:
            del buffer[:start]


def _parse(payload: bytearray) -> Frame:
    try:
        message = _decoder.decode(payload.decode("ascii"))
    except (ValueError, RecursionError) as exc:
        raise ProtocolError("a frame that is not JSON") from exc
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise ProtocolError("a frame without an `op`")
    return message


# -- parent to worker ----------------------------------------------------------------------------------------------


def open_frame(options: WorkerOptions) -> Frame:
    return {"op": "open", **asdict(options)}


def read_options(message: Frame) -> WorkerOptions:
    options = {key: value for key, value in message.items() if key != "op"}
    lora = tuple((path, scale) for path, scale in options.pop("lora"))
    given = {"lora": lora, "siblings": tuple(options["siblings"]), "share": Share(**options["share"])}
    return WorkerOptions(**options | given)


def job_frame(job: Job) -> Frame:
    return {"op": "job", **asdict(job), "prompt": prompt_to_wire(job.prompt)}


def read_job(message: Frame) -> Job:
    sampling = message["sampling"]
    sampling["logit_bias"] = tuple((token, bias) for token, bias in sampling["logit_bias"])
    sampling["dry_sequence_breakers"] = tuple(sampling["dry_sequence_breakers"])
    return Job(
        id=message["id"],
        prompt=prompt_from_wire(message["prompt"]),
        sampling=SamplingParams(**sampling),
        n_predict=message["n_predict"],
        stop=tuple(message["stop"]),
        cache_prompt=message["cache_prompt"],
        lora=None if message["lora"] is None else tuple((index, scale) for index, scale in message["lora"]),
    )


def prompt_to_wire(prompt: Prompt) -> Frame:
    return {"op": type(prompt).__name__, **asdict(prompt)}


def prompt_from_wire(message: Frame) -> Prompt:
    match message["op"]:
        case "TextPrompt":
            return TextPrompt(message["text"])
        case "TokenPrompt":
            return TokenPrompt(tuple(message["tokens"]))
        case _:
            messages = tuple(_read_message(fields) for fields in message["messages"])
            return ChatPrompt(messages, message["add_generation_prompt"])


def _read_message(fields: Frame) -> Message:
    calls = tuple(ToolCall(**call) for call in fields.pop("tool_calls"))
    return Message(**fields, tool_calls=calls)


# -- worker to parent ----------------------------------------------------------------------------------------------


def event_to_wire(job_id: int, event: Event | ShimmyError) -> list[object]:
    match event:
        case Piece(text, n_tokens):
            return [job_id, "piece", text, n_tokens]
        case Accepted(n_prompt):
            return [job_id, "accepted", n_prompt]
        case Finished(reason, usage, timings, stop_string):
            usage_fields = (usage.n_prompt, usage.n_cached, usage.n_completion)
            return [job_id, "finished", reason.value, usage_fields, astuple(timings), stop_string]
        case ShimmyError():
            return [job_id, "failed", event.code, event.message, event.param]


def read_event(fields: list[Any]) -> tuple[int, Event | ShimmyError]:
    """The event of a `step` frame; ProtocolError when it is none."""
    try:
        return fields[0], _read_event(*fields[1:])
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as exc:
        raise ProtocolError("an event that is none") from exc


def _read_event(kind: str, *fields: Any) -> Event | ShimmyError:
    match kind:
        case "piece":
            return Piece(str(fields[0]), int(fields[1]))
        case "accepted":
            return Accepted(int(fields[0]))
        case "finished":
            reason, usage, timings, stop_string = fields
            return Finished(FinishReason(reason), Usage(*usage), Timings(*timings), stop_string)
        case "failed":
            code, message, param = fields
            return from_code(code, message, param=param)
    raise ValueError(kind)


def facts_to_wire(facts: ModelFacts) -> Frame:
    return asdict(facts)


def read_facts(fields: object) -> ModelFacts:
    try:
        known = dict(cast("Frame", fields))
        adapters = tuple(Adapter(str(each["path"]), float(each["scale"])) for each in known.pop("adapters"))
        return ModelFacts(**known, adapters=adapters)
    except (TypeError, ValueError, KeyError, OverflowError) as exc:
        raise ProtocolError("facts that are none") from exc


def error_to_wire(error: ShimmyError) -> Frame:
    return {"code": error.code, "message": error.message, "param": error.param}


def read_error(fields: object) -> ShimmyError:
    if not isinstance(fields, dict):
        raise ProtocolError("an error that is none")
    known = cast("Frame", fields)
    return from_code(str(known.get("code")), str(known.get("message")), param=known.get("param"))
