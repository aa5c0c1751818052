"""Compares a GPU with the processor, and measures it: see run.sh. Runs on a machine that has nothing but Python.

For each model: the processor's greedy replies are forced on the GPU, which must have the same first choice at every
position where the processor's is clear; with our cuBLAS, and with the system's where there is one. Then tokens a second
of several streams, and the time to the first token of a long prompt. Writes results.json and prints what it finds.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLEAR_MARGIN = 0.5  # between the logarithms of the first two choices
N_FORCED = 48
N_STREAMED = 96
STREAMS = (1, 8, 32)
START_S = 120.0
REPLY_S = 900.0  # drivers compile programs at the first use
PROMPTS = (
    "The lighthouse keeper climbed the stairs every evening, and",
    "def fibonacci(n):\n    ",
    "Es war einmal ein Mann, der hatte sieben Söhne. " * 8,  # more rows than the kernels for single tokens take
)
LONG = "The river runs past the mill and the old stone bridge towards the sea. " * 60


class Failed(Exception):
    """Something is not as it must be; the message says what."""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Choice(NamedTuple):
    """What a model would choose at one position, and what stands there."""

    token: str
    first: str
    margin: float
    likely: float


class Stream(NamedTuple):
    """A reply as it came."""

    first_s: float
    n_tokens: int


@contextmanager
def serving(command: Sequence[str | Path], **variables: str) -> Iterator[int]:
    """A server of the OpenAI API; gives its port, and ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [str(word).replace("PORT", str(port)) for word in command]
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, **variables}
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            end_s = time.monotonic() + START_S
            while not answers(port):
                if process.poll() is not None or time.monotonic() > end_s:
                    log.seek(0)
                    raise Failed(f"`{' '.join(words)}` did not start:\n{log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(port: int) -> bool:
    with suppress(OSError):
        return ask(port, "GET", "/health")[0] == 200
    return False


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REPLY_S)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def complete(port: int, prompt: str, **settings: object) -> dict[str, Any]:
    body = {"model": model_of(port), "prompt": prompt, "temperature": 0, **settings}
    status, content = ask(port, "POST", "/v1/completions", body)
    if status != 200:
        raise Failed(f"a completion was answered with {status}: {content[:500].decode(errors='replace')}")
    choice: dict[str, Any] = json.loads(content)["choices"][0]
    return choice


def model_of(port: int) -> str:
    return str(json.loads(ask(port, "GET", "/v1/models")[1])["data"][0]["id"])


def stream(port: int, prompt: str, n_tokens: int) -> Stream:
    body = {"model": model_of(port), "prompt": prompt, "temperature": 0, "max_tokens": n_tokens, "ignore_eos": True}
    body.update(stream=True, stream_options={"include_usage": True})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REPLY_S)
    start_s = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise Failed(f"a stream was answered with {response.status}: {response.read()[:500].decode(errors='replace')}")
    first_s, n = 0.0, 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        told = json.loads(line[6:])
        if not first_s and told.get("choices"):
            first_s = time.monotonic() - start_s
        n = (told.get("usage") or {}).get("completion_tokens", n)
    connection.close()
    if not first_s or not n:
        raise Failed("a stream ended without a token or without saying how many there were")
    return Stream(first_s, n)


# -- the same choices -------------------------------------------------------------------------------------------------


def choices(port: int, text: str) -> list[Choice]:
    """Of each position but the first."""
    told = complete(port, text, max_tokens=1, echo=True, logprobs=2)["logprobs"]
    found = []
    for token, likely, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        if likely is not None and top:
            ranked = sorted(top.items(), key=lambda pair: -pair[1])[:2]
            margin = ranked[0][1] - ranked[1][1] if len(ranked) == 2 else 0.0
            found.append(Choice(token, ranked[0][0], margin, likely))
    return found


def compare(pairs: Sequence[tuple[list[Choice], list[Choice]]]) -> dict[str, Any]:
    """Where a device (the first of each pair) chooses otherwise than the processor, which was sure of the token; and
    the largest difference of a logarithm."""
    for device, processor in pairs:
        if [each.token for each in device] != [each.token for each in processor]:
            raise Failed("the same text is other tokens on the device")
    both = [each for device, processor in pairs for each in zip(device, processor, strict=True)]
    clear = [(mine, theirs) for mine, theirs in both if theirs.margin >= CLEAR_MARGIN]
    return {
        "n_positions": len(both),
        "n_clear": len(clear),
        "n_other_choices": sum(mine.first != theirs.first for mine, theirs in clear),
        "largest_difference": max((abs(mine.likely - theirs.likely) for mine, theirs in both), default=0.0),
    }


# -- speed ------------------------------------------------------------------------------------------------------------


def speed(port: int) -> dict[str, Any]:
    stream(port, PROMPTS[0], 8)  # kernels are loaded, and compiled where that must be
    found: dict[str, Any] = {
        "first_token_ms": round(1000 * min(stream(port, f"{n} {LONG}", 1).first_s for n in range(3)))
    }
    for n_streams in STREAMS:
        start_s = time.monotonic()
        n_tokens = sum(each.n_tokens for each in at_once(port, n_streams))
        found[f"tokens_per_s_{n_streams}"] = round(n_tokens / (time.monotonic() - start_s), 1)
    return found


