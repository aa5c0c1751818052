import pytest

from shimmy.http import connection, connections, http1


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines as short as a test."""
    for name, seconds in {"_HEAD_S": 0.3, "_KEEP_ALIVE_S": 0.3, "_BODY_S": 0.3}.items():
        monkeypatch.setattr(connection, name, seconds)
    monkeypatch.setattr(connection, "_LINGER_S", 0.3)
    for module in (http1, connections):
        monkeypatch.setattr(module, "LOOK_EVERY_S", 0.02)
