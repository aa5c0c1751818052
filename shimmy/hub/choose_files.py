"""Which files of a repository make the model that was asked for: llama.cpp's rules for GGUF (common/download.cpp), and
for SafeTensors all that the converter reads. Knows names and sizes of files, and nothing of where they are.
"""

import re
from collections.abc import Mapping, Sequence

from shimmy.errors import BadRequest, NotFound
from shimmy.hub.references import HubReference

TAGS = ("Q4_K_M", "Q8_0")  # the first that there is, where none is asked for
_MAX_LISTED = 40

_NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.IGNORECASE)
_TAG = re.compile(r"[-.]([A-Z0-9_]+)$", re.IGNORECASE)
_DIGITS = re.compile(r"\d{1,4}")
# Beside the weights; READMEs and pictures are left.
_NEEDED = re.compile(
    r"[^/]+\.(json|model|tiktoken|txt|jinja)|additional_chat_templates/[^/]+\.jinja"
    r"|\d+_\w+/config\.json|\d+_Dense/model\.safetensors",
    re.IGNORECASE,
)
_OTHER_WEIGHTS = ("consolidated",)  # the same once more, in Mistral's own form


def choose(sizes: Mapping[str, int], reference: HubReference) -> list[str]:
    """The paths to fetch, of a model's files the first one first. Raises BadRequest or NotFound, with what there is."""
    paths = sorted(sizes)
    models = [path for path in paths if _is_model(path)]
    if reference.file:
        if reference.file not in sizes:
            raise NotFound(f"`{reference.repository}` has no `{reference.file}`; {_listed(models, sizes)}")
        return _with_parts(reference.file, paths)
    if not models:
        return _safetensors(paths, reference)
    tag = "" if reference.tag.lower() == "latest" else reference.tag
    for wanted in (tag,) if tag else TAGS:
        # The whole of a word: `F16` is not `BF16`.
        pattern = re.compile(rf"(?:^|[^A-Z0-9]){re.escape(wanted)}[./-]", re.IGNORECASE)
        if found := next((path for path in models if pattern.search(path)), None):
            return _with_parts(found, paths)
    if tag:
        raise BadRequest(f"`{reference.repository}` has no `{tag}`; {_listed(models, sizes)}", param="model")
    return _with_parts(models[0], paths)


def tag_of(path: str) -> str:
    """The quantisation in a file's name, in upper case; '' for none."""
    found = _TAG.search(_stem(path)[0])
    return found[1].upper() if found else ""


def _is_model(path: str) -> bool:
    name = path.rpartition("/")[2]
    is_first = _stem(path)[1] in {0, 1}
    return name.lower().endswith(".gguf") and is_first and not any(word in name.lower() for word in _NO_MODELS)


def _stem(path: str) -> tuple[str, int, int]:
    """A path without its suffix and its number; the number, and how many there are, or zeros."""
    stem = path[: -len(".gguf")] if path.lower().endswith(".gguf") else path
    found = _SPLIT.fullmatch(stem)
    return (found[1], int(found[2]), int(found[3])) if found else (stem, 0, 0)


def _with_parts(first: str, paths: Sequence[str]) -> list[str]:
    """All shards of a model, and its projector where there is one."""
    stem, _, count = _stem(first)
    parts = [path for path in paths if path.lower().endswith(".gguf") and _stem(path)[::2] == (stem, count)]
    if count and len(parts) != count:
        raise NotFound(f"the repository has {len(parts)} of the {count} parts of `{first}`")
    projector = _projector(first, paths)
    return [*(parts if count else [first]), *([projector] if projector else [])]


def _projector(model: str, paths: Sequence[str]) -> str | None:
    """That in the model's folder or the nearest above, of the closest number of bits."""
    folders = model.split("/")[:-1]
    best: tuple[int, int] | None = None
    found = None
    for path in paths:
        own_folders = path.split("/")[:-1]
        if not path.lower().endswith(".gguf") or "mmproj" not in path.lower():
            continue
        if path == model or own_folders != folders[: len(own_folders)]:
            continue
        rank = (-len(own_folders), abs(_bits(path) - _bits(model)))
        if best is None or rank < best:
            best, found = rank, path
    return found


def _bits(path: str) -> int:
    found = _DIGITS.search(tag_of(path))
    return int(found[0]) if found else 0


def _safetensors(paths: Sequence[str], reference: HubReference) -> list[str]:
    weights = [path for path in paths if "/" not in path and path.lower().endswith(".safetensors")]
    own = [path for path in weights if not path.lower().startswith(_OTHER_WEIGHTS)]
    if not weights or not {"config.json", "adapter_config.json"}.intersection(paths):
        raise NotFound(f"`{reference.repository}` has no model: neither a GGUF file nor a SafeTensors folder")
    if reference.tag and reference.tag.lower() != "latest":
        raise BadRequest(
            f"`{reference.repository}` has no GGUF files, so it has no `{reference.tag}`: leave the tag out to fetch "
            "its SafeTensors", param="model",
        )  # fmt: skip
    return [*(own or weights), *(path for path in paths if _NEEDED.fullmatch(path))]


def _listed(models: Sequence[str], sizes: Mapping[str, int]) -> str:
    """What a person can choose from."""
    rows = []
    for path in models:
        stem, _, count = _stem(path)
        parts = [other for other in sizes if count and _stem(other)[::2] == (stem, count)] or [path]
        rows.append(f"{tag_of(path) or path} ({sum(sizes[part] for part in parts) / 1e9:.1f} GB)")
    rows = list(dict.fromkeys(rows))
    more = f" and {len(rows) - _MAX_LISTED} more" if len(rows) > _MAX_LISTED else ""
    return f"it has {', '.join(rows[:_MAX_LISTED])}{more}" if rows else "it has no GGUF files"
