"""Modules become functions that return what they export, each after those that it imports."""

from pathlib import Path

import pytest

from shimmy.api.page import assembled


def _write(folder: Path, **modules: str) -> None:
    for name in ("vendored", "modules"):
        (folder / name).mkdir()
    for name, source in modules.items():
        (folder / "modules" / f"{name}.js").write_text(source)


def test_imports_and_exports_become_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(
        tmp_path,
        a='import { one as first, two } from "./b.js";\nimport its from "./c.js";\nexport const three = first + two;\n',
        b="// A note.\nexport function one() {\n  return 1;\n}\nexport async function* two() {}\nconst inner = 1;\n",
        c="var x=1;export default function(){return x}",
    )
    monkeypatch.setattr(assembled, "FOLDER", tmp_path)
    script = assembled._script()
    assert script.index("$m.b") < script.index("$m.a")
    assert "const{one:first,two}=$m.b,{default:its}=$m.c;const three=first+two;" in script
    assert "return{three};" in script
    assert "function one(){return 1;}async function*two(){}const inner=1;return{one,two};" in script
    assert "return{default:its_default};" in script
    assert "A note" not in script
    assert "export" not in script
    assert "import" not in script


def test_minified_lists_of_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, a='import{options as n}from"b";var t=n;export{t as useThat,t};\n', b="export const options = 1;\n")
    monkeypatch.setattr(assembled, "FOLDER", tmp_path)
    script = assembled._script()
    assert "const{options:n}=$m.b;var t=n;return{useThat:t,t:t};" in script


def test_libraries_of_others_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, a='import { x } from "../vendored/library.js";\n')
    source = "/* (c) */\nvar y = `\n    two lines`;\n"
    (tmp_path / "vendored" / "library.js").write_text(source + "export { y as x };\n")
    monkeypatch.setattr(assembled, "FOLDER", tmp_path)
    assert source in assembled._script()
