"""Folders as the Hugging Face hub ships them, of models and of adapters, and the layout of its cache.

A model is a config.json beside weights in SafeTensors, a LoRA adapter what PEFT writes. Knows file names and the two
keys of config.json that name an architecture; nothing of weights. All of it is untrusted.
"""

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from shimmy.system.files import read_start

MAX_CONFIG_BYTES = 1 << 20
MAX_ARCHITECTURE_CHARACTERS = 64

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADDITIONAL_TEMPLATES = "additional_chat_templates"  # a folder beside a model

MAX_REVISION_BYTES = 256

_CONFIG = "config.json"
MISTRAL_CONFIG = "params.json"  # beside `consolidated*.safetensors`, in Mistral's own format
_MISTRAL_WEIGHTS = "consolidated"
_PICKLE = re.compile(r"(?:pytorch_model.*\.bin|consolidated.*\.pth)")
_REPOSITORY = "models--"
_SNAPSHOTS = "snapshots"


def is_model(file_names: Collection[str]) -> bool:
    """Whether a folder with these files holds a model in SafeTensors; also in Mistral's own format, to be refused."""
    weights = [name for name in file_names if name.endswith(".safetensors") and name != ADAPTER_WEIGHTS]
    if MISTRAL_CONFIG in file_names and any(name.startswith(_MISTRAL_WEIGHTS) for name in weights):
        return True
    return _CONFIG in file_names and bool(weights)


def is_adapter(file_names: Collection[str]) -> bool:
    """Whether a folder with these files holds a LoRA adapter as PEFT writes it."""
    return ADAPTER_CONFIG in file_names and ADAPTER_WEIGHTS in file_names


def without_weights(file_names: Collection[str]) -> str:
    """Why a folder with these files holds no model in SafeTensors."""
    pickle = next(filter(_PICKLE.fullmatch, sorted(file_names)), None)
    if pickle is not None:
        return (
            f"its weights are in `{pickle}`, which is not read, as it may hold any program: get a version of the model "
            "with `model.safetensors`"
        )
    return "it has neither `model.safetensors` nor `model.safetensors.index.json`"


def adapter_file(path: Path) -> Path:
    """Where the weights of the adapter at `path` are, which is a folder or a file."""
    return path / ADAPTER_WEIGHTS if path.is_dir() else path


def architecture(folder: Path) -> str:
    """`model_type` in config.json, else the first of `architectures`; '' when neither can be read."""
    path = folder / _CONFIG
    try:
        content = read_start(path, MAX_CONFIG_BYTES + 1)
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository in the cache: `models--OWNER--NAME/snapshots/REVISION`."""

    repository: Path  # its folder in the cache
    revision: str
    inner: str  # the folder within the revision; '' for the revision itself

    @property
    def owner_and_name(self) -> str:
        return self.repository.name.removeprefix(_REPOSITORY).replace("--", "/")

    @property
    def name(self) -> str:
        return self.owner_and_name.rpartition("/")[2]


def snapshot(folder: Path) -> Snapshot | None:
    """The revision that `folder` is, or lies in; None when it is not in the hub's cache."""
    parts = folder.parts
    for index in range(len(parts) - 2, 0, -1):
        if parts[index] == _SNAPSHOTS and parts[index - 1].startswith(_REPOSITORY):
            return Snapshot(Path(*parts[:index]), parts[index + 1], "/".join(parts[index + 2 :]))
    return None


def current_revision(repository: Path) -> str:
    """The revision that `refs/main` of a repository in the cache names; '' when it names none that is there."""
    path = repository / "refs" / "main"
    try:
        revision = os.fsdecode(read_start(path, MAX_REVISION_BYTES).strip())
    except OSError:
        return ""
    # A name of one folder, and of nothing outside.
    if not revision or revision in {".", ".."} or set(revision) & {"/", "\0"}:
        return ""
    return revision if os.path.isdir(repository / _SNAPSHOTS / revision) else ""  # noqa: PTH112 - never raises


def name(folder: Path) -> str:
    """The repository's where `folder` is a revision in the cache."""
    found = snapshot(folder)
    return found.name if found is not None and not found.inner else folder.name
