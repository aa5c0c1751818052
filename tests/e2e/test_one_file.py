"""The one file among other people's habits: upgrades, tidied temporary folders, settings, full and forbidden disks."""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM
from time import sleep

import pytest

from shimmy.system import unpacked_folder
from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, PROGRAM, PROMPTS, Json, Server, chat_body, environment, program_with, run
from tests.e2e.processes import DEADLINE_S, mapped_files, wait_for
from tools.portable.engine import LIBRARIES
from tools.portable.python import VERSION

pytestmark = pytest.mark.frozen

ONE_WORD: Json = {"max_tokens": 1}
GUIDED: Json = {"response_format": {"type": "json_object"}, "max_tokens": 2}
FOREIGN = (
    *(*LIBRARIES, "libllama.so.0", f"libpython{VERSION}.so.1.0"),
    *("libstdc++.so.6", "libgomp.so.1", "libz.so.1", "libffi.so.8", "liblzma.so.5"),
)
ANYWHERE = "/tmp /var/tmp /dev/shm"
# How a folder becomes another file system for a program and those that it starts, and for nobody else.
TMPFS = "mount -t tmpfs -o {} tmpfs $folder"
NOEXEC = "mount --bind $folder $folder && mount -o remount,bind,noexec $folder"


def mounted(folders: str | Path, mount: str, *program: str) -> list[str]:
    """The command that runs `program` where `mount` has been done for each of the folders, one of which may be its own:
    it is opened before."""
    script = f'exec 9<"$1"; for folder in {folders}; do {mount} || exit 99; done; shift; exec /proc/self/fd/9 "$@"'
    alone = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    return [*alone, "sh", "-c", script, "sh", *program]


# -- an upgrade ------------------------------------------------------------------------------------------------------


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("#!/bin/sh\nexit 7\n")
    other.chmod(0o755)
    other.rename(path)


def renamed(path: Path) -> None:
    path.rename(path.with_name("shimmy.old"))
    replaced(path)


