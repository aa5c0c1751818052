"""A CPU variant is used once it has computed right on this machine, in a child that may die of it."""

import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variant_check, variant_trust, variants
from shimmy.engine.cpu_variants.variant_trust import TrustedVariants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.errors import ModelUnavailable
from shimmy.formats.gguf.tensor_types import GGML_TYPES
from tests.engine.odd_variants import ABORTS, GIVES_NO_NUMBERS, MISCALCULATES, SLEEPS, SOUND, SPINS, write_variant

REAL = dict(variants.libraries(LIBRARY_FOLDER, None))
BEST = next(iter(REAL))


def in_a_child(path: str | Path) -> tuple[str, bool]:
    return variant_trust._in_a_child(variant_check.check, str(path))


# -- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_the_variants_that_suit_this_processor_compute_right(name: str) -> None:
    assert in_a_child(REAL[name]) == ("", True)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (SOUND, ""),
        (ABORTS, "its check died of SIGILL"),
        (MISCALCULATES, "it computes products of "),
        (GIVES_NO_NUMBERS, "it computes products of "),
    ],
    ids=["sound", "aborts", "miscalculates", "gives no numbers"],
)
def test_what_a_variant_does_wrong_is_found(tmp_path: Path, kind: tuple[str, str], fault: str) -> None:
    found, is_certain = in_a_child(write_variant(tmp_path / "odd.so", kind, REAL[BEST]))
    assert found.startswith(fault)
    assert bool(found) is bool(fault)
    assert is_certain


def test_a_variant_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant_trust, "_CPU_TIME_S", 1)
    found, is_certain = in_a_child(write_variant(tmp_path / "spins.so", SPINS, REAL[BEST]))
    assert (found, is_certain) == ("its check did not come to an end", True)
    monkeypatch.setattr(variant_trust, "_WAIT_S", 0.5)
    found, is_certain = in_a_child(write_variant(tmp_path / "sleeps.so", SLEEPS, REAL[BEST]))
    assert (found, is_certain) == ("its check did not end within 0.5 s", False), "another thread may be to blame"


def test_what_ggml_refuses_itself_is_left_to_it(tmp_path: Path) -> None:
    assert in_a_child(write_variant(tmp_path / "unsuitable.so", ABORTS, REAL[BEST], score=0)) == ("", True)


def test_every_type_of_weights_is_checked() -> None:
    others = {"i8", "i16", "i32", "i64", "f64", "q8_1", "q8_k"}
    known = {code for code, (name, _, _) in GGML_TYPES.items() if name.lower() not in others}
    assert known == {*variant_check._WEIGHT_TYPES}


# -- which one is used -----------------------------------------------------------------------------------------------


class Checks:
    """Stands in for the check, and counts in a file, as each runs in a process of its own."""

    def __init__(self, folder: Path, **faults: str) -> None:
        self._folder = folder
        self._faults = faults
        self.paths = {name: str(folder / f"{name}.so") for name in ("best", "next", "last")}
        for name, path in self.paths.items():
            Path(path).write_text(name)

    def __call__(self, path: str) -> str | None:
        with (self._folder / "calls").open("a") as calls:
            calls.write(f"{Path(path).stem} ")
        fault = self._faults.get(Path(path).stem, "")
        faulthandler.disable()  # of pytest; what follows is meant
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "stumbles" and self.calls.count(Path(path).stem) == 1:
            os.kill(os.getpid(), signal.SIGABRT)
        return "" if fault == "stumbles" else fault

    @property
    def calls(self) -> list[str]:
        path = self._folder / "calls"
        return path.read_text().split() if path.exists() else []

    def trusted(self, cache: Path | None, *, is_forced: bool = False) -> TrustedVariants:
        libraries = [*self.paths.items()]
        return TrustedVariants(libraries[:1] if is_forced else libraries, cache, is_forced=is_forced, check=self)


def first(variants: TrustedVariants) -> str:
    return next(iter(variants))[0]


