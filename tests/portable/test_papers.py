"""What lies beside a portable file: the list of its parts, their licences, and what they weigh."""

import hashlib
import importlib.metadata
import io
import json
import lzma
import marshal
import re
import struct
import zipfile
import zlib
from pathlib import Path

import jsonschema
import pytest

from shimmy.commands.contents import PACKAGES
from tools import module_archive
from tools.portable.contents import MODULES, read_files
from tools.portable.expected_contents import FILES
from tools.portable.papers import sizes
from tools.portable.papers.components import CRATE_LICENSES, PACKAGE_LICENSES, Component, crates
from tools.portable.papers.sbom import document
from tools.steps import ROOT, VENV, BuildError

COMPONENTS = [
    Component("engine", "1.2", "MIT", "pkg:generic/engine@1.2", archive="engine.tar.gz", sha256="ab" * 32),
    Component("libc++", "22.1.8", "Apache-2.0 WITH LLVM-exception", "pkg:generic/libc++@22.1.8", "engine"),
    Component("zlib", "1.3.1", "Zlib", "pkg:generic/zlib@1.3.1", "engine"),
    Component("zlib", "1.3.2", "Zlib", "pkg:generic/zlib@1.3.2"),
    Component("start files", "", "MIT OR Zlib", "pkg:generic/start", "engine"),
]
# The part of SPDX 2.3 that is used: https://spdx.github.io/spdx-spec/v2.3/.
TEXT = {"type": "string", "minLength": 1}
ID = {"type": "string", "pattern": r"^SPDXRef-[A-Za-z0-9.-]+$"}
DATE = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
CHECKSUM = {
    "type": "object",
    "properties": {"algorithm": {"const": "SHA256"}, "checksumValue": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
    "required": ["algorithm", "checksumValue"],
    "additionalProperties": False,
}
REFERENCE = {
    "type": "object",
    "properties": {
        "referenceCategory": {"const": "PACKAGE-MANAGER"},
        "referenceType": {"const": "purl"},
        "referenceLocator": {"type": "string", "pattern": "^pkg:[a-z]+/[^ ]+$"},
    },
    "required": ["referenceCategory", "referenceType", "referenceLocator"],
    "additionalProperties": False,
}
PACKAGE = {
    "type": "object",
    "properties": {
        "SPDXID": ID,
        **dict.fromkeys(("name", "versionInfo", "packageFileName", "downloadLocation", "copyrightText"), TEXT),
        **dict.fromkeys(("licenseConcluded", "licenseDeclared"), TEXT),
        "filesAnalyzed": {"const": False},
        "checksums": {"type": "array", "items": CHECKSUM, "minItems": 1},
        "externalRefs": {"type": "array", "items": REFERENCE, "minItems": 1},
        "primaryPackagePurpose": {"const": "APPLICATION"},
        "builtDate": DATE,
    },
    "required": ["SPDXID", "name", "downloadLocation", "filesAnalyzed", "licenseConcluded", "copyrightText"],
    "additionalProperties": False,
}
RELATIONSHIP = {
    "type": "object",
    "properties": {
        "spdxElementId": ID,
        "relationshipType": {"enum": ["DESCRIBES", "CONTAINS", "STATIC_LINK"]},
        "relatedSpdxElement": ID,
    },
    "required": ["spdxElementId", "relationshipType", "relatedSpdxElement"],
    "additionalProperties": False,
}
FIELDS = {
    "spdxVersion": {"const": "SPDX-2.3"},
    "dataLicense": {"const": "CC0-1.0"},
    "SPDXID": {"const": "SPDXRef-DOCUMENT"},
    "name": TEXT,
    "documentNamespace": {"type": "string", "pattern": "^https://[^# ]+$"},
    "creationInfo": {
        "type": "object",
        "properties": {"created": DATE, "creators": {"type": "array", "items": {"pattern": "^Tool: "}}},
        "required": ["created", "creators"],
    },
    "documentDescribes": {"type": "array", "items": ID},
    "packages": {"type": "array", "items": PACKAGE},
    "relationships": {"type": "array", "items": RELATIONSHIP},
}
DOCUMENT = {"type": "object", "properties": FIELDS, "required": [*FIELDS], "additionalProperties": False}


def file_in(folder: Path) -> Path:
    folder.mkdir()
    file = folder / "shimmy-linux-x86_64"
    file.write_bytes(b"program")
    return file


def test_the_document_has_the_structure_of_spdx(tmp_path: Path) -> None:
    content = json.loads(document(file_in(tmp_path / "dist"), COMPONENTS))
    jsonschema.validate(content, DOCUMENT)
    identifiers = [package["SPDXID"] for package in content["packages"]]
    assert len(set(identifiers)) == len(identifiers) == len(COMPONENTS) + 2
    related = {link["relatedSpdxElement"] for link in content["relationships"]}
    assert related == {*identifiers}, "each package is what another one has inside, or what the document is about"
    assert {link["spdxElementId"] for link in content["relationships"]} <= {*identifiers, "SPDXRef-DOCUMENT"}


def test_the_document_names_the_file_and_what_is_linked_into_what(tmp_path: Path) -> None:
    content = json.loads(document(file_in(tmp_path / "dist"), COMPONENTS))
    digest = hashlib.sha256(b"program").hexdigest()
    file, _, *parts = content["packages"]
    assert file["checksums"] == [{"algorithm": "SHA256", "checksumValue": digest}]
    assert file["licenseConcluded"] == "(Apache-2.0 WITH LLVM-exception) AND MIT AND (MIT OR Zlib) AND Zlib"
    assert digest in content["documentNamespace"]
    names = {package["SPDXID"]: (package["name"], package.get("versionInfo")) for package in parts}
    kinds = [
        (link["relationshipType"], names.get(link["spdxElementId"]), names[link["relatedSpdxElement"]])
        for link in content["relationships"][2:]
    ]
    assert kinds == [
        ("CONTAINS", None, ("engine", "1.2")),
        ("STATIC_LINK", ("engine", "1.2"), ("libc++", "22.1.8")),
        ("STATIC_LINK", ("engine", "1.2"), ("zlib", "1.3.1")),
        ("CONTAINS", None, ("zlib", "1.3.2")),
        ("STATIC_LINK", ("engine", "1.2"), ("start files", None)),
    ]


def test_the_bytes_of_the_document_depend_on_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = document(file_in(tmp_path / "here"), COMPONENTS)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    there = file_in(tmp_path / "there")
    assert document(there, COMPONENTS) == first
    there.write_bytes(b"another")
    assert document(there, COMPONENTS) != first
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert json.loads(document(there, COMPONENTS))["creationInfo"]["created"] == "1970-01-02T00:00:00Z"


def test_each_package_of_the_file_has_its_licence() -> None:
    assert PACKAGE_LICENSES.keys() == {*PACKAGES}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_licence_is_the_one_that_the_package_tells(name: str) -> None:
    metadata = importlib.metadata.metadata(name)
    if told := metadata.get_all("License-Expression") or metadata.get_all("License"):
        assert told == [PACKAGE_LICENSES[name]]
    else:
        family = PACKAGE_LICENSES[name].partition("-")[0]
        assert f"License :: OSI Approved :: {family} License" in (metadata.get_all("Classifier") or ())


def test_the_crates_of_a_library_are_those_that_it_names() -> None:
    library = (
        b"\0/home/runner/.cargo/registry/src/index-1949/regex-automata-0.4.9/src/dfa.rs\0"
        b"/home/runner/.cargo/registry/src/index-1949/regex-automata-0.4.9/src/nfa.rs\0"
        b"/rust/deps/gimli-0.32.3/src/lib.rs\0rustc version 1.95.0 (59807616e 2026-04-14)\0"
    )
    assert [(found.name, found.version, found.part_of) for found in crates(library)] == [
        ("gimli", "0.32.3", "llguidance"),
        ("regex-automata", "0.4.9", "llguidance"),
        ("Rust standard library", "1.95.0", "llguidance"),
    ]
    with pytest.raises(BuildError, match="the crate `unheard`"):
        crates(library.replace(b"gimli", b"unheard"))
    with pytest.raises(BuildError, match="does not tell"):
        crates(b"\x7fELF")


def test_the_crates_of_llguidance_have_licences() -> None:
    library = next(VENV.glob("lib/python3*/site-packages/llguidance/_lib*.so")).read_bytes()
    found = {component.name for component in crates(library)} - {"Rust standard library"}
    assert found == CRATE_LICENSES.keys()


def program(folder: Path, files: dict[str, tuple[bytes, bool]]) -> Path:
    """A file like PyInstaller's: a bootloader, then an archive of these files, each packed or not."""
    front, body, table = b"\x7fELF bootloader", b"", b""
    for name, (content, is_packed) in files.items():
        stored = zlib.compress(content) if is_packed else content
        text = name.encode() + b"\0"
        entry = struct.pack("!IIIIBc", 18 + len(text), len(body), len(stored), len(content), is_packed, b"b")
        body, table = body + stored, table + entry + text
    cookie = struct.pack("!8sIII", b"MEI\014\013\012\013\016", len(body) + len(table) + 88, len(body), len(table))
    path = folder / "shimmy"
    path.write_bytes(front + body + table + cookie + bytes(88 - len(cookie)))
    return path


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_the_table_has_the_bytes_of_each_part(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("a = 1\n")
    module_archive.write(tmp_path / "modules", {"a": source, "namespace": None})
    modules = (tmp_path / "modules").read_bytes()
    files = {
        "__main__": (b"script", True),
        "libpython3.13.so.1.0": (bytes(2000), False),
        "llguidance.xz": (lzma.compress(bytes(3000)), False),
        "base_library.zip": (zip_of({"a.pyc": bytes(400), "b.pyc": bytes(40)}), False),
        MODULES: (modules, False),
        "libc/libm.so.6": (bytes(4000), True),
    }
    path = program(tmp_path, files)
    lines = sizes.table(path).splitlines()[2:]
    rows = {row[0]: tuple(int(cell.replace(",", "")) for cell in row[2:]) for row in map(cells, lines)}
    code_bytes = len(marshal.dumps(module_archive.compiled("a", source)))
    unpacked = {
        "libpython.so": 2000, "llguidance.xz": 3000, "base_library.zip": 440, MODULES: code_bytes, "libc/libm.so": 4000,
    }  # fmt: skip
    assert {name: rows[name][1] for name in unpacked} == unpacked
    stored = {name: size for name, size, _ in read_files(path)}
    assert rows["libc/libm.so"][0] == stored["libc/libm.so.6"] < 100
    assert rows[sizes.BOOTLOADER] == (15, 15)
    whole = rows.pop("all")
    assert whole[0] == path.stat().st_size == sum(size for size, _ in rows.values())
    assert whole[1] == sum(size for _, size in rows.values())


def cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip("|").split("|")]


def test_the_table_in_the_docs_has_the_files_of_a_portable_file() -> None:
    text = (ROOT / "docs/portable.md").read_text()
    found = re.search(r"\| part of `shimmy-linux-x86_64` .*\n\|-.*\n((?:\|.*\n)+)", text)
    assert found
    names = {cells(line)[0] for line in found[1].splitlines()}
    assert names == FILES | {MODULES, sizes.BOOTLOADER, sizes.REST, "all"}
