"""Bottleneck of codes: what a frame is, said in a few integers."""

import torch
from torch import Tensor, nn

from rave_tools.codec.bottlenecks.bottleneck import Bottleneck
from rave_tools.codec.bottlenecks.quantization import ResidualVectorQuantization
from rave_tools.codec.controls import CodeControls
from rave_tools.contracts import Latent


class DiscreteEncoder(Bottleneck):
    """An encoder whose latents pass residual codebooks.

    When quantisation begins is a function of the generator's updates: at ``quantize_from`` the codebooks are placed by
    k-means, and from then on they are in use and follow their vectors in every update of the encoder. (acids-rave means
    to begin with the first batch, but the hook that should do so is misspelt and never runs: its ``discrete`` trains
    and plays continuous latents.) The penalty ``commitment`` is zero before.

    Args:
        encoder: network with ``n_out = 1``.
        rvq: the codebooks.
        noise_augmentation: channels of noise that the decoder hears beside the latents.
        quantize_from: updates of the generator before the first quantised one.
    """

    discrete = True

    def __init__(
        self,
        encoder: nn.Module,
        rvq: ResidualVectorQuantization,
        *,
        noise_augmentation: int = 0,
        quantize_from: int = 0,
    ) -> None:
        super().__init__(encoder, n_out=1, noise_augmentation=noise_augmentation)
        if rvq.dim != self.latent_dim:
            raise ValueError(
                f"codebooks of {rvq.dim} dimensions for {self.latent_dim} latents; "
                "make ResidualVectorQuantization.dim and LATENT_SIZE agree"
            )
        self.rvq = rvq
        self.quantize_from = quantize_from
        self.num_codebooks = rvq.num_quantizers
        self.codebook_size = rvq.codebook_size

    def quantize(self, z: Tensor, step: int | None = None) -> Latent:
        """Latents before to latents behind the codebooks.

        Args:
            z: shape (B, D, N).
            step: updates of the generator in training; None outside of it.

        Returns:
            Latent; without codes as long as the codebooks have not been placed.
        """
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        # Without gradients it is not the encoder's turn, and codebooks follow nobody else.
        learn = self.training and torch.is_grad_enabled() and step is not None and step >= self.quantize_from
        if not (learn or self.rvq.ready):
            return Latent(z, penalties={"commitment": z.new_zeros(())})
        with torch.autocast(z.device.type, enabled=False):
            quantized, codes, commitment = self.rvq(z, learn=learn)
        return Latent(quantized, codes, {"commitment": commitment})

    def sample(self, statistics: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Latents before the codebooks, which belong to the controls: (B, D, N) -> (B, D, N)."""
        return statistics.clone()

    def encode(
        self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """Bands to quantised latents and their codes: (B, C', N * hop) -> Latent."""
        return self.quantize(self.encoder(bands), step)

    def dequantize(self, codes: Tensor) -> Tensor:
        """(B, K', N) -> (B, D, N), for the first K' <= K codebooks."""
        return self.rvq.decode(codes)

    def controls(
        self, components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None
    ) -> nn.Module:
        """Codes as signals."""
        caution = ""
        if not self.rvq.ready:
            caution = (
                f"the codebooks of this run were never placed (quantisation begins at update {self.quantize_from}), so "
                "its codes mean nothing; train longer"
            )
        return CodeControls(
            self.rvq,
            self.rvq.tables(),
            self.num_codebooks if size is None else size,
            noise_augmentation=self.noise_augmentation,
            caution=caution,
        )
