"""The GitHub Action and the GitLab template: their steps run in a shell, as the runners run them, cold and cached."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.e2e.harness import PROMPTS, ROOT, chat_body
from tests.e2e.processes import DEADLINE_S
from tests.packaging.action_runner import Runner
from tests.packaging.web import FILES, Web, publish, published

ACTION = ROOT / "action.yml"
MODEL = "alpha.gguf"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, frozen_file: Path, models: Path) -> Iterator[Web]:
    """A release of the file under test, and a model."""
    folder = tmp_path_factory.mktemp("web")
    publish(folder, frozen_file)
    for path in (models / MODEL, ROOT / "install.sh"):
        shutil.copy(path, folder)
    with published(folder) as web:
        yield web


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[[str], Runner]]:
    """Makes machines for jobs, each with a home of its own, which share a cache."""
    runners = []

    def begin(name: str) -> Runner:
        (tmp_path / name).mkdir()
        runners.append(Runner(ACTION, tmp_path / name, tmp_path / "caches"))
        return runners[-1]

    yield begin
    for runner in runners:
        runner.shell("if command -v shimmy; then shimmy stop --all; fi")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def chat(base_url: str, model: str) -> str:
    address = urlsplit(base_url)
    connection = HTTPConnection(str(address.hostname), address.port or 0, timeout=DEADLINE_S)
    body = json.dumps(chat_body(PROMPTS[0], model, max_tokens=4))
    connection.request("POST", f"{address.path}/chat/completions", body)
    reply = json.loads(connection.getresponse().read())
    connection.close()
    text: str = reply["choices"][0]["message"]["content"]
    return text


def is_alive(base_url: str) -> bool:
    address = urlsplit(base_url)
    try:
        HTTPConnection(str(address.hostname), address.port or 0, timeout=DEADLINE_S).connect()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.frozen
def test_the_action_starts_a_server_cold_and_from_the_cache(
    web: Web, models: Path, job: Callable[[str], Runner]
) -> None:
    inputs = {"model": f"{web.url}/{MODEL}?download=1", "sha256": sha256(models / MODEL), "download_url": web.url}
    args = "--bind 127.0.0.1:0 --alias 'gpt-*=alpha' --threads 1"
    for name, n_downloads in (("cold", 1), ("cached", 0)):
        web.asked.clear()
        runner = job(name)
        use = runner.use(**inputs, args=args)
        assert use.is_ok, runner.log
        assert web.asked.count(f"/{MODEL}?download=1") == n_downloads
        base_url = use.outputs["base-url"]
        assert base_url.endswith("/v1")
        assert runner.environment["OPENAI_BASE_URL"] == base_url
        assert runner.environment["OPENAI_API_KEY"] == "none"
        assert use.outputs["model"] == "alpha"
        assert chat(base_url, "gpt-4") == chat(base_url, use.outputs["model"])
        assert "alpha" in runner.shell("shimmy ps --url ${OPENAI_BASE_URL%/v1}").stdout, "later steps have the program"
        assert runner.use(stop="true").is_ok, runner.log
        assert not is_alive(base_url)
        assert "shutting down" in runner.log, "the log is shown"


@pytest.mark.frozen
def test_the_action_takes_a_model_of_the_workspace(web: Web, models: Path, job: Callable[[str], Runner]) -> None:
    runner = job("job")
    shutil.copy(models / MODEL, runner.home)
    runner.environment["OPENAI_API_KEY"] = "a key of the job"
    use = runner.use(model=MODEL, download_url=web.url, args="--bind 127.0.0.1:0")
    assert use.is_ok, runner.log
    assert runner.environment["OPENAI_API_KEY"] == "a key of the job"
    assert runner.use(stop="true").is_ok


@pytest.mark.frozen
def test_the_action_shows_the_log_when_the_model_cannot_be_loaded(
    web: Web, tmp_path: Path, models: Path, job: Callable[[str], Runner]
) -> None:
    content = (models / MODEL).read_bytes()
    (tmp_path / "damaged.gguf").write_bytes(content[: len(content) - 1000])
    runner = job("job")
    use = runner.use(model=str(tmp_path / "damaged.gguf"), download_url=web.url, args="--bind 127.0.0.1:0", wait="20")
    assert not use.is_ok
    assert "::group::Log of Shimmy" in runner.log
    assert runner.use(stop="true").is_ok, "the server that has started can be stopped"


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"model": "https://127.0.0.1/x.gguf"}, "needs `sha256`"),
        ({"model": "https://127.0.0.1/x.gguf", "sha256": "abc"}, "needs `sha256`"),
        ({"model": "missing.gguf"}, "There is no model `missing.gguf`"),
        ({}, "There is no model ``"),
    ],
)
def test_the_action_says_what_is_wrong_with_its_inputs(
    job: Callable[[str], Runner], inputs: dict[str, str], reason: str
) -> None:
    runner = job("job")
    assert not runner.use(**inputs).is_ok
    assert "::error::" in runner.log
    assert reason in runner.log


def test_the_action_refuses_a_model_that_is_another_one(job: Callable[[str], Runner], tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / MODEL).write_bytes(b"another model")
    with published(tmp_path / "web") as web:
        runner = job("job")
        assert not runner.use(model=f"{web.url}/{MODEL}", sha256="0" * 64).is_ok
    assert "does not have the sha256" in runner.log
    assert not list(runner.home.rglob(MODEL))


@pytest.mark.frozen
def test_the_gitlab_template_starts_a_server_cold_and_from_the_cache(web: Web, tmp_path: Path, models: Path) -> None:
    (template,) = yaml.safe_load((ROOT / "packaging/gitlab/shimmy.gitlab-ci.yml").read_text()).values()
    variables = template["variables"] | {
        "MODEL_URL": f"{web.url}/{MODEL}", "MODEL_SHA256": sha256(models / MODEL), "SHIMMY_BASE_URL": web.url,
        "SHIMMY_OPTIONS": "--bind 127.0.0.1:0 --threads 1",
    }  # fmt: skip
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **variables}

    def run(lines: list[str]) -> str:
        return subprocess.run(
            ["sh", "-e", "-c", "\n".join(lines)], env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip

    script = ['curl -fsS "$OPENAI_BASE_URL/models/$SHIMMY_MODEL"']
    for n_downloads in (2, 0):  # the program and the model
        web.asked.clear()
        try:
            assert '"id":"alpha"' in run([*template["before_script"], *script]).replace('": "', '":"')
        finally:
            log = run(template["after_script"])
        assert "shutting down" in log
        assert len([path for path in web.asked if path.endswith((MODEL, FILES[platform.machine()]))]) == n_downloads
