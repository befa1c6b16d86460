"""What each rendered overlay must keep to: Pod Security "restricted", and this project's own rules.

Each function gives one line for each breach; none means that all is well.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from tests.k8s_network import network
from tests.k8s_pod_security import restricted
from tests.k8s_render import Document, Pod, name_of, of_kind, pods, ray_cluster_specs
from tests.k8s_secrets import inline_secrets

LEAST_GRACE_S = 300
"""Of heads and workers: as long as an upload may be retried (`storage.retry_seconds`)."""
PRIORITY = "distgan-training"


def hardened(pod: Pod) -> Iterator[str]:
    """Beyond "restricted": a read-only root, limits, no rights in Kubernetes, a pinned image."""
    if not pod.spec.get("securityContext", {}).get("runAsUser"):
        yield f"{pod.where}: no runAsUser"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield f"{pod.where}: automountServiceAccountToken is not false"
    if pod.spec.get("serviceAccountName", "default") == "default":
        yield f"{pod.where}: the default service account"
    for volume in pod.spec.get("volumes", []):
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"{pod.where}: volume {volume['name']} has no sizeLimit"
    for container in pod.containers:
        where = f"{pod.where}, {container['name']}"
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{where}: readOnlyRootFilesystem is not true"
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            for what in ("cpu", "memory"):
                if what not in resources.get(kind, {}):
                    yield f"{where}: no {kind} of {what}"
        if container["name"] != "autoscaler":  # which runs in the head's image
            _, colon, tag = container.get("image", "").rpartition(":")
            if not colon or tag == "latest" or "/" in tag:
                yield f"{where}: image without a tag of its own"
        if not any(m["mountPath"] in ("/tmp", "/data") for m in container.get("volumeMounts", [])):
            yield f"{where}: nowhere to write"


def kubernetes_token(pod: Pod) -> Iterator[str]:
    """A token for Kubernetes reaches no container but Ray's autoscaler."""
    tokens = {
        volume["name"]
        for volume in pod.spec.get("volumes", [])
        if any("serviceAccountToken" in s for s in volume.get("projected", {}).get("sources", []))
    }
    for container in pod.containers:
        for mount in container.get("volumeMounts", []):
            if mount["name"] in tokens and container["name"] != "autoscaler":
                yield f"{pod.where}, {container['name']}: a token for Kubernetes"


def disk(pod: Pod) -> Iterator[str]:
    """What its folders may hold fits into its ephemeral storage: else it is evicted before."""
    limits = pod.spec["containers"][0].get("resources", {}).get("limits", {})
    folders = [volume.get("emptyDir") or {} for volume in pod.spec.get("volumes", [])]
    on_disk = [folder for folder in folders if folder.get("medium") != "Memory"]
    held = sum(bytes_of(folder.get("sizeLimit", "0Gi")) for folder in on_disk)
    if "ephemeral-storage" in limits and held > bytes_of(limits["ephemeral-storage"]):
        yield f"{pod.where}: its folders may hold more than its ephemeral storage"


def bytes_of(quantity: str) -> int:
    return int(quantity.removesuffix("Gi")) * 2**30


def lasting(pod: Pod) -> Iterator[str]:
    """Heads, and Redis which holds a head's state, are not on spot nodes and have a priority."""
    component = pod.metadata.get("labels", {}).get("app.kubernetes.io/component")
    if component in ("head", "worker", "redis") and pod.spec.get("priorityClassName") != PRIORITY:
        yield f"{pod.where}: its priorityClassName is not {PRIORITY}"
    terms = str(pod.spec.get("affinity", {}).get("nodeAffinity", {}))
    if component in ("head", "redis") and "spot" not in terms:
        yield f"{pod.where}: may run on spot nodes"


def servers(pod: Pod) -> Iterator[str]:
    """TensorBoard, which knows no users, is on loopback; Redis asks for a certificate."""
    for container in pod.containers:
        where = f"{pod.where}, {container['name']}"
        words = [*container.get("command", []), *container.get("args", [])]
        if container["name"] == "tensorboard" and (
            [word for word in words if "--host" in word or "--bind" in word] != ["--host=127.0.0.1"]
        ):
            yield f"{where}: listens beyond loopback"
        if container["name"] == "redis":
            needed = {"--port 0", "--tls-auth-clients yes", "--tls-ca-cert-file /tls/ca.crt"}
            for word in sorted(needed - set(words)):
                yield f"{where}: lacks {word}, so it asks for no certificate"


def ray_pods(documents: list[Document]) -> Iterator[str]:
    """Heads and workers: the token, time to end in, memory to share, places on the right nodes."""
    for where, spec in ray_cluster_specs(documents):
        if spec.get("authOptions", {}).get("mode") != "token":
            yield f"{where}: no token authentication"
        head = spec["headGroupSpec"]
        service = head.get("headService", {}).get("spec", {})
        kinds = ((head, "serviceType"), (service, "type"))
        if (
            {each.get(key, "ClusterIP") for each, key in kinds} != {"ClusterIP"}
            or head.get("enableIngress")
            or service.get("externalIPs")
        ):
            yield f"{where}: the dashboard is exposed"
        for group in (head, *spec["workerGroupSpecs"]):
            yield from _ray_pod(where, group)
        for group in spec["workerGroupSpecs"]:
            yield from _worker(f"{where}, {group['groupName']}", group["template"]["spec"])


