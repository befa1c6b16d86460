"""Programs among processes of their own, without a right that a user lacks."""

import subprocess

import pytest

UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc",
           "--kill-child")  # fmt: skip
"""Before a command: it sees no process but its own."""


def require_namespaces() -> None:
    """Skips where users have none."""
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no PID namespaces for this user: {error}")
