"""How an embedding model's token vectors become one: `modules.json` of sentence-transformers, and what it names.

Both are untrusted: only folders directly inside the model's own are looked into.
"""

from pathlib import Path
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors, read_json, shown

MEAN, CLS, LAST = 1, 2, 3  # llama_pooling_type

MAX_BYTES = 1 << 20

_MODULES = "modules.json"
_KINDS = {
    "pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS, "pooling_mode_lasttoken": LAST,
    "mean": MEAN, "cls": CLS, "lasttoken": LAST,
}  # fmt: skip
_HARMLESS = ("Transformer", "Pooling", "Normalize")  # vectors are normalised on their way out anyway


def config_path(folder: Path) -> Path | None:
    """The file that says how to pool; None when the folder is not a model of sentence-transformers."""
    if not (folder / _MODULES).exists():
        return None
    modules = _read_list(folder / _MODULES)
    for module in modules:
        name = str(module.get("type")).rpartition(".")[2]
        if name not in _HARMLESS:
            raise Unconvertible(f"its vectors go through a module `{shown(name)}`, which the engine does not have")
    paths = [module.get("path") for module in modules if str(module.get("type")).endswith(".Pooling")]
    if not paths:
        return None
    path = paths[0]
    if not isinstance(path, str) or not path.isprintable() or not path.strip(".") or set(path) & {"/", "\\"}:
        raise Unconvertible(f"its `{_MODULES}` names `{shown(str(path))}`, which is not a folder in this one")
    return folder / path / "config.json"


def pooling_type(folder: Path) -> int | None:
    """llama_pooling_type, or None when the folder does not say. Raises Unconvertible, InvalidSafetensors or OSError."""
    path = config_path(folder)
    if path is None:
        return None
    if not path.exists():
        raise InvalidSafetensors(f"its `{shown(path.parent.name)}/config.json` is missing; is the download complete?")
    config = read_json(path, MAX_BYTES)
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    mode = config.get("pooling_mode")
    modes += [mode] if isinstance(mode, str) else []
    kinds = {_KINDS.get(mode) for mode in modes}
    if len(kinds) != 1 or None in kinds:
        raise Unconvertible("its pooling is none of mean, cls and last token")
    return kinds.pop()


def _read_list(path: Path) -> list[dict[str, Any]]:
    """The objects of the list in a file."""
    parsed: list[Any] = read_json(path, MAX_BYTES, list)
    if not all(isinstance(item, dict) for item in parsed):
        raise InvalidSafetensors(f"its `{path.name}` is not a list of objects")
    return parsed
