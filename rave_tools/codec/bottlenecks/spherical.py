"""Bottleneck of latents on a sphere: a direction without a length."""

import torch
from torch import Tensor, nn

from rave_tools.codec.bottlenecks.bottleneck import Bottleneck
from rave_tools.codec.controls import SphericalControls, angles_to_direction
from rave_tools.contracts import Latent

SHORTEST = 1e-8
"""A vector below that length has no direction."""


class SphericalEncoder(Bottleneck):
    """Latents of unit length per frame.

    A silent input gives a network without biases nothing to point with; it is the direction whose angles all stand in
    the middle (acids-rave divides zero by zero). There is no penalty.

    Args:
        encoder: network with ``n_out = 1``.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder, n_out=1)
        if self.latent_dim < 2:
            raise ValueError(f"a sphere has at least 2 dimensions, not {self.latent_dim}; raise LATENT_SIZE")

    def project(self, x: Tensor) -> Tensor:
        """To the sphere: (B, D, N) -> (B, D, N)."""
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        middle = angles_to_direction(torch.zeros(1, self.latent_dim - 1, 1, dtype=x.dtype, device=x.device))
        # Chosen before the division: a gradient through zero length would not be a number.
        x = torch.where(torch.linalg.vector_norm(x, dim=1, keepdim=True) > SHORTEST, x, middle)
        return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)

    def sample(self, statistics: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """The directions: (B, D, N) -> (B, D, N)."""
        return self.project(statistics)

    def encode(
        self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """Bands to directions, the same every time: (B, C', N * hop) -> Latent."""
        return Latent(self.project(self.encoder(bands)))

    def controls(
        self, components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None
    ) -> nn.Module:
        """Angles: one fewer than dimensions, all of them needed."""
        if size is not None and size != self.latent_dim - 1:
            raise ValueError(
                f"{size} latents were asked for; a direction in {self.latent_dim} dimensions is "
                f"{self.latent_dim - 1} angles, and all are needed"
            )
        return SphericalControls(self.latent_dim)
