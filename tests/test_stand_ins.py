"""The stand-ins of the frozen file have what is asked of them, and nothing that the real modules have not.

All other tests can be run with the stand-ins in place, too (tools/with_stand_ins.py); `make test` does. Those here say
the same either way: they ask the real modules in a Python that takes no notice of PYTHONPATH.
"""

import ast
import asyncio
import importlib.util
import json
import marshal
import os
import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools import openssl
from tools.method_code import recorded
from tools.stand_in_files import FOLDER, MODULES, PACKAGES
from tools.steps import ROOT, WORK
from tools.with_stand_ins import VARIABLE

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))

# Those of which all names are compared with the real module's.
COMPARED = {name: path for name, path in (PACKAGES | MODULES).items() if name not in {"h2", "multiprocessing"}}
# What of them is in the frozen file: see shimmy.spec for the rest.
USERS = ("anyio", "asyncio", "h11", "hypercorn", "jinja2", "markupsafe", "starlette", "watchdog")
NOT_IN_THE_FILE = ("trio", "quic", "h3", "schemas", "testclient", "pytest_plugin", "_testing", "sslproto", "tls")


def read_stand_in(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources() -> Iterator[tuple[str, Path]]:
    for package in USERS:
        for folder in import_module(package).__path__:
            for path in Path(folder).rglob("*.py"):
                if not any(word in path.stem for word in NOT_IN_THE_FILE):
                    parts = path.relative_to(Path(folder).parent).with_suffix("").parts
                    yield ".".join(parts), path


def names_taken() -> dict[str, set[str]]:
    """By the module: the names that our packages take from it with `from … import` where that is always done, and so
    when the package is imported."""
    taken: dict[str, set[str]] = {name: set() for name in COMPARED}
    for importer, path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                package = (
                    importer.rpartition(".")[0] if path.name != "__init__.py" else importer.removesuffix(".__init__")
                )
                base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
                module = ".".join(filter(None, (base, node.module)))
                if module in taken:
                    taken[module] |= {alias.name for alias in node.names}
    return taken


@pytest.fixture(scope="module")
def taken() -> dict[str, set[str]]:
    return names_taken()


def python(program: str, *arguments: str) -> str:
    """What a program prints that has the real modules."""
    command = [sys.executable, "-I", "-c", program, *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


NAMES_OF = """
import json, sys
from importlib import import_module
print(json.dumps({name: dir(import_module(name)) for name in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def real_names() -> dict[str, list[str]]:
    names: dict[str, list[str]] = json.loads(python(NAMES_OF, *COMPARED))
    return names


@pytest.mark.parametrize("name", COMPARED)
def test_a_stand_in_has_what_is_taken_and_what_the_real_one_has(
    name: str, taken: dict[str, set[str]], real_names: dict[str, list[str]]
) -> None:
    stand_in = read_stand_in(COMPARED[name], f"stand_in_{name}")
    own = {key for key, value in vars(stand_in).items() if getattr(value, "__module__", "") == stand_in.__name__}
    assert taken[name] <= set(vars(stand_in))
    assert {key for key in own if not key.startswith("_")} <= set(real_names[name])


def test_gettext_has_what_argparse_takes_and_does_as_the_real_one() -> None:
    imports = [node for node in ast.walk(ast.parse((STANDARD_LIBRARY / "argparse.py").read_text()))
               if isinstance(node, ast.ImportFrom) and node.module == "gettext"]  # fmt: skip
    stand_in = read_stand_in(MODULES["gettext"], "stand_in_gettext")
    assert {alias.name for node in imports for alias in node.names} == {"gettext", "ngettext"}
    assert stand_in.gettext("usage: ") == "usage: "
    code = "import gettext, sys; print(*[gettext.ngettext('one', 'many', n) for n in (0, 1, 2)])"
    assert python(code).split() == [stand_in.ngettext("one", "many", n) for n in (0, 1, 2)]


NAMES_OF_ANYIO = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
import anyio, anyio.abc
from tools.stand_in_files import anyio_with_places
(path,) = anyio_with_places(Path(sys.argv[2])).values()
stand_in = {}
exec(path.read_text(), stand_in)
for package in (anyio, anyio.abc):
    own = {"__name__": package.__name__, "install_lazy_importer": stand_in["install_lazy_importer"]}
    exec("install_lazy_importer()", own)
    assert len(dir(package)) > 20
    for name in dir(package):
        assert own["__getattr__"](name) is getattr(package, name), name
"""


def test_what_anyio_has_comes_from_where_the_real_one_takes_it(tmp_path: Path) -> None:
    python(NAMES_OF_ANYIO, str(ROOT), str(tmp_path))


IN_PLACE = (*COMPARED, "anyio._lazyimport", "dataclasses")
FILES_OF = """
import json, sys
from importlib import import_module
print(json.dumps([import_module(name).__file__ for name in sys.argv[1:]]))
"""


def test_they_are_in_place_here_and_in_processes_started_from_here_where_that_is_asked_for() -> None:
    """And so with all other tests of this run."""
    program = [sys.executable, "-c", FILES_OF, *IN_PLACE]
    files = json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    assert files == [import_module(name).__file__ for name in IN_PLACE]
    for file in map(Path, files):
        is_stand_in = file.is_relative_to(FOLDER) or file.is_relative_to(WORK)
        assert is_stand_in == (VARIABLE in os.environ), file


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """`dataclasses` as the frozen file has it, with the methods of the module `cards` compiled.

    Its `method_code` and `dataclasses`, and the real `dataclasses` with the `cards` that they made.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "cards.py").write_text(
        "from dataclasses import dataclass, field\n"
        "@dataclass(frozen=True, slots=True, order=True)\nclass Card:\n    a: int\n    b: str = 'b'\n"
        "@dataclass(kw_only=True)\nclass Hand:\n    cards: list[Card] = field(default_factory=list)\n"
    )
    path_of_real = STANDARD_LIBRARY / "dataclasses.py"
    real = read_stand_in(path_of_real, "dataclasses")
    monkeypatch.setitem(sys.modules, "dataclasses", real)
    monkeypatch.setattr("tools.method_code.dataclasses", real)
    code = recorded(("cards",))
    real_cards = sys.modules.pop("cards")
    method_code = read_stand_in(FOLDER / "method_code.py", "method_code")
    method_code.CODE |= {module: zlib.compress(marshal.dumps(methods)) for module, methods in code.items()}
    monkeypatch.setitem(sys.modules, "method_code", method_code)
    (tmp_path / "frozen.py").write_text(f"{path_of_real.read_text()}\n\nfrom method_code import exec, inspect\n")
    frozen = read_stand_in(tmp_path / "frozen.py", "dataclasses")
    monkeypatch.setitem(sys.modules, "dataclasses", frozen)
    yield SimpleNamespace(method_code=method_code, frozen=frozen, real=real, real_cards=real_cards)
    sys.modules.pop("cards", None)


def test_compiled_methods_are_those_that_dataclasses_writes(
    compiled: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, real = compiled.frozen, compiled.real_cards
    texts: list[object] = []

    def run(code: Any, namespace: dict[str, Any], names: dict[str, Any]) -> None:
        texts.append(code)
        exec(code, namespace, names)

    monkeypatch.setattr(compiled.method_code, "builtins", SimpleNamespace(exec=run))
    cards = import_module("cards")
    assert len(texts) > 10
    assert not any(isinstance(text, str) for text in texts), "a method was compiled that the table should have"
    card = cards.Card(1)
    assert repr(card) == repr(real.Card(1)) == "Card(a=1, b='b')"
    assert card == cards.Card(1)
    assert card < cards.Card(2)
    assert hash(card) == hash(real.Card(1))
    assert frozen.replace(card, b="c") == cards.Card(1, "c")
    assert frozen.asdict(cards.Hand(cards=[card])) == compiled.real.asdict(real.Hand(cards=[real.Card(1)]))
    with pytest.raises(frozen.FrozenInstanceError):
        card.a = 2
    with pytest.raises(TypeError):
        cards.Hand([card])


def test_a_class_without_compiled_methods_is_made_all_the_same(compiled: SimpleNamespace) -> None:
    late = compiled.frozen.make_dataclass("Late", ["a"])
    assert repr(late(1)) == "Late(a=1)"
    assert compiled.method_code.inspect.signature(late) == ""  # CPython 3.11.2 expects no ValueError of a signature


def test_asyncio_serves_without_the_real_ssl(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks of each socket whether it is one of `ssl`."""
    monkeypatch.setattr("asyncio.base_events.ssl", read_stand_in(PACKAGES["ssl"], "stand_in_ssl"))

    async def exchange() -> bytes:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        received = await reader.read()
        writer.close()
        server.close()
        return received

    assert asyncio.run(exchange()) == b""


USE_OF_SSL = """
import sys, marshal
from pathlib import Path
folder, stand_ins, root = sys.argv[1:]
sys._MEIPASS, sys.executable = folder, "/dev/null"
sys.path[:] = [stand_ins, folder, *sys.path, root]
import asyncio, asyncio.sslproto, http.client, ssl
from hypercorn.config import Config
import shimmy.http.connections
assert "_ssl" not in sys.modules, "OpenSSL was loaded before it was used"
assert not hasattr(ssl, "nothing_of_this_name")
context = ssl.create_default_context()
assert sys.modules["_ssl"].__file__.startswith(folder)
assert isinstance(context, ssl.SSLContext) and context.verify_mode is ssl.CERT_REQUIRED
assert asyncio.base_events.ssl is ssl and asyncio.sslproto.SSLAgainErrors[0] is ssl.SSLWantReadError
assert isinstance(http.client.HTTPSConnection("localhost")._context, ssl.SSLContext)
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
try:
    context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
except ssl.SSLWantReadError:
    print("hello of", len(outgoing.read()) > 100)
"""


def test_ssl_becomes_the_real_one_when_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "stand_ins").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "stand_ins" / "ssl.py").write_bytes(PACKAGES["ssl"].read_bytes())
    (tmp_path / "home" / "ssl_in_full.py").write_bytes((STANDARD_LIBRARY / "ssl.py").read_bytes())
    import_module("_ssl")
    files = {line.split()[-1] for line in Path("/proc/self/maps").read_text(errors="replace").splitlines()}
    parts = [Path(file) for file in files if openssl.is_part(file)]
    assert len(parts) == len(openssl.IN_ORDER)
    (tmp_path / "home" / "ssl.xz").write_bytes(openssl.pack(parts, preset=0))
    said = python(USE_OF_SSL, str(tmp_path / "home"), str(tmp_path / "stand_ins"), str(ROOT))
    assert said == "hello of True\n"
