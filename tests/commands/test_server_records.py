"""The folders of servers in the background: where they are made, who lives in them, what is believed."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shimmy.commands import server_records
from shimmy.commands.server_records import NoPlace, ServerFolder, ServerRecord, places, remove_dead, running


def died(folder: ServerFolder, hosts: tuple[str, ...] = ("127.0.0.1",)) -> None:
    folder.announce(hosts, 80)
    folder.unlock()


def test_a_folder_is_private_and_lives_as_long_as_its_lock(tmp_path: Path) -> None:
    folder = ServerFolder.make([tmp_path / "run"])
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "run", folder.path)] == [0o700, 0o700]
    assert folder.record() is None
    assert folder.is_alive
    assert running([tmp_path / "run"]) == [], "it does not listen yet"
    folder.announce(("127.0.0.1",), 80)
    assert (folder.path / "server.json").stat().st_mode & 0o777 == 0o600
    ((found, record),) = running([tmp_path / "run"])
    assert (found.path, record.hosts, record.port, record.pid) == (folder.path, ("127.0.0.1",), 80, os.getpid())
    assert record.is_of_a_process_here
    folder.unlock()
    assert not folder.is_alive
    assert running([tmp_path / "run"]) == []


def test_a_server_that_inherited_the_lock_keeps_the_folder_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ServerFolder.make([tmp_path])
    assert folder.lock is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(folder.lock,)) as server:
        monkeypatch.setenv(server_records.VARIABLE, f"{os.dup(folder.lock)}:{folder.path}")
        inherited = ServerFolder.inherited()
        assert inherited is not None
        assert inherited.path == folder.path
        assert inherited.lock is not None
        assert not os.get_inheritable(inherited.lock), "workers do not keep it alive"
        assert server_records.VARIABLE not in os.environ
        inherited.unlock()
        folder.unlock()
        assert folder.is_alive
        assert not folder.is_free_within(0)
        server.communicate(b"\n")
    assert folder.is_free_within(5)


def test_a_server_in_the_foreground_inherits_none() -> None:
    assert ServerFolder.inherited() is None


def test_two_who_look_at_once_do_not_see_each_other(tmp_path: Path) -> None:
    folder = ServerFolder.make([tmp_path])
    died(folder)
    descriptor = os.open(folder.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    assert not folder.is_alive
    os.close(descriptor)


def test_a_place_that_will_not_do_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "own").mkdir()
    bad = [tmp_path / "file" / "shimmy", tmp_path / "link", Path("/proc/shimmy")]
    assert ServerFolder.make([*bad, tmp_path / "own"]).path.parent == tmp_path / "own"
    with pytest.raises(NoPlace) as caught:
        ServerFolder.make(bad)
    assert all(f"`{path}`: " in str(caught.value) for path in bad)

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server_records, "_write_private", full)
    with pytest.raises(NoPlace, match="No space left on device"):
        ServerFolder.make([tmp_path / "disk"])
    assert [*(tmp_path / "disk").iterdir()] == []


def test_a_folder_that_others_may_write_to_is_not_believed(tmp_path: Path) -> None:
    folder = ServerFolder.make([tmp_path / "run"])
    folder.announce(("127.0.0.1",), 80)
    for path in (tmp_path / "run", folder.path):
        path.chmod(0o777)
        assert running([tmp_path / "run"]) == []
        path.chmod(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert running([tmp_path / "link", tmp_path / "missing"]) == []
    assert len(running([tmp_path / "run"])) == 1
    folder.unlock()


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"pid": 1}', '{"hosts": 3}', "[" * 100_000])
def test_a_record_that_is_none(tmp_path: Path, content: str) -> None:
    folder = ServerFolder.make([tmp_path])
    (folder.path / "server.json").write_text(content)
    assert folder.record() is None
    folder.unlock()


def test_a_pid_of_another_process_is_not_the_servers() -> None:
    record = ServerRecord(os.getpid(), "1", ("127.0.0.1",), 80)
    assert not record.is_of_a_process_here
    assert not ServerRecord(2**22 + 1, "1", ("127.0.0.1",), 80).is_of_a_process_here


def test_what_the_dead_left_is_removed_a_day_later(tmp_path: Path) -> None:
    old, new, alive = (ServerFolder.make([tmp_path]) for _ in range(3))
    died(old)
    died(new)
    long_ago_s = time.time() - 100_000
    for folder in (old, alive):
        os.utime(folder.path, (long_ago_s, long_ago_s))
    remove_dead([tmp_path, tmp_path / "missing"])
    assert {*tmp_path.iterdir()} == {new.path, alive.path}
    alive.unlock()


def test_where_folders_of_servers_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert places(Path("/cache")) == (tmp_path / "shimmy", Path(f"/var/tmp/shimmy-{user}"), Path("/cache/servers"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.delenv("TMPDIR")
    assert places(None) == (Path(f"/tmp/shimmy-{user}"),)
