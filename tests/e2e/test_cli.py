"""The commands that need no server: what they print where, and how they end."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import FROZEN_FILE, PROGRAM, PROMPTS, STEADY_SEED, Server, environment, run
from tests.e2e.processes import DEADLINE_S
from tests.e2e.terminal import CTRL_C, in_terminal, plain
from tests.tiny_models import write_tiny_model


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Every command runs in `tmp_path`, which is also its folder for temporary files."""
    yield
    assert not list(tmp_path.glob("_MEI*"))


def test_version(tmp_path: Path, server: Server) -> None:
    plain, as_json = run(tmp_path, "version"), run(tmp_path, "version", "--json")
    version = server.get("/version").json()["version"]
    assert plain.stdout == f"shimmy {version}\n"
    fields = json.loads(as_json.stdout)
    assert fields["version"] == version
    assert fields["frozen"] == (FROZEN_FILE is not None)
    assert fields["build"] == (hashlib.sha256(Path(PROGRAM[-1]).read_bytes()).hexdigest() if FROZEN_FILE else None)
    assert {"llama_cpp_python", "llama_cpp", "cpu_variants"} == fields["engine"].keys()
    assert fields["packages"]["starlette"]
    assert plain.stderr == as_json.stderr == ""
    assert run(tmp_path, "--version").stdout == plain.stdout


def test_list(tmp_path: Path, models: Path) -> None:
    plain = run(tmp_path, "list", "--model-path", models)
    assert [line.split()[0] for line in plain.stdout.splitlines()] == ["NAME", "alpha", "beta"]
    listed = json.loads(run(tmp_path, "list", "--json", "--model-path", models).stdout)
    assert [model["name"] for model in listed] == ["alpha", "beta"]
    assert listed[0]["path"] == str(models / "alpha.gguf")
    assert listed[0]["n_ctx_train"] == 4096
    assert plain.returncode == 0
    assert json.loads(run(tmp_path, "list", "--json", "--model-path", tmp_path).stdout) == []


