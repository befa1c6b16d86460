"""The NetworkPolicies that are to be rendered, in words, and what differs from them.

Whatever is not in the table is a breach: a policy, a peer or a port too many, or one too few.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tests.k8s_render import Document, of_kind, ray_cluster_specs


class Policy(NamedTuple):
    """Whom it is for, by `component` labels (`*` means all), and what it allows."""

    pods: str
    allows: frozenset[str]


def _policy(pods: str, *allows: str) -> Policy:
    return Policy(pods, frozenset(allows))


_ANYWHERE = ("0.0.0.0/0 but 169.254.0.0/16", "::/0 but fd00:ec2::/32, fe80::/10")
"""But for the machines' metadata services, which hand out the machines' own credentials."""
_NAME_SERVERS = ("k8s-app=kube-dns in kube-system", "169.254.20.10/32")
EXPECTED = {
    "default-deny": _policy("*", "nothing in", "nothing out"),
    "ray-nodes": _policy("head|worker", "in head|worker: any", "out head|worker: any"),
    "dashboard": _policy(
        "head",
        "in submitter: TCP 8265",
        "in app.kubernetes.io/name=kuberay-operator in kuberay: TCP 8265",
    ),
    "submitter": _policy("submitter", "out head: TCP 8265"),
    "names": _policy(
        "*", *(f"out {server}: {how} 53" for server in _NAME_SERVERS for how in ("TCP", "UDP"))
    ),
    "object-storage": _policy(
        "head|tensorboard|worker", *(f"out {addresses}: TCP 443" for addresses in _ANYWHERE)
    ),
}
EXPECTED_AUTOSCALED = {
    "autoscaler": _policy(
        "head", *(f"out {addresses}: TCP {port}" for addresses in _ANYWHERE for port in (443, 6443))
    ),
}
EXPECTED_BESIDE_REDIS = {
    "redis": _policy("redis", "in head: TCP 6379"),
    "head-to-redis": _policy("head", "out redis: TCP 6379"),
}


def network(documents: list[Document]) -> Iterator[str]:
    """The policies are those of the table."""
    expected = dict(EXPECTED)
    if any(spec.get("enableInTreeAutoscaling") for _, spec in ray_cluster_specs(documents)):
        expected |= EXPECTED_AUTOSCALED
    if of_kind(documents, "RayCluster"):
        expected |= EXPECTED_BESIDE_REDIS
    policies = of_kind(documents, "NetworkPolicy")
    found = {policy["metadata"]["name"]: _in_words(policy["spec"]) for policy in policies}
    for name in expected.keys() | found.keys():
        if found.get(name) != expected.get(name):
            yield f"NetworkPolicy {name}: {found.get(name)} in place of {expected.get(name)}"


def _in_words(spec: Mapping[str, Any]) -> Policy:
    allows = set()
    for side, way, peers in (("Ingress", "in", "from"), ("Egress", "out", "to")):
        rules = spec.get(side.lower(), [])
        if side not in spec["policyTypes"]:
            continue
        if not rules:
            allows.add(f"nothing {way}")
        for rule in rules:
            ports = [_port(port) for port in rule.get("ports", [])] or ["any"]
            whom = [_peer(peer) for peer in rule.get(peers, [])] or ["anybody"]
            allows |= {f"{way} {peer}: {port}" for peer in whom for port in ports}
    return Policy(_pods(spec["podSelector"]), frozenset(allows))


def _port(port: Mapping[str, Any]) -> str:
    last = f"-{port['endPort']}" if "endPort" in port else ""
    return f"{port.get('protocol', 'TCP')} {port.get('port', 'any')}{last}"


def _peer(peer: Mapping[str, Any]) -> str:
    if "ipBlock" in peer:
        left_out = ", ".join(sorted(peer["ipBlock"].get("except", [])))
        return peer["ipBlock"]["cidr"] + (f" but {left_out}" if left_out else "")
    if "namespaceSelector" not in peer:
        return _pods(peer["podSelector"])
    labels = peer["namespaceSelector"].get("matchLabels", {})
    namespace = labels.get("kubernetes.io/metadata.name")
    if peer["namespaceSelector"] != {"matchLabels": {"kubernetes.io/metadata.name": namespace}}:
        namespace = json.dumps(peer["namespaceSelector"])
    return f"{_pods(peer.get('podSelector', {}))} in {namespace}"


def _pods(selector: Mapping[str, Any]) -> str:
    """`head|worker` for this project's components, labels as they are for others."""
    component = "app.kubernetes.io/component"
    own = {"app.kubernetes.io/part-of": "distgan"}
    labels = selector.get("matchLabels", {})
    match selector:
        case {"matchExpressions": [{"key": key, "operator": "In", "values": values}]} if (
            key == component and labels == own
        ):
            return "|".join(sorted(values))
        case {"matchExpressions": _}:
            return json.dumps(selector)
    if labels.keys() == {*own, component} and labels.items() >= own.items():
        return str(labels[component])
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "*"
