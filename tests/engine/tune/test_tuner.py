"""Settings by measurement: which are tried, which of them win, when a trial runs, and what is remembered."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.llama.quantize import quantize
from shimmy.engine.llama.sampler_chain import chain
from shimmy.engine.main import Worker
from shimmy.engine.parent_connection import ParentConnection
from shimmy.engine.pulse import Pulse
from shimmy.engine.tune import tuner as tuning
from shimmy.engine.tune.cpu_affinity import Placement
from shimmy.engine.tune.tuner import Settings, TrialResult, Tuner, Tuning, fastest
from shimmy.messages.event import Piece
from shimmy.messages.request import GenerateRequest, SamplingParams, TextPrompt
from shimmy.system import cpu, memory
from shimmy.system.remembered import MAX_ENTRIES
from shimmy.wire.worker_options import WorkerOptions
from shimmy.workers import spawn as process
from shimmy.workers.start_worker import start_worker
from shimmy.workers.worker_client import Hooks, WorkerClient
from tests.fakes import on_loop, until
from tests.tiny_models import write_tiny_model

if TYPE_CHECKING:
    import subprocess

MAPPED, REPACKED = Settings("mapped", 2), Settings("repacked", 2)


@pytest.fixture
def options(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerOptions:
    """Of a model with two settings to try on this machine, which is idle and has memory."""
    monkeypatch.setattr(cpu, "thread_counts", lambda: [2])
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**12)
    return WorkerOptions(
        *(str(tiny_model), 256, 2, 64, None, None, None),
        cache_dir=str(tmp_path / "cache"),
        weights="auto",
        may_tune=True,
    )


def times(mapped_s: float, repacked_s: float) -> bytes:
    return json.dumps([[mapped_s, mapped_s], [repacked_s, repacked_s]]).encode()


# -- the decision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapped", "repacked", "winner"),
    [
        ((0.010, 0.001), (0.008, 0.001), REPACKED),
        ((0.010, 0.001), (0.0098, 0.001), MAPPED),  # as good as equal
        ((0.010, 0.001), (0.010, 0.0005), REPACKED),  # it reads faster
        ((0.010, 0.0005), (0.009, 0.001), MAPPED),  # it reads so much slower that a job takes longer
    ],
)
def test_the_faster_of_a_job_wins_and_mapped_weights_where_it_is_the_same(
    mapped: tuple[float, float], repacked: tuple[float, float], winner: Settings
) -> None:
    assert fastest([TrialResult(MAPPED, *mapped), TrialResult(REPACKED, *repacked)]) == winner


def test_threads_are_tried_with_both_kinds_of_weights(options: WorkerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "thread_counts", lambda: [4, 8])
    assert [(each.weights, each.n_threads) for each in Tuning(options).candidates] == [
        ("mapped", 4), ("repacked", 4), ("mapped", 8), ("repacked", 8),
    ]  # fmt: skip
    assert Tuning(replace(options, n_threads=3)).candidates == [Settings("mapped", 3), Settings("repacked", 3)]
    assert Tuning(replace(options, weights="mapped")).candidates == [Settings("mapped", 4), Settings("mapped", 8)]


def test_what_a_person_has_set_stays(options: WorkerOptions) -> None:
    for weights in tuning.WEIGHTS:
        fixed = Tuning(replace(options, weights=weights, n_threads=7))
        assert fixed.settings == Settings(weights, 7)
        assert not fixed.is_wanted


# -- what is remembered ----------------------------------------------------------------------------------------------


def test_the_outcome_holds_for_the_next_load(options: WorkerOptions) -> None:
    first = Tuning(options)
    assert (first.settings, first.is_wanted) == (REPACKED, True)
    first.learn(times(0.01, 0.02))
    second = Tuning(options)
    assert (second.settings, second.is_wanted) == (MAPPED, False)


def test_the_outcome_is_that_of_one_file_on_one_processor(
    options: WorkerOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tuning(options).learn(times(0.01, 0.02))
    other = write_tiny_model(tmp_path, seed=1)
    assert Tuning(replace(options, model_path=str(other))).is_wanted
    assert Tuning(replace(options, cpu_variant="haswell")).is_wanted
    monkeypatch.setattr(cpu, "processor_name", lambda: "another one")
    assert Tuning(options).is_wanted


@pytest.mark.parametrize(
    "text", [b"", b"nonsense", b"[1]", b"[" * 100_000, b"\xff\xfe", b'{"KEY": 3}', b'{"KEY": ["mapped", 9]}',
             b'{"KEY": {"weights": 1}}', b'{"KEY": ["mapped", 2, 2]}'],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_written_anew(options: WorkerOptions, text: bytes) -> None:
    assert options.cache_dir is not None
    file = Path(options.cache_dir) / "tuning.json"
    Tuning(options).learn(times(0.01, 0.02))
    (key,) = json.loads(file.read_bytes())
    file.write_bytes(text.replace(b'"KEY"', json.dumps(key).encode()))
    lost = Tuning(options)
    assert (lost.settings, lost.is_wanted) == (REPACKED, True)
    lost.learn(times(0.01, 0.02))
    assert Tuning(options).settings == MAPPED


def test_the_file_does_not_grow_for_ever(options: WorkerOptions) -> None:
    assert options.cache_dir is not None
    file = Path(options.cache_dir) / "tuning.json"
    file.parent.mkdir()
    file.write_text(json.dumps({str(number): ["mapped", 1] for number in range(2000)}))
    Tuning(options).learn(times(0.01, 0.02))
    assert len(json.loads(file.read_bytes())) == MAX_ENTRIES
    assert Tuning(options).settings == MAPPED


def test_where_nothing_can_be_written_nothing_happens(options: WorkerOptions, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    Tuning(options).learn(times(0.01, 0.02))
    assert Tuning(options).settings == REPACKED
    assert not Tuning(replace(options, cache_dir=None)).is_wanted


@pytest.mark.parametrize(
    "output", [b"", b"[]", b"[[1, 2]]", b"[[1, 2], [1]]", b"[[1, 2], null]", b'[["a", 2], [1, 2]]']
)
def test_a_trial_without_a_result_decides_nothing(options: WorkerOptions, output: bytes) -> None:
    Tuning(options).learn(output)
    assert not (Path(str(options.cache_dir)) / "tuning.json").exists()


def test_a_model_in_the_memory_of_its_worker_is_not_tried(options: WorkerOptions) -> None:
    descriptor = os.memfd_create("model")
    try:
        assert not Tuning(replace(options, model_path=f"/proc/self/fd/{descriptor}")).is_wanted
    finally:
        os.close(descriptor)
    assert not Tuning(replace(options, model_path="/not/there.gguf")).is_wanted


def test_a_trial_takes_neither_memory_nor_processors_from_others(
    options: WorkerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Tuning(options).is_affordable(10**6)
    for n_free, is_affordable in ((4 * 10**9, False), (7 * 10**9, True)):
        monkeypatch.setattr(memory, "free_bytes", lambda n_free=n_free: n_free)
        assert Tuning(options).is_affordable(3 * 10**9) is is_affordable
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    assert Tuning(options).is_affordable(10**6)
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert not Tuning(options).is_affordable(10**6)
    assert not Tuning(replace(options, may_tune=False)).is_wanted


# -- when a trial runs -----------------------------------------------------------------------------------------------

ENDLESS = [sys.executable, "-c", "import sys; sys.stdin.read()"]


class Trials:
    """Starts a small program instead of the trial."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        assert command[-5] == "trial"
        self.started.append(tuning.start(self._command))
        return self.started[-1]


