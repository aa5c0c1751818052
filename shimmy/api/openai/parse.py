"""Bodies of OpenAI's chat completions and completions, with the extensions of llama-server and vLLM, to jobs.

Pure functions of the decoded JSON. A field in one of the tables is honoured or refused; a field in none of them is
ignored. `n`, `best_of` and several prompts are several jobs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shimmy.api.openai.messages import PROMPT_FIELDS, PROMPT_REQUIRED, chat_prompt
from shimmy.api.request_fields.field_kinds import (
    Boolean,
    Fields,
    FreeObject,
    Integer,
    Json,
    NotServed,
    OneOf,
    Record,
    TokenIds,
    WithoutEffect,
    boolean,
    not_together,
    read_array,
    read_text,
    refuse,
    text,
)
from shimmy.api.request_fields.job import JOB_FIELDS, generate_request, limit
from shimmy.api.request_fields.tool_kinds import ToolSet
from shimmy.messages.model_info import ModelDefaults
from shimmy.messages.request import FillPrompt, GenerateRequest, Prompt, TextPrompt, TokenPrompt

if TYPE_CHECKING:
    from shimmy.config import Config

N_CHOICES_MAX = 128  # of one prompt, as OpenAI has it
N_JOBS_MAX = 256  # of one request
N_CANDIDATES_MAX = 20  # beside each token; OpenAI's completions have 5

# The first of these that is set limits the reply; -1 means no limit.
LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
NO_DEFAULTS = ModelDefaults()
PROMPT = "a string, an array of token ids, or an array of these"

_token_ids = TokenIds()
_candidates = Integer(0, N_CANDIDATES_MAX)


@dataclass(frozen=True, slots=True)
class PromptsField:
    """One prompt, or an array of them."""

    def read(self, value: object, path: str) -> tuple[TextPrompt | TokenPrompt, ...]:
        if isinstance(value, str):
            return (TextPrompt(read_text(value, path)),)
        items = read_array(value, path, PROMPT)
        if not items:
            refuse(path, PROMPT, "an empty array")
        if not isinstance(items[0], str | list):
            return (TokenPrompt(_token_ids.read(items, path)),)
        if len(items) > N_JOBS_MAX:
            refuse(path, f"at most {N_JOBS_MAX} prompts", str(len(items)))
        return tuple(self._prompt(item, f"{path}[{index}]") for index, item in enumerate(items))

    def schema(self) -> Json:
        one: list[Json] = [text.schema(), _token_ids.schema() | {"minItems": 1}]
        several = {"type": "array", "items": {"anyOf": one}, "minItems": 1, "maxItems": N_JOBS_MAX}
        return {"anyOf": [*one, several]}

    @staticmethod
    def _prompt(value: object, path: str) -> TextPrompt | TokenPrompt:
        if isinstance(value, str):
            return TextPrompt(read_text(value, path))
        expected = "a string or an array of token ids"
        tokens = _token_ids.read(read_array(value, path, expected), path)
        return TokenPrompt(tokens or refuse(path, expected, "an empty array"))


_FIELDS: Fields = {
    **JOB_FIELDS,
    **dict.fromkeys(LIMITS, limit),
    "n": Integer(1, N_CHOICES_MAX),
    "n_probs": _candidates,  # llama-server's: as many log-probabilities, or none for 0
    "stream": boolean,
    "stream_options": Record({"include_usage": boolean}),
    "return_progress": boolean,  # llama-server's; only streams have it
    "user": WithoutEffect(),
    "metadata": WithoutEffect(),
    "store": WithoutEffect(),
    "service_tier": WithoutEffect(),
    "safety_identifier": WithoutEffect(),
    "prompt_cache_key": WithoutEffect(),
    "prompt_cache_options": WithoutEffect(),
    "prompt_cache_retention": WithoutEffect(),
    "prediction": WithoutEffect(),  # it makes OpenAI's models faster, and does not change their replies
}
CHAT = Record(
    {
        **PROMPT_FIELDS,
        **_FIELDS,
        "logprobs": boolean,
        "top_logprobs": _candidates,
        "reasoning_format": OneOf(("auto", "deepseek", "none")),
        "best_of": NotServed((1,)),
        "echo": NotServed((False,)),
        "suffix": NotServed(("",)),
        "modalities": NotServed((["text"],)),
        "audio": NotServed(),
        "moderation": NotServed(),
        "web_search_options": FreeObject(),
    },
    PROMPT_REQUIRED,
)
COMPLETION = Record(
    {
        "prompt": PromptsField(),
        **_FIELDS,
        "best_of": Integer(1, N_CHOICES_MAX),
        "logprobs": _candidates,
        "echo": Boolean(),
        "suffix": text,
        "top_logprobs": NotServed((0,)),
        "reasoning_format": NotServed(("none", "auto")),
        "reasoning_effort": NotServed(("none",)),
        "chat_template_kwargs": NotServed(({},)),
        "continue_final_message": NotServed((False,)),
        "tools": NotServed(([],)),
        "tool_choice": NotServed(("none", "auto")),
        "functions": NotServed(([],)),
        "function_call": NotServed(("none", "auto")),
    },
    {"prompt": PROMPT},
)


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How a reply is made from the events of its jobs; the model does not know of it."""

    stream: bool = False
    include_usage: bool = False
    n: int = 1  # choices for each prompt
    best_of: int = 1  # jobs for each prompt, of which the `n` most likely ones are told
    n_logprobs: int | None = None  # candidates told beside each token; None: no log-probabilities
    splits_reasoning: bool = True
    is_legacy: bool = False  # calls are written as `function_call`
    text_tools: frozenset[str] = frozenset()  # whose calls are `custom` ones
    warnings: tuple[str, ...] = ()  # of fields that are not served, without which the reply is still right


