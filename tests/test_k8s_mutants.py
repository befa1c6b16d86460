"""The policy notices each control that is dropped: one mutant each, all are caught."""

import pytest

from tests.k8s_mutation import (
    Mutation,
    allow,
    assert_noticed,
    both_kinds,
    cluster,
    container,
    drop,
    drop_mount,
    drop_toleration,
    job,
    mount_token,
    named,
    pod,
    set_in,
    volume,
    write_in,
)
from tests.k8s_policy import breaches
from tests.k8s_render import Document, of_kind


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Document]]:
    return both_kinds(tmp_path_factory.mktemp("mutants"))


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
    "an unmasked /proc": (
        "multi-node",
        lambda d: container(d, "head")["securityContext"].update(procMount="Unmasked")),
    "no AppArmor": (
        "multi-node",
        lambda d: pod(d, "head")["securityContext"].update(appArmorProfile={"type": "Unconfined"})),
    "a container without AppArmor": (
        "cluster",
        lambda d: container(d, "redis")["securityContext"].update(
            appArmorProfile={"type": "Unconfined"})),
    "a user of SELinux": (
        "multi-node",
        lambda d: pod(d, "workers")["securityContext"].update(seLinuxOptions={"user": "root"})),
    "a type of SELinux": (
        "multi-node",
        lambda d: pod(d, "workers")["securityContext"].update(seLinuxOptions={"type": "spc_t"})),
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
    "a secret among the job's variables": (
        "multi-node",
        lambda d: write_in(d, "runtimeEnvYAML", '  AWS_SECRET_ACCESS_KEY: "canary"\n')),
    "a secret in the entrypoint": (
        "multi-node", lambda d: write_in(d, "entrypoint", " x.password=canary")),
    "a secret in an argument": (
        "multi-node", lambda d: set_in(container(d, "tensorboard"), "args", ["--password=canary"])),
    "a secret in two arguments": (
        "multi-node", lambda d: set_in(container(d, "tensorboard"), "args", ["--token", "canary"])),
    "a user and password in an address": (
        "multi-node",
        lambda d: named(d, "ConfigMap settings")["data"].update(x="https://user:canary@example.org")),
    "a key id": (
        "multi-node", lambda d: of_kind(d, "RayJob")[0]["metadata"]["labels"].update(
            x="AKIA" + 16 * "A")),
    "a private key": (
        "multi-node",
        lambda d: named(d, "ConfigMap settings")["data"].update(x="-----BEGIN RSA PRIVATE KEY")),
    "Redis' password from a Secret": (
        "cluster",
        lambda d: set_in(
            cluster(d)["gcsFaultToleranceOptions"], "redisPassword",
            {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}})),
    "Redis' password written out": (
        "cluster",
        lambda d: set_in(
            cluster(d)["gcsFaultToleranceOptions"], "redisPassword", {"value": "canary"})),
    "Redis' password for ray start": (
        "cluster",
        lambda d: set_in(
            cluster(d)["headGroupSpec"]["rayStartParams"], "redis-password", "canary")),
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
    "the dashboard's own service on a load balancer": (
        "multi-node",
        lambda d: set_in(
            cluster(d)["headGroupSpec"], "headService", {"spec": {"type": "LoadBalancer"}})),
    "the dashboard's own service on an address of the machines": (
        "multi-node",
        lambda d: set_in(
            cluster(d)["headGroupSpec"], "headService",
            {"spec": {"externalIPs": ["192.0.2.1"]}})),
    "a role of SELinux": (
        "cluster",
        lambda d: container(d, "redis")["securityContext"].update(
            seLinuxOptions={"role": "sysadm_r"})),
    "no fault tolerance": ("cluster", lambda d: cluster(d).pop("gcsFaultToleranceOptions")),
    "Redis without TLS": (
        "cluster", lambda d: container(d, "redis")["args"].remove("--port 0")),
    "Redis for whoever speaks TLS": (
        "cluster", lambda d: container(d, "redis")["args"].remove("--tls-auth-clients yes")),
    "Redis for certificates of anybody": (
        "cluster",
        lambda d: container(d, "redis")["args"].remove("--tls-ca-cert-file /tls/ca.crt")),
    "a head that speaks to Redis in clear": (
        "cluster", lambda d: set_in(
            cluster(d)["gcsFaultToleranceOptions"], "redisAddress", "redis:6379")),
    "Redis on spot nodes": ("cluster", lambda d: pod(d, "redis").pop("affinity")),
    "Redis without a priority": ("cluster", lambda d: pod(d, "redis").pop("priorityClassName")),
    "no budget for Redis": ("cluster", lambda d: drop(d, "PodDisruptionBudget redis")),
    "an object store as Ray likes it": (
        "multi-node",
        lambda d: cluster(d)["workerGroupSpecs"][0]["rayStartParams"].pop("object-store-memory")),
    "an object store that fills the shared memory": (
        "cluster",
        lambda d: cluster(d)["headGroupSpec"]["rayStartParams"].update(
            {"object-store-memory": "2000000000"})),
    "a cache larger than the disk": (
        "multi-node",
        lambda d: volume(d, "workers", "cache")["emptyDir"].update(sizeLimit="250Gi")),
    "no shared memory": ("multi-node", lambda d: drop_mount(d, "workers", "/dev/shm")),
    "no cache": ("multi-node", lambda d: drop_mount(d, "workers", "/cache")),
    "no time to end in": (
        "multi-node", lambda d: set_in(pod(d, "workers"), "terminationGracePeriodSeconds", 30)),
    "no hook before the end": ("multi-node", lambda d: container(d, "head").pop("lifecycle")),
    "a hook that does nothing": (
        "multi-node",
        lambda d: container(d, "head")["lifecycle"]["preStop"]["exec"].update(command=["true"])),
    "a worker that does not wait": (
        "multi-node",
        lambda d: container(d, "workers")["lifecycle"]["preStop"]["exec"].update(command=["true"])),
    "a worker that leaves without a checkpoint": (
        "multi-node",
        lambda d: container(d, "workers")["lifecycle"]["preStop"]["exec"].update(
            command=["while pgrep ray; do sleep 1; done"])),
    "the cluster's own priority": (
        "multi-node",
        lambda d: set_in(pod(d, "head"), "priorityClassName", "system-cluster-critical")),
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
    "stopped within 3 s": (
        "multi-node",
        lambda d: set_in(
            job(d), "runtimeEnvYAML", 'env_vars: {RAY_JOB_STOP_WAIT_TIME_S: "3"}')),
    # The network and the namespace
    "all is allowed": ("multi-node", lambda d: drop(d, "NetworkPolicy default-deny")),
    "the dashboard for anybody": (
        "multi-node",
        lambda d: named(d, "NetworkPolicy dashboard")["spec"]["ingress"][0].pop("from")),
    "the dashboard for all namespaces": (
        "multi-node",
        lambda d: named(d, "NetworkPolicy dashboard")["spec"]["ingress"][0]["from"][1].pop(
            "podSelector")),
    "the dashboard for all of distgan": (
        "multi-node",
        lambda d: allow(d, "dashboard", "ingress", from_=[
            {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "distgan"}}}])),
    "an operator of any namespace": (
        "multi-node",
        lambda d: named(d, "NetworkPolicy dashboard")["spec"]["ingress"][0]["from"][1].update(
            namespaceSelector={})),
    "Ray's ports for all pods": (
        "multi-node",
        lambda d: set_in(named(d, "NetworkPolicy ray-nodes")["spec"], "podSelector", {})),
    "Ray's pods from all pods": (
        "multi-node", lambda d: allow(d, "ray-nodes", "ingress", from_=[{"podSelector": {}}])),
    "every port outwards": (
        "multi-node",
        lambda d: allow(d, "object-storage", "egress", ports=[
            {"port": 1, "endPort": 65535, "protocol": "TCP"}])),
    "Redis for all of distgan": (
        "cluster",
        lambda d: allow(d, "redis", "ingress", from_=[
            {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "distgan"}}}])),
    "names from every pod of the system": (
        "multi-node",
        lambda d: named(d, "NetworkPolicy names")["spec"]["egress"][0]["to"][0].pop("podSelector")),
    "no names": ("multi-node", lambda d: drop(d, "NetworkPolicy names")),
    "no way between Ray's pods": ("multi-node", lambda d: drop(d, "NetworkPolicy ray-nodes")),
    "a policy too many": (
        "multi-node", lambda d: d.append({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "all", "namespace": "distgan"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}})),
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
    "TensorBoard on all addresses": (
        "multi-node",
        lambda d: set_in(container(d, "tensorboard"), "command", [
            word.replace("127.0.0.1", "0.0.0.0")
            for word in container(d, "tensorboard")["command"]])),
    "TensorBoard for the world": (
        "multi-node",
        lambda d: d.append({"apiVersion": "v1", "kind": "Service", "metadata": {
            "name": "tensorboard", "namespace": "distgan"}, "spec": {"type": "LoadBalancer"}})),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_dropped_control_is_noticed(name: str, rendered: dict[str, list[Document]]) -> None:
    overlay, mutate = MUTANTS[name]
    assert_noticed(rendered[overlay], mutate, breaches)
