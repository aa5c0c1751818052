"""The tokens of a Hugging Face folder, from whichever file has them, as one table that llama.cpp understands.

Knows which tokenizers llama.cpp can be made to equal, what remains to be done to the text first (the Normalizer), and
how each kind is stored (src/llama-vocab.cpp); refuses all others. Knows nothing of roles of tokens and of templates.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer import normalizer_json, pretokenizers
from shimmy.formats.tokenizer.normalizer import UNKNOWN_LETTER, Bert, Cuts, Form, Normalizer, Prefix, Spaces
from shimmy.formats.tokenizer.pretokenizers import shown
from shimmy.formats.tokenizer.sentencepiece import PieceType, SentencePieceModel

MAX_TOKENS = 1 << 20  # and so an id is below 2**20; gemma-4 has 262 k
MAX_MERGES = 1 << 20  # gemma-4 has 514 k
MAX_TOKEN_CHARACTERS = 4096
_MAX_CHARACTERS = 1 << 24  # of all tokens, each of which is cut at each place; gemma-4's have 2 M
MAX_ADDED_TOKENS = 1 << 16

_META_SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
# Added tokens that a text may hold are searched one by one, where some change the text around them.
_MAX_SEARCHED_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class AddedToken:
    """An entry of `added_tokens`: a token that is found in a text before anything else is done."""

    id: int
    text: str
    is_special: bool
    strips_left: bool = False
    strips_right: bool = False


@dataclass(slots=True)
class Tokens:
    """All tokens of a model, and how llama.cpp has to use them."""

    model: str  # tokenizer.ggml.model
    pre: str  # tokenizer.ggml.pre
    texts: dict[int, str]
    types: dict[int, PieceType]
    ids: dict[str, int]  # of tokens as the tokenizer writes them
    scores: dict[int, float] | None = None  # of those that have one
    merges: list[str] | None = None
    adds_space_prefix: bool = False
    normalizer: Normalizer = field(default_factory=Normalizer)
    words: str = ""  # which of `pretokenizers.WORDS` cuts text in llama.cpp's place
    unknown: str | None = None  # the token for what no other token stands for
    special_ids: Mapping[str, int] = field(default_factory=dict)  # that the tokenizer itself names


def added_token(entry: object, number: object) -> AddedToken:
    """An entry of `added_tokens` or of `added_tokens_decoder`, `number` being the id."""
    text = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(text, str) or not _is_id(number):
        raise Unconvertible(f"one of its added tokens is broken: {shown(entry)}")
    if entry.get("single_word"):
        raise Unconvertible(f"its token {shown(text)} is found in whole words only, which llama.cpp cannot do")
    return AddedToken(number, text, bool(entry.get("special")), bool(entry.get("lstrip")), bool(entry.get("rstrip")))


def from_json(tokenizer: Mapping[str, Any], more: Iterable[AddedToken]) -> Tokens:
    """What a tokenizer.json holds; `more` are tokens added elsewhere, and lose against those of the file itself."""
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise Unconvertible("`tokenizer.json` has no `model`")
    added = {token.id: token for token in more}
    entries = tokenizer.get("added_tokens") or []
    if not isinstance(entries, list) or len(entries) > MAX_ADDED_TOKENS:
        raise Unconvertible("its `added_tokens` are no list, or too many")
    for entry in entries:
        token = added_token(entry, entry.get("id") if isinstance(entry, dict) else None)
        added[token.id] = token
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind == "WordPiece":
        return _word_piece(tokenizer, model, added)
    if kind == "Unigram":
        return _unigram(tokenizer, model, added)
    if kind != "BPE":
        raise Unconvertible(f"its tokenizer is of a kind that is not supported: {shown(kind)}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise Unconvertible(f"its tokenizer has a `{key}`, which llama.cpp does not know")
    return (_byte_fallback if model.get("byte_fallback") else _byte_level)(tokenizer, model, added)


def from_sentencepiece(model: SentencePieceModel, added: Iterable[AddedToken], *, is_legacy: bool) -> Tokens:
    """What a tokenizer.model holds, with the tokens `added` to it; `is_legacy` as in tokenizer_config.json."""
    tokens = Tokens("llama", "default", {}, {}, {}, scores={}, special_ids=model.special_ids)
    for index, piece in enumerate(model.pieces):
        text = piece.text
        if piece.type is PieceType.USER_DEFINED:  # llama.cpp looks for it before spaces become ▁
            text = text.replace(_META_SPACE, " ")
        tokens.texts[index], tokens.types[index], tokens.ids[piece.text] = text, piece.type, index
        assert tokens.scores is not None
        tokens.scores[index] = piece.score
    _require_bytes(tokens.ids)
    prefix: Prefix = "" if not model.adds_prefix else "each" if is_legacy else "first"
    by_id = {token.id: token for token in added}
    put_over(tokens, by_id)
    _prefix(tokens, prefix, by_id.values())
    return tokens


def _byte_level(tokenizer: Mapping[str, Any], model: Mapping[str, Any], added: Mapping[int, AddedToken]) -> Tokens:
    """GPT-2's kind: every byte is a letter, and merges join them."""
    ids = _ids(model)
    merged = (text for text, index in ids.items() if index not in added)
    cut, ignore_merges = tokenizer.get("pre_tokenizer"), bool(model.get("ignore_merges"))
    kind = pretokenizers.words(cut)
    pre = kind or pretokenizers.name(cut, merged, ignore_merges=ignore_merges)
    unknown = model.get("unk_token")
    if unknown and not ids.keys() >= set(pretokenizers.byte_letters()):
        raise Unconvertible("its tokenizer has bytes without a token, which llama.cpp leaves out of the text")
    tokens = _tokens("gpt2", pre, ids)
    merges = _merges(model, ids)
    tokens.merges = [" ".join(pair) for pair in merges]
    made = {left + right for left, right in merges}
    cuts: Cuts = ""
    if pre == "kimi-k2":
        has_all_merges = not ignore_merges or all(len(text) == 1 or text in made for text in ids)
        tokens.pre, cuts = pretokenizers.kimi(ids, has_all_merges=has_all_merges)
    if kind:
        from shimmy.formats.tokenizer import words  # few models need it

        tokens.words = kind
        words.require(ids, [token.text for token in added.values()])
        if ignore_merges and any(len(text) > 1 and text not in made and ids[text] not in added for text in ids):
            raise Unconvertible("its tokenizer has tokens that no merge makes, and text cut in a way of its own")
    tokens.normalizer = normalizer_of(added.values(), form=normalizer_json.form(tokenizer.get("normalizer")), cuts=cuts)
    put_over(tokens, added)
    return tokens


