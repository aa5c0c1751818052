"""Ollama's model store: which blobs each `name:tag` means, and what its manifest wants requests to get.

Knows the folder `manifests/HOST/NAMESPACE/NAME/TAG`, the JSON in it (image manifests of the registry protocol), and the
layers that are JSON or text; nothing of what a blob of weights holds. Everything in it is untrusted: what makes no
sense is passed over with the reason, and a digest never leads out of the store. Ollama's template layer is in Go's
template language and is not used: a model's own chat template is in its GGUF file. Nor is `num_ctx`.
"""

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shimmy.messages.model_info import ModelDefaults
from shimmy.system.files import locked, read_start
from shimmy.text.surrogates import has_lone_surrogate

MAX_MANIFEST_BYTES = 1 << 20
MAX_MANIFESTS = 10_000
MAX_PARAMS_BYTES = 1 << 16
MAX_SYSTEM_BYTES = 1 << 17
MAX_ADAPTERS = 16
MAX_STOPS, MAX_STOP_CHARACTERS = 64, 1024

_LOCK = Path(".locks", "pulls.lock")
_LAYER = "application/vnd.ollama.image."
DEFAULT_HOST = "registry.ollama.ai"
_DEFAULT_NAMESPACE = "library"
DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_INT32_MAX = 2**31 - 1
# Those of Ollama's parameters that are sampling fields, all under llama.cpp's names.
_SAMPLING: dict[str, type[int | float]] = {
    "seed": int, "temperature": float, "top_k": int, "top_p": float, "min_p": float, "typical_p": float,
    "repeat_last_n": int, "repeat_penalty": float, "presence_penalty": float, "frequency_penalty": float,
    "mirostat": int, "mirostat_tau": float, "mirostat_eta": float,
}  # fmt: skip
_NONSENSE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)

Warn = Callable[[Path, str], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one `name:tag` is made of."""

    path: Path  # its own
    name: str  # like `llama3:8b` or `somebody/llama3:8b`
    model: Path
    adapters: tuple[Path, ...]
    projector: Path | None
    defaults: ModelDefaults

    @property
    def is_plain(self) -> bool:
        """There is nothing to it but the model."""
        return not self.adapters and self.defaults == ModelDefaults()


@contextmanager
def pulling(store: Path) -> Iterator[None]:
    """While a model is pulled into `store`: its blobs come before the manifest that needs them. Raises OSError."""
    with locked(store / _LOCK, fcntl.LOCK_SH):
        yield


@contextmanager
def not_pulling(store: Path) -> Iterator[None]:
    """Keeps pulls of ours waiting. Raises BlockingIOError where one runs, and OSError."""
    try:
        descriptor = os.open(store / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # there never was one
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_store(folder: Path) -> bool:
    return all(os.path.isdir(folder / name) for name in ("manifests", "blobs"))  # noqa: PTH112 - never raises


def manifests(store: Path, warn: Warn) -> Iterator[Manifest]:
    """All of them in order of their files; `warn` is told what is passed over, and why."""
    folder = store / "manifests"
    try:
        paths = sorted(folder.glob("*/*/*/*"))[:MAX_MANIFESTS]
    except OSError as exc:
        warn(folder, str(exc.strerror))
        return
    for path in paths:
        try:
            layers = _layers(store, path) if path.is_file() else {}
        except _NONSENSE as exc:
            warn(path, f"it is not a manifest ({exc})")
            continue
        if "model" in layers:
            yield Manifest(
                path=path,
                name=_name(path.relative_to(folder).parts),
                model=layers["model"][0],
                adapters=tuple(layers.get("adapter", ())[:MAX_ADAPTERS]),
                projector=next(iter(layers.get("projector", ())), None),
                defaults=_defaults(layers, warn),
            )


def _layers(store: Path, manifest: Path) -> dict[str, list[Path]]:
    """The blobs of a manifest by the last word of their media type."""
    layers: dict[str, list[Path]] = {}
    for layer in json.loads(_content(manifest, MAX_MANIFEST_BYTES))["layers"]:
        match = DIGEST.fullmatch(layer["digest"])
        if match is None:
            raise ValueError("a digest is none")
        layers.setdefault(layer["mediaType"].removeprefix(_LAYER), []).append(store / "blobs" / f"sha256-{match[1]}")
    return layers


def _defaults(layers: dict[str, list[Path]], warn: Warn) -> ModelDefaults:
    defaults, system = ModelDefaults(), ""
    for path in layers.get("params", ())[:1]:
        try:
            defaults = _parameters(json.loads(_content(path, MAX_PARAMS_BYTES)))
        except _NONSENSE as exc:
            warn(path, f"these parameters make no sense ({exc})")
    for path in layers.get("system", ())[:1]:
        try:
            system = _content(path, MAX_SYSTEM_BYTES).decode()
        except _NONSENSE as exc:
            warn(path, f"this system message makes no sense ({exc})")
    return ModelDefaults(defaults.sampling, defaults.n_predict, defaults.stop, system)


def _parameters(values: dict[str, object]) -> ModelDefaults:
    """Raises ValueError or TypeError for what Ollama would not have written."""
    sampling = []
    for name, kind in _SAMPLING.items():
        value = values.get(name)
        if value is not None and not (name == "seed" and value == -1):  # -1 is Ollama's for a random one
            sampling.append((name, kind(_number(name, value, kind))))
    n_predict = values.get("num_predict")
    n_predict = None if n_predict is None else int(_number("num_predict", n_predict, int))
    stops = values.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(map(_is_stop, stops)):
        raise ValueError("stop")
    # -1 and -2: no limit.
    return ModelDefaults(tuple(sampling), n_predict if n_predict and n_predict > 0 else None, tuple(stops))


def _number(name: str, value: object, kind: type[int | float]) -> int | float:
    is_number = type(value) is int or (type(value) is float and kind is float)
    if not is_number or not isinstance(value, int | float) or not -_INT32_MAX <= value <= _INT32_MAX:
        raise ValueError(name)
    return value


def _is_stop(text: object) -> bool:
    if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
        return False
    if has_lone_surrogate(text):
        raise ValueError("half a character")
    return True


def _content(path: Path, max_bytes: int) -> bytes:
    content = read_start(path, max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes")
    return content


def _name(parts: tuple[str, ...]) -> str:
    """As `ollama list` writes it: the default host and namespace go without saying."""
    host, namespace, name, tag = parts
    if host != DEFAULT_HOST:
        return f"{host}/{namespace}/{name}:{tag}"
    return f"{name}:{tag}" if namespace == _DEFAULT_NAMESPACE else f"{namespace}/{name}:{tag}"
