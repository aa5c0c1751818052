"""What parent and worker say to each other over their socket: frames of JSON behind a length, never pickle.

Knows frames, and how each message to a worker is written and read back; the two ends decide what to do with it. Parent
to worker: `open`, `job`, `jobs`, `embed`, `cancel`, `call`, `share`. What a worker says is in `reports`.
A frame is its payload's length (4 bytes, big-endian) and the payload. A large one comes in parts: the highest bit of a
length says that more of the payload follows, behind a length of its own, so that no end has to have all of it at once
before the first byte is written. Reading a malformed frame raises ProtocolError.
"""

import json
import math
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from shimmy.messages import (
    ChatPrompt,
    EmbeddingJob,
    FillPrompt,
    Grammar,
    GrammarKind,
    Job,
    Message,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolChoice,
)
from shimmy.writing import pieces

_LENGTH = struct.Struct(">I")
_MORE = 1 << 31
_PART_BYTES = 1 << 16  # roughly
_N_AT_ONCE = 64  # messages, and what else a prompt has many of
_LARGE_BYTES = 1 << 20  # is decoded in steps, so that other threads have their turns
MAX_FRAME_BYTES = 256 * 2**20
CELLS_STEP = 256  # llama.cpp rounds the cells of a pool up to a multiple of this (llama_context's constructor)
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
    worker_timeout_s: float = math.inf  # without a sign of life or progress it is killed; the server sees to that
    load_timeout_s: float = math.inf  # the same while it loads its model
    prompt_cache_bytes: int | None = None  # of all prompts that are kept in the cache folder; None: no prompt is
    n_ctx_booked: int | None = None  # of `n_ctx`, what memory is set aside for; None: all. The rest is looked for later

    @property
    def n_booked(self) -> int:
        return self.n_ctx if self.n_ctx_booked is None else min(self.n_ctx, self.n_ctx_booked)

    @property
    def n_cells(self) -> int:
        """Cells of the pool, at most: it grows in steps."""
        return -(-self.n_ctx // CELLS_STEP) * CELLS_STEP

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
    return packed(_encoder.encode(message))


def parts(message: Frame) -> Iterator[bytes]:
    """The same in parts, each of which takes a millisecond at most to make."""
    text: list[str] = []
    n_bytes = 0
    for piece in pieces(message):
        if n_bytes + len(piece) > _PART_BYTES and text:
            yield _LENGTH.pack(n_bytes | _MORE) + "".join(text).encode("ascii")
            text, n_bytes = [], 0
        text.append(piece)
        n_bytes += len(piece)
    yield packed("".join(text))


def packed(text: str) -> bytes:
    """A frame of `text`, which is the JSON of a message, in ASCII."""
    payload = text.encode("ascii")
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Incremental: feed it what the socket gave, take the whole frames, of which none has more than `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self.n_bytes = 0  # of the frame that was taken last
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._begun = bytearray()  # the payload of a frame of which more follows

    def feed(self, data: bytes | bytearray) -> Iterator[Frame]:
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while (payload_start := start + _LENGTH.size) <= len(buffer):
                (length,) = _LENGTH.unpack_from(buffer, start)
                n_bytes = length & ~_MORE
                if len(self._begun) + n_bytes > self._max_bytes:
                    raise ProtocolError(f"a frame of {len(self._begun) + n_bytes} bytes")
                end = payload_start + n_bytes
                if end > len(buffer):
                    return
                payload, start = buffer[payload_start:end], end
                if length & _MORE:
                    self._begun += payload
                    continue
                if self._begun:
                    payload, self._begun = self._begun + payload, bytearray()
                self.n_bytes = len(payload)
                yield _parse(payload)
        finally:
            del buffer[:start]


def _parse(payload: bytearray) -> Frame:
    try:
        text = payload.decode("ascii")
        message = _decoder.decode(text) if len(text) <= _LARGE_BYTES else _large(text)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError("a frame that is not JSON") from exc
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise ProtocolError("a frame without an `op`")
    return message


def _large(text: str) -> object:
    from shimmy.large_json import LargeJson  # few frames need it

    return LargeJson(text).value()


# -- parent to worker ----------------------------------------------------------------------------------------------


def open_frame(options: WorkerOptions) -> Frame:
    return {"op": "open", **asdict(options)}


def read_options(message: Frame) -> WorkerOptions:
    options = {key: value for key, value in message.items() if key != "op"}
    lora = tuple((path, scale) for path, scale in options.pop("lora"))
    given = {"lora": lora, "siblings": tuple(options["siblings"]), "share": Share(**options["share"])}
    return WorkerOptions(**options | given)


def job_frame(job: Job) -> Frame:
    return {"op": "job", **_shallow(job), "prompt": prompt_to_wire(job.prompt)}


def jobs_frame(jobs: Sequence[Job]) -> Frame:
    """Jobs that differ in their ids, their prompts and their seeds alone: what they share, they say once."""
    if len(jobs) == 1:
        return job_frame(jobs[0])
    prompts = {id(job.prompt): job.prompt for job in jobs}
    places = {address: index for index, address in enumerate(prompts)}
    return {
        **_shallow(jobs[0]),
        "op": "jobs",
        "prompt": None,
        "prompts": [prompt_to_wire(prompt) for prompt in prompts.values()],
        "jobs": [(job.id, places[id(job.prompt)], job.sampling.seed) for job in jobs],
    }


def without(message: Frame, job_id: int) -> Frame:
    """A `jobs` frame without one of its jobs; another frame has one at most, and stays as it is."""
    if message["op"] != "jobs":
        return message
    return message | {"jobs": [job for job in message["jobs"] if job[0] != job_id]}


def size_of(prompt: Prompt) -> int:
    """Roughly how many bytes it has on the wire."""
    match prompt:
        case TextPrompt(text):
            return len(text)
        case TokenPrompt(tokens):
            return 8 * len(tokens)
        case FillPrompt(prefix, suffix):
            return len(prefix) + len(suffix)
        case ChatPrompt():
            n_said = sum(len(turn.content or "") + len(turn.reasoning_content or "") for turn in prompt.messages)
            n_called = sum(len(call.arguments) for turn in prompt.messages for call in turn.tool_calls)
            return n_said + n_called + sum(len(tool.parameters) for tool in prompt.tools)


def one_by_one(message: Frame) -> Iterator[Frame]:
    """A `jobs` frame as `job` frames, and any other one as it is."""
    if message["op"] != "jobs":
        yield message
        return
    jobs, prompts = message.pop("jobs"), [_Shared(prompt) for prompt in message.pop("prompts")]
    for job_id, place, seed in jobs:
        sampling = message["sampling"] | {"seed": seed}
        yield message | {"op": "job", "id": job_id, "prompt": prompts[place], "sampling": sampling}


class _Shared:
    """The prompt of several jobs, as it came; it is read when the first of them is."""

    def __init__(self, fields: Frame) -> None:
        self._lock = threading.Lock()
        self._fields = fields
        self._prompt: Prompt | None = None

    def read(self) -> Prompt:
        with self._lock:
            if self._prompt is None:
                self._prompt, self._fields = prompt_from_wire(self._fields), {}
            return self._prompt


def read_job(message: Frame) -> Job:
    prompt, sampling = message["prompt"], dict(message["sampling"])
    sampling["logit_bias"] = tuple([(token, bias) for token, bias in sampling["logit_bias"]])
    sampling["dry_sequence_breakers"] = tuple(sampling["dry_sequence_breakers"])
    return Job(
        id=message["id"],
        prompt=prompt.read() if isinstance(prompt, _Shared) else prompt_from_wire(prompt),
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


def _read_grammar(kind: str, text: str, strict: bool) -> Grammar:
    return Grammar(GrammarKind(kind), text, strict)


def embed_frame(job: EmbeddingJob) -> Frame:
    return {"op": "embed", **_shallow(job)}


def read_embed(message: Frame) -> EmbeddingJob:
    inputs = tuple(each if isinstance(each, str) else tuple(each) for each in message["inputs"])
    return EmbeddingJob(message["id"], inputs, message["n_dimensions"])


def prompt_to_wire(prompt: Prompt) -> Frame:
    return {"op": type(prompt).__name__, **_shallow(prompt)}


def _shallow(message: Any) -> Frame:
    """The fields of a dataclass, and of those in it; nothing else is copied. Of many, each is made as it is written."""
    return {name: _on_wire(getattr(message, name)) for name in _names(message.__class__)}


def _on_wire(value: Any) -> Any:
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        messages = map(_shallow, value)
        return list(messages) if len(value) <= _N_AT_ONCE else messages
    return _shallow(value) if is_dataclass(value) else value


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple([field.name for field in fields(kind)])


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
                parse_special=message["parse_special"],
            )


def _read_message(fields: Frame) -> Message:
    calls = tuple([ToolCall(**call) for call in fields["tool_calls"]])
    return Message(**fields | {"tool_calls": calls})
