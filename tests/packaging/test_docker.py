"""The image without a Docker: its instructions are carried out in an empty folder, which becomes the root of a program.

And the files that start the image: what they name is what the image and the program have.
"""

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

from shimmy.api.routes import OPEN_PATHS
from shimmy.config import OPTIONS
from tests.e2e.harness import CHAT, HOST, PROMPTS, ROOT, chat_body
from tests.e2e.processes import DEADLINE_S, wait_for
from tests.packaging.conftest import free_port
from tests.roots import may_mount
from tools.packages.machines import MACHINES

DOCKERFILE = ROOT / "Dockerfile"
# What a container has beside its image.
MOUNT = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec "$@"'


@dataclass
class Image:
    """What the last stage of a Dockerfile makes."""

    root: Path
    settings: dict[str, str] = field(default_factory=dict)
    user: str = ""
    volumes: list[str] = field(default_factory=list)
    entry_point: list[str] = field(default_factory=list)
    health_check: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)

    def run(self, *command: str, **settings: str) -> "subprocess.Popen[str]":
        """Start a program as the image's user with the image's root, in a mount namespace of its own."""
        chroot = ["chroot", f"--userspec={self.user}", "--groups=", str(self.root), *command]
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", MOUNT, str(self.root), *chroot],
            env={"PATH": os.environ["PATH"], **self.settings, **settings}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile and its arguments."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def build(root: Path, program: Path, machine: str) -> Image:
    """Carry out the instructions for a machine; `program` stands for its file in dist/."""
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = list(stages.get(base.replace("${TARGETARCH:-amd64}", MACHINES[machine].debian), []))
            assert base == "scratch" or stages[name], f"FROM {base}"
        else:
            stages[name].append((word, rest))
    image = Image(root)
    for word, rest in stages[""]:
        carry_out(image, word, rest, program)
    return image


def carry_out(image: Image, word: str, rest: str, program: Path) -> None:
    match word:
        case "COPY":
            *flags, source, target = rest.split()
            copy(image.root, dict(flag.lstrip("-").split("=") for flag in flags), source, target, program)
        case "ENV":
            image.settings |= dict(pair.split("=", 1) for pair in rest.split())
        case "USER":
            image.user = rest
        case "VOLUME":
            image.volumes = json.loads(rest)
        case "EXPOSE":
            image.ports = rest.split()
        case "HEALTHCHECK":
            image.health_check = json.loads(rest.partition(" CMD ")[2])
        case "ENTRYPOINT":
            image.entry_point = json.loads(rest)
        case _:
            pytest.fail(f"teach this test the instruction {word}")


def copy(root: Path, flags: dict[str, str], source: str, target: str, program: Path) -> None:
    passed = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"]
    assert source in passed, f".dockerignore keeps {source} away from the builder"
    path = root / target.lstrip("/")
    if source.startswith("dist/"):
        shutil.copyfile(program, path)
        path.chmod(int(flags["chmod"], 8))
        return
    shutil.copytree(ROOT / source, path, dirs_exist_ok=True)
    if "chown" in flags:
        for copied in (ROOT / source).rglob("*"):
            os.chown(path / copied.relative_to(ROOT / source), *map(int, flags["chown"].split(":")))


@contextmanager
def running(image: Image, **settings: str) -> Iterator["subprocess.Popen[str]"]:
    process = image.run(*image.entry_point, **settings)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.frozen
