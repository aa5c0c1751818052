"""Keeps the published catalog true: looks at the disk when told to, and publishes what has settled.

Knows that files take time to arrive; nothing of how changes are noticed, of workers or of requests. A file is published
when looks over SETTLE_S saw it the same, so that a file half written is neither served nor called broken. A known model
stays as it is until then, and for as long as the file in its place cannot be served.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Container, Iterable
from itertools import islice
from time import monotonic, thread_time
from typing import TYPE_CHECKING

from shimmy.background import in_thread
from shimmy.catalog.assign_names import Names
from shimmy.catalog.catalog import Catalog, CatalogDiff, Entry, Model, Registry, diff, shown
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.scan import Discovery, Watched, report, warn_of
from shimmy.config import Config
from shimmy.errors import Overloaded
from shimmy.text.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

# Events of one change come in bursts.
DEBOUNCE_S = 0.1
# Between the first look at a file and the one that publishes it: programs that write a file pause for less.
SETTLE_S = 0.4
MAX_LOOKS = 5  # of a caller that waits for what they find
# Files that keep changing cost a tenth of a core at most: the time of looks comes out of an allowance, and the next
# look waits until some of it is there again.
SHARE_OF_LOOKS = 0.1
MAX_ALLOWANCE_S = 1.0
MAX_CHANGED = 5_000  # places to be looked at again; from there on it is all of them
MAX_TOLD = 50  # lines of the log for one change of the catalog and what happened to a model

logger = logging.getLogger(__name__)


class CatalogPublisher:
    """Publishes to `registry`, and tells `on_change` what is different. `clock` counts seconds."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        headers: Headers,
        on_change: Callable[[CatalogDiff], None],
        clock: Callable[[], float] = monotonic,
        *,
        names: Names | None = None,
        watch: Callable[[Watched], None] = lambda _: None,
    ) -> None:
        """`watch` is told of the folders in which something may change, after each look that found others."""
        self._registry = registry
        self._headers = headers
        self._names = names or Names()
        self._discovery = Discovery(config, headers, self._names)
        self._on_change = on_change
        self._clock = clock
        self._watch = watch
        self._asked = asyncio.Event()
        self._changed: set[Path] | None = set()  # since the last look; None: anything may have
        self._looking = asyncio.Lock()  # held by the one who looks; what follows is theirs
        self._discovering = asyncio.Lock()  # held by the one who looks for those who asked
        self._coming: asyncio.Task[None] | None = None  # the next one of these, before it begins
        self._discoveries: set[asyncio.Task[None]] = set()
        self._named = config.model_paths
        self._n_asking, self._n_asking_max = 0, config.max_queue
        self._seen: Catalog | None = None
        self._seen_since_s: dict[str, tuple[Entry, float]] = {}  # what the last look saw, by name
        self._unsettled: list[Entry] = []  # of that
        self._worked_s = 0.0  # processor time of all looks
        self._watched: Watched | None = None
        self._warnings: set[tuple[Path, str]] = set()  # of the last look

    def publish_first(self) -> None:
        """The catalog of a start: everything that is there now."""
        catalog = self._discovery.look()
        self._warn()
        self._names.remember(catalog.models)
        self._registry.publish(catalog)
        report(catalog.rejected, self._named)
        _tell_notices(catalog.models)
        self._follow()

    def look_again(self, changed: "Collection[Path] | None" = None) -> None:
        """Something may have changed: anything, or these files and folders."""
        if changed is None or self._changed is None or len(self._changed) + len(changed) > MAX_CHANGED:
            self._changed = None
        else:
            self._changed |= {*changed}
        self._asked.set()

    async def run(self) -> None:
        """Look whenever asked to, until cancelled."""
        await in_thread(self._save)
        allowance = LookAllowance()
        while True:
            await self._asked.wait()
            await asyncio.sleep(DEBOUNCE_S)
            self._asked.clear()
            changed, self._changed = self._changed, set()
            began_s, worked_s = monotonic(), self._worked_s
            try:
                is_settled = await self.look(changed)
                # What a disk takes is counted less: a look that waits for it is no work.
                allowance.spend(self._worked_s - worked_s + SHARE_OF_LOOKS * (monotonic() - began_s))
                pause_s = allowance.wait_s
                if is_settled:
                    await in_thread(self._save)
                else:
                    pause_s = max(pause_s, SETTLE_S - DEBOUNCE_S)
                    self.look_again(changed)
                await asyncio.sleep(pause_s)
            except Exception:
                # A bug that one file brings out must not end all looking.
                logger.exception("looking for models failed; the ones that are known stay")
                self._changed = None

    async def discover(self) -> None:
        """Look now, and again until all has settled; what keeps changing for long is left to `run`.

        Those who ask while others are looked for share what comes next, since a look under way may have passed what
        they mean. Raises Overloaded when too many wait.
        """
        if self._n_asking > self._n_asking_max:
            raise Overloaded(f"{self._n_asking} wait for a look at the model folders already; try again later")
        if self._coming is None:
            self._coming = asyncio.create_task(self._discover())
            self._discoveries.add(self._coming)
            self._coming.add_done_callback(self._end_discovery)
        coming = self._coming
        self._n_asking += 1
        try:
            await asyncio.shield(coming)
        finally:
            self._n_asking -= 1
            if not self._n_asking and coming is self._coming:  # it has not begun, and no caller waits for it
                coming.cancel()
                self._coming = None

    def _end_discovery(self, task: "asyncio.Task[None]") -> None:
        self._discoveries.discard(task)
        if not task.cancelled():
            task.exception()  # taken note of, also where those who would hear of it have left

    async def _discover(self) -> None:
        async with self._discovering:
            self._coming = None
            for _ in range(MAX_LOOKS):
                if await self.look():
                    return
                await asyncio.sleep(SETTLE_S)
            self.look_again()

    async def look(self, changed: "Collection[Path] | None" = None) -> bool:
        """Look once, at everything or at what has `changed`, and publish what has settled; False when something has
        not."""
        async with self._looking:
            catalog, change, is_settled = await in_thread(self._look, changed)
            self._registry.publish(catalog)
            self._follow()
            if not change.is_empty:
                self._tell(change)
            return is_settled

    def _look(self, changed: "Collection[Path] | None") -> tuple[Catalog, CatalogDiff, bool]:
        """The next catalog, what is different in it, and whether all that was seen has settled; on another thread."""
        began_s = thread_time()
        try:
            return self._next(changed)
        finally:
            self._worked_s += thread_time() - began_s

    def _next(self, changed: "Collection[Path] | None") -> tuple[Catalog, CatalogDiff, bool]:
        began_s = self._clock()
        seen = self._discovery.look(changed)
        now_s = self._clock()
        self._warn()
        published = self._registry.catalog
        arriving = [entry for entry in seen.rejected if self._discovery.arrives(entry)]
        is_quiet = not self._discovery.is_arriving
        if seen is self._seen and all(entry in arriving for entry in self._unsettled):
            self._seen_since_s |= {entry.name: (entry, now_s) for entry in arriving}
            return published, CatalogDiff((), (), ()), is_quiet and not self._unsettled
        before, self._seen, self._seen_since_s = self._seen_since_s, seen, {}
        entries: list[Entry] = [*seen.models, *seen.rejected]
        for entry in entries:
            old = before.get(entry.name)
            self._seen_since_s[entry.name] = (entry, old[1] if old is not None and _same(old[0], entry) else now_s)
        self._seen_since_s |= {entry.name: (entry, now_s) for entry in arriving}
        steady = {name for name, (_, since_s) in self._seen_since_s.items() if began_s - since_s >= SETTLE_S}
        catalog, self._unsettled = settled(published, seen, steady)
        change = diff(published, catalog)
        catalog.prepare()
        self._names.remember(catalog.models)
        return catalog, change, is_quiet and not self._unsettled

    def _save(self) -> None:
        self._headers.save()
        self._names.save()

    def _follow(self) -> None:
        watched = self._discovery.watched
        if watched is not self._watched:
            self._watched = watched
            self._watch(watched)

    def _warn(self) -> None:
        """Say what the last look passed over, once for as long as it stays true."""
        for path, reason in self._discovery.warnings:
            if (path, reason) not in self._warnings:
                warn_of(path, reason)
        self._warnings = set(self._discovery.warnings)

    def _tell(self, change: CatalogDiff) -> None:
        for what, models in (("found", change.added), ("changed", change.changed), ("gone", change.removed)):
            for model in models[:MAX_TOLD]:
                logger.info("%s: `%s` (%s)", what, model.name, shown(model.path))
            if len(models) > MAX_TOLD:
                logger.info("%s: %d more, `GET /api/models` lists them", what, len(models) - MAX_TOLD)
        report(change.rejected[:MAX_TOLD], self._named)
        _tell_notices((*change.added, *change.changed))
        self._on_change(change)


