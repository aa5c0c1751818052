"""What lies beside a file that is handed out, by name: the file's own name and one of these."""

from pathlib import Path

LICENSES = ".licenses.txt"  # texts of the licences of what is inside
SBOM = ".spdx.json"  # what is inside, for programs
SIZES = ".sizes.md"  # what each part weighs


def beside(file: Path, paper: str) -> Path:
    """Where one of them lies."""
    return file.with_name(file.name + paper)
