"""For all tests of constraints: how long mending a schema may take depends on who else uses the machine."""

import pytest

from shimmy.engine.constrain import enforceable_schema


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforceable_schema, "_MENDING_S", 60.0)
