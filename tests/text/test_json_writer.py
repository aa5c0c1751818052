"""JSON in pieces is the JSON that the standard library writes, and no piece is large."""

import json
from random import Random
from typing import Any

import pytest

from shimmy.text import json_writer
from shimmy.text.json_writer import pieces

_KINDS = 9


def any_value(random: Random, depth: int = 0) -> Any:
    """A value as JSON has them: scalars, strange texts, flat and nested arrays and objects."""
    match random.randrange(_KINDS if depth < 5 else 6):
        case 0:
            return random.choice([None, True, False])
        case 1:
            return random.randrange(-(10 ** random.randrange(1, 20)), 10**12)
        case 2:
            return random.random() * 10 ** random.randrange(-20, 20)
        case 3 | 4 | 5:
            n_characters = random.choice([0, 3, 10, 200])
            return "".join(random.choices(["a", '"', "\\", "é", "😀", "\n", "∢", "\ud83d", "/", " "], k=n_characters))
        case 6:
            return [any_value(random, depth + 1) for _ in range(random.choice([0, 1, 3, 30]))]
        case 7:
            n_members = random.choice([0, 1, 3, 10])
            return {str(any_value(random, 9)): any_value(random, depth + 1) for _ in range(n_members)}
        case _:
            return [random.randrange(100_000) for _ in range(random.choice([1, 10, 200]))]


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_pieces_are_what_the_standard_library_writes(monkeypatch: pytest.MonkeyPatch, ensure_ascii: bool) -> None:
    monkeypatch.setattr(json_writer, "_STEP", 200)
    monkeypatch.setattr(json_writer, "_N_VALUES", 3)
    random = Random(1)
    for _ in range(500):
        value = any_value(random)
        whole = json.dumps(value, separators=(",", ":"), ensure_ascii=ensure_ascii)
        assert "".join(pieces(value, ensure_ascii=ensure_ascii)) == whole


@pytest.mark.parametrize(
    "value",
    [
        "\0" * 3_000_000,
        list(range(1_000_000)),
        {"a": ["é" * 100] * 30_000},
        [[[[["x" * 1_000_000]]]]],
        {str(number): number for number in range(200_000)},
    ],
    ids=["text", "integers", "texts", "nested", "members"],
)
def test_no_piece_is_large(value: object) -> None:
    assert max(map(len, pieces(value))) <= 8 * json_writer._STEP
