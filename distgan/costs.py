"""What the networks cost, from shapes alone: FLOPs, activation memory, parameters.

Both networks run once on PyTorch's meta device, where tensors have shapes and no values, with the
products of queries and keys counted by the kind's own number of pairs.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distgan import storage
from distgan.attention import AttentionLayer, Grid, MlpLayer, SelfAttention
from distgan.config import Config
from distgan.data.conditioning import reads_video
from distgan.discriminator import Discriminator
from distgan.generator import Generator
from distgan.networks import count_parameters

FILE = "costs.json"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of the forward pass of one clip."""

    parameters: int
    flops: int
    """Of matrix products and convolutions; a multiply-add counts 2. Of the pairs of a query and a
    key, those that the kind's definition has."""
    activation_bytes: int
    """What autograd keeps for the backward pass, in float32, by fused or tiled attention: weights
    of pairs are never kept."""

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} parameters, {self.flops / 1e9:.4g} GFLOP, "
            f"{self.activation_bytes / 2**20:.4g} MiB"
        )


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Of an attention layer or of the MLP after it, residual sum and all."""

    network: str
    name: str
    """Of the module in its network, such as levels.2.attention.0."""
    kind: str
    """The kind of attention, or mlp."""
    grid: Grid
    """Time, height, width."""
    cost: Cost

    def __str__(self) -> str:
        t, h, w = self.grid
        tokens = f"{math.prod(self.grid):,} tokens ({t} x {h} x {w})"
        return f"{self.network} {self.name}, {self.kind}, {tokens}: {self.cost}"


@dataclass(frozen=True, kw_only=True)
class NetworkCosts:
    """Of both networks and of each of their attention layers, for one clip, forward."""

    generator: Cost
    discriminator: Cost
    layers: tuple[LayerCost, ...]

    def __str__(self) -> str:
        lines = [
            "costs        of one clip, forward: GFLOP of matrix products and convolutions (a "
            "multiply-add counts 2), MiB of activations kept for the backward pass in float32",
            f"generator    {self.generator}",
            f"discrim.     {self.discriminator}",
            *(f"             {layer}" for layer in self.layers),
        ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `costs.json`."""
        return asdict(self)


def network_costs(config: Config) -> NetworkCosts:
    """Counts, without allocating weights or activations."""
    model, data = config.model, config.data
    size, frames = data.resolution, data.clip_frames
    gives_video = reads_video(config.conditioning)
    with torch.device("meta"):
        generator = Generator(model, size, frames, gives_video)
        discriminator = Discriminator(model, size, frames)
        video = torch.empty(1, 3, frames, size, size)
        given = (video, video[:, :1]) if gives_video else (None, None)
        latent = torch.empty(1, model.generator.latent_dim)
    kind = config.model.attention.kind
    of_generator, layers = _cost_of_network("generator", kind, generator, latent, *given)
    # As in training, where the generated clip needs a gradient too: the first convolution keeps it.
    of_discriminator, more = _cost_of_network("discriminator", kind, discriminator, video)
    return NetworkCosts(
        generator=of_generator, discriminator=of_discriminator, layers=(*layers, *more)
    )


def save_costs(config: Config) -> NetworkCosts:
    """Writes `costs.json` into the run's folder."""
    costs = network_costs(config)
    text = json.dumps(costs.as_json(), indent=1)
    storage.write_bytes(storage.join(config.run.dir, FILE), text.encode())
    return costs


def layer_cost(layer: nn.Module, width: int, grid: Grid) -> Cost:
    """Of one layer (AttentionLayer or MlpLayer) that is on the meta device."""
    x_BTHWC = torch.empty(1, *grid, width, device="meta", requires_grad=True)
    return _cost(layer, x_BTHWC)


def _cost_of_network(
    network: str, kind: str, module: nn.Module, *inputs: Tensor | None
) -> tuple[Cost, list[LayerCost]]:
    shapes: dict[str, torch.Size] = {}
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, (AttentionLayer, MlpLayer)):

            def note(part: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
                shapes[name] = arguments[0].shape

            handles.append(part.register_forward_pre_hook(note))
    whole = _cost(module, *inputs)
    for handle in handles:
        handle.remove()
    layers = []
    for name, shape in shapes.items():
        part, (_, t, h, w, width) = module.get_submodule(name), shape
        layers.append(
            LayerCost(
                network=network,
                name=name,
                kind=kind if isinstance(part, AttentionLayer) else "mlp",
                grid=(t, h, w),
                cost=layer_cost(part, width, (t, h, w)),
            )
        )
    return whole, layers


def _cost(module: nn.Module, *inputs: Tensor | None) -> Cost:
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    pair_flops: list[int] = []
    with (
        _pairs_counted(module, pair_flops),
        FlopCounterMode(display=False) as counter,
        kept_tensors() as kept,
    ):
        module(*inputs)
    return Cost(
        parameters=count_parameters(module),
        flops=counter.get_total_flops() + sum(pair_flops),
        activation_bytes=sum(size for key, size in kept.items() if key not in own),
    )


@contextlib.contextmanager
def kept_tensors() -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps for the backward pass of what runs inside."""
    kept: dict[int, int] = {}
    alive = []  # so that no storage is freed and its key used again

    def pack(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # an output that kept itself would never be freed
        storage = tensor.untyped_storage()
        alive.append(tensor)
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


@contextlib.contextmanager
def _pairs_counted(module: nn.Module, flops: list[int]) -> Iterator[None]:
    """While inside, attention only notes its products and makes outputs of the right shape."""
    parts = [part for part in module.modules() if isinstance(part, SelfAttention)]
    for part in parts:

        def attend(
            q_BNLD: Tensor, k_BNLD: Tensor, v_BNLD: Tensor, grid: Grid, part: SelfAttention = part
        ) -> Tensor:
            flops.append(4 * len(q_BNLD) * part.num_pairs(grid) * part.heads * part.head_dim)
            kept = part.kept_for_backward(q_BNLD, k_BNLD, v_BNLD)
            out: Tensor = _Shapes.apply(*kept, v_BNLD)
            return out[..., : part.head_dim]

        part.attend = attend  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in parts:
            del part.attend


class _Shapes(torch.autograd.Function):
    """Keeps what a fused kernel keeps: queries, keys, values, its output, a sum for each query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, kept_v: Tensor, v_BNLD: Tensor) -> Tensor:
        out = v_BNLD.new_empty(*v_BNLD.shape[:3], kept_v.shape[-1])
        ctx.save_for_backward(q, k, kept_v, out, v_BNLD.new_empty(v_BNLD.shape[:3]))
        return out
