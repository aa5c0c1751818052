"""What parent and worker say to each other over their socket: frames of JSON behind a length, never pickle.

Knows how each message is written and read back; the two ends decide what to do with it. Parent to worker: `open`,
`job`, `embed`, `cancel`, `call`, `share`. Worker to parent: `progress`, `opened`, `refused`, `step`, `result`,
`shared`, `prompts`.
A frame is its payload's length (4 bytes, big-endian) and the payload. Reading a malformed frame raises ProtocolError.
"""

import json
import math
import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, cast

from shimmy.errors import ShimmyError, from_code
from shimmy.messages import (
    Accepted,
    Adapter,
    Candidate,
    ChatPrompt,
    Echo,
    EmbeddingJob,
    Event,
    FillPrompt,
    Finished,
    FinishReason,
    Grammar,
    GrammarKind,
    Job,
    Message,
    ModelFacts,
    Piece,
    Prompt,
    PromptTraffic,
    ReplyFormat,
    SamplingParams,
    TextPrompt,
    Timings,
    TokenLogprob,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolChoice,
    ToolFormat,
    Usage,
    Vectors,
)

_LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 256 * 2**20
MAX_DRAFT_ROWS = 32
MAX_UBATCH_ROWS = 256
# Tokens that a draft model looks at: what comes next hardly hangs on what stood farther back.
_MAX_DRAFT_CTX = 2048
MIN_DRAFT_CTX = 256
# Tokens that it reads in one decode, of those that it has not seen yet: the model itself waits for that.
DRAFT_BATCH = 32
# Vocabularies of one family may differ by a few tokens at the end (llama.cpp's SPEC_VOCAB_MAX_SIZE_DIFFERENCE).
MAX_VOCABULARY_DIFFERENCE = 128

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
    draft_model: str | None = None  # path of a GGUF that guesses what the model will say
    embeddings: bool = False  # also of a model that was not made for them
    pooling: str | None = None  # None: the model's own
    log_level: str = "info"
    log_format: str = "text"
    share: Share = Share()  # until another one is told
    cache_dir: str | None = None  # for what can be made again
    weights: str = "repacked"  # or `mapped`; `auto`: what a trial has found
    may_tune: bool = False  # whether a trial may take memory for a while that nobody has reckoned with
    safetensors_type: str | None = None  # what the weights of a SafeTensors folder become; None: what they are
    prompt_cache_bytes: int | None = None  # of all prompts that are kept in the cache folder; None: no prompt is

    @property
    def n_ubatch(self) -> int:
        """Rows of a batch that the engine computes together, in memory that it keeps for so many. More of them are not
        faster (SmolLM2 and gemma-3-270m, 1,500 tokens in 512, 256 or 128 at a time: no difference beyond the noise)."""
        return min(self.n_batch, MAX_UBATCH_ROWS)

    @property
    def n_outputs(self) -> int:
        """Rows of logits that one decode may ask for: one for each sequence, or those of a draft."""
        return max(self.n_sequences, MAX_DRAFT_ROWS)

    @property
    def n_ctx_draft(self) -> int:
        """Tokens that the draft model looks at, unless its training length is smaller."""
        return max(MIN_DRAFT_CTX, min(self.n_ctx, _MAX_DRAFT_CTX))


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
        grammar=None if message["grammar"] is None else _read_grammar(**message["grammar"]),
        n_logprobs=message["n_logprobs"],
        echo=message["echo"],
        n_thinking=message["n_thinking"],
    )


def _read_grammar(kind: str, text: str) -> Grammar:
    return Grammar(GrammarKind(kind), text)


def embed_frame(job: EmbeddingJob) -> Frame:
    return {"op": "embed", **asdict(job)}


def read_embed(message: Frame) -> EmbeddingJob:
    inputs = tuple(each if isinstance(each, str) else tuple(each) for each in message["inputs"])
    return EmbeddingJob(message["id"], inputs, message["n_dimensions"])


def prompt_to_wire(prompt: Prompt) -> Frame:
    return {"op": type(prompt).__name__, **asdict(prompt)}


def prompt_from_wire(message: Frame) -> Prompt:
    match message["op"]:
        case "TextPrompt":
            return TextPrompt(message["text"])
        case "TokenPrompt":
            return TokenPrompt(tuple(message["tokens"]))
        case "FillPrompt":
            return FillPrompt(message["prefix"], message["suffix"])
        case _:
            return ChatPrompt(
                messages=tuple(_read_message(fields) for fields in message["messages"]),
                add_generation_prompt=message["add_generation_prompt"],
                tools=tuple(Tool(**tool) for tool in message["tools"]),
                tool_choice=ToolChoice(**message["tool_choice"]),
                template_arguments=message["template_arguments"],
                continue_final_message=message["continue_final_message"],
            )


