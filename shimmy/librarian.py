"""Keeps the published catalog true: looks at the disk when told to, and publishes what has settled.

Knows that files take time to arrive; nothing of how changes are noticed, of workers or of requests. What is there is
published when looks over SETTLE_S saw it the same, so that nobody asks for half a file or hears that one is broken; a
known model stays as it is until then, and for as long as what lies in its place cannot be served.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING

from shimmy.config import Config
from shimmy.discovery import report, scan, warn_of
from shimmy.headers import Headers
from shimmy.registry import Catalog, CatalogDiff, Entry, Registry, diff, shown

if TYPE_CHECKING:
    from pathlib import Path

# Events of one change come in bursts.
DEBOUNCE_S = 0.1
# Between the first look at something and the one that publishes it: whoever writes a file pauses for less.
SETTLE_S = 0.4
MAX_LOOKS = 5  # of somebody who waits for what they find

logger = logging.getLogger(__name__)


class Librarian:
    """Publishes to `registry`, and tells `on_change` what is different. `clock` counts seconds."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        headers: Headers,
        on_change: Callable[[CatalogDiff], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._config = config
        self._registry = registry
        self._headers = headers
        self._on_change = on_change
        self._clock = clock
        self._asked = asyncio.Event()
        self._looking = asyncio.Lock()  # held by the one who looks; what follows is theirs
        self._seen_since_s: dict[Entry, float] = {}  # what the last look saw
        self._warnings: set[tuple[Path, str]] = set()  # of the last look

    def publish_first(self) -> None:
        """The catalog of a start: everything that is there now."""
        catalog = self._scan()
        self._registry.publish(catalog)
        report(catalog.rejected)

    def look_again(self) -> None:
        """Something may have changed."""
        self._asked.set()

    async def run(self) -> None:
        """Look whenever asked to, until cancelled."""
        await asyncio.to_thread(self._headers.save)
        while True:
            await self._asked.wait()
            await asyncio.sleep(DEBOUNCE_S)
            self._asked.clear()
            try:
                if await self.look():
                    await asyncio.to_thread(self._headers.save)
                else:
                    await asyncio.sleep(SETTLE_S - DEBOUNCE_S)
                    self.look_again()
            except Exception:
                # A bug that one file brings out must not end all looking.
                logger.exception("looking for models failed; the ones that are known stay")

    async def discover(self) -> None:
        """Look now, and again until all has settled; what keeps changing for long is left to `run`."""
        for _ in range(MAX_LOOKS):
            if await self.look():
                return
            await asyncio.sleep(SETTLE_S)
        self.look_again()

    async def look(self) -> bool:
        """Look once and publish what has settled; False when something has not."""
        async with self._looking:
            catalog, change, is_settled = await asyncio.to_thread(self._look)
            self._registry.publish(catalog)
            if not change.is_empty:
                self._tell(change)
            return is_settled

    def _look(self) -> tuple[Catalog, CatalogDiff, bool]:
        """The next catalog, what is different in it, and whether all that was seen has settled; on another thread."""
        began_s = self._clock()
        seen = self._scan()
        now_s = self._clock()
        entries: list[Entry] = [*seen.models, *seen.rejected]
        self._seen_since_s = {entry: self._seen_since_s.get(entry, now_s) for entry in entries}
        steady = {entry for entry, since_s in self._seen_since_s.items() if began_s - since_s >= SETTLE_S}
        published = self._registry.catalog
        catalog = settled(published, seen, steady)
        is_settled = self._seen_since_s.keys() <= {*catalog.models, *catalog.rejected}
        return catalog, diff(published, catalog), is_settled

    def _scan(self) -> Catalog:
        """What is there; a warning is said once for as long as it stays true."""
        warnings: list[tuple[Path, str]] = []
        catalog = scan(self._config, self._headers, lambda path, reason: warnings.append((path, reason)))
        for path, reason in warnings:
            if (path, reason) not in self._warnings:
                warn_of(path, reason)
        self._warnings = set(warnings)
        return catalog

    def _tell(self, change: CatalogDiff) -> None:
        for what, models in (("found", change.added), ("changed", change.changed), ("gone", change.removed)):
            for model in models:
                logger.info("%s: `%s` (%s)", what, model.name, shown(model.path))
        report(change.rejected)
        self._on_change(change)


def settled(published: Catalog, seen: Catalog, steady: Iterable[Entry]) -> Catalog:
    """Of what was seen now, the `steady` things; of the others, what is known so far.

    A known model stays while there is something in its place that cannot be served: a broken file, or one that arrives.
    """
    steady = {*steady, *published.models, *published.rejected}
    known = {model.name: model for model in published.models}
    models = [model if model in steady else known.get(model.name) for model in seen.models]
    for entry in seen.rejected:
        model = known.get(entry.name)
        if model is not None and model.path == entry.path:
            models.append(model)
    return Catalog(filter(None, models), (entry for entry in seen.rejected if entry in steady))
