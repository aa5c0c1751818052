"""What the control routes say of a model's life, and what they do to it."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shimmy.api.app import create_app
from shimmy.catalog.catalog import BROKEN, Catalog, Rejected
from shimmy.errors import ModelUnavailable
from shimmy.messages.model_info import Adapter, LoadProgress, ModelDefaults
from tests.fakes import FakeWorker, fetch, model, on_loop, services, until
from tests.tiny_models import write_tiny_model

NAME = model().name


async def ask(app: Any, method: str, what: str) -> dict[str, Any]:
    reply = await fetch(app, method, f"/api/models/{NAME}/{what}")
    assert reply.status == 200, reply.body
    return reply.json()


class Worker(FakeWorker):
    async def close(self) -> None:
        self.is_alive = False


@on_loop
async def test_a_model_is_loaded_and_unloaded_as_often_as_one_likes() -> None:
    app = create_app(services(Worker()))
    entry = await ask(app, "GET", "status")
    assert (entry["name"], entry["state"], entry["error"]) == (NAME, "unloaded", None)
    assert "pid" not in entry
    for _ in range(2):
        entry = await ask(app, "POST", "load")
        assert (entry["state"], entry["pid"], entry["jobs"], entry["keep_alive_s"]) == ("ready", 4321, 0, 300.0)
    listed = (await fetch(app, "GET", "/api/models")).json()["models"]
    assert [other["state"] for other in listed] == ["ready"]
    for _ in range(2):
        assert (await ask(app, "POST", "unload"))["state"] == "unloaded"


@on_loop
async def test_why_a_model_cannot_be_loaded_is_shown() -> None:
    async def fail() -> None:
        raise ModelUnavailable("it is made of cheese")

    app = create_app(services(load=fail))
    assert (await fetch(app, "POST", f"/api/models/{NAME}/load")).status == 503
    entry = await ask(app, "GET", "status")
    assert (entry["state"], entry["error"]) == ("unloaded", "it is made of cheese")


@on_loop
async def test_how_far_a_load_is_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    is_read = asyncio.Event()

    async def load() -> None:
        await is_read.wait()

    all_services = services(FakeWorker(), load=load)
    app = create_app(all_services)
    loading = asyncio.create_task(ask(app, "POST", "load"))
    await until(lambda: all_services.pool.runtime(NAME) is not None)
    runtime = all_services.pool.runtime(NAME)
    assert runtime is not None
    for progress, told in (
        (None, {}),
        (LoadProgress(0.429), {"converted_percent": 42}),
        (LoadProgress(0.07, 1000), {"read_percent": 7}),
    ):
        runtime.progress = progress
        entry = await ask(app, "GET", "status")
        assert entry["state"] == "loading"
        assert {name: value for name, value in entry.items() if name.endswith("_percent")} == told
    runtime.progress = None
    runtime.progress = None
    monkeypatch.setattr(all_services.pool, "load_position", {NAME: 3}.get)
    assert (await ask(app, "GET", "status"))["load_position"] == 3
    monkeypatch.undo()
    assert "load_position" not in await ask(app, "GET", "status")
    is_read.set()
    assert (await loading)["state"] == "ready"


@on_loop
async def test_what_belongs_to_a_model_is_shown() -> None:
    beside = replace(model(), adapters=(Path("/lora.gguf"),), projector=Path("/mmproj.gguf"), is_embedding=True)
    entry = await ask(create_app(services(models=[beside])), "GET", "status")
    assert entry["adapters"] == [{"path": "/lora.gguf", "scale": 0.0}]
    assert (entry["projector"], entry["embedding"]) == ("/mmproj.gguf", True)
    entry = await ask(create_app(services()), "GET", "status")
    assert (entry["adapters"], entry["projector"], entry["embedding"]) == ([], None, False)


@on_loop
async def test_what_a_request_gets_that_says_nothing_is_shown() -> None:
    own = ModelDefaults(sampling=(("temperature", 0.3), ("top_k", 7)), n_predict=50, stop=("END",), system="Be brief.")
    app = create_app(services(models=[replace(model(), defaults=own)]))
    shown = (await ask(app, "GET", "status"))["defaults"]
    assert (shown["temperature"], shown["top_k"], shown["top_p"]) == (0.3, 7, 0.95)
    assert (shown["max_tokens"], shown["stop"], shown["system"]) == (50, ["END"], "Be brief.")


@on_loop
async def test_what_cannot_be_served_is_shown_with_the_reason() -> None:
    house = services()
    broken, known = (Rejected(name, Path(f"/{name}\n.gguf"), BROKEN, "it is cut off", ()) for name in ("half", NAME))
    house.registry.publish(Catalog([model()], [broken, known]))
    app = create_app(house)
    entry = {
        "name": "half",
        "state": "unavailable",
        "kind": "gguf",
        "path": "/half\\n.gguf",
        "architecture": "",
        "error": "it is cut off",
    }
    assert (await fetch(app, "GET", "/api/models/half/status")).json() == entry
    status = await ask(app, "GET", "status")
    assert (status["state"], status["error"]) == ("unloaded", "it is cut off")
    del status["defaults"]
    assert (await fetch(app, "GET", "/api/models")).json()["models"] == [status, entry]
    assert [listed["id"] for listed in (await fetch(app, "GET", "/v1/models")).json()["data"]] == [NAME]
    for what in ("load", "unload"):
        reply = await fetch(app, "POST", f"/api/models/half/{what}")
        assert (reply.status, reply.json()["error"]["message"]) == (404, "`half` cannot be served: it is cut off")


@on_loop
async def test_a_loaded_model_lists_its_adapters_in_the_order_of_their_ids() -> None:
    worker = Worker()
    worker.facts = replace(worker.facts, adapters=(Adapter("/b.gguf", 0.5), Adapter("/a.gguf", 0.0)))
    app = create_app(services(worker))
    assert (await ask(app, "GET", "status"))["adapters"] == []
    entry = await ask(app, "POST", "load")
    assert entry["adapters"] == [{"path": "/b.gguf", "scale": 0.5}, {"path": "/a.gguf", "scale": 0.0}]


@pytest.mark.parametrize(("method", "what"), [("GET", "status"), ("POST", "load"), ("POST", "unload")])
@on_loop
async def test_an_unknown_model_is_a_404(method: str, what: str) -> None:
    reply = await fetch(create_app(services()), method, f"/api/models/some/other:7b/{what}")
    assert reply.status == 404
    assert reply.json()["error"]["code"] == "model_not_found"


@on_loop
async def test_discover_finds_what_has_come(tmp_path: Path) -> None:
    app = create_app(services(models=(), model_dirs=[str(tmp_path)]))
    assert (await fetch(app, "POST", "/api/models/discover")).json() == {"models": []}
    write_tiny_model(tmp_path, "new")
    found = (await fetch(app, "POST", "/api/models/discover")).json()["models"]
    assert [entry["name"] for entry in found] == ["new"]


@on_loop
@pytest.mark.parametrize("refused", ["access", "unlink"])
async def test_a_deletion_that_the_system_refuses_is_a_403(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    app = create_app(services(models=(), model_dirs=[str(tmp_path)]))
    write_tiny_model(tmp_path, "new")
    await fetch(app, "POST", "/api/models/discover")

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path) * missing_ok)

    with monkeypatch.context() as patch:
        if refused == "access":
            patch.setattr("os.access", lambda path, _mode: not path)
        else:
            patch.setattr(Path, "unlink", refuse)
            write_tiny_model(tmp_path, "another", seed=1)  # it is looked again
        reply = await fetch(app, "DELETE", "/api/models/new")
    assert (reply.status, reply.json()["error"]["code"]) == (403, "removal_failed")
    found = (await fetch(app, "GET", "/api/models")).json()["models"]
    assert [entry["name"] for entry in found] == (["new"] if refused == "access" else ["another", "new"])
