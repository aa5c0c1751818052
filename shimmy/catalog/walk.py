"""The folders below some roots, each once whatever links lead to it, and what in them may be a model or an adapter.

Knows names of files: those of models, those that downloaders put beside what they have not finished, those of folders
that hold what was thrown away. Nothing of what is in a file.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shimmy.formats.safetensors import huggingface

MAX_DEPTH = 8  # folders below a root; the Hugging Face cache needs four
MAX_LINKS = 40  # from one to the next, as Linux has it

# What was thrown away, older versions, indexes: of desktops, network storage, version control, the hub.
_NO_FOLDERS = frozenset(
    (".no_exist", ".locks", "$recycle.bin", "system volume information", "lost+found", "found.000", "#recycle"),
) | frozenset(
    ("trash", "recycler"),  # `~/.local/share/Trash`, and that of older versions of Windows
) | frozenset(
    (".spotlight-v100", ".fseventsd", ".documentrevisions-v100", ".temporaryitems", ".appledouble", "__macosx"),
) | frozenset(
    ("@eadir", "@recycle", "@recently-snapshot", "#snapshot", ".snapshot", ".snapshots", ".zfs", ".stversions"),
) | frozenset(
    (".git", ".svn", ".hg", ".ipynb_checkpoints", "__pycache__", ".sync", ".dropbox.cache", ".@__thumb", ".recycle"),
)  # fmt: skip
# `.Trash`, `.Trash-1000`, `.Trashes`; what `shimmy convert` has not finished, also where it was killed.
_NO_BEGINNINGS = (".trash", "shimmy-convert-")
_APPLE_DOUBLE = "._"  # a Mac's attributes of the file of this name, on file systems that have none
# What a download puts beside a file that has its final name and perhaps its final size already, or has as its own name
# until it is finished: aria2, axel, lftp, Chrome, Firefox, Opera, wget and curl by habit, the hub, Ollama, torrents.
_MARKS = (
    *(".aria2", ".aria2__temp", ".st", ".lftp-pget-status", ".part", ".partial", ".crdownload", ".opdownload"),
    *(".download", ".downloading", ".incomplete", ".unfinished", ".tmp", ".temp", ".filepart", ".fdmdownload"),
    *(".!ut", ".!qb", ".bc!", ".dctmp", ".ytdl", "-partial"),
)
_OF_FOLDERS = (".aria2", ".aria2__temp")  # the others are said of files alone

_Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True)
class Folder:
    """What is in one folder, each in order of name. Equal to another look's where nothing of this is different."""

    path: Path
    identity: _Identity | None  # None where it cannot be opened
    files: tuple[Path, ...] = ()  # GGUF
    links: frozenset[Path] = frozenset()  # those of them that are links
    folders: tuple[Path, ...] = ()
    linked_folders: tuple[Path, ...] = ()
    unfinished: tuple[tuple[str, str], ...] = ()  # a file's name, and that of the mark beside it
    targets: tuple[Path, ...] = ()  # what its links lead to, or will once there is something
    above: str = ""  # the name of the mark beside it, or beside a folder that it lies in: of a download of many files
    is_safetensors: bool = False
    is_linked_model: bool = False  # that, and the path is a link
    is_adapter: bool = False
    snapshot: huggingface.Snapshot | None = None
    warnings: tuple[tuple[Path, str], ...] = ()

    @property
    def shape(self) -> tuple[object, ...]:
        """What a walk sees of it."""
        marks = [(name, mark) for name, mark in self.unfinished if self.path / name in self.folders]
        return self.identity, self.folders, self.linked_folders, self.warnings, marks

    def mark(self, file_name: str) -> str:
        """The name of what says that this file or folder is not finished; '' where nothing does."""
        return self.above or dict(self.unfinished).get(file_name, "")


def is_no_place(name: str) -> bool:
    """Whether folders of this name are not searched for models. Safari downloads a file into a `NAME.download`."""
    lowered = name.lower()
    is_download = (of := marked(Path(name))) is not None and of.suffix.lower() == ".gguf"
    return lowered in _NO_FOLDERS or lowered.startswith(_NO_BEGINNINGS) or is_download