def test_list_and_probe_say_what_is_wrong_with_a_folder_that_is_named(tmp_path: Path) -> None:
    """A folder in SafeTensors that cannot be served was left out without a word, and a file of it was no GGUF."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").touch()
    assert "in `pytorch_model.bin`, which is not read" in run(tmp_path, "probe", folder).stderr
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\n")
    listed = run(tmp_path, "list", "--model-path", folder)
    assert listed.returncode == 1
    assert f"`{folder}` is not listed: the architecture" in listed.stderr
    of_file = run(tmp_path, "probe", folder / "model.safetensors")
    assert "name the folder in which they are" in of_file.stderr


@pytest.mark.parametrize("json_", [(), ("--json",)])
def test_list_fails_where_what_is_named_is_no_model(tmp_path: Path, models: Path, json_: Sequence[str]) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((models / "alpha.gguf").read_bytes()[:3000])
    listed = run(tmp_path, "list", *json_, "--model-path", models, "--model-path", damaged)
    assert listed.returncode == 1
    assert "alpha" in listed.stdout
    assert f"`{damaged}` is not listed: " in listed.stderr
    assert run(tmp_path, "list", *json_, "--model-path", tmp_path).returncode == 0
    missing = run(tmp_path, "list", *json_, "--model-path", tmp_path / "nowhere")
    assert missing.returncode == 1
    assert "there is no such folder" in missing.stderr
    unheard = run(tmp_path, "list", *json_, "--model-path", tmp_path / ("x" * 300))
    assert unheard.returncode == 1
    assert "File name too long" in unheard.stderr
    assert "Traceback" not in unheard.stderr


def test_probe(tmp_path: Path, models: Path) -> None:
    plain = run(tmp_path, "probe", "beta", "--model-path", models)
    assert plain.returncode == 0, plain.stderr
    assert re.search(r"^Context +512 tokens, shared by up to \d+ sequences$", plain.stdout, re.MULTILINE)
    probed = json.loads(run(tmp_path, "probe", "beta", "--json", "--model-path", models).stdout)
    assert probed["name"] == "beta"
    assert probed["n_ctx"] == probed["n_ctx_train"] == 512
    assert probed["has_chat_template"] is True


@pytest.mark.smoke
def test_generate_says_what_a_server_says(tmp_path: Path, models: Path, server: Server) -> None:
    options = ("--model-path", models, "--temp", "0", "--max-tokens", "64", "--threads", "1")
    plain = run(tmp_path, "generate", "alpha", "--prompt", PROMPTS[0], *options)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == server.chat(PROMPTS[0]) + "\n"
    assert plain.stderr == ""
    from_stdin = run(tmp_path, "generate", "alpha", "--prompt", "-", "--json", *options, stdin=PROMPTS[0])
    fields = json.loads(from_stdin.stdout)
    assert fields["text"] == plain.stdout.removesuffix("\n")
    assert fields["completion_tokens"] == 64
    assert fields["finish_reason"] == "length"


def test_generate_raw_completes_the_text_itself(tmp_path: Path, models: Path, server: Server) -> None:
    options = ("--model-path", models, "--temp", "0", "--max-tokens", "64", "--threads", "1")
    raw = run(tmp_path, "generate", "alpha", "--raw", "--prompt", PROMPTS[0], *options)
    completion = {"model": "alpha", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 64}
    assert raw.stdout == server.post("/v1/completions", completion).json()["choices"][0]["text"] + "\n"
    assert raw.stdout != server.chat(PROMPTS[0]) + "\n"


def test_generate_takes_the_words_of_llama_cpp(tmp_path: Path, models: Path) -> None:
    command, options = ("generate", models / "alpha.gguf"), ("--temp", "0", "--threads", "1", "-n", "16")
    plain = run(tmp_path, *command, "--prompt", PROMPTS[0], *options)
    assert plain.stdout
    assert run(tmp_path, *command, *options, PROMPTS[0]).stdout == plain.stdout
    assert run(tmp_path, *command, "-p", PROMPTS[0], *options).stdout == plain.stdout


def test_an_interrupt_keeps_the_text_so_far(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, "endless", n_ctx_train=65536, seed=STEADY_SEED)
    with in_terminal(tmp_path, "generate", model, "hello", "--ctx-size", "65536", "--threads", "1") as terminal:
        terminal.expect(" ")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130
    said, _, told = plain(terminal.output).replace("^C", "").rpartition("\n" + "shimmy: ")
    assert said
    assert told == "interrupted\n"


def test_the_shells_get_their_scripts(tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        printed = run(tmp_path, "completion", shell)
        assert printed.returncode == 0, printed.stderr
        assert "cache-dir" in printed.stdout
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=printed.stdout, text=True, check=True)


def test_generate_takes_a_file_and_a_seed(tmp_path: Path, models: Path) -> None:
    command = ("generate", models / "alpha.gguf", "--prompt", "hello", "--max-tokens", "32")
    first, second, third = (run(tmp_path, *command, "--seed", seed).stdout for seed in ("7", "7", "8"))
    assert first == second != third


def test_bench(tmp_path: Path, models: Path) -> None:
    command = ("bench", "alpha", "--model-path", models, "-p", "32", "-n", "8", "--sequences", "1,3", "-r", "2")
    measured = run(tmp_path, *command, "--threads", "1", "--json")
    assert measured.returncode == 0, measured.stderr
    assert measured.stderr == ""
    fields = json.loads(measured.stdout)
    assert (fields["name"], fields["n_threads"]) == ("alpha", 1)
    assert [result["test"] for result in fields["results"]] == ["pp32", "tg8", "tg8 x 3"]
    assert all(sample > 0 for result in fields["results"] for sample in result["samples"])
    plain = run(tmp_path, *command, "--threads", "1")
    assert [line.split("  ")[0] for line in plain.stdout.splitlines()[-3:]] == ["pp32", "tg8", "tg8 x 3"]
    too_long = run(tmp_path, *command, "-p", "9999")
    assert too_long.returncode == 1
    assert "raise `--ctx-size`" in too_long.stderr


def test_an_unknown_model_fails_with_close_names(tmp_path: Path, models: Path) -> None:
    for command in (("generate", "alfa", "--prompt", "x"), ("probe", "alfa"), ("bench", "alfa")):
        ended = run(tmp_path, *command, "--model-path", models)
        assert ended.returncode == 1
        assert ended.stdout == ""
        assert re.fullmatch(r"shimmy: no model `alfa`; did you mean `alpha`\?\n", ended.stderr)


def test_a_file_that_is_no_model_fails(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("this is no model")
    ended = run(tmp_path, "generate", tmp_path / "text.gguf", "--prompt", "x")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "text.gguf" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--no-such-flag"),
        ("serve", "--ctx-size", "many"),
        ("serve", "--bind", "127.0.0.1:99999"),
        ("generate", "alpha"),
        ("generate", "alpha", "--prompt", "x", "--max-tokens", "0"),
        ("levitate",),
        (),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = run(tmp_path, *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "shimmy" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_goes_to_stdout(tmp_path: Path) -> None:
    for arguments in (("--help",), ("serve", "--help"), ("help",), ("help", "serve")):
        helped = run(tmp_path, *arguments)
        assert helped.returncode == 0
        assert helped.stdout.startswith("usage: shimmy")
        assert helped.stderr == ""


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path, models: Path) -> None:
    command: list[str | Path] = [
        *PROGRAM,
        "generate",
        "alpha",
        "--prompt",
        "hello",
        "--model-path",
        models,
        "--threads",
        "1",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(DEADLINE_S) in (1, -13, 141)
        assert process.stderr.read() == b""
