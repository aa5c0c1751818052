"""Tools that tests fetch: without a network their tests are skipped."""

from pathlib import Path

import pytest

from tests.packaging.conftest import skipped_where_not_fetched
from tools import chart
from tools.steps import BuildError, NotFetched


def test_tools_that_cannot_be_fetched_skip_a_test_and_fail_it_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BuildError("no network")

    monkeypatch.setattr(chart, "CACHE", tmp_path)
    monkeypatch.setattr(chart, "_FOLDER", tmp_path / "chart")
    monkeypatch.setattr(chart, "pip", fail)
    monkeypatch.delenv("CI", raising=False)
    with (
        pytest.raises(pytest.skip.Exception, match=r"`kubernetes-validate==.*` cannot be fetched:$"),
        skipped_where_not_fetched(),
    ):
        chart.validator()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(NotFetched, match="no network"), skipped_where_not_fetched():
        chart.validator()
