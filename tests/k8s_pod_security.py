"""Kubernetes' Pod Security Standard "restricted", and the baseline below it.

Each function gives one line for each breach; none means that all is well.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.k8s_render import Pod

_SELINUX_TYPES = {
    None, "container_t", "container_init_t", "container_kvm_t", "container_engine_t",
}  # fmt: skip
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
    yield from _confined(pod.where, security)
    for container in pod.containers:
        where = f"{pod.where}, {container['name']}"
        own = container.get("securityContext", {})
        yield from _confined(where, own)
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


def _confined(where: str, security: Mapping[str, Any]) -> Iterator[str]:
    """What a pod or a container may say of /proc, AppArmor and SELinux, if anything."""
    if security.get("procMount", "Default") != "Default":
        yield f"{where}: procMount"
    profile = security.get("appArmorProfile", {}).get("type", "RuntimeDefault")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield f"{where}: appArmorProfile is {profile}"
    selinux = security.get("seLinuxOptions", {})
    if selinux.keys() & {"user", "role"} or selinux.get("type") not in _SELINUX_TYPES:
        yield f"{where}: seLinuxOptions"
