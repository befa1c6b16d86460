"""Where the workers of a run find each other: PyTorch's store, behind no door of its own.

`torch.distributed` opens the store of rank 0 on all of a machine's addresses and asks nobody for a
token. On a cluster that lives on the loopback interface it is opened there alone; between machines
the network has to keep strangers out (see SECURITY.md).
"""

import datetime
import socket
import sys
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import ray
import torch.distributed
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from cluster.board import own_facts
from cluster.process_group import talk_over_loopback


class _GuardedBackend(_TorchBackend):
    """Ray Train's, with each worker prepared before the process group starts."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        for rank in range(len(worker_group)):  # without waiting for one that is stopped
            worker_group.execute_single_async(rank, announce, backend_config.board, rank)
        worker_group.execute(stay_on_loopback)
        worker_group.execute(bound_groups, backend_config.timeout_s)
        super().on_start(worker_group, backend_config)


@dataclass(kw_only=True)
class GuardedTorchConfig(TorchConfig):
    """What `TorchTrainer` takes as its `torch_config`."""

    board: Any
    """Learns where each worker is, before they start to wait for each other."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _GuardedBackend


def announce(board: Any, rank: int) -> None:
    """In a worker: tells the board where it is."""
    board.announce.remote(rank, own_facts())


def bound_groups(timeout_s: int) -> None:
    """In a worker: gives all its process groups this timeout. DeepSpeed makes some of its own, with
    PyTorch's defaults: 10 min on GPUs, which may be less than a step may take."""
    module: Any = torch.distributed.distributed_c10d
    timeout = datetime.timedelta(seconds=timeout_s)
    module.default_pg_timeout = module.default_pg_nccl_timeout = timeout


def stay_on_loopback() -> None:
    """In a worker whose node has a loopback address: its process group will listen nowhere else."""
    if not ip_address(ray.util.get_node_ip_address()).is_loopback:
        return
    talk_over_loopback()
    module: Any = sys.modules["torch.distributed.rendezvous"]  # its name is a function's as well
    module.TCPStore = _local_store


def _local_store(host_name: str, port: int, *, is_master: bool, **options: Any) -> Any:
    """As `TCPStore`, whose server gets a socket that is bound already: it can't be told where."""
    if is_master:
        family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host_name, port))
        options["master_listen_fd"] = server.detach()  # the store closes it
    store: Any = torch.distributed
    return store.TCPStore(host_name, port, is_master=is_master, **options)
