"""The vocabulary of a Hugging Face folder as GGUF metadata: tokens, special tokens, chat template.

Knows the files around a tokenizer (tokenizer_config.json, generation_config.json and so on), which token plays which
role, and the keys `tokenizer.*` that src/llama-vocab.cpp reads. What the tokens are is known by `tokenizer_json`.
All of it is untrusted: sizes, counts and ids are bounded, and what llama.cpp would stumble over is refused.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shimmy.formats import git_lfs
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.writer import GgufType
from shimmy.formats.safetensors.huggingface import ADDITIONAL_TEMPLATES
from shimmy.formats.tokenizer import (
    known_names,
    post_processor,
    pretokenizers,
    sentencepiece,
    tiktoken,
    tiktoken_tokens,
)
from shimmy.formats.tokenizer import normalizer as normalizers
from shimmy.formats.tokenizer.pretokenizers import shown
from shimmy.formats.tokenizer.sentencepiece import PieceType
from shimmy.formats.tokenizer.tokenizer_json import (
    MAX_ADDED_TOKENS,
    MAX_TOKEN_CHARACTERS,
    MAX_TOKENS,
    AddedToken,
    Tokens,
    added_token,
    from_json,
    from_sentencepiece,
)
from shimmy.system.files import NotRegular, read_start
from shimmy.text.surrogates import has_lone_surrogate

MAX_TOKENIZER_BYTES = 256 << 20  # Gemma's has 33 MB
MAX_CONFIG_BYTES = 16 << 20  # with thousands of added tokens
MAX_TEMPLATE_BYTES = 1 << 20
# Objects, arrays and values in one JSON file: what it takes in memory. Gemma's tokenizer.json has 0.5 M and 1.6 M.
MAX_JSON_CONTAINERS = 2 << 20
MAX_JSON_VALUES = 8 << 20

Metadata = list[tuple[str, GgufType, Any]]

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # llama.cpp's spelling
    "pad": "tokenizer.ggml.padding_token_id",
    "cls": "tokenizer.ggml.cls_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
# Mistral's tokenizers as transformers 4 wrote them cut text as Llama 3 does, where the models learned from other cuts:
# `fix_mistral_regex` of transformers 5.
_NOT_MISTRALS = "llama-bpe"
_MISTRAL_TYPES = frozenset(("mistral", "ministral3"))
_MISTRALS = frozenset(("[INST]", "[/INST]", "[TOOL_CALLS]"))
_UNREACHABLE_SCORE = -1e9  # of tokens that no merge makes


def vocabulary(folder: Path, config: Mapping[str, Any]) -> Metadata:
    """The metadata `tokenizer.*` of the model in `folder`, whose config.json is `config`, the text model's part of it.

    There are exactly as many tokens as `vocab_size` says, if it says so. Raises Unconvertible for a tokenizer that
    llama.cpp cannot be made to equal, and for a broken or hostile one; OSError when a file cannot be read.
    """
    files = _Folder(folder)
    tokens = files.tokens()
    if tokens.pre == _NOT_MISTRALS and config.get("model_type") in _MISTRAL_TYPES and tokens.ids.keys() >= _MISTRALS:
        tokens.pre = pretokenizers.tekken(
            text for index, text in tokens.texts.items() if tokens.types[index] is PieceType.NORMAL
        )
    n_tokens = _count(tokens, config)
    special_tokens = _special_tokens(files, tokens, config, n_tokens)
    known_names.hide(tokens, {*_end_numbers(files, config), *(value for _, _, value in special_tokens)})
    texts = [tokens.texts.get(index, f"[PAD{index}]") for index in range(n_tokens)]
    _check(texts)
    metadata: Metadata = [
        ("tokenizer.ggml.model", GgufType.STRING, tokens.model),
        ("tokenizer.ggml.pre", GgufType.STRING, tokens.pre),
        ("tokenizer.ggml.tokens", GgufType.ARRAY, (GgufType.STRING, texts)),
        (
            "tokenizer.ggml.token_type",
            GgufType.ARRAY,
            (GgufType.INT32, [int(tokens.types.get(index, PieceType.UNUSED)) for index in range(n_tokens)]),
        ),
    ]
    if tokens.scores is not None:
        scores = [tokens.scores.get(index, _UNREACHABLE_SCORE) for index in range(n_tokens)]
        metadata.append(("tokenizer.ggml.scores", GgufType.ARRAY, (GgufType.FLOAT32, scores)))
    if tokens.merges is not None:
        metadata.append(("tokenizer.ggml.merges", GgufType.ARRAY, (GgufType.STRING, tokens.merges)))
    if tokens.model == "bert":
        metadata += _bert(tokens, config)
    metadata += special_tokens
    if tokens.normalizer:
        metadata.append((normalizers.KEY, GgufType.STRING, tokens.normalizer.to_text()))
    if tokens.words:
        metadata.append((pretokenizers.WORDS_KEY, GgufType.STRING, tokens.words))
    metadata += [(key, GgufType.STRING, template) for key, template in files.templates()]
    return metadata


def require_tokenizer(folder: Path) -> None:
    """Raise Unconvertible where `folder` has no file of a tokenizer that can be read. Looks for names alone."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", *tiktoken.FILES)):
        raise _missing(folder)


