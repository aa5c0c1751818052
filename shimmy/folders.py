"""The folders below a root, each once whatever links lead to it, and what in them may be a model or an adapter.

Knows names of files; nothing of what is in one.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shimmy.formats import huggingface

MAX_DEPTH = 8  # folders below a root; the Hugging Face cache needs four

Warn = Callable[[Path, str], None]


@dataclass(frozen=True, slots=True)
class Folder:
    """What is in one folder, each in order of name; which of it are links makes no difference."""

    path: Path
    status: os.stat_result
    files: list[Path]  # GGUF
    folders: list[Path]
    is_safetensors: bool
    is_adapter: bool


def walk(root: Path, warn: Warn) -> Iterator[Folder]:
    """`root` and the folders below it, each once; `warn` is told what nobody can look into."""
    seen: set[tuple[int, int]] = set()
    waiting = [(root, 0)]
    while waiting:
        path, depth = waiting.pop()
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            folder = _look_into(path, status, warn)
        except OSError as exc:
            warn(path, str(exc.strerror))
            continue
        yield folder
        if folder.folders and depth == MAX_DEPTH:
            warn(folder.folders[0], f"it lies more than {MAX_DEPTH} folders deep")
        else:
            waiting.extend((below, depth + 1) for below in reversed(folder.folders))


def _look_into(path: Path, status: os.stat_result, warn: Warn) -> Folder:
    files: list[Path] = []
    folders: list[Path] = []
    with os.scandir(path) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        try:
            if entry.is_dir():
                folders.append(Path(entry.path))
            elif entry.name.lower().endswith(".gguf"):
                files.append(Path(entry.path))
        except OSError as exc:  # a link that leads into a circle
            warn(Path(entry.path), str(exc.strerror))
    names = [entry.name for entry in entries]
    return Folder(path, status, files, folders, huggingface.is_model(names), huggingface.is_adapter(names))
