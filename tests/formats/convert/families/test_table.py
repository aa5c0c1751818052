"""The table of families: what the docs list is what is there."""

import re
from pathlib import Path

from shimmy.formats.convert.families.table import FAMILIES

PAGE = Path(__file__).parents[4] / "docs" / "safetensors.md"


def test_the_page_lists_all_families_and_no_others() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| (`[^|]+) \| [^|]*\|$", PAGE.read_text().partition("## Which models")[2], re.MULTILINE
    )
    listed = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    types = {family.model_type for family in FAMILIES}
    classes = {name for family in FAMILIES for name in family.classes}
    assert types - {*listed} == set()
    assert {*listed} - types - classes == {"model_type"}  # its head
