"""Folders of golden families with another config.json or other tensors, and what is said of them."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shimmy.formats.convert.convert import plan
from shimmy.formats.format_errors import Unconvertible
from tests.golden.weights import Tensor, checkpoint, write_folder, write_json, write_safetensors

FILE = "model.safetensors"


def changed(family: str, changes: Mapping[str, Any], folder: Path) -> Path:
    """A folder of the family with these values in config.json, in the text model's part of it."""
    path = write_folder(family, folder / "model", "5") / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    text.update({key: value for key, value in changes.items() if value is not ...})
    for key in [key for key, value in changes.items() if value is ...]:
        text.pop(key, None)
    write_json(path, config)
    return path.parent


def metadata(folder: Path) -> dict[str, Any]:
    """What a GGUF made of the folder says, by keys without the architecture."""
    return {key.partition(".")[2]: value for key, _, value in plan(folder).recipe.metadata}


def reason(family: str, changes: Mapping[str, Any], folder: Path) -> str:
    """Why the family is not converted with these values."""
    return refusal(changed(family, changes, folder))


def refusal(folder: Path) -> str:
    """Why a folder is not converted."""
    with pytest.raises(Unconvertible) as caught:
        plan(folder)
    return str(caught.value)


def check_names_of_tensors(family: str, folder: Path, is_optional: Callable[[str], bool] = lambda _: False) -> None:
    """Each tensor that is missing is named, or the experts of which it is one, and so is one too many."""
    path = write_folder(family, folder / "model", "5")
    _, tensors = checkpoint(family, "5")
    plan(path)
    for name in tensors:
        others: dict[str, Tensor] = {other: tensor for other, tensor in tensors.items() if other != name}
        write_safetensors(path / FILE, others)
        if is_optional(name):
            plan(path)
            continue
        with pytest.raises(Unconvertible) as caught:
            plan(path)
        words = re.sub(r"^(?:(?:backbone|transformer|language_model|model)\.)+", "", name).split(".")
        assert ".".join(words[:3]) in str(caught.value), name
    extra = {"model.layers.0.self_attn.strange.weight": ("F32", (4,), bytes(16))}
    write_safetensors(path / FILE, {**tensors, **extra})
    with pytest.raises(Unconvertible, match="strange"):
        plan(path)
