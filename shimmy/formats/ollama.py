"""Ollama's model store: which blob each `name:tag` means, as its manifests say.

Knows the folder `manifests/HOST/NAMESPACE/NAME/TAG` and the JSON in it (image manifests of the registry protocol), and
nothing of what a blob holds. Everything in it is untrusted: a manifest that makes no sense is passed over with the
reason, and a digest never leads out of the store.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

MODEL_LAYER = "application/vnd.ollama.image.model"
MAX_MANIFEST_BYTES = 1 << 20
MAX_MANIFESTS = 10_000

_DEFAULT_HOST = "registry.ollama.ai"
_DEFAULT_NAMESPACE = "library"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


def is_store(folder: Path) -> bool:
    return all(os.path.isdir(folder / name) for name in ("manifests", "blobs"))  # noqa: PTH112 - never raises


def models(store: Path, warn: Callable[[Path, str], None]) -> Iterator[tuple[str, Path]]:
    """Names like `llama3:8b` or `somebody/llama3:8b`, with the file each means, in order of name.

    `warn` is told which manifest is passed over, and why.
    """
    manifests = store / "manifests"
    try:
        paths = sorted(manifests.glob("*/*/*/*"))[:MAX_MANIFESTS]
    except OSError as exc:
        warn(manifests, str(exc.strerror))
        return
    for path in paths:
        try:
            blob = _model_blob(store, path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            warn(path, f"it is no manifest ({exc})")
            continue
        if blob is not None:
            yield _name(path.relative_to(manifests).parts), blob


def _model_blob(store: Path, manifest: Path) -> Path | None:
    """The file of the model layer; None when the manifest has none."""
    if not manifest.is_file():
        return None
    with manifest.open("rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise ValueError(f"more than {MAX_MANIFEST_BYTES} bytes")
    for layer in json.loads(content)["layers"]:
        if layer["mediaType"] == MODEL_LAYER:
            match = _DIGEST.fullmatch(layer["digest"])
            if match is None:
                raise ValueError("its digest is none")
            return store / "blobs" / f"sha256-{match[1]}"
    return None


def _name(parts: tuple[str, ...]) -> str:
    """As `ollama list` writes it: the default host and namespace go without saying."""
    host, namespace, name, tag = parts
    if host != _DEFAULT_HOST:
        return f"{host}/{namespace}/{name}:{tag}"
    return f"{name}:{tag}" if namespace == _DEFAULT_NAMESPACE else f"{namespace}/{name}:{tag}"
