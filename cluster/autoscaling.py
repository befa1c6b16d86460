"""Room on a cluster that grows: what a command needs is asked for, waited for, and given back.

Ray's autoscaler adds machines for work that waits. Training runs size themselves by what is there
and so never wait: they say what they need instead.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from cluster.devices import places, resources
from cluster.scaling import allowed_sizes
from distgan.config import Config

AUTOSCALES = "RAY_enable_autoscaler_v2"
"""KubeRay sets it on the head of a cluster that autoscales, with either value; jobs run there."""

_POLL_S = 1.0


@contextlib.contextmanager
def room(config: Config, stopped: Callable[[], bool]) -> Iterator[None]:
    """Asks for the most workers that the run may have, and waits until `cluster.num_workers` fit.

    Returns without them after `cluster.hang_seconds`, or when `stopped` says so; the run then says
    what it lacks. Does nothing on a cluster of fixed size. The process must be connected to Ray.
    """
    if AUTOSCALES not in os.environ:
        yield
        return
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[dict(resources(config))] * max(allowed_sizes(config)))
    try:
        _wait(config, stopped)
        yield
    finally:
        request_resources(bundles=[])  # or the cluster would never shrink


def _wait(config: Config, stopped: Callable[[], bool]) -> None:
    wanted = config.cluster.num_workers
    deadline = time.monotonic() + config.cluster.hang_seconds
    told = False
    while places(config).free < wanted and not stopped() and time.monotonic() < deadline:
        if not told:
            tqdm.write(
                f"asked the cluster for {wanted} workers; {places(config).free} fit now; waiting "
                f"for machines, at most cluster.hang_seconds={config.cluster.hang_seconds:g}"
            )
            told = True
        time.sleep(_POLL_S)
