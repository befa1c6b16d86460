"""Finds in rendered manifests what a mutant changes, and changes it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.k8s_render import Document, name_of, of_kind, pods, ray_cluster_specs, render

Mutation = Callable[[list[Document]], None]


def assert_noticed(
    documents: list[Document], mutate: Mutation, problems: Callable[[list[Document]], list[str]]
) -> None:
    """A check says nothing of manifests as they are, and something of them with one mistake."""
    mutant = copy.deepcopy(documents)
    assert problems(mutant) == []
    mutate(mutant)
    assert mutant != documents
    assert problems(mutant)


def both_kinds(folder: Path) -> dict[str, list[Document]]:
    """A job and a cluster that stays: together they have all that the overlays have."""
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


def write_in(documents: list[Document], key: str, more: str) -> None:
    job(documents)[key] += more


def allow(documents: list[Document], policy: str, side: str, **rule: object) -> None:
    """Changes the first rule of a policy for `ingress` or `egress`."""
    rules = named(documents, f"NetworkPolicy {policy}")["spec"][side]
    rules[0] |= {key.rstrip("_"): value for key, value in rule.items()}
