"""Runs a function on every rank of a short-lived process group on this machine.

For checks that need real processes without a Ray cluster: the parity check and the tests.
"""

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from cluster.process_group import (
    start_process_group,
    stop_process_group,
    talk_over_loopback,
)
from distgan.data.workers import end_with_parent, no_ctrl_c_in_new_processes


def run_on_ranks(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    world_size: int,
    device_type: str = "cpu",
    timeout_s: float = 300,
) -> list[Any]:
    """What `function(*arguments)` returns on each rank, in processes of their own.

    Args:
        function: of a module, so that the processes can import it.
        device_type: `cuda` gives each rank a GPU of its own.

    Raises:
        RuntimeError: a rank failed (its traceback is in the message), ended, or took longer than
            `timeout_s`. No process outlives this call, nor this process.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="distgan-ranks-") as folder:
        processes: list[BaseProcess] = []
        results: list[Connection] = []
        try:
            for rank in range(world_size):
                ours, theirs = context.Pipe()
                rendezvous = (rank, world_size, device_type, f"file://{folder}/rendezvous")
                process: BaseProcess = context.Process(
                    target=_run, args=(function, arguments, rendezvous, theirs), daemon=True
                )
                with no_ctrl_c_in_new_processes():  # it is this process that ends them
                    process.start()
                theirs.close()  # the child's end is the last one: its death is an end of file
                processes.append(process)
                results.append(ours)
            return _collect(results, time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(results: list[Connection], deadline: float) -> list[Any]:
    """Each rank's value; the first failure ends the wait for the others."""
    values: dict[int, Any] = {}
    while len(values) < len(results):
        waiting = [end for rank, end in enumerate(results) if rank not in values]
        ready = wait(waiting, timeout=max(deadline - time.monotonic(), 0))
        if not ready:
            raise RuntimeError("the ranks did not come to their end in time")
        for rank in [rank for rank, end in enumerate(results) if end in ready]:
            try:
                failure, values[rank] = results[rank].recv()
            except EOFError:
                raise RuntimeError(f"rank {rank} ended without a result") from None
            if failure:
                raise RuntimeError(f"rank {rank} failed:\n{failure}")
    return [values[rank] for rank in range(len(results))]


def _run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    rendezvous: tuple[int, int, str, str],
    parent: Connection,
) -> None:
    rank, world_size, device_type, init_method = rendezvous
    end_with_parent()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    failure, value = "", None
    try:
        talk_over_loopback()
        start_process_group(device, init_method=init_method, timeout_s=120)
        value = function(*arguments)
        stop_process_group()
    except Exception:  # noqa: BLE001 (the parent raises it)
        failure = traceback.format_exc()
    sys.stdout.flush()
    parent.send((failure, value))
    with contextlib.suppress(EOFError, OSError):
        parent.recv()  # it fetches tensors from this process, and then kills it, or is gone
    os._exit(0)  # a failed group may wait for the others while it is taken down
