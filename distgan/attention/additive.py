"""The source article's ordinary attention: a learned weight per element, no mixing between them.

Shapes: B clips, L tokens, N heads, D head dim, E width.
"""

import math

import torch
from torch import Tensor, nn

from distgan.sparsity import Grid


class AdditiveAttention(nn.Module):
    """out = O [a_1 v_1, ..., a_N v_N] with v = V x, a_n = sigmoid(u_n tanh(W_n x)), per token x.

    The score u tanh(W x) is that of additive attention (Bahdanau et al. 2015, appendix A.1.2) in
    the form without a query, where an element is scored by itself (Yang et al. 2016, equations 5
    and 6). There the weights are a softmax over all elements, and each depends on all others
    through its sum; here a sigmoid makes each its element's own: no element learns anything of
    another. Which place it has does not matter, so there are no positions either.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.key_value = nn.Linear(width, 2 * heads * head_dim, bias=False)
        self.score_weight = nn.Parameter(torch.empty(heads, head_dim))
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, tokens_BLE: Tensor, grid: Grid) -> Tensor:
        key_value = self.key_value(tokens_BLE).unflatten(-1, (2, self.heads, self.head_dim))
        key_BLND, value_BLND = key_value.unbind(2)
        scores_BLN1 = (key_BLND.float().tanh() * self.score_weight).sum(-1, keepdim=True)
        weighted_BLND = scores_BLN1.sigmoid().to(value_BLND.dtype) * value_BLND
        return self.out(weighted_BLND.flatten(2))

    def num_pairs(self, grid: Grid) -> int:
        """Each token sees itself."""
        return math.prod(grid)
