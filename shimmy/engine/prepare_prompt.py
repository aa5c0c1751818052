"""Makes a scheduler's task of a job: tokens of the prompt, a chain of samplers, and the guide that the reply obeys.

Knows the loaded model, its template and its adapters; nothing of the socket or of other jobs.
"""

import logging
import random
import threading
from array import array
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shimmy.engine import lora_adapters
from shimmy.engine.chat.control_tokens import ControlTokens
from shimmy.engine.chat.render import Chat
from shimmy.engine.chat.template import ChatTemplate
from shimmy.engine.constrain.constraints import GuideFactory
from shimmy.engine.llama import sampler_chain
from shimmy.engine.llama.model import LlamaModel
from shimmy.engine.schedule.embedder import EmbeddingTask
from shimmy.engine.schedule.task import Task
from shimmy.errors import BadRequest, ContextExceeded, ModelUnavailable, TemplateFailed
from shimmy.formats.format_errors import Unconvertible
from shimmy.messages import sampling_limits
from shimmy.messages.model_info import Adapter
from shimmy.messages.reply import Beside, ReplyFormat
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
from shimmy.wire import codec

if TYPE_CHECKING:
    from shimmy.formats.tokenizer.normalizer import Normalizer

logger = logging.getLogger(__name__)

# The tokens of shorter texts are found sooner than anybody could notice.
_WORTH_REMEMBERING = 512
# Of texts that were tokenized, so many characters in all.
_N_REMEMBERED = 1 << 20

# A prompt that is only so many tokens too long is counted to the end, for the error message.
_WORTH_COUNTING = 1 << 14

_Asked = tuple[str, bool, bool]  # a text, and how to tokenize it
Pause = Callable[[], None]


def _go_on() -> None:
    """A pause that does nothing."""


class _Remembered:
    """The tokens of the texts that were asked for last: a reply is made again, or several are made of one prompt."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[_Asked, array[int]] = {}  # the one asked for last is last
        self._n_characters = 0

    def get(self, asked: _Asked) -> list[int] | None:
        with self._lock:
            tokens = self._tokens.pop(asked, None)
            if tokens is None:
                return None
            self._tokens[asked] = tokens
            return tokens.tolist()

    def add(self, asked: _Asked, tokens: list[int]) -> None:
        """Remember those of a text where it is neither short nor too long."""
        if not _WORTH_REMEMBERING <= len(asked[0]) <= _N_REMEMBERED:
            return
        with self._lock:
            if asked not in self._tokens:
                self._n_characters += len(asked[0])
            self._tokens[asked] = array("i", tokens)
            while self._n_characters > _N_REMEMBERED:
                eldest = next(iter(self._tokens))
                del self._tokens[eldest]
                self._n_characters -= len(eldest[0])


class _TooMany(Exception):
    """There are more tokens than may be; `n_tokens` at least."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__(n_tokens)
        self.n_tokens = n_tokens


class _Reading:
    """The tokens of a prompt while it is read, and how many there may be; None for any number."""

    def __init__(self, pause: Pause, n_max: int | None = None) -> None:
        self.pause = pause
        self.n_max = n_max
        self.n_tokens = 0

    def take(self, n_tokens: int) -> None:
        """So many more; raises _TooMany, and what `pause` raises."""
        self.n_tokens += n_tokens
        if self.n_max is not None and self.n_tokens > self.n_max + _WORTH_COUNTING:
            raise _TooMany(self.n_tokens)
        self.pause()


