"""Folders as the Hugging Face hub ships them, of models and of adapters, and the layout of its cache.

A model is a config.json beside weights in SafeTensors, a LoRA adapter what PEFT writes. Knows file names and the two
keys of config.json that name an architecture; nothing of weights. All of it is untrusted.
"""

import json
import stat
from collections.abc import Collection
from pathlib import Path

MAX_CONFIG_BYTES = 1 << 20
MAX_ARCHITECTURE_CHARACTERS = 64

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_CONFIG = "config.json"


def is_model(file_names: Collection[str]) -> bool:
    """Whether a folder with these files holds a model in SafeTensors."""
    return _CONFIG in file_names and any(
        name.endswith(".safetensors") and name != ADAPTER_WEIGHTS for name in file_names
    )


def is_adapter(file_names: Collection[str]) -> bool:
    """Whether a folder with these files holds a LoRA adapter as PEFT writes it."""
    return ADAPTER_CONFIG in file_names and ADAPTER_WEIGHTS in file_names


def adapter_file(path: Path) -> Path:
    """Where the weights of the adapter at `path` are, which is a folder or a file."""
    return path / ADAPTER_WEIGHTS if path.is_dir() else path


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
