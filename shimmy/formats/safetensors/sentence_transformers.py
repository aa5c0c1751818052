"""How an embedding model's token vectors become one: `modules.json` of sentence-transformers, and what it names.

All of it is untrusted: only folders directly inside the model's own are looked into.
"""

from pathlib import Path
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import (
    CheckpointTensor,
    InvalidSafetensors,
    read_file,
    read_json,
    shown,
    shown_value,
)

MEAN, CLS, LAST = 1, 2, 3  # llama_pooling_type

MAX_BYTES = 1 << 20
_MAX_MODULES = 16

_MODULES = "modules.json"
_DENSE, _DENSE_WEIGHTS = "Dense", "model.safetensors"
_KINDS = {
    "pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS, "pooling_mode_lasttoken": LAST,
    "mean": MEAN, "cls": CLS, "lasttoken": LAST,
}  # fmt: skip
# In this order. Vectors are normalised on their way out anyway.
_ORDER = ("Transformer", "Pooling", _DENSE, "Normalize")


def module_files(folder: Path) -> list[Path]:
    """The files of the modules behind the transformer that count, whether they are there or not."""
    files = []
    for kind, path in _modules(folder):
        if kind in {"Pooling", _DENSE}:
            files.append(path / "config.json")
        if kind == _DENSE:
            files.append(path / _DENSE_WEIGHTS)
    return files


def is_part(folder: Path) -> bool:
    """Whether `folder` is no model, but a module with weights of the one that the folder around it is."""
    try:
        return any(kind == _DENSE and path == folder for kind, path in _modules(folder.parent))
    except (Unconvertible, InvalidSafetensors, OSError):
        return False


def pooling_type(folder: Path) -> int | None:
    """llama_pooling_type, or None when the folder does not say. Raises Unconvertible, InvalidSafetensors or OSError."""
    path = next((path for kind, path in _modules(folder) if kind == "Pooling"), None)
    if path is None:
        return None
    config = _config(path)
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    mode = config.get("pooling_mode")
    modes += [mode] if isinstance(mode, str) else []
    kinds = {_KINDS.get(mode) for mode in modes}
    if len(kinds) != 1 or None in kinds:
        raise Unconvertible("its pooling is none of mean, cls and last token")
    return kinds.pop()


def dense_matrices(folder: Path) -> list[CheckpointTensor]:
    """What pooled vectors are multiplied with, one after the other: matrices of a row for each number that comes out.

    Raises Unconvertible, InvalidSafetensors or OSError.
    """
    matrices = []
    for path in (path for kind, path in _modules(folder) if kind == _DENSE):
        config = _config(path)
        activation = config.get("activation_function")
        if config.get("bias") is not False or activation != "torch.nn.modules.linear.Identity":
            raise Unconvertible("its vectors go through a module `Dense` with a bias or an activation function")
        if not (path / _DENSE_WEIGHTS).exists():
            raise InvalidSafetensors(f"its `{shown(path.name)}/{_DENSE_WEIGHTS}` is missing; is the download complete?")
        match read_file(path / _DENSE_WEIGHTS).tensors:
            case {"linear.weight": tensor, **others} if not others and len(tensor.shape) == 2 and all(tensor.shape):
                matrices.append(tensor)
            case _:
                raise Unconvertible("its module `Dense` has other tensors than one matrix")
    return matrices


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module; none when the folder is not a model of sentence-transformers."""
    if not (folder / _MODULES).exists():
        return []
    modules: list[Any] = read_json(folder / _MODULES, MAX_BYTES, list)
    if len(modules) > _MAX_MODULES or not all(isinstance(module, dict) for module in modules):
        raise InvalidSafetensors(f"its `{_MODULES}` is not a list of objects")
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    for kind in kinds:
        if kind not in _ORDER:
            raise Unconvertible(f"its vectors go through a module `{shown(kind)}`, which the engine does not have")
    if kinds != sorted(kinds, key=_ORDER.index):
        raise Unconvertible(f"its `{_MODULES}` has its modules in another order than the engine")
    return [(kind, _inside(folder, module.get("path"), kind)) for kind, module in zip(kinds, modules, strict=True)]


def _inside(folder: Path, path: object, kind: str) -> Path:
    """The folder of a module. The transformer's may be the model's own, and no file of Normalize is read."""
    if kind not in {"Pooling", _DENSE}:
        return folder
    if not isinstance(path, str) or not path.isprintable() or not path.strip(".") or set(path) & {"/", "\\"}:
        raise Unconvertible(f"its `{_MODULES}` names `{shown_value(path)}`, which is not a folder in this one")
    return folder / path


def _config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").exists():
        raise InvalidSafetensors(f"its `{shown(path.name)}/config.json` is missing; is the download complete?")
    config: dict[str, Any] = read_json(path / "config.json", MAX_BYTES)
    return config
