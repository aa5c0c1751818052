"""Folders as the Hugging Face hub ships them, config.json beside weights in SafeTensors, and the layout of its cache.

Knows file names and the two keys of config.json that name an architecture; nothing of weights. All of it is untrusted.
"""

import json
import stat
from collections.abc import Collection
from pathlib import Path

MAX_CONFIG_BYTES = 1 << 20
MAX_ARCHITECTURE_CHARACTERS = 64

_CONFIG = "config.json"


def is_model(file_names: Collection[str]) -> bool:
    """Whether a folder with these files holds a model in SafeTensors."""
    return _CONFIG in file_names and any(name.endswith(".safetensors") for name in file_names)


def architecture(folder: Path) -> str:
    """`model_type` in config.json, else the first of `architectures`; '' when neither can be read."""
    path = folder / _CONFIG
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for its writer
            return ""
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        config = json.loads(content) if len(content) <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(config, dict):
        return ""
    names = config.get("architectures")
    for name in (config.get("model_type"), names[0] if isinstance(names, list) and names else None):
        if isinstance(name, str) and 0 < len(name) <= MAX_ARCHITECTURE_CHARACTERS and name.isprintable():
            return name
    return ""


def name(folder: Path) -> str:
    """The repository's where `folder` is a snapshot in the cache (`models--OWNER--NAME/snapshots/REVISION`)."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2]
    return folder.name
