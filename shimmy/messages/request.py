"""Frozen values that cross the borders between dialects, parent and worker. They know nothing of HTTP or llama.cpp."""

from dataclasses import dataclass, field, replace
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one job picks its tokens. Defaults and names are llama.cpp's; ranges are checked by `engine.sampling`."""

    seed: int | None = None  # 32 bits; None draws one at random for each job
    temperature: float = 0.8  # ≤ 0 picks the most likely token
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40  # ≤ 0 keeps the whole vocabulary
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    min_keep: int = 0
    repeat_last_n: int = 64  # -1 means the whole context
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64  # -1 means the whole context
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0  # 0 off, 1 or 2 the version
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, bias); -inf forbids the token
    ignore_eos: bool = False


# (index of an adapter of the model, scale); those not named have scale 0.
AdapterScales = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call an assistant message made earlier; `arguments` is what the model wrote for JSON text."""

    id: str
    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as a chat template sees it."""

    role: str
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning_content: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON Schema of its arguments, as JSON text."""

    name: str
    description: str = ""
    parameters: str = '{"type":"object","properties":{}}'
    strict: bool = False  # what of the schema cannot be enforced is refused, and not left to the model
    lark: str = ""  # the grammar of the one argument, a text under `TEXT_ARGUMENT`; empty: what the schema says


# The argument of a tool that takes one text and no object (OpenAI's `custom` tools).
TEXT_ARGUMENT = "input"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a job may do with the tools it is offered. Without `required` it may also answer in plain text."""

    required: bool = False
    name: str | None = None  # the one tool that has to be called; `required` then
    parallel: bool = True  # several calls in one reply


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages the worker renders with the model's chat template."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True
    tools: tuple[Tool, ...] = ()  # none where the caller forbids calls
    tool_choice: ToolChoice = ToolChoice()
    template_arguments: str = "{}"  # a JSON object of further variables for the template: `enable_thinking` and such
    continue_final_message: bool = False  # the reply goes on with the last message, which is the assistant's
    parse_special: bool = False  # texts such as `<|im_end|>` in messages are the tokens they stand for, and not text

    def with_system(self, text: str) -> "ChatPrompt":
        """The same after a system message that says `text`, unless it has one or there is no text."""
        if not text or any(turn.role in ("system", "developer") for turn in self.messages):
            return self
        return replace(self, messages=(Message("system", text), *self.messages))


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Plain text; special tokens written in it are recognised, as llama-server does."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, used as they are."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FillPrompt:
    """What stands before and behind the text to be written, for models that have tokens for it."""

    prefix: str
    suffix: str


Prompt = ChatPrompt | TextPrompt | TokenPrompt | FillPrompt


class GrammarKind(StrEnum):
    """The languages in which a caller may say what a reply has to look like."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GBNF = "gbnf"  # llama.cpp's notation
    LARK = "lark"  # llguidance's dialect of it


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply has to look like; CHOICE is a JSON array of texts, one of which it has to be."""

    kind: GrammarKind
    text: str
    strict: bool = True  # what of a schema cannot be enforced is refused, and not left to the model


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What every dialect turns a request body into, once."""

    model: str
    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n_predict: int | None = None  # None: until the end of generation or of the context
    stop: tuple[str, ...] = ()
    cache_prompt: bool = True  # False computes the whole prompt anew
    keep_alive_s: float | None = None  # how long the model stays loaded afterwards; None: as it is
    lora: AdapterScales | None = None  # None: every adapter at its own scale
    grammar: Grammar | None = None
    n_logprobs: int | None = None  # how many candidates are told beside each token; None: no log-probabilities at all
    echo: bool = False  # the reply begins with the prompt, with its log-probabilities where they are wanted
    n_thinking: int | None = None  # tokens of reasoning, after which it is ended; None: as many as the model likes
    tells_progress: bool = False  # the job's place in the queue and how much of its prompt is read are told
    constrained_by: str | None = None  # the caller's name for the grammar or the tools, for errors about them


# Text, or token ids used as they are.
EmbeddingInput = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What every dialect turns a request for embeddings into; `inputs` are not empty, and there is one at least."""

    model: str
    inputs: tuple[EmbeddingInput, ...]
    n_dimensions: int | None = None  # of each vector; None: as many as the model makes
    keep_alive_s: float | None = None  # as in GenerateRequest


@dataclass(frozen=True, slots=True)
class Job:
    """A request in its worker; `id` is unique within their connection."""

    id: int
    request: GenerateRequest


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """The same for embeddings."""

    id: int
    request: EmbedRequest
