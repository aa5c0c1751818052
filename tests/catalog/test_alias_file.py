"""Names that `cp` has given, in a file that others may change."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shimmy.catalog import alias_file
from shimmy.catalog.alias_file import AliasFile
from shimmy.catalog.catalog import Catalog, Registry
from shimmy.errors import ModelNotFound
from tests.fakes import model


def test_what_one_process_writes_another_reads_at_once(tmp_path: Path) -> None:
    writer, reader = AliasFile(tmp_path / "a" / "aliases.json"), AliasFile(tmp_path / "a" / "aliases.json")
    assert reader.pairs() == ()
    writer.put("small", "tiny")
    assert reader.pairs() == (("small", "tiny"),)
    writer.put("small", "other")
    assert reader.pairs() == (("small", "other"),)
    assert writer.drop("small")
    assert not writer.drop("small")
    assert reader.pairs() == ()


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"[]", b'{"a": 7}', b'{"": "b"}', b'{"a\\n": "b"}', b"\xff", b"[" * 100_000]
)
def test_a_broken_file_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "aliases.json").write_bytes(content)
    assert AliasFile(tmp_path / "aliases.json").pairs() == ()


@pytest.mark.parametrize(
    "content", [b"", b'{"a": "b",}', b"[]", b"\xff", b"[" * 100_000, b'{"a": "b"}' + b" " * (1 << 22)]
)
def test_a_broken_file_is_not_written_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "aliases.json"
    path.write_bytes(content)
    for change in (lambda: AliasFile(path).put("small", "tiny"), lambda: AliasFile(path).drop("a")):
        with pytest.raises(ValueError, match=rf"{path}.*mend it first"):
            change()
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "aliases.json"
    AliasFile(path).put("a", "b")

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(alias_file, "read_start", refuse)
        with pytest.raises(ValueError, match=r"Permission denied.*mend it first"):
            AliasFile(path).put("small", "tiny")
    assert AliasFile(path).pairs() == (("a", "b"),)


def test_what_is_no_alias_stays_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "aliases.json"
    path.write_text('{"a": 7, "b": "x"}')
    AliasFile(path).put("small", "tiny")
    AliasFile(path).drop("b")
    assert json.loads(path.read_text()) == {"a": 7, "small": "tiny"}


def test_changes_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "aliases.json"
    aliases = [f"alias-{number}" for number in range(60)]
    with ThreadPoolExecutor(6) as threads:
        [*threads.map(lambda alias: AliasFile(path).put(alias, "tiny"), aliases)]
    assert sorted(AliasFile(path).pairs()) == sorted((alias, "tiny") for alias in aliases)
    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(lambda alias: AliasFile(path).drop(alias), aliases))
    assert AliasFile(path).pairs() == ()


def test_there_is_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias_file, "MAX_ALIASES", 1)
    aliases = AliasFile(tmp_path / "aliases.json")
    aliases.put("a", "x")
    aliases.put("a", "y")
    with pytest.raises(ValueError, match="already"):
        aliases.put("b", "x")


def test_a_kept_alias_is_a_name_behind_those_of_the_options(tmp_path: Path) -> None:
    (tmp_path / "aliases.json").write_text(json.dumps({"small": "tiny", "mine": "gone", "tiny": "other", "x": "other"}))
    registry = Registry([("x", "tiny")], kept=AliasFile(tmp_path / "aliases.json"))
    registry.publish(Catalog([model("tiny"), model("other")]))
    assert registry.resolve("Small").name == "tiny"
    assert registry.resolve("tiny").name == "tiny"
    assert registry.resolve("x").name == "tiny"
    with pytest.raises(ModelNotFound, match="gone"):
        registry.resolve("mine")
    assert sorted((alias, found.name) for alias, found in registry.aliases()) == [("small", "tiny"), ("x", "tiny")]
