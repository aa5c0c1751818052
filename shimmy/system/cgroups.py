"""The control groups this process is in: where the limits that a container has are written.

Knows both versions of Linux's control groups and where their files are; nothing of what the files say.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OWN = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Group:
    """One of them. The files in `folder` have other names and forms in version 1 than in 2."""

    folder: Path
    version: int

    def read(self, file: str) -> str:
        """The text of one of its files; raises OSError where it has none."""
        return (self.folder / file).read_text(encoding="ascii", errors="replace")


def groups(controller: str) -> list[Group]:
    """Our groups of `controller` (`cpu`, `memory`) and all their parents, whose limits hold for us too.

    Source: cgroups(7), `/proc/[pid]/cgroup`. A container may see its own group as the root, under a path that only its
    host knows: folders that are not there are among the answers.
    """
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in _OWN.read_text(encoding="utf-8", errors="replace").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                found += [Group(folder, 2) for folder in _upwards(_ROOT, path)]
            elif controller in controllers.split(","):
                found += [Group(folder, 1) for folder in _upwards(_ROOT / controller, path)]
    return found


def _upwards(root: Path, path: str) -> Iterator[Path]:
    own = root / path.lstrip("/")
    return (folder for folder in (own, *own.parents) if folder.is_relative_to(root))
