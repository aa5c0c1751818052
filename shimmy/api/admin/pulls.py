"""POST /api/models/pull: models fetched by `shimmy pull`, each in a process of its own, and what these processes say.

Knows the lines that the command prints, and nothing of where models come from: the server's own process never talks
to another machine.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shimmy.api import client_gone, event_stream
from shimmy.api.http_exchange import encode, error_body, error_of
from shimmy.api.request_fields.field_kinds import Boolean, Record, read_text, refuse
from shimmy.errors import BadRequest, Internal, Overloaded, PullFailed, ShimmyError, from_code
from shimmy.system.self_command import executable, first_environment, own_program

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange
    from shimmy.api.request_fields.field_kinds import Json
    from shimmy.config import Config
    from shimmy.generation import Services

MAX_PULLS = 4  # at once
MAX_CHARACTERS = 1024  # as `hub/references` has it
_PATTERN = r"^[^\u0000-\u0020\u007f-\u00a0]*$"  # what a pattern can say of printable characters without spaces
_MAX_LINE_BYTES = 1 << 20
_END_S = 10.0
_BEFORE = ("resolving", "files")  # events before the first byte: an error up to there is a status
_PASSING = ("progress", "waiting")  # events of which the last one says it all

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelReference:
    """What names a model elsewhere, as far as this process has to know: a short word for a command line and a log."""

    def read(self, value: object, path: str) -> str:
        text = read_text(value, path)
        if not 0 < len(text) <= MAX_CHARACTERS:
            refuse(path, f"1 to {MAX_CHARACTERS} characters", str(len(text)))
        if not text.isprintable() or " " in text:
            refuse(path, "printable characters without spaces", ascii(text[:100]))
        return text

    def schema(self) -> "Json":
        return {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS, "pattern": _PATTERN}


PULL = Record({"model": ModelReference(), "stream": Boolean()}, {"model": "what to pull"})


async def pull(exchange: "Exchange") -> None:
    """Streams what happens until the model can be asked for; with `stream: false`, replies once it can be.

    Those who ask for the same model share one pull. It ends when the last of them leaves; another one goes on from
    there.
    """
    given = await exchange.read(PULL.read)
    pulls = _pulls(exchange)
    running = pulls.join(given["model"], exchange.services)
    try:
        if given.get("stream", True):
            await client_gone.unless_gone(exchange, running.until_begun())
            await event_stream.broadcast(exchange, _frames(running))
        else:
            await client_gone.unless_gone(exchange, running.until_done())
            await exchange.reply({"model": running.reference, **running.last})
    finally:
        await pulls.leave(running)


async def suggestions(exchange: "Exchange") -> None:
    """Models that fit the memory which is free now, for someone who has none."""
    from shimmy.catalog.suggestions import fitting

    found = [{"model": each.reference, "size_bytes": each.size_bytes, "about": each.about} for each in fitting()]
    await exchange.reply({"suggestions": found})


def _pulls(exchange: "Exchange") -> "Pulls":
    state = exchange.scope["app"].state
    if not hasattr(state, "pulls"):
        state.pulls = Pulls()
    found: Pulls = state.pulls
    return found


async def _frames(running: "Pull") -> AsyncIterator[bytes]:
    async for kind, details in running.told():
        data = encode(details) if isinstance(details, dict) else error_body(details)
        yield b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class Pull:
    """One pull, for all who wait for it."""

    def __init__(self, reference: str, services: "Services") -> None:
        self.reference = reference
        self.n_waiting = 0
        self._events: list[tuple[int, str, Any]] = []  # numbered; what a newcomer has to know, the last one last
        self._n_told = 0
        self._is_over = False  # the last event was told
        self._changed = asyncio.Condition()
        self._services = services
        self._process: asyncio.subprocess.Process | None = None
        self.task = asyncio.create_task(self._run())

    @property
    def last(self) -> Any:
        """What came with the last event: a dictionary, or a ShimmyError."""
        return self._events[-1][2]

    async def until_begun(self) -> None:
        """Return when the first bytes have come, or all takes a while. Raises why it failed before that."""
        async with self._changed:
            waiting = self._changed.wait_for(lambda: any(kind not in _BEFORE for _, kind, _ in self._events))
            try:
                await asyncio.wait_for(waiting, event_stream.ACCEPT_WAIT_S)
            except TimeoutError:
                return
        self._raise_failure()

    async def until_done(self) -> None:
        """Raises why it failed."""
        await asyncio.shield(self.task)
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._events and isinstance(self.last, ShimmyError):
            raise self.last

    async def told(self) -> AsyncIterator[tuple[str, Any]]:
        """What a newcomer has to know, then all that happens, up to the end."""
        n_seen = 0
        while n_seen < self._n_told or not self._is_over:
            async with self._changed:
                while self._n_told == n_seen:
                    await self._changed.wait()
                unseen = [event for event in self._events if event[0] > n_seen]
                n_seen = self._n_told
            for _, kind, details in unseen:
                yield kind, details

    async def stop(self) -> None:
        """End the process; what it has fetched is kept."""
        if not self._is_over:
            self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _run(self) -> None:
        logger.info("pulling `%s`", self.reference)
        try:
            await self._read_process()
        except asyncio.CancelledError:
            self._services.events.publish("pull_stopped", self.reference)
            raise
        except Exception as exc:  # noqa: BLE001 - error_of logs what is a bug
            error = error_of(exc)
            logger.warning("pulling `%s` failed: %s", self.reference, error.message)
            await self._tell("error", error)
        finally:
            await self._end_process()

    async def _read_process(self) -> None:
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *_command(self._services.config, self.reference),
                executable=executable(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env=first_environment(),
                limit=_MAX_LINE_BYTES,
            )
        except OSError as exc:
            raise PullFailed(f"no process could be started: {exc.strerror}") from exc
        assert process.stdout is not None
        while line := await process.stdout.readline():
            details = json.loads(line)
            kind = str(details.pop("event"))
            if kind == "error":
                error = from_code(str(details["code"]), str(details["message"]))
                error.param = "model" if isinstance(error, BadRequest) else None
                raise error
            if kind == "done":
                details["models"] = await self._models(str(details["path"]))
                logger.info("pulled `%s`: %s", self.reference, ", ".join(details["models"]) or details["path"])
            await self._tell(kind, details)
        if not self._is_over:
            raise Internal(f"the process that pulled ended with {await process.wait()}")

    async def _models(self, path: str) -> list[str]:
        """The names of what lies at `path` now."""
        await self._services.discover()
        models = self._services.registry.catalog.models
        return [model.name for model in models if any(path in {str(place.path), place.key} for place in model.places)]

    async def _tell(self, kind: str, details: Any) -> None:
        async with self._changed:
            if kind in _PASSING:
                self._events = [event for event in self._events if event[1] != kind]
            self._n_told += 1
            self._is_over = kind in {"done", "error"}
            self._events.append((self._n_told, kind, details))
            self._changed.notify_all()
        told = {"error": details.message} if isinstance(details, ShimmyError) else details
        self._services.events.publish(f"pull_{kind}", self.reference, **told)

    async def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None and not process.stdout.at_eof():  # type: ignore[union-attr] # it is a pipe
            process.terminate()
        try:
            await asyncio.wait_for(process.communicate(), _END_S)
        except TimeoutError:
            process.kill()
            await process.communicate()


def _command(config: "Config", reference: str) -> Sequence[str]:
    """It puts models where this server looks for them."""
    places: list[str] = []
    if not config.usual_dirs:
        places += [word for path in config.model_paths for word in ("--model-path", str(path))]
        places += [word for path in config.model_dirs for word in ("--model-dirs", str(path))]
    return [*own_program(), "pull", "--json", "--public-only", *places, "--", reference]


class Pulls:
    """Those that run, by what was asked for."""

    def __init__(self) -> None:
        self._running: dict[str, Pull] = {}

    def join(self, reference: str, services: "Services") -> Pull:
        """The pull of `reference`, begun if there is none. Call `leave` with it. Raises Overloaded."""
        running = self._running.get(reference)
        if running is None or running.task.done():
            if sum(not other.task.done() for other in self._running.values()) >= MAX_PULLS:
                raise Overloaded(f"{MAX_PULLS} models are being pulled already; try again later")
            running = self._running[reference] = Pull(reference, services)
        running.n_waiting += 1
        return running

    async def leave(self, running: Pull) -> None:
        """A pull that nobody waits for ends."""
        running.n_waiting -= 1
        if not running.n_waiting:
            if self._running.get(running.reference) is running:
                del self._running[running.reference]
            await running.stop()
