"""Which file of the cache a folder in SafeTensors has become, and whether it is there. Knows nothing of converting."""

from pathlib import Path

from shimmy.formats.convert import cache
from shimmy.formats.safetensors.huggingface import ADDITIONAL_TEMPLATES
from shimmy.formats.safetensors.sentence_transformers import module_files

# Another one makes another file of the same folder, and looks again at folders that were refused. To be raised with
# whatever changes what a folder becomes: another family, quantisation or refusal, other metadata, other numbers.
CONVERTER_VERSION = 13

# Of the files that a conversion reads.
SOURCE_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt")


def found(folder: Path, cache_folder: Path | None, target_type: str = "", matrix: str = "") -> Path | None:
    """The GGUF of `folder` where it was made before, and its sources are what they were."""
    target = None if cache_folder is None else cache_folder / cache_name(folder, target_type, matrix)
    return target if target is not None and cache.is_finished(target) else None


def cache_name(folder: Path, target_type: str = "", matrix: str = "") -> str:
    """The file's name in the cache; `matrix` is the digest of the importance matrix that it is quantised by."""
    key = (CONVERTER_VERSION, target_type, _sources(folder), *filter(None, (matrix,)))
    return cache.name(folder, target_type or "lossless", *key)


def version(folder: Path) -> tuple[int, int]:
    """What `cache.version` tells of all files that the GGUF of `folder` depends on."""
    return cache.version(_sources(folder))


def _sources(folder: Path) -> list[cache.Source]:
    paths = [path for path in folder.iterdir() if path.name.endswith(SOURCE_SUFFIXES)]
    paths += [path for path in module_files(folder) if path.exists()]
    paths += (folder / ADDITIONAL_TEMPLATES).glob("*.jinja")
    return cache.sources(folder, paths)
