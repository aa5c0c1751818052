"""A number with its noun."""

from shimmy.text.plural import plural


def test_plurals() -> None:
    assert [plural(number, "token") for number in (0, 1, 2048)] == ["0 tokens", "1 token", "2,048 tokens"]
