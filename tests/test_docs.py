"""What the docs list is what the program has."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shimmy.api.openai.parse import CHAT, COMPLETION
from tools.reference import FILE, reference

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shimmy"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def test_the_reference_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_files_named_in_the_docs_exist() -> None:
    """A path begins in the repository's root or in `shimmy/`; a bare file name stands for a module of the package."""
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(
            r"`([\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|spec|c|cpp|md|cmake|json)))`", page.read_text("utf-8")
        )
    }
    assert {(page, name) for page, name in named if _is_of_the_repository(name) and not _exists(name)} == set()


def _is_of_the_repository(name: str) -> bool:
    """Whether it is not a path in llama.cpp's sources, or one that a build makes."""
    folder, slash, _ = name.partition("/")
    places = {"shimmy", "tests", "tools", "docs"} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    return folder in places if slash else name.endswith((".py", ".spec"))


def _exists(name: str) -> bool:
    return (ROOT / name).exists() or (PACKAGE / name).exists() or ("/" not in name and any(PACKAGE.rglob(name)))


def test_the_tree_in_the_docs_has_every_module_once() -> None:
    listed = sorted(_tree_in_the_docs())
    there = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert there - {*listed} == set(), "put them into the tree of docs/architecture.md, with a line each"
    assert {*listed} - there == set(), "take them out of the tree of docs/architecture.md"
    assert len(listed) == len(there), "listed twice"


def test_the_docs_say_in_which_process_a_folder_runs() -> None:
    tree = re.findall(r"^ +(\w+)/ +([A-Z ]+)$", ARCHITECTURE.read_text("utf-8"), re.MULTILINE)
    rooms = re.findall(r"^\| `shimmy/(\w+)/` \| (\w+) \|", ARCHITECTURE.read_text("utf-8"), re.MULTILINE)
    said = {
        path.parent.name: path.read_text("utf-8").removeprefix('"""').partition(".")[0]
        for path in PACKAGE.rglob("__init__.py")
        if path.parent != PACKAGE
    }
    assert dict(tree) == said
    processes = {"PARENT": "parent", "WORKER": "worker", "PARENT AND WORKER": "both"}
    assert dict(rooms) == {path.name: processes[said[path.name]] for path in PACKAGE.iterdir() if path.name in said}


def _tree_in_the_docs() -> Iterator[str]:
    """The paths of the modules in the tree: two blanks for a folder's depth, then the name, then what it is."""
    tree = ARCHITECTURE.read_text("utf-8").partition("```\nshimmy/\n")[2].partition("```")[0]
    folders = ["shimmy"]
    for line in tree.splitlines():
        name, *description = line.split()
        assert description, f"{name} has no description"
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        if name.endswith("/"):
            folders.append(name.removesuffix("/"))
        else:
            yield str(PurePosixPath(*folders, name))


def test_the_page_on_chats_and_completions_has_all_their_fields() -> None:
    _, both, chats, completions, *_ = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").split("\n## ")
    named = [
        {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
        for section in (both, chats, completions)
    ]
    assert named[0] == CHAT.fields.keys() & COMPLETION.fields.keys() - named[1] - named[2]
    assert named[0] | named[1] == CHAT.fields.keys()
    assert named[0] | named[2] == COMPLETION.fields.keys()


def test_make_targets_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", page.read_text("utf-8"), re.MULTILINE))
        assert named <= targets, page.name


def test_the_guide_for_contributors_has_every_make_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert targets <= set(re.findall(r"`make ([a-z0-9-]+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8")))
