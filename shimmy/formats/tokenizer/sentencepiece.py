"""SentencePiece models, `tokenizer.model`: as much of their protobuf as a vocabulary needs, read without trusting it.

Knows the fields of src/sentencepiece_model.proto (ModelProto, TrainerSpec, NormalizerSpec) and the wire format of
protobuf; nothing of folders and of GGUF.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from shimmy.formats.format_errors import Unconvertible

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types; groups (3 and 4) are not used any more
_MAX_VARINT_BYTES = 10
_MAX_PIECES = 1 << 20

_BYTE_PAIR_ENCODING = 2  # TrainerSpec.ModelType; 1 is unigram


class PieceType(IntEnum):
    """ModelProto.SentencePiece.Type, which is llama_token_type too."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """One token; where it stands in the list is its id."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a vocabulary needs of a model."""

    pieces: list[SentencePiece]
    special_ids: dict[str, int]  # of `unk`, `bos`, `eos` and `pad`; those that it has
    adds_prefix: bool  # a space before the text


def parse(data: bytes) -> SentencePieceModel:
    """Read a whole `tokenizer.model`. Raises Unconvertible when it is broken, or does what llama.cpp does not."""
    pieces: list[SentencePiece] = []
    trainer: dict[int, int | memoryview] = {}
    normalizer: dict[int, int | memoryview] = {}
    for number, value in _fields(memoryview(data)):
        if number == 1:
            if len(pieces) == _MAX_PIECES:
                raise Unconvertible(f"`tokenizer.model` has more than {_MAX_PIECES} pieces")
            pieces.append(_piece(_message(value), len(pieces)))
        elif number in {2, 3}:
            (trainer if number == 2 else normalizer).update(_fields(_message(value)))
    if trainer.get(3, 1) != _BYTE_PAIR_ENCODING:
        raise Unconvertible("`tokenizer.model` is not a byte-pair encoding, the only kind of SentencePiece supported")
    if normalizer.get(2) or normalizer.get(4, 1):
        raise Unconvertible("`tokenizer.model` normalises text in a way that llama.cpp does not")
    if trainer.get(24) or not normalizer.get(5, 1):
        raise Unconvertible("`tokenizer.model` treats white space in a way that llama.cpp does not")
    special_ids = {}
    for name, number, default in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1)):
        found = trainer.get(number, default)
        if isinstance(found, int) and 0 <= found < len(pieces):  # -1 arrives as 2**64 - 1
            special_ids[name] = found
    return SentencePieceModel(pieces, special_ids, adds_prefix=bool(normalizer.get(3, 1)))


def _piece(data: memoryview, index: int) -> SentencePiece:
    text, score, kind = "", 0.0, PieceType.NORMAL
    try:
        for number, value in _fields(data):
            if number == 1:
                text = str(_message(value), "utf-8")
            elif number == 2:
                (score,) = struct.unpack("<f", _message(value))
            elif number == 3:
                kind = PieceType(value) if isinstance(value, int) else kind
    except (ValueError, struct.error) as exc:  # also a UnicodeDecodeError
        raise Unconvertible(f"piece {index} of `tokenizer.model` is broken: {exc}") from exc
    return SentencePiece(text, score, kind)


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise Unconvertible("`tokenizer.model` is no SentencePiece model")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field; numbers of four and eight bytes come as bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            varint, position = _varint(data, position)
            yield number, varint
            continue
        if wire_type == _BYTES:
            length, position = _varint(data, position)
        elif wire_type in {_FOUR_BYTES, _EIGHT_BYTES}:
            length = 4 if wire_type == _FOUR_BYTES else 8
        else:
            raise Unconvertible("`tokenizer.model` is no SentencePiece model")
        if length > len(data) - position:
            raise Unconvertible("`tokenizer.model` is cut off, or no SentencePiece model")
        yield number, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and where it ends."""
    value = 0
    for count, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, position + count + 1
    raise Unconvertible("`tokenizer.model` is cut off, or no SentencePiece model")
