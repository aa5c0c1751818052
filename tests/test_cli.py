"""The command line: what it understands, what it prints, and how it ends. No server and no engine runs here."""

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from shimmy import __main__ as entry
from shimmy import __version__, cli, generation, server
from shimmy import arguments as typed
from shimmy.arguments import argument_parser
from shimmy.commands import contents
from shimmy.commands.terminal.amounts import size
from shimmy.config import OPTIONS, Config
from shimmy.engine.cpu_variants.variants import VARIANTS
from shimmy.errors import BadRequest, ModelUnavailable, ShimmyError
from shimmy.messages.event import Accepted, JobOutput
from shimmy.messages.model_info import Adapter
from shimmy.messages.request import ChatPrompt, Message, TextPrompt
from shimmy.option_kinds import Bind
from shimmy.pool import pool
from shimmy.system.frozen_program import UnpackedFolder
from shimmy.wire.worker_options import WorkerOptions
from shimmy.workers import spawn
from shimmy.workers.worker_client import Hooks, WorkerClient
from tests.fakes import SCRIPT, FakeWorker
from tests.tiny_models import write_tiny_model
from tools.portable.expected_contents import PACKAGES
from tools.steps import ROOT

TEXT = 'Hello "é"\n'


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours is set."""
    for name in list(os.environ):
        if name.startswith("SHIMMY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Worker(FakeWorker):
    """A worker that a pool can end."""

    name = "tiny"
    n_jobs = 0
    is_alive = True
    is_closed = False
    options: WorkerOptions

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Every command gets this worker and not a process."""
    worker = Worker(SCRIPT)

    async def start(name: str, options: WorkerOptions, hooks: Hooks) -> WorkerClient:
        assert name == "tiny"
        assert callable(hooks.on_death)
        worker.options = options
        return cast("WorkerClient", worker)

    monkeypatch.setattr(pool, "Pool", partial(pool.Pool, start=start))
    return worker


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The Configs that `serve` would have run a server with."""
    configs: list[Config] = []

    def serve(config: Config, home: UnpackedFolder, announce: object, _show: object) -> None:
        assert isinstance(home, UnpackedFolder)
        assert announce is None
        configs.append(config)

    monkeypatch.setattr(server, "serve", serve)
    return configs


def usage_error(*arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in argument_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


# -- what it understands ---------------------------------------------------------------------------------------------


def test_no_command_is_wrong_usage_and_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(name in printed.err for name in ("serve", "list", "probe", "generate", "bench", "version"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"], ["serve", "--dance"], ["serve", "extra"], ["probe"], ["generate", "tiny"],
        ["generate", "--prompt", "hi"], ["generate", "tiny", "--prompt", "hi", "--max-tokens", "0"],
        ["generate", "tiny", "hi", "--prompt", "hi"], ["generate", "tiny", "hi", "there"], ["help", "dance"],
        ["generate", "tiny", "--threads", "1", "hi", "there"], ["list", "tiny"], ["completion", "dish"],
        ["generate", "tiny", "--prompt", "hi", "--max-tokens", "many"], ["list", "--parallel", "3"],
        ["bench"], ["bench", "tiny", "-p", "-1"], ["bench", "tiny", "-r", "0"],
        ["bench", "tiny", "--sequences", "1,,2"], ["bench", "tiny", "--sequences", "257"],
        ["bench", "tiny", "--no-speculation"], ["health", "--wait", "soon"],
        ["health", "--bind", ":1", "--url", "http://localhost"], ["health", "--model"],
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    usage_error(*arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error: " in printed.err
    assert "invalid _" not in printed.err  # a name of ours


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_a_flag_of_serve_with_its_help(option: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "--help"])
    assert caught.value.code == 0
    help_text = " ".join(capsys.readouterr().out.split())
    assert f"{option.flag} {option.metavar}".rstrip() in help_text
    assert option.help in help_text


@pytest.mark.parametrize("name", ["serve", "list", "probe", "generate", "bench", "health", "version", "gpu-info"])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: shimmy {name}" in capsys.readouterr().out
    assert name in commands()


def test_help_begins_with_what_is_a_commands_own(capsys: pytest.CaptureFixture[str]) -> None:
    usage_error("run")
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: shimmy run [OPTIONS] NAME [TEXT ...]"
    assert error.endswith("the following arguments are required: NAME")
    with pytest.raises(SystemExit):
        cli.main(["rm", "--help"])
    texts = capsys.readouterr().out.partition("positional arguments")[2]
    assert texts.index("--yes") < texts.index("options as for `serve`:") < texts.index("--model-path")


def test_help_and_version_are_words_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for arguments in (["--help"], ["help"], ["bench", "--help"], ["help", "bench"], ["--version"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2] == printed[3]
    assert printed[4] == f"shimmy {__version__}\n"


def test_a_place_without_a_model_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.html").write_text("<html>")
    assert cli.main(["probe", "missing.gguf"]) == 1
    assert capfd.readouterr().err == "shimmy: there is no file `missing.gguf`\n"
    assert cli.main(["probe", "page.html"]) == 1
    assert capfd.readouterr().err == "shimmy: `page.html` cannot be served: it has 6 bytes, too few for a GGUF file\n"


def test_a_file_alone_is_served(
    served: list[Config], path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(path.parent)
    assert cli.main([path.name, "--parallel", "3"]) == 0
    assert cli.main([str(path.parent), str(path)]) == 0
    assert [config.model_paths for config in served] == [(path,), (path.parent, path)]
    assert served[0].n_sequences == 3
    assert cli.main(["missing.gguf"]) == 2
    assert capsys.readouterr().err == "shimmy: there is no file `missing.gguf`\n"
    assert len(served) == 2


def test_a_model_file_has_to_be_there_and_a_folder_may_come(
    served: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("missing.gguf", "missing.GGUF"):
        assert cli.main(["serve", "--model-path", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err == f"shimmy: --model-path: there is no file `{tmp_path / name}`\n"
    assert cli.main(["serve", "--model-path", str(tmp_path / "missing")]) == 0
    assert [config.model_paths for config in served] == [(tmp_path / "missing",)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["srve"], "there is no command `srve`: did you mean `serve`?"),
        (["dance"], "there is no command `dance`: `shimmy help` lists them"),
        (["chat"], "there is no command `chat`: did you mean `run`?"),
        (["ls"], "there is no command `ls`: did you mean `list`?"),
        (["serve", "m.gguf"], "unrecognized arguments: m.gguf: did you mean `--model-path m.gguf`?"),
        (["help", "genrate"], "there is no command `genrate`: did you mean `generate`?"),
        (["serve", "--modle-path", "x"], "unrecognized arguments: --modle-path x: did you mean `--model-path`"),
        (["list", "--parallel=3"], "unrecognized arguments: --parallel=3: `--parallel` is for `serve`"),
        (["serve", "--gpu", "1"], "unrecognized arguments: --gpu 1: did you mean `--rpc` or `--gpu-layers`?"),
        (["serve", "--no-device"], "unrecognized arguments: --no-device: did you mean `--device`"),
        (["serve", "--port=80"], "unrecognized arguments: --port=80: did you mean `--bind HOST:PORT|auto`?"),
        (["serve", "-m", "x"], "unrecognized arguments: -m x: did you mean `--model-path FILE_OR_DIR`?"),
        (["serve", "-ngl", "9"], "unrecognized arguments: -ngl 9: did you mean `--gpu-layers auto|all|N`?"),
        (["run", "x", "--temperature", "1"], "unrecognized arguments: --temperature 1: did you mean `--temp T`?"),
        (["convert", "x", "--type", "q8"], "argument --type: must be one of f32, bf16, "),
        (["list", "-ngl", "9"], "unrecognized arguments: -ngl 9\n"),
        (["list", "--quite"], "unrecognized arguments: --quite\n"),
        (["--verison"], "unrecognized arguments: --verison: did you mean `--version`?"),
        (["-v"], "unrecognized arguments: -v"),
        (["--model-path", "x", "serve"], "`--model-path` stands behind a command, as in `shimmy serve --model-path`"),
    ],
)
def test_what_was_mistyped_is_guessed(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    usage_error(*arguments)
    assert f"error: {told}" in capsys.readouterr().err


def test_commands_of_other_programs_are_answered_with_ours() -> None:
    commands = typed._commands_of(typed.argument_parser())
    for theirs, ours in typed._COMMANDS_ELSEWHERE.items():
        assert theirs not in commands
        assert ours.split()[0] in commands


def test_values_and_keys_that_were_mistyped_are_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shimmy.toml").write_text("modell_path = 1")
    for arguments, told in (
        (["--safetensors-type", "q4_km"], "; did you mean `q4_k_m`"),
        (["--config", str(tmp_path / "shimmy.toml")], "unknown keys: modell_path; did you mean `model_path`"),
    ):
        assert cli.main(["serve", *arguments]) == 2
        assert told in capsys.readouterr().err


def test_flags_reach_the_server(served: list[Config]) -> None:
    code = cli.main(
        [
            "serve", "--bind", "0.0.0.0:80", "--model-path", "/a", "--model-path", "/b", "--model-dirs", "/c:/d",
            "--parallel", "5", "--no-metrics", "--api-key", "one", "--api-key", "two", "--temp", "0.5", "--seed", "3",
        ]
    )  # fmt: skip
    assert code == 0
    (config,) = served
    assert config.bind == Bind("0.0.0.0", 80)
    assert config.model_paths == (Path("/a"), Path("/b"))
    assert config.model_dirs == (Path("/c"), Path("/d"))
    assert (config.n_sequences, config.metrics, config.api_keys) == (5, False, ("one", "two"))
    assert (config.sampling.temperature, config.sampling.seed) == (0.5, 3)


def test_the_last_switch_wins(served: list[Config]) -> None:
    cli.main(["serve", "--metrics", "--no-metrics"])
    cli.main(["serve", "--no-metrics", "--metrics"])
    assert [config.metrics for config in served] == [False, True]


def test_a_flag_beats_the_environment_and_that_the_file(
    served: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shimmy.toml"
    file.write_text('parallel = 1\nthreads = 1\nctx_size = 64\nmodel_path = ["/a", "/b"]\nmetrics = false\n')
    monkeypatch.setenv("SHIMMY_PARALLEL", "2")
    monkeypatch.setenv("SHIMMY_THREADS", "2")
    cli.main(["serve", "--config", str(file), "--parallel", "3"])
    (config,) = served
    assert (config.n_sequences, config.n_threads, config.n_ctx) == (3, 2, 64)
    assert config.model_paths == (Path("/a"), Path("/b"))
    assert not config.metrics


@pytest.mark.parametrize("content", [None, b"parallel = ", b"\xff", b"modell = 1", b"parallel = 0"])
def test_a_bad_configuration_file_is_wrong_usage(
    content: bytes | None, tmp_path: Path, served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "shimmy.toml"
    if content is not None:
        file.write_bytes(content)
    assert cli.main(["serve", "--config", str(file)]) == 2
    assert capsys.readouterr().err.startswith("shimmy: ")
    assert served == []


def test_a_bad_value_is_wrong_usage_and_names_the_flag(
    served: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--parallel", "0"]) == 2
    assert capsys.readouterr().err.startswith("shimmy: --parallel: must be between 1 and 256")
    assert served == []


def test_a_worker_gets_ready_while_a_server_starts_that_will_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "worker_command", lambda _fd, _name: ["sh", "-c", "exec sleep 60"])
    ahead: list[int] = []
    monkeypatch.setattr(server, "serve", lambda _config, _home, _announce, _show: ahead.append(len(spawn._ahead)))
    assert cli.main(["serve", "--preload", "some"]) == 0
    assert cli.main(["serve"]) == 0
    assert ahead == [1, 0]
    assert not spawn._ahead


@pytest.mark.parametrize(
    ("command", "n_ahead"), [("generate", 1), ("probe", 1), ("bench", 1), ("list", 0), ("serve", 0), ("version", 0)]
)
def test_a_command_that_needs_a_worker_starts_it_first(
    command: str, n_ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "worker_command", lambda _fd, _name: ["sh", "-c", "exec sleep 60"])
    monkeypatch.setattr(cli, "main", lambda _arguments: 5 + len(spawn._ahead))
    monkeypatch.setattr(sys, "argv", ["shimmy", command])
    assert entry.main() == 5 + n_ahead
    assert not spawn._ahead


def test_an_address_in_use_is_could_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(_config: Config, _home: UnpackedFolder, _announce: object, _show: object) -> None:
        raise server.BindError("cannot listen on 127.0.0.1, port 80")

    monkeypatch.setattr(server, "serve", serve)
    assert cli.main(["serve"]) == 3
    assert capsys.readouterr().err == "shimmy: cannot listen on 127.0.0.1, port 80\n"


# -- what it logs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "variable", "level"),
    [
        (["serve"], None, logging.INFO), (["version"], None, logging.WARNING), (["serve"], "error", logging.ERROR),
        (["list", "--log-level", "debug"], None, logging.DEBUG), (["list"], "debug", logging.DEBUG),
        (["list", "--log-level", "error"], "debug", logging.ERROR),
    ],
)  # fmt: skip
def test_a_command_is_quieter_than_a_server_unless_told_otherwise(
    arguments: list[str], variable: str | None, level: int, served: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("SHIMMY_LOG_LEVEL", variable)
    assert cli.main(arguments) == 0
    assert logging.getLogger().level == level
    assert len(served) == (arguments == ["serve"])


# -- what it prints --------------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"shimmy {__version__}\n"
    assert cli.main(["version", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["version"], fields["frozen"], fields["build"]) == (__version__, False, None)
    assert fields["python"] == platform.python_version()
    assert fields["machine"] == platform.machine()


def test_what_is_inside_is_what_the_frozen_file_may_hold() -> None:
    found = contents.contents()
    names = {name.replace("-", "_") for name in found["packages"]}
    assert names == PACKAGES - {"llama_cpp", "shimmy"} | {"llguidance"}
    assert set(found["engine"]["cpu_variants"]) <= {name for name, _ in VARIANTS}
    pinned = (ROOT / "pyproject.toml").read_text("utf-8")
    for name, version in {"llama-cpp-python": found["engine"]["llama_cpp_python"], **found["packages"]}.items():
        assert f'"{name}=={version}"' in pinned


def test_list_is_a_table_for_people(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--model-path", str(path)]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "ARCHITECTURE", "TYPE", "PARAMETERS", "SIZE", "CONTEXT", "CHANGED"]
    assert line.split()[:7] == ["tiny", "llama", "F32", "157.6K", size(path.stat().st_size).split()[0], "KB", "512"]
    assert line.endswith(("ago", "just now"))
    assert head.index("ARCHITECTURE") == line.index("llama")
    assert head.index("CONTEXT") + len("CONTEXT") == line.index("512") + len("512"), "numbers end at the right edge"
    assert "\x1b" not in head, "no terminal, no colour"


def test_a_person_is_told_what_may_come_next(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cli.main(["list", "--model-path", str(path)]) == 0
    assert capsys.readouterr().err == "", "a program is not told"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    for place, told in ((path, "`shimmy run NAME` talks"), (empty, "`shimmy pull OWNER/NAME` fetches")):
        assert cli.main(["list", "--model-path", str(place)]) == 0
        assert told in capsys.readouterr().err


def test_list_is_json_for_scripts(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--model-dirs", str(path.parent), "--json"]) == 0
    (fields,) = json.loads(capsys.readouterr().out)
    assert fields == {
        "name": "tiny", "path": str(path), "size_bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns,
        "architecture": "llama", "quantization": "F32", "n_params": 157632, "n_ctx_train": 512,
        "has_chat_template": True, "is_embedding": False, "adapters": [], "aliases": [], "projector": None,
        "notices": [],
    }  # fmt: skip


def test_without_a_server_discover_looks_by_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (path.parent / "broken.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("SHIMMY_BIND", "127.0.0.1:9")
    monkeypatch.setenv("SHIMMY_MODEL_PATH", str(path.parent))
    assert cli.main(["discover", "--json"]) == 0
    printed = capsys.readouterr()
    entries = {entry["name"]: entry for entry in json.loads(printed.out)}
    assert {name: entry["state"] for name, entry in entries.items()} == {"tiny": "unloaded", "broken": "unavailable"}
    assert entries["tiny"]["path"] == str(path)
    assert "no server on http://127.0.0.1:9" in printed.err
    assert cli.main(["discover", "--model-path", str(path)]) == 0
    printed = capsys.readouterr()
    assert [line.split()[:2] for line in printed.out.splitlines()] == [["NAME", "STATE"], ["tiny", "unloaded"]]
    assert "no server" not in printed.err, "it was not asked"
    assert cli.main(["discover", "--bind", "127.0.0.1:9"]) == 1
    assert cli.main(["discover", "--bind", "127.0.0.1:9", "--model-path", str(path)]) == 2


def test_a_list_of_nothing_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--model-path", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["list", "--model-path", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_probe_says_what_the_engine_found(worker: Worker, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", str(path), "--ctx-size", "99", "--cpu-variant", "sse42"]) == 0
    assert (worker.options.n_ctx, worker.options.cpu_variant) == (99, "sse42")
    assert worker.is_closed
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Name        tiny"
    assert lines[1].startswith(f"File        {path}, ")
    assert re.fullmatch(r"Model       llama, \S+ parameters, F32", lines[2])
    assert "Adapters    none" in lines
    assert any(re.fullmatch(r"Engine      CPU variant haswell, loaded in \d+\.\d s", line) for line in lines)
    assert not re.search(r"[_(){}]|None|True|False", "".join(lines[2:])), "no value as Python writes it"
    worker.facts = replace(worker.facts, adapters=(Adapter("a.gguf", 0.5),))
    assert cli.main(["probe", "tiny", "--model-path", str(path), "--lora", "a.gguf=0.5", "--json"]) == 0
    assert worker.options.lora == (("a.gguf", 0.5),)
    fields = json.loads(capsys.readouterr().out)
    assert fields["adapters"] == [{"path": "a.gguf", "scale": 0.5}]
    assert (fields["name"], fields["path"], fields["cpu_variant"], fields["n_vocab"]) == (
        "tiny", str(path), "haswell", 256
    )  # fmt: skip


@pytest.mark.parametrize("command", [["probe", "{}"], ["generate", "{}", "--prompt", "hi"]])
def test_an_unknown_model_or_a_file_that_is_none_fails(
    command: list[str], worker: Worker, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junk = path.parent / "junk.gguf"
    junk.write_bytes(b"junk")
    for name in ("tinny", str(junk)):
        assert cli.main([part.format(name) for part in command] + ["--model-path", str(path)]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert f"`{name}`" in printed.err
    assert worker.requests == []


# -- one answer without a server -------------------------------------------------------------------------------------


def test_generate_prints_the_text_as_it_comes(worker: Worker, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(
        ["generate", str(path), "--prompt", "hi", "--max-tokens", "7", "--stop", "a", "--stop", "b", "--temp", "0"]
    )
    assert code == 0
    assert capsys.readouterr().out == TEXT + "\n"
    (request,) = worker.requests
    assert request.prompt == ChatPrompt((Message("user", "hi"),))
    assert (request.n_predict, request.stop, request.sampling.temperature) == (7, ("a", "b"), 0)
    assert worker.is_closed


def test_generate_prints_one_object_for_scripts(worker: Worker, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", str(path), "--prompt", "hi", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "model": "tiny", "text": TEXT, "finish_reason": "stop", "prompt_tokens": 12, "completion_tokens": 3,
        "prompt_ms": 8.0, "predicted_ms": 30.0,
    }  # fmt: skip
    assert worker.requests[0].n_predict is None


def test_raw_text_and_models_without_a_template_are_completed(worker: Worker, path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["generate", str(path), "--prompt", "hi", "--raw"]) == 0
        worker.facts = replace(worker.facts, has_chat_template=False)
        assert cli.main(["generate", str(path), "--prompt", "hi"]) == 0
    assert [request.prompt for request in worker.requests] == [TextPrompt("hi")] * 2


@pytest.mark.parametrize(("has_template", "options"), [(True, ()), (False, ()), (False, ("--raw",))])
def test_a_person_is_told_that_a_text_was_completed(
    has_template: bool,
    options: tuple[str, ...],
    worker: Worker,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker.facts = replace(worker.facts, has_chat_template=has_template)
    command = ["generate", str(path), "hi", *options]
    assert cli.main(command) == 0
    assert capsys.readouterr().err == "", "a program is not told"
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    assert cli.main(command) == 0
    is_told = not has_template and not options
    assert ("tiny has no chat template: the text was completed" in capsys.readouterr().err) == is_told


def test_a_dash_reads_the_prompt_from_standard_input(
    worker: Worker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a long\nprompt\n"))
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["generate", str(path), "--prompt", "-", "--raw"]) == 0
    assert worker.requests[0].prompt == TextPrompt("a long\nprompt\n")


def test_the_servers_limit_of_tokens_counts_where_the_command_has_none(
    worker: Worker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIMMY_N_PREDICT", "9")
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(["generate", str(path), "--prompt", "hi"])
        cli.main(["generate", str(path), "--prompt", "hi", "--max-tokens", "2"])
    assert [request.n_predict for request in worker.requests] == [9, 2]


@pytest.mark.parametrize(
    "arguments",
    [["hi", "-n", "7"], ["-p", "hi", "-n", "7"], ["--temp", "0", "-n", "7", "hi"], ["--max-tokens=7", "--prompt=hi"]],
    ids=" ".join,
)
def test_the_prompt_stands_where_the_hand_writes_it(arguments: list[str], worker: Worker, path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["generate", str(path), *arguments]) == 0
    (request,) = worker.requests
    assert request.prompt == ChatPrompt((Message("user", "hi"),))
    assert request.n_predict == 7


def test_a_terminal_does_not_obey_a_model(
    worker: Worker, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;renamed\x07 and \x9b2J gone\r"
    worker.script = (Accepted(1), replace(SCRIPT[1], text=hostile), SCRIPT[-1])
    assert cli.main(["generate", str(path), "hi"]) == 0
    assert capsys.readouterr().out == hostile + "\n", "a program gets the text as it is"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["generate", str(path), "hi"]) == 0
    assert capsys.readouterr().out == "\u241b]0;renamed\u2407 and \ufffd2J gone\n"


# -- how fast it is --------------------------------------------------------------------------------------------------


def test_bench_is_a_table_for_people(worker: Worker, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(path), "-p", "12", "-n", "3", "--sequences", "1,2", "-r", "2", "--threads", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "", "no terminal, no bar"
    lines = printed.out.splitlines()
    assert lines[:2] == [f"tiny, F32, {size(path.stat().st_size)}, 157.6K parameters", "1 thread, CPU variant haswell"]
    assert lines[3].split() == ["TEST", "TOKENS/S"]
    assert [line.rsplit("  ", 1)[0].strip() for line in lines[4:]] == ["pp12", "tg3", "tg3 x 2"]
    assert all(re.search(r"[1-9]\d*\.\d\d ± \d+\.\d\d$", line) for line in lines[4:])
    assert not worker.options.speculate
    assert worker.options.n_threads == 1
    assert worker.is_closed


def test_bench_draws_bars_in_a_terminal_and_a_picture(
    worker: Worker, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", str(path), "-p", "12", "-n", "3", "--sequences", "1", "-r", "2", "--plot"]
    picture = tmp_path / "speed.svg"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main([*command, str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(line.count("█") for line in lines) == 30
    drawn = ET.fromstring(picture.read_text())
    assert [element.text for element in drawn.iter() if element.text and "± " in element.text]
    assert cli.main([*command, str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert worker.is_closed


def test_bench_is_json_for_scripts(worker: Worker, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(path), "-p", "0", "-n", "3", "--sequences", "40", "-r", "2", "--json"]) == 1
    assert "`tg3 x 40` takes 40 sequences, there are 4" in capsys.readouterr().err
    assert worker.options.n_sequences == 40, "it was asked for as many"
    assert cli.main(["bench", str(path), "-p", "0", "-n", "3", "--sequences", "2", "-r", "2", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["name"], fields["cpu_variant"]) == ("tiny", "haswell")
    (result,) = fields["results"]
    assert (result["test"], result["n_prompt"], result["n_gen"], result["n_sequences"]) == ("tg3 x 2", 0, 3, 2)
    assert len(result["samples"]) == 2
    assert min(result["samples"]) <= result["tokens_per_s"] <= max(result["samples"])


def test_a_bench_of_nothing_is_wrong_usage(worker: Worker, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(path), "-p", "0", "-n", "0"]) == 2
    assert "--n-prompt and --n-gen are both 0" in capsys.readouterr().err
    assert worker.requests == []


def test_a_terminal_sees_a_bar_that_fills(
    worker: Worker, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["bench", str(path), "-p", "12", "-n", "3", "--sequences", "1", "-r", "1"]) == 0
    shown = [int(percent) for percent in re.findall(r"\r\x1b\[Kmeasuring \[#* *\] +(\d+) %", capsys.readouterr().err)]
    assert shown == sorted(set(shown))
    assert shown[-1] == 100
    assert len(shown) > 3
    assert worker.is_closed


@pytest.mark.parametrize(
    ("script", "out"),
    [((BadRequest("no such thing"),), ""), ((Accepted(1), SCRIPT[1], ModelUnavailable("no such thing")), "Hel")],
)
def test_an_error_ends_with_1_and_goes_to_stderr(
    script: tuple[JobOutput | ShimmyError, ...],
    out: str,
    worker: Worker,
    path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker.script = script
    assert cli.main(["generate", str(path), "--prompt", "hi"]) == 1
    printed = capsys.readouterr()
    assert printed.out == out
    assert printed.err.strip().endswith("shimmy: no such thing")
    assert worker.is_closed


def test_an_interrupt_ends_with_a_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_config: Config, _home: UnpackedFolder, _announce: object, _show: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve", interrupt)
    assert cli.main(["serve"]) == 130
    assert capsys.readouterr().err == "shimmy: interrupted\n"


def test_an_interrupt_before_the_command_began_is_a_line_too() -> None:
    lines = (
        "import os, sys",
        "from shimmy import __main__, cli",
        "cli.main = lambda _: os.kill(os.getpid(), 2)",
        "sys.exit(__main__._command_line())",
    )
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ended.returncode, ended.stderr) == (130, "shimmy: interrupted\n")


@pytest.mark.parametrize(
    ("options", "out"), [((), "Hel\n"), (("--json",), '{"text": "Hel", "finish_reason": "interrupted"}\n')]
)
def test_an_interrupt_keeps_the_text_so_far(
    options: tuple[str, ...],
    out: str,
    worker: Worker,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def interrupted(*_: object) -> AsyncIterator[JobOutput]:
        yield SCRIPT[1]
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "generate", interrupted)
    assert cli.main(["generate", str(path), "hi", *options]) == 130
    assert capsys.readouterr() == (out, "shimmy: interrupted\n")
    assert worker.is_closed


def test_a_reader_that_has_seen_enough_ends_it_quietly(
    worker: Worker, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class ClosedPipe(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", ClosedPipe())
    assert cli.main(["generate", str(path), "--prompt", "hi"]) == 1
    assert capsys.readouterr().err == ""
    assert worker.is_closed


@pytest.mark.parametrize("arguments", [["generate", "PATH", "hi"], ["list"], ["help", "serve"], ["serve", "--help"]])
def test_a_full_disk_behind_the_output_is_told_in_a_line(
    arguments: list[str],
    worker: Worker,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open(os.open("/dev/full", os.O_WRONLY), "w", closefd=False) as full:
        monkeypatch.setattr("sys.stdout", full)
        assert cli.main([str(path) if word == "PATH" else word for word in arguments]) == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # for what the file still has to write
    assert capsys.readouterr().err.splitlines()[-1] == "shimmy: cannot write the answer: No space left on device"
    assert worker.is_closed or arguments[0] != "generate"


def test_whatever_happens_the_unpacked_folder_is_left_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bug(Exception):
        pass

    def serve(_config: Config, _home: UnpackedFolder, _announce: object, _show: object) -> None:
        raise Bug

    left: list[UnpackedFolder] = []

    def leave(home: UnpackedFolder) -> None:
        left.append(home)

    monkeypatch.setattr(UnpackedFolder, "leave", leave)
    monkeypatch.setattr(server, "serve", serve)
    with pytest.raises(Bug):
        cli.main(["serve"])
    assert len(left) == 1
