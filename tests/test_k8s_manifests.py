"""Every overlay renders, is what Kubernetes and KubeRay take, and keeps to the policy."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from distgan.config_checks import needed_stored_frames, stored_frames
from distgan.config_loading import load_config
from launch import build_parser
from tests.k8s_policy import breaches
from tests.k8s_render import (
    OVERLAYS,
    SETTINGS,
    Document,
    kustomize,
    name_of,
    of_kind,
    pods,
    ray_cluster_specs,
    render,
)
from tests.kuberay_rules import operator_problems, schema_problems
from tests.tiny import REPOSITORY

KUBERNETES_VERSION = "1.31"
LOCK = REPOSITORY / "k8s" / "image" / "requirements-cuda.txt"
JOBS = tuple(overlay for overlay in OVERLAYS if overlay != "cluster")


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def documents(overlay: str, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return render(overlay, tmp_path_factory.mktemp(overlay))


def test_kubernetes_takes_its_own_kinds(documents: list[Document]) -> None:
    own = [each for each in documents if not each["apiVersion"].startswith("ray.io/")]
    assert len(own) >= 10
    for document in own:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_kuberay_s_schemas_take_the_others(documents: list[Document]) -> None:
    others = [each for each in documents if each["apiVersion"].startswith("ray.io/")]
    assert len(others) == 1
    assert [line for document in others for line in schema_problems(document)] == []


def test_kuberay_s_operator_takes_them(documents: list[Document]) -> None:
    assert operator_problems(documents) == []


def test_the_policy_is_kept(overlay: str, documents: list[Document]) -> None:
    assert breaches(documents) == []
    expected = {"head", "workers", "tensorboard"} | (
        {"redis"} if overlay == "cluster" else {"submitter"}
    )
    found = {pod.where.rpartition(" ")[2] for pod in pods(documents)}
    assert found == expected


def test_the_four_values_reach_every_place(documents: list[Document]) -> None:
    text = yaml.safe_dump([each for each in documents if each["kind"] != "ConfigMap"])
    assert not [word for word in ("IMAGE\n", "BUCKET", "CREDENTIALS") if word in text]
    images = {c["image"] for pod in pods(documents) for c in pod.containers if "image" in c}
    assert {image for image in images if "redis" not in image} == {SETTINGS["IMAGE"]}


def test_no_two_objects_have_one_name(documents: list[Document]) -> None:
    names = [name_of(document) for document in documents]
    assert len(names) == len(set(names))


def test_what_pods_refer_to_is_there(overlay: str, documents: list[Document]) -> None:
    """ConfigMaps, service accounts and priority classes are rendered; Secrets are made by hand."""
    present = {name_of(document) for document in documents}
    secrets = set()
    for pod in pods(documents):
        assert f"ServiceAccount {pod.spec['serviceAccountName']}" in present
        if "priorityClassName" in pod.spec:
            assert f"PriorityClass {pod.spec['priorityClassName']}" in present
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]} if (
            "volumes" in pod.spec
        ) else {}  # fmt: skip
        for volume in volumes.values():
            if "configMap" in volume:
                assert f"ConfigMap {volume['configMap']['name']}" in present
        for container in pod.containers:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted - {"data"} <= volumes.keys()
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert f"ConfigMap {source['configMapRef']['name']}" in present
                else:
                    secrets.add(source["secretRef"]["name"])
    assert secrets == {SETTINGS["CREDENTIALS"]}


@pytest.mark.parametrize("missing", SETTINGS)
def test_a_missing_value_is_named_when_rendering(missing: str, tmp_path: Path) -> None:
    others = {name: value for name, value in SETTINGS.items() if name != missing}
    done = kustomize("multi-node", tmp_path, others)
    assert done.returncode != 0
    assert f"data.{missing}` is missing" in done.stderr


def test_a_bucket_may_be_a_folder_of_one(tmp_path: Path) -> None:
    (job,) = of_kind(render("sweep", tmp_path, SETTINGS | {"BUCKET": "bucket/team/gans"}), "RayJob")
    assert job["spec"]["entrypoint"].split() == [
        "python", "launch.py", "tune", "--config", "config/train.yaml",
        "--space", "config/space.yaml",
        "run.dir=s3://bucket/team/gans/runs/sweep", "data.shards=s3://bucket/team/gans/data-64",
    ]  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_the_configuration_is_one_and_fits_its_workers(job: str, tmp_path: Path) -> None:
    documents = render(job, tmp_path)
    (ray_job,) = of_kind(documents, "RayJob")
    (text,) = (m["data"]["train.yaml"] for m in of_kind(documents, "ConfigMap") if (
        m["metadata"]["name"] == job))  # fmt: skip
    file = tmp_path / "train.yaml"
    file.write_text(text)
    words = ray_job["spec"]["entrypoint"].split()
    config = load_config(None, file, [word for word in words if "=" in word])
    assert config.run.dir == f"s3://{SETTINGS['BUCKET']}/runs/{job}"
    (group,) = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus_fit = int(int(limits["cpu"]) / config.cluster.cpus_per_worker)
    fit = min(int(limits.get("nvidia.com/gpu", cpus_fit)), cpus_fit) * group["replicas"]
    assert fit == (4 if job == "sweep" else config.cluster.num_workers)  # its trials at a time
    if config.data.cache_dir:
        (cache,) = (v for v in group["template"]["spec"]["volumes"] if v["name"] == "cache")
        assert config.data.cache_dir == "/cache"
        assert config.data.cache_gigabytes * 1e9 < int(cache["emptyDir"]["sizeLimit"][:-2]) * 2**30


def test_ray_in_the_manifests_is_ray_in_the_image(documents: list[Document]) -> None:
    for _, spec in ray_cluster_specs(documents):
        assert f"\nray=={spec['rayVersion']} " in LOCK.read_text()


@pytest.mark.parametrize("job", JOBS)
def test_head_and_workers_carry_their_job_s_name(job: str, tmp_path: Path) -> None:
    """README.md lists a job's pods by it."""
    found = {
        pod.metadata["labels"]["app.kubernetes.io/component"]: pod.metadata["labels"]
        for pod in pods(render(job, tmp_path))
    }
    assert {found[each]["app.kubernetes.io/instance"] for each in ("head", "worker")} == {job}


