"""The codec as the rest of the house meets it: audio <-> latents, in four steps that training takes one by one."""

import torch
from torch import Tensor, nn

from rave_tools.contracts import Latent
from rave_tools.nn.streaming import Streamable


class Autoencoder(nn.Module, Streamable):
    """A codec made of a pretransform, an encoder with its bottleneck, and a decoder.

    Subclasses assemble the parts and implement the four steps ``to_bands``, ``encode_bands``, ``decode_bands`` and
    ``from_bands``. Facts are derived from the parts.

    Attributes:
        sample_rate: in hertz.
        channels: C.
        hop: samples per latent frame.
        latent_dim: D at the bottleneck.
        num_codebooks, codebook_size: of a discrete bottleneck, else 0.
        bands: M of the pretransform, 1 without.
    """

    sample_rate: int
    channels: int
    hop: int
    latent_dim: int
    num_codebooks: int = 0
    codebook_size: int = 0
    bands: int = 1

    def to_bands(self, audio: Tensor) -> Tensor:
        """(B, C, T) -> (B, C*M, T / M)."""
        raise NotImplementedError

    def encode_bands(self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None) -> Latent:
        """(B, C*M, T / M) -> Latent."""
        raise NotImplementedError

    def decode_bands(self, z: Tensor, phase: int = 2) -> Tensor:
        """(B, D, N) -> (B, C*M, N * hop / M)."""
        raise NotImplementedError

    def from_bands(self, bands: Tensor) -> Tensor:
        """(B, C*M, T / M) -> (B, C, T)."""
        raise NotImplementedError

    def dequantize(self, codes: Tensor) -> Tensor:
        """(B, K, N) -> (B, D, N); only discrete bottlenecks have codes."""
        raise ValueError(
            f"{type(self).__name__} has a continuous bottleneck, there are no codes to dequantize; decode its z"
        )

    def check_audio(self, audio: Tensor) -> None:
        """Refuse audio of the wrong shape.

        Raises:
            ValueError: not (B, C, T) with this codec's channels and a whole number of frames.
        """
        if audio.ndim != 3 or audio.shape[1] != self.channels:
            raise ValueError(
                f"audio of shape {tuple(audio.shape)} is not (batch, {self.channels}, samples), which this codec needs"
            )
        if audio.shape[-1] % self.hop:
            raise ValueError(
                f"{audio.shape[-1]} samples are not a whole number of frames of {self.hop}; "
                f"pad the audio to {-(-audio.shape[-1] // self.hop) * self.hop}"
            )

    def encode(self, audio: Tensor, *, deterministic: bool = False, noise: Tensor | None = None) -> Latent:
        """Audio to latents.

        Args:
            audio: shape (B, C, T), T a multiple of the hop.
            deterministic: the posterior's mean instead of a sample.
            noise: standard normal draws of shape (B, D, N) instead of fresh ones.

        Returns:
            Latent with z of shape (B, D, T / hop).
        """
        self.check_audio(audio)
        return self.encode_bands(self.to_bands(audio), deterministic=deterministic, noise=noise)

    def decode(self, z: Tensor) -> Tensor:
        """Latents to audio: (B, D, N) -> (B, C, N * hop)."""
        return self.from_bands(self.decode_bands(z))

    def forward(self, audio: Tensor) -> Tensor:
        """There and back through the posterior's mean: (B, C, T) -> (B, C, T)."""
        return self.decode(self.encode(audio, deterministic=True).z)

    def receptive_field(self) -> tuple[int, int]:
        """Samples to the left and to the right of an output sample that can change it, measured by its gradient.

        Measured at the first sample of a frame, as RAVE does; other samples of the frame may look up to one hop
        further.

        Returns:
            (left, right) in samples, neither negative.

        Raises:
            ValueError: weights that are not finite, or an output that nothing reaches.
        """
        was_training = self.training
        self.eval()
        try:
            half = self.hop * 8
            while True:
                gradient = self._gradient_at_centre(half)
                if not gradient.any():
                    raise ValueError(f"no input reaches the output of this {type(self).__name__}: its weights are zero")
                if not (gradient[0] or gradient[-1]):
                    used = torch.nonzero(gradient).flatten()
                    return max(0, half - int(used[0])), max(0, int(used[-1]) - half + 1)
                half *= 2
        finally:
            self.train(was_training)

    def _gradient_at_centre(self, half: int) -> Tensor:
        """Which of 2 * half input samples reach the output sample in the middle. Shape (2 * half,), bool."""
        weight = next(self.parameters())
        with torch.enable_grad():
            audio = torch.randn(
                1, self.channels, 2 * half, device=weight.device, dtype=weight.dtype, requires_grad=True
            )
            (gradient,) = torch.autograd.grad(self.forward(audio)[0, 0, half], audio)
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError(
                f"weights of this {type(self).__name__} are not finite: the run diverged; take an earlier checkpoint"
            )
        return (gradient[0] != 0).any(0)
