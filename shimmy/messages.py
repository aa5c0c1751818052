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


# A larger scale of an adapter is a mistake: it drives a model out of the range of its number formats.
MAX_ADAPTER_SCALE = 100.0
# (index of an adapter of the model, scale); those not named have scale 0.
AdapterScales = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that a model has loaded, and its scale for requests that bring none."""

    path: str
    scale: float


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """What a model brings along for requests that say nothing else."""

    sampling: tuple[tuple[str, float], ...] = ()  # fields of SamplingParams, and their values
    n_predict: int | None = None
    stop: tuple[str, ...] = ()
    system: str = ""  # for conversations without a system message


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
class EmbeddingJob:
    """The embeddings of some inputs in a worker; `id` as in Job."""

    id: int
    inputs: tuple[EmbeddingInput, ...]
    n_dimensions: int | None


@dataclass(frozen=True, slots=True)
class Job:
    """One generation in a worker; `id` is unique within its connection."""

    id: int
    prompt: Prompt
    sampling: SamplingParams
    n_predict: int | None
    stop: tuple[str, ...]
    cache_prompt: bool
    lora: AdapterScales | None = None
    grammar: Grammar | None = None
    n_logprobs: int | None = None
    echo: bool = False
    n_thinking: int | None = None


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
class ToolFormat:
    """How a model writes tool calls: `section_start`, calls joined by `between`, `section_end`.

    A call is `call_start`, its body and `call_end`. The body is a JSON object with a name and arguments under the keys
    given here, or, where there is a `separator`, the bare name, the separator and the arguments as a JSON object.
    Where nothing at all stands between two calls, neither `call_start` nor `between`, a reply has one call at most.
    """

    section_start: str = ""
    call_start: str = ""
    call_end: str = ""
    between: str = ""
    section_end: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    # Of an id that the model writes itself, behind the arguments; empty where it writes none. Beside a bare name there
    # are no keys: there it is what stands between the name and the id, which the separator follows.
    id_key: str = ""
    separator: str | None = None


class Beside(StrEnum):
    """What a reply may hold beside reasoning and calls."""

    TEXT = "text"  # which never begins as a call does
    ANSWER = "answer"  # what another grammar takes, and what may begin like a call that no mark announces
    NOTHING = "nothing"  # a call is required


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How the text of a job is to be read."""

    thinking: tuple[str, str] | None = None  # what begins and what ends reasoning
    is_thinking: bool = False  # the prompt has begun it already
    tools: ToolFormat | None = None  # None: what looks like a call is text
    beside: Beside = Beside.TEXT  # calls; without `tools` it says nothing
    stop: tuple[str, ...] = ()  # ends the content; a worker that can say nothing else has ended the text there itself

    def with_stop(self, stop: tuple[str, ...]) -> "ReplyFormat":
        """The same for a job with these stop strings: they count in the content, not in reasoning nor in calls."""
        return self if self.thinking is None and self.tools is None else replace(self, stop=stop)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The worker has rendered, tokenized and checked the prompt: from here on the job can only run."""

    n_prompt: int
    format: ReplyFormat = ReplyFormat()
    warnings: tuple[str, ...] = ()  # what the caller asked for and does not get, in words


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


Event = Accepted | Echo | Piece | Vectors | Finished


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """Part of the call number `index` of a reply; `id` and `name` are in its first part only."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What a piece of a reply adds to it, as its ReplyFormat reads it."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each input of a request, as in Vectors, and the end of the job that made them."""

    vectors: tuple[bytes, ...]
    finished: Finished


@dataclass(frozen=True, slots=True)
class PromptTraffic:
    """What has happened between a worker and the prompts on the disk since it was told last."""

    n_hits: int = 0  # prompts that went on from what was stored
    n_misses: int = 0  # those that had to be computed
    n_tokens: int = 0  # of the hits: that were not computed
    read_bytes: int = 0
    written_bytes: int = 0
    stored_bytes: int | None = None  # of all files, once something was written


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a worker knows of its model once it is loaded."""

    n_ctx: int  # tokens in the KV pool, shared by all sequences
    n_ctx_train: int
    n_vocab: int
    n_sequences: int
    n_params: int
    size_bytes: int
    description: str
    cpu_variant: str
    has_chat_template: bool
    template_error: str | None = None  # why the chat template does not render a plain message
    load_s: float = 0.0
    validation_s: float = 0.0  # of which the first decode and the first rendering took
    adapters: tuple[Adapter, ...] = ()  # in the order of their ids
    longest_token_bytes: int | None = None  # bytes of UTF-8 that one token stands for at most; None: any number
    cpu_variant_note: str = ""  # which better variants do not work on this machine, and why
