"""What a person reads of values in config.json that a model cannot have."""

import pytest

from shimmy.formats.convert.hyperparameters import Hyperparameters
from shimmy.formats.format_errors import Unconvertible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("relu", "relu"),
        (0.5, "0.5"),
        (2**300, "a huge number"),
        ([True, None, "a"], '[true, null, "a"]'),
        ({"a": None}, '{"a": null}'),
        ([7] * 100, "[" + "7, " * 31 + "7, "),
    ],
)
def test_a_value_is_shown_as_json_has_it(value: object, text: str) -> None:
    with pytest.raises(Unconvertible) as caught:
        Hyperparameters({"key": value}, {}).require("key", 1)
    assert str(caught.value) == f"its `key` is `{text[:96]}`, which the engine cannot compute"


def test_a_value_that_is_missing_is_null() -> None:
    with pytest.raises(Unconvertible, match="its `key` is `null`"):
        Hyperparameters({"key": None}, {}).require("key", 1)


def test_lists_within_lists_are_shown_without_a_limit_of_depth() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(Unconvertible, match="`lists within lists`"):
        Hyperparameters({"key": value}, {}).require("key", 1)