@pytest.mark.parametrize("job", JOBS)
def test_the_page_s_commands_make_data_that_fits(job: str, tmp_path: Path) -> None:
    """One command of README.md writes where the overlay reads, in the overlay's size."""
    (ray_job,) = of_kind(render(job, tmp_path, SETTINGS | {"BUCKET": "BUCKET"}), "RayJob")
    words = ray_job["spec"]["entrypoint"].split()
    file = REPOSITORY / "k8s" / "overlays" / job / "train.yaml"
    wanted = load_config(None, file, [word for word in words if "=" in word])
    page = (REPOSITORY / "k8s" / "README.md").read_text()
    made = {}
    for line in re.findall(r"^ *python launch.py ((?:demo|prepare) [^#\n]*)", page, re.M):
        arguments = build_parser().parse_args(line.split())
        demo = arguments.command == "demo"
        preset = "demo" if demo else arguments.preset
        shards = f"{arguments.output}/data" if demo else arguments.output
        made[shards] = load_config(preset, None, arguments.overrides)
    fitting = made[wanted.data.shards]
    assert fitting.data.resolution == wanted.data.resolution
    assert stored_frames(fitting) >= needed_stored_frames(wanted)


def test_an_image_may_be_a_digest(tmp_path: Path) -> None:
    digest = f"registry.example.org/distgan@sha256:{64 * 'a'}"
    documents = render("cpu-smoke", tmp_path, SETTINGS | {"IMAGE": digest})
    assert breaches(documents) == []
    assert pods(documents)[0].containers[0]["image"] == digest


def test_the_page_s_commands_name_what_is_there(tmp_path: Path) -> None:
    """Rendered objects, and those that KubeRay and Kubernetes make of them."""
    documents = [document for overlay in OVERLAYS for document in render(overlay, tmp_path)]
    present = {(d["kind"].lower(), d["metadata"]["name"]) for d in documents}
    present |= {("pdb", name) for kind, name in present if kind == "poddisruptionbudget"}
    present |= {("job", name) for kind, name in present if kind == "rayjob"}
    owners = [name for kind, name in present if kind in ("rayjob", "raycluster")]
    present |= {("service", f"{name}-head-svc") for name in owners}
    for stateful in of_kind(documents, "StatefulSet"):
        (claim,) = stateful["spec"]["volumeClaimTemplates"]
        present.add(("pvc", f"{claim['metadata']['name']}-{stateful['metadata']['name']}-0"))
    page = (REPOSITORY / "k8s" / "README.md").read_text()
    named = re.findall(r"kubectl -n distgan [a-z-]+ (?:--follow )?([a-z,]+)[ /]([a-z][\w-]*)", page)
    wanted = {(kind, name) for kinds, name in named for kind in kinds.split(",")}
    assert ("raycluster", "distgan") in wanted and len(wanted) >= 10
    assert {each for each in wanted if each[0] != "secret"} <= present
