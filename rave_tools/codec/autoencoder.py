"""The codec as the rest of the house meets it: audio <-> latents, in four steps that training takes one by one."""

import torch
from torch import Tensor, nn

from rave_tools.contracts import Latent
from rave_tools.nn.recurrent import GRU, LSTM
from rave_tools.nn.streaming import Streamable

FAINT = 1e-6

LONGEST_MEMORY = 1 << 17
"""Samples behind which nothing that a recurrent layer still holds is looked for: some seconds."""


class Autoencoder(nn.Module, Streamable):
    """A codec made of a pretransform, an encoder with its bottleneck, and a decoder.

    Subclasses assemble the parts and implement the four steps ``to_bands``, ``encode_bands``, ``decode_bands`` and
    ``from_bands``; where encoder or decoder work on something else than the bands that losses look at, also
    ``encoder_input`` and ``decoded_bands``. Facts are derived from the parts.

    Attributes:
        sample_rate: in hertz.
        channels: C.
        hop: samples per latent frame.
        latent_dim: D at the bottleneck.
        num_codebooks, codebook_size: of a discrete bottleneck, else 0.
        bands: M of the pretransform, 1 without.
        input_mode: what the encoder hears: ``pqmf``, ``mel`` or ``raw``, the waveform.
        output_mode: what the decoder makes: ``pqmf`` or ``raw``.
        renormalize: each sound is divided by its loudness, which goes around the latents.
    """

    sample_rate: int
    channels: int
    hop: int
    latent_dim: int
    num_codebooks: int = 0
    codebook_size: int = 0
    bands: int = 1
    input_mode: str = "raw"
    output_mode: str = "raw"
    renormalize: bool = False

    @property
    def network(self) -> nn.Module:
        """The encoder's network: encoder input to statistics."""
        raise NotImplementedError

    @property
    def bottleneck(self) -> nn.Module:
        """What turns statistics into latents, by ``sample(statistics, temperature)``."""
        raise NotImplementedError

    def to_bands(self, audio: Tensor) -> Tensor:
        """(B, C, T) -> (B, C*M, T / M)."""
        raise NotImplementedError

    def encoder_input(self, audio: Tensor, bands: Tensor | None = None) -> Tensor:
        """What the encoder hears: the bands, unless a subclass says otherwise.

        Args:
            audio: shape (B, C, T).
            bands: of that audio, where they are known already.
        """
        return self.to_bands(audio) if bands is None else bands

    def encode_bands(
        self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """Encoder input -> Latent; ``step`` counts the generator's updates in training and is None outside of it."""
        raise NotImplementedError

    def augment(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        """Latents with whatever the decoder wants beside them, at random with that deviation; by default nothing."""
        return z

    def decode_bands(self, z: Tensor, phase: int = 2) -> Tensor:
        """(B, D, N) -> (B, C*M, N * hop / M)."""
        raise NotImplementedError

    def decode_latent(self, latent: Latent, phase: int = 2) -> Tensor:
        """As `decode_bands`, from everything that crossed the bottleneck."""
        return self.decode_bands(latent.z, phase)

    def from_bands(self, bands: Tensor) -> Tensor:
        """What the decoder made -> (B, C, T)."""
        raise NotImplementedError

    def decoded_bands(self, decoded: Tensor, audio: Tensor) -> Tensor:
        """Bands of an estimate, from what the decoder made and the audio it became: by default the former."""
        return decoded

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
        return self.encode_bands(self.encoder_input(audio), deterministic=deterministic, noise=noise)

    def decode(self, z: Tensor) -> Tensor:
        """Latents to audio: (B, D, N) -> (B, C, N * hop)."""
        return self.from_bands(self.decode_bands(z))

    def forward(self, audio: Tensor) -> Tensor:
        """There and back through the posterior's mean: (B, C, T) -> (B, C, T)."""
        return self.decode(self.augment(self.encode(audio, deterministic=True).z, 0.0))

    def receptive_field(self, *, recurrence: bool = True) -> tuple[int, int]:
        """Samples to the left and to the right of an output sample that can change it, measured by its gradient.

        Measured at the first sample of a frame, as RAVE does; other samples of the frame may look up to one hop
        further. A recurrent layer remembers for ever: what the output holds of a sample is left out once it is a
        millionth of what it holds of the strongest, and behind `LONGEST_MEMORY`.

        Args:
            recurrence: whether what recurrent layers remember counts; it depends on the weights, the rest does not.

        Returns:
            (left, right) in samples, neither negative.

        Raises:
            ValueError: weights that are not finite, or an output that nothing reaches.
        """
        was_training = self.training
        self.eval()
        recurrent = [module for module in self.modules() if isinstance(module, (GRU, LSTM))]
        for layer in recurrent:
            layer.forgetful = not recurrence
        faint = FAINT if recurrent and recurrence else 0.0
        try:
            half = self.hop * 8
            while True:
                gradient = self._gradient_at_centre(half, faint)
                if not gradient.any():
                    raise ValueError(
                        f"no input reaches the output of this {type(self).__name__}: its weights are zero, or so large "
                        "that everything is cut off"
                    )
                if not (gradient[0] or gradient[-1]) or (faint and half >= LONGEST_MEMORY):
                    used = torch.nonzero(gradient).flatten()
                    return max(0, half - int(used[0])), max(0, int(used[-1]) - half + 1)
                half *= 2
        finally:
            self.train(was_training)
            for layer in recurrent:
                layer.forgetful = False

    def _gradient_at_centre(self, half: int, faint: float) -> Tensor:
        """Which of 2 * half input samples reach the output sample in the middle, beyond that share of the strongest."""
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
        gradient = gradient[0].abs().amax(0)
        return gradient > faint * gradient.max()
