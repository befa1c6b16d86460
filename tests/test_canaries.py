"""Secrets that a run, a crash and a sweep are given come up in no file, argument or output."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from distgan.storage_errors import describe
from tests.canaries import Watch, new_secrets, spellings
from tests.cluster_runs import arguments
from tests.object_servers import BUCKET, OPTIONS, rclone_server
from tests.ray_heads import ray_head
from tests.test_imports import commands
from tests.tiny import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TOKEN = "Ray token"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""As SECURITY.md has it; `--node-ip-address=127.0.0.1` is not enough for Ray."""


@dataclass(frozen=True)
class Scene:
    """A cluster and two servers, whose credentials are canaries."""

    environment: dict[str, str]
    """Of programs: the first server's credentials as variables."""
    profile: dict[str, str]
    """The second one's, in a file."""
    first: str
    """Options for it."""
    second: str
    root: Path
    """All that is kept in the servers."""
    watch: Watch
    ray_folder: Path
    token: Path
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def scene(tiny_data: str) -> Iterator[Scene]:
    secrets = new_secrets()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        folder = Path(tempfile.mkdtemp(prefix="cn-", dir="/tmp"))  # sockets' paths are short
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        root, temporary, mounted = folder / "server", folder / "tmp", folder / "mounted"
        shutil.copytree(tiny_data, root / BUCKET / "data")
        temporary.mkdir()
        mounted.write_text(
            "[canary]\naws_access_key_id = {}\naws_secret_access_key = {}\n".format(
                secrets["profile's key id"], secrets["profile's secret"]
            )
        )
        keys = [secrets["AWS key id"], secrets["AWS secret"]]
        first = stack.enter_context(rclone_server(root, *keys))
        keys = [secrets["profile's key id"], secrets["profile's secret"]]
        second = stack.enter_context(rclone_server(root, *keys))
        watch = Watch(uuid.uuid4().hex, secrets, [temporary])
        variables = {
            "AWS_ACCESS_KEY_ID": secrets["AWS key id"],
            "AWS_SECRET_ACCESS_KEY": secrets["AWS secret"],
            "AWS_SESSION_TOKEN": secrets["AWS session token"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "HTTPS_PROXY": f"http://user:{secrets['URL password']}@127.0.0.1:9",
            "NO_PROXY": "127.0.0.1,localhost",
            "TMPDIR": str(temporary),
        }
        for name, value in (variables | watch.variable).items():
            patch.setenv(name, value)
        head = stack.enter_context(ray_head(2, variables=LOOPBACK))
        token = Path(head["RAY_AUTH_TOKEN_PATH"])
        watch.spellings[TOKEN] = spellings(token.read_text())
        profile = {n: v for n, v in head.items() if not n.startswith("AWS_")} | {
            "AWS_PROFILE": "canary", "AWS_SHARED_CREDENTIALS_FILE": str(mounted),
        }  # fmt: skip
        stack.enter_context(watch)
        yield Scene(
            head, profile, f"storage.endpoint_url=http://127.0.0.1:{first}",
            f"storage.endpoint_url=http://127.0.0.1:{second}", root, watch, token.parent, token,
            secrets,
        )  # fmt: skip


def program(scene: Scene, environment: dict[str, str], *command: str, code: int) -> str:
    """Runs one to its end; returns what it said."""
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment | scene.watch.variable,
        capture_output=True, text=True, timeout=420,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == code, said[-4000:]
    scene.watch.look_into(f"the output of {command[:3]}", said.encode())
    return said


def train(scene: Scene, endpoint: str, run: str, *more: str) -> list[str]:
    run_dir = f"run.dir=s3://{BUCKET}/{run}"
    options = [*OPTIONS, endpoint, "cluster.num_workers=2", "log.sample_interval_steps=6", run_dir]
    return arguments(f"s3://{BUCKET}/data", scene.root, *options, *more)


def a_run(scene: Scene) -> None:
    """Handed in as a job."""
    command = train(scene, scene.first, "run")
    said = program(scene, scene.environment, "launch.py", "submit", "--", *command, code=0)
    assert "stopped at step 12" in said
    url = f"{scene.environment['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    request = urllib.request.Request(url)
    request.add_header("Authorization", f"Bearer {scene.token.read_text()}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        told = answer.read()
    assert b"launch.py" in told
    scene.watch.look_into("what the cluster tells of its jobs", told)


def a_crash(scene: Scene) -> None:
    """Of a worker, with a traceback; the credentials come from a mounted file."""
    marker = str(scene.root / "marker")
    fault = {"rank": 0, "step": 6, "place": "data", "kind": "exception", "marker": marker,
             "starts": f"{marker}-starts"}  # fmt: skip
    command = train(scene, scene.second, "crash", "cluster.max_failures=0")
    faulty = ["-m", "tests.fault_program", json.dumps([fault])]
    # On a cluster of its own: workers have the credentials of the process that started theirs.
    own = {name: value for name, value in scene.profile.items() if not name.startswith("RAY_")}
    said = program(scene, own, *faulty, *command, code=1)
    assert "a fault that a test asked for" in said


def a_sweep(scene: Scene) -> None:
    if "tune" not in commands():
        pytest.skip("there is no `launch.py tune` yet")
    space = scene.root / "space.yaml"
    space.write_text("optim.generator.lr: {choice: [0.0001, 0.0002]}\n")
    measured = ["log.proxy_interval_steps=2", "log.proxy_clips=16"]
    command = train(scene, scene.first, "sweep", "train.max_steps=4", *measured)
    command = ["tune", *command[1:], "cluster.num_workers=0", "--space", str(space)]
    command += ["--num-trials", "2"]
    program(scene, scene.environment, "launch.py", *command, code=0)


def credentials_that_are_refused(scene: Scene) -> None:
    """The server's answer repeats parts of them."""
    command = train(scene, scene.second, "refused", "cluster.num_workers=0")
    said = program(scene, scene.environment, "launch.py", *command, code=2)
    assert "refused the credentials" in said or "denied" in said


def an_address_with_a_password(scene: Scene) -> None:
    address = f"http://user:{scene.secrets['URL password']}@127.0.0.1:9"
    command = train(scene, "storage.endpoint_url=", "refused", "cluster.num_workers=0")
    told = scene.environment | {"AWS_ENDPOINT_URL": address}
    assert "credentials" in program(scene, told, "launch.py", *command, code=2)


@pytest.mark.parametrize(
    "act",
    [a_run, a_crash, a_sweep, credentials_that_are_refused, an_address_with_a_password],
    ids=lambda act: act.__name__,
)
def test_no_secret_comes_up_anywhere(act: Callable[[Scene], None], scene: Scene) -> None:
    act(scene)
    watch = scene.watch
    watch.look_into_files(scene.root.parent, aside={scene.root.parent / "mounted"})
    number = watch.look_into_files(scene.ray_folder, aside={scene.token})
    assert number > 10 and len(watch.processes) > 10, "too little was looked at"
    assert watch.hits == set()


def test_a_head_on_the_loopback_address_listens_nowhere_else(scene: Scene) -> None:
    """Nor do the workers of its runs, whatever they opened in the tests above."""
    found = scene.watch.listeners
    programs = " ".join(listener.program for listener in found)
    assert "gcs_server" in programs and "raylet" in programs and "RayTrainWorker" in programs
    assert [listener for listener in found if not listener.is_loopback] == []


def test_what_a_driver_says_is_told_without_the_password_in_its_url() -> None:
    error = OSError('Could not connect to "http://user:pa55word@host:9/bucket" (http://x@y)')
    told = describe(error)
    assert "pa55word" not in told and "user" not in told and "host:9/bucket" in told


def test_the_watch_finds_what_it_looks_for(tmp_path: Path) -> None:
    import base64
    import urllib.parse

    canaries = new_secrets()
    secret = canaries["AWS secret"]
    for number, text in enumerate(
        (secret, urllib.parse.quote(secret, safe=""), *(
            base64.b64encode(("x" * n + secret + "yz").encode()).decode() for n in range(4)
        ))
    ):  # fmt: skip
        watch = Watch("none", canaries, ())
        (tmp_path / f"{number}.log").write_text(f"before {text} behind")
        assert watch.look_into_files(tmp_path) == number + 1
        assert {hit.partition(" in ")[0] for hit in watch.hits} == {"AWS secret"}
        (tmp_path / f"{number}.log").write_text("")
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(20)", secret],
        env=os.environ | Watch("seen", canaries, ()).variable,
    ) as process:
        with Watch("seen", canaries, ()) as watch:
            for _ in range(100):
                if watch.hits:
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        process.kill()
    assert watch.hits == {f"AWS secret in the arguments of process {process.pid}"}
