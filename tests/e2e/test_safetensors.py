"""Folders in SafeTensors are served like GGUF files: converted once, and the same text comes out."""

import json
import math
import re
from pathlib import Path
from random import Random

import pytest

from shimmy.formats.gguf import reader
from tests import tiny_families
from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, COMPLETION, PROMPTS, STEADY_SEED, Server, chat_body, run
from tests.e2e.processes import wait_for
from tests.e2e.terminal import in_terminal, plain
from tests.importance_files import write_gguf_matrix
from tests.quantised_llama import write_both
from tests.tiny_checkpoints import write_checkpoint, write_tiny_llama, write_tokenizer
from tests.tiny_models import N_EMBD, N_FF, write_tiny_model


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a GGUF, as a folder, and as a folder with shards."""
    folder = tmp_path_factory.mktemp("both")
    write_tiny_model(folder, "alpha", seed=STEADY_SEED)
    write_tiny_llama(folder / "Whole", seed=STEADY_SEED)
    write_tiny_llama(folder / "Shards", seed=STEADY_SEED, n_shards=3)
    return folder


def converted(cache: Path) -> list[Path]:
    return sorted((cache / "converted").glob("*"))


def texts(server: Server) -> list[str]:
    return [server.chat(PROMPTS[0], name) for name in ("alpha", "whole", "shards")]


def test_a_folder_answers_as_the_gguf_of_its_weights_does(start: StartServer, both: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = start("--model-path", both, "--cache-dir", cache)
    assert {model["id"] for model in server.get("/v1/models").json()["data"]} == {"alpha", "whole", "shards"}
    first = texts(server)
    assert len(set(first)) == 1
    files = converted(cache)
    assert [path.suffix for path in files] == [".gguf", ".gguf"]
    before = [path.stat().st_mtime_ns for path in files]
    server.stop()
    again = start("--model-path", both, "--cache-dir", cache)
    assert texts(again) == first
    assert [path.stat().st_mtime_ns for path in converted(cache)] == before, "made once"


def test_a_cache_that_cannot_be_written_costs_nothing_but_memory(
    start: StartServer, both: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "a-file"
    blocked.touch()
    assert len(set(texts(start("--model-path", both, "--cache-dir", blocked / "cache")))) == 1


def test_the_weights_can_be_made_smaller(start: StartServer, both: Path, tmp_path: Path) -> None:
    server = start("--model-path", both, "--cache-dir", tmp_path / "cache", "--safetensors-type", "q8_0")
    entry = server.get("/api/models/whole/status").json()
    assert entry["quantization"] == "Q8_0"
    assert server.chat(PROMPTS[0], "whole")
    (file,) = converted(tmp_path / "cache")
    assert file.stat().st_size < (both / "alpha.gguf").stat().st_size / 3


def test_a_person_sees_how_far_a_conversion_is_until_the_reply_begins(both: Path, tmp_path: Path) -> None:
    arguments = ("generate", both / "Whole", "--prompt", "hello", "--max-tokens", "8")
    with in_terminal(tmp_path, *arguments, "--cache-dir", tmp_path / "cache") as terminal:
        assert terminal.wait() == 0, terminal.output
    waiting, erase, reply = terminal.output.rpartition("\r\x1b[K")
    assert erase
    assert re.search("converting whole: [0-9]+ %", waiting)
    silent = run(tmp_path, *arguments, "--cache-dir", tmp_path / "other")
    assert "converting" not in plain(reply)
    assert "\x1b" not in silent.stdout
    assert "converting" not in silent.stderr


def test_a_server_in_a_terminal_shows_how_far_a_conversion_is(both: Path, tmp_path: Path) -> None:
    arguments = ("serve", "--bind", "127.0.0.1:0", "--model-path", both / "Whole", "--preload", "whole")
    with in_terminal(tmp_path, *arguments, "--cache-dir", tmp_path / "cache") as terminal:
        terminal.expect("converting whole: ")
        terminal.expect("\r\x1b[K")
        terminal.expect("loaded `whole`")
        terminal.process.terminate()  # Ctrl-C would take back what the terminal has not shown yet
        assert terminal.wait() == 0
    for line in terminal.output.split("\r\n"):
        last = line.rpartition("\r\x1b[K")[2]
        assert "converting" not in last, "a line of the log takes its place, and it goes with the load"


def test_a_folder_that_changes_is_swapped(start: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_tiny_llama(folder / "tiny", seed=1)
    server = start("--model-path", folder, "--cache-dir", tmp_path / "cache")
    before = server.chat(PROMPTS[0], "tiny")
    write_tiny_llama(folder / "tiny", seed=2)
    wait_for("the new one", lambda: server.chat(PROMPTS[0], "tiny") != before)
    assert len(converted(tmp_path / "cache")) == 1, "what was made of the old one is gone"


def test_what_cannot_be_converted_says_why(start: StartServer, tmp_path: Path) -> None:
    for name, model_type in (("strange", "mamba9"), ("quantised", "llama")):
        write_tiny_llama(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config |= {
            "model_type": model_type,
            "architectures": ["Strange"] if name == "strange" else ["LlamaForCausalLM"],
        }
        if name == "quantised":
            config["quantization_config"] = {"quant_method": "hqq"}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    server = start("--model-path", tmp_path)
    for name, word in (("strange", "Strange"), ("quantised", "hqq")):
        reply = server.post(CHAT, chat_body("hello", name))
        assert reply.status == 404
        assert word.lower() in reply.error["message"].lower()


@pytest.mark.parametrize("options", [(), ("--type", "q8_0")])
def test_convert_writes_a_gguf_that_is_served(tmp_path: Path, both: Path, options: tuple[str, ...]) -> None:
    target = tmp_path / "made.gguf"
    done = run(tmp_path, "convert", both / "Whole", "-o", target, *options)
    assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
    assert list(tmp_path.iterdir()) == [target]
    (fields,) = json.loads(run(tmp_path, "list", "--json", "--model-path", target).stdout)
    assert fields["quantization"] == ("Q8_0" if options else "F32")
    generated = run(tmp_path, "generate", target, "--prompt", PROMPTS[0], "--temp", "0", "--max-tokens", "16")
    assert generated.returncode == 0, generated.stderr


def test_a_folder_can_be_named_by_its_path(tmp_path: Path, both: Path) -> None:
    options = ("--prompt", PROMPTS[0], "--temp", "0", "--max-tokens", "16", "--cache-dir", str(tmp_path / "cache"))
    done = [run(tmp_path, "generate", both / name, *options) for name in ("Whole", "alpha.gguf")]
    assert [reply.returncode for reply in done] == [0, 0], done[0].stderr
    assert done[0].stdout == done[1].stdout


def test_convert_says_what_is_wrong(tmp_path: Path) -> None:
    done = run(tmp_path, "convert", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be converted" in done.stderr


def first_token(server: Server, model: str) -> dict[str, float]:
    """The log-probabilities of the likeliest tokens after a prompt."""
    body = {"model": model, "prompt": PROMPTS[0], "max_tokens": 1, "logprobs": 5, "temperature": 0}
    (found,) = server.post(COMPLETION, body).json()["choices"][0]["logprobs"]["top_logprobs"]
    assert len(found) == 5
    return {str(token): float(number) for token, number in found.items()}


def test_quantised_folders_compute_what_their_weights_say(start: StartServer, tmp_path: Path) -> None:
    layouts = {"gptq": "Q4_0", "awq": "Q5_0", "fp8-block": "F16", "nvfp4": "NVFP4"}
    for layout in layouts:
        write_both(tmp_path / "models", layout)
    server = start("--model-path", tmp_path / "models", "--cache-dir", tmp_path / "cache")
    listed = {entry["name"]: entry["notices"] for entry in server.get("/api/models").json()["models"]}
    for layout, kind in layouts.items():
        status = server.get(f"/api/models/{layout}/status").json()
        assert status["quantization"] == kind
        assert ["0.049 %" in notice for notice in status["notices"]] == ([True] if kind == "F16" else [])
        assert listed[layout] == status["notices"]
        assert all(notice in server.log for notice in status["notices"])
        quantised, plain = first_token(server, layout), first_token(server, f"{layout}-plain")
        assert all(abs(quantised[token] - plain[token]) < 2e-2 for token in quantised.keys() & plain.keys())
        assert len(quantised.keys() & plain.keys()) >= 3


def test_fp8_weights_are_multiplied_with_large_numbers(start: StartServer, tmp_path: Path) -> None:
    """Processors of ARM add the products up in F16. In models, some activations are hundreds of times the others."""
    write_both(tmp_path / "models", "fp8-tensor", gain=64)
    server = start("--model-path", tmp_path / "models", "--cache-dir", tmp_path / "cache")
    quantised, plain = first_token(server, "fp8-tensor"), first_token(server, "fp8-tensor-plain")
    assert len(quantised.keys() & plain.keys()) >= 3
    assert all(abs(quantised[token] - plain[token]) < 2e-2 for token in quantised.keys() & plain.keys())


def test_convert_unpacks_quantised_weights(tmp_path: Path) -> None:
    folder, _ = write_both(tmp_path, "gptq")
    for options, kind in (((), "Q4_0"), (("--type", "q8_0"), "Q8_0")):
        target = tmp_path / "made.gguf"
        done = run(tmp_path, "convert", folder, "-o", target, "--force", *options)
        assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
        (fields,) = json.loads(run(tmp_path, "list", "--json", "--model-path", target).stdout)
        assert fields["quantization"] == kind
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(config))
    done = run(tmp_path, "convert", folder)
    assert done.returncode == 1
    assert "zero points do not lie in the middle" in done.stderr


def test_convert_says_why_it_cannot_write(tmp_path: Path, both: Path) -> None:
    (tmp_path / "file").touch()
    done = run(tmp_path, "convert", both / "Whole", "-o", tmp_path / "file" / "made.gguf")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert "Not a directory" in done.stderr


def matrix_of(model: Path, target: Path) -> Path:
    """An importance matrix for all weights of the layers of a GGUF file in which columns differ."""
    found = reader.contents(model).tensors
    names = [name.decode() for name, tensor in found.items() if name.startswith(b"blk.") and len(tensor.shape) == 2]
    sums = {name: ([float(1 + column % 7) for column in range(found[name.encode()].shape[0])], [1]) for name in names}
    return write_gguf_matrix(target, sums)


def test_convert_quantises_by_an_importance_matrix(tmp_path: Path, both: Path) -> None:
    matrix, target = matrix_of(both / "alpha.gguf", tmp_path / "matrix.gguf"), tmp_path / "made.gguf"
    made = []
    for options in ((), ("--imatrix", str(matrix))):
        done = run(tmp_path, "convert", both / "Whole", "-o", target, "--force", "--type", "q4_0", *options)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{target}\n", "")
        made.append(target.read_bytes())
    assert made[0] != made[1]
    assert len(made[0]) <= len(made[1])
    generated = run(tmp_path, "generate", target, "--prompt", PROMPTS[0], "--temp", "0", "--max-tokens", "4")
    assert generated.returncode == 0, generated.stderr


def test_convert_computes_an_importance_matrix_over_a_text(tmp_path: Path, both: Path) -> None:
    text, matrix, target = tmp_path / "text.txt", tmp_path / "matrix.gguf", tmp_path / "made.gguf"
    text.write_text(" ".join(Random(0).choices(["hello world", "the user", "a fox tells"], k=250)))
    convert = ("convert", both / "Whole", "-o", target, "--force", "--type", "q4_0")
    made = []
    for options in (
        (), ("--calibrate", str(text)), ("--calibrate", str(text), "--save-imatrix", str(matrix)),
        ("--imatrix", str(matrix)),
    ):  # fmt: skip
        done = run(tmp_path, *convert, *options)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{target}\n", "")
        made.append(target.read_bytes())
    assert made[0] not in made[1:]
    assert made[2] == made[3]
    assert {*tmp_path.iterdir()} >= {text, matrix, target}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("made.gguf.")]
    text.write_text("hello")
    done = run(tmp_path, *convert, "--calibrate", str(text))
    assert done.returncode == 1
    assert "512 are the least" in done.stderr


def test_a_calibration_shows_how_far_it_is(tmp_path: Path, both: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello world " * 400)
    command = ("convert", both / "Whole", "-o", tmp_path / "made.gguf", "--type", "q4_0", "--calibrate", text)
    with in_terminal(tmp_path, *command) as terminal:
        for percent in (" 33 %", " 66 %", "100 %"):  # the weights as they are, the calibration, the end
            terminal.expect(percent)


def test_convert_refuses_a_matrix_that_does_not_fit(tmp_path: Path, both: Path) -> None:
    target, foreign, nan = (tmp_path / name for name in ("made.gguf", "foreign.gguf", "nan.gguf"))
    write_gguf_matrix(foreign, {"blk.0.attn_qkv.weight": ([1.0], [1])})
    write_gguf_matrix(nan, {"blk.0.attn_q.weight": ([math.nan] * N_EMBD, [1])})
    for options, code, complaint in (
        (("--type", "iq2_xs"), 2, "--imatrix"),
        (("--type", "q8_0", "--imatrix", str(foreign)), 2, "the same with an importance matrix"),
        (("--imatrix", str(foreign)), 2, "without a type"),
        (("--calibrate", str(foreign)), 2, "without a type"),
        (("--type", "q4_0", "--imatrix", str(foreign), "--calibrate", str(foreign)), 2, "one of them"),
        (("--type", "q4_0", "--save-imatrix", str(foreign)), 2, "--calibrate"),
        (("--type", "q4_0", "--calibrate", str(tmp_path / "none")), 1, "No such file"),
        (("--type", "q4_0", "--calibrate", str(foreign)), 1, "UTF-8"),
        (("--type", "q4_0", "--calibrate", str(tmp_path)), 1, "not a regular file"),
        (("--type", "q4_0", "--calibrate", str(nan), "--save-imatrix", "none/m.gguf"), 1, "cannot be written"),
        (("--type", "q4_0", "--imatrix", str(tmp_path / "none")), 1, "No such file"),
        (("--type", "q4_0", "--imatrix", str(both / "alpha.gguf")), 1, "no importance matrix"),
        (("--type", "q4_0", "--imatrix", str(foreign)), 1, "another model"),
        (("--type", "q4_0", "--imatrix", str(nan)), 1, "none of squares"),
    ):
        done = run(tmp_path, "convert", both / "Whole", "-o", target, *options)
        assert (done.returncode, done.stdout) == (code, ""), options
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr
        assert not target.exists()


def test_a_server_refuses_to_start_with_a_matrix_that_is_none(tmp_path: Path, both: Path) -> None:
    matrix = write_gguf_matrix(tmp_path / "matrix.gguf", {"blk.0.attn_q.weight": ([1.0], [1])})
    for options, complaint in (
        (("--safetensors-type", "iq1_s"), "--imatrix"),
        (("--safetensors-type", "q8_0", "--imatrix", str(matrix)), "the same with an importance matrix"),
        (("--imatrix", str(matrix)), "--safetensors-type"),
        (("--safetensors-type", "q4_0", "--imatrix", str(tmp_path / "none")), "No such file"),
        (("--safetensors-type", "q4_0", "--imatrix", str(both / "alpha.gguf")), "no importance matrix"),
    ):
        done = run(tmp_path, "serve", "--model-path", both, *options)
        assert done.returncode == 2, options
        assert complaint in done.stderr


def test_a_server_quantises_the_model_that_the_matrix_is_of(start: StartServer, tmp_path: Path, both: Path) -> None:
    write_checkpoint(tmp_path / "models" / "moe", tiny_families.config("mixtral"), tiny_families.tensors("mixtral"))
    write_tokenizer(tmp_path / "models" / "moe")
    matrix, cache, made = tmp_path / "matrix.gguf", tmp_path / "cache", tmp_path / "made.gguf"
    paths = ("--model-path", both / "Whole", "--model-path", tmp_path / "models", "--cache-dir", cache)
    write_gguf_matrix(matrix, {"blk.0.attn_q.weight": ([1.0] * (N_EMBD - 1) + [9.0], [1])})
    done = run(tmp_path, "convert", both / "Whole", "-o", made, "--type", "q4_0", "--imatrix", matrix)
    assert done.returncode == 0, done.stderr
    server = start(*paths, "--safetensors-type", "q4_0", "--imatrix", matrix)
    server.chat(PROMPTS[0], "whole")
    (first,) = converted(cache)
    assert first.read_bytes() == made.read_bytes()
    write_gguf_matrix(matrix, {"blk.1.ffn_down.weight": ([1.0] * (N_FF - 1) + [9.0], [1])})
    server.chat(PROMPTS[0], "moe")
    assert "is quantised without it" in server.log
    assert server.post("/api/models/whole/unload", {}).status == 200
    server.chat(PROMPTS[0], "whole")
    assert first not in converted(cache), "another matrix makes another file"
    assert len(converted(cache)) == 2
    server = start(*paths, "--safetensors-type", "iq3_xs", "--imatrix", matrix)
    reply = server.post(CHAT, chat_body("hello", "moe"))
    assert reply.status == 503
    assert "another model" in reply.error["message"]
