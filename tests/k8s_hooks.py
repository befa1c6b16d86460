"""The pods' preStop hooks as a shell takes them, and how to run them as in a pod.

They look for processes by name, so each runs in a PID namespace of its own.
"""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.k8s_render import pods, render

UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc",
           "--kill-child")  # fmt: skip


def hooks_of_pods(folder: Path) -> dict[str, str]:
    """`head` and `workers` -> the hook, rendered in `folder`; skips where users have no
    namespaces."""
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no PID namespaces for this user: {error}")
    return {
        pod.where.rpartition(" ")[2]: shlex.join(
            pod.spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        )
        for pod in pods(render("multi-node", folder))
        if "lifecycle" in pod.spec["containers"][0]
    }
