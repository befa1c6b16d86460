"""The overlays' entrypoints run, text unchanged: on Ray with tokens, as KubeRay submits them.

A head without CPUs and two nodes stand for the pods. They start in a folder that looks like the
image's /app, with a configuration for this machine where the overlay's is mounted, and have the
environment that a pod gets from its settings and its Secret.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.autoscaling import AUTOSCALES
from distgan.config_loading import load_config
from distgan.metrics.writer import read_metrics
from tests.k8s_render import SETTINGS, of_kind, render
from tests.object_servers import BUCKET, CREDENTIALS, OPTIONS, rclone_server
from tests.ray_heads import ray_head, ray_node
from tests.tiny import REPOSITORY, TINY

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(1000)]

STEPS = 24
PATIENCE_S = 400
"""A step takes 10 ms, and the start of a job some seconds; on a busy machine all of it far more."""


@dataclass
class Pods:
    """The cluster, its object storage, and the folder where configurations are mounted."""

    environment: dict[str, str]
    bucket: Path
    config: Path
    app: Path
    stack: contextlib.ExitStack
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_node(self) -> None:
        """Returns when the cluster knows it; `ray start` gives up after 30 s of a busy machine."""
        known = len(node_states(self))
        for _ in range(3):
            log = self.app.parent / "node.log"
            node = self.stack.enter_context(ray_node(self.environment, start_in=self.app, log=log))
            while node.poll() is None:
                if len(node_states(self)) > known:
                    self.nodes.append(node)
                    return
                time.sleep(0.2)
        raise AssertionError(f"no node could be started: {log.read_text()}")

    def lose_node(self) -> None:
        os.killpg(self.nodes.pop().pid, signal.SIGKILL)

    def newest(self, run: str) -> int:
        found = (self.bucket / "runs" / run).glob("checkpoints/step_*/COMMITTED")
        return max((int(marker.parent.name.removeprefix("step_")) for marker in found), default=0)


@pytest.fixture(scope="module")
def pods(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    root = tmp_path_factory.mktemp("pods")
    app = root / "app"
    (app / "config").mkdir(parents=True)
    for name in ("launch.py", "distgan", "cluster", "tune"):
        (app / name).symlink_to(REPOSITORY / name)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(rclone_server(root / "s3"))
        bucket = root / "s3" / BUCKET
        for folder in ("data-64", "data-128", "demo/data"):
            shutil.copytree(tiny_data, bucket / folder)
        variables = {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        environment = stack.enter_context(ray_head(0, start_in=app, variables=variables))
        found = Pods(environment, bucket, app / "config", app, stack)
        wait_for(lambda: len(node_states(found)) == 1, 60)  # the head
        for _ in range(2):
            found.add_node()
        yield found


def node_states(pods: Pods) -> list[str]:
    """Of every node that the cluster has known, the head among them."""
    nodes = api(pods, "/api/v0/nodes")["data"]["result"]["result"]
    return [node["state"] for node in nodes]


def api(pods: Pods, path: str, method: str = "GET") -> Any:
    token = Path(pods.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(
        pods.environment["RAY_API_SERVER_ADDRESS"] + path,
        headers={"Authorization": f"Bearer {token}"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_for(ready: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "it did not get there"
        time.sleep(0.2)


def job_of(overlay: str, folder: Path, **settings: str) -> dict[str, Any]:
    (job,) = of_kind(render(overlay, folder, SETTINGS | {"BUCKET": BUCKET} | settings), "RayJob")
    return dict(job["spec"])


def mount(pods: Pods, **changes: Any) -> None:
    """Puts a configuration for this machine where the overlay's would be mounted."""
    more = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    config = load_config(None, None, [*TINY, *OPTIONS, f"train.max_steps={STEPS}", *more])
    tree = config.model_dump(mode="json")
    (pods.config / "train.yaml").write_text(yaml.safe_dump(tree))


