"""What a parent says to its worker over their socket.

Knows which messages a worker gets, and what several jobs share; the two ends decide what to do with it. Parent to
worker: `open`, `job`, `jobs`, `embed`, `cancel`, `call`, `share`. Their fields are those of the dataclasses that they
carry, which `records` writes and reads. What a worker says is in `reports`.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import get_args

from shimmy.messages.request import (
    ChatPrompt,
    EmbeddingJob,
    FillPrompt,
    GenerateRequest,
    Job,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from shimmy.wire import records
from shimmy.wire.frames import Frame
from shimmy.wire.worker_options import CpuShare, WorkerOptions

_PROMPTS: dict[str, type[Prompt]] = {kind.__name__: kind for kind in get_args(Prompt)}


# -- parent to worker ----------------------------------------------------------------------------------------------


def open_frame(options: WorkerOptions) -> Frame:
    return {"op": "open", **records.to_wire(options)}


def read_options(message: Frame) -> WorkerOptions:
    return records.read(WorkerOptions, message)


def share_frame(share: CpuShare) -> Frame:
    return {"op": "share", **records.to_wire(share)}


def read_share(message: Frame) -> CpuShare:
    return records.read(CpuShare, message)


def job_frame(job: Job) -> Frame:
    return {"op": "job", "id": job.id, "prompt": prompt_to_wire(job.request.prompt), "request": _but_prompt(job)}


def jobs_frame(jobs: Sequence[Job]) -> Frame:
    """Jobs that differ in their ids, their prompts and their seeds alone: what they share, they say once."""
    if len(jobs) == 1:
        return job_frame(jobs[0])
    prompts = {id(job.request.prompt): job.request.prompt for job in jobs}
    places = {address: index for index, address in enumerate(prompts)}
    return {
        "op": "jobs",
        "jobs": [(job.id, places[id(job.request.prompt)], job.request.sampling.seed) for job in jobs],
        "prompts": [prompt_to_wire(prompt) for prompt in prompts.values()],
        "request": _but_prompt(jobs[0]),
    }


def _but_prompt(job: Job) -> Frame:
    return records.to_wire(job.request, "prompt")


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
    request, prompts = message["request"], [_Shared(prompt) for prompt in message["prompts"]]
    for job_id, place, seed in message["jobs"]:
        own = request | {"sampling": request["sampling"] | {"seed": seed}}
        yield {"op": "job", "id": job_id, "prompt": prompts[place], "request": own}


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
    given = message["prompt"]
    prompt = given.read() if isinstance(given, _Shared) else prompt_from_wire(given)
    return Job(message["id"], records.read(GenerateRequest, message["request"], prompt=prompt))


def embed_frame(job: EmbeddingJob) -> Frame:
    return {"op": "embed", **records.to_wire(job)}


def read_embed(message: Frame) -> EmbeddingJob:
    return records.read(EmbeddingJob, message)


def prompt_to_wire(prompt: Prompt) -> Frame:
    return {"op": type(prompt).__name__, **records.to_wire(prompt)}


def prompt_from_wire(message: Frame) -> Prompt:
    return records.read(_PROMPTS[message["op"]], message)
