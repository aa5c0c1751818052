"""Memory of a process and all its descendants, as the kernel counts it: what is shared counts in parts."""

from pathlib import Path

PROC = Path("/proc")


def tree_memory_mb(process_id: int) -> float:
    """Proportional set size in MB (10**6 bytes)."""
    return sum(_pss_kib(member) for member in _tree(process_id)) * 1024 / 1e6


def _tree(process_id: int) -> list[int]:
    parents = {int(folder.name): _parent(folder) for folder in PROC.iterdir() if folder.name.isdecimal()}
    tree = [process_id]
    for member in tree:  # grows while it is walked
        tree += [child for child, parent in parents.items() if parent == member]
    return tree


def _parent(folder: Path) -> int:
    try:
        # The program's name stands in brackets and may hold anything, so count from its end.
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # ended meanwhile
        return 0


def _pss_kib(process_id: int) -> int:
    try:
        lines = (PROC / str(process_id) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