def _tell_notices(models: Iterable[Model]) -> None:
    """Log what is different in these models from what their folders say."""
    told = ((model, notice) for model in models for notice in model.notices)
    for model, notice in islice(told, MAX_TOLD):
        logger.info("`%s` (%s): %s", model.name, shown(model.path), printable(notice))


class LookAllowance:
    """The time that looks may take, which grows while there is none."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._left_s = MAX_ALLOWANCE_S  # less than nothing: it has to grow first
        self._at_s = clock()

    def spend(self, duration_s: float) -> None:
        now_s = self._clock()
        grown_s = min(MAX_ALLOWANCE_S, self._left_s + SHARE_OF_LOOKS * (now_s - self._at_s))
        self._left_s, self._at_s = grown_s - duration_s, now_s

    @property
    def wait_s(self) -> float:
        """How long the next one has to wait."""
        return max(0.0, -self._left_s / SHARE_OF_LOOKS)


def settled(published: Catalog, seen: Catalog, steady: Container[str]) -> tuple[Catalog, list[Entry]]:
    """Of what was seen now, the things whose names are `steady`; of the others, what is known so far. And these others.

    A known model stays while there is something in its place that cannot be served: a broken file, or one that arrives.
    """
    known = {model.name: model for model in published.models}
    known_files = {(model.path, model.files) for model in published.models}  # under another name perhaps
    known_rejected = {entry.name: entry for entry in published.rejected}
    unsettled: list[Entry] = []
    models: list[Model] = []
    for model in seen.models:
        old = known.get(model.name)
        is_known = (old is not None and _same(old, model)) or (model.path, model.files) in known_files
        if is_known or model.name in steady:
            models.append(model)
        else:
            unsettled.append(model)
            if old is not None:
                models.append(old)
    rejected = []
    for entry in seen.rejected:
        old = known.get(entry.name)
        if old is not None and old.path == entry.path:
            models.append(old)
        old_entry = known_rejected.get(entry.name)
        if entry.name in steady or (old_entry is not None and _same(old_entry, entry)):
            rejected.append(entry)
        else:
            unsettled.append(entry)
    return Catalog(models, rejected), unsettled


def _same(one: Entry, other: Entry) -> bool:
    return one is other or one == other
