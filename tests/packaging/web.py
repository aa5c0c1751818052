"""A web server on this machine with the files of a release, as people download them."""

import hashlib
import platform
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FILES = {"x86_64": "shimmy-linux-x86_64", "aarch64": "shimmy-linux-aarch64"}


@dataclass
class Web:
    """A folder that is served."""

    url: str = ""
    asked: list[str] = field(default_factory=list)  # the paths of all requests


class Downloads(SimpleHTTPRequestHandler):
    """Serves a folder; of a file with `.cut` beside it only the first half arrives."""

    def __init__(self, *arguments: Any, web: Web, **named: Any) -> None:
        self._web = web
        super().__init__(*arguments, **named)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        is_cut = Path(self.translate_path(self.path) + ".cut").exists()
        outputfile.write(content[: len(content) // 2] if is_cut else content)

    def log_request(self, *_: object) -> None:
        self._web.asked.append(self.path)

    def log_error(self, *_: object) -> None:
        pass


@contextmanager
def published(folder: Path) -> Iterator[Web]:
    """A web server for the length of the block."""
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Downloads, directory=str(folder), web=web))
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def publish(folder: Path, program: Path) -> None:
    """Make a release of a program for this machine."""
    name = FILES[platform.machine()]
    shutil.copyfile(program, folder / name)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(program.read_bytes()).hexdigest()}  {name}\n")
