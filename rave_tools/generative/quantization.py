"""Numbers near a standard normal as classes of equal probability, and back."""

import math

import torch
from torch import Tensor

LARGEST = 4.0
"""Deviations at which a number taken from a class is cut: the outermost classes have no end."""


def to_classes(x: Tensor, resolution: int) -> Tensor:
    """Which of `resolution` equally probable slices of a standard normal a number lies in.

    Args:
        x: any shape.
        resolution: number of classes.

    Returns:
        Integers from 0 to resolution - 1, same shape.
    """
    share = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return torch.floor(share * resolution).clamp(0, resolution - 1).long()


def from_classes(classes: Tensor, within: Tensor, resolution: int, largest: float = LARGEST) -> Tensor:
    """Numbers inside classes.

    Args:
        classes: as `to_classes` gives them, or as floats.
        within: where in its class, as a share of its probability: 0 is the lower end, 1/2 the median. Same shape.
        resolution: number of classes.
        largest: deviations at which numbers are cut.

    Returns:
        Numbers, same shape; their distribution is normal when classes and places are uniform.
    """
    share = (classes.to(within.dtype) + within) / resolution
    return (torch.erfinv(2 * share - 1) * math.sqrt(2)).clamp(-largest, largest)


def to_diagonal(x: Tensor) -> Tensor:
    """Delays latent d by d frames, so that a frame holds latents that each know those before them at their own time.

    Args:
        x: shape (B, D, N), N >= D.

    Returns:
        Shape (B, D, N - D + 1): element (d, n) is x at (d, n + D - 1 - d).
    """
    dims, frames = x.shape[1], x.shape[2] - x.shape[1] + 1
    return torch.stack([x[:, d, dims - 1 - d : dims - 1 - d + frames] for d in range(dims)], 1)


def from_diagonal(x: Tensor) -> Tensor:
    """Undoes `to_diagonal` where it can: (B, D, N) -> (B, D, N - D + 1), element (d, n) is x at (d, n + d)."""
    return to_diagonal(x.flip(1)).flip(1)
