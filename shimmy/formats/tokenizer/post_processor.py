"""Which tokens the `post_processor` of a tokenizer.json puts around every text; an unknown one is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer.pretokenizers import shown


def around(parts: Sequence[Mapping[str, Any]], ids: Mapping[str, int]) -> tuple[list[int], list[int]] | None:
    """The tokens before and behind a text; None where none of the `steps` says."""
    for part in parts:
        match part:
            case {"type": "TemplateProcessing", "single": list(single)}:
                return _template(single, ids)
            case {"type": "BertProcessing" | "RobertaProcessing", "cls": [str(first), *_], "sep": [str(last), *_]}:
                return [known(first, ids)], [known(last, ids)]
            case {"type": "ByteLevel"}:
                pass
            case _:
                raise Unconvertible(f"its post-processor is not known: {shown(part)}")
    return None


def steps(part: object) -> list[Mapping[str, Any]]:
    match part:
        case None:
            return []
        case {"type": "Sequence", "processors": list(parts)} if all(isinstance(inner, dict) for inner in parts):
            return [inner for inner in parts if isinstance(inner, dict)]
        case dict():
            return [part]
    raise Unconvertible("its post-processor cannot be read")


def _template(single: list[Any], ids: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """The tokens before and behind the text in a template of TemplateProcessing."""
    around: tuple[list[int], list[int]] = ([], [])
    side = 0
    for part in single:
        match part:
            case {"SpecialToken": {"id": str(text)}}:
                around[side].append(known(text, ids))
            case {"Sequence": {"id": "A"}} if side == 0:
                side = 1
            case _:
                raise Unconvertible(f"its post-processor is not known: {shown(single)}")
    return around


def known(text: str, ids: Mapping[str, int]) -> int:
    if text not in ids:
        raise Unconvertible(f"its post-processor adds {shown(text)}, which is not a token")
    return ids[text]
