"""A hub and a registry on this machine, which speak the protocols of Hugging Face and Ollama as far as a pull needs
them, and fail as the real ones and what lies in between do."""

import hashlib
import json
import re
import socket
import ssl
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".gguf", ".safetensors")  # what the hub keeps in LFS


@dataclass
class Fault:
    """What goes wrong with one reply for a file's content."""

    status: int = 0  # sent in place of the content
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body, then the connection ends
    body: bytes | None = None  # in place of the right one, of the same length as far as it goes
    extra: bytes = b""  # behind the body, and counted in its length
    content_range: str = ""
    n_connections: int = 0  # that have to be open before the content is sent


@dataclass
class Content:
    """One file."""

    data: bytes
    is_large: bool

    @property
    def digest(self) -> str:
        if self.is_large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


class FakeServer:
    """Answers on 127.0.0.1 in threads of the test's process."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []  # paths, and headers in lower case
        self.faults: deque[Fault] = deque()  # of the next replies with content
        self.has_ranges = True
        self.tells_length = True
        self.etag = ""  # of every file; '' for one that is its digest
        self.lock = Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with outer.lock:
                    outer.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                outer.answer(self)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        raise NotImplementedError

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def most_connections(self) -> int:
        """That were open at once."""
        return self._server.most_connections

    def paths(self, beginning: str) -> list[str]:
        with self.lock:
            return [path for path, _ in self.requests if path.startswith(beginning)]

    def forget_requests(self) -> None:
        """Once all clients have gone, and so none of them can come late."""
        with self._server.changed:
            assert self._server.changed.wait_for(lambda: not self._server.n_connections, timeout=30)
        self.requests.clear()

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    # -- replies -----------------------------------------------------------------------------------------------------

    def send(
        self, handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def send_json(
        self, handler: BaseHTTPRequestHandler, value: object, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send(handler, 200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send_content(self, handler: BaseHTTPRequestHandler, content: Content) -> None:
        """With what the next fault says."""
        with self.lock:
            fault = self.faults.popleft() if self.faults else Fault()
        if fault.status:
            self.send(handler, fault.status, b"no", fault.headers)
            return
        self._server.wait_for_connections(fault.n_connections)
        start, end = 0, len(content.data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "")
        is_part = bool(asked) and self.has_ranges
        if asked and is_part:
            start, end = int(asked[1]), min(int(asked[2] or end - 1) + 1, end)
        body = content.data[start:end]
        if fault.body is not None:
            body = (fault.body + body[len(fault.body) :])[: len(body)]
        body += fault.extra
        handler.send_response(206 if is_part else 200)
        if is_part:
            own_range = f"bytes {start}-{end - 1}/{len(content.data)}"
            handler.send_header("Content-Range", fault.content_range or own_range)
        for name, value in fault.headers.items():
            handler.send_header(name, value)
        handler.send_header("ETag", self.etag or f'"{content.digest}"')
        if self.tells_length:
            handler.send_header("Content-Length", str(len(body)))
        else:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault.cut_after is not None:
            handler.wfile.write(body[: fault.cut_after])
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.wfile.write(body)


class FakeHub(FakeServer):
    """Repositories by their names, one commit each. Large files are behind a signed link on another host name."""

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__()
        self.repositories = {
            name: {path: Content(data, path.endswith(LARGE)) for path, data in files.items()}
            for name, files in repositories.items()
        }
        self.token = ""  # that all routes ask for
        self.link_uses = 1_000_000  # how often a signed link works
        self.redirect = ""  # in place of the signed link
        self.page_rows = 1000
        self.error_code = ""
        self._links: dict[str, int] = {}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        if path.startswith("/signed/"):
            self._answer_signed(handler, path)
        elif self.error_code or (self.token and handler.headers.get("Authorization") != f"Bearer {self.token}"):
            self.send(handler, 401, b"{}", {"X-Error-Code": self.error_code or "RepoNotFound"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self._answer_api(handler, *found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._answer_resolve(handler, found[1], found[3])
        else:
            self.send(handler, 404, b"{}")

    def _files(self, repository: str) -> tuple[str, dict[str, Content]] | None:
        for name, files in self.repositories.items():
            if name.lower() == repository.lower():
                return name, files
        return None

    def _answer_api(self, handler: BaseHTTPRequestHandler, repository: str, what: str, revision: str) -> None:
        found = self._files(repository)
        if found is None:
            self.send(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        name, files = found
        if revision not in {"main", COMMIT, "v1"}:
            self.send(handler, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif what == "revision":
            siblings = [{"rfilename": path} for path in files]
            self.send_json(
                handler, {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
            )
        else:
            self._answer_tree(handler, name, files)

    def _answer_tree(self, handler: BaseHTTPRequestHandler, name: str, files: Mapping[str, Content]) -> None:
        rows: list[dict[str, object]] = [{"type": "directory", "path": "folder", "oid": "0" * 40, "size": 0}]
        for path, content in files.items():
            row: dict[str, object] = {"type": "file", "path": path, "size": len(content.data), "oid": content.digest}
            if content.is_large:
                large = {"oid": content.digest, "size": len(content.data), "pointerSize": 134}
                row |= {"oid": "f" * 40, "lfs": large}
            rows.append(row)
        at = int((re.search(r"cursor=(\d+)", handler.path) or ["", "0"])[1])
        headers = {}
        if at + self.page_rows < len(rows):
            following = f"{self.url}/api/models/{name}/tree/{COMMIT}?recursive=true&cursor={at + self.page_rows}"
            headers["Link"] = f'<{following}>; rel="next"'
        self.send_json(handler, rows[at : at + self.page_rows], headers)

    def _answer_resolve(self, handler: BaseHTTPRequestHandler, repository: str, path: str) -> None:
        found = self._files(repository)
        content = found[1].get(path) if found else None
        if content is None:
            self.send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        about = {"X-Repo-Commit": COMMIT, "ETag": f'"{content.digest}"', "Accept-Ranges": "bytes"}
        if not content.is_large:
            if handler.command == "HEAD":
                self.send(handler, 200, content.data, about)
            else:
                self.send_content(handler, content)
            return
        about |= {"X-Linked-Size": str(len(content.data)), "X-Linked-ETag": f'"{content.digest}"'}
        with self.lock:
            number = len(self._links)
            link = f"/signed/{number}/{content.digest}"
            self._links[link] = self.link_uses
        self.send(handler, 302, b"", {**about, "Location": self.redirect or f"http://localhost:{self.port}{link}"})

    def _answer_signed(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        with self.lock:
            uses_left = self._links.get(path, 0)
            self._links[path] = uses_left - 1
        digest = path.rpartition("/")[2]
        contents = (content for files in self.repositories.values() for content in files.values())
        content = next((content for content in contents if content.digest == digest), None)
        if content is None or uses_left <= 0:
            self.send(handler, 403, b"<Error>AccessDenied</Error>")
        else:
            self.send_content(handler, content)


class FakeRegistry(FakeServer):
    """Models by `NAMESPACE/NAME:TAG`, each a mapping of the last words of media types to contents."""

    def __init__(self, models: Mapping[str, Mapping[str, bytes]], *, asks_for_token: bool = False) -> None:
        super().__init__()
        self.asks_for_token = asks_for_token
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        for name, layers in models.items():
            rows = [self._add(kind, data) for kind, data in layers.items()]
            config = self._add("config", b"{}") | {"mediaType": "application/vnd.docker.container.image.v1+json"}
            media_type = "application/vnd.docker.distribution.manifest.v2+json"
            manifest = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": rows}
            self.manifests[name] = json.dumps(manifest).encode()

    def _add(self, kind: str, data: bytes) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": len(data)}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        if path == "/token":
            self.send_json(handler, {"token": "anonymous"})
        elif path.startswith("/cdn/"):
            self.send_content(handler, Content(self.blobs[path.removeprefix("/cdn/")], is_large=True))
        elif self.asks_for_token and handler.headers.get("Authorization") != "Bearer anonymous":
            realm = f'Bearer realm="{self.url}/token",service="registry",scope="repository:x:pull"'
            self.send(handler, 401, b"{}", {"WWW-Authenticate": realm})
        elif found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            manifest = self.manifests.get(f"{found[1]}:{found[2]}")
            self.send(handler, 200 if manifest else 404, manifest or b"{}")
        elif found := re.fullmatch(r"/v2/(.+)/blobs/(.+)", path):
            self._answer_blob(handler, found[2])
        else:
            self.send(handler, 404, b"{}")

    def _answer_blob(self, handler: BaseHTTPRequestHandler, digest: str) -> None:
        if digest in self.blobs:
            self.send(handler, 307, b"", {"Location": f"http://localhost:{self.port}/cdn/{digest}"})
        else:
            self.send(handler, 404, b"{}")


class FakeFiles(FakeServer):
    """Files by their paths."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.files = {path: Content(data, is_large=True) for path, data in files.items()}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        content = self.files.get(unquote(urlsplit(handler.path).path))
        if content is None:
            self.send(handler, 404, b"no")
        else:
            self.send_content(handler, content)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate of `localhost` that signs itself, and its key; by the program openssl."""
    paths = folder / "certificate.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *names, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


def speak_tls(server: FakeServer, certificate: tuple[Path, Path]) -> None:
    """Before it runs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.n_connections = self.most_connections = 0
        self.changed = Condition()

    def wait_for_connections(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.n_connections >= number, timeout=30)

    def process_request_thread(self, *arguments: Any) -> None:
        with self.changed:
            self.n_connections += 1
            self.most_connections = max(self.most_connections, self.n_connections)
            self.changed.notify_all()
        try:
            super().process_request_thread(*arguments)
        finally:
            with self.changed:
                self.n_connections -= 1
                self.changed.notify_all()

    def handle_error(self, *_: Any) -> None:
        pass  # clients leave in the middle, which is what is tested
