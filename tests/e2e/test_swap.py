"""Files that come, change and go while the server runs: nobody's request fails, and the right model answers."""

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, Server, chat_body
from tests.e2e.processes import wait_for
from tests.ollama_store import put_in_ollama
from tests.tiny_models import write_tiny_model

N_CLIENTS = 6
N_SWAPS = 8
# The same weights behind two templates: the number of prompt tokens tells which of them answered.
TEMPLATES = {"red": "{{ messages[0]['content'] }}", "blue": "blue blue blue {{ messages[0]['content'] }}"}
PROMPT = "hello world"


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("colours")
    return {name: write_tiny_model(folder, name, chat_template=text) for name, text in TEMPLATES.items()}


@pytest.fixture
def house(start: StartServer, tmp_path: Path, colours: dict[str, Path]) -> Iterator["House"]:
    folder = tmp_path / "models"
    folder.mkdir()
    server = start("--model-path", folder)
    yield House(server, folder, colours)
    assert "Traceback" not in server.log


class House:
    """A server that watches a folder."""

    def __init__(self, server: Server, folder: Path, colours: dict[str, Path]) -> None:
        self.server = server
        self.folder = folder
        self.n_red_tokens = 0
        self._colours = colours

    def put(self, colour: str, name: str = "model") -> None:
        """Put a model in its place at once, as a rename does."""
        unfinished = self.folder / f"{name}.part"
        shutil.copyfile(self._colours[colour], unfinished)
        unfinished.rename(self.folder / f"{name}.gguf")

    @property
    def names(self) -> list[str]:
        return [model["id"] for model in self.server.get("/v1/models").json()["data"]]

    def colour(self) -> str:
        """Which model answers."""
        reply = self.server.post(CHAT, chat_body(PROMPT, "model", max_tokens=8))
        assert reply.status == 200, reply.body
        return self._colour_of(reply.json())

    def wait_for_colour(self, colour: str) -> None:
        wait_for(f"the {colour} one", lambda: self.colour() == colour)

    def whole_answer(self) -> str:
        """A longer answer, whole and from one model."""
        body = self.server.post(CHAT, chat_body(PROMPT, "model", max_tokens=48, ignore_eos=True))
        assert body.status == 200, body.body
        assert body.json()["usage"]["completion_tokens"] == 48
        return self._colour_of(body.json())

    def _colour_of(self, answer: dict[str, dict[str, int]]) -> str:
        return "blue" if answer["usage"]["prompt_tokens"] > self.n_red_tokens else "red"

    def learn(self) -> None:
        """How many tokens the red template makes of the prompt."""
        reply = self.server.post(CHAT, chat_body(PROMPT, "model", max_tokens=1))
        self.n_red_tokens = reply.json()["usage"]["prompt_tokens"]


@pytest.mark.smoke
def test_a_file_that_is_dropped_in_is_served_and_one_that_goes_is_not(house: House) -> None:
    assert house.names == []
    house.put("red")
    wait_for("the model", lambda: house.names == ["model"])
    house.learn()
    assert house.colour() == "red"
    (house.folder / "model.gguf").unlink()
    wait_for("its end", lambda: house.names == [])
    assert house.server.post(CHAT, chat_body(PROMPT, "model")).status == 404
    wait_for("the end of its worker", lambda: not house.server.workers())


def test_a_file_that_is_copied_slowly_appears_when_it_is_whole(house: House, colours: dict[str, Path]) -> None:
    content = colours["red"].read_bytes()
    piece = len(content) // 4 + 1
    with (house.folder / "model.gguf").open("wb") as file:
        for start in range(0, len(content), piece):
            assert house.names == []
            file.write(content[start : start + piece])
            file.flush()
            time.sleep(0.3)
    wait_for("the model", lambda: house.names == ["model"])


