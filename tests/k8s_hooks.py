"""The pods' preStop hooks, text unchanged.

They look for processes by name, so tests run each in a PID namespace of its own, as in a pod.
"""

import shlex
import shutil
from pathlib import Path

import pytest

from tests.k8s_render import pods, render


def hooks_of_pods(folder: Path) -> dict[str, str]:
    """`head` and `workers` -> the hook as a shell takes it, rendered in `folder`."""
    if shutil.which("pgrep") is None:
        pytest.skip("pgrep is not installed (Debian: procps)")
    return {
        pod.where.rpartition(" ")[2]: shlex.join(
            pod.spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        )
        for pod in pods(render("multi-node", folder))
        if "lifecycle" in pod.spec["containers"][0]
    }
