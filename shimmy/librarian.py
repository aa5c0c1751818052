"""Keeps the published catalog true: looks at the disk when told to, and publishes what has settled.

Knows that files take time to arrive; nothing of how changes are noticed, of workers or of requests. A model is
published when two looks in a row saw it the same, so that nobody asks for half a file; a known one stays as it is until
then, and for as long as what lies in its place cannot be served.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from shimmy.config import Config
from shimmy.discovery import scan
from shimmy.headers import Headers
from shimmy.registry import Catalog, CatalogDiff, Model, Registry, diff

# Events of one change come in bursts.
DEBOUNCE_S = 0.1
# Between two looks: whoever writes a file pauses for less.
SETTLE_S = 0.4
MAX_LOOKS = 5  # of somebody who waits for what they find

logger = logging.getLogger(__name__)


class Librarian:
    """Publishes to `registry`, and tells `on_change` what is different."""

    def __init__(
        self, config: Config, registry: Registry, headers: Headers, on_change: Callable[[CatalogDiff], None]
    ) -> None:
        self._config = config
        self._registry = registry
        self._headers = headers
        self._on_change = on_change
        self._asked = asyncio.Event()
        self._looking = asyncio.Lock()
        self._last_look = Catalog()

    def publish_first(self) -> None:
        """The catalog of a start: everything that is there now."""
        self._last_look = scan(self._config, self._headers)
        self._registry.publish(self._last_look)

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
            if await self.look():
                await asyncio.to_thread(self._headers.save)
            else:
                await asyncio.sleep(SETTLE_S - DEBOUNCE_S)
                self.look_again()

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
            seen = await asyncio.to_thread(scan, self._config, self._headers)
            published = self._registry.catalog
            catalog = settled(published, self._last_look, seen, await asyncio.to_thread(_in_place, published, seen))
            self._last_look = seen
            change = diff(published, catalog)
            if not change.is_empty:
                self._registry.publish(catalog)
                self._tell(change)
            return all(model in catalog.models for model in seen.models)

    def _tell(self, change: CatalogDiff) -> None:
        for what, models in (("found", change.added), ("changed", change.changed), ("gone", change.removed)):
            for model in models:
                logger.info("%s: `%s` (%s)", what, model.name, model.path)
        self._on_change(change)


def _in_place(published: Catalog, seen: Catalog) -> list[Model]:
    """Known models that were not seen although something lies where they were: a broken file, or one that arrives."""
    names = {model.name for model in seen.models}
    return [model for model in published.models if model.name not in names and model.path.is_file()]


def settled(published: Catalog, last_look: Catalog, seen: Catalog, in_place: Iterable[Model] = ()) -> Catalog:
    """Of the models seen now, those that the last look saw the same; of the others, what is known so far."""
    before = {model.name: model for model in last_look.models}
    known = {model.name: model for model in published.models}
    models = [model if before.get(model.name) == model else known.get(model.name) for model in seen.models]
    return Catalog([*filter(None, models), *in_place])