def test_a_model_is_swapped_under_load_and_no_request_fails(house: House) -> None:
    house.put("red")
    wait_for("the model", lambda: house.names == ["model"])
    house.learn()
    is_over = threading.Event()

    def ask() -> set[str]:
        seen = set()
        while not is_over.is_set():
            seen.add(house.whole_answer())
            stream = house.server.stream(PROMPT, "model", ignore_eos=True).finish()
            assert stream.is_done
            assert stream.error is None
            assert stream.finish_reason == "length"
        return seen

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        clients = [pool.submit(ask) for _ in range(N_CLIENTS)]
        try:
            for number in range(N_SWAPS):
                colour = ("blue", "red")[number % 2]
                house.put(colour)
                house.wait_for_colour(colour)
                assert [house.colour() for _ in range(3)] == [colour] * 3
        finally:
            is_over.set()
        assert all(client.result() == {"red", "blue"} for client in clients)
    wait_for("the end of the old workers", lambda: len(house.server.workers()) == 1)
    assert house.server.metric("shimmy_models_loaded") == 1


def test_rapid_rewrites_end_in_the_last(house: House) -> None:
    house.put("red")
    wait_for("the model", lambda: house.names == ["model"])
    house.learn()
    for number in range(10):
        house.put(("red", "blue")[number % 2])
        time.sleep(0.1)
    house.wait_for_colour("blue")
    time.sleep(1)
    assert house.colour() == "blue"
    wait_for("one worker", lambda: len(house.server.workers()) == 1)


@pytest.mark.parametrize("broken", [b"", b"GGUF", b"nonsense" * 1000])
def test_a_broken_file_in_its_place_leaves_the_old_one_serving(house: House, broken: bytes) -> None:
    house.put("red")
    wait_for("the model", lambda: house.names == ["model"])
    house.learn()
    (house.folder / "broken.part").write_bytes(broken)
    (house.folder / "broken.part").rename(house.folder / "model.gguf")

    def error() -> object:
        return house.server.get("/api/models/model/status").json()["error"]

    wait_for("the reason", lambda: error() is not None)
    assert house.colour() == "red"
    assert house.server.metric('shimmy_swaps_total{model="model",outcome="failed"}') == 1
    house.put("blue")
    house.wait_for_colour("blue")
    assert error() is None


def test_what_a_manifest_brings_holds_at_once_when_it_changes(start: StartServer, tmp_path: Path) -> None:
    store, name = tmp_path / "store", "registry.ollama.ai/library/tiny/latest"
    put_in_ollama(store, name, params=b'{"num_predict": 3}')
    server = start("--model-path", store)

    def n_completion() -> object:
        body = {key: value for key, value in chat_body("hello", "tiny").items() if key != "max_tokens"}
        return server.post(CHAT, body).json()["usage"]["completion_tokens"]

    assert n_completion() == 3
    worker = server.worker()
    put_in_ollama(store, name, params=b'{"num_predict": 5}')
    wait_for("the new manifest", lambda: n_completion() == 5)
    assert server.worker() == worker, "another default is no other model"


def test_a_folder_that_vanishes_and_returns(house: House) -> None:
    house.put("red")
    wait_for("the model", lambda: house.names == ["model"])
    aside = house.folder.with_name("aside")
    house.folder.rename(aside)
    wait_for("its end", lambda: house.names == [])
    aside.rename(house.folder)
    wait_for("its return", lambda: house.names == ["model"])


def test_an_idle_model_is_unloaded_and_loaded_again_when_asked_for(start: StartServer) -> None:
    server = start("--keep-alive", "1")
    server.chat("hello")
    assert len(server.workers()) == 1
    wait_for("the worker's end", lambda: not server.workers() and not server.metric("shimmy_models_loaded"))
    assert server.metric("shimmy_worker_deaths_total", "alpha") == 0
    server.chat("hello")


def test_a_request_says_how_long_its_model_is_kept(start: StartServer) -> None:
    server = start()
    server.chat("hello", keep_alive="1h")
    status = server.get("/api/models/alpha/status").json()
    assert (status["state"], status["keep_alive_s"]) == ("ready", 3600)
    server.chat("hello", keep_alive=0)
    wait_for("the worker's end", lambda: not server.workers())
    assert server.get("/api/models/alpha/status").json()["state"] == "unloaded"
