"""The policy notices each control that is dropped: one mutant each, all are caught."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s_policy import breaches
from tests.k8s_render import Document, name_of, of_kind, pods, ray_cluster_specs, render
from tests.kuberay_rules import operator_problems, schema_problems

Mutation = Callable[[list[Document]], None]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Document]]:
    folder = tmp_path_factory.mktemp("mutants")
    return {overlay: render(overlay, folder) for overlay in ("multi-node", "cluster")}


def named(documents: list[Document], name: str) -> Document:
    (found,) = (document for document in documents if name_of(document) == name)
    return found


def pod(documents: list[Document], where: str) -> dict[str, Any]:
    """The specification of the one pod that ends so, such as `head` or `submitter`."""
    (found,) = (each for each in pods(documents) if each.where.endswith(where))
    return found.spec


def container(documents: list[Document], where: str) -> dict[str, Any]:
    return pod(documents, where)["containers"][0]  # type: ignore[no-any-return]


def cluster(documents: list[Document]) -> dict[str, Any]:
    ((_, spec),) = ray_cluster_specs(documents)
    return spec


def job(documents: list[Document]) -> dict[str, Any]:
    (found,) = of_kind(documents, "RayJob")
    return found["spec"]  # type: ignore[no-any-return]


def volume(documents: list[Document], where: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in pod(documents, where)["volumes"] if each["name"] == name)
    return found  # type: ignore[no-any-return]


def drop_mount(documents: list[Document], where: str, path: str) -> None:
    own = container(documents, where)
    own["volumeMounts"] = [m for m in own["volumeMounts"] if m["mountPath"] != path]


def drop(documents: list[Document], name: str) -> None:
    documents.remove(named(documents, name))


def drop_toleration(documents: list[Document], key: str) -> None:
    spec = pod(documents, "workers")
    spec["tolerations"] = [t for t in spec["tolerations"] if t["key"] != key]


def mount_token(documents: list[Document]) -> None:
    own = container(documents, "head")
    own["volumeMounts"].append({"name": "kubernetes-token", "mountPath": "/token"})


def set_in(mapping: dict[str, Any], key: str, value: object) -> None:
    mapping[key] = value


MUTANTS: dict[str, tuple[str, Mutation]] = {
    # Pod Security "restricted"
    "the head may run as root": (
        "multi-node", lambda d: pod(d, "head")["securityContext"].pop("runAsNonRoot")),
    "a worker runs as root": (
        "multi-node", lambda d: set_in(pod(d, "workers")["securityContext"], "runAsUser", 0)),
    "no seccomp profile": (
        "multi-node", lambda d: pod(d, "submitter")["securityContext"].pop("seccompProfile")),
    "privilege escalation": (
        "multi-node",
        lambda d: container(d, "workers")["securityContext"].pop("allowPrivilegeEscalation")),
    "capabilities stay": (
        "multi-node", lambda d: container(d, "tensorboard")["securityContext"].pop("capabilities")),
    "a capability is added": (
        "multi-node",
        lambda d: container(d, "head")["securityContext"]["capabilities"].update(add=["KILL"])),
    "privileged": (
        "multi-node", lambda d: container(d, "workers")["securityContext"].update(privileged=True)),
    "the host's network": (
        "multi-node", lambda d: set_in(pod(d, "workers"), "hostNetwork", True)),
    "the host's processes": ("multi-node", lambda d: set_in(pod(d, "head"), "hostPID", True)),
    "the host's disk": (
        "multi-node", lambda d: set_in(volume(d, "workers", "cache"), "hostPath", {"path": "/"})),
    "a port of the host": (
        "multi-node", lambda d: set_in(container(d, "head")["ports"][1], "hostPort", 8265)),
    "KubeRay's own submitter": ("multi-node", lambda d: job(d).pop("submitterPodTemplate")),
    "KubeRay's own autoscaler": ("cluster", lambda d: cluster(d).pop("autoscalerOptions")),
    # Beyond it
    "a writable root": (
        "multi-node",
        lambda d: container(d, "head")["securityContext"].pop("readOnlyRootFilesystem")),
    "a writable root of the autoscaler": (
        "cluster",
        lambda d: cluster(d)["autoscalerOptions"]["securityContext"].pop("readOnlyRootFilesystem")),
    "no limit of memory": (
        "multi-node", lambda d: container(d, "workers")["resources"]["limits"].pop("memory")),
    "no limits of the submitter": (
        "multi-node", lambda d: container(d, "submitter")["resources"].pop("limits")),
    "a folder without a limit": (
        "multi-node", lambda d: volume(d, "workers", "cache")["emptyDir"].pop("sizeLimit")),
    "the newest image": (
        "multi-node", lambda d: set_in(container(d, "head"), "image", "example.org/distgan")),
    "the default service account": (
        "multi-node", lambda d: pod(d, "workers").pop("serviceAccountName")),
    "a token is mounted": (
        "multi-node", lambda d: pod(d, "head").pop("automountServiceAccountToken")),
    "the account mounts its token": (
        "multi-node",
        lambda d: named(d, "ServiceAccount distgan").pop("automountServiceAccountToken")),
    "the autoscaler's token for the head": ("cluster", mount_token),
    "an inline secret": (
        "multi-node",
        lambda d: container(d, "workers")["env"].append(
            {"name": "AWS_SECRET_ACCESS_KEY", "value": "canary"})),
    "a secret among the settings": (
        "multi-node",
        lambda d: named(d, "ConfigMap settings")["data"].update(x="AWS_SECRET_ACCESS_KEY=canary")),
    "a Secret in the repository": (
        "multi-node",
        lambda d: d.append({"apiVersion": "v1", "kind": "Secret", "metadata": {
            "name": "x", "namespace": "distgan"}, "stringData": {"a": "b"}})),
    "no credentials from a Secret": ("multi-node", lambda d: container(d, "head").pop("envFrom")),
    # Ray
    "no token authentication": ("multi-node", lambda d: cluster(d).pop("authOptions")),
    "token authentication off": (
        "cluster", lambda d: set_in(cluster(d)["authOptions"], "mode", "disabled")),
    "the dashboard on a load balancer": (
        "multi-node", lambda d: set_in(cluster(d)["headGroupSpec"], "serviceType", "LoadBalancer")),
    "the dashboard by an ingress": (
        "cluster", lambda d: set_in(cluster(d)["headGroupSpec"], "enableIngress", True)),
    "no shared memory": ("multi-node", lambda d: drop_mount(d, "workers", "/dev/shm")),
    "no cache": ("multi-node", lambda d: drop_mount(d, "workers", "/cache")),
    "no time to end in": (
        "multi-node", lambda d: set_in(pod(d, "workers"), "terminationGracePeriodSeconds", 30)),
    "no hook before the end": ("multi-node", lambda d: container(d, "head").pop("lifecycle")),
    "no priority": ("multi-node", lambda d: pod(d, "workers").pop("priorityClassName")),
    "no budget": ("multi-node", lambda d: drop(d, "PodDisruptionBudget multi-node")),
    "the head on spot nodes": ("multi-node", lambda d: pod(d, "head").pop("affinity")),
    "no spot nodes": ("multi-node", lambda d: drop_toleration(d, "cloud.google.com/gke-spot")),
    "no GPU nodes": ("multi-node", lambda d: pod(d, "workers").pop("nodeSelector")),
    "no queue": (
        "multi-node", lambda d: of_kind(d, "RayJob")[0]["metadata"].pop("labels")),
    "the cluster stays": ("multi-node", lambda d: job(d).pop("shutdownAfterJobFinishes")),
    "no time to live": ("multi-node", lambda d: job(d).pop("ttlSecondsAfterFinished")),
    "no further attempt": ("multi-node", lambda d: job(d).pop("backoffLimit")),
    "stopped without a checkpoint": ("multi-node", lambda d: job(d).pop("runtimeEnvYAML")),
    # The network and the namespace
    "all is allowed": ("multi-node", lambda d: drop(d, "NetworkPolicy default-deny")),
    "the dashboard for anybody": (
        "multi-node",
        lambda d: named(d, "NetworkPolicy dashboard")["spec"]["ingress"][0].pop("from")),
    "the dashboard for all namespaces": (
        "multi-node",
        lambda d: named(d, "NetworkPolicy dashboard")["spec"]["ingress"][0]["from"][1].pop(
            "podSelector")),
    "the head's every port": (
        "multi-node",
        lambda d: named(d, "NetworkPolicy dashboard")["spec"]["ingress"][0].pop("ports")),
    "the machines' metadata": (
        "multi-node",
        lambda d: named(d, "NetworkPolicy object-storage")["spec"]["egress"][0]["to"][0][
            "ipBlock"].pop("except")),
    "unrestricted pods are let in": (
        "multi-node", lambda d: named(d, "Namespace distgan")["metadata"].pop("labels")),
    "in the default namespace": (
        "cluster", lambda d: named(d, "RayCluster distgan")["metadata"].pop("namespace")),
    "TensorBoard for the world": (
        "multi-node",
        lambda d: d.append({"apiVersion": "v1", "kind": "Service", "metadata": {
            "name": "tensorboard", "namespace": "distgan"}, "spec": {"type": "LoadBalancer"}})),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_dropped_control_is_noticed(name: str, rendered: dict[str, list[Document]]) -> None:
    overlay, mutate = MUTANTS[name]
    mutant = copy.deepcopy(rendered[overlay])
    assert breaches(mutant) == []
    mutate(mutant)
    assert mutant != rendered[overlay]
    assert breaches(mutant)


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


@pytest.mark.parametrize("name", REFUSED)
def test_the_schemas_notice_mistakes(name: str, rendered: dict[str, list[Document]]) -> None:
    overlay, mutate = REFUSED[name]
    mutant = copy.deepcopy(rendered[overlay])
    mutate(mutant)
    assert [p for each in mutant if each["kind"].startswith("Ray") for p in schema_problems(each)]


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
    mutant = copy.deepcopy(rendered[overlay])
    assert operator_problems(mutant) == []
    mutate(mutant)
    assert operator_problems(mutant)
