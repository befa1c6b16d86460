"""KubeRay's schemas, and the rules of its operator that the tests know, notice mistakes."""

import pytest

from tests.k8s_mutation import (
    Mutation,
    assert_noticed,
    both_kinds,
    cluster,
    container,
    job,
    pod,
    set_in,
)
from tests.k8s_render import Document, of_kind
from tests.kuberay_rules import operator_problems, schema_problems


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Document]]:
    return both_kinds(tmp_path_factory.mktemp("mistakes"))


REFUSED: dict[str, tuple[str, Mutation]] = {
    "a misspelt key": ("multi-node", lambda d: set_in(job(d), "entryPoint", "x")),
    "replicas as text": (
        "multi-node", lambda d: set_in(cluster(d)["workerGroupSpecs"][0], "replicas", "2")),
    "a group without pods": (
        "multi-node", lambda d: cluster(d)["workerGroupSpecs"][0].pop("template")),
    "a third autoscaler": (
        "cluster", lambda d: set_in(cluster(d)["autoscalerOptions"], "version", "v3")),
    "a number for ray start": (
        "multi-node",
        lambda d: set_in(cluster(d)["headGroupSpec"]["rayStartParams"], "num-cpus", 0)),
}  # fmt: skip


def _problems_of_all(documents: list[Document]) -> list[str]:
    own = [document for document in documents if document["kind"].startswith("Ray")]
    return [problem for document in own for problem in schema_problems(document)]


@pytest.mark.parametrize("name", REFUSED)
def test_the_schemas_notice_mistakes(name: str, rendered: dict[str, list[Document]]) -> None:
    overlay, mutate = REFUSED[name]
    assert_noticed(rendered[overlay], mutate, _problems_of_all)


AGAINST_RULES: dict[str, tuple[str, Mutation]] = {
    "a long name": (
        "multi-node", lambda d: set_in(of_kind(d, "RayJob")[0]["metadata"], "name", "a" * 48)),
    "two clusters": ("multi-node", lambda d: set_in(job(d), "clusterSelector", {"a": "b"})),
    "a time to live without an end": (
        "multi-node", lambda d: set_in(job(d), "shutdownAfterJobFinishes", False)),
    "a mode that is none": ("multi-node", lambda d: set_in(job(d), "submissionMode", "K8sJob")),
    "a template in sidecar mode": (
        "multi-node", lambda d: set_in(job(d), "submissionMode", "SidecarMode")),
    "no seconds": ("multi-node", lambda d: set_in(job(d), "preRunningDeadlineSeconds", 0)),
    "no environment": ("multi-node", lambda d: set_in(job(d), "runtimeEnvYAML", "a: [")),
    "an old Ray": ("multi-node", lambda d: set_in(cluster(d), "rayVersion", "2.51.0")),
    "least above most": (
        "multi-node", lambda d: set_in(cluster(d)["workerGroupSpecs"][0], "minReplicas", 3)),
    "no most": ("multi-node", lambda d: cluster(d)["workerGroupSpecs"][0].pop("maxReplicas")),
    "options without an autoscaler": (
        "cluster", lambda d: cluster(d).pop("enableInTreeAutoscaling")),
    "a head that restarts": (
        "cluster", lambda d: set_in(pod(d, "head"), "restartPolicy", "Always")),
    "a priority without autoscaler v2": (
        "multi-node", lambda d: set_in(cluster(d)["workerGroupSpecs"][0], "priority", 1)),
    "resources twice": (
        "multi-node", lambda d: set_in(cluster(d)["headGroupSpec"], "resources", {"CPU": "1"})),
    "Redis twice": (
        "cluster",
        lambda d: container(d, "head")["env"].append({"name": "REDIS_PASSWORD", "value": "x"})),
}  # fmt: skip


@pytest.mark.parametrize("name", AGAINST_RULES)
def test_the_operator_s_rules_are_known(name: str, rendered: dict[str, list[Document]]) -> None:
    overlay, mutate = AGAINST_RULES[name]
    assert_noticed(rendered[overlay], mutate, operator_problems)
