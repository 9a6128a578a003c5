"""Gaussian bottleneck of a variational autoencoder (Kingma and Welling, arXiv 1312.6114)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.codec.bottlenecks.bottleneck import Bottleneck
from rave_tools.codec.controls import principal_controls
from rave_tools.contracts import Latent

MINIMUM_STD = 1e-4


class VariationalEncoder(Bottleneck):
    """A network that draws a diagonal Gaussian per frame, and the bottleneck that samples it.

    Args:
        encoder: network with ``n_out = 2``: mean and raw scale; the scale passes a softplus plus 1e-4.

    The penalty ``kl`` is the divergence from a standard normal without its factor 1/2, summed over latents and averaged
    over frames, as RAVE has it.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder, n_out=2)
        self.minimum_std = MINIMUM_STD

    def reparametrize(self, statistics: Tensor, noise: Tensor | None = None) -> Latent:
        """Draw latents.

        Args:
            statistics: shape (B, 2D, N).
            noise: standard normal draws of shape (B, D, N); zeros give the mean; None draws here.

        Returns:
            Latent with z of shape (B, D, N) and the penalty ``kl``.
        """
        if statistics.dtype in (torch.float16, torch.bfloat16):
            statistics = statistics.float()
        mean, scale = statistics.chunk(2, 1)
        std = F.softplus(scale) + self.minimum_std
        if noise is None:
            noise = torch.randn_like(mean)
        variance = std * std
        kl = (mean * mean + variance - torch.log(variance) - 1).sum(1).mean()
        return Latent(noise * std + mean, penalties={"kl": kl})

    def sample(self, statistics: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Latents as an export draws them: (B, 2D, N) -> (B, D, N); temperature 0 gives the mean."""
        mean, scale = statistics.chunk(2, 1)
        # A tensor is a knob of an exported graph, which cannot branch on it.
        if not isinstance(temperature, Tensor) and temperature == 0:
            return mean.clone()
        return mean + torch.randn_like(mean) * (F.softplus(scale) + self.minimum_std) * temperature

    def encode(
        self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """Bands to a sample, or to the mean when deterministic: (B, C', N * hop) -> Latent."""
        statistics = self.encoder(bands)
        if deterministic:
            noise = torch.zeros(1, 1, 1, device=statistics.device)
        return self.reparametrize(statistics, noise)

    def controls(
        self, components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None
    ) -> nn.Module:
        """Principal axes."""
        return principal_controls(components, mean, fidelity, share=share, size=size)
