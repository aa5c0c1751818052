"""A header is read once, and what is remembered never says anything else than the file."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from shimmy.catalog import header_cache as module
from shimmy.catalog.header_cache import Headers
from shimmy.formats.gguf.header import GgufHeader
from shimmy.formats.gguf.reader import InvalidGguf, read_header
from tests.tiny_checkpoints import write_tiny_llama
from tests.tiny_models import write_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path, "tiny", chat_template="{{ 1 }}")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were really looked into."""
    paths: list[Path] = []

    def read(path: Path) -> GgufHeader:
        paths.append(path)
        return read_header(path)

    monkeypatch.setattr(module, "read_header", read)
    return paths


def ask(headers: Headers, path: Path) -> GgufHeader:
    return headers.read(path, path.stat())


def test_a_later_start_does_not_read_the_file_again(model: Path, cache: Path, reads: list[Path]) -> None:
    first = Headers(cache)
    header = ask(first, model)
    assert ask(first, model) == header
    first.save()
    assert ask(Headers(cache), model) == header == read_header(model)
    assert reads == [model]


def test_why_a_file_is_no_model_is_remembered(tmp_path: Path, cache: Path, reads: list[Path]) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"nothing like it" * 10)
    reasons = []
    for _ in range(2):
        headers = Headers(cache)
        with pytest.raises(InvalidGguf) as caught:
            ask(headers, path)
        reasons.append(str(caught.value))
        headers.save()
    assert reasons[0] == reasons[1]
    assert reads == [path]


def test_a_file_that_changed_is_read_again(model: Path, cache: Path, reads: list[Path]) -> None:
    first = Headers(cache)
    ask(first, model)
    first.save()
    times = model.stat()
    write_tiny_model(model.parent, "tiny", chat_template="{{ 2 }}")
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model.stat().st_size == times.st_size, "only the time of its change tells"
    ask(Headers(cache), model)
    assert reads == [model, model]


def test_a_file_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    headers = Headers()
    status = tmp_path.stat()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            headers.read(tmp_path / "gone.gguf", status)


def damaged(text: str, field: str, value: object) -> str:
    stored = json.loads(text)
    for known in stored["files"].values():
        known[stored["form"].index(field) - 1] = value  # in front of the fields stands the version
    return json.dumps(stored)


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda text: text[:-10],
        lambda _: "[" * 100_000,
        lambda _: "null",
        lambda _: '{"form": []}',
        lambda text: text.replace('"form"', '"other"'),
        lambda text: text.replace("n_params", "n_other"),
        lambda text: damaged(text, "kind", "nonsense"),
        lambda text: damaged(text, "kind", ["model"]),
        lambda text: damaged(text, "n_params", "many"),
        lambda text: damaged(text, "n_params", None),
        lambda text: damaged(text, "has_chat_template", 1),
    ],
)  # fmt: skip
def test_a_damaged_cache_is_of_no_use_and_does_no_harm(
    model: Path, cache: Path, reads: list[Path], damage: "object"
) -> None:
    first = Headers(cache)
    ask(first, model)
    first.save()
    (file,) = cache.iterdir()
    assert callable(damage)
    file.write_text(damage(file.read_text()))
    again = Headers(cache)
    assert ask(again, model) == read_header(model)
    again.save()
    ask(Headers(cache), model)
    assert reads == [model, model], "read once more, and remembered again"


def test_a_cache_that_cannot_be_written_costs_nothing_else(model: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    headers = Headers(blocked / "cache")
    assert ask(headers, model) == read_header(model)
    headers.save()
    assert blocked.read_text() == ""


def test_nothing_new_is_not_written(model: Path, cache: Path) -> None:
    first = Headers(cache)
    ask(first, model)
    first.save()
    (file,) = cache.iterdir()
    before = file.stat().st_mtime_ns, file.stat().st_ino
    again = Headers(cache)
    ask(again, model)
    again.save()
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    assert [path.name for path in cache.iterdir()] == ["headers.json"]


def test_what_is_not_used_is_forgotten_first(
    tmp_path: Path, cache: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    paths = [write_tiny_model(tmp_path, name) for name in ("a", "b", "c")]
    first = Headers(cache)
    for path in (*paths, paths[0]):
        ask(first, path)
    first.save()
    reads.clear()
    again = Headers(cache)
    for path in (paths[0], paths[2]):
        ask(again, path)
    assert reads == []
    ask(again, paths[1])
    assert reads == [paths[1]]


def test_a_plan_is_made_once_and_so_is_the_reason_against_one(model: Path, cache: Path) -> None:
    made: list[str] = []

    def make() -> tuple[GgufHeader, tuple[str, ...]]:
        made.append("sound")
        return read_header(model), ("it is shorter", "and slower")

    def refuse() -> NoReturn:
        made.append("unsound")
        raise InvalidGguf("it has no config.json")

    for _ in range(2):
        headers = Headers(cache)
        for _ in range(2):
            assert headers.plan((1, 2, 3), make) == (read_header(model), ("it is shorter", "and slower"))
            with pytest.raises(InvalidGguf, match="it has no config"):
                headers.plan((1, 7, 3), refuse)
        headers.save()
    assert made == ["sound", "unsound"]


def test_a_folder_that_was_looked_into_before_needs_nothing_of_its_conversion(tmp_path: Path, cache: Path) -> None:
    write_tiny_llama(tmp_path / "models" / "tiny")
    code = f"""
import sys
from pathlib import Path
from shimmy import config
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.scan import scan
headers = Headers(Path({str(cache)!r}))
catalog = scan(config.load({{"model_dirs": [{str(tmp_path / "models")!r}]}}, {{}}), headers)
assert [model.name for model in catalog.models] == ["tiny"]
headers.save()
print("shimmy.formats.convert.convert" in sys.modules)
"""
    answers = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert answers == ["True", "False"]


def test_of_a_file_that_keeps_changing_the_last_state_is_remembered(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "growing.gguf"
    headers = Headers(cache)
    for n_bytes in range(100, 110):
        path.write_bytes(bytes(n_bytes))
        with pytest.raises(InvalidGguf):
            ask(headers, path)
    headers.save()
    (file,) = cache.iterdir()
    assert len(json.loads(file.read_text())["files"]) == 1
