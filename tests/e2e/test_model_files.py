"""`rm` and `cp`, beside a server that serves the models."""

import os
import pty
import subprocess
from pathlib import Path

from tests.e2e.conftest import StartServer
from tests.e2e.harness import PROGRAM, environment, run
from tests.e2e.processes import DEADLINE_S, wait_for
from tests.tiny_models import write_tiny_model


def test_a_model_that_is_removed_is_unloaded(start: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_tiny_model(folder, "tiny")
    write_tiny_model(folder, "other", seed=1)
    server = start("--model-path", folder)
    server.chat("hello", "tiny", max_tokens=1)
    result = run(tmp_path, "rm", "--yes", "--model-path", folder, "tiny")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("removed tiny, ")
    wait_for("the worker's end", lambda: not server.workers())
    listed = server.get("/api/models").json()["models"]
    assert [entry["name"] for entry in listed] == ["other"]


def test_the_api_deletes_a_model(start: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = write_tiny_model(folder, "tiny")
    server = start("--model-path", folder, "--default-model", "tiny", "--alias", "any*=tiny")
    server.chat("hello", "anything", max_tokens=1)
    for name in ("anything", "none"):
        assert server.request("DELETE", f"/api/models/{name}").status == 404
    reply = server.request("DELETE", "/api/models/tiny")
    assert reply.json() == {"name": "tiny", "files": [str(path)], "size_bytes": reply.json()["size_bytes"]}
    assert not path.exists()
    assert server.get("/api/models").json()["models"] == []
    wait_for("the worker's end", lambda: not server.workers())
    assert server.request("DELETE", "/api/models/tiny").status == 404


def test_nothing_is_removed_without_a_yes(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, "tiny")
    result = run(tmp_path, "rm", "--model-path", tmp_path, "tiny")
    assert result.returncode == 1
    assert "--yes" in result.stderr
    for answer, is_there in ((b"\n", True), (b"no\n", True), (b"y\n", False)):
        primary, secondary = pty.openpty()
        with subprocess.Popen(
            [*PROGRAM, "rm", "--model-path", tmp_path, "tiny"],
            cwd=tmp_path, env=environment(tmp_path / "x"), stdin=secondary, stdout=subprocess.PIPE, stderr=secondary,
        ) as process:  # fmt: skip
            os.close(secondary)
            shown = b""
            while b"[y/N]" not in shown:
                shown += os.read(primary, 4096)
            assert str(path).encode() in shown
            os.write(primary, answer)
            process.communicate(timeout=DEADLINE_S)
        os.close(primary)
        assert (process.returncode, path.exists()) == (int(is_there), is_there)


def test_an_alias_is_known_to_servers_and_commands_until_it_is_removed(start: StartServer, models: Path) -> None:
    server = start()
    home, where = server.temporary, ("--model-path", models)
    given = run(home, "cp", *where, "alpha", "My/Small")
    assert (given.returncode, given.stdout) == (0, "my/small is alpha\n"), given.stderr
    assert server.chat("hello", "my/small", max_tokens=1)
    assert "my/small" in [entry["id"] for entry in server.get("/v1/models").json()["data"]]
    assert run(home, "cp", *where, "alpha", "beta").returncode == 1
    assert run(home, "generate", *where, "my/small", "hello", "-n", "1").returncode == 0
    assert run(home, "rm", *where, "my/small").stdout == "removed the alias my/small\n"
    assert server.get("/v1/models/my/small").status == 404
    assert [entry["name"] for entry in server.get("/api/models").json()["models"]] == ["alpha", "beta"]


def test_a_broken_file_of_aliases_stays_and_a_model_can_be_removed(tmp_path: Path) -> None:
    folder, aliases = tmp_path / "models", Path(f"{tmp_path}-config") / "shimmy" / "aliases.json"
    folder.mkdir()
    aliases.parent.mkdir(parents=True)
    aliases.write_text('{"small": "tiny-q8-0",}')
    path, where = write_tiny_model(folder, "tiny-Q8_0"), ("--model-path", folder)
    refused = run(tmp_path, "cp", *where, "tiny-q8-0", "other")
    assert refused.returncode == 1
    assert "line 1 column 2" in refused.stderr  # at the comma, or behind it, by the version of Python
    assert "mend it first" in refused.stderr
    removed = run(tmp_path, "rm", "--yes", *where, "tiny:q8_0")
    assert removed.returncode == 0, removed.stderr
    assert "all aliases stay as they are" in removed.stderr
    assert not path.exists()
    assert aliases.read_text() == '{"small": "tiny-q8-0",}'
