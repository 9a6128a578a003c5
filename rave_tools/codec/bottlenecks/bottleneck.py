"""What every bottleneck answers, so that nobody asks which one it is."""

from torch import Tensor, nn

from rave_tools.codec.controls import beside_noise
from rave_tools.contracts import Latent


def augmented_size(latent_size: int, noise_augmentation: int) -> int:
    """Channels of a decoder that hears noise beside its latents."""
    return latent_size + noise_augmentation


class Bottleneck(nn.Module):
    """An encoder network with what turns its output into latents.

    Subclasses implement `encode`, `sample` and `controls`.

    Args:
        encoder: network, bands to statistics; knows ``hop``, ``latent_size``, ``in_channels`` and ``n_out``.
        n_out: outputs per latent that the bottleneck needs.
        noise_augmentation: channels of white noise that the decoder hears beside the latents, from which it makes what
            the latents cannot tell.

    Attributes:
        hop: frames of the encoder's input per latent frame.
        in_channels: of the encoder's input.
        latent_dim: D.
        decoder_dim: D and the noise, what the decoder hears.
        num_codebooks, codebook_size: of a discrete bottleneck, else 0.

    Raises:
        ValueError: a network with another number of outputs per latent.
    """

    discrete = False
    num_codebooks = 0
    codebook_size = 0

    def __init__(self, encoder: nn.Module, *, n_out: int, noise_augmentation: int = 0) -> None:
        super().__init__()
        if encoder.n_out != n_out:
            raise ValueError(
                f"{type(self).__name__} needs {n_out} outputs per latent: set the encoder's n_out to {n_out}, "
                f"not {encoder.n_out}"
            )
        self.encoder = encoder
        self.noise_augmentation = noise_augmentation
        self.hop = encoder.hop
        self.in_channels = encoder.in_channels
        self.latent_dim = encoder.latent_size
        self.decoder_dim = augmented_size(encoder.latent_size, noise_augmentation)

    def forward(self, bands: Tensor) -> Tensor:
        """Raw statistics: (B, C', N * hop) -> (B, n_out * D, N)."""
        return self.encoder(bands)

    def encode(
        self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """Encoder input to latents.

        Args:
            bands: shape (B, C', N * hop).
            deterministic: nothing at random.
            noise: standard normal draws of shape (B, D, N) to use wherever the bottleneck needs some.
            step: updates of the generator in training; None outside of it.

        Returns:
            Latent with z of shape (B, D, N), codes of a discrete bottleneck, and its penalties.
        """
        raise NotImplementedError

    def sample(self, statistics: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Statistics to what the controls show, as an export draws it.

        Args:
            statistics: shape (B, n_out * D, N).
            temperature: scale of what is random; 0 for nothing.

        Returns:
            Shape (B, D, N).
        """
        raise NotImplementedError

    def controls(
        self, components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None
    ) -> nn.Module:
        """The latents as a plug-in shows them, see rave_tools.codec.controls.

        Args:
            components, mean, fidelity: analysis of the latents. Shapes (D, D), (D,), (D,).
            share: of the latents' variance that the controls should carry, where that can be chosen.
            size: exact number of controls instead, or None.

        Raises:
            ValueError: a size that the bottleneck cannot have.
        """
        raise NotImplementedError

    def dequantize(self, codes: Tensor) -> Tensor:
        """(B, K, N) -> (B, D, N)."""
        raise ValueError(
            f"{type(self).__name__} is a continuous bottleneck, there are no codes to dequantize; decode its z"
        )

    def augment(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        """Latents as the decoder wants them, with noise beside them.

        Args:
            z: shape (B, D, N); with ``decoder_dim`` channels it is complete and stays as it is.
            temperature: deviation of the noise; 0 for silence.

        Returns:
            Shape (B, decoder_dim, N).
        """
        missing = self.decoder_dim - z.shape[1]
        if missing == 0:
            return z
        if missing != self.noise_augmentation:
            raise ValueError(f"latents of {z.shape[1]} channels; this model has {self.latent_dim}")
        return beside_noise(z, missing, temperature)
