"""What the trainer asks of a network: forward, backward, update. Here in plain PyTorch.

A second engine shards the same network by ZeRO behind the same interface; see `Engine` for what
must hold in both.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from distgan.checkpoint import Fragment, whole
from distgan.config import NetworkOptimConfig
from distgan.errors import NonFiniteError
from distgan.optimizers import make_optimizer


class Engine(Protocol):
    """One network with its optimizer.

    Rules that keep sharded engines exact: one backward a micro-batch and network, with all terms
    of the loss in it; while a network is frozen it is called bare, never through its engine.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer

    def __call__(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        """Forward for the network's own loss."""
        ...

    def bare(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        """Forward of the module itself: while frozen, or for a second derivative."""
        ...

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """While inside, no parameter of the network collects a gradient."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients to those of the step's earlier micro-batches."""
        ...

    def step(self, learning_rate: float) -> Tensor:
        """Updates the weights and returns the gradient's global norm before clipping.

        Raises:
            NonFiniteError: the norm is not finite, on any rank. Nothing was updated, and the
                gradients are cleared.
        """
        ...

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the whole weights, by their names in a checkpoint (`NAME/parameter`)."""
        ...

    def state_fragments(self) -> list[Fragment]:
        """This rank's pieces of weights (`NAME/parameter`) and of optimizer state
        (`NAME.optimizer/parameter/key`); the pieces of all ranks make whole tensors."""
        ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what this rank needs of whole tensors; they hold more than this network's own.

        Without optimizer state in them, only the weights are taken.
        """
        ...


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """While inside, no parameter of the module collects a gradient."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class PlainEngine:
    """One network on one device, without any sharding."""

    def __init__(
        self, name: str, module: nn.Module, config: NetworkOptimConfig, precision: str
    ) -> None:
        self.name = name
        self.module = module
        self.optimizer = make_optimizer(module.parameters(), config)
        self.clip_norm = config.clip_norm
        self.autocast = precision == "bf16"
        self.device_type = next(module.parameters()).device.type

    def __call__(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        return self.bare(*inputs, full_precision=full_precision)

    def bare(self, *inputs: Tensor | None, full_precision: bool = False) -> Tensor:
        enabled = self.autocast and not full_precision
        with torch.autocast(self.device_type, torch.bfloat16, enabled=enabled):
            output: Tensor = self.module(*inputs)
        return output

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        return frozen(self.module)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> Tensor:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"the gradient norm of the {self.name} is {norm.item()}")
        if self.clip_norm and norm > self.clip_norm:
            torch._foreach_mul_(gradients, self.clip_norm / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{self.name}/{n}": tuple(p.shape) for n, p in self.module.named_parameters()}

    def state_fragments(self) -> list[Fragment]:
        return whole(self.state_tensors())

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state under its names in a checkpoint, not copied."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.module.named_parameters():
            tensors[f"{self.name}/{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                if value is not None:
                    tensors[f"{self.name}.optimizer/{name}/{key}"] = value
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            with torch.no_grad():
                parameter.copy_(tensors[f"{self.name}/{name}"])
            prefix = f"{self.name}.optimizer/{name}/"
            keys = [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]
            self.optimizer.state[parameter] = {
                key: _like_parameter(tensors[prefix + key], parameter) for key in keys
            }


def _like_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """On the parameter's device, in its memory layout; a count of steps where PyTorch keeps it."""
    if value.shape != parameter.shape:
        return value.to("cpu", copy=True)  # read from a GPU, each update would wait for it
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