def test_the_best_that_computes_is_used_and_the_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checks = Checks(tmp_path, best="dies", next="it computes norms wrongly")
    trusted = checks.trusted(tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        assert first(trusted) == "last"
    note = "`best` is passed over: its check died of SIGSEGV; `next` is passed over: it computes norms wrongly"
    assert trusted.note == note
    assert len(caplog.messages) == 2
    assert "`best` does not work on this machine: its check died of SIGSEGV" in caplog.messages[0]


def test_a_verdict_is_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checks = Checks(tmp_path, best="dies")
    assert first(checks.trusted(tmp_path / "cache")) == "next"
    calls = checks.calls
    assert calls == ["best", "best", "next"], "what died had a second chance"
    caplog.clear()
    again = checks.trusted(tmp_path / "cache")
    assert first(again) == "next"
    assert again.note == "`best` is passed over: its check died of SIGSEGV"
    assert (checks.calls, caplog.messages) == (calls, [])


def test_a_child_that_stumbles_once_does_not_condemn_a_variant(tmp_path: Path) -> None:
    checks = Checks(tmp_path, best="stumbles")
    assert first(checks.trusted(tmp_path / "cache")) == "best"
    assert first(checks.trusted(tmp_path / "cache")) == "best"
    assert checks.calls == ["best", "best"]


@pytest.mark.parametrize("change", ["processor", "kernel", "library", "verdict", "file"])
def test_what_was_remembered_of_another_machine_or_program_does_not_count(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = Checks(tmp_path)
    assert first(checks.trusted(tmp_path / "cache")) == "best"
    memory = tmp_path / "cache" / "variants.json"
    (key,) = json.loads(memory.read_bytes())
    match change:
        case "processor":
            monkeypatch.setattr(variant_trust, "processor_flags", lambda: frozenset({"avx10"}))
        case "kernel":
            release = os.uname().release
            monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", f"{release}-2", "1", "x86_64")))
        case "library":
            Path(checks.paths["best"]).write_text("rebuilt")
        case "verdict":
            memory.write_text(json.dumps({key: ["", 1]}))
        case "file":
            memory.write_bytes(b"\xff[")
    assert first(checks.trusted(tmp_path / "cache")) == "best"
    assert checks.calls == ["best", "best"]


def test_where_nothing_can_be_remembered_each_worker_looks(tmp_path: Path) -> None:
    checks = Checks(tmp_path, best="dies")
    (tmp_path / "cache").write_text("a file in the place of the folder")
    for cache in (None, tmp_path / "cache"):
        assert first(checks.trusted(cache)) == "next"
    assert checks.calls == ["best", "best", "next"] * 2


def test_a_forced_variant_that_does_not_work_says_so(tmp_path: Path) -> None:
    checks = Checks(tmp_path, best="dies")
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match=r"`best`, which `--cpu-variant` forces, .*: its check died of SIGS"):
            first(checks.trusted(tmp_path / "cache", is_forced=True))
    assert first(Checks(tmp_path).trusted(tmp_path / "other", is_forced=True)) == "best"


def test_where_no_process_can_be_started_variants_are_used_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    checks = Checks(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", fork)
        assert first(checks.trusted(tmp_path / "cache")) == "best"
    assert first(checks.trusted(tmp_path / "cache")) == "best"
    assert checks.calls == ["best"], "nothing was remembered of a check that was none"


def test_without_a_variant_that_works_the_reasons_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    write_variant(folder / f"libggml-cpu-{BEST}.so", ABORTS, REAL[BEST])
    code, output = worker_in(folder, tmp_path / "cache")
    assert code == 1
    assert f"no CPU variant runs on this processor (tried: none); `{BEST}` is passed over: its check died" in output


# -- in a worker -----------------------------------------------------------------------------------------------------

_SCRIPT = """
import sys
from pathlib import Path
from shimmy.engine import loading
loading.LIBRARY_FOLDER = Path(sys.argv[1])
try:
    cpu = loading.trusted_backend(None, sys.argv[2])
except Exception as error:
    sys.exit(str(error))
print(cpu.name, cpu.note)
"""


def worker_in(folder: Path, cache: Path) -> tuple[int, str]:
    """What a process with the engine's variants in `folder` has for a backend."""
    command = [sys.executable, "-c", _SCRIPT, str(folder), str(cache)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The engine's variants, with a best one that aborts."""
    folder = tmp_path / "lib"
    folder.mkdir()
    for name, path in REAL.items():
        if name == BEST:
            write_variant(folder / Path(path).name, ABORTS, path)
        else:
            (folder / Path(path).name).symlink_to(path)
    return folder


def test_a_worker_takes_the_next_best_and_remembers_it(folder: Path, tmp_path: Path) -> None:
    following = [*REAL][1]
    for _ in range(2):
        code, output = worker_in(folder, tmp_path / "cache")
        assert code == 0, output
        assert output.startswith(f"{following} `{BEST}` is passed over: its check died of SIGILL")
    verdicts = json.loads((tmp_path / "cache" / "variants.json").read_bytes())
    assert sorted(verdicts.values()) == ["", "its check died of SIGILL"]
