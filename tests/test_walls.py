"""The walls of the house, read from the imports: who may import whom, and what the parent process never gets to see."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import shimmy

# The floors of the house, lowest first: a module or folder imports only from floors below its own. Folders inside these
# (`engine/llama` in `engine`) may import each other, as long as no module comes back to where it began.
FLOORS = (
    {"shimmy"},
    {"errors"},
    {"background", "messages"},
    {"text", "system"},
    {"log", "wire", "formats", "metrics", "model_events", "prompt_length"},
    {"option_kinds", "rpc"},
    {"config"},
    {"catalog", "engine", "gpus", "hub", "workers"},
    {"pool"},
    {"generation"},
    {"api"},
    {"http"},
    {"server", "commands", "arguments"},
    {"cli"},
    {"__main__"},
)
# What both processes use knows neither the dialects nor the engine, whatever floor these are on.
SHARED = ("formats", "messages", "wire", "text", "system", "rpc")
# The only importers of a foreign package: a folder ends with a dot.
BORDERS = {
    "llama_cpp": ("shimmy.engine.llama.binding",),
    "llguidance": ("shimmy.engine.constrain.llguidance_module",),
    "jinja2": ("shimmy.engine.chat.",),
    "markupsafe": ("shimmy.engine.chat.",),
    "starlette": ("shimmy.api.", "shimmy.server"),
    "watchdog": ("shimmy.system.inotify",),
    "numpy": ("shimmy.engine.layouts.", "shimmy.engine.llama.calibration"),
    "hypercorn": ("shimmy.http.",),
}
DIALECTS = ("openai", "responses", "llama_server", "ollama", "anthropic")
WORKER_ONLY = ("shimmy.engine.", "jinja2", "markupsafe", "numpy", "llama_cpp", "llguidance", "safetensors")
MOST_MODULES, MOST_LINES, MOST_FUNCTION_LINES = 14, 400, 60
IMPORTERS_BY_NAME = {"import_module", "find_spec", "__import__"}

FOLDER = Path(shimmy.__file__).parent


@dataclass(frozen=True)
class Import:
    """One imported name, as far as it is a module, and whether the import runs when the importer is imported."""

    target: str
    at_module_level: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(FOLDER.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(FOLDER.rglob("*.py"))}


def imports(source: str) -> Iterator[Import]:
    """Every import of a module but those under TYPE_CHECKING."""
    yield from _imports(ast.parse(source), at_module_level=True)


def _imports(node: ast.AST, *, at_module_level: bool) -> Iterator[Import]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        children: list[ast.AST] = [*node.orelse]
    else:
        children = [*ast.iter_child_nodes(node)]
        for target in _targets(node):
            yield Import(target, at_module_level)
    inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in children:
        yield from _imports(child, at_module_level=at_module_level and not inside_function)


def _targets(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module, names, level):
            assert level == 0, "relative imports are not used here"
            for alias in names:
                submodule = f"{module}.{alias.name}"
                yield submodule if submodule in PATHS else str(module)
        case ast.Call(ast.Name(name) | ast.Attribute(attr=name), [ast.Constant(str(target)), *_]):
            if name in IMPORTERS_BY_NAME:
                yield target


@cache  # when a test asks: each process that runs tests side by side imports this module
def tree_of(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text())


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    """Those of one of our modules, and none of another's."""
    return tuple(_imports(tree_of(module), at_module_level=True)) if module in PATHS else ()


def all_imports() -> Iterator[tuple[str, tuple[Import, ...]]]:
    return ((module, imports_of(module)) for module in PATHS)


def unit(module: str) -> str:
    """What of the house a module belongs to: its folder or itself."""
    return (*module.split("."), "shimmy")[1]


def floor(module: str) -> int:
    return next(index for index, units in enumerate(FLOORS) if unit(module) in units)


def reachable(start: str) -> set[str]:
    """All that is imported by `start`, by what it imports, and so on; packages run before what is inside them."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        target = waiting.pop()
        parents = {target.rsplit(".", count)[0] for count in range(1, target.count(".") + 1)}
        for name in {target} | parents:
            if name not in found:
                found.add(name)
                waiting += [found_import.target for found_import in imports_of(name)]
    return found


def test_the_reader_of_imports_sees_them_all() -> None:
    source = """
import a.b
from typing import TYPE_CHECKING
from shimmy import errors
if TYPE_CHECKING:
    import unseen
else:
    import c
def function():
    import d
    async def inner():
        return importlib.import_module("e.f")
class Class:
    import g
try:
    from h import name
except ImportError:
    pass
