"""Activations, and factories of activations: blocks take ``activation(channels) -> module``."""

import torch
from torch import Tensor, nn

from rave_tools.nn.streaming import Pointwise


def leaky_relu(channels: int, slope: float = 0.2) -> nn.Module:
    """LeakyReLU, the same for all channels."""
    return nn.LeakyReLU(slope)


class Snake(nn.Module, Pointwise):
    """x + sin(alpha x)^2 / alpha with a learned alpha per channel: periodic, but increasing on the whole.

    Args:
        channels: C.
        batched: store alpha as (1, C, 1), as Descript's checkpoints have it, instead of (C, 1).

    Source: Ziyin, Hartwig and Ueda, "Neural Networks Fail to Learn Periodic Functions and How to Fix It", 2020.
    """

    def __init__(self, channels: int, *, batched: bool = False) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1) if batched else torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


def shifted_power_sigmoid(x: Tensor) -> Tensor:
    """2 sigmoid(x)^2.3 + 1e-7: an amplitude, never zero, at most two (DDSP, Engel et al. 2020, appendix B.5)."""
    return 2 * torch.sigmoid(x) ** 2.3 + 1e-7
