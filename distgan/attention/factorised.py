"""Attention over space, then over time. B clips, L tokens of a grid (T, H, W), E width."""

from typing import Literal

import torch
from torch import Tensor, nn

from distgan.attention.pairwise import Scores
from distgan.attention.self_attention import SelfAttention
from distgan.blocks import normalise_channels
from distgan.sparsity import Grid


class FactorisedAttention(nn.Module):
    """s = Space(x), then s + Time(norm(x + s)): ViViT's factorised self-attention (Arnab et al.
    2021, model 3), with weights of their own for both.

    In Space a token sees those of its frame, in Time those of its place: two steps reach all.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        scores: Scores = "dot",
        positions: Literal["rotary", "none"] = "rotary",
    ) -> None:
        super().__init__()
        self.space = SelfAttention(width, heads, head_dim, scores, positions)
        self.time = SelfAttention(width, heads, head_dim, scores, positions)

    def forward(self, tokens_BLE: Tensor, grid: Grid) -> Tensor:
        space_BLE = self._mix_space(tokens_BLE, grid)
        between_BLE = self._between(tokens_BLE, space_BLE)
        return space_BLE + self._mix_time(between_BLE, grid)

    def masks(self, grid: Grid, places_Q: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, L) bool of both by definition: the same frame, and the same place."""
        frames, height, width = grid
        number_L = torch.arange(frames * height * width, device=places_Q.device)
        area = height * width
        same_frame = places_Q[:, None] // area == number_L // area
        return same_frame, places_Q[:, None] % area == number_L % area

    def num_pairs(self, grid: Grid) -> int:
        """Of both together."""
        frames, height, width = grid
        return frames * height * width * (height * width + frames)

    def looks(self, tokens_BLE: Tensor, grid: Grid, places_Q: Tensor) -> dict[str, Tensor]:
        """How much chosen tokens take of each token, in space and in time: (B, N, Q, L) each."""
        space_mask, time_mask = self.masks(grid, places_Q)
        between_BLE = self._between(tokens_BLE, self._mix_space(tokens_BLE, grid))
        return {
            "space": self.space.looks(tokens_BLE, grid, places_Q, space_mask)[""],
            "time": self.time.looks(between_BLE, grid, places_Q, time_mask)[""],
        }

    def _between(self, tokens_BLE: Tensor, space_BLE: Tensor) -> Tensor:
        return normalise_channels(tokens_BLE + space_BLE)

    def _mix_space(self, tokens_BLE: Tensor, grid: Grid) -> Tensor:
        frames, height, width = grid
        by_frame = tokens_BLE.unflatten(1, (frames, height * width)).flatten(0, 1)
        return self.space(by_frame, (1, height, width)).view(tokens_BLE.shape)

    def _mix_time(self, tokens_BLE: Tensor, grid: Grid) -> Tensor:
        frames, height, width = grid
        by_place = tokens_BLE.unflatten(1, (frames, height * width)).transpose(1, 2)
        mixed = self.time(by_place.flatten(0, 1), (frames, 1, 1))
        return mixed.unflatten(0, by_place.shape[:2]).transpose(1, 2).reshape(tokens_BLE.shape)
