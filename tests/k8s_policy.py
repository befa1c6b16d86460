"""What each rendered overlay must keep to: Pod Security "restricted", and this project's own rules.

Each function gives one line for each breach; none means that all is well.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.k8s_render import Document, Pod, name_of, of_kind, pods, ray_cluster_specs

LEAST_GRACE_S = 300
"""Of heads and workers: as long as an upload may be retried (`storage.retry_seconds`)."""
_SERVICE_ACCOUNT_FILES = "/var/run/secrets/kubernetes.io/serviceaccount"
_SECRET_NAME = re.compile(r"secret|password|token|access_key|credential", re.I)
_RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def restricted(pod: Pod) -> Iterator[str]:
    """Kubernetes' Pod Security Standard "restricted", and the baseline below it."""
    spec, security = pod.spec, pod.spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{pod.where}: {field}"
    for volume in spec.get("volumes", []):
        for kind in volume.keys() - {"name"} - _RESTRICTED_VOLUMES:
            yield f"{pod.where}: volume {volume['name']} is a {kind}"
    if security.get("sysctls"):
        yield f"{pod.where}: sysctls"
    for container in pod.containers:
        where = f"{pod.where}, {container['name']}"
        own = container.get("securityContext", {})
        if own.get("privileged"):
            yield f"{where}: privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: allowPrivilegeEscalation is not false"
        if "ALL" not in own.get("capabilities", {}).get("drop", []):
            yield f"{where}: capabilities are not dropped"
        if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{where}: capabilities are added"
        if own.get("runAsNonRoot", security.get("runAsNonRoot")) is not True:
            yield f"{where}: runAsNonRoot is not true"
        if own.get("runAsUser", security.get("runAsUser")) == 0:
            yield f"{where}: runAsUser is 0"
        profile = own.get("seccompProfile", security.get("seccompProfile", {})).get("type")
        if profile not in ("RuntimeDefault", "Localhost"):
            yield f"{where}: seccompProfile is {profile}"
        for port in container.get("ports", []):
            if port.get("hostPort"):
                yield f"{where}: hostPort"


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


def inline_secrets(pod: Pod) -> Iterator[str]:
    """No credential is written in a manifest."""
    for container in pod.containers:
        for variable in container.get("env", []):
            if _SECRET_NAME.search(variable["name"]) and "value" in variable:
                yield f"{pod.where}, {container['name']}: {variable['name']} is written out"


def ray_pods(documents: list[Document]) -> Iterator[str]:
    """Heads and workers: the token, time to end in, memory to share, places on the right nodes."""
    for where, spec in ray_cluster_specs(documents):
        if spec.get("authOptions", {}).get("mode") != "token":
            yield f"{where}: no token authentication"
        head = spec["headGroupSpec"]
        if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
            yield f"{where}: the dashboard is exposed"
        terms = str(head["template"]["spec"].get("affinity", {}).get("nodeAffinity", {}))
        if "spot" not in terms:
            yield f"{where}: the head may run on spot nodes"
        templates = [head["template"], *(g["template"] for g in spec["workerGroupSpecs"])]
        for template in templates:
            yield from _ray_pod(where, template["spec"])
        for group in spec["workerGroupSpecs"]:
            yield from _worker(f"{where}, {group['groupName']}", group["template"]["spec"])


def _ray_pod(where: str, spec: Mapping[str, Any]) -> Iterator[str]:
    container = spec["containers"][0]
    where = f"{where}, {container['name']}"
    if spec.get("terminationGracePeriodSeconds", 30) < LEAST_GRACE_S:
        yield f"{where}: terminationGracePeriodSeconds is below {LEAST_GRACE_S}"
    if "preStop" not in container.get("lifecycle", {}):
        yield f"{where}: no preStop hook: it would end without a checkpoint"
    if not spec.get("priorityClassName"):
        yield f"{where}: no priorityClassName"
    memory = {v["name"] for v in spec["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"}
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    if mounts.get("/dev/shm") not in memory:
        yield f"{where}: no shared memory at /dev/shm"
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


def network(documents: list[Document]) -> Iterator[str]:
    """Default deny; what is allowed names its peers and, but among Ray's pods, its ports."""
    policies = of_kind(documents, "NetworkPolicy")
    if not any(
        policy["spec"]["podSelector"] == {}
        and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not policy["spec"].keys() & {"ingress", "egress"}
        for policy in policies
    ):
        yield "no policy that denies by default"
    for policy in policies:
        where = name_of(policy)
        for side, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(side, []):
                if not rule.get(peers):
                    yield f"{where}: {side} for anybody"
                if not rule.get("ports") and policy["metadata"]["name"] != "ray-nodes":
                    yield f"{where}: {side} on any port"
                for peer in rule.get(peers, []):
                    yield from _peer(f"{where}: {side}", side, peer)


def _peer(where: str, side: str, peer: Mapping[str, Any]) -> Iterator[str]:
    block = peer.get("ipBlock")
    if block and side == "ingress":
        yield f"{where} from addresses"
    if block and "169.254.0.0/16" not in block.get("except", []):
        yield f"{where} to the machines' metadata service"
    if peer.get("namespaceSelector") == {} and not peer.get("podSelector"):
        yield f"{where} for all pods of all namespaces"
    if peer.get("podSelector") == {}:
        yield f"{where} for all pods of the namespace"


def objects(documents: list[Document]) -> Iterator[str]:
    """No Secret is in the repository, nothing is open to the world, a budget guards each head."""
    for document in documents:
        where = name_of(document)
        if document["kind"] == "Secret":
            yield f"{where}: secrets are made by hand, not kept here"
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
        if document["kind"] == "ConfigMap":
            for key, value in document.get("data", {}).items():
                if re.search(r"(?i)(secret|password|access_key|token)\w*\s*[:=]\s*\S", value):
                    yield f"{where}: {key} holds a credential"
    budgets = [budget["spec"] for budget in of_kind(documents, "PodDisruptionBudget")]
    for pod in pods(documents):
        labels = pod.metadata.get("labels", {})
        if labels.get("app.kubernetes.io/component") == "head" and not any(
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
        if "RAY_JOB_STOP_WAIT_TIME_S" not in spec.get("runtimeEnvYAML", ""):
            yield f"{where}: stopped, it has 3 s for its checkpoint"


FOR_PODS: tuple[Callable[[Pod], Iterator[str]], ...] = (
    restricted, hardened, kubernetes_token, inline_secrets,
)  # fmt: skip
FOR_ALL: tuple[Callable[[list[Document]], Iterator[str]], ...] = (
    ray_pods, namespace, network, objects, jobs,
)  # fmt: skip


def breaches(documents: list[Document]) -> list[str]:
    """Every breach of every rule."""
    found = [line for pod in pods(documents) for rule in FOR_PODS for line in rule(pod)]
    return found + [line for rule in FOR_ALL for line in rule(documents)]
