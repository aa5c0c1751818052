"""The engine's CPU variants: the best one is taken, an older one can be forced, an unknown one is refused."""

import ctypes
import json
import platform
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.conftest import StartServer
from tests.e2e.harness import PROMPTS, run
from tests.engine.odd_variants import ABORTS, write_variant


def engine_folder() -> Path:
    spec = find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "lib"


def scores() -> dict[str, int]:
    """What the engine itself makes of each variant on this processor; 0 is one that cannot run here."""
    folder = engine_folder()
    ctypes.CDLL(str(folder / "libggml-base.so.0"), ctypes.RTLD_GLOBAL)
    paths = folder.glob("libggml-cpu-*.so")
    return {path.stem.removeprefix("libggml-cpu-"): ctypes.CDLL(str(path)).ggml_backend_score() for path in paths}


OLD_VARIANTS = ["x64", "sse42"] if platform.machine() == "x86_64" else ["armv8.0_1"]


def test_by_default_the_best_variant_runs(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "FORCED", None)
    rated = scores()
    assert set(OLD_VARIANTS) <= rated.keys()
    probed = run(tmp_path, "probe", "alpha", "--json", "--model-path", models)
    assert json.loads(probed.stdout)["cpu_variant"] == max(rated, key=rated.__getitem__)


@pytest.mark.parametrize("variant", OLD_VARIANTS)
def test_an_older_variant_answers_when_it_is_forced(start: StartServer, variant: str) -> None:
    server = start("--cpu-variant", variant)
    assert server.chat(PROMPTS[0])
    assert f"CPU variant {variant}" in server.log


def test_probe_tells_the_forced_variant(tmp_path: Path, models: Path) -> None:
    probed = run(tmp_path, "probe", "alpha", "--json", "--model-path", models, "--cpu-variant", OLD_VARIANTS[0])
    assert probed.returncode == 0, probed.stderr
    assert json.loads(probed.stdout)["cpu_variant"] == OLD_VARIANTS[0]


def test_an_unknown_variant_is_refused_with_the_names_of_those_there_are(start: StartServer) -> None:
    server = start("--cpu-variant", "abacus")
    reply = server.post("/v1/completions", {"model": "alpha", "prompt": "hello"})
    assert reply.status == 503
    assert reply.error["code"] == "model_unavailable"
    assert "`abacus`" in reply.error["message"]
    assert all(name in reply.error["message"] for name in scores())
    assert server.get("/health").status == 200


def test_an_unknown_variant_fails_a_command(tmp_path: Path, models: Path) -> None:
    generated = run(tmp_path, "generate", "alpha", "--prompt", "x", "--model-path", models, "--cpu-variant", "abacus")
    assert generated.returncode == 1
    assert generated.stdout == ""
    assert "`abacus`" in generated.stderr
    assert "Traceback" not in generated.stderr


@pytest.mark.frozen
def test_a_variant_that_does_not_run_here_costs_nobody_an_answer(start: StartServer) -> None:
    rated = scores()
    best, following = sorted(rated, key=rated.__getitem__, reverse=True)[:2]
    server = start()
    library = Path("llama_cpp", "lib", f"libggml-cpu-{best}.so")
    (home,) = server.temporary.glob("_MEI*")
    write_variant(home / library, ABORTS, engine_folder() / library.name)
    for model in ("alpha", "beta"):
        assert server.chat(PROMPTS[0], model)
        entry = server.get(f"/api/models/{model}/status").json()
        assert entry["cpu_variant"] == following
        assert entry["cpu_variant_note"] == f"`{best}` is passed over: its check died of SIGILL"
    assert server.log.count(f"the CPU variant `{best}` does not work on this machine") == 1
