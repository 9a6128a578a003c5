"""Activations, and factories of activations: blocks take ``activation(channels) -> module``."""

import torch
from torch import Tensor, nn


def leaky_relu(channels: int, slope: float = 0.2) -> nn.Module:
    """LeakyReLU, the same for all channels."""
    return nn.LeakyReLU(slope)


def shifted_power_sigmoid(x: Tensor) -> Tensor:
    """2 sigmoid(x)^2.3 + 1e-7: an amplitude, never zero, at most two (DDSP, Engel et al. 2020, appendix B.5)."""
    return 2 * torch.sigmoid(x) ** 2.3 + 1e-7
