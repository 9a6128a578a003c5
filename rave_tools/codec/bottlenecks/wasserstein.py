"""Bottleneck of a Wasserstein autoencoder: latents that together look like a normal distribution."""

import torch
from torch import Tensor, nn

from rave_tools.codec.bottlenecks.bottleneck import Bottleneck
from rave_tools.codec.controls import principal_controls
from rave_tools.contracts import Latent


def mean_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Mean of exp(-|x - y|^2 / D^2) over all pairs, the kernel of acids-rave.

    Args:
        x: shape (n, D).
        y: shape (m, D).
    """
    distance = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-distance.clamp_min(0) / x.shape[1] ** 2).mean()


def maximum_mean_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """How far two clouds of points are apart as distributions; never negative (Gretton et al., JMLR 2012, eq. 5).

    Args:
        x: shape (n, D).
        y: shape (m, D).
    """
    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


class WasserteinEncoder(Bottleneck):
    """Latents without any randomness, whose cloud is held to a standard normal (Tolstikhin et al., arXiv 1711.01558).

    The name is spelt as in acids-rave. The penalty ``mmd`` is the discrepancy of all frames of the batch from as many
    normal draws.

    Args:
        encoder: network with ``n_out = 1``.
        noise_augmentation: channels of noise that the decoder hears beside the latents.
    """

    def __init__(self, encoder: nn.Module, *, noise_augmentation: int = 0) -> None:
        super().__init__(encoder, n_out=1, noise_augmentation=noise_augmentation)

    def regularize(self, z: Tensor, noise: Tensor | None = None) -> Latent:
        """Compare latents with normal draws.

        Args:
            z: shape (B, D, N).
            noise: the draws. Shape (B, D, N), or None to draw here.
        """
        if z.dtype in (torch.float16, torch.bfloat16):
            z = z.float()
        cloud = z.transpose(1, 2).flatten(0, 1)
        prior = torch.randn_like(cloud) if noise is None else noise.transpose(1, 2).flatten(0, 1)
        return Latent(z, penalties={"mmd": maximum_mean_discrepancy(cloud, prior)})

    def sample(self, statistics: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """The latents themselves: (B, D, N) -> (B, D, N)."""
        return statistics.clone()

    def encode(
        self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """Bands to latents, the same every time: (B, C', N * hop) -> Latent."""
        return self.regularize(self.encoder(bands), noise)

    def controls(
        self, components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None
    ) -> nn.Module:
        """Principal axes."""
        return principal_controls(
            components, mean, fidelity, share=share, size=size, noise_augmentation=self.noise_augmentation
        )
