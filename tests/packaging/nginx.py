"""A real nginx with a configuration of a test's own."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.harness import HOST
from tests.e2e.processes import wait_for
from tests.packaging.conftest import debian_program
from tools import debian_tools


def debian_nginx() -> tuple[list[str], dict[str, str]]:
    """The command of Debian's nginx, or of this system's, and its environment."""
    program = debian_program("nginx", "nginx")
    return [program], os.environ | debian_tools.environment(Path(program).parents[2])


@contextmanager
def running(command: list[str], environment: dict[str, str], folder: Path, port: int) -> Iterator[None]:
    """nginx with `folder`/nginx.conf, for the length of the block; it listens on `port` then. Its log is `stderr`."""
    log_path = folder / "stderr"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "-p", folder, "-e", "stderr", "-c", "nginx.conf", "-g", "daemon off; master_process off;"],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip

    def listens() -> bool:
        assert process.poll() is None, log_path.read_text()
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    try:
        wait_for("nginx", listens)
        yield
    finally:
        process.kill()
        process.wait()