def printing(text: bytes, code: int = 0) -> list[str]:
    return [sys.executable, "-c", f"import sys; print({text.decode()!r}); sys.exit({code})"]


def run_out(tuner: Tuner, trials: Trials) -> None:
    """Let the trial come to its end, and the tuner see it."""
    trials.started[-1].wait()
    tuner.idle()


def test_a_worker_without_jobs_waits_for_ever(options: WorkerOptions) -> None:
    assert Tuner([Tuning(options)], 10**6).wait_s is None


def test_the_first_idle_time_after_a_job_is_used_once(options: WorkerOptions) -> None:
    trials = Trials(printing(times(0.01, 0.02)))
    tuner = Tuner([Tuning(options)], 10**6, start=trials)
    tuner.interrupt()
    wait_s = tuner.wait_s
    assert wait_s is not None
    assert wait_s > 1
    tuner.idle()
    assert tuner.wait_s is not None
    assert tuner.wait_s < 1, "the end of the trial is noticed soon"
    run_out(tuner, trials)
    assert tuner.wait_s is None
    assert Tuning(options).settings == MAPPED
    tuner.interrupt()
    assert tuner.wait_s is None
    assert len(trials.started) == 1


def test_a_job_ends_a_trial_at_once_and_the_next_idle_time_has_another(options: WorkerOptions) -> None:
    trials = Trials(ENDLESS)
    tuner = Tuner([Tuning(options)], 10**6, start=trials)
    tuner.interrupt()
    tuner.idle()
    tuner.idle()
    assert trials.started[0].poll() is None
    tuner.interrupt()
    assert trials.started[0].returncode == -9
    assert tuner.wait_s is not None
    tuner.idle()
    assert len(trials.started) == 2
    tuner.interrupt()