class PromptPreparer:
    """Turns prompts into tokens and jobs into tasks, on threads beside the decoding one, of which several may use it.

    What takes long is given a `pause`, which it calls between its steps: others get on, and it raises what ends it.
    """

    def __init__(self, model: LlamaModel, template_source: str | None, loaded: tuple[Adapter, ...] = ()) -> None:
        self._model = model
        self._vocab = model.vocab
        self.adapters = loaded
        self._normalizer = _normalizer(model)
        self._chat: Chat | TemplateFailed
        source = model.chat_template() if template_source is None else template_source
        for_tools = model.chat_template("tool_use") if template_source is None else None
        self.has_chat_template = source is not None
        try:
            template, of_tools = self._compiled(source), self._compiled(for_tools)
            self.has_chat_template = template is not None
            self._chat = Chat(
                template
                or ChatTemplate(None, bos=model.vocab.special_text("bos"), eos=model.vocab.special_text("eos")),
                of_tools,
                ControlTokens(model.vocab.control_texts(), "" if self._normalizer is None else self._normalizer.form),
            )
        except TemplateFailed as error:
            # A model with a broken template still completes plain text; only chats are refused.
            logger.warning("the chat template of the model does not compile: %s", error.message)
            self._chat = error
        self._guides = GuideFactory(model.vocab)
        self._end_tokens: list[int] | None = None
        self._tells_of_template = not self.has_chat_template  # with the first chat
        self._remembered = _Remembered()
        self._longest_token_bytes = model.vocab.tokenizer.longest_token_bytes()

    def task(self, job: Job, pause: Pause = _go_on) -> Task:
        """Check and prepare a job; raises BadRequest, ContextExceeded or TemplateFailed."""
        if not self._model.writes:
            raise BadRequest("the model makes embeddings and writes no text", param="model")
        received_s = perf_counter()
        request, sampling = job.request, job.request.sampling
        biases = list(sampling.logit_bias)
        n_forbidden = 0
        if sampling.ignore_eos:
            biases += [(token, float("-inf")) for token in self._ends()]
            n_forbidden = len(self._ends())
        sampling_limits.check(sampling, n_vocab=self._vocab.n_vocab, n_forbidden=n_forbidden)
        tokens, reply_format = self._prompt(request.prompt, pause)
        reply_format = replace(reply_format, beside=_beside_calls(request))
        scales = lora_adapters.scales(self.adapters, request.lora)
        guide, warnings = self._guides.guide(request, reply_format, pause)
        seed = random.getrandbits(32) if sampling.seed is None else sampling.seed
        chain = sampler_chain.chain(sampling, seed=seed, n_ctx=self._model.n_ctx)
        sampler = self._model.new_sampler(chain, biases, sampling.dry_sequence_breakers, tokens)
        marks = self._guides.marks(reply_format)
        return Task(job, tokens, sampler, received_s, scales, guide, reply_format, marks, warnings)

    def _prompt(self, prompt: Prompt, pause: Pause) -> tuple[list[int], ReplyFormat]:
        """The tokens of a prompt that leaves room for a reply, and the format of that."""
        reading = _Reading(pause, self._model.n_ctx)
        if isinstance(prompt, ChatPrompt) and self._tells_of_template:
            self._tells_of_template = False
            logger.warning(
                "the model has no chat template: chats get a generic one (ChatML), and replies may be odd; "
                "`--chat-template-file` names another"
            )
        parts, reply_format = self._parts(prompt) if isinstance(prompt, ChatPrompt) else ([], ReplyFormat())
        pause()
        tokens, n_tokens = self._counted(parts or prompt, "prompt", reading)
        if not tokens or len(tokens) >= self._model.n_ctx:
            # OpenAI's words: some clients know this error by them alone.
            raise ContextExceeded(
                f"the prompt has {n_tokens} tokens, this model's maximum context length is {self._model.n_ctx} "
                "tokens: shorten the prompt or raise `--ctx-size`"
            )
        return tokens, reply_format

    def _counted(self, prompt: Prompt | list[str], name: str, reading: _Reading) -> tuple[list[int], str]:
        """The tokens of a prompt, or of the parts of a chat's text, and how many they are; none where they are far too
        many."""
        try:
            if isinstance(prompt, list):
                tokens = self._at_least_one(self._tokens_of_parts(prompt, reading), name)
            else:
                tokens = self._tokens(prompt, name, reading)
        except _TooMany as exc:
            return [], f"at least {exc.n_tokens}"
        return tokens, str(len(tokens))

    def echo(self, task: Task) -> str:
        """The prompt of a task as its caller wrote it, and tokens as the vocabulary spells them."""
        prompt = task.job.request.prompt
        return prompt.text if isinstance(prompt, TextPrompt) else self._vocab.detokenize(task.tokens)

    def embedding_task(self, job: EmbeddingJob, pause: Pause = _go_on) -> EmbeddingTask:
        """Check and prepare a job of embeddings. Raises BadRequest or ContextExceeded."""
        received_s = perf_counter()
        request = job.request
        context = self._model.embeddings
        if context is None:
            raise BadRequest("the model makes no embeddings", param="model")
        if (request.n_dimensions or 0) > context.n_embd:
            message = f"dimensions: the model makes vectors of {context.n_embd} numbers, got {request.n_dimensions}"
            raise BadRequest(message, param="dimensions")
        inputs = []
        for index, given in enumerate(request.inputs):
            name = f"input[{index}]" if len(request.inputs) > 1 else "input"
            prompt = TextPrompt(given) if isinstance(given, str) else TokenPrompt(given)
            tokens, n_tokens = self._counted(prompt, name, _Reading(pause, context.n_ctx))
            inputs.append(tokens)
            if not tokens or len(tokens) > context.n_ctx:
                raise ContextExceeded(
                    f"`{name}` has {n_tokens} tokens, the model takes {context.n_ctx} here: shorten it"
                    + (" or raise `--ctx-size`" if context.n_ctx < self._model.n_ctx_train else ""),
                    param=name,
                )
        return EmbeddingTask(job.id, inputs, request.n_dimensions or context.n_embd, received_s)

    def tokens(self, prompt: Prompt, name: str = "prompt") -> list[int]:
        """The prompt as tokens, at least one and however many; `name` is that of its field."""
        return self._tokens(prompt, name, _Reading(_go_on))

    def _tokens(self, prompt: Prompt, name: str, reading: _Reading) -> list[int]:
        match prompt:
            case ChatPrompt():
                tokens = self._tokens_of_parts(self._parts(prompt)[0], reading)
            case TextPrompt(text):
                tokens = self._tokenized(text, reading, add_special=True, parse_special=True)
            case FillPrompt(prefix, suffix):
                tokens = self._around_a_gap(prefix, suffix, reading)
            case TokenPrompt():
                tokens = list(prompt.tokens)
                reading.take(len(tokens))
                self.check_tokens(tokens, name)
        return self._at_least_one(tokens, name)

    def _at_least_one(self, tokens: list[int], name: str) -> list[int]:
        if tokens:
            return tokens
        bos = self._vocab.bos_token()
        if bos is None:
            raise BadRequest(f"the {name} is empty and the model has no token to begin with", param=name)
        return [bos]

    def _tokens_of_parts(self, parts: list[str], reading: _Reading) -> list[int]:
        """The tokens of a text that no control token goes across the parts of."""
        if len(parts) == 1:
            return self._tokenized(parts[0], reading, add_special=True, parse_special=True)
        tokens = self._tokenized(parts[0], reading, add_special=False, parse_special=True)
        for part in parts[1:]:
            tokens += self._behind(part, reading)
        return self._with_one_bos(self._surrounded(tokens))

    def _surrounded(self, tokens: list[int]) -> list[int]:
        """`tokens` with those that the tokenizer puts around every text."""
        around = self._vocab.tokenize("", add_special=True, parse_special=True)
        n_before = int(self._vocab.adds_bos)
        return [*around[:n_before], *tokens, *around[n_before:]]

    def _behind(self, part: str, reading: _Reading) -> list[int]:
        """The tokens of a part that is not the first: some tokenizers put a space before every text."""
        if not self._vocab.may_add_spaces and self._normalizer is None:
            return self._tokenized(part, reading, add_special=False, parse_special=True)
        self._check_length(part, reading)
        before = self._tokenized("\n", _Reading(reading.pause), add_special=False, parse_special=True)
        tokens = self._tokenized(f"\n{part}", _Reading(reading.pause), add_special=False, parse_special=True)
        if tokens[: len(before)] != before:
            return self._tokenized(part, reading, add_special=False, parse_special=True)
        reading.take(len(tokens) - len(before))
        return tokens[len(before) :]

    def _with_one_bos(self, tokens: list[int]) -> list[int]:
        """`tokens` without the beginning of a text that the tokenizer has put before the one which was written.

        Encoders keep both, as their own tokenizers do.
        """
        makes_only_embeddings = self._model.embeddings is not None and not self._model.writes
        if makes_only_embeddings or not self._vocab.adds_bos:
            return tokens
        is_twice = len(tokens) > 1 and tokens[0] == tokens[1] == self._vocab.bos_token()
        return tokens[1:] if is_twice else tokens

    def _around_a_gap(self, prefix: str, suffix: str, reading: _Reading) -> list[int]:
        """llama-server's order: what stands before, what stands behind, and the token that asks for the middle."""
        marks = self._vocab.fill_tokens()
        if marks is None:
            raise BadRequest("suffix: the model has no tokens for filling in the middle", param="suffix")
        before, behind, middle = marks
        tokens = [before, *self._tokenized(prefix, reading, add_special=False, parse_special=False)]
        tokens += [behind, *self._tokenized(suffix, reading, add_special=False, parse_special=False), middle]
        bos = self._vocab.bos_token() if self._vocab.adds_bos else None
        return tokens if bos is None else [bos, *tokens]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool, pause: Pause = _go_on) -> list[int]:
        return self._tokenized(text, _Reading(pause), add_special=add_special, parse_special=parse_special)

    def _tokenized(self, text: str, reading: _Reading, *, add_special: bool, parse_special: bool) -> list[int]:
        asked = text, add_special, parse_special
        tokens = self._remembered.get(asked)
        if tokens is not None:
            reading.take(len(tokens))
            return tokens
        self._check_length(text, reading)
        parts = [text] if self._normalizer is None else self._normalizer.parts(text, parse_special=parse_special)
        adds_around = add_special and len(parts) == 1
        tokens = []
        for part in parts:
            for found in self._vocab.tokenizer.slices(part, add_special=adds_around, parse_special=parse_special):
                tokens += found
                reading.take(len(found))
        if add_special and not adds_around:
            tokens = self._surrounded(tokens)
        if add_special and parse_special:
            tokens = self._with_one_bos(tokens)
        self._remembered.add(asked, tokens)
        return tokens

    def _check_length(self, text: str, reading: _Reading) -> None:
        """Raises _TooMany where a text has too many tokens however they are cut; looks at none of them."""
        longest = self._longest_token_bytes
        if longest is None or reading.n_max is None or 4 * len(text) <= reading.n_max * longest:
            return
        n_tokens = -(-len(text.encode("utf-8", "replace")) // longest)
        if n_tokens > reading.n_max + _WORTH_COUNTING:
            raise _TooMany(n_tokens)

    def render(self, prompt: ChatPrompt) -> str:
        return "".join(self._parts(prompt)[0])

    def _parts(self, prompt: ChatPrompt) -> tuple[list[str], ReplyFormat]:
        if isinstance(self._chat, TemplateFailed):
            raise TemplateFailed(self._chat.message)
        return self._chat.parts(prompt)

    def _compiled(self, source: str | None) -> ChatTemplate | None:
        """The template in `source`; None for one that writes nothing: the model has none then."""
        if source is None or not source.strip():
            return None
        template = ChatTemplate(source, bos=self._vocab.special_text("bos"), eos=self._vocab.special_text("eos"))
        return None if template.shows_nothing() else template

    def check_tokens(self, tokens: list[int], param: str) -> None:
        for token in tokens:
            if not 0 <= token < self._vocab.n_vocab:
                message = f"`{param}` has token {token}, the vocabulary has 0 to {self._vocab.n_vocab - 1}"
                raise BadRequest(message, param=param)

    def call(self, name: str, arguments: dict[str, Any], pause: Pause = _go_on) -> list[int] | str:
        """The answer to a `call` frame: the small questions about text and tokens."""
        match name:
            case "tokenize":
                return self.tokenize(**arguments, pause=pause)
            case "detokenize":
                self.check_tokens(arguments["tokens"], "tokens")
                pause()
                return self._vocab.detokenize(arguments["tokens"])
            case _:
                prompt = codec.prompt_from_wire(arguments["prompt"])
                assert isinstance(prompt, ChatPrompt)
                pause()
                return self.render(prompt)

    def _ends(self) -> list[int]:
        if self._end_tokens is None:
            self._end_tokens = self._vocab.end_tokens()
        return self._end_tokens


def _normalizer(model: LlamaModel) -> "Normalizer | None":
    """What the tokenizer of a converted model does to text before llama.cpp sees it; raises ModelUnavailable."""
    stored = model.metadata("shimmy.tokenizer.normalizer")
    if stored is None:
        return None
    from shimmy.formats.tokenizer.normalizer import Normalizer  # few models need it

    try:
        return Normalizer.from_text(stored)
    except Unconvertible as exc:
        raise ModelUnavailable(f"the model cannot be used: {exc}") from exc


def _beside_calls(request: GenerateRequest) -> Beside:
    if request.grammar is not None:
        return Beside.ANSWER
    is_required = isinstance(request.prompt, ChatPrompt) and request.prompt.tool_choice.required
    return Beside.NOTHING if is_required else Beside.TEXT