def at_once(port: int, n_streams: int) -> list[Stream]:
    results: list[Stream] = []
    faults: list[Exception] = []

    def run(place: int) -> None:
        try:
            results.append(stream(port, f"{place}. {PROMPTS[0]}", N_STREAMED))
        except (OSError, Failed) as exc:
            faults.append(exc)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(n_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise Failed(f"{len(faults)} of {n_streams} streams failed: {faults[0]}")
    return results


# -- peers ------------------------------------------------------------------------------------------------------------


def library_of(program: Path, folder: Path) -> Path:
    """The library for CUDA, out of the file: its archive has it as it is."""
    data = program.read_bytes()
    name = b"cuda.so\0"
    start = data.rfind(name) - 18
    if start < 0:
        raise Failed(f"`{program}` has no CUDA inside")
    cookie = data.rfind(b"MEI\014\013\012\013\016")
    length = int.from_bytes(data[cookie + 8 : cookie + 12], "big")
    place, n_bytes = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (4, 8))
    begin = cookie + 88 - length + place
    made = folder / "libggml-cuda.so"
    made.write_bytes(data[begin : begin + n_bytes])
    return made


def peers(llama_bin: Path, library: Path, model: Path) -> dict[str, Any]:
    variables = {**os.environ, "GGML_BACKEND_PATH": str(library)}
    found: dict[str, Any] = {}
    command: list[str | Path] = [llama_bin / "llama-bench", "-m", model, "-ngl", "99"]
    command += ["-p", "512", "-n", "96", "-r", "3", "-o", "json"]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    if ended.returncode != 0:
        raise Failed(f"llama-bench ended with {ended.returncode}: {ended.stderr[-1000:]}")
    for row in json.loads(ended.stdout):
        found[f"llama-bench {'prompt' if row['n_prompt'] else 'reply'}"] = round(row["avg_ts"], 1)
    server: list[str | Path] = [llama_bin / "llama-server", "-m", model, "-ngl", "99", "--port", "PORT"]
    server += ["-np", "32", "-c", "32768"]
    with serving(server, GGML_BACKEND_PATH=str(library)) as port:
        found["llama-server"] = speed(port)
    return found


# -- all of it --------------------------------------------------------------------------------------------------------


def has_cublas() -> bool:
    for name in ("libcublas.so.13", "libcublas.so.12"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def device_info(program: Path, device: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(
        subprocess.run([program, "gpu-info", "--json"], capture_output=True, check=True).stdout
    )
    if device != "none" and not any(each["name"] == device and not each["unusable"] for each in told["devices"]):
        raise Failed(f"{device} cannot be used: {json.dumps(told, indent=2)}")
    return told


def check_model(program: Path, model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    device = arguments.device
    command: list[str | Path] = [program, "serve", "--bind", "127.0.0.1:PORT", "--model-path", model]
    say(f"{model.name}: on the processor")
    with serving([*command, "--device", "none"]) as port:
        texts = [prompt + complete(port, prompt, max_tokens=N_FORCED)["text"] for prompt in PROMPTS]
        expected = [choices(port, text) for text in texts]
    found: dict[str, Any] = {}
    on_device = ["--device", device, *([] if device == "none" else ["--device-required", "--gpu-layers", "all"])]
    for cublas in ["own", *(["system"] if has_cublas() else [])]:
        say(f"{model.name}: on {device}, cuBLAS: {cublas}")
        with serving([*command, *on_device], SHIMMY_CUBLAS=cublas) as port:
            found[cublas] = compare(
                [(choices(port, text), theirs) for text, theirs in zip(texts, expected, strict=True)]
            )
            found[cublas].update({} if arguments.no_speed else speed(port))
        say(f"  {found[cublas]}")
    if arguments.llama_bin:
        with tempfile.TemporaryDirectory() as folder:
            found["peers"] = peers(arguments.llama_bin, library_of(program, Path(folder)), model)
        say(f"  {found['peers']}")
    return found


def system() -> dict[str, str]:
    """What the figures are of."""
    said = {"machine": re.sub(r"\s+", " ", Path("/proc/version").read_text())}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        said["gpus"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--device", default="CUDA0")
    parser.add_argument("--llama-bin", type=Path)
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    program = arguments.program.resolve()
    results: dict[str, Any] = {"system": system(), "models": {}}
    faults = []
    try:
        results["devices"] = device_info(program, arguments.device)
        for model in arguments.models:
            results["models"][model.name] = found = check_model(program, model.resolve(), arguments)
            for cublas, told in found.items():
                if told.get("n_other_choices"):
                    faults.append(f"{model.name}, cuBLAS {cublas}: {told['n_other_choices']} other choices")
    except (Failed, OSError, subprocess.SubprocessError) as exc:
        faults.append(str(exc))
    results["faults"] = faults
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    say(f"\n{arguments.out / 'results.json'} has it all")
    for fault in faults:
        say(f"FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
