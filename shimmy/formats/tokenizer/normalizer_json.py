"""What a tokenizer.json does to text before anything is cut: its `normalizer`, and what else replaces spaces.

Knows these parts of the file, as far as a `Normalizer` or llama.cpp can do the same; refuses all others. Knows nothing
of tokens.
"""

from base64 import b64decode
from collections.abc import Mapping

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer import pretokenizers
from shimmy.formats.tokenizer.charsmap import Charsmap
from shimmy.formats.tokenizer.normalizer import Form, Prefix, Spaces
from shimmy.formats.tokenizer.pretokenizers import shown

_META_SPACE = "▁"
_FORMS: Mapping[str, Form] = {"NFC": "NFC", "NFD": "NFD", "NFKC": "NFKC", "NFKD": "NFKD"}


def form(normalizer: object) -> Form:
    """The normal form of Unicode that is all that a normalizer does; '' for none."""
    match [step.get("type") for step in pretokenizers.steps(normalizer, "normalizers")]:
        case []:
            return ""
        case [str(kind)] if kind in _FORMS:
            return _FORMS[kind]
    raise Unconvertible(f"its tokenizer changes text in a way that is not supported: {shown(normalizer)}")


def meta_space(normalizer: object, pre_tokenizer: object) -> Prefix:
    """Where a tokenizer of SentencePiece's kind puts a space before text."""
    steps = (
        *pretokenizers.steps(normalizer, "normalizers"),
        *pretokenizers.steps(pre_tokenizer, "pretokenizers"),
    )
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _META_SPACE}
    # There are no spaces left where this would cut.
    idle = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    match [step for step in steps if step != idle or replaces not in steps]:
        case [step] if step == replaces:
            return ""
        case [{"type": "Prepend", "prepend": "▁"}, step] if step == replaces:
            return "each"
        case [{"type": "Metaspace", "replacement": "▁", "split": False} as step]:
            schemes: Mapping[str, Prefix] = {"always": "always", "first": "first", "never": ""}
            scheme = step.get("prepend_scheme", "always")
            if isinstance(scheme, str) and scheme in schemes:
                return schemes[scheme]
    raise Unconvertible(
        f"its tokenizer changes text in a way that is not supported: {shown([normalizer, pre_tokenizer])}"
    )


def unigram_text(normalizer: object, pre_tokenizer: object) -> tuple[str, Spaces]:
    """The table of characters of a Unigram tokenizer, and what it does to spaces."""
    charsmap = ""
    steps = pretokenizers.steps(normalizer, "normalizers")
    if steps and steps[0].get("type") == "Precompiled":
        found = steps.pop(0).get("precompiled_charsmap")
        charsmap = found if isinstance(found, str) else ""
        try:
            table = b64decode(charsmap, validate=True)
        except ValueError as exc:
            raise Unconvertible("its tokenizer has a `precompiled_charsmap` that is none") from exc
        Charsmap(table)  # for its errors
    merges = [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": space} for space in (" ", _META_SPACE)]
    strips = {"type": "Strip", "strip_left": False, "strip_right": True}
    cuts = pretokenizers.steps(pre_tokenizer, "pretokenizers")
    splits = bool(cuts) and cuts[0] == {"type": "WhitespaceSplit"}
    known: dict[str, Spaces] = {"": "", "merge": "merge", "strip merge": "strip"}
    order = " ".join("strip" if step == strips else "merge" if step in merges else "?" for step in steps)
    spaces: Spaces | None = "split" if splits and order in known else known.get(order)
    match cuts[1:] if splits else cuts:
        case [{"type": "Metaspace", "replacement": "▁"} as step] if (
            step.get("prepend_scheme", "always") == "always"
            and step.get("add_prefix_space", True)
            and spaces is not None
        ):
            return charsmap, spaces
    raise Unconvertible(f"its tokenizer changes text in a way that is not supported: {shown([steps, pre_tokenizer])}")
