"""What KubeRay takes: the schemas of its custom resources, and rules of its operator beside them.

The schemas lie in a folder beside the repository (`../shared/crds`) or where `DISTGAN_CRDS` says:
helm-chart/kuberay-operator/crds of github.com/ray-project/kuberay. The rules are those of KubeRay
1.7, ray-operator/controllers/ray/utils/validation.go.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.k8s_render import Document, name_of, ray_cluster_specs
from tests.tiny import REPOSITORY

_FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}
_LONGEST_NAME = {"RayJob": 47, "RayCluster": 53}
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LEAST_RAY_FOR_TOKENS = (2, 52)


def schema_problems(document: Document) -> list[str]:
    """What the schema says of a RayJob or RayCluster; skips the test where it is absent."""
    problems = _validator(document["kind"]).iter_errors(document)
    return [f"{name_of(document)}, {problem.json_path}: {problem.message}" for problem in problems]


@cache
def _validator(kind: str) -> Any:
    folder = Path(os.environ.get("DISTGAN_CRDS", REPOSITORY.parent / "shared" / "crds"))
    file = folder / _FILES[kind]
    if not file.exists():
        pytest.skip(f"no schemas of KubeRay in {folder} (DISTGAN_CRDS names another folder)")
    # Plain values only, either way; libyaml, where PyYAML has it, takes 0.6 s instead of 4.6 s.
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    definition = yaml.load(file.read_text(), Loader=loader)
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    """Kubernetes' dialect as JSON schema, in which an unknown field is an error, not dropped."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    strict = {
        key: {name: _strict(part) for name, part in value.items()}
        if key == "properties"
        else _strict(value)
        for key, value in schema.items()
        if not key.startswith("x-kubernetes") and key not in ("format", "nullable", "default")
    }
    if "properties" in schema and "additionalProperties" not in schema:
        keeps = schema.get("x-kubernetes-preserve-unknown-fields", False)
        strict["additionalProperties"] = keeps
    return strict


def operator_problems(documents: list[Document]) -> list[str]:
    """What KubeRay's operator would refuse although the schema allows it."""
    found = []
    for document in documents:
        if document["kind"] in _LONGEST_NAME:
            found += _name(document)
        if document["kind"] == "RayJob":
            found += _job(name_of(document), document["spec"])
    for where, spec in ray_cluster_specs(documents):
        found += _cluster(where, spec)
    return found


def _name(document: Document) -> Iterator[str]:
    name, kind = document["metadata"]["name"], document["kind"]
    if len(name) > _LONGEST_NAME[kind] or not _DNS_1035.fullmatch(name):
        yield f"{kind} {name}: the name is too long, or no DNS label"


def _job(where: str, spec: Mapping[str, Any]) -> Iterator[str]:
    shuts_down = bool(spec.get("shutdownAfterJobFinishes"))
    if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield f"{where}: exactly one of rayClusterSpec and clusterSelector"
    if spec.get("ttlSecondsAfterFinished") and not shuts_down:
        yield f"{where}: ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("suspend") and not shuts_down:
        yield f"{where}: suspend needs shutdownAfterJobFinishes"
    if spec.get("deletionStrategy", {}).get("deletionRules") and shuts_down:
        yield f"{where}: deletionRules or shutdownAfterJobFinishes, not both"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"):
        yield f"{where}: submissionMode {mode}"
    if mode == "SidecarMode" and spec.keys() & {"submitterPodTemplate", "submitterConfig"}:
        yield f"{where}: SidecarMode takes no template and no settings of the submitter"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) < 1:
            yield f"{where}: {name} must be positive"
    try:
        environment = yaml.safe_load(spec.get("runtimeEnvYAML", "{}"))
    except yaml.YAMLError as error:
        environment = error
    if not isinstance(environment, dict):
        yield f"{where}: runtimeEnvYAML is no mapping"


def _cluster(where: str, spec: Mapping[str, Any]) -> Iterator[str]:
    head, groups = spec["headGroupSpec"], spec["workerGroupSpecs"]
    autoscaling = bool(spec.get("enableInTreeAutoscaling"))
    second = autoscaling and spec.get("autoscalerOptions", {}).get("version") == "v2"
    version = tuple(map(int, re.findall(r"\d+", spec.get("rayVersion", ""))[:2]))
    if spec.get("authOptions", {}).get("mode") == "token" and version < _LEAST_RAY_FOR_TOKENS:
        yield f"{where}: token authentication needs rayVersion 2.52 or newer"
    if spec.get("autoscalerOptions") and not autoscaling:
        yield f"{where}: autoscalerOptions without enableInTreeAutoscaling"
    for group in (head, *groups):
        yield from _group(where, group, never_restarts=second)
    for group in groups:
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaling and (least is None or most is None):
            yield f"{where}: minReplicas and maxReplicas are needed without autoscaling"
        if not (least or 0) <= group.get("replicas", 0) <= (most or 2**31):
            yield f"{where}: replicas are not between minReplicas and maxReplicas"
        if group.keys() & {"priority", "idleTimeoutSeconds"} and not second:
            yield f"{where}: priority and idleTimeoutSeconds need autoscaler v2"
    tolerance = spec.get("gcsFaultToleranceOptions")
    if tolerance is not None:
        names = {v["name"] for v in head["template"]["spec"]["containers"][0].get("env", [])}
        if "redis-password" in head["rayStartParams"] or names & {
            "REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME",
        }:  # fmt: skip
            yield f"{where}: Redis is set both in gcsFaultToleranceOptions and beside it"
        if not tolerance.get("redisAddress"):
            yield f"{where}: gcsFaultToleranceOptions without redisAddress"


def _group(where: str, group: Mapping[str, Any], *, never_restarts: bool) -> Iterator[str]:
    parameters, template = group["rayStartParams"], group["template"]["spec"]
    if not all(isinstance(value, str) for value in parameters.values()):
        yield f"{where}: a value of rayStartParams is no text"
    if parameters.keys() & {"num-cpus", "num-gpus", "memory", "resources"} and group.get(
        "resources"
    ):
        yield f"{where}: resources are set in rayStartParams and beside them"
    if "labels" in parameters:
        yield f"{where}: labels in rayStartParams"
    if never_restarts and template.get("restartPolicy", "Never") != "Never":
        yield f"{where}: autoscaler v2 needs restartPolicy Never"
