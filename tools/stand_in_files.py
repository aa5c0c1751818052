"""Which file stands in for which module: those of tools/stand_ins/, three of which are completed here for one program.

Used by shimmy.spec for the frozen file and by tools/with_stand_ins.py for tests. Knows nothing of either.
"""

import marshal
import subprocess
import sys
from collections.abc import Container
from importlib.util import find_spec
from pathlib import Path

from tools.steps import ROOT

FOLDER = ROOT / "tools" / "stand_ins"
# Those of whole packages: they take the place of the real ones where their folder comes first in the path.
PACKAGES = {
    "h2": FOLDER / "h2" / "__init__.py",
    "h2.events": FOLDER / "h2" / "events.py",
    "multiprocessing": FOLDER / "multiprocessing" / "__init__.py",
    "multiprocessing.synchronize": FOLDER / "multiprocessing" / "synchronize.py",
    "ssl": FOLDER / "ssl.py",
}
# Inside a package, a module can only be stood in for under its own name; so can one that PyInstaller looks for first.
MODULES = {
    "gettext": FOLDER / "gettext.py",
    "hypercorn.protocol.h2": FOLDER / "hypercorn_h2.py",
    "hypercorn.protocol.ws_stream": FOLDER / "hypercorn_ws_stream.py",
    "logging.config": FOLDER / "logging_config.py",
}
_EMPTY = " = {}  # filled in by tools/stand_in_files.py"


def anyio_with_places(work: Path) -> dict[str, Path]:
    """The stand-in for `anyio._lazyimport`, told where anyio's names are; `work` is the folder to write it to."""
    import anyio
    import anyio.abc
    from anyio._lazyimport import _build_lazy_map

    places = {}
    for package in (anyio, anyio.abc):
        names, _, modules = _build_lazy_map(package)
        places[package.__name__] = names | {name: (f".{name}", "") for name in modules}
    return {"anyio._lazyimport": completed(FOLDER / "anyio_lazyimport.py", places, work / "anyio_lazyimport.py")}


def dataclasses_with_compiled_methods(work: Path, modules: Container[str] | None = None) -> dict[str, Path]:
    """The real `dataclasses`, which takes the methods of classes in `modules` (None: all) from a module `method_code`.

    `work` is the folder to write both to.
    """
    recorded, dataclasses = work / "method_code.marshal", work / "dataclasses.py"
    subprocess.run([sys.executable, "-OO", "-m", "tools.method_code", recorded], check=True, cwd=ROOT)
    code = marshal.loads(recorded.read_bytes())
    of_modules = {name: code for name, code in code.items() if modules is None or name in modules}
    spec = find_spec("dataclasses")
    assert spec is not None
    assert spec.origin is not None
    dataclasses.write_text(f"{Path(spec.origin).read_text()}\n\nfrom method_code import exec, inspect\n")
    with_code = completed(FOLDER / "method_code.py", of_modules, work / "method_code.py")
    return {"method_code": with_code, "dataclasses": dataclasses}


def completed(template: Path, table: object, path: Path) -> Path:
    """Write `template` to `path` with its table filled in; returns `path`."""
    before, empty, after = template.read_text().partition(_EMPTY)
    assert empty, f"{template} has no table to fill in"
    path.write_text(f"{before} = {table!r}{after}")
    return path
