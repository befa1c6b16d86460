"""One network under DeepSpeed's ZeRO, behind the same interface as the plain engine.

The trainer, the losses and the draws are the same for both; what must not differ is in
`distgan.engine.Engine`, and `cluster.parity` measures that it does not. DeepSpeed reduces, shards
and updates; the gradient's norm, its clipping and the refusal of a gradient that is not finite
happen here, before the update, and so in one way at every stage.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from cluster.process_group import load_deepspeed
from cluster.zero_settings import deepspeed_settings
from cluster.zero_shards import Shard, make_shards
from distgan.checkpoint import Fragment
from distgan.config import NetworkOptimConfig, ShardingConfig
from distgan.engine import frozen
from distgan.errors import NonFiniteError
from distgan.optimizers import make_optimizer

SCALARS = frozenset({"step"})
"""Optimizer state that is one number a parameter."""


class ZeroEngine:
    """One network, replicated (stage 0) or sharded over the process group.

    The module comes whole, with the same weights on every rank. `deepspeed.initialize` partitions
    it at stage 3, so its whole weights must fit each rank once at the start; a module built under
    `deepspeed.zero.Init` (which shards each submodule as it is made) would do as well, once the
    start weights are drawn submodule by submodule.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optim: NetworkOptimConfig,
        sharding: ShardingConfig,
        *,
        precision: str,
        accumulation: int,
    ) -> None:
        self.name = name
        self.module = module
        self.clip_norm = optim.clip_norm
        self.accumulation = accumulation
        self.stage = sharding.zero_stage
        self.device = next(module.parameters()).device
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self._backwards = 0
        # DeepSpeed lays parameters out flat, one after the other.
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        sizes = [parameter.numel() for parameter in module.parameters()]
        self._engine: Any = load_deepspeed(self.device.type).initialize(
            model=_Precise(module, self.device.type, autocast=precision == "bf16"),
            optimizer=make_optimizer(module.parameters(), optim),
            config=deepspeed_settings(sharding, sizes, self.device.type),
            dist_init_required=False,
        )[0]
        self.optimizer: torch.optim.Optimizer = self._engine.basic_optimizer
        self.shards = make_shards(
            self.stage, self._engine.optimizer, module, self.rank, self.world_size
        )

    def __call__(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        output: Tensor = self._engine(*inputs, full_precision=full_precision)
        return output

    def bare(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        """The hooks of stage 3, which gather the weights, are the module's own."""
        output: Tensor = self._engine.module(*inputs, full_precision=full_precision)
        return output

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        return frozen(self.module)

    def backward(self, loss: Tensor) -> None:
        """The step's last one also reduces (stages 2 and 3 reduce at each)."""
        self._backwards += 1
        assert self._backwards <= self.accumulation, "one backward a micro-batch, then the step"
        self._engine.set_gradient_accumulation_boundary(self._backwards == self.accumulation)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> Tensor:
        assert self._backwards == self.accumulation, "the step's gradients are not yet reduced"
        self._backwards = 0
        gradients = self.shards.gradients()
        norm = self._global_norm(gradients)
        if not torch.isfinite(norm):  # the same number on all ranks: all refuse, or none
            self.shards.forget_gradients()
            raise NonFiniteError(f"the gradient norm of the {self.name} is {norm.item()}")
        if self.clip_norm and norm > self.clip_norm:
            torch._foreach_mul_(gradients, (self.clip_norm / norm).to(gradients[0].device))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return norm

    def _global_norm(self, gradients: list[Tensor]) -> Tensor:
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True).to(self.device)
        if self.shards.gradients_are_whole:
            return norm
        square = norm.double().square()
        torch.distributed.all_reduce(square)
        return square.sqrt().to(norm.dtype)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{self.name}/{n}": shape for n, shape in self.whole_shapes().items()}

    def whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters by their names in the module, also where they are partitioned."""
        return {
            name: tuple(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self.module.named_parameters()
        }

    def state_fragments(self) -> list[Fragment]:
        fragments = []
        for shard in self.shards.owned:
            fragments.append(_piece(shard, f"{self.name}/{shard.name}", shard.flat))
            for key, value in self.optimizer.state[shard.flat].items():
                full_name = f"{self.name}.optimizer/{shard.name}/{key}"
                if key in SCALARS:
                    if shard.start == 0:
                        flat = value.detach().to("cpu", copy=True).reshape(-1)
                        fragments.append(Fragment(full_name, tuple(value.shape), 0, flat))
                elif value is not None:
                    fragments.append(_piece(shard, full_name, value))
        return fragments

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        weights = {name: tensors[f"{self.name}/{name}"] for name in self.whole_shapes()}
        prefix = f"{self.name}.optimizer/"
        states: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
        for full_name in tensors:
            if full_name.startswith(prefix):
                name, key = full_name.removeprefix(prefix).rsplit("/", 1)
                states[name][key] = tensors[full_name]
        self.shards.take_weights(weights)
        self.optimizer.state.clear()
        for shard in self.shards.held:
            shard.of_flat(shard.flat).copy_(shard.of_whole(weights[shard.name]))
            self._take_state(shard, states[shard.name])

    def _take_state(self, shard: Shard, whole: Mapping[str, Tensor]) -> None:
        state = self.optimizer.state[shard.flat]
        for key, value in whole.items():
            if key in SCALARS:
                # Where PyTorch keeps it: read from a GPU, each update would wait for it.
                state[key] = value.to("cpu", copy=True)
                continue
            if key not in state:
                state[key] = torch.zeros_like(shard.flat, dtype=value.dtype)
            shard.of_flat(state[key]).copy_(shard.of_whole(value))

    def close(self) -> None:
        """Takes DeepSpeed's hooks off the module and frees its buffers."""
        self._engine.destroy()


class _Precise(nn.Module):
    """The network within its own autocast, since DeepSpeed switches an outer one off.

    DeepSpeed's own autocast would send gradients in bf16, and in every engine of the process.
    """

    def __init__(self, network: nn.Module, device_type: str, *, autocast: bool) -> None:
        super().__init__()
        self.network, self.device_type, self.autocast = network, device_type, autocast

    def forward(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        enabled = self.autocast and not full_precision
        with torch.autocast(self.device_type, torch.bfloat16, enabled=enabled):
            output: Tensor = self.network(*inputs)
        return output


def _piece(shard: Shard, name: str, values: Tensor) -> Fragment:
    piece = shard.of_flat(values).to("cpu", copy=True)
    return Fragment(name, shard.shape, shard.start, piece)