def _byte_fallback(tokenizer: Mapping[str, Any], model: Mapping[str, Any], added: Mapping[int, AddedToken]) -> Tokens:
    """SentencePiece's kind, as Hugging Face rewrites it: merges of letters, and bytes for letters without a token.

    llama.cpp joins what makes the token with the best score. That is the same where all ways to make a token are merges
    and follow each other, as in what was made of a tokenizer.model; else it gets the merges themselves, which take more
    memory.
    """
    if model.get("ignore_merges"):
        raise Unconvertible("its tokenizer has `ignore_merges` and `byte_fallback`, which llama.cpp does not combine")
    ids = _ids(model)
    _require_bytes(ids)
    merges = _merges(model, ids)
    prefix = normalizer_json.meta_space(tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer"))
    scores = _scores(ids, merges, added)
    tokens = _tokens("llama", "default", ids)
    if scores is None:
        if any("\n" in left + right and (left + right).strip("\n") for left, right in merges):
            raise Unconvertible("its tokenizer joins line ends with other letters, which llama.cpp does not")
        tokens.model, tokens.pre = "gpt2", pretokenizers.RAW_MERGES
        tokens.merges = [" ".join(pair) for pair in merges]
    else:
        tokens.scores = scores
    for index, text in tokens.texts.items():
        if _BYTE_TOKEN.fullmatch(text):
            tokens.types[index] = PieceType.BYTE
    unknown = model.get("unk_token")
    tokens.unknown = unknown if isinstance(unknown, str) else None
    # What holds a ▁ is found in spaces by merges, and elsewhere only where somebody writes a ▁.
    put_over(
        tokens, {index: token for index, token in added.items() if token.is_special or _META_SPACE not in token.text}
    )
    _prefix(tokens, prefix, added.values())
    return tokens


def _word_piece(tokenizer: Mapping[str, Any], model: Mapping[str, Any], added: Mapping[int, AddedToken]) -> Tokens:
    """BERT's kind: the longest pieces of words, written with ▁ at a word's start in place of ## elsewhere."""
    unknown, max_word = model.get("unk_token", "[UNK]"), model.get("max_input_chars_per_word", 100)
    ids = _ids(model)
    is_known = isinstance(unknown, str) and unknown in ids and model.get("continuing_subword_prefix", "##") == "##"
    if not is_known or type(max_word) is not int:
        raise Unconvertible("its WordPiece tokenizer has options that llama.cpp does not know")
    match tokenizer:
        case {"normalizer": {"type": "BertNormalizer"} as normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}}:
            lowercase = bool(normalizer.get("lowercase", True))
            strips = normalizer.get("strip_accents")
            bert = Bert(lowercase, lowercase if strips is None else bool(strips), max_word)
        case _:
            raise Unconvertible("its WordPiece tokenizer prepares text in another way than BERT")
    if not (normalizer.get("clean_text", True) and normalizer.get("handle_chinese_chars", True)):
        raise Unconvertible(
            "its WordPiece tokenizer keeps control characters, or Chinese words, which is not supported"
        )
    if any(UNKNOWN_LETTER in text or (_META_SPACE in text and text != _META_SPACE) for text in ids):
        raise Unconvertible("its vocabulary has pieces with letters that have another meaning in llama.cpp")
    tokens = _tokens("bert", "default", ids)
    tokens.texts = {index: text[2:] if text.startswith("##") else _META_SPACE + text for text, index in ids.items()}
    tokens.unknown = unknown
    tokens.normalizer = normalizer_of(added.values(), bert=bert)
    put_over(tokens, added)
    return tokens