def _ray_pod(where: str, group: Mapping[str, Any]) -> Iterator[str]:
    spec = group["template"]["spec"]
    container = spec["containers"][0]
    where = f"{where}, {container['name']}"
    if spec.get("terminationGracePeriodSeconds", 30) < LEAST_GRACE_S:
        yield f"{where}: terminationGracePeriodSeconds is below {LEAST_GRACE_S}"
    hook = str(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command"))
    asks = "pkill -TERM" if container["name"] == "ray-head" else "ray drain-node"
    if asks not in hook or "; do sleep 1; done" not in hook:
        yield f"{where}: no preStop hook: it would end without a checkpoint"
    memory = {
        volume["name"]: bytes_of(volume["emptyDir"]["sizeLimit"])
        for volume in spec["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    }
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    shared = memory.get(mounts.get("/dev/shm", ""), 0)
    store = int(group["rayStartParams"].get("object-store-memory", 2**63))
    if not shared:
        yield f"{where}: no shared memory at /dev/shm"
    elif store > shared / 2:  # Ray would put what does not fit into /tmp; DataLoader, NCCL need it
        yield f"{where}: Ray's object store leaves too little of /dev/shm"
    if not any("secretRef" in source for source in container.get("envFrom", [])):
        yield f"{where}: no credentials from a Secret"


def _worker(where: str, spec: Mapping[str, Any]) -> Iterator[str]:
    container = spec["containers"][0]
    if not any(m["mountPath"] == "/cache" for m in container["volumeMounts"]):
        yield f"{where}: no local-disk cache"
    resources = container["resources"]
    gpus = {kind: resources[kind].get("nvidia.com/gpu") for kind in ("requests", "limits")}
    tolerated = {t["key"] for t in spec.get("tolerations", [])}
    if gpus["requests"] != gpus["limits"]:
        yield f"{where}: GPUs requested are not those limited"
    if gpus["limits"]:
        if "nvidia.com/gpu" not in tolerated or not spec.get("nodeSelector"):
            yield f"{where}: GPUs, but no way onto GPU nodes"
        if "cloud.google.com/gke-spot" not in tolerated:
            yield f"{where}: no toleration of spot nodes"


def namespace(documents: list[Document]) -> Iterator[str]:
    """The namespace refuses pods that are not restricted, and holds everything."""
    enforced = [
        document["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        for document in of_kind(documents, "Namespace")
    ]
    if enforced != ["restricted"]:
        yield f"the namespace enforces {enforced}"
    for document in documents:
        if document["kind"] in ("Namespace", "PriorityClass"):
            continue
        if document["metadata"].get("namespace") != "distgan":
            yield f"{name_of(document)}: in no namespace"


def objects(documents: list[Document]) -> Iterator[str]:
    """Nothing is open to the world; a budget guards each head, and Redis."""
    for document in documents:
        where = name_of(document)
        if document["kind"] == "Ingress":
            yield f"{where}: open to the world"
        if document["kind"] == "Service" and document["spec"].get("type", "ClusterIP") != (
            "ClusterIP"
        ):
            yield f"{where}: open to the world"
        if document["kind"] == "ServiceAccount" and document.get(
            "automountServiceAccountToken"
        ) is not False:  # fmt: skip
            yield f"{where}: mounts its token"
    budgets = [budget["spec"] for budget in of_kind(documents, "PodDisruptionBudget")]
    for pod in pods(documents):
        labels = pod.metadata.get("labels", {})
        if labels.get("app.kubernetes.io/component") in ("head", "redis") and not any(
            budget.get("minAvailable") == 1
            and budget["selector"]["matchLabels"].items() <= labels.items()
            for budget in budgets
        ):
            yield f"{pod.where}: no PodDisruptionBudget"


def jobs(documents: list[Document]) -> Iterator[str]:
    """Jobs are queued or autoscaled (Kueue admits fixed sizes only), and leave nothing behind."""
    for job in of_kind(documents, "RayJob"):
        where, spec = name_of(job), job["spec"]
        queued = "kueue.x-k8s.io/queue-name" in job["metadata"].get("labels", {})
        if queued == bool(spec["rayClusterSpec"].get("enableInTreeAutoscaling")):
            yield f"{where}: either a Kueue label or autoscaling"
        if not spec.get("shutdownAfterJobFinishes") or not spec.get("ttlSecondsAfterFinished"):
            yield f"{where}: its cluster stays when it is done"
        if not spec.get("backoffLimit"):
            yield f"{where}: no further attempt after a lost head"
        if not re.fullmatch(r"[\w ./:=-]+", spec["entrypoint"]):
            yield f"{where}: the entrypoint means something to a shell"
        environment = yaml.safe_load(spec.get("runtimeEnvYAML", "{}")).get("env_vars", {})
        if int(environment.get("RAY_JOB_STOP_WAIT_TIME_S", 3)) < LEAST_GRACE_S:
            yield f"{where}: stopped, it has no time for its checkpoint"


def fault_tolerance(documents: list[Document]) -> Iterator[str]:
    """A cluster that stays keeps its head's state, over TLS, and without a password: Ray would hand
    that on in arguments of processes."""
    for cluster in of_kind(documents, "RayCluster"):
        options = cluster["spec"].get("gcsFaultToleranceOptions", {})
        if not str(options.get("redisAddress")).startswith("rediss://"):
            yield f"{name_of(cluster)}: no Redis over TLS for its head's state"
        if "redisPassword" in options:
            yield f"{name_of(cluster)}: Redis' password would show in arguments of processes"


FOR_PODS: tuple[Callable[[Pod], Iterator[str]], ...] = (
    restricted, hardened, kubernetes_token, disk, lasting, servers,
)  # fmt: skip
FOR_ALL: tuple[Callable[[list[Document]], Iterator[str]], ...] = (
    ray_pods, namespace, network, objects, jobs, fault_tolerance, inline_secrets,
)  # fmt: skip


def breaches(documents: list[Document]) -> list[str]:
    """Every breach of every rule."""
    found = [line for pod in pods(documents) for rule in FOR_PODS for line in rule(pod)]
    return found + [line for rule in FOR_ALL for line in rule(documents)]