"""
    seen = {found.target: found.at_module_level for found in imports(source)}
    assert seen == {
        "a.b": True, "typing": True, "shimmy.errors": True, "c": True, "d": False, "e.f": False, "g": True, "h": True,
    }  # fmt: skip


def test_every_module_has_its_floor() -> None:
    known = {name for units in FLOORS for name in units}
    assert {unit(module) for module in PATHS} <= known, "a new module: give it a floor here"


def test_imports_point_down() -> None:
    ours = [
        (module, found.target) for module, found_imports in all_imports()
        for found in found_imports if found.target in PATHS
    ]  # fmt: skip
    wrong = [pair for pair in ours if unit(pair[1]) != unit(pair[0]) and floor(pair[1]) >= floor(pair[0])]
    assert ours
    assert not wrong, "the first imports the second, which is not below it; under TYPE_CHECKING it may"


def test_no_import_comes_back_to_where_it_began() -> None:
    graph = {
        module: {found.target for found in found_imports if found.at_module_level and found.target in PATHS}
        for module, found_imports in all_imports()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' ► '.join(error.args[1])}")


@pytest.mark.parametrize("package", BORDERS)
def test_a_foreign_package_has_one_border(package: str) -> None:
    importers = {
        module for module, found_imports in all_imports()
        if any(found.target.split(".")[0] == package for found in found_imports)
    }  # fmt: skip
    inside = {
        module for module in importers
        if any(module == place or (place.endswith(".") and module.startswith(place)) for place in BORDERS[package])
    }  # fmt: skip
    assert importers == inside


def is_of_worker(module: str) -> bool:
    return f"{module}.".startswith(WORKER_ONLY)


@pytest.mark.parametrize("folder", SHARED)
def test_what_both_processes_use_knows_neither_dialects_nor_the_engine(folder: str) -> None:
    modules = [module for module in PATHS if unit(module) == folder]
    assert modules
    for module in modules:
        targets = {unit(found.target) for found in imports_of(module) if found.target in PATHS}
        assert targets <= {"errors", "shimmy", "background", *SHARED}, module


def test_dialects_do_not_know_each_other() -> None:
    dialect_of = {
        module: dialect for module in PATHS for dialect in DIALECTS
        if f"{module}.".startswith(f"shimmy.api.{dialect}.")
    }  # fmt: skip
    assert {"openai", "responses"} <= {*dialect_of.values()}
    for module, dialect in dialect_of.items():
        imported = {dialect_of.get(found.target, dialect) for found in imports_of(module)}
        assert imported <= {dialect}, module


@pytest.mark.parametrize("entry", ["shimmy.server", "shimmy.cli"])
def test_no_path_of_imports_leads_the_parent_into_the_worker(entry: str) -> None:
    seen = reachable(entry)
    assert "shimmy.workers.worker_client" in seen
    assert not {name for name in seen if is_of_worker(name)}


def test_no_path_of_imports_leads_a_server_to_the_outbound_network() -> None:
    assert not {name for name in reachable("shimmy.server") if f"{name}.".startswith("shimmy.hub.")}


def test_the_worker_is_what_the_reader_of_imports_would_find() -> None:
    assert reachable("shimmy.engine.main") >= {"shimmy.engine.llama.binding", "llama_cpp", "jinja2"}


def test_what_the_parent_imports_for_real_brings_nothing_of_the_workers() -> None:
    parents = sorted(name for name in reachable("shimmy.server") | reachable("shimmy.cli") if name in PATHS)
    code = f"import sys, {', '.join(parents)}; print(*sys.modules, sep=chr(10))"
    result = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "hypercorn" in loaded
    assert not {name for name in loaded if is_of_worker(name)}


def test_a_worker_is_dispatched_before_anything_of_the_server_is_imported() -> None:
    at_once = {found.target for found in imports_of("shimmy.__main__") if found.at_module_level}
    assert at_once == {"gc", "os", "sys"}
    assert not {"starlette", "hypercorn"} & {name.split(".")[0] for name in reachable("shimmy.engine.main")}


# -- the size of the rooms --------------------------------------------------------------------------------------------


def test_no_folder_is_a_hall() -> None:
    n_modules = Counter(path.parent for path in PATHS.values() if path.name != "__init__.py")
    assert {str(folder): count for folder, count in n_modules.items() if count > MOST_MODULES} == {}


def test_every_folder_says_in_which_process_it_runs() -> None:
    for module, path in PATHS.items():
        if path.name == "__init__.py" and module != "shimmy":
            assert path.read_text().startswith(('"""PARENT. ', '"""WORKER. ', '"""PARENT AND WORKER. ')), module


def test_no_module_and_no_function_is_too_long() -> None:
    n_lines = {module: path.read_text().count("\n") for module, path in PATHS.items()}
    assert {module: n for module, n in n_lines.items() if n > MOST_LINES} == {}
    functions = [
        (module, node) for module in PATHS for node in ast.walk(tree_of(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]  # fmt: skip
    lengths = {(module, node.name): (node.end_lineno or node.lineno) - node.lineno + 1 for module, node in functions}
    assert {function: n for function, n in lengths.items() if n > MOST_FUNCTION_LINES} == {}


def test_no_two_public_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for module in PATHS:
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}
