"""How the program starts itself once more, and what such a process inherits."""

import os
import sys
from pathlib import Path

import pytest

from shimmy.system.self_command import environment, executable, own_program


def test_a_source_tree_is_started_by_its_interpreter() -> None:
    assert (own_program(), executable()) == ([sys.executable, "-m", "shimmy"], None)


def test_the_frozen_file_is_started_as_it_runs_whatever_has_its_name_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "argv", ["/opt/shimmy", "serve"])
    monkeypatch.setattr(sys, "executable", "/proc/self/fd/10")
    assert (own_program(), executable()) == (["/opt/shimmy"], f"/proc/{os.getpid()}/fd/10")


def test_the_frozen_file_is_found_by_its_name_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "argv", ["/tmp/_MEI1/shimmy.inner", "serve"])
    monkeypatch.setattr(sys, "executable", "/opt/shimmy")
    assert (own_program(), executable()) == (["/opt/shimmy"], "/opt/shimmy")


@pytest.mark.parametrize(
    ("preloaded", "kept"),
    [
        ("/usr/lib/libjemalloc.so.2", "/usr/lib/libjemalloc.so.2"),
        ("/opt/libggml-base.so.0:/usr/lib/libjemalloc.so.2", "/usr/lib/libjemalloc.so.2"),
        ("libllama.so /a.so\tlibb.so", "/a.so:libb.so"),
        ("/opt/ggml/libggml.so", ""),
        ("/opt/libggml-things/libharmless.so", "/opt/libggml-things/libharmless.so"),
    ],
)
def test_no_other_engine_is_put_in_front_of_ours(monkeypatch: pytest.MonkeyPatch, preloaded: str, kept: str) -> None:
    monkeypatch.setenv("LD_PRELOAD", preloaded)
    monkeypatch.setenv("OTHER", "stays")
    assert environment()["LD_PRELOAD"] == kept
    assert environment()["OTHER"] == "stays"


def test_another_engine_is_known_by_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.so").write_bytes(b"\x7fELF...\0ggml_init\0...")
    (tmp_path / "other.so").write_bytes(b"\x7fELF...\0malloc\0...")
    monkeypatch.setenv("LD_PRELOAD", f"{tmp_path}/one.so:{tmp_path}/other.so")
    assert environment()["LD_PRELOAD"] == f"{tmp_path}/other.so"


def test_nothing_is_preloaded_where_nothing_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert "LD_PRELOAD" not in environment()
