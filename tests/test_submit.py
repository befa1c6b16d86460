"""Jobs on a real cluster: the same command line, its exit code, its output."""

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from cluster import submit
from distgan.checkpoint import committed_steps
from distgan.errors import UserError
from distgan.metrics.writer import read_metrics
from distgan.run_folder import DIVERGED
from tests.cluster_runs import CalmJob, wait_until
from tests.tiny import REPOSITORY, TINY, launch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def run(
    head: dict[str, str], *command: str, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY, env=head, capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip


def train(data: str, run_dir: Path, *more: str) -> list[str]:
    return ["train", *TINY, f"data.shards={data}", f"run.dir={run_dir}", *more]


def test_submit_trains_on_the_cluster_and_shows_its_output(calm_job: CalmJob) -> None:
    printed = calm_job.done.stdout + calm_job.done.stderr
    assert "stopped at step 12: train.max_steps=12" in calm_job.done.stdout
    assert "rank 1 (pid" in printed and "12/12" in printed
    assert "Warning" not in printed
    assert committed_steps(str(calm_job.run))[-1] == 12


def test_the_dashboard_shows_the_run(head: dict[str, str], calm_job: CalmJob) -> None:
    token = Path(head["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(
        f"{head['RAY_API_SERVER_ADDRESS']}/api/train/v2/runs/v1",
        headers={"Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        runs = json.load(answer)["train_runs"]
    (own,) = [one for one in runs if one["name"] == calm_job.run.name]
    assert own["status"] == "FINISHED"
    assert [len(attempt["workers"]) for attempt in own["attempts"]] == [2]


RAY_JOB = ("-m", "ray.scripts.scripts", "job")
PLAIN = (*RAY_JOB, "submit", "--working-dir", ".", "--runtime-env-json",
         '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}')  # fmt: skip
"""As README.md has it."""


def test_ray_job_submit_works_as_well(head: dict[str, str], tiny_data: str, tmp_path: Path) -> None:
    command = train(tiny_data, tmp_path / "run", "cluster.num_workers=2", "train.max_steps=4")
    done = run(head, *PLAIN, "--", "python", "launch.py", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert committed_steps(str(tmp_path / "run")) == [4]
    assert shlex.join(PLAIN[2:]) in (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.soak  # what it rests on, a signal's way to a checkpoint, is tested elsewhere
@pytest.mark.parametrize("plain", [False, True])
def test_a_job_that_is_stopped_leaves_a_checkpoint(
    plain: bool, head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    """Also one that was submitted without `submit`. Ray would kill it after 3 s."""
    folder = tmp_path / "run"
    command = train(tiny_data, folder, "cluster.num_workers=2", "train.max_steps=100000",
                    "checkpoint.interval_steps=20")  # fmt: skip
    submit_it = (*PLAIN, "--no-wait", "--", "python", "launch.py") if plain else (
        "launch.py", "submit", "--no-wait", "--")  # fmt: skip
    done = run(head, *submit_it, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    (name,) = set(re.findall(r"\braysubmit_\w+", done.stdout + done.stderr))
    wait_until(lambda: bool(committed_steps(str(folder))), 120)
    stopped = run(head, *RAY_JOB, "stop", name)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    steps = [line["step"] for line in read_metrics(str(folder / "metrics.jsonl"))]
    assert committed_steps(str(folder))[-1] == steps[-1]


def test_submit_ends_with_the_job_s_own_exit_code(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    command = train(tiny_data, tmp_path / "run", "data.shards=/nowhere")
    done = run(head, "launch.py", "submit", "--", *command)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "/nowhere" in done.stdout


def test_divergence_is_not_taken_for_a_fault(
    head: dict[str, str], tiny_data: str, tmp_path: Path
) -> None:
    """Nor lost on the way: `submit` ends with its exit code too. Both ranks have gone back to a
    checkpoint once, from which it came again."""
    wild = ("optim.discriminator.kind=sgd", "optim.discriminator.lr=1e2", "train.max_steps=40",
            "checkpoint.interval_steps=1", "stop.nonfinite_steps=1")  # fmt: skip
    command = train(tiny_data, tmp_path / "run", "cluster.num_workers=2", *wild)
    done = run(head, "launch.py", "submit", "--", *command)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "the workers failed" not in done.stdout + done.stderr
    assert done.stdout.count("going back to the newest checkpoint, once") == 1
    assert committed_steps(str(tmp_path / "run")) == [1]
    assert "is nan" in done.stdout or "is inf" in done.stdout
    assert "stop.nonfinite" in done.stdout
    assert (tmp_path / "run" / DIVERGED).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "run.dir=runs/mine", "data.shards=/data"), "runs/mine is a relative path"),
        (("train", "data.shards=/data"), "run.dir is not set"),
        (("tune", "run.dir=sweeps/mine", "data.shards=/data"), "sweeps/mine is a relative path"),
        (("tune", "--report", "sweeps/mine"), "sweeps/mine is a relative path"),
        (("prepare", "--input", "videos", "--output", "/data"), "videos is a relative path"),
        (("submit", "--", "train"), "submit can't be submitted"),
    ],
)
def test_what_would_be_lost_is_refused(arguments: tuple[str, ...], words: str) -> None:
    done = launch("submit", "--", *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_plain_jobs_refuse_relative_paths_too(head: dict[str, str]) -> None:
    inside = head | {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    done = run(inside, "launch.py", "train", "run.dir=runs/mine", "data.shards=/data")
    assert done.returncode == 2
    assert "runs/mine is a relative path" in done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RAY_API_SERVER_ADDRESS": "", "RAY_ADDRESS": ""}, "no cluster is named"),
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}, "can't be reached"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for its token"),
    ],
)
def test_a_cluster_that_can_not_be_used_is_said(
    changes: dict[str, str], words: str, head: dict[str, str], tmp_path: Path
) -> None:
    command = train("/data", tmp_path / "run")
    done = run(head | changes, "launch.py", "submit", "--", *command)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr.splitlines()[-1]


class Cluster:
    """What `submit` asks of a cluster. Its stream breaks as often as it has answers left; each is
    what the job has printed by then, or what the cluster fails with."""

    def __init__(self, answers: list[str | Exception], status: JobStatus, code: int | None) -> None:
        self.answers = answers
        self.info = SimpleNamespace(status=status, driver_exit_code=code, message="")

    def submit_job(self, **_: object) -> str:
        return "job"

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        for line in answer.splitlines(keepends=True):
            yield line
        if len(self.answers) > 1:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job: str) -> SimpleNamespace:
        return self.info


def follow(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(submit, "_client", lambda: (cluster, "http://head"))
    monkeypatch.setattr(submit, "_AGAIN_S", 0.01)
    monkeypatch.setattr(submit, "_LOST_S", 0.1)
    return submit.submit(["train"], REPOSITORY, wait=True)


def test_a_stream_that_breaks_is_taken_up_where_it_broke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["one\ntwo\n", "one\n", ConnectionError("refused"), "one\ntwo\nthree\n"]
    assert follow(Cluster(answers, JobStatus.FAILED, 3), monkeypatch) == 3
    assert capsys.readouterr().out.splitlines()[1:] == ["one", "two", "three"]


def test_of_a_job_that_can_not_be_followed_it_is_said_that_it_may_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = Cluster([ConnectionError("refused")], JobStatus.RUNNING, None)
    words = r"refused.*may go on.*ray job logs --address http://head --follow job.*ray job stop"
    with pytest.raises(submit.JobError, match=words):
        follow(lost, monkeypatch)


def test_a_folder_that_the_cluster_does_not_take_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster([""], JobStatus.SUCCEEDED, 0)

    def refuse(**_: object) -> str:
        raise RuntimeError("Request failed with status code 500: Package size (612.00MiB) exceeds")

    monkeypatch.setattr(cluster, "submit_job", refuse)
    with pytest.raises(UserError, match=r"did not take the job: .*612.00MiB.*too large to travel"):
        follow(cluster, monkeypatch)
