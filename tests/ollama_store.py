"""Ollama's model store as `ollama pull` leaves it."""

import hashlib
import json
from pathlib import Path

from tests.tiny_models import write_tiny_model


def put_in_ollama(store: Path, name: str, seed: int = 0, **layers: bytes) -> None:
    """As `ollama pull` stores a model; `name` is HOST/NAMESPACE/NAME/TAG, `layers` what comes with it."""
    store.mkdir(parents=True, exist_ok=True)
    model = write_tiny_model(store, "new", seed=seed)
    content = model.read_bytes()
    model.unlink()
    contents = {"template": b"{{ .Prompt }}", "model": content, **layers}
    (store / "blobs").mkdir(exist_ok=True)
    rows = []
    for kind, blob in contents.items():
        digest = "sha256:" + hashlib.sha256(blob).hexdigest()
        path = store / "blobs" / digest.replace(":", "-")
        if not path.exists():
            path.write_bytes(blob)
        rows.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": len(blob)})
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": rows}))