def _missing(folder: Path) -> Unconvertible:
    if (folder / "tekken.json").exists():
        return Unconvertible(
            "its tokenizer is there in Mistral's own format (`tekken.json`) alone: put the `tokenizer.json` of a model "
            "with the same tokens beside it"
        )
    if any(folder.glob("*tiktoken*")):
        return Unconvertible(
            "its tokenizer is there in tiktoken's format alone, which is read of Kimi (`tiktoken.model`) and Hunyuan "
            "(`hy.tiktoken`): put the `tokenizer.json` of a model with the same tokens beside it"
        )
    return Unconvertible("it has neither a `tokenizer.json` nor a `tokenizer.model`")


def normalizer(folder: Path) -> str | None:
    """What is to be done to text before llama.cpp's tokenizer sees it, as `Normalizer.from_text` reads it, if anything.

    It is in the metadata too. Raises what `vocabulary` raises.
    """
    found = _Folder(folder).tokens().normalizer
    return found.to_text() if found else None


class _Folder:
    """The files of a folder that say something of tokens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tokenizer = self._json("tokenizer.json", MAX_TOKENIZER_BYTES)
        self.config = self._json("tokenizer_config.json") or {}
        self.generation = self._json("generation_config.json") or {}
        self._special_tokens = self._json("special_tokens_map.json") or {}

    def tokens(self) -> Tokens:
        if self.tokenizer is not None:
            return from_json(self.tokenizer, self._added())
        data = self._bytes("tokenizer.model", MAX_TOKENIZER_BYTES)
        if data is None:
            return self._tiktoken()
        is_legacy = self.config.get("legacy") is not False
        return from_sentencepiece(sentencepiece.parse(data), self._added(), is_legacy=is_legacy)

    def _tiktoken(self) -> Tokens:
        """How text is cut stands in Python code of the folder; all that is read of it is the name of its class."""
        name = next((name for name in tiktoken.FILES if (self._folder / name).exists()), None)
        data = None if name is None else self._bytes(name, MAX_TOKENIZER_BYTES)
        if name is None or data is None:
            raise _missing(self._folder)
        kind = tiktoken.kind(self.config, name)
        return tiktoken_tokens.tokens(tiktoken.parse(data, name), kind, self._added())

    def text_of(self, role: str) -> str | None:
        """The token that plays a role, as the tokenizer's configuration writes it."""
        for source in (self.config, self._special_tokens):
            entry = source.get(f"{role}_token")
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                return text
        return None

    def templates(self) -> Iterator[tuple[str, str]]:
        """Keys and texts of the chat templates."""
        found: object = None
        data = self._bytes("chat_template.jinja", MAX_TEMPLATE_BYTES)
        if data is not None:
            try:
                found = data.decode()
            except UnicodeDecodeError as exc:
                raise Unconvertible(f"`chat_template.jinja` is no UTF-8: {exc}") from exc
        else:
            found = self.config.get("chat_template") or (self._json("chat_template.json") or {}).get("chat_template")
        named = [{"name": "default", "template": found}] if isinstance(found, str) else found
        keys = {"default": "tokenizer.chat_template", "tool_use": "tokenizer.chat_template.tool_use"}
        for entry in [*(named if isinstance(named, list) else ()), *self._more_templates()]:
            match entry:
                case {"name": str(name), "template": str(template)} if name in keys:
                    if has_lone_surrogate(template) or len(template) > MAX_TEMPLATE_BYTES:
                        raise Unconvertible("its chat template is not text, or larger than 1 MB")
                    yield keys.pop(name), template

    def _more_templates(self) -> Iterator[dict[str, str]]:
        """Those that transformers writes into a folder of their own, a file for each name."""
        for name in ("default", "tool_use"):
            path = f"{ADDITIONAL_TEMPLATES}/{name}.jinja"
            data = self._bytes(path, MAX_TEMPLATE_BYTES)
            if data is not None:
                try:
                    yield {"name": name, "template": data.decode()}
                except UnicodeDecodeError as exc:
                    raise Unconvertible(f"`{path}` is no UTF-8: {exc}") from exc

    def _added(self) -> list[AddedToken]:
        """Tokens that are added beside the tokenizer's own file; where two have one id, the last counts."""
        added: list[AddedToken] = []
        simple = self._json("added_tokens.json") or {}
        detailed = self.config.get("added_tokens_decoder") or {}
        if not isinstance(detailed, dict) or len(simple) + len(detailed) > MAX_ADDED_TOKENS:
            raise Unconvertible("its added tokens are no table, or too many")
        for text, number in simple.items():
            added.append(added_token({"content": text}, number))
        for key, entry in detailed.items():
            number = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 9 else None
            added.append(added_token(entry, number))
        return added

    def _json(self, name: str, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any] | None:
        """The object in a JSON file; None when there is no such file."""
        data = self._bytes(name, max_bytes)
        if data is None:
            return None
        if data.count(b"{") + data.count(b"[") > MAX_JSON_CONTAINERS or data.count(b",") > MAX_JSON_VALUES:
            raise Unconvertible(f"`{name}` has more parts than any tokenizer needs")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise Unconvertible(f"`{name}` is not JSON: {exc}") from exc
        if not isinstance(value, dict):
            raise Unconvertible(f"`{name}` is not a JSON object")
        return value

    def _bytes(self, name: str, max_bytes: int) -> bytes | None:
        """The content of a file; None when there is none."""
        path = self._folder / name
        try:
            data = read_start(path, max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except NotRegular as exc:
            raise Unconvertible(f"`{name}` is not a file") from exc
        if git_lfs.is_note(data):
            raise Unconvertible(git_lfs.reason(f"its `{name}`"))
        if len(data) > max_bytes:
            raise Unconvertible(f"`{name}` has more than {max_bytes >> 20} MB")
        return data


def _count(tokens: Tokens, config: Mapping[str, Any]) -> int:
    """How many tokens the model has: as many as it has embeddings."""
    n_tokens = max(tokens.texts) + 1
    n_embeddings = config.get("vocab_size", n_tokens)
    if type(n_embeddings) is not int or not 0 < n_embeddings <= MAX_TOKENS:
        raise Unconvertible(f"`vocab_size` in `config.json` is not a number of tokens: {shown(n_embeddings)}")
    for index in range(n_embeddings, n_tokens):
        if tokens.types.get(index, PieceType.UNUSED) in {PieceType.NORMAL, PieceType.BYTE}:
            raise Unconvertible(f"its tokenizer has more tokens than its `vocab_size`, {n_embeddings}")
    return n_embeddings


def _check(texts: list[str]) -> None:
    """llama.cpp ends the process when two tokens are the same to it, and its strings end at a zero."""
    if any(len(text) > MAX_TOKEN_CHARACTERS or "\0" in text or has_lone_surrogate(text) for text in texts):
        raise Unconvertible(f"one of its tokens is not text, or longer than {MAX_TOKEN_CHARACTERS} letters")
    if len({text or f"[EMPTY_{index}]" for index, text in enumerate(texts)}) < len(texts):
        raise Unconvertible("two of its tokens have the same text")


def _bert(tokens: Tokens, config: Mapping[str, Any]) -> Metadata:
    bert = tokens.normalizer.bert
    assert bert is not None
    n_types = config.get("type_vocab_size", 2)  # BertConfig's default
    if type(n_types) is not int or not 0 <= n_types < MAX_TOKENS:
        raise Unconvertible(f"`type_vocab_size` in `config.json` is not a number of token types: {shown(n_types)}")
    return [
        ("tokenizer.ggml.token_type_count", GgufType.UINT32, n_types),
        ("tokenizer.ggml.normalizer.lowercase", GgufType.BOOL, bert.lowercase),
        # The Normalizer has done it, and llama.cpp would take vowel signs away too.
        ("tokenizer.ggml.normalizer.strip_accents", GgufType.BOOL, False),
    ]


def _special_tokens(files: _Folder, tokens: Tokens, config: Mapping[str, Any], n_tokens: int) -> Metadata:
    """Which token plays which role, and which ones are put around a text."""
    ids = {role: found for role in _ROLES if (found := _id(files, tokens, config, role, n_tokens)) is not None}
    first, last = _surroundings(files, tokens)
    if tokens.model == "bert":
        if len(first) != 1 or len(last) != 1 or "unk" not in ids:
            raise Unconvertible("its tokenizer does not put one token before a text and one behind it, as BERT does")
        ids["bos"], ids["eos"] = first[0], last[0]
        ids["cls"], ids["sep"] = first[0], last[0]
    former = ids.get("eos")
    if len(last) == 1:  # a model for embeddings may have been made of one for chats, whose `eos` ends a turn
        ids["eos"] = last[0]
    for role, around in (("bos", first), ("eos", last)):
        if len(around) > 1 or (around and ids.setdefault(role, around[0]) != around[0]):
            raise Unconvertible(f"its tokenizer puts tokens around a text that are not its `{role}` token")
    if tokens.model == "t5" and "unk" not in ids:
        raise Unconvertible("its token for what it does not know has no embedding")
    if "eos" not in ids:
        raise Unconvertible("it says nowhere with which token a text ends")
    ids.setdefault("bos", ids["eos"])  # llama.cpp would take token 1 or 11 for it
    adds = {"bos": bool(first), "eos": bool(last)}
    if tokens.model != "bert":
        ids |= _more_ends(files, tokens, config, ids["eos"], former, n_tokens)
    return [
        *((_KEYS[role], GgufType.UINT32, index) for role, index in ids.items()),
        *((f"tokenizer.ggml.add_{role}_token", GgufType.BOOL, added) for role, added in adds.items()),
        ("tokenizer.ggml.add_space_prefix", GgufType.BOOL, tokens.adds_space_prefix),
    ]


def _id(files: _Folder, tokens: Tokens, config: Mapping[str, Any], role: str, n_tokens: int) -> int | None:
    text = files.text_of(role)
    found: list[object] = [] if text is None else [tokens.ids.get(text)]
    if role == "unk" and tokens.unknown is not None:
        found.insert(0, tokens.ids.get(tokens.unknown))
    for source in (files.generation, config):
        number = source.get(f"{role}_token_id")
        found += number[:1] if isinstance(number, list) else [number]
    found.append(tokens.special_ids.get(role))
    return next((number for number in found if type(number) is int and 0 <= number < n_tokens), None)


def _more_ends(
    files: _Folder, tokens: Tokens, config: Mapping[str, Any], eos: int, former: int | None, n_tokens: int
) -> dict[str, int]:
    """Tokens beside `eos` that end a text, as far as llama.cpp does not know them by their names: it has two places.

    `former` is the one that the tokenizer's configuration names, where another one is put behind a text.
    """
    ends = dict.fromkeys(
        number for number in (former, *_end_numbers(files, config))
        if number is not None and 0 <= number < n_tokens and number != eos
        and tokens.texts.get(number) not in known_names.ENDS
    )  # fmt: skip
    if len(ends) > 2:
        raise Unconvertible("it has more tokens that end a text than llama.cpp has places for")
    return dict(zip(("eot", "eom"), ends, strict=False))


def _end_numbers(files: _Folder, config: Mapping[str, Any]) -> list[int]:
    """The ids that the configuration calls ends of a text."""
    numbers: list[object] = []
    for source in (files.generation, config):
        found = source.get("eos_token_id")
        numbers += found[:MAX_ADDED_TOKENS] if isinstance(found, list) else [found]
    return [number for number in numbers if type(number) is int]


def _surroundings(files: _Folder, tokens: Tokens) -> tuple[list[int], list[int]]:
    """The tokens that are put before and behind a text."""
    adds_bos, adds_eos = files.config.get("add_bos_token"), files.config.get("add_eos_token")
    if files.tokenizer is not None:
        steps = post_processor.steps(files.tokenizer.get("post_processor"))
        found = post_processor.around(steps, tokens.ids)
        if found is not None:
            return found
        if steps and not _is_llamas(files):
            return [], []
    elif tokens.model == "gpt2":  # tiktoken's, whose classes put nothing around a text
        return [], []
    elif adds_bos is None:
        adds_bos = True  # what LlamaTokenizer and GemmaTokenizer do
    around = []
    for role, adds in (("bos", adds_bos), ("eos", adds_eos)):
        text = files.text_of(role) if adds else None
        index = tokens.special_ids.get(role) if text is None else post_processor.known(text, tokens.ids)
        around.append([index] if adds and index is not None else [])
    return around[0], around[1]


def _is_llamas(files: _Folder) -> bool:
    """Whether the tokenizer is of a class that goes by `add_bos_token` of tokenizer_config.json, as transformers 4 and
    llama.cpp do. DeepSeek's are: their tokenizer.json puts nothing around a text."""
    return str(files.config.get("tokenizer_class")).startswith("LlamaTokenizer")
