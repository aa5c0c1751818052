"""Repositories of the Hugging Face hub: what is in them, and the cache that all its users share.

Knows the hub's routes (`/api/models/...`, `/resolve/`) and `models--OWNER--NAME/{blobs,snapshots,refs}`.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from shimmy.errors import BadRequest, NotFound, PullFailed
from shimmy.formats.safetensors import huggingface
from shimmy.hub.choose_files import choose
from shimmy.hub.references import HubReference, is_safe_path, parse
from shimmy.hub.settings import HubSettings
from shimmy.hub.transfer import json_client
from shimmy.hub.transfer.digests import GIT, SHA256
from shimmy.hub.transfer.download import fetch
from shimmy.hub.transfer.file_source import RemoteFile, Transfer
from shimmy.hub.transfer.web import HttpReply, Target, origin
from shimmy.system.files import write_atomically

MAX_PAGES = 50
_NEXT = re.compile(r'<([^<>]+)>;\s*rel="next"')


@dataclass(frozen=True, slots=True)
class _Entry:
    size_bytes: int
    digest: str  # of the content, and the name of its blob


def pull_repository(reference: HubReference, settings: HubSettings, transfer: Transfer) -> Path:
    """Have the model of `reference` in the cache; its first file there, or its folder."""
    if settings.cache is None:
        raise BadRequest("no folder is searched for models: name one with --model-dirs, and pull again")
    if settings.is_offline:
        return _cached(reference, settings.cache)
    repository, commit = _revision(reference, settings, transfer)
    entries = _entries(repository, commit, settings, transfer)
    paths = choose({path: entry.size_bytes for path, entry in entries.items()}, reference)
    if outside := next((path for path in paths if not is_safe_path(path)), None):
        raise PullFailed(f"`{repository}` names a file that would leave its folder: {outside[:200]!a}")
    meter = transfer.meter
    meter.total = sum(entries[path].size_bytes for path in paths)
    meter.say(
        "files",
        files=[{"name": path, "size_bytes": entries[path].size_bytes} for path in paths],
        total_bytes=meter.total,
    )
    flat = f"models--{repository.replace('/', '--')}"
    folder = settings.cache / flat
    for path in paths:
        entry = entries[path]
        url = f"{settings.endpoint}/{repository}/resolve/{commit}/{quote(path)}"
        file = RemoteFile(path, url, entry.size_bytes, entry.digest, settings.token)
        fetch(
            file, folder / "blobs" / entry.digest, settings.cache / ".locks" / flat / f"{entry.digest}.lock", transfer
        )
    snapshot = folder / "snapshots" / commit
    for path in paths:
        _link(snapshot / path, folder / "blobs" / entries[path].digest)
    if reference.revision != commit:
        write_atomically(folder / "refs" / reference.revision, commit.encode())
    return snapshot / paths[0] if paths[0].lower().endswith(".gguf") else snapshot


def _revision(reference: HubReference, settings: HubSettings, transfer: Transfer) -> tuple[str, str]:
    """The repository as the hub calls it, and the commit that the revision means."""
    url = f"{settings.endpoint}/api/models/{reference.repository}/revision/{quote(reference.revision, safe='')}"
    answer = _ask(url, reference.repository, settings, transfer)[1]
    commit, name = answer.get("sha"), answer.get("id", reference.repository)
    if not isinstance(commit, str) or not GIT.fullmatch(commit) or not isinstance(name, str):
        raise PullFailed(f"the hub does not say which commit `{reference.revision}` of `{reference.repository}` is")
    found = parse(name)  # another one where it was renamed, or written in another case
    if not isinstance(found, HubReference) or found.repository != name:
        raise PullFailed(f"the hub calls `{reference.repository}` a name that is none")
    return found.repository, commit


def _entries(repository: str, commit: str, settings: HubSettings, transfer: Transfer) -> dict[str, _Entry]:
    """All files of a commit by their paths."""
    entries: dict[str, _Entry] = {}
    url = f"{settings.endpoint}/api/models/{repository}/tree/{commit}?recursive=true"
    for _ in range(MAX_PAGES):
        reply, rows = _ask(url, repository, settings, transfer)
        for row in rows if isinstance(rows, list) else ():
            path, entry = _entry(row)
            if entry is not None:
                entries[path] = entry
        following = _NEXT.search(reply.header("Link"))
        if following is None:
            return entries
        url = urljoin(url, following[1])
        if origin(url) != origin(settings.endpoint):
            break
    raise PullFailed(f"the hub's list of `{repository}` does not end")


def _entry(row: Any) -> tuple[str, _Entry | None]:
    """One row of the list; None for what is no file, or of which nothing could be checked."""
    if not isinstance(row, dict) or row.get("type") != "file" or not isinstance(row.get("path"), str):
        return "", None
    large = row.get("lfs")
    kept = large if isinstance(large, dict) else row
    size, digest = kept.get("size"), str(kept.get("oid", "")).removeprefix("sha256:")
    kind = SHA256 if kept is large else GIT
    if type(size) is not int or not 0 <= size < 2**53 or not kind.fullmatch(digest):
        return "", None
    return row["path"], _Entry(size, digest)


def _ask(url: str, repository: str, settings: HubSettings, transfer: Transfer) -> tuple[HttpReply, Any]:
    token = (settings.endpoint, settings.token)
    reply, body = json_client.get(Target(url), transfer, token=token)
    if reply.status == 200:
        answer = json_client.decoded(reply, body)
        if isinstance(answer, dict | list):
            return reply, answer
        raise PullFailed(f"the hub answers with something else than `{repository}`")
    code, login = reply.header("X-Error-Code"), "log in with `hf auth login`, or set HF_TOKEN"
    if code == "RevisionNotFound":
        raise NotFound(f"`{repository}` has no such revision")
    if code == "GatedRepo":
        raise PullFailed(f"`{repository}` is gated: ask for access on its page, then {login}")
    if reply.status in {401, 403} or (reply.status == 404 and not settings.token):
        told = "HF_TOKEN does not open it" if settings.token else f"it does not exist, or it is private: {login}"
        raise NotFound(f"the hub does not show `{repository}` ({reply.status}): {told}")
    if reply.status == 404:
        raise NotFound(f"the hub has no `{repository}`")
    raise PullFailed(f"the hub answers {reply.status} to a question about `{repository}`")


def _link(path: Path, blob: Path) -> None:
    """As huggingface_hub has it: a relative link, made whole."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{blob.name}.{os.getpid()}")
    try:
        unfinished.symlink_to(os.path.relpath(blob, path.parent))
        unfinished.replace(path)
    except OSError as exc:
        with suppress(OSError):
            unfinished.unlink()
        raise PullFailed(f"`{path}` cannot be made: {exc.strerror}") from exc


def _cached(reference: HubReference, cache: Path) -> Path:
    """What an earlier pull has left, as HF_HUB_OFFLINE asks for."""
    folder = cache / f"models--{reference.repository.replace('/', '--')}"
    commit = reference.revision
    if not GIT.fullmatch(commit):
        commit = huggingface.current_revision(folder) if commit == "main" else _ref(folder, commit)
    snapshot = folder / "snapshots" / commit
    found = (path for path in sorted(snapshot.rglob("*")) if commit and path.is_file())
    sizes = {str(path.relative_to(snapshot)): path.stat().st_size for path in found}
    if not sizes:
        raise NotFound(f"`{reference.repository}` is not in the cache, and HF_HUB_OFFLINE is set")
    paths = choose(sizes, reference)
    return snapshot / paths[0] if paths[0].lower().endswith(".gguf") else snapshot


def _ref(folder: Path, revision: str) -> str:
    with suppress(OSError, ValueError):
        text = (folder / "refs" / revision).read_text().strip()
        return text if GIT.fullmatch(text) else ""
    return ""
