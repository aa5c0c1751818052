"""A draft model of a running server: which model gets it, and that it changes no text."""

import shutil
from pathlib import Path

from tests.e2e.conftest import StartServer
from tests.e2e.harness import PROMPTS, STEADY_SEED, Json, Server, run
from tests.tiny_models import write_tiny_model


def memory_of(server: Server, name: str) -> tuple[int, int]:
    """Bytes of weights and of KV cache, as predicted; what it takes to compute is measured."""
    memory: Json = server.get(f"/api/models/{name}/status").json()["memory"]
    return memory["weights_bytes"], memory["kv_bytes"]


def test_the_text_is_the_one_without_it_for_every_model_that_it_fits_and_for_the_others(
    start: StartServer, server: Server, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    misfit = write_tiny_model(folder, "gamma", n_ctx_train=4096, seed=STEADY_SEED)
    misfit.write_bytes(misfit.read_bytes().replace("▁hello".encode(), "▁hallo".encode()))
    small = folder / "beta.gguf"
    drafted = start("--model-path", folder, "--draft-model", small)
    for prompt in PROMPTS[:2]:
        assert drafted.chat(prompt) == server.chat(prompt)
        sampled: Json = {"temperature": 1.5, "seed": 5, "max_tokens": 32}
        assert drafted.chat(prompt, **sampled) == server.chat(prompt, **sampled)
    assert drafted.chat("hello", "beta") == server.chat("hello", "beta")
    assert drafted.chat("the user", "gamma")
    assert "`beta.gguf` guesses for `alpha.gguf`" in drafted.log
    assert "`gamma.gguf` is served without the draft model `beta.gguf`: its token" in drafted.log
    assert drafted.log.count("without the draft model") == 1, "it is not its own"
    weights, kv = memory_of(server, "alpha")
    weights_of_both, kv_of_both = memory_of(drafted, "alpha")
    assert weights_of_both == weights + small.stat().st_size
    assert kv_of_both > kv
    assert memory_of(drafted, "beta") == memory_of(server, "beta")
    page = drafted.get("/metrics").body.decode()
    for by in ("lookup", "draft_model"):
        assert f'shimmy_drafted_tokens_total{{model="alpha",by="{by}"}}' in page
        assert f'shimmy_accepted_tokens_total{{model="alpha",by="{by}"}}' in page


def test_a_file_that_is_not_there_is_said_before_anything_is_served(tmp_path: Path, models: Path) -> None:
    ended = run(tmp_path, "serve", "--bind", "127.0.0.1:0", "--model-path", models, "--draft-model", "nothing.gguf")
    assert ended.returncode == 2
    missing = tmp_path / "nothing.gguf"
    assert ended.stderr == f"shimmy: the draft model `{missing}` cannot be read: No such file or directory\n"
