"""Settings for servers of a test's own, and a place for what is pulled."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shimmy.hub.pull import pull
from shimmy.hub.settings import HubSettings
from shimmy.hub.transfer import download, patience, ranges
from tests.hub.servers import FakeServer

if TYPE_CHECKING:
    from shimmy.hub.transfer.events import PullEvent

Serve = Callable[[FakeServer], Any]


class Place:
    """Where a test's pulls go, and what they said."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.store, self.folder = folder / "hub", folder / "ollama", folder / "models"
        self.events: list[PullEvent] = []
        self.options: dict[str, Any] = {}

    def settings(self, server: FakeServer, **options: Any) -> HubSettings:
        given: dict[str, Any] = {"token": "", "is_offline": False} | self.options | options
        endpoint = given.pop("endpoint", server.url)
        return HubSettings(endpoint, server.url, cache=self.cache, store=self.store, folder=self.folder, **given)

    def pull(self, server: FakeServer, reference: str, **options: Any) -> Path:
        return pull(reference, self.settings(server, **options), self.events.append)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def unfinished(self) -> list[str]:
        places = (self.cache, self.store, self.folder)
        return sorted(path.name for place in places for path in place.rglob("*.shimmy.*"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Runs a server until the test's end."""
    with ExitStack() as stack:

        def run(server: FakeServer) -> FakeServer:
            stack.enter_context(server.running())
            return server

        yield run


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test are many chunks, and no wait is long."""
    monkeypatch.setattr(ranges, "CHUNK_BYTES", 64 << 10)
    monkeypatch.setattr(ranges, "NOTE_BYTES", 16 << 10)
    monkeypatch.setattr(download, "BUFFER_BYTES", 8 << 10)
    monkeypatch.setattr(ranges, "BUFFER_BYTES", 8 << 10)
    monkeypatch.setattr(ranges, "LATER_BUFFER_BYTES", 4 << 10)
    monkeypatch.setattr(download, "RANGES_FROM_BYTES", 32 << 10)
    monkeypatch.setattr(ranges, "MORE_EVERY_S", 0.0)
    monkeypatch.setattr(ranges, "BUSY_SHARE", 2.0)  # no machine is that busy: all connections join
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    for variable in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
