"""Normalisations of signals inside a network."""

import torch
from torch import Tensor, nn

from rave_tools.nn.streaming import Pointwise


class SampleNorm(nn.Module, Pointwise):
    """Divide each instant by its Euclidean norm over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
