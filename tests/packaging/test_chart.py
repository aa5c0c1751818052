"""The Helm chart, rendered by helm, held against Kubernetes' schemas, and its nginx configuration read by nginx."""

import json
import os
import platform
import re
import socket
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from shimmy import __version__
from shimmy.api.routes import OPEN_PATHS
from shimmy.metrics import Metrics
from tests.e2e.harness import HOST, ROOT
from tests.e2e.processes import DEADLINE_S, wait_for
from tests.packaging.conftest import free_port, skipped_where_not_fetched
from tests.packaging.nginx import running
from tests.packaging.test_docker import instructions
from tools import chart

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.timeout(180),  # its tools are fetched
    pytest.mark.skipif(platform.machine() != "x86_64", reason="what the tests fetch is for x86-64"),
]

CHART = ROOT / "packaging" / "helm" / "shimmy"
Json = dict[str, Any]

CLAIM: Json = {"models": {"existingClaim": "models"}}
NODES: Json = {
    "models": {"hostPath": "/srv/models"},
    "nginx": {"enabled": False},
    "service": {"type": "NodePort", "port": 80},
    "replicas": 1,
}
ALL: Json = {
    "image": {"repository": "registry.example/shimmy", "tag": "9", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "args": ["--preload", "some", "--alias", "gpt-*=some"],
    "env": {"SHIMMY_KEEP_ALIVE": "30m", "SHIMMY_CTX_SIZE": 1048576, "SHIMMY_METRICS": True},
    "secret": "keys",
    "models": {"pull": ["hf.co/OWNER/NAME:Q4_K_M", "ollama:some"], "size": "40Gi", "storageClass": "fast"},
    "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 12, "queuedJobs": 2},
    "podAnnotations": {"example.com/owner": "us"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "clusterDomain": "cluster.example",
}


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    with skipped_where_not_fetched():
        for fetch in (chart.helm, chart.validator, chart.nginx):
            fetch()


def helm(folder: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run helm; nothing of the person's own configuration has a part in it."""
    places = {f"HELM_{place}_HOME": f"{folder}/{place}" for place in ("CACHE", "CONFIG", "DATA")}
    return subprocess.run(
        [chart.helm(), *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **places},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def with_values(folder: Path, values: Json, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run helm on the chart."""
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    return helm(folder, *arguments, CHART, "--values", file)


def rendered(folder: Path, values: Json, name: str = "team") -> dict[tuple[str, str], Json]:
    """What the chart makes, by kind and name; the file `rendered.yaml` has it, too."""
    result = with_values(folder, values, "template", name, "--namespace", "ai")
    assert result.returncode == 0, result.stderr
    (folder / "rendered.yaml").write_text(result.stdout)
    documents = [document for document in yaml.safe_load_all(result.stdout) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def check(file: Path, n_documents: int) -> None:
    """Let the validator look at each document, with the schemas of each version that refuse unknown fields."""
    versions = [word for version in chart.KUBERNETES_VERSIONS for word in ("-k", version)]
    result = subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", *versions, file],
        env=os.environ | {"PYTHONPATH": str(chart.validator())},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    passed = [line for line in result.stdout.splitlines() if " passed for resource " in line]
    assert len(passed) == n_documents * len(chart.KUBERNETES_VERSIONS), result.stdout


def test_its_version_is_the_programs() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize("values", [CLAIM, NODES, ALL])
def test_helm_and_kubernetes_find_nothing_wrong(tmp_path: Path, values: Json) -> None:
    result = with_values(tmp_path, values, "lint", "--strict")
    assert result.returncode == 0, result.stdout + result.stderr
    check(tmp_path / "rendered.yaml", len(rendered(tmp_path, values)))


def test_kubernetes_finds_nothing_wrong_with_the_manifest_of_one_server() -> None:
    check(ROOT / "packaging" / "kubernetes" / "shimmy.yaml", 3)


def test_the_validator_sees_what_is_wrong(tmp_path: Path) -> None:
    rendered(tmp_path, CLAIM)
    file = tmp_path / "rendered.yaml"
    file.write_text(file.read_text().replace("readinessProbe:", "readyProbe:"))
    with pytest.raises(AssertionError, match="readyProbe"):
        check(file, 0)


def test_servers_have_what_the_image_and_the_program_have(tmp_path: Path) -> None:
    made = rendered(tmp_path, CLAIM)
    servers = made["StatefulSet", "team-shimmy"]["spec"]
    pod = servers["template"]["spec"]
    (container,) = pod["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} == {"/health", "/ready"} <= OPEN_PATHS
    (port,) = container["ports"]
    assert str(port["containerPort"]) == next(rest for word, rest in instructions() if word == "EXPOSE")
    context = pod["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == next(
        rest for word, rest in instructions() if word == "USER"
    )
    assert (context["runAsNonRoot"], container["securityContext"]["readOnlyRootFilesystem"]) == (True, True)
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {"/models", "/cache", "/tmp"}
    assert {*mounted.values()} == {volume["name"] for volume in pod["volumes"]}
    labels = servers["template"]["metadata"]["labels"]
    assert made["Service", "team-shimmy-servers"]["spec"]["selector"].items() <= labels.items()
    assert servers["serviceName"] == "team-shimmy-servers"
    nginx = made["Deployment", "team-shimmy-nginx"]["spec"]["template"]["metadata"]["labels"]
    assert made["Service", "team-shimmy"]["spec"]["selector"].items() <= nginx.items()
    assert not made["Service", "team-shimmy"]["spec"]["selector"].items() <= labels.items()
    assert not [kind for kind, _ in made if kind == "HorizontalPodAutoscaler"]


def test_without_nginx_the_service_leads_to_the_servers(tmp_path: Path) -> None:
    made = rendered(tmp_path, NODES, "shimmy")
    assert not [kind for kind, _ in made if kind in {"Deployment", "ConfigMap"}]
    service = made["Service", "shimmy"]["spec"]
    servers = made["StatefulSet", "shimmy"]["spec"]
    assert service["selector"].items() <= servers["template"]["metadata"]["labels"].items()
    assert (service["sessionAffinity"], service["ports"][0]["port"]) == ("ClientIP", 80)
    assert servers["replicas"] == 1
    (models,) = [volume for volume in servers["template"]["spec"]["volumes"] if volume["name"] == "models"]
    assert models["hostPath"]["path"] == "/srv/models"


def test_servers_fetch_models_and_grow_with_the_queue(tmp_path: Path) -> None:
    made = rendered(tmp_path, ALL)
    servers = made["StatefulSet", "team-shimmy"]["spec"]
    assert "replicas" not in servers, "the autoscaler says how many"
    (claim,) = servers["volumeClaimTemplates"]
    assert (claim["spec"]["resources"]["requests"]["storage"], claim["spec"]["storageClassName"]) == ("40Gi", "fast")
    pod = servers["template"]["spec"]
    assert [container["command"] for container in pod["initContainers"]] == [
        ["/shimmy", "pull", reference] for reference in ALL["models"]["pull"]
    ]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {variable["name"]: variable["value"] for variable in container["env"]} == {
            "SHIMMY_KEEP_ALIVE": "30m",
            "SHIMMY_CTX_SIZE": "1048576",
            "SHIMMY_METRICS": "true",
        }
        assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert pod["containers"][0]["args"] == ALL["args"]
    autoscaler = made["HorizontalPodAutoscaler", "team-shimmy"]["spec"]
    assert autoscaler["scaleTargetRef"]["name"] == "team-shimmy"
    (metric,) = autoscaler["metrics"]
    assert metric["pods"]["metric"]["name"] == Metrics().jobs_queued.name
    names = re.findall(
        r"server (\S+):11435 resolve", made["ConfigMap", "team-shimmy-nginx"]["data"]["shimmy-servers.conf"]
    )
    assert names == [f"team-shimmy-{number}.team-shimmy-servers.ai.svc.cluster.example" for number in range(12)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "say where models are"),
        (CLAIM | {"replica": 3}, "replica"),
        (CLAIM | {"replicas": 0}, "replicas"),
        (CLAIM | {"cache": {"size": "many"}}, "size"),
        (CLAIM | {"nginx": {"resolver": "a; evil on"}}, "resolver"),
        (CLAIM | {"clusterDomain": "x;"}, "clusterDomain"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, values: Json, words: str) -> None:
    result = with_values(tmp_path, values, "template", "team")
    assert result.returncode != 0
    assert words in result.stderr


def test_a_packed_chart_has_nginxs_configuration_too(tmp_path: Path) -> None:
    result = helm(tmp_path, "package", CHART, "--destination", tmp_path)
    assert result.returncode == 0, result.stderr
    with tarfile.open(tmp_path / f"shimmy-{__version__}.tgz") as package:
        member = package.extractfile("shimmy/files/shimmy.conf")
        assert member is not None
        assert member.read() == (ROOT / "packaging/nginx/shimmy.conf").read_bytes()


# -- nginx, which follows the servers ----------------------------------------------------------------------------------


class Names(Thread):
    """A DNS server on a port of its own that knows pods by their numbers: pod 3 has the address 127.0.1.3."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((HOST, 0))
        self.port: int = self._socket.getsockname()[1]
        self.pods: set[int] = set()

    def run(self) -> None:
        """Format: RFC 1035, section 4; the question is repeated, and the answer points to its name."""
        while True:
            question, client = self._socket.recvfrom(512)
            if not question:
                self._socket.close()
                return
            name = re.match(
                rb".team-shimmy-(\d+)\x13team-shimmy-servers\x02ai\x03svc\x07cluster\x07example\0", question[12:]
            )
            assert name, question
            pod = int(name[1])
            is_there = pod in self.pods
            answer = struct.pack("!HHHIH4B", 0xC00C, 1, 1, 1, 4, 127, 0, 1, pod) if is_there else b""
            flags = 0x8180 if is_there else 0x8183  # a name that does not exist
            head = struct.pack("!2sHHHHH", question[:2], flags, 1, int(is_there), 0, 0)
            self._socket.sendto(head + question[12:] + answer, client)

    def stop(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (HOST, self.port))
        self.join()


class Pod(BaseHTTPRequestHandler):
    """Stands for all pods: a reply is the number of the one that was asked."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a reply is one segment, or else it waits for an acknowledgement

    def do_GET(self) -> None:
        body = self.connection.getsockname()[0].rpartition(".")[2].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def names() -> Iterator[Names]:
    server = Names()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def pods_port() -> Iterator[int]:
    with ThreadingHTTPServer(("0.0.0.0", 0), Pod) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def asked_pods(port: int) -> list[int]:
    """Which pod each of many sessions reaches."""
    with closing(HTTPConnection(HOST, port, timeout=DEADLINE_S)) as connection:
        reached = []
        for session in range(40):
            connection.request("GET", "/v1/models", headers={"X-Session-Id": f"session {session}"})
            response = connection.getresponse()
            body = response.read()
            reached.append(int(body) if response.status == 200 else -1)
        return reached


def test_nginx_follows_the_servers_that_there_are(tmp_path: Path, names: Names, pods_port: int) -> None:
    port = free_port()
    # What is elsewhere here than in the cluster.
    replacements = (
        (r"listen 11435;", f"listen {HOST}:{port};"),
        (r":11435 resolve", f":{pods_port} resolve"),
        (r"resolver \S+ valid=5s", f"resolver {HOST}:{names.port} valid=1s"),
        (r"/dev/stdout", "requests"),
        (r"/etc/nginx/|/tmp/", ""),
    )
    files = rendered(tmp_path, ALL)["ConfigMap", "team-shimmy-nginx"]["data"]
    for pattern, replacement in replacements:
        assert re.search(pattern, "".join(files.values())), pattern
        files = {name: re.sub(pattern, replacement, text) for name, text in files.items()}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    names.pods = {0, 1}
    with running([str(chart.nginx())], {}, tmp_path, port):
        wait_for("two servers", lambda: {*asked_pods(port)} == {0, 1})
        with_two = asked_pods(port)
        assert asked_pods(port) == with_two
        names.pods = {0, 1, 2}
        wait_for("the third", lambda: {*asked_pods(port)} == {0, 1, 2})
        with_three = asked_pods(port)
        assert {new for old, new in zip(with_two, with_three, strict=True) if old != new} == {2}
        names.pods = {1, 2}
        wait_for("the end of the first", lambda: {*asked_pods(port)} == {1, 2})
        without = asked_pods(port)
        assert {old for old, new in zip(with_three, without, strict=True) if old != new} == {0}
        names.pods = {0, 1}
        wait_for("the first two again", lambda: asked_pods(port) == with_two)
