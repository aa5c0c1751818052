"""Names that may have been meant."""

import pytest

from shimmy.text.near_names import did_you_mean, enumerated, near

NAMES = ("dynatemp_range", "generate", "list", "probe", "serve", "temperature")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("srve", ["serve"]), ("lsit", ["list"]), ("temp", ["temperature", "dynatemp_range"]), ("gen", ["generate"]),
        ("e", []), ("dance", []), ("", []),
    ],
)  # fmt: skip
def test_what_is_near(wanted: str, found: list[str]) -> None:
    assert near(wanted, NAMES) == found


def test_the_question() -> None:
    assert did_you_mean("porbe", NAMES) == "did you mean `probe`?"
    assert did_you_mean("temp", NAMES) == "did you mean `temperature` or `dynatemp_range`?"
    assert did_you_mean("dance", NAMES) == ""
    assert enumerated(("a", "b", "c"), "and") == "`a`, `b` and `c`"
