"""What a worker says of a job, from its acceptance to its end, and what each token was likely to be."""

from dataclasses import dataclass
from enum import StrEnum

from shimmy.messages.reply import TEXT_ONLY, ReplyFormat


class FinishReason(StrEnum):
    """Why a job ended: the model or a stop string ended it, or a limit did."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one finished job; `n_cached` of the `n_prompt` tokens came from a resident sequence."""

    n_prompt: int
    n_cached: int
    n_completion: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall time of one job in milliseconds: in the queue, for its prompt, and from its first token to its last.

    Beside it, how many tokens were guessed and decoded ahead, and how many of them were what then came; and the same of
    those that a draft model guessed, which are among them.
    """

    queue_ms: float
    prompt_ms: float
    predicted_ms: float
    n_drafted: int = 0
    n_accepted: int = 0
    n_model_drafted: int = 0
    n_model_accepted: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The worker has rendered, tokenized and checked the prompt: from here on the job can only run."""

    n_prompt: int
    format: ReplyFormat = TEXT_ONLY
    warnings: tuple[str, ...] = ()  # what the caller asked for and does not get, in words


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """An accepted job waits for its turn, for a job that wants to know; `n_before` jobs came earlier and wait, too."""

    n_before: int


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How much of its prompt a running job has read, for a job that wants to know; all in tokens.

    `n_read` begins with the `n_cached` tokens that were resident, and ends with `n_prompt`, before the first piece.
    """

    n_prompt: int
    n_cached: int
    n_read: int
    elapsed_ms: float  # since the job has run


JobProgress = QueuePlace | PromptProgress


# What OpenAI writes for a token that cannot come: JSON has no infinity.
LEAST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token and the natural logarithm of its probability; `data` are the bytes it stands for."""

    token: int
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of a reply or prompt, and the most likely ones at its place, the best first.

    Probabilities are the model's own, before any sampler. `chosen.logprob` is nan for the first token of a prompt,
    which nothing was predicted from.
    """

    chosen: Candidate
    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of `n_tokens` tokens; several pieces are joined when the reader is slow, so `text` may be long."""

    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()  # of each token, where they were asked for


@dataclass(frozen=True, slots=True)
class Echo:
    """A part of the prompt, for a job that wants it said; parts come in order, before the first piece."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a job that ran to its end."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_string: str | None = None  # which of the job's stop strings ended it


@dataclass(frozen=True, slots=True)
class Vectors:
    """The next embeddings of a job, in the order of its inputs: little-endian 32-bit floats, of length 1."""

    vectors: tuple[bytes, ...]


JobOutput = Accepted | JobProgress | Echo | Piece | Vectors | Finished


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input of a request, as in Vectors, and the end of the job that made them."""

    vectors: tuple[bytes, ...]
    finished: Finished
