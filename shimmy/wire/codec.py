"""What parent and worker say to each other over their socket: frames of JSON behind a length, never pickle.

Knows frames, and how each message to a worker is written and read back; the two ends decide what to do with it. Parent
to worker: `open`, `job`, `jobs`, `embed`, `cancel`, `call`, `share`. What a worker says is in `reports`.
A frame is its payload's length (4 bytes, big-endian) and the payload. A large one comes in parts: the highest bit of a
length says that more of the payload follows, behind a length of its own, so that no end has to have all of it at once
before the first byte is written. Reading a malformed frame raises ProtocolError.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any

from shimmy.messages.request import (
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
from shimmy.wire.frames import Frame
from shimmy.wire.worker_options import CpuShare, WorkerOptions

_N_AT_ONCE = 64  # messages, and what else a prompt has many of


# -- parent to worker ----------------------------------------------------------------------------------------------


def open_frame(options: WorkerOptions) -> Frame:
    return {"op": "open", **asdict(options)}


def read_options(message: Frame) -> WorkerOptions:
    options = {key: value for key, value in message.items() if key != "op"}
    lora = tuple((path, scale) for path, scale in options.pop("lora"))
    given = {"lora": lora, "siblings": tuple(options["siblings"]), "share": CpuShare(**options["share"])}
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
