"""LoRA adapters of a running server: which model gets which, at what scale, and side by side."""

from contextlib import ExitStack
from pathlib import Path

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, COMPLETION, PROMPTS, STEADY_SEED, Server, chat_body
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
