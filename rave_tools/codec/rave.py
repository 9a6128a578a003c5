"""RAVE: a realtime audio variational autoencoder on the bands of a PQMF (Caillon and Esling, arXiv 2111.05011)."""

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.codec.controls import PrincipalControls, size_for_fidelity
from rave_tools.codec.pretransforms.pqmf import CachedPQMF
from rave_tools.contracts import Latent
from rave_tools.nn.streaming import StreamInfo, stream_through, streaming


class RAVE(Autoencoder):
    """PQMF, encoder with bottleneck, decoder; state-dict keys as in acids-rave.

    Args:
        sampling_rate: in hertz.
        pqmf: analysis and synthesis of the bands.
        encoder: network with its bottleneck (VariationalEncoder, ...).
        decoder: generator of bands.
        n_channels: C.

    Raises:
        ValueError: parts that do not fit each other; says which numbers disagree.
    """

    def __init__(
        self,
        *,
        sampling_rate: int,
        pqmf: CachedPQMF,
        encoder: nn.Module,
        decoder: nn.Module,
        n_channels: int = 1,
    ) -> None:
        super().__init__()
        wanted = n_channels * pqmf.ratio
        for fact, number, meant in (
            ("encoder input channels", encoder.in_channels, wanted),
            ("decoder output channels", decoder.out_channels, wanted),
            ("decoder ratio", decoder.hop, encoder.hop),
            ("decoder latent size", decoder.latent_size, encoder.decoder_dim),
        ):
            if number != meant:
                raise ValueError(
                    f"{fact}: {number}, but the other parts of the model need {meant} ({n_channels} channels x "
                    f"{pqmf.ratio} bands, encoder ratio {encoder.hop}, latent size {encoder.decoder_dim}); "
                    "make RATIOS, LATENT_SIZE, N_BAND and CHANNELS agree"
                )
        self.sample_rate = sampling_rate
        self.channels = n_channels
        self.bands = pqmf.ratio
        self.hop = encoder.hop * pqmf.ratio
        self.latent_dim = encoder.latent_dim
        self.pqmf = pqmf
        self.encoder = encoder
        self.decoder = decoder
        self.register_buffer("latent_pca", torch.eye(self.latent_dim))
        self.register_buffer("latent_mean", torch.zeros(self.latent_dim))
        self.register_buffer("fidelity", torch.zeros(self.latent_dim))

    def to_bands(self, audio: Tensor) -> Tensor:
        return self.pqmf.encode(audio)

    def encode_bands(self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None) -> Latent:
        return self.encoder.encode(bands, deterministic=deterministic, noise=noise)

    def decode_bands(self, z: Tensor, phase: int = 2) -> Tensor:
        return self.decoder(z, phase)

    def from_bands(self, bands: Tensor) -> Tensor:
        return self.pqmf.decode(bands)

    def enable_streaming(self, delay: int) -> int:
        return self.enable_decoder_streaming(self.enable_encoder_streaming(delay))

    def enable_encoder_streaming(self, delay: int) -> int:
        """Delay in samples -> delay in latent frames."""
        return stream_through(self.encoder.encoder, self.pqmf.enable_analysis_streaming(delay), "encoder")

    def enable_decoder_streaming(self, delay: int) -> int:
        """Delay in latent frames -> delay in samples."""
        return self.pqmf.enable_synthesis_streaming(stream_through(self.decoder, delay, "decoder"))

    def streaming(self) -> tuple["RAVE", StreamInfo]:
        """A copy that works on blocks of whole frames, and how it relates to this codec."""
        return streaming(self, self.hop)

    def controls(self, *, fidelity: float = 0.95, size: int | None = None) -> PrincipalControls:
        """Latents as a plug-in shows them: principal axes.

        Args:
            fidelity: share of the latents' variance that the shown axes carry.
            size: exact number of axes instead.
        """
        return PrincipalControls(self.latent_pca, self.latent_mean, size or size_for_fidelity(self.fidelity, fidelity))