@pytest.mark.parametrize("change", [replaced, renamed, Path.unlink])
def test_an_upgrade_disturbs_nothing_that_runs(
    start: StartServer, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    program = tmp_path / "shimmy"
    shutil.copy(PROGRAM[-1], program)
    server = start(program=(*PROGRAM[:-1], str(program)))
    server.chat("hello", **ONE_WORD)
    change(program)
    works_for_all(server)
    assert server.stop() == 0


def works_for_all(server: Server) -> None:
    """What it has not imported, loaded or unpacked yet is there."""
    for path in ("/docs", "/openapi.json", "/metrics", "/v1/models", "/api/models"):
        assert server.get(path).status == 200, path
    assert server.post(CHAT, chat_body("hello", **GUIDED)).status == 200  # by a worker that knew no grammar yet
    assert server.chat("hello", "beta", **ONE_WORD)
    assert server.post("/v1/responses", {"model": "beta", "input": "hello", "max_output_tokens": 16}).status == 200
    assert server.get("/health").status == 200


# -- the temporary folder --------------------------------------------------------------------------------------------


def test_the_folder_is_locked_for_those_who_ask_before_they_tidy(start: StartServer) -> None:
    server = start()
    (name,) = server.leftovers()
    descriptor = os.open(server.temporary / name, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(BlockingIOError):  # what systemd-tmpfiles asks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


@pytest.mark.parametrize("what", ["everything", "files", "libraries"])
def test_a_folder_that_is_tidied_under_the_server_costs_nothing(start: StartServer, what: str) -> None:
    server = start()
    server.chat("hello", **ONE_WORD)
    (home,) = server.temporary.iterdir()
    if what == "everything":
        shutil.rmtree(home)
    else:
        for path in [*home.rglob("*.so*" if what == "libraries" else "*")]:
            with suppress(IsADirectoryError):
                path.unlink()
    works_for_all(server)
    assert server.stop() == 0
    assert server.leftovers() == []


def test_what_was_removed_comes_back_and_is_locked(start: StartServer) -> None:
    server = start()
    (home,) = server.temporary.iterdir()
    shutil.rmtree(home)
    wait_for("the folder", lambda: (home / "base_library.zip").exists() and "is back" in server.log)
    descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_folders_of_other_programs_stay(start: StartServer, tmp_path: Path) -> None:
    temporary = tmp_path / "server" / "tmp"
    theirs, dead = temporary / "_MEIothers", temporary / "_MEI0000dead"
    (theirs / "llama_cpp").mkdir(parents=True)
    (theirs / "shimmy.lock").touch()
    os.utime(theirs, (0, 0))
    dead.mkdir()
    (dead / "shimmy.home").write_text("unpacked by shimmy\n")
    start(folder=tmp_path / "server")
    wait_for("the sweep", lambda: not dead.exists())
    assert (theirs / "llama_cpp").is_dir()


# -- other libraries -------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with other builds of our libraries, which do not even load."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in FOREIGN:
        (folder / name).write_text("not a library")
    return folder


@pytest.mark.parametrize("setting", ["LD_LIBRARY_PATH", "LLAMA_CPP_LIB_PATH", "PYTHONPATH", "PYTHONHOME"])
def test_no_setting_leads_to_other_libraries(start: StartServer, foreign: Path, setting: str) -> None:
    server = start(program=program_with(setting, foreign))
    assert server.chat("hello", **ONE_WORD)
    assert server.post(CHAT, chat_body("hello", **GUIDED)).status == 200
    (home,) = server.temporary.iterdir()
    engine = [path for path in mapped_files(server.worker()) if "ggml" in path or "libllama" in path]
    assert len(engine) >= 4
    assert all(f"{home}/" in path for path in engine)  # behind the path of another system's root


def test_another_engine_that_is_preloaded_is_not_used(start: StartServer, tmp_path: Path) -> None:
    server = start()
    server.chat("hello", **ONE_WORD)
    (home,) = server.temporary.iterdir()
    other = tmp_path / "libother.so"
    shutil.copy(home / "llama_cpp" / "lib" / "libggml-base.so.0", other)
    neighbour = start(program=("env", f"LD_LIBRARY_PATH={tmp_path}", f"LD_PRELOAD={other}", *PROGRAM))
    assert neighbour.chat("hello", **ONE_WORD)
    assert str(other) not in mapped_files(neighbour.worker())


# -- file systems ----------------------------------------------------------------------------------------------------


def nowhere_else(tmp_path: Path, command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run it with no places but those that are the same on all machines."""
    inherited = environment(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "TMPDIR", "TEMP", "TMP"):
        inherited.pop(name, None)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S, env=inherited)


@pytest.mark.parametrize("mount", [NOEXEC, TMPFS.format("ro"), TMPFS.format("size=1m")])
def test_another_place_is_found(start: StartServer, tmp_path: Path, mount: str) -> None:
    folder = tmp_path / "server"
    (folder / "tmp").mkdir(parents=True)
    server = start(program=mounted(folder / "tmp", mount, *PROGRAM), folder=folder)
    assert server.chat(PROMPTS[0], **ONE_WORD)
    assert server.stop() == 0
    assert server.leftovers() == []


def test_code_runs_from_memory_where_it_may_from_no_folder(tmp_path: Path, models: Path) -> None:
    generate = ("generate", "alpha", "--prompt", "hello", "--max-tokens", "2", "--model-path", str(models))
    ended = nowhere_else(tmp_path, mounted(ANYWHERE, NOEXEC, *PROGRAM, *generate))
    assert ended.returncode == 0, ended.stderr


def test_a_server_whose_code_runs_from_memory_loses_nothing_with_a_worker(start: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    (folder / "tmp").mkdir(parents=True)
    places_gone = ("env", "-u", "HOME", "-u", "XDG_CACHE_HOME", "-u", "XDG_RUNTIME_DIR")
    program = mounted(f"{folder / 'tmp'} {ANYWHERE}", NOEXEC, *PROGRAM)
    server = start(program=(*places_gone, *program), folder=folder)
    server.chat("hello", **ONE_WORD)
    os.kill(server.worker(), SIGKILL)
    wait_for("the server to notice", lambda: server.metric("shimmy_worker_deaths_total", "alpha") == 1)
    works_for_all(server)
    (home,) = server.temporary.iterdir()
    assert all(path.is_symlink() for path in home.rglob("*.so"))
    for path in [*home.rglob("*.so*")]:
        path.unlink()
    assert server.post("/api/models/alpha/unload", {}).status == 200
    assert server.chat("hello", **ONE_WORD)
    assert server.stop() == 0
    assert server.leftovers() == []


@pytest.mark.parametrize(
    ("options", "reason"), [("size=16k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_where_there_is_no_place_a_start_says_what_to_set(tmp_path: Path, options: str, reason: str) -> None:
    ended = nowhere_else(tmp_path, mounted(ANYWHERE, TMPFS.format(options), *PROGRAM, "version"))
    assert ended.returncode == 3
    assert ended.stdout == ""
    assert f"`/tmp`: {reason}" in ended.stderr
    assert "TMPDIR" in ended.stderr


def test_starts_that_find_no_room_leave_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    starts = f"for n in 1 2 3; do TMPDIR={small} {shlex.join(PROGRAM)} version || exit; done; ls -A {small}"
    ended = nowhere_else(tmp_path, mounted(small, TMPFS.format("size=4m"), "/bin/sh", "-c", starts))
    assert ended.stdout.splitlines() == ["shimmy 0.1.0"] * 3, ended.stderr  # elsewhere, and nothing is listed


def test_a_disk_that_is_full_at_the_first_load_is_the_reason_that_the_client_gets(
    start: StartServer, tmp_path: Path
) -> None:
    (home,) = start().temporary.iterdir()
    n_bytes = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    folder = tmp_path / "full"
    (folder / "tmp").mkdir(parents=True)
    room = TMPFS.format(f"size={n_bytes + 2**20}")
    server = start(program=mounted(folder / "tmp", room, *PROGRAM), folder=folder)
    reply = server.post(CHAT, chat_body("hello"))
    assert (reply.status, reply.error["code"]) == (503, "model_unavailable")
    assert "No space left on device" in reply.error["message"]
    assert str(folder / "tmp") in reply.error["message"]


def test_the_working_directory_may_be_gone(tmp_path: Path, models: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    ended = run(folder, "list", "--model-path", models, before=folder.rmdir)
    assert (ended.returncode, ended.stderr) == (0, "")
    folder.mkdir()
    ended = run(
        folder, "generate", "alpha", "--prompt", "x", "--max-tokens", "1", "--model-path", models, before=folder.rmdir
    )
    assert ended.returncode == 0, ended.stderr


def test_a_start_that_is_ended_while_it_unpacks_leaves_nothing(tmp_path: Path) -> None:
    for delay_ms in range(0, 60, 4):
        with subprocess.Popen(
            [*PROGRAM, "version"], cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            sleep(delay_ms / 1000)  # whatever it is doing then
            process.terminate()
            assert process.wait(DEADLINE_S) in (-SIGTERM, 0, 130), delay_ms
        assert not list(tmp_path.glob("_MEI*")), delay_ms


def test_a_damaged_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "damaged"
    shutil.copy(PROGRAM[-1], damaged)
    monkeypatch.setattr(sys, "executable", str(damaged))
    monkeypatch.setattr(unpacked_folder, "_contents", [])
    packed = [entry for entry in unpacked_folder._files() if entry[3] and entry[-1]]
    _, place, n_bytes, *_ = packed[-1]
    with damaged.open("r+b") as file:
        file.seek(place + n_bytes // 2)
        file.write(bytes(100))
    ended = subprocess.run(
        [*PROGRAM[:-1], damaged, "version"], check=False, cwd=tmp_path, env=environment(tmp_path),
        capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith("shimmy: this file is damaged")
    assert not list(tmp_path.glob("_MEI*"))


@pytest.mark.parametrize("n_missing", [1, 100, 1_000_000, -1])
def test_a_file_that_was_cut_off_says_so(tmp_path: Path, n_missing: int) -> None:
    content = Path(PROGRAM[-1]).read_bytes()
    n_there = len(content) - n_missing if n_missing > 0 else 1_000_000
    part = tmp_path / "part"
    part.write_bytes(content[:n_there])
    part.chmod(0o755)
    ended = subprocess.run(
        [*PROGRAM[:-1], part, "version"], check=False, cwd=tmp_path, env=environment(tmp_path),
        capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (3, "")
    assert f"incomplete, {n_there} of {len(content)} bytes are there: fetch it again" in ended.stderr