def walk(
    roots: Mapping[int, Path], known: Mapping[Path, Folder], fresh: Mapping[Path, Folder] | None
) -> tuple[list[tuple[int, Folder]], list[tuple[Path, str]]]:
    """The `roots` and the folders below them, each once, in order of their numbers; and what is passed over, with why.

    A folder is found by its own path before a link to it; one that is a model is found by the links, too. Folders are
    as they are in `fresh`, or else as they are `known`; where `fresh` is None, each is looked into.
    """
    found: list[tuple[int, Folder]] = []
    warnings: list[tuple[Path, str]] = []
    seen: set[_Identity] = set()
    waiting = [(number, root, 0, False, "") for number, root in sorted(roots.items(), reverse=True)]
    linked: list[tuple[int, Path, int, bool, str]] = []
    while waiting or linked:
        if not waiting:
            waiting, linked = linked[::-1], []
        number, path, depth, is_below_fresh, mark = waiting.pop()
        folder = None if fresh is None else fresh.get(path)
        is_fresh = folder is not None or fresh is None
        if not is_fresh:
            folder = known.get(path)
            if folder is not None and is_below_fresh and folder.identity != _identity(path):
                folder = None  # another one has taken its place
        if folder is None:
            folder, is_fresh = look_into(path), True
        if folder.above != mark:
            folder, is_fresh = replace(folder, above=mark), True
        if is_fresh and folder == (old := known.get(path)):
            folder = old  # the same objects, for those who compare
        if folder.identity in seen:
            if folder.is_safetensors:
                found.append((number, folder))
            continue
        if folder.identity is not None:
            seen.add(folder.identity)
        found.append((number, folder))
        warnings += folder.warnings
        if depth < MAX_DEPTH:
            below = [(number, path, depth + 1, is_fresh, folder.mark(path.name)) for path in folder.folders]
            waiting += reversed(below)
            linked += [(number, path, depth + 1, is_fresh, folder.mark(path.name)) for path in folder.linked_folders]
        elif too_deep := (*folder.folders, *folder.linked_folders):
            warnings.append((too_deep[0], f"it lies more than {MAX_DEPTH} folders deep"))
    found.sort(key=lambda entry: entry[0])
    return found, warnings


def look_into(path: Path) -> Folder:
    """What is in the folder `path` now."""
    try:
        identity = _identity(path)
        with os.scandir(path) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except FileNotFoundError:
        return Folder(path, None, warnings=((path, "there is no such folder; once there is, its models are found"),))
    except OSError as exc:
        return Folder(path, None, warnings=((path, str(exc.strerror)),))
    files: list[Path] = []
    links: list[Path] = []
    folders: list[Path] = []
    linked_folders: list[Path] = []
    warnings: list[tuple[Path, str]] = []
    for entry in entries:
        name = entry.name
        try:
            if entry.is_symlink():
                links.append(Path(entry.path))
            if entry.is_dir():
                if not is_no_place(name):
                    (linked_folders if entry.is_symlink() else folders).append(Path(entry.path))
            elif name.lower().endswith(".gguf") and not name.startswith(_APPLE_DOUBLE):
                files.append(Path(entry.path))
        except OSError as exc:  # a link that leads into a circle
            warnings.append((Path(entry.path), str(exc.strerror)))
    names = [entry.name for entry in entries if not entry.name.startswith(_APPLE_DOUBLE)]
    is_safetensors, is_adapter = huggingface.is_model(names), huggingface.is_adapter(names)
    links_of_files = frozenset(links).intersection(files)
    unfinished = [
        *_unfinished(names, {folder.name for folder in folders}),
        *((link.name, mark) for link in links_of_files if (mark := mark_beside(link))),
    ]
    return Folder(
        path,
        identity,
        files=tuple(files),
        links=links_of_files,
        folders=tuple(folders),
        linked_folders=tuple(linked_folders),
        unfinished=tuple(sorted(unfinished)),
        targets=tuple(sorted({target for link in links for target in targets(link)})),
        is_safetensors=is_safetensors,
        is_linked_model=is_safetensors and path.is_symlink(),
        is_adapter=is_adapter,
        snapshot=huggingface.snapshot(path),
        warnings=tuple(warnings),
    )


def targets(link: Path) -> Sequence[Path]:
    """What a link leads to, from one to the next, each as it is written and where it is; nothing for what is none."""
    found: list[Path] = []
    path = link
    for _ in range(MAX_LINKS):
        try:
            to = Path(os.path.realpath(path.parent)) / path.readlink()
        except OSError:
            break
        path = Path(os.path.realpath(to.parent)) / to.name
        found += [Path(os.path.normpath(to)), path]
    return found


def mark_beside(path: Path) -> str:
    """What `Folder.mark` says of a file whose folder is not looked into, or of what a link to one leads to."""
    places = dict.fromkeys((str(path), os.path.realpath(path)))
    marks = (f"{place}{mark}" for place in places for mark in _MARKS)
    return next((os.path.basename(mark) for mark in marks if os.path.lexists(mark)), "")  # noqa: PTH119


def marked(path: Path) -> Path | None:
    """The file that `path` marks as unfinished; None when it is no mark."""
    name = path.name.lower()
    return next(
        (path.with_name(path.name[: -len(mark)]) for mark in _MARKS if name.endswith(mark) and name != mark), None
    )


def _unfinished(names: Sequence[str], folders: Collection[str]) -> Iterator[tuple[str, str]]:
    known = set(names)
    for name in names:
        lowered = name.lower()
        for mark in _MARKS:
            marked_name = name[: -len(mark)]
            if lowered.endswith(mark) and marked_name in known and (mark in _OF_FOLDERS or marked_name not in folders):
                yield marked_name, name


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