@contextlib.contextmanager
def submitted(pods: Pods, name: str, spec: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """The submitter's process. Its command is the one that KubeRay 1.7 gives to its pod (common/
    job.go, BuildJobSubmitCommand), where the entrypoint goes through a shell."""
    address = pods.environment["RAY_API_SERVER_ADDRESS"]
    runtime_env = json.dumps(json.dumps(yaml.safe_load(spec["runtimeEnvYAML"])))
    command = (
        f"ray job submit --address {address} --no-wait --runtime-env-json {runtime_env} "
        f"--submission-id {name} -- {spec['entrypoint']} ; "
        f"ray job logs --address {address} --follow {name}"
    )
    with subprocess.Popen(
        ["/bin/bash", "-ce", "--", command],
        env=pods.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(urllib.error.HTTPError):
                api(pods, f"/api/jobs/{name}/stop", method="POST")  # or it would hold up others


def outcome(pods: Pods, name: str) -> tuple[str, int | None]:
    """The job's status and exit code, as soon as it has ended."""
    wait_for(lambda: api(pods, f"/api/jobs/{name}")["status"] not in ("PENDING", "RUNNING"), 60)
    job = api(pods, f"/api/jobs/{name}")
    return job["status"], job["driver_exit_code"]


def test_training_goes_on_when_a_node_is_lost(pods: Pods, tmp_path: Path) -> None:
    """`multi-node`: a node is killed in the middle, another comes, the run ends whole."""
    mount(pods, cluster__num_workers=2, train__max_steps=100)
    with submitted(pods, "multi-node", job_of("multi-node", tmp_path)) as submitter:
        wait_for(lambda: pods.newest("multi-node") >= 4, PATIENCE_S)
        pods.lose_node()
        lost = pods.newest("multi-node")
        pods.add_node()
        output, _ = submitter.communicate(timeout=PATIENCE_S)
    assert outcome(pods, "multi-node") == ("SUCCEEDED", 0), output
    assert 4 <= lost < 100 and "the workers failed (1 of 3 times in a row)" in output
    assert "stopped at step 100" in output
    run = pods.bucket / "runs" / "multi-node"
    steps = [line["step"] for line in read_metrics(str(run / "metrics.jsonl"))]
    assert steps == list(range(1, 101))
    assert (run / "generator" / "model.safetensors").exists()


@pytest.mark.parametrize("overlay", ["cpu-smoke", "single-gpu"])
def test_training_runs_to_its_end(overlay: str, pods: Pods, tmp_path: Path) -> None:
    mount(pods, cluster__num_workers=2 if overlay == "cpu-smoke" else 1)
    with submitted(pods, overlay, job_of(overlay, tmp_path)) as submitter:
        output, _ = submitter.communicate(timeout=PATIENCE_S)
    assert outcome(pods, overlay) == ("SUCCEEDED", 0), output
    assert pods.newest(overlay) == STEPS


@pytest.mark.skipif(
    not (REPOSITORY / "tune" / "sweep.py").exists(), reason="launch.py has no `tune` yet"
)
def test_a_sweep_runs_to_its_end(pods: Pods, tmp_path: Path) -> None:
    mount(
        pods, train__max_steps=2, log__proxy_interval_steps=2, log__proxy_clips=16,
        checkpoint__interval_steps=2, cluster__num_workers=0,
    )  # fmt: skip
    space = {"optim.generator.lr": {"loguniform": [1e-4, 1e-3]}}
    (pods.config / "space.yaml").write_text(yaml.safe_dump(space))
    with submitted(pods, "sweep", job_of("sweep", tmp_path)) as submitter:
        output, _ = submitter.communicate(timeout=PATIENCE_S)
    assert outcome(pods, "sweep") == ("SUCCEEDED", 0), output
    assert (pods.bucket / "runs" / "sweep" / "best.yaml").exists(), output


def test_an_empty_bucket_is_named_when_the_job_starts(pods: Pods, tmp_path: Path) -> None:
    mount(pods)
    with submitted(pods, "no-bucket", job_of("multi-node", tmp_path, BUCKET="")) as submitter:
        output, _ = submitter.communicate(timeout=PATIENCE_S)
    assert outcome(pods, "no-bucket") == ("FAILED", 2), output
    line = next(line for line in output.splitlines() if "launch.py train:" in line)
    assert "s3:///runs" in line and "names no bucket" in line and "Traceback" not in output


def test_an_autoscaled_cluster_is_asked_for_workers(pods: Pods, tmp_path: Path) -> None:
    """One node is there, two workers are wanted; what was asked for is taken back at the end."""
    pods.lose_node()
    wait_for(lambda: node_states(pods).count("ALIVE") == 2, 60)
    mount(pods, cluster__num_workers=2)
    spec = job_of("multi-node", tmp_path)
    spec["entrypoint"] = spec["entrypoint"].replace("runs/multi-node", "runs/grown")
    spec["runtimeEnvYAML"] += f'  {AUTOSCALES}: "true"  # KubeRay sets it on such a head\n'
    with submitted(pods, "grown", spec) as submitter:
        wait_for(lambda: asked_for(pods) == [({"CPU": 1.0}, 2)], PATIENCE_S)
        pods.add_node()
        output, _ = submitter.communicate(timeout=PATIENCE_S)
    assert outcome(pods, "grown") == ("SUCCEEDED", 0), output
    assert "asked the cluster for 2 workers; 1 fit now" in output
    assert asked_for(pods) == []


def asked_for(pods: Pods) -> list[tuple[dict[str, float], int]]:
    """What Ray's autoscaler would read: bundles, and how many of each."""
    program = (
        "import json, os; from ray._raylet import GcsClient; "
        "from ray.autoscaler.v2.sdk import get_cluster_resource_state; "
        "state = get_cluster_resource_state(GcsClient(os.environ['RAY_ADDRESS'])); "
        "print(json.dumps([[dict(wanted.request.resources_bundle), wanted.count] "
        "for constraint in state.cluster_resource_constraints "
        "for wanted in constraint.resource_requests]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=pods.environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(bundle, count) for bundle, count in json.loads(done.stdout.splitlines()[-1])]
