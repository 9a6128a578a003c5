"""Bottlenecks that stand between an encoder and a decoder, neither of which knows of them."""

from collections.abc import Sequence

from torch import Tensor, nn

from rave_tools.codec.controls import principal_controls
from rave_tools.contracts import Latent


class LatentBottleneck(nn.Module):
    """What an encoder's output passes on its way to the decoder.

    Subclasses implement `forward` and `controls`; discrete ones also `dequantize`.

    Args:
        dim: D, channels of the latents behind it.

    Attributes:
        latent_dim: D.
        n_out: outputs of the encoder per latent dimension.
        discrete: has codes.
        num_codebooks: K in use, 0 without codes.
        total_codebooks: K, 0 without codes.
        codebook_size: S, 0 without codes.
    """

    discrete = False
    n_out = 1
    num_codebooks = 0
    total_codebooks = 0
    codebook_size = 0

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.latent_dim = dim

    def forward(
        self, h: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """Encoder's output to latents.

        Args:
            h: shape (B, n_out * D, N).
            deterministic: nothing at random.
            noise: standard normal draws of shape (B, D, N) to use where the bottleneck needs some.
            step: updates of the generator in training; None outside of it.

        Returns:
            Latent with z of shape (B, D, N), codes of a discrete bottleneck, and its penalties.
        """
        raise NotImplementedError

    def sample(self, h: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Encoder's output to what the controls show, as an export draws it: (B, n_out * D, N) -> (B, D, N)."""
        raise NotImplementedError

    def controls(
        self, components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None
    ) -> nn.Module:
        """The latents as a plug-in shows them, see rave_tools.codec.controls.

        Args:
            components, mean, fidelity: analysis of the latents. Shapes (D, D), (D,), (D,).
            share: of the latents' variance that the controls should carry, where that can be chosen.
            size: exact number of controls instead, or None.
        """
        raise NotImplementedError

    def set_num_codebooks(self, number: int) -> None:
        """Use the first so many codebooks."""
        raise ValueError(f"{type(self).__name__} is continuous, it has no codebooks; use a model that has")

    def set_dropout_codebooks(self, numbers: Sequence[int]) -> None:
        """Let quantiser dropout draw from these numbers of codebooks."""
        raise ValueError(f"{type(self).__name__} is continuous, it has no codebooks; leave bandwidths away")

    def dequantize(self, codes: Tensor) -> Tensor:
        """(B, K, N) -> (B, D, N)."""
        raise ValueError(f"{type(self).__name__} is continuous, there are no codes to dequantize; decode its z")


class Unquantized(LatentBottleneck):
    """Lets the latents pass as they are: a continuous embedding without a penalty."""

    def forward(
        self, h: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """(B, D, N) -> Latent."""
        return Latent(h)

    def sample(self, h: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """(B, D, N) -> (B, D, N)."""
        return h.clone()

    def controls(
        self, components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None
    ) -> nn.Module:
        """Principal axes, the most telling first."""
        return principal_controls(components, mean, fidelity, share=share, size=size)
