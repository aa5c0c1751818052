"""The cache that huggingface_hub and `shimmy pull` share: each reads what the other has written."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import huggingface_hub
import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache

from tests.e2e.harness import PROGRAM, ROOT
from tests.hub.servers import COMMIT, FakeHub

NAME = "o/tiny"
MODEL = b"GGUF" + Random(1).randbytes(5_000_000)
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": Random(2).randbytes(100_000),
    "tokenizer.json": b"{}",
    "README.md": b"read",
    "1_Pooling/config.json": b"{ }",
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub({NAME: {"tiny-Q4_K_M.gguf": MODEL, "tiny-Q8_0.gguf": MODEL + b"x"}, "o/folder": FILES})
    with server.running():
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def pull(hub: FakeHub, cache: Path, reference: str) -> Path:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("SHIMMY_", "HF_"))}
    given |= {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    result = subprocess.run([*PROGRAM, "pull", reference], env=given, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


def test_the_library_reads_what_we_wrote(hub: FakeHub, cache: Path) -> None:
    path = pull(hub, cache, f"hf.co/{NAME}")
    assert hf_hub_download(NAME, "tiny-Q4_K_M.gguf", cache_dir=cache, local_files_only=True) == str(path)
    assert try_to_load_from_cache(NAME, "tiny-Q4_K_M.gguf", cache_dir=cache, revision=COMMIT) == str(path)
    folder = pull(hub, cache, "o/folder")
    assert snapshot_download("o/folder", cache_dir=cache, local_files_only=True) == str(folder)
    found = scan_cache_dir(cache)
    assert not found.warnings
    assert {repo.repo_id for repo in found.repos} == {NAME, "o/folder"}
    assert {repo.size_on_disk for repo in found.repos if repo.repo_id == NAME} == {len(MODEL)}


def test_the_library_goes_on_with_what_we_wrote(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds our blob by the hub's ETag, and fetches nothing."""
    path = pull(hub, cache, NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.requests.clear()
    again = hf_hub_download(NAME, "tiny-Q4_K_M.gguf", cache_dir=cache, endpoint=hub.url)
    assert again == str(path)
    assert not hub.paths("/signed/")


def test_we_read_what_the_library_wrote(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    written = hf_hub_download(NAME, "tiny-Q4_K_M.gguf", cache_dir=cache, endpoint=hub.url)
    folder = snapshot_download("o/folder", cache_dir=cache, endpoint=hub.url)
    assert Path(written).read_bytes() == MODEL
    hub.requests.clear()
    assert pull(hub, cache, NAME) == Path(written)
    assert pull(hub, cache, "o/folder") == Path(folder)
    assert not hub.paths("/signed/")
    assert not hub.paths("/o/folder/resolve")
