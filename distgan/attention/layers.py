"""What the networks build: the attention layer of a level, and the MLP that may follow it.

Shapes: B clips, C channels, T frames, H, W, L = T*H*W tokens, E width.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from distgan.attention.additive import AdditiveAttention
from distgan.attention.factorised import FactorisedAttention
from distgan.attention.self_attention import SelfAttention
from distgan.attention.sparse import SparseAttention
from distgan.attention.window import WindowAttention
from distgan.blocks import BRANCH_GAIN, Start, activate, normalise_channels, start_with
from distgan.config import AttentionConfig

Place = Literal["encoder", "decoder", "discriminator"]


def _head_dim(width: int, config: AttentionConfig) -> int:
    return config.head_dim or width // config.heads


def _build_additive(width: int, config: AttentionConfig) -> nn.Module:
    return AdditiveAttention(width, config.heads, _head_dim(width, config))


def _build_dense(width: int, config: AttentionConfig) -> nn.Module:
    whole = config.heads * _head_dim(width, config)
    return SelfAttention(width, 1, whole, config.scores, config.positions)


def _build_self(width: int, config: AttentionConfig) -> nn.Module:
    head_dim = _head_dim(width, config)
    return SelfAttention(width, config.heads, head_dim, config.scores, config.positions)


def _build_factorised(width: int, config: AttentionConfig) -> nn.Module:
    head_dim = _head_dim(width, config)
    return FactorisedAttention(width, config.heads, head_dim, config.scores, config.positions)


def _build_window(width: int, config: AttentionConfig) -> nn.Module:
    return WindowAttention(width, _head_dim(width, config), config)


def _build_sparse(width: int, config: AttentionConfig) -> nn.Module:
    return SparseAttention(width, _head_dim(width, config), config)


ATTENTION_KINDS: dict[str, Callable[[int, AttentionConfig], nn.Module]] = {
    "additive": _build_additive,
    "dense": _build_dense,
    "self": _build_self,
    "factorised": _build_factorised,
    "window": _build_window,
    "sparse": _build_sparse,
}


class AttentionLayer(nn.Module):
    """A residual attention step on feature maps (B, T, H, W, C)."""

    def __init__(self, width: int, config: AttentionConfig) -> None:
        super().__init__()
        self.mix = ATTENTION_KINDS[config.kind](width, config)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        _, frames, height, width, _ = x_BTHWC.shape
        tokens_BLE = normalise_channels(x_BTHWC).flatten(1, 3)
        mixed_BLE = self.mix(tokens_BLE, (frames, height, width))
        return x_BTHWC + mixed_BLE.view(x_BTHWC.shape)


class MlpLayer(nn.Module):
    """A residual step of two linear maps at each place, as in a transformer (Vaswani et al. 2017,
    section 3.3), on feature maps (B, T, H, W, C)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden, bias=False)
        self.outer = start_with(nn.Linear(hidden, width, bias=False), Start(gain=BRANCH_GAIN))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        return x_BTHWC + self.outer(activate(self.inner(normalise_channels(x_BTHWC))))


def attention_at(
    resolution: int, width: int, config: AttentionConfig, place: Place
) -> list[nn.Module]:
    """The layers of a level with feature maps of this height: attention, MLP, both, or none."""
    if resolution not in config.resolutions or place not in config.placement:
        return []
    layers: list[nn.Module] = []
    if config.kind != "none":
        layers.append(AttentionLayer(width, config))
    if config.mlp_width:
        layers.append(MlpLayer(width, config.mlp_width))
    return layers
