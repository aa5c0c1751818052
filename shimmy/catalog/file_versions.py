"""What single files and folders of models are, looked into when they are new and remembered while they stay the same.

Knows headers, plans of SafeTensors folders and PEFT's adapters; nothing of names, nor of which of it belong together.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from os import stat_result
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.catalog.catalog import BROKEN
from shimmy.catalog.header_cache import Headers, Planned
from shimmy.catalog.walk import Folder, mark_beside
from shimmy.formats.gguf.header import GgufHeader, GgufKind
from shimmy.formats.gguf.reader import InvalidGguf
from shimmy.formats.safetensors import huggingface
from shimmy.text.printable import printable, shortened
from shimmy.wire.worker_options import SAFETENSORS_TYPES

if TYPE_CHECKING:
    from shimmy.formats.convert.peft import PeftAdapter

GGUF = BROKEN
SAFETENSORS = "safetensors"

_REASON_CHARACTERS = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Something whole."""

    header: GgufHeader
    version: tuple[int, ...]  # device, inode, then what is another number when the content may be another
    notices: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[int, ...]:
        """The same for all paths to one file."""
        return self.version[:2]


@dataclass(frozen=True, slots=True)
class AdapterFolder(ModelFile):
    """A LoRA adapter in SafeTensors. It does not say what architecture it is for."""

    adapter: "PeftAdapter | None" = None

    def suits(self, architecture: str, n_embd: int) -> bool:
        return self.adapter is not None and self.adapter.suits(architecture, n_embd)


@dataclass(frozen=True, slots=True)
class Broken:
    """Something that cannot be served."""

    reason: str
    version: tuple[int, ...]
    kind: str = BROKEN
    architecture: str = ""

    @property
    def identity(self) -> tuple[int, ...]:
        return self.version[:2]


Found = ModelFile | Broken | None
_Stamp = tuple[int | str, ...]


