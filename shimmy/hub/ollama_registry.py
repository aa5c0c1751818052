"""Models of Ollama's registry, which speaks the protocol of OCI registries, into the layout of Ollama's store.

Knows manifests, blobs and the registry's anonymous tokens; what a manifest means is read by `formats/ollama_store`.
"""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from shimmy.errors import BadRequest, NotFound, PullFailed
from shimmy.formats.ollama_store import DEFAULT_HOST, DIGEST, MAX_MANIFEST_BYTES, pulling
from shimmy.hub.references import OllamaReference
from shimmy.hub.settings import HubSettings
from shimmy.hub.transfer import json_client
from shimmy.hub.transfer.download import fetch
from shimmy.hub.transfer.file_source import RemoteFile, Transfer
from shimmy.hub.transfer.web import Target, host_of
from shimmy.system.files import write_atomically

_ACCEPT = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
_MODEL = "application/vnd.ollama.image.model"
_CHALLENGE = re.compile(r'(?<!\w)(\w++)="([^"]*)"')
_MAX_LAYERS = 100


def pull_name(reference: OllamaReference, settings: HubSettings, transfer: Transfer) -> Path:
    """Have the model of `reference` in the store; the path of its manifest."""
    store = settings.store
    if store is None:
        raise BadRequest("Ollama's models go into its store, which is not searched here: add it to --model-dirs")
    if settings.is_offline:
        raise NotFound("HF_HUB_OFFLINE is set: nothing is pulled from Ollama's registry")
    place = f"{settings.registry}/v2/{reference.namespace}/{reference.name}"
    manifest, token = _manifest(place, reference, transfer)
    layers = _layers(manifest, reference)
    meter = transfer.meter
    meter.total = sum(size for _, _, size in layers)
    meter.say(
        "files",
        files=[{"name": name, "size_bytes": size} for name, _, size in layers],
        total_bytes=meter.total,
    )
    with pulling(store):
        for name, digest, size in layers:
            url = f"{place}/blobs/sha256:{digest}"
            blob = store / "blobs" / f"sha256-{digest}"
            fetch(RemoteFile(name, url, size, digest, token), blob, store / ".locks" / f"{blob.name}.lock", transfer)
        path = store / "manifests" / DEFAULT_HOST / reference.namespace / reference.name / reference.tag
        try:
            write_atomically(path, manifest)
        except OSError as exc:
            raise PullFailed(f"`{path}` cannot be written: {exc.strerror}") from exc
    return path


def _manifest(place: str, reference: OllamaReference, transfer: Transfer) -> tuple[bytes, str]:
    """The manifest, byte for byte, and the token that blobs take, too; '' for none."""
    target = Target(f"{place}/manifests/{reference.tag}")
    token = ""
    for is_second in (False, True):
        reply, body = json_client.get(target, transfer, {"Accept": _ACCEPT}, (target.url, token))
        if reply.status == 200 and len(body) <= MAX_MANIFEST_BYTES:
            return body, token
        if reply.status != 401 or is_second:
            break
        token = _token(reply.header("WWW-Authenticate"), target, transfer)
    if reply.status in {400, 404, 401}:
        raise NotFound(f"the registry has no `{reference.namespace}/{reference.name}:{reference.tag}`")
    raise PullFailed(f"`{host_of(target.url)}` answers {reply.status} for the manifest")


def _token(challenge: str, target: Target, transfer: Transfer) -> str:
    """A token without an account (distribution.github.io, "Token Authentication")."""
    fields = dict(_CHALLENGE.findall(challenge)) if challenge.lower().startswith("bearer ") else {}
    realm = fields.pop("realm", "")
    if not realm.startswith(("https://", f"{target.url.partition('/v2/')[0]}/")):
        raise PullFailed(f"`{host_of(target.url)}` asks for a login that is not supported")
    query = urlencode({name: value for name, value in fields.items() if name in {"service", "scope"}})
    reply, body = json_client.get(Target(f"{realm}{'&' if '?' in realm else '?'}{query}"), transfer)
    answer = json_client.decoded(reply, body) if reply.status == 200 else {}
    token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise PullFailed(f"`{host_of(realm)}` gives no token")
    return token


def _layers(manifest: bytes, reference: OllamaReference) -> list[tuple[str, str, int]]:
    """The last word of each blob's media type, its digest and its size, each blob once."""
    shown = f"{reference.name}:{reference.tag}"
    try:
        content: Any = json.loads(manifest)
        rows = [*content["layers"], *([content["config"]] if content.get("config") else [])]
        found = [(str(row["mediaType"]), DIGEST.fullmatch(row["digest"]), row["size"]) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PullFailed(f"the registry's manifest of `{shown}` makes no sense") from None
    if len(found) > _MAX_LAYERS or not any(kind == _MODEL for kind, _, _ in found):
        raise PullFailed(f"`{shown}` has no model that can be served here")
    layers: dict[str, tuple[str, str, int]] = {}
    for kind, digest, size in found:
        if digest is None or type(size) is not int or not 0 <= size < 2**53:
            raise PullFailed(f"the registry's manifest of `{shown}` makes no sense")
        name = f"{shown} {kind.rpartition('.')[2] if kind.isprintable() else ''}"[:200]
        layers.setdefault(digest[1], (name, digest[1], size))
    return [*layers.values()]
