"""What the docs list is what the program has."""

import re
from pathlib import Path

from shimmy.api.openai.parse import CHAT, COMPLETION
from tools.reference import FILE, reference

ROOT = Path(__file__).parent.parent


def test_the_reference_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_files_named_in_the_docs_exist() -> None:
    named = set()
    for page in (ROOT / "README.md", ROOT / "docs" / "architecture.md"):
        text = page.read_text(encoding="utf-8")
        named |= set(re.findall(r"`((?:shimmy|tests|tools|docs)/[\w./]*|[\w]+\.(?:py|spec))`", text))
    # In the tables a bare name stands beside a path into `shimmy/`.
    missing = {name for name in named if not (ROOT / name).exists() and not (ROOT / "shimmy" / name).exists()}
    missing = {name for name in missing if not any((ROOT / "shimmy").rglob(name))}
    assert not missing


def test_the_page_on_chats_and_completions_has_all_their_fields() -> None:
    _, both, chats, completions, *_ = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").split("\n## ")
    named = [
        {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
        for section in (both, chats, completions)
    ]
    assert named[0] == CHAT.fields.keys() & COMPLETION.fields.keys() - named[1] - named[2]
    assert named[0] | named[1] == CHAT.fields.keys()
    assert named[0] | named[2] == COMPLETION.fields.keys()


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"))) <= targets