class ModelFiles:
    """Used by one thread at a time."""

    def __init__(self, headers: Headers, safetensors_type: str | None) -> None:
        self._headers = headers
        self._safetensors_type = safetensors_type
        self._known: dict[Path, tuple[_Stamp, Found]] = {}
        self._before: dict[Path, tuple[_Stamp, Found]] = {}  # what was known when all is looked at again
        self._folders: dict[tuple[Path, str], Found] = {}
        self._looked: set[Path] = set()  # at in this look
        self._unsteady: dict[tuple[Path, str], Found] = {}  # what was held back, as it was
        self.arriving: set[Path] = set()  # what is broken in another way at each look, as what is being written is
        self.warnings: dict[Path, str] = {}  # why a file is passed over
        self._told: set[tuple[Path, str]] = set()  # what was unexpected, and is in the log

    def begin_look(self, *, is_whole: bool) -> None:
        """What is asked for from now on is as it is now, where the look `is_whole` or it is to be renewed."""
        self.arriving = set()
        self._looked = set()
        if is_whole:
            self._before, self._known = self._known, {}
            self.warnings = {}

    def end_look(self) -> None:
        """All that was found again is known; the rest is gone."""
        self._before = {}

    def drop(self, paths: Iterable[Path]) -> None:
        """These are gone from where they were found."""
        for path in paths:
            self._known.pop(path, None)
            self._unsteady.pop((path, GGUF), None)
            self.warnings.pop(path, None)

    def read(self, path: Path) -> Found:
        """The GGUF file at `path`, as it was at the last look; None where there is none."""
        known = self._known.get(path)
        if known is None:
            return self._look(path, mark_beside(path))
        return known[1]

    def renew(self, paths: Iterable[Path]) -> bool:
        """Look again at those of `paths` that are known; whether one of them is another."""
        is_changed = False
        for path in paths:
            known = self._known.get(path)
            if known is not None and path not in self._looked:
                is_changed |= self._look(path, mark_beside(path)) != known[1]
        return is_changed

    def look_into(self, folder: Folder) -> bool:
        """Look at all there is in `folder`; whether one of what was known is another."""
        is_changed = False
        for path in folder.files:
            known = self._known.get(path)
            is_changed |= self._look(path, folder.mark(path.name)) != (known[1] if known else None)
        for kind, is_one in ((SAFETENSORS, folder.is_safetensors), (GgufKind.ADAPTER.value, folder.is_adapter)):
            if is_one:
                old = self._folders.get((folder.path, kind))
                found = self._look_as(folder, kind)
                if not self._is_held_back(folder.path, kind, old, found):
                    self._folders[folder.path, kind] = found
                    is_changed |= found != old
        return is_changed

    def checkpoint(self, folder: Path) -> Found:
        """The model in SafeTensors that `folder` is, as the GGUF it will become; as it was at the last look."""
        return self._folders[folder, SAFETENSORS]

    def adapter(self, folder: Path) -> Found:
        """The LoRA adapter in SafeTensors that `folder` is; as it was at the last look."""
        return self._folders[folder, GgufKind.ADAPTER.value]

    def _look(self, path: Path, mark: str) -> Found:
        self._looked.add(path)
        self.warnings.pop(path, None)
        try:
            status = path.stat()
        except OSError as exc:
            if not isinstance(exc, FileNotFoundError) or path.is_symlink():
                self.warnings[path] = str(exc.strerror)
            self._known[path] = ((), None)
            return None
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        stamp = (*version, status.st_ctime_ns, mark)
        known = self._known.get(path) or self._before.get(path)
        if known is None or known[0] != stamp:
            known = self._read(path, status, version, mark)
            known = (stamp, known[1]) if known[0] else known
        old = self._known.get(path) or self._before.get(path)
        if old is not None and self._is_held_back(path, GGUF, old[1], known[1]):
            known = old
        self._known[path] = known
        return known[1]

    def _is_held_back(self, path: Path, kind: str, old: Found, new: Found) -> bool:
        """Whether `new` is nothing to speak of until another look has seen the same: it changes and stays broken."""
        is_broken = isinstance(old, Broken) and isinstance(new, Broken)
        if not is_broken or old == new or self._unsteady.get((path, kind)) == new:
            self._unsteady.pop((path, kind), None)
            return False
        self._unsteady[path, kind] = new
        self.arriving.add(path)
        return True

    def _read(self, path: Path, status: stat_result, version: tuple[int, ...], mark: str) -> tuple[_Stamp, Found]:
        """What there is, after something that says whether it may be taken for the same another time."""
        if mark:
            return version, Broken(unfinished(mark), version)
        try:
            return version, ModelFile(self._headers.read(path, status), version)
        except InvalidGguf as exc:
            return version, Broken(printable(str(exc)), version)  # it may quote the file
        except OSError as exc:
            return (), Broken(f"it cannot be read: {exc.strerror}", version)
        except Exception as exc:  # noqa: BLE001  # whatever a file makes a reader do, the other models stay
            return version, Broken(self._unexpected(path, exc), version)

    def _look_as(self, folder: Folder, kind: str) -> Found:
        # Only who has such a folder pays for these.
        from shimmy.formats.format_errors import Unconvertible
        from shimmy.formats.safetensors.checkpoint import InvalidSafetensors

        assert folder.identity is not None
        try:
            modified_ns = folder.path.stat().st_mtime_ns
            look = self._look_at_checkpoint if kind == SAFETENSORS else self._look_at_adapter
            return look(folder, folder.identity)
        except (InvalidSafetensors, Unconvertible, InvalidGguf) as exc:
            reason = printable(str(exc))
        except OSError as exc:
            is_inside = isinstance(exc.filename, str) and exc.filename != str(folder.path)
            name = f"its `{Path(exc.filename).name}`" if is_inside else "it"
            reason, modified_ns = printable(f"{name} cannot be read: {exc.strerror}"), 0
        except Exception as exc:  # noqa: BLE001  # whatever a file makes a reader do, the other models stay
            reason = self._unexpected(folder.path, exc)
        architecture = huggingface.architecture(folder.path) if kind == SAFETENSORS else ""
        return Broken(reason, (*folder.identity, modified_ns), kind, architecture)

    def _unexpected(self, path: Path, exc: Exception) -> str:
        """Why there is no model, where that is a fault of a reader; the log has it once."""
        reason = shortened(f"it cannot be understood: {type(exc).__name__}: {exc}", _REASON_CHARACTERS)
        if (path, reason) not in self._told:
            self._told.add((path, reason))
            logger.warning("`%s`: %s", printable(str(path)), reason, exc_info=logger.isEnabledFor(logging.DEBUG))
        return reason

    def _look_at_checkpoint(self, folder: Folder, identity: tuple[int, int]) -> Found:
        from shimmy.formats.convert import converted
        from shimmy.formats.safetensors import sentence_transformers
        from shimmy.formats.safetensors.checkpoint import InvalidSafetensors

        if sentence_transformers.is_part(folder.path):
            return None

        for mark in filter(None, (folder.above, *dict(folder.unfinished).values())):
            raise InvalidSafetensors(unfinished(mark))

        def make() -> Planned:
            # Some 50 modules, without which a start does whose folders are remembered.
            from shimmy.formats.convert import convert
            from shimmy.formats.format_errors import Unconvertible
            from shimmy.formats.gguf.block_fit import foreseen
            from shimmy.formats.tokenizer import vocab

            try:
                plan = convert.plan(folder.path)
                vocab.require_tokenizer(folder.path)
            except (InvalidSafetensors, Unconvertible) as exc:
                raise InvalidGguf(str(exc)) from exc
            if not file_type:
                return plan.header(), plan.notices
            return plan.header(), plan.notices_for(file_type) + foreseen(file_type, plan.shapes.values())

        version, file_type = converted.version(folder.path), self._safetensors_type
        header, notices = self._headers.plan((*identity, *version, converted.CONVERTER_VERSION, file_type or ""), make)
        if self._safetensors_type is not None:
            n_bytes = int(header.n_params * SAFETENSORS_TYPES[self._safetensors_type] / 8)
            header = replace(header, quantization=self._safetensors_type.upper(), size_bytes=n_bytes)
        return ModelFile(header, (*identity, *version), notices)

    def _look_at_adapter(self, folder: Folder, identity: tuple[int, int]) -> Found:
        from shimmy.formats.convert import peft

        adapter = peft.read(folder.path)
        return AdapterFolder(adapter.header(), (*identity, *peft.version(folder.path)), (), adapter)


def unfinished(mark: str) -> str:
    """What is said of a file beside which a downloader's `mark` lies."""
    return f"it is still being downloaded: `{printable(mark)}` lies beside it"