def _unigram(tokenizer: Mapping[str, Any], model: Mapping[str, Any], added: Mapping[int, AddedToken]) -> Tokens:
    """SentencePiece's other kind: the pieces of a text whose scores have the largest sum."""
    pieces, unknown = model.get("vocab"), model.get("unk_id")
    if not isinstance(pieces, list) or not 0 < len(pieces) <= MAX_TOKENS:
        raise Unconvertible(f"its vocabulary is empty, larger than {MAX_TOKENS} tokens, or not readable")
    if model.get("byte_fallback") or not _is_id(unknown) or unknown >= len(pieces):
        raise Unconvertible("its Unigram tokenizer has `byte_fallback`, or no token for what it does not know")
    ids: dict[str, int] = {}
    scores: dict[int, float] = {}
    for index, piece in enumerate(pieces):
        match piece:
            case [str(text), int() | float() as score] if text not in ids and -1e9 <= score <= 1e9:
                ids[text], scores[index] = index, float(score)
            case _:
                raise Unconvertible(f"one of its tokens is broken, or there twice: {shown(piece)}")
    charsmap, spaces = normalizer_json.unigram_text(tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer"))
    if spaces == "split" and any(text.strip(_META_SPACE) and _META_SPACE in text[1:] for text in ids):
        raise Unconvertible("its Unigram tokenizer has pieces of several words, which it cannot make")
    tokens = _tokens("t5", "default", ids)
    tokens.scores = scores
    tokens.unknown = pieces[unknown][0]
    put_over(tokens, added)
    tokens.types[unknown] = PieceType.UNKNOWN
    tokens.normalizer = normalizer_of(added.values(), prefix="always", charsmap=charsmap, spaces=spaces)
    return tokens


def _tokens(model: str, pre: str, ids: dict[str, int]) -> Tokens:
    texts = {index: text for text, index in ids.items()}
    if len(texts) < len(ids):
        raise Unconvertible("two of its tokens have the same id")
    return Tokens(model, pre, texts, dict.fromkeys(texts, PieceType.NORMAL), ids)


def _ids(model: Mapping[str, Any]) -> dict[str, int]:
    """The vocabulary of a model: token to id. Its dict is copied, as added tokens go into it."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not 0 < len(vocab) <= MAX_TOKENS:
        raise Unconvertible(f"its vocabulary is empty, larger than {MAX_TOKENS} tokens, or not readable")
    for index in vocab.values():
        if not _is_id(index):
            raise Unconvertible(f"its vocabulary has an id that is none: {shown(index)}")
    if max(map(len, vocab)) > MAX_TOKEN_CHARACTERS or sum(map(len, vocab)) > _MAX_CHARACTERS:
        raise Unconvertible("its tokens are longer than any tokenizer's, one of them or all together")
    return dict(vocab)


def _is_id(number: object) -> TypeGuard[int]:
    return type(number) is int and 0 <= number < MAX_TOKENS


def _merges(model: Mapping[str, Any], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges, best first: pairs, or strings with a space between the two."""
    merges = model.get("merges")
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise Unconvertible(f"its merges are no list, or more than {MAX_MERGES}")
    pairs: dict[tuple[str, str], None] = {}
    for merge in merges:
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)] if left in ids and right in ids and left + right in ids:
                if " " in left or " " in right:
                    raise Unconvertible(f"one of its merges holds a space, which llama.cpp cannot read: {shown(merge)}")
                pairs[left, right] = None
            case _:
                raise Unconvertible(f"one of its merges is broken, or not of its tokens: {shown(merge)}")
    if len(pairs) < len(merges):
        raise Unconvertible("one of its merges is there twice")
    return list(pairs)


