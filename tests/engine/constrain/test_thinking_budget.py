"""Reasoning ends when its budget is spent, and what comes after it is nobody's business here."""

import pytest

from shimmy.engine.constrain.thinking_budget import ThinkingBudget
from tests.engine.fake_backend import FakeGuide

END = b"</t>"


def budget(n_max: int, *, is_thinking: bool = True, inner: FakeGuide | None = None) -> ThinkingBudget:
    """Tokens are bytes; reasoning is ended with a line break and its mark."""
    return ThinkingBudget(
        inner,
        marks=(b"<t>", END),
        end_tokens=list(b"\n" + END),
        spelled=lambda token: bytes([token]),
        n_max=n_max,
        is_thinking=is_thinking,
    )


def say(guide: ThinkingBudget, text: bytes) -> bytes:
    """What comes of it when a model wants to say `text`: what is forced comes before what it wants."""
    said = b""
    for wanted in text:
        for token in (*guide.forced(), wanted):
            assert guide.allows(token)
            guide.accept(token)
            said += bytes([token])
    return said + bytes(guide.forced())


@pytest.mark.parametrize(
    ("n_max", "text", "said"),
    [
        (5, b"hmmmmmmm", b"hmmmm\n</t>mmm"),
        (0, b"hello", b"\n</t>hello"),
        (5, b"hm</t>a long answer", b"hm</t>a long answer"),
        (100, b"hm</t>a long answer", b"hm</t>a long answer"),
    ],
)
def test_reasoning_that_has_begun_ends_in_time(n_max: int, text: bytes, said: bytes) -> None:
    assert say(budget(n_max), text) == said


@pytest.mark.parametrize(
    ("n_max", "text", "said"),
    [
        (3, b"<t>hmmm", b"<t>hmm\n</t>m"),
        (0, b"<t>hm", b"<t>\n</t>hm"),
        (3, b"\n <t>hmmm", b"\n <t>hmm\n</t>m"),
        (3, b"no reasoning at all", b"no reasoning at all"),
        (3, b"<table> is <t>ext", b"<table> is <t>ext"),
    ],
)
def test_reasoning_is_counted_from_where_it_begins(n_max: int, text: bytes, said: bytes) -> None:
    assert say(budget(n_max, is_thinking=False), text) == said


def test_while_reasoning_is_ended_nothing_else_is_allowed() -> None:
    guide = budget(0)
    assert not guide.allows(ord("x"))
    mask = guide.allowed()
    assert [token for token in range(256) if token // 8 < len(mask) and mask[token // 8] >> token % 8 & 1] == [10]


def test_the_guide_within_hears_everything_and_decides_the_rest() -> None:
    inner = FakeGuide("..\n</t>{.}")
    guide = budget(2, inner=inner)
    assert say(guide, b"ab") == b"ab\n</t>"
    for token in b"\n</t>":
        guide.accept(token)
    assert guide.forced() == list(b"{")
    assert not guide.allows(ord("a"))
    assert guide.allowed() == inner.allowed()
    for token in b"{x}":
        guide.accept(token)
    assert guide.is_over
