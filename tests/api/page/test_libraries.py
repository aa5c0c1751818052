"""The libraries of others on the page are those that their table names, unchanged, each with its licence."""

import hashlib
import re

from shimmy.api.page.assembled import FOLDER

VENDORED = FOLDER / "vendored"
ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split("|")]
    for line in (VENDORED / "README.md").read_text().splitlines()
    if re.match(r"\| \S+\.js ", line)
]


def test_every_file_has_its_digest() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDORED.glob("*.js")}
    assert found == {row[0]: row[-1] for row in ROWS}


def test_every_package_has_a_version_and_its_licence() -> None:
    for _, package, version, _, licence, _ in ROWS:
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert licence in {"MIT", "Apache-2.0", "CC0-1.0"}
        name = package.removeprefix("@").partition("/")[0]
        assert (VENDORED / f"LICENSE-{name}").stat().st_size > 1000