@pytest.mark.skipif(not may_mount(), reason="mounts /proc for a root of its own, which is not allowed here")
def test_the_image_serves_and_its_health_check_knows(tmp_path: Path, frozen_file: Path, models: Path) -> None:
    for folder in ("root", "root/proc", "root/dev"):
        (tmp_path / folder).mkdir()
    tmp_path.chmod(0o755)
    image = build(tmp_path / "root", frozen_file, platform.machine())
    shutil.copy(models / "alpha.gguf", image.root / image.settings["SHIMMY_MODEL_PATH"].lstrip("/"))
    assert image.settings["SHIMMY_BIND"] == f"0.0.0.0:{image.ports[0]}"
    port = free_port()
    address = {"SHIMMY_BIND": f"0.0.0.0:{port}"}  # another server may have the image's port on this machine

    def is_healthy() -> bool:
        check = image.run(*image.health_check, **address)
        told, _ = check.communicate(timeout=DEADLINE_S)
        assert "usage:" not in told, told
        return check.returncode == 0

    assert not is_healthy(), "before the server has started"
    with running(image, **address) as server:
        wait_for("the health check", is_healthy)
        with closing(HTTPConnection(HOST, port, timeout=DEADLINE_S)) as connection:
            connection.request("POST", CHAT, json.dumps(chat_body(PROMPTS[0], max_tokens=4)))
            response = connection.getresponse()
            assert response.status == 200, response.read()
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert re.search(r"^Uid:\s+65532\s+65532", status, re.MULTILINE)
        server.terminate()
        assert server.wait(DEADLINE_S) == 0
    assert list((image.root / "cache").glob("*.json")), "what was learnt is in the volume"


@pytest.mark.parametrize("machine", MACHINES)
def test_the_image_takes_the_file_for_the_machine(tmp_path: Path, machine: str) -> None:
    (tmp_path / "root").mkdir()
    assert f"dist/shimmy-linux-{machine} /shimmy" in " ".join(rest for _, rest in instructions())
    program = tmp_path / "program"
    program.write_text(machine)
    if os.geteuid() == 0:
        image = build(tmp_path / "root", program, machine)
        assert (image.root / "shimmy").read_text() == machine
        assert image.settings.keys() - {"HOME"} <= {option.variable for option in OPTIONS}
        for volume in image.volumes:
            assert (image.root / volume.lstrip("/")).stat().st_uid == 65532


def documents(path: str) -> list[Any]:
    return list(yaml.safe_load_all((ROOT / "packaging" / path).read_text()))


def test_compose_names_what_the_image_has() -> None:
    (file,) = documents("docker/compose.yaml")
    service = file["services"]["shimmy"]
    assert (ROOT / "packaging/docker" / service["build"]).resolve() == ROOT
    targets = {volume.removesuffix(":ro").rpartition(":")[2] for volume in service["volumes"]}
    volumes = next(json.loads(rest) for word, rest in instructions() if word == "VOLUME")
    assert targets == set(volumes)
    assert service["environment"].keys() <= {option.variable for option in OPTIONS}
    (port,) = service["ports"]
    assert port.split(":") == ["127.0.0.1", *[rest for word, rest in instructions() if word == "EXPOSE"] * 2]


def test_kubernetes_asks_routes_that_need_no_key() -> None:
    _, deployment, service = documents("kubernetes/shimmy.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} == {"/health", "/ready"} <= OPEN_PATHS
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {str(ports[probe["port"]]) for probe in probes} == {
        rest for word, rest in instructions() if word == "EXPOSE"
    }
    user = next(rest for word, rest in instructions() if word == "USER")
    context = pod["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {"/models", "/cache", "/tmp"}
    assert {*mounted.values()} == {volume["name"] for volume in pod["volumes"]}
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_the_add_on_has_the_files_that_it_names() -> None:
    (addon,) = documents("home-assistant/config.yaml")
    assert {"name", "slug", "version", "description", "arch"} <= addon.keys()
    dockerfile = (ROOT / "packaging/home-assistant/Dockerfile").read_text()
    assert set(addon["arch"]) == set(re.findall(r"^FROM scratch AS (\w+)$", dockerfile, re.MULTILINE))
    settings = dict(re.findall(r"(SHIMMY_\w+)=(\S+)", dockerfile))
    assert settings.keys() <= {option.variable for option in OPTIONS}
    assert addon["ports"] == {"11435/tcp": int(settings["SHIMMY_BIND"].rpartition(":")[2])}
