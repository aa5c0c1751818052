"""The tokens of a file in tiktoken's format as one table that llama.cpp understands.

Knows which of llama.cpp's pre-tokenizers cuts as each kind does; what is in the file is known by `tiktoken`.
"""

from collections.abc import Iterable, Sequence

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer import pretokenizers, tiktoken
from shimmy.formats.tokenizer.pretokenizers import shown
from shimmy.formats.tokenizer.sentencepiece import PieceType
from shimmy.formats.tokenizer.tokenizer_json import AddedToken, Tokens, normalizer_of, put_over


def tokens(texts: Sequence[bytes], kind: tiktoken.TokenizerClass, more: Iterable[AddedToken]) -> Tokens:
    """What a file in tiktoken's format holds, `texts` by their ids, with the special tokens of its `kind`.

    `more` are tokens added elsewhere, which give special tokens their names.
    """
    letters = list(pretokenizers.byte_letters())

    def written(token: bytes) -> str:
        return "".join([letters[byte] for byte in token])

    ids = {written(text): index for index, text in enumerate(texts)}
    added = {
        index: AddedToken(index, text, is_special=True)
        for index, text in enumerate(kind.special_tokens(len(texts)), len(texts))
    }
    for token in more:
        if token.id < len(texts):
            raise Unconvertible(f"its added token {shown(token.text)} has the id of another token")
        added[token.id] = token
    merges = tiktoken.merges(texts)
    has_all_merges = len(merges) == len(texts) - 256
    pre, cuts = pretokenizers.kimi(ids, has_all_merges=has_all_merges) if kind.cuts == "kimi" else (kind.cuts, "")
    by_id = {index: text for text, index in ids.items()}
    found = Tokens("gpt2", pre, by_id, dict.fromkeys(by_id, PieceType.NORMAL), ids)
    found.merges = [f"{written(left)} {written(right)}" for left, right in merges]
    found.normalizer = normalizer_of(added.values(), form=kind.form, cuts=cuts)
    put_over(found, added)
    return found
