"""LoRA adapters of a running server: which model gets which, at what scale, and side by side."""

from contextlib import ExitStack
from pathlib import Path

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, COMPLETION, PROMPTS, STEADY_SEED, Server, chat_body
from tests.peft_adapters import ALPHA, RANK, merged, pairs, write_adapter
from tests.tiny_checkpoints import LLAMA_CONFIG, llama_tensors, write_checkpoint, write_tiny_llama, write_tokenizer
from tests.tiny_models import FLOAT64, STRING, write_tiny_adapter, write_tiny_model


def adapters(server: Server, model: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = server.get(f"/api/models/{model}/status").json()["adapters"]
    return found


def test_requests_choose_their_scales_and_run_side_by_side(start: StartServer, server: Server, tmp_path: Path) -> None:
    first, second = (write_tiny_adapter(tmp_path, str(seed), seed=seed) for seed in (1, 2))
    adapted = start("--lora", f"{first}=0", "--lora", second)
    wishes = [None, [{"id": 0, "scale": 1}], [{"id": 1, "scale": 0}], [{"id": 0, "scale": 0.5}, {"id": 1, "scale": 1}]]
    alone = [adapted.chat(PROMPTS[0], lora=wish) for wish in wishes]
    assert len(set(alone)) == 4
    assert alone[2] == server.chat(PROMPTS[0]), "with all scales at 0 the model is as it is"
    assert alone[0] == adapted.chat(PROMPTS[0], lora=[]) == adapted.chat(PROMPTS[0], lora=[{"id": 1, "scale": 1}])
    assert adapters(adapted, "alpha") == [
        {"path": str(first), "scale": 0.0},
        {"path": str(second), "scale": 1.0},
    ]
    with ExitStack() as connections:
        streams = [connections.enter_context(adapted.stream(PROMPTS[0], lora=wish)) for wish in wishes * 3]
        assert [stream.finish().text for stream in streams] == alone * 3


def test_a_bad_wish_is_refused_by_its_place_in_either_dialect(start: StartServer, tmp_path: Path) -> None:
    server = start("--lora", write_tiny_adapter(tmp_path))
    bodies = {CHAT: chat_body("hello"), COMPLETION: {"model": "alpha", "prompt": "hello", "max_tokens": 4}}
    for path, body in bodies.items():
        for lora, param in (
            ([{"id": 0, "scale": 1}, {"id": 1, "scale": 1}], "lora[1].id"),
            ([{"id": 0, "scale": "much"}], "lora[0].scale"),
            ([{"id": 0, "scale": 1e9}], "lora[0].scale"),
        ):
            reply = server.post(path, body | {"lora": lora})
            assert reply.status == 400
            assert reply.error["param"] == param
        assert server.post(path, body | {"lora": [{"id": 0, "scale": 1}]}).status == 200


def test_an_adapter_is_applied_to_the_models_of_its_architecture_only(
    start: StartServer, server: Server, tmp_path: Path
) -> None:
    other = write_tiny_adapter(tmp_path, "other", changes=[("general.architecture", STRING, "qwen2")])
    adapted = start("--lora", other)
    assert adapted.chat("hello") == server.chat("hello")
    assert adapters(adapted, "alpha") == []
    assert "`other.gguf` is not applied" in adapted.log


def test_a_broken_adapter_is_named_and_the_server_lives_on(start: StartServer, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "alpha", seed=STEADY_SEED)
    broken = write_tiny_adapter(tmp_path, "broken", changes=[("adapter.lora.alpha", FLOAT64, 1.0)])
    server = start("--model-path", tmp_path / "alpha.gguf", "--lora", broken)
    for _ in range(2):
        reply = server.post(CHAT, chat_body("hello"))
        assert reply.status == 503
        assert reply.error["code"] == "model_unavailable"
        assert "`broken.gguf` cannot be applied: its `adapter.lora.alpha`" in reply.error["message"]
    assert server.get("/health").status == 200
    assert server.metric("shimmy_worker_deaths_total", "alpha") == 0


def test_an_adapter_in_safetensors_answers_as_the_merged_weights_do(start: StartServer, tmp_path: Path) -> None:
    tensors = llama_tensors(STEADY_SEED)
    matrices = pairs(tensors, ("q_proj", "v_proj", "gate_proj"))
    models, aside = tmp_path / "models", tmp_path / "aside"
    write_tiny_llama(models / "folder", seed=STEADY_SEED)
    write_tiny_model(models, "file", seed=STEADY_SEED)
    write_checkpoint(models / "merged", LLAMA_CONFIG, merged(tensors, matrices, ALPHA / RANK))
    write_tokenizer(models / "merged")
    adapter = write_adapter(aside / "adapter", matrices)
    cache = tmp_path / "cache"
    server = start("--model-path", models, "--cache-dir", cache, "--lora", f"{adapter}=0.0")
    wish = [{"id": 0, "scale": 1}]
    plain = server.chat(PROMPTS[0], "file")
    expected = server.chat(PROMPTS[0], "merged")
    assert plain != expected
    for name in ("file", "folder"):
        assert adapters(server, name) in ([], [{"path": str(adapter), "scale": 0.0}])
        assert server.chat(PROMPTS[0], name) == plain
        assert server.chat(PROMPTS[0], name, lora=wish) == expected
        assert adapters(server, name) == [{"path": str(adapter), "scale": 0.0}]
    assert len([*(cache / "converted").glob("*-lora_llama_*.gguf")]) == 1, "one file for both"
    server.stop()
    applied = start("--model-path", models / "file.gguf", "--cache-dir", cache, "--lora", f"{adapter}=1.0")
    assert applied.chat(PROMPTS[0], "file") == expected


def test_an_adapter_folder_beside_a_model_is_on_offer(start: StartServer, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "alpha", seed=STEADY_SEED)
    adapter = write_adapter(tmp_path / "adapter", pairs(llama_tensors(STEADY_SEED), ("v_proj",)))
    server = start("--model-path", tmp_path, "--cache-dir", tmp_path / "cache")
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["alpha"]
    assert adapters(server, "alpha") == [{"path": str(adapter), "scale": 0.0}]
    assert server.chat("hello") != server.chat("hello", lora=[{"id": 0, "scale": 1}])


def test_an_adapter_that_would_not_be_exact_is_refused_by_name(start: StartServer, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "alpha", seed=STEADY_SEED)
    matrices = pairs(llama_tensors(STEADY_SEED), ("v_proj",))
    dora = write_adapter(tmp_path / "adapters" / "dora", matrices, use_dora=True)
    server = start("--model-path", tmp_path / "alpha.gguf", "--lora", dora)
    reply = server.post(CHAT, chat_body("hello"))
    assert reply.status == 503
    assert "`dora` cannot be applied: it has `use_dora`" in reply.error["message"]
    assert server.get("/health").status == 200