@dataclass(frozen=True, slots=True)
class JobsOfBody:
    """What a body asks for: jobs, those of the first prompt first, and how the reply is made from them."""

    jobs: tuple[GenerateRequest, ...]
    options: ReplyOptions


def chat_call(body: Json, config: "Config", defaults: ModelDefaults = NO_DEFAULTS) -> JobsOfBody:
    """`defaults` are the model's; raises BadRequest for a body that cannot be honoured as it is written."""
    given = CHAT.read(body)
    n_logprobs = given.get("n_probs") or None
    if given.get("logprobs"):
        n_logprobs = given.get("top_logprobs", n_logprobs or 0)
    elif given.get("top_logprobs"):
        refuse("logprobs", "true where there is top_logprobs", "false" if "logprobs" in given else "nothing")
    prompt = chat_prompt(given).with_system(defaults.system)
    job = generate_request(given, prompt, config, defaults, LIMITS)
    n = given.get("n", 1)
    options = _options(
        given,
        n=n,
        best_of=n,
        n_logprobs=n_logprobs,
        splits_reasoning=given.get("reasoning_format") != "none",
        is_legacy=bool(given.get("functions")),
        text_tools=frozenset(given.get("tools", ToolSet()).special),
        warnings=_warnings(given),
    )
    return JobsOfBody(tuple(_samples(replace(job, n_logprobs=n_logprobs), n)), options)


def _warnings(given: Mapping[str, Any]) -> tuple[str, ...]:
    tools: ToolSet = given.get("tools", ToolSet())
    searches = ("web_search_options: this server does not search the web",) if "web_search_options" in given else ()
    return (*searches, *tools.warnings)


def completion_call(body: Json, config: "Config", defaults: ModelDefaults = NO_DEFAULTS) -> JobsOfBody:
    """`defaults` are the model's; raises BadRequest for a body that cannot be honoured as it is written."""
    given = COMPLETION.read(body)
    n, n_logprobs = given.get("n", 1), given.get("n_probs") or given.get("logprobs")
    best_of = given.get("best_of", n)
    if best_of < n:
        refuse("best_of", f"an integer not below n, which is {n}", str(best_of))
    if best_of > n and given.get("stream"):
        not_together("best_of", "stream")
    prompts = _prompts(given)
    if len(prompts) * best_of > N_JOBS_MAX:
        refuse("prompt", f"at most {N_JOBS_MAX} prompts times choices", str(len(prompts) * best_of))
    job = replace(
        generate_request(given, prompts[0], config, defaults, LIMITS),
        echo=given.get("echo", False),
        # Choosing the best needs the likelihood of each.
        n_logprobs=0 if n_logprobs is None and best_of > n else n_logprobs,
    )
    jobs = tuple(sample for prompt in prompts for sample in _samples(replace(job, prompt=prompt), best_of))
    return JobsOfBody(jobs, _options(given, n=n, best_of=best_of, n_logprobs=n_logprobs))


def _options(given: Mapping[str, Any], **others: Any) -> ReplyOptions:
    include_usage = given.get("stream_options", {}).get("include_usage", False)
    return ReplyOptions(given.get("stream", False), include_usage, **others)


def _samples(job: GenerateRequest, n: int) -> Iterator[GenerateRequest]:
    """`n` jobs that differ in their seeds; without a seed each of them draws its own."""
    seed = job.sampling.seed
    for index in range(n):
        if seed is None or not index:
            yield job
        else:
            yield replace(job, sampling=replace(job.sampling, seed=(seed + index) % 2**32))


def _prompts(given: Mapping[str, Any]) -> Sequence[Prompt]:
    """The prompts, with a gap to fill before the `suffix` where there is one."""
    prompts: tuple[TextPrompt | TokenPrompt, ...] = given["prompt"]
    suffix = given.get("suffix")
    if not suffix:
        return prompts
    if given.get("echo"):
        not_together("suffix", "echo")
    gaps = [FillPrompt(prompt.text, suffix) for prompt in prompts if isinstance(prompt, TextPrompt)]
    if len(gaps) < len(prompts):
        refuse("prompt", "text where there is a suffix", "token ids")
    return gaps