def _read_message(fields: Frame) -> Message:
    calls = tuple(ToolCall(**call) for call in fields.pop("tool_calls"))
    return Message(**fields, tool_calls=calls)


# -- worker to parent ----------------------------------------------------------------------------------------------


def event_to_wire(job_id: int, event: Event | ShimmyError) -> list[object]:
    match event:
        case Piece(text, n_tokens, ()):
            return [job_id, "piece", text, n_tokens]
        case Piece(text, n_tokens, logprobs):
            return [job_id, "piece", text, n_tokens, [_logprob_to_wire(each) for each in logprobs]]
        case Echo(text, logprobs):
            return [job_id, "echo", text, [_logprob_to_wire(each) for each in logprobs]]
        case Vectors(vectors):
            return [job_id, "vectors", [b2a_base64(vector, newline=False).decode() for vector in vectors]]
        case Accepted(n_prompt, reply_format):
            return [job_id, "accepted", n_prompt, asdict(reply_format)]
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
            return Piece(str(fields[0]), int(fields[1]), tuple(map(_read_logprob, *fields[2:])) if fields[2:] else ())
        case "echo":
            return Echo(str(fields[0]), tuple(map(_read_logprob, fields[1])))
        case "vectors":
            return Vectors(tuple(_read_vector(text) for text in fields[0]))
        case "accepted":
            return Accepted(int(fields[0]), _read_format(**fields[1]))
        case "finished":
            reason, usage, timings, stop_string = fields
            return Finished(FinishReason(reason), Usage(*usage), Timings(*timings), stop_string)
        case "failed":
            code, message, param = fields
            return from_code(code, message, param=param)
    raise ValueError(kind)


def _read_format(thinking: Any, is_thinking: object, tools: Any) -> ReplyFormat:
    return ReplyFormat(
        thinking=None if thinking is None else (str(thinking[0]), str(thinking[1])),
        is_thinking=bool(is_thinking),
        tools=None if tools is None else _read_tool_format(**tools),
    )


def _read_tool_format(separator: object, **texts: object) -> ToolFormat:
    known = {name: str(text) for name, text in texts.items()}
    return ToolFormat(**known, separator=None if separator is None else str(separator))


def _logprob_to_wire(logprob: TokenLogprob) -> list[object]:
    """The chosen token and the candidates, each as its id, its bytes as Latin-1, and its logarithm (null for nan)."""
    return [
        (each.token, each.data.decode("latin-1"), each.logprob if math.isfinite(each.logprob) else None)
        for each in (logprob.chosen, *logprob.top)
    ]


def _read_logprob(fields: list[Any]) -> TokenLogprob:
    chosen, *top = (
        Candidate(int(token), text.encode("latin-1"), math.nan if logprob is None else float(logprob))
        for token, text, logprob in fields
    )
    return TokenLogprob(chosen, tuple(top))


def _read_vector(text: str) -> bytes:
    """The floats in `text`; ValueError when one of them is no number, which JSON could not say."""
    data = a2b_base64(text, strict_mode=True)
    if len(data) % 4 or not math.isfinite(sum(struct.unpack(f"<{len(data) // 4}f", data))):
        raise ValueError(text[:80])
    return data


def facts_to_wire(facts: ModelFacts) -> Frame:
    return asdict(facts)


def read_facts(fields: object) -> ModelFacts:
    try:
        known = dict(cast("Frame", fields))
        adapters = tuple(Adapter(str(each["path"]), float(each["scale"])) for each in known.pop("adapters"))
        return ModelFacts(**known, adapters=adapters)
    except (TypeError, ValueError, KeyError, OverflowError) as exc:
        raise ProtocolError("facts that are none") from exc


def traffic_frame(traffic: PromptTraffic) -> Frame:
    return {"op": "prompts", **asdict(traffic)}


def read_traffic(message: Frame) -> PromptTraffic:
    try:
        traffic = PromptTraffic(**{key: value for key, value in message.items() if key != "op"})
    except TypeError as exc:
        raise ProtocolError("traffic that is none") from exc
    *counts, stored_bytes = astuple(traffic)
    if not all(type(count) is int and 0 <= count < 2**63 for count in (*counts, stored_bytes or 0)):
        raise ProtocolError("traffic that is none")
    return traffic


def error_to_wire(error: ShimmyError) -> Frame:
    return {"code": error.code, "message": error.message, "param": error.param}


def read_error(fields: object) -> ShimmyError:
    if not isinstance(fields, dict):
        raise ProtocolError("an error that is none")
    known = cast("Frame", fields)
    return from_code(str(known.get("code")), str(known.get("message")), param=known.get("param"))