def _scores(
    ids: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Mapping[int, AddedToken]
) -> dict[int, float] | None:
    """A score for each token that merges make, the better the earlier; None where scores would join other tokens.

    Tokens of one letter (spaces, line ends) all have one score in a tokenizer.model, so that their merges are mixed.
    The longest come first there, which is what their scores here say too.
    """
    scores: dict[int, float] = {}
    n_ways = dict.fromkeys(ids.values(), 0)
    last = -1
    for rank, (left, right) in enumerate(merges):
        made = ids[left + right]
        if made != last and made in scores and len({*left, *right}) > 1:
            return None  # another token's merges stand between those of this one
        scores.setdefault(made, -float(rank))
        n_ways[made] += 1
        last = made
    for text, index in ids.items():
        if index in added and n_ways[index] == 0:
            continue  # found in the text before anything is joined
        if sum(text[:cut] in ids and text[cut:] in ids for cut in range(1, len(text))) != n_ways[index]:
            return None
    return scores


def _require_bytes(ids: Mapping[str, int]) -> None:
    if any(token not in ids for token in _BYTE_TOKENS):
        raise Unconvertible("its tokenizer has bytes without a token, on which llama.cpp would end")


def put_over(tokens: Tokens, added: Mapping[int, AddedToken]) -> None:
    """Put added tokens over those of the vocabulary, most of which they repeat."""
    for index, token in added.items():
        if tokens.ids.setdefault(token.text, index) != index:
            raise Unconvertible(f"its added token {shown(token.text)} has two ids")
        tokens.texts[index] = token.text
        tokens.types[index] = PieceType.CONTROL if token.is_special else PieceType.USER_DEFINED


def normalizer_of(
    added: Iterable[AddedToken],
    *,
    form: Form = "",
    prefix: Prefix = "",
    bert: Bert | None = None,
    charsmap: str = "",
    spaces: Spaces = "",
    cuts: Cuts = "",
) -> Normalizer:
    added = list(added)
    strips_left = tuple(token.text for token in added if token.strips_left)
    strips_right = tuple(token.text for token in added if token.strips_right)
    if not (form or prefix or bert or cuts or strips_left or strips_right):
        return Normalizer()
    if len(added) > _MAX_SEARCHED_TOKENS:
        raise Unconvertible(f"its tokenizer changes text between more than {_MAX_SEARCHED_TOKENS} added tokens")
    special = tuple(token.text for token in added if token.is_special)
    plain = tuple(token.text for token in added if not token.is_special)
    return Normalizer(form, prefix, bert, charsmap, spaces, special, plain, strips_left, strips_right, cuts)


def _prefix(tokens: Tokens, prefix: Prefix, added: Iterable[AddedToken]) -> None:
    """Let llama.cpp put spaces before the text where it does so in the same way, and do it ourselves elsewhere."""
    tokens.adds_space_prefix = prefix == "each" and tokens.model == "llama"
    tokens.normalizer = normalizer_of(added, prefix="" if tokens.adds_space_prefix else prefix)
