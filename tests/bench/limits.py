"""What people wrote about targets that are missed: `limits.md`, by the keys of figures. Knows nothing of results."""

import re
from pathlib import Path

from tests.bench.workloads import FIGURES
from tools.steps import BuildError

FILE = Path(__file__).with_name("limits.md")
SECTION = re.compile(r"^## (.*)\n", re.MULTILINE)


def limits() -> dict[str, str]:
    """The paragraphs of each section; raises BuildError for one of a figure that there is not."""
    _, *parts = SECTION.split(FILE.read_text())
    sections = {key.strip(): text.strip() for key, text in zip(parts[::2], parts[1::2], strict=True)}
    if unknown := sections.keys() - FIGURES.keys():
        raise BuildError(f"`{FILE}` has sections of figures that there are not: {', '.join(sorted(unknown))}")
    return sections
