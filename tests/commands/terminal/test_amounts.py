"""Numbers as people say them."""

import pytest

from shimmy.commands.terminal import amounts


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.0K"), (134_500_000, "134.5M"), (7_240_000_000, "7.2B")]
)
def test_counts(number: int, text: str) -> None:
    assert amounts.count(number) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (638_912, "639 KB"), (999_999, "1.0 MB"), (9_960_000, "10 MB"),
        (98_000_000, "98 MB"), (1_234_000_000, "1.2 GB"), (2_000_000_000_000, "2.0 TB"),
    ],
)  # fmt: skip
def test_sizes(n_bytes: int, text: str) -> None:
    assert amounts.size(n_bytes) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (-5, "just now"), (0.9, "just now"), (1, "1 second ago"), (59, "59 seconds ago"), (60, "1 minute ago"),
        (7199, "1 hour ago"), (86_400, "1 day ago"), (86_400 * 6.9, "6 days ago"), (86_400 * 20, "2 weeks ago"),
        (86_400 * 60, "1 month ago"), (86_400 * 800, "2 years ago"),
    ],
)  # fmt: skip
def test_ages(duration_s: float, text: str) -> None:
    assert amounts.ago(duration_s) == text
