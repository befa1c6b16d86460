"""The pods' preStop hooks, text unchanged: a pod that must end waits for the last checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distgan.checkpoint import committed_steps
from tests.k8s_hooks import hooks_of_pods
from tests.namespaces import UNSHARE, require_namespaces
from tests.tiny import REPOSITORY, TINY, one_thread


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    require_namespaces()
    return hooks_of_pods(tmp_path_factory.mktemp("hooks"))


def alone(script: str, *arguments: str) -> str:
    """What a script prints that runs in a PID namespace of its own."""
    environment = one_thread()
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [*UNSHARE, "/bin/bash", "-c", script, "script", *arguments],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_head_ends_with_a_checkpoint(
    hooks: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    script = f"""
        python launch.py train "$@" > /dev/null 2>&1 &
        child=$!
        until ls {run}/checkpoints/*/COMMITTED > /dev/null 2>&1; do sleep 0.05; done
        {hooks["head"]}
        ls {run}/checkpoints
        wait $child
        echo code $?
    """
    printed = alone(
        script, *TINY, "train.max_steps=100000", f"data.shards={tiny_data}", f"run.dir={run}"
    )
    *when_the_hook_ended, code = printed.splitlines()
    assert code == "code 143"
    newest = committed_steps(str(run))[-1]
    assert when_the_hook_ended[-1] == f"step_{newest:08d}", "the hook ended before the checkpoint"


def test_a_worker_waits_for_its_actors_only(hooks: dict[str, str]) -> None:
    """Not for what Ray runs on any node. How it leaves the cluster: tests/test_draining.py."""
    script = f"""
        for name in IDLE IDLE_SpillWorker DashboardAgent RuntimeEnvAgent; do
            (exec -a ray::$name sleep 60) &
        done
        (exec -a ray::RayTrainWorker.run sleep 12) &
        sleep 0.5
        SECONDS=0
        {hooks["workers"]}
        echo $SECONDS
        pgrep -f '^ray::' | wc -l
    """
    waited, left = alone(script).split()
    assert 9 <= int(waited) <= 45 and left == "4"


def test_hooks_end_at_once_where_nothing_runs(hooks: dict[str, str]) -> None:
    both = "; ".join(hooks.values())
    assert int(alone(f"SECONDS=0; {both}; echo $SECONDS")) <= 2
