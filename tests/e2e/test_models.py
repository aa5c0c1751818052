"""Which models a server has: several at once, each by its own name, the broken ones left out; and where it listens."""

import os
import socket
import struct
import unicodedata
from contextlib import ExitStack
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, HOST, PROMPTS, Server, chat_body, run
from tests.e2e.processes import wait_for
from tests.tiny_models import write_tiny_model


def names(server: Server) -> list[str]:
    return [model["id"] for model in server.get("/v1/models").json()["data"]]


@pytest.mark.smoke
def test_two_models_answer_at_once_each_for_itself(server: Server) -> None:
    alone = {model: server.chat(PROMPTS[0], model) for model in ("alpha", "beta")}
    assert alone["alpha"] != alone["beta"]
    with ExitStack() as connections:
        streams = [connections.enter_context(server.stream(PROMPTS[0], model)) for model in ("alpha", "beta") * 4]
        texts = [stream.finish().text for stream in streams]
    assert texts == [alone["alpha"], alone["beta"]] * 4
    assert len(server.workers()) == 2


@pytest.mark.parametrize("name", ["gamma", "alph", "alpha-2", "", "a" * 10_000, "../alpha", "alpha.gguf.gguf"])
def test_an_unknown_model_is_never_answered_by_another(server: Server, name: str) -> None:
    for reply in (server.post(CHAT, chat_body("hello", name)), server.post(CHAT, chat_body("x", name, stream=True))):
        assert reply.status == 404
        assert reply.error["code"] == "model_not_found"


def test_a_model_is_found_by_the_spellings_of_its_name(start: StartServer, tmp_path: Path) -> None:
    server = start("--model-path", write_tiny_model(tmp_path, "My_Tiny Model.Q4_1"))
    assert names(server) == ["my-tiny-model.q4-1"]
    for name in ("My_Tiny Model.Q4_1", "my-tiny-model", "MY-TINY-MODEL:q4_1", "my-tiny-model:latest"):
        assert server.post(CHAT, chat_body("hello", name, max_tokens=1)).json()["model"] == "my-tiny-model.q4-1"