def test_a_trial_that_fails_is_not_repeated(options: WorkerOptions) -> None:
    trials = Trials(printing(times(0.01, 0.02), code=1))
    tuner = Tuner([Tuning(options)], 10**6, start=trials)
    tuner.interrupt()
    tuner.idle()
    run_out(tuner, trials)
    assert tuner.wait_s is None
    assert Tuning(options).settings == REPACKED


def test_a_trial_that_takes_too_long_is_given_up(options: WorkerOptions) -> None:
    now_s = 0.0
    trials = Trials(ENDLESS)
    tuner = Tuner([Tuning(options)], 10**6, start=trials, clock=lambda: now_s)
    tuner.interrupt()
    tuner.idle()
    now_s = 1000.0
    tuner.idle()
    assert trials.started[0].returncode == -9
    assert tuner.wait_s is None


def test_a_program_that_cannot_be_started_is_not_tried_again(options: WorkerOptions) -> None:
    tuner = Tuner([Tuning(options)], 10**6, start=lambda _: tuning.start(["/not/there"]))
    tuner.interrupt()
    tuner.idle()
    assert tuner.wait_s is None


def test_a_busy_machine_is_left_alone_until_it_is_not(options: WorkerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials(ENDLESS)
    tuner = Tuner([Tuning(options)], 10**6, start=trials)
    tuner.interrupt()
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    tuner.idle()
    assert not trials.started
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    tuner.idle()
    assert len(trials.started) == 1
    tuner.interrupt()


def test_a_model_that_writes_nothing_is_not_tried(options: WorkerOptions) -> None:
    tuner = Tuner([Tuning(options)], None)
    tuner.interrupt()
    assert tuner.wait_s is None


class RestlessTuner(Tuner):
    """Lets the worker wait twice before there is an order."""

    def __init__(self, worker: Worker) -> None:
        self.said: list[str] = []
        self._worker = worker

    @property
    def wait_s(self) -> float:
        return 0.001

    def idle(self) -> None:
        self.said.append("idle")
        if len(self.said) == 2:
            self._worker._inbox.put(7)

    def interrupt(self) -> None:
        self.said.append("interrupt")


def test_a_worker_tells_its_tuner_when_it_waits_and_when_it_does_not() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(ParentConnection(theirs), Pulse(lambda _: None))
        worker._tuner = tuner = RestlessTuner(worker)
        worker._placement, worker._n_threads_now = Placement([]), 1
        assert worker._next_order() == 7
        assert tuner.said == ["idle", "idle", "interrupt"]


# -- the real thing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def quantized(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights of a type that ggml has another order for."""
    path = tmp_path_factory.mktemp("quantized") / "tiny-q4.gguf"
    CpuBackend(variants.libraries(LIBRARY_FOLDER, None))
    quantize(tiny_model, path, file_type="q4_0", n_threads=1)
    return path


def text_of(path: Path, *, repacks: bool) -> list[int]:
    model = LlamaModel(path, CpuBackend(variants.libraries(LIBRARY_FOLDER, None)), repacks=repacks)
    model.open_context(n_ctx=64, n_batch=32, n_sequences=1, n_outputs=1, n_threads=1)
    sampler = model.new_sampler(chain(SamplingParams(temperature=0), seed=1, n_ctx=64), [], [])
    tokens = model.vocab.tokenize("hello world", add_special=True, parse_special=False)
    n_known = 0
    for _ in range(16):
        model.backend.batch.clear()
        row = model.backend.batch.add(tokens[n_known:], n_known, 0, n_outputs=1)
        assert model.backend.decode() == 0
        n_known = len(tokens)
        tokens.append(sampler.sample(row))
    sampler.close()
    return tokens


def test_both_kinds_of_weights_say_the_same(quantized: Path) -> None:
    assert text_of(quantized, repacks=True) == text_of(quantized, repacks=False)


def test_weights_are_copied_only_where_that_is_asked_for(quantized: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for repacks in (False, True):
        caplog.clear()
        text_of(quantized, repacks=repacks)
        assert ("REPACK" in caplog.text) is repacks


def test_a_trial_measures_every_setting(options: WorkerOptions, quantized: Path) -> None:
    process = tuning.start(Tuning(replace(options, model_path=str(quantized), n_threads=1)).command())
    assert process.stdout is not None
    assert process.stdin is not None
    found = json.loads(process.stdout.read())
    assert process.wait() == 0
    process.stdout.close()
    process.stdin.close()
    assert len(found) == 2
    assert all(0 < seconds < 60 for pair in found for seconds in pair)


def test_a_trial_ends_with_its_worker(options: WorkerOptions, tmp_path: Path) -> None:
    # A file that is never given to it keeps it waiting.
    os.mkfifo(tmp_path / "model.gguf")
    process = tuning.start(Tuning(replace(options, model_path=str(tmp_path / "model.gguf"))).command())
    process.communicate()  # which closes its input
    assert process.returncode == 1


def test_a_trial_of_a_broken_file_says_so(options: WorkerOptions, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    process = tuning.start(Tuning(replace(options, model_path=str(tmp_path / "broken.gguf"))).command())
    assert process.wait() == 1
    process.communicate()


# A worker that does not wait for long, on a machine that is never busy.
HASTY = """
import os, sys
os.getloadavg = lambda: (0.0, 0.0, 0.0)
from shimmy.engine import main
from shimmy.engine.tune import tuner
tuner._IDLE_S = 0.05
sys.exit(main.main(int(sys.argv[1])))
"""


@pytest.mark.thorough
@pytest.mark.alone  # it waits for a machine with nothing else to do
@on_loop
async def test_an_idle_worker_finds_its_settings_and_goes_on_serving(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "worker_command", lambda fd, _name: [sys.executable, "-c", HASTY, str(fd)])
    options = WorkerOptions(
        *(str(tiny_model), 256, 2, 64, 1, None, None), cache_dir=str(tmp_path), weights="auto", may_tune=True
    )
    request = GenerateRequest("tiny", TextPrompt("hello"), SamplingParams(temperature=0), n_predict=4)

    async def text(worker: WorkerClient) -> str:
        return "".join([event.text async for event in worker.submit(request) if isinstance(event, Piece)])

    worker = await start_worker("tiny", options, Hooks())
    first = await text(worker)
    for pause_s in (0.1, 0.4):  # too short for a trial, which the job behind it ends
        await asyncio.sleep(pause_s)
        assert await text(worker) == first
    await until((tmp_path / "tuning.json").exists, 50.0)
    assert await text(worker) == first
    await worker.close()
    worker = await start_worker("tiny", options, Hooks())
    assert await text(worker) == first
    await worker.close()
