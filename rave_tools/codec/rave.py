"""RAVE: a realtime audio variational autoencoder on the bands of a PQMF (Caillon and Esling, arXiv 2111.05011)."""

from typing import Literal

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.codec.bottlenecks.bottleneck import Bottleneck
from rave_tools.codec.pretransforms.mel import MelSpectrogram
from rave_tools.codec.pretransforms.pqmf import CachedPQMF
from rave_tools.contracts import Latent
from rave_tools.nn.streaming import StreamInfo, stream_through, streaming


class RAVE(Autoencoder):
    """PQMF, encoder with bottleneck, decoder; state-dict keys as in acids-rave.

    Args:
        sampling_rate: in hertz.
        pqmf: analysis and synthesis of the bands.
        encoder: network with its bottleneck (VariationalEncoder, ...).
        decoder: generator of bands, or of the waveform.
        n_channels: C.
        spectrogram: what the encoder hears with ``input_mode = 'mel'``, else None.
        input_mode: the encoder hears bands (``pqmf``), mel spectra (``mel``) or the waveform (``raw``).
        output_mode: the decoder makes bands (``pqmf``) or the waveform (``raw``); the bands are then for the losses.

    Raises:
        ValueError: parts that do not fit each other; says which numbers disagree.
    """

    def __init__(
        self,
        *,
        sampling_rate: int,
        pqmf: CachedPQMF,
        encoder: Bottleneck,
        decoder: nn.Module,
        n_channels: int = 1,
        spectrogram: MelSpectrogram | None = None,
        input_mode: Literal["pqmf", "mel", "raw"] = "pqmf",
        output_mode: Literal["pqmf", "raw"] = "pqmf",
    ) -> None:
        super().__init__()
        if input_mode not in ("pqmf", "mel", "raw") or output_mode not in ("pqmf", "raw"):
            raise ValueError(
                f"input_mode is {input_mode!r}, one of pqmf, mel, raw; output_mode is {output_mode!r}, one of pqmf, raw"
            )
        if (spectrogram is not None) != (input_mode == "mel"):
            raise ValueError("RAVE.spectrogram and input_mode = 'mel' belong together: bind both or neither")
        heard, ratio = pqmf.ratio, pqmf.ratio
        if input_mode == "raw":
            heard = ratio = 1
        elif spectrogram is not None:
            heard, ratio = spectrogram.n_mels, spectrogram.ratio
        made = pqmf.ratio if output_mode == "pqmf" else 1
        hop = encoder.hop * ratio
        for fact, number, meant in (
            ("encoder input channels", encoder.in_channels, n_channels * heard),
            ("decoder output channels", decoder.out_channels, n_channels * made),
            ("decoder's samples per latent frame", decoder.hop * made, hop),
            ("decoder latent size", decoder.latent_size, encoder.decoder_dim),
        ):
            if number != meant:
                raise ValueError(
                    f"{fact}: {number}, but the other parts of the model need {meant} ({n_channels} channels, "
                    f"{heard} bands in, {made} out, {hop} samples per frame, latent size {encoder.decoder_dim}); "
                    "make RATIOS, LATENT_SIZE, N_BAND and CHANNELS agree"
                )
        self.sample_rate = sampling_rate
        self.channels = n_channels
        self.bands = pqmf.ratio
        self.hop = hop
        self.latent_dim = encoder.latent_dim
        self.num_codebooks = encoder.num_codebooks
        self.codebook_size = encoder.codebook_size
        self.input_mode = input_mode
        self.output_mode = output_mode
        self.pqmf = pqmf
        self.spectrogram = spectrogram
        self.encoder = encoder
        self.decoder = decoder
        self.register_buffer("latent_pca", torch.eye(self.latent_dim))
        self.register_buffer("latent_mean", torch.zeros(self.latent_dim))
        self.register_buffer("fidelity", torch.zeros(self.latent_dim))

    @property
    def network(self) -> nn.Module:
        return self.encoder.encoder

    @property
    def bottleneck(self) -> nn.Module:
        return self.encoder

    def to_bands(self, audio: Tensor) -> Tensor:
        return self.pqmf.encode(audio)

    def encoder_input(self, audio: Tensor, bands: Tensor | None = None) -> Tensor:
        if self.input_mode == "raw":
            return audio
        if self.spectrogram is not None:
            return self.spectrogram.encode(audio)
        return self.to_bands(audio) if bands is None else bands

    def encode_bands(
        self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        return self.encoder.encode(bands, deterministic=deterministic, noise=noise, step=step)

    def augment(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        return self.encoder.augment(z, temperature)

    def decode_bands(self, z: Tensor, phase: int = 2) -> Tensor:
        return self.decoder(self.encoder.augment(z), phase)

    def from_bands(self, bands: Tensor) -> Tensor:
        return self.pqmf.decode(bands) if self.output_mode == "pqmf" else bands

    def decoded_bands(self, decoded: Tensor, audio: Tensor) -> Tensor:
        return decoded if self.output_mode == "pqmf" else self.to_bands(audio)

    def dequantize(self, codes: Tensor) -> Tensor:
        return self.encoder.dequantize(codes)

    def enable_streaming(self, delay: int) -> int:
        return self.enable_decoder_streaming(self.enable_encoder_streaming(delay))

    def enable_encoder_streaming(self, delay: int) -> int:
        """Delay in samples -> delay in latent frames."""
        if self.spectrogram is not None:
            delay = self.spectrogram.enable_streaming(delay)
        elif self.input_mode == "pqmf":
            delay = self.pqmf.enable_analysis_streaming(delay)
        return stream_through(self.encoder.encoder, delay, "encoder")

    def enable_decoder_streaming(self, delay: int) -> int:
        """Delay in latent frames -> delay in samples."""
        delay = stream_through(self.decoder, delay, "decoder")
        return self.pqmf.enable_synthesis_streaming(delay) if self.output_mode == "pqmf" else delay

    def streaming(self) -> tuple["RAVE", StreamInfo]:
        """A copy that works on blocks of whole frames, and how it relates to this codec."""
        return streaming(self, self.hop)

    def controls(self, *, fidelity: float = 0.95, size: int | None = None) -> nn.Module:
        """Latents as a plug-in shows them; see rave_tools.codec.controls.

        Args:
            fidelity: share of the latents' variance that the controls carry, where that can be chosen.
            size: exact number of controls instead.
        """
        return self.encoder.controls(self.latent_pca, self.latent_mean, self.fidelity, share=fidelity, size=size)
