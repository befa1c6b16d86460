"""Start and end of the process group that the engines talk over, and the way DeepSpeed is loaded.

DeepSpeed is imported here alone, after the device is known: it picks its accelerator at import.
"""

import datetime
import logging
import os
import socket
import warnings
from typing import Any

import torch
import torch.distributed

from distgan.precision import exact_float32


def load_deepspeed(device_type: str) -> Any:
    """The `deepspeed` module, for `cpu` or `cuda`; its log is held to errors."""
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch is about to change, at each step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    chosen = get_accelerator().device_name()
    assert chosen == device_type, f"DeepSpeed was loaded for {chosen} before"
    if device_type == "cpu":
        # Or DeepSpeed compiles it at the first start: 20 to 60 s, and a killed build leaves a lock.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def start_process_group(
    device: torch.device, *, init_method: str = "env://", timeout_s: float = 600
) -> None:
    """Joins the group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, ...).

    A group that is there already, such as Ray Train's, is taken as it is.
    """
    deepspeed = load_deepspeed(device.type)
    exact_float32()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # DeepSpeed moves networks there. Ray counts otherwise: it sorts numbers of GPUs as text.
        os.environ["LOCAL_RANK"] = str(device.index)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=init_method,
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=datetime.timedelta(seconds=timeout_s),
        )
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def talk_over_loopback() -> None:
    """Lets this process's groups listen there alone; otherwise they take the address that this
    machine's name stands for."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[variable] = names[0]


def stop_process_group() -> None:
    """Leaves the group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
