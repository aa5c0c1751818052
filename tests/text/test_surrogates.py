import json

import pytest

from shimmy.text.surrogates import has_lone_surrogate

PAIR, HALF = json.loads('"\\ud83d\\ude00"'), json.loads('"\\ud83d"')


@pytest.mark.parametrize("text", ["", "plain", "größer", PAIR, "x" * 100_000 + PAIR])
def test_text_has_none(text: str) -> None:
    assert not has_lone_surrogate(text)


@pytest.mark.parametrize("text", [HALF, "x" + HALF + "y", "x" * 100_000 + HALF, "x" * 65_535 + HALF + PAIR])
def test_half_a_pair_is_found_wherever_it_stands(text: str) -> None:
    assert has_lone_surrogate(text)