def test_broken_files_say_why_and_stop_nothing(start: StartServer, tmp_path: Path) -> None:
    whole = write_tiny_model(tmp_path, "whole")
    content = whole.read_bytes()
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "text.gguf").write_text("this is no model")
    (tmp_path / "half-a-header.gguf").write_bytes(content[:5000])
    (tmp_path / "half.gguf").write_bytes(content[: len(content) // 2])
    (tmp_path / "boastful.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "nowhere.gguf").symlink_to("missing.gguf")
    (tmp_path / "circle.gguf").symlink_to("circle.gguf")
    server = start("--model-path", tmp_path)
    assert names(server) == ["whole"]
    assert server.chat("hello", "whole")
    entries = {entry["name"]: entry for entry in server.get("/api/models").json()["models"]}
    broken = {"empty", "text", "half-a-header", "half", "boastful", "fifo"}
    assert entries.keys() == {"whole"} | broken
    for name in broken:
        assert entries[name]["state"] == "unavailable"
        reply = server.post(CHAT, chat_body("hello", name))
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert reply.error["message"] == f"`{name}` cannot be served: {entries[name]['error']}"
        assert server.log.count(f"{name}.gguf` is not listed: {entries[name]['error']}") == 1
    for name in ("nowhere", "circle"):
        assert server.log.count(f"{name}.gguf` is passed over") == 1
    assert "Traceback" not in server.log


def test_a_model_whose_name_no_one_can_print_is_served(start: StartServer, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "source").rename(tmp_path / os.fsdecode(b"odd\xff\nname.gguf"))
    server = start("--model-path", tmp_path)
    assert names(server) == ["odd--name"]
    assert server.chat("hello", "odd--name")
    (entry,) = server.get("/api/models").json()["models"]
    assert entry["path"] == f"{tmp_path}/odd\\udcff\\nname.gguf"


def test_a_model_that_cannot_be_loaded_says_why_and_disturbs_no_other(start: StartServer, tmp_path: Path) -> None:
    content = write_tiny_model(tmp_path, "whole").read_bytes()
    length = struct.pack("<Q", 5)
    (tmp_path / "odd.gguf").write_bytes(content.replace(length + b"llama", length + b"lambo", 1))  # its architecture
    server = start("--model-path", tmp_path)
    assert names(server) == ["odd", "whole"]
    text = server.chat("hello", "whole")
    for _ in range(2):
        reply = server.post(CHAT, chat_body("hello", "odd"))
        assert reply.status == 503
        assert reply.error["code"] == "model_unavailable"
        assert "lambo" in reply.error["message"]
        assert server.chat("hello", "whole") == text
    assert len(server.workers()) == 1
    assert server.metric("shimmy_worker_deaths_total", "odd") == 0


def test_a_model_in_shards_is_one_model(start: StartServer, tmp_path: Path, server: Server) -> None:
    write_tiny_model(tmp_path, "beta", seed=1, n_shards=3)
    in_shards = start("--model-path", tmp_path)
    assert names(in_shards) == ["beta"]
    assert in_shards.chat("hello", "beta") == server.chat("hello", "beta")


def test_a_model_folder_is_only_read(start: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    model = write_tiny_model(folder, "alpha")
    model.chmod(0o444)
    folder.chmod(0o555)
    before = [(path, path.stat()) for path in (folder, model)]
    server = start("--model-dirs", folder, "--model-path", folder)
    assert names(server) == ["alpha"]
    assert server.chat("hello")
    assert server.stop() == 0
    after = [path.stat() for path, _ in before]
    assert [(status.st_mtime_ns, status.st_size) for status in after] == [
        (status.st_mtime_ns, status.st_size) for _, status in before
    ]
    assert [*folder.iterdir()] == [model]


def test_without_an_address_the_next_free_port_is_taken(start: StartServer) -> None:
    first = start(bind="")
    second = start(bind="auto")
    assert 11435 <= first.port < second.port <= 11535
    assert names(first) == names(second)


def test_a_port_in_use_is_told_and_ends_the_program(tmp_path: Path, models: Path) -> None:
    with socket.create_server((HOST, 0)) as occupant:
        port = occupant.getsockname()[1]
        ended = run(tmp_path, "serve", "--bind", f"{HOST}:{port}", "--model-path", models)
    assert ended.returncode == 3
    assert str(port) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_server_without_models_says_how_to_get_some(start: StartServer, tmp_path: Path) -> None:
    server = start("--model-path", tmp_path)
    assert names(server) == []
    assert "--model-path" in server.log
    reply = server.post(CHAT, chat_body("hello"))
    assert reply.status == 404
    assert "no models" in reply.error["message"]


def answers(server: Server, name: str) -> str:
    """The model that answers for `name`."""
    reply = server.post(CHAT, chat_body("hello", name, max_tokens=1))
    assert reply.status == 200, reply.body
    return str(reply.json()["model"])


def test_every_listed_name_is_answered_by_its_own_file(start: StartServer, tmp_path: Path) -> None:
    """Each model was trained for another length, which says what answered."""
    files = {
        "pair.gguf": 256, "pair.gguf.gguf": 264, "Tiny_A.gguf": 272, "tiny-a.gguf": 280, "-dash.gguf": 288,
        "a:b@c#d?.gguf": 296, unicodedata.normalize("NFD", "Modèle é.gguf"): 304, "50%41.gguf": 312,
    }  # fmt: skip
    folder = tmp_path / "models"
    folder.mkdir()
    for seed, (name, n_ctx_train) in enumerate(files.items()):
        write_tiny_model(folder, "source", seed=seed, n_ctx_train=n_ctx_train).rename(folder / name)
    server = start("--model-path", folder, "--alias", f"{unicodedata.normalize('NFD', 'été')}=pair.gguf")
    listed = {model["id"]: model["meta"]["n_ctx_train"] for model in server.get("/v1/models").json()["data"]}
    assert listed == {
        "pair": 256, "pair.gguf": 264, "tiny-a@models": 272, "tiny-a": 280, "-dash": 288, "a:b@c#d?": 296,
        "modèle-é": 304, "50%41": 312, "été": 264,
    }  # fmt: skip
    for name, n_ctx_train in listed.items():
        assert answers(server, name) == (name if name != "été" else "pair.gguf")
        path = quote(name, safe="")
        assert server.get(f"/v1/models/{path}").json()["meta"]["n_ctx_train"] == n_ctx_train
        assert server.get(f"/api/models/{path}/status").json()["n_ctx_train"] == n_ctx_train
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    for form in forms:
        assert answers(server, unicodedata.normalize(form, "Modèle É")) == "modèle-é"
    assert answers(server, "Tiny_A") == "tiny-a@models"


def test_a_name_in_service_keeps_its_weights_and_links_are_names(start: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "m").mkdir(parents=True)
    (folder / "a").mkdir()
    qwen = write_tiny_model(folder / "m", "qwen")
    server = start("--model-path", folder, folder=tmp_path / "server")
    text = server.chat("hello", "qwen")
    (worker,) = server.workers()
    (folder / "a" / "gpt-4.gguf").symlink_to(qwen)
    write_tiny_model(tmp_path, "qwen", seed=1).rename(folder / "a" / "qwen.gguf")
    wait_for("the link and the other file", lambda: set(names(server)) == {"qwen", "gpt-4", "qwen@a"})
    assert server.chat("hello", "qwen") == server.chat("hello", "gpt-4") == text != server.chat("hello", "qwen@a")
    assert worker in server.workers()
    assert "shimmy_swaps_total{" not in server.get("/metrics").body.decode()
    assert server.stop() == 0
    server = start("--model-path", folder, folder=tmp_path / "server")
    assert set(names(server)) == {"qwen", "gpt-4", "qwen@a"}
    assert server.chat("hello", "qwen") == text, "after a restart, too"


def test_the_hubs_cache_is_found_and_its_current_revision_is_served(start: StartServer, tmp_path: Path) -> None:
    home = tmp_path / "caches"
    repository = home / "huggingface" / "hub" / "models--Some-Org--Tiny-GGUF"
    for seed, revision in enumerate(("a" * 40, "b" * 40)):
        snapshot = repository / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir(exist_ok=True)
        blob = write_tiny_model(tmp_path, "tiny", seed=seed).rename(repository / "blobs" / str(seed))
        (snapshot / "Tiny-Q8_0.gguf").symlink_to(f"../../blobs/{blob.name}")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("b" * 40)
    server = start("--model-path", repository.parent)
    assert names(server) == ["tiny-q8-0", f"tiny-q8-0@{'a' * 40}"]
    texts = [server.chat("hello", name) for name in names(server)]
    assert server.chat("hello", "Some-Org/Tiny-GGUF") == server.chat("hello", "some-org/tiny-gguf:q8_0") == texts[0]
    (repository / "refs" / "main").write_text("a" * 40)
    wait_for("the other revision", lambda: names(server) == ["tiny-q8-0", f"tiny-q8-0@{'b' * 40}"])
    wait_for("the swap", lambda: server.chat("hello", "tiny-q8-0") == texts[1])


def test_changes_behind_links_and_of_rights_are_seen_at_once(start: StartServer, tmp_path: Path) -> None:
    """Ten seconds are less than the slow poll takes."""
    folder, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    (folder / "linked").symlink_to(elsewhere)
    target = write_tiny_model(tmp_path, "target")
    (folder / "first.gguf").symlink_to(target)
    server = start("--model-path", folder)
    assert names(server) == ["first"]
    write_tiny_model(elsewhere, "second", seed=1)
    wait_for("a file in a linked folder", lambda: "second" in names(server), 10)
    target.rename(tmp_path / "aside")
    wait_for("the target to be gone", lambda: "first" not in names(server), 10)
    (tmp_path / "aside").rename(target)
    wait_for("the target", lambda: "first" in names(server), 10)


def test_what_is_still_being_downloaded_is_served_when_its_mark_is_gone(start: StartServer, tmp_path: Path) -> None:
    mark = tmp_path / "big.gguf.aria2"
    mark.touch()
    write_tiny_model(tmp_path, "big")
    server = start("--model-path", tmp_path)
    reply = server.post(CHAT, chat_body("hello", "big"))
    assert (reply.status, names(server)) == (404, [])
    assert (
        "`big` cannot be served: it is still being downloaded: `big.gguf.aria2` lies beside it"
        in reply.error["message"]
    )
    mark.unlink()
    wait_for("the whole file", lambda: names(server) == ["big"], 10)
    assert server.chat("hello", "big")


def test_a_server_whose_only_file_is_damaged_says_so_and_suggests_nothing(
    start: StartServer, tmp_path: Path, models: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((models / "alpha.gguf").read_bytes()[:3000])
    server = start("--model-path", damaged)
    assert "serves 0 models on " in server.log
    assert f"`{damaged}` is not listed: " in server.log
    assert "nothing that was found can be served: the reasons are above" in server.log
    assert "shimmy pull" not in server.log
