"""Codecs of an encoder, a bottleneck and a decoder on the waveform: EnCodec's, AudioCraft's, DAC's."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.codec.bottlenecks.latent import LatentBottleneck
from rave_tools.codec.segments import cut_segments, overlap_add
from rave_tools.contracts import Latent
from rave_tools.nn.streaming import NotStreamable, StreamInfo, stream_through, streaming

QUIETEST = 1e-8


class CompressionModel(Autoencoder):
    """Encoder, bottleneck, decoder; state-dict keys as in the field: ``encoder.*``, ``quantizer.*``, ``decoder.*``.

    Args:
        sampling_rate: in hertz.
        encoder: waveform to statistics; knows ``hop``, ``in_channels``, ``latent_size`` (D) and ``n_out`` (its outputs
            per latent).
        decoder: latents to waveform; knows ``hop``, ``out_channels`` and ``latent_size``.
        quantizer: the bottleneck, with codes or without.
        n_channels: C.
        renormalize: divide each input by its loudness (the root mean square of the channels' mean), and multiply what
            was decoded by it: the codes then say nothing about the level. Such a model does not stream.
        segment: seconds that are coded at once, each with its own loudness; None codes a sound as a whole.
        overlap: share of a segment that it has in common with the next one.
        bandwidths: kilobits per second that the model is made for, each as many codebooks as it pays for. Where the
            quantiser drops some in training, it keeps as many as one of these pays for. Without, any number will do.

    Raises:
        ValueError: parts that do not fit each other; says which numbers disagree.

    Source: Défossez et al., "High Fidelity Neural Audio Compression", 2022.
    """

    def __init__(
        self,
        *,
        sampling_rate: int,
        encoder: nn.Module,
        decoder: nn.Module,
        quantizer: LatentBottleneck,
        n_channels: int = 1,
        renormalize: bool = False,
        segment: float | None = None,
        overlap: float = 0.01,
        bandwidths: Sequence[float] = (),
    ) -> None:
        super().__init__()
        for fact, number, meant in (
            ("encoder input channels", encoder.in_channels, n_channels),
            ("decoder output channels", decoder.out_channels, n_channels),
            ("decoder's samples per latent frame", decoder.hop, encoder.hop),
            ("encoder's outputs per latent", encoder.n_out, quantizer.n_out),
            ("encoder latent size", encoder.latent_size, quantizer.latent_dim),
            ("decoder latent size", decoder.latent_size, quantizer.latent_dim),
        ):
            if number != meant:
                raise ValueError(
                    f"{fact}: {number}, but the other parts of the model need {meant} ({n_channels} channels, "
                    f"{encoder.hop} samples per frame, latent size {quantizer.latent_dim}); "
                    "make RATIOS, LATENT_SIZE and CHANNELS agree"
                )
        if segment is not None and not (segment > 0 and 0 <= overlap < 1):
            raise ValueError(
                f"segment = {segment:g} s with overlap = {overlap:g}: a segment has a length, and shares less than all "
                "of it with the next; set CompressionModel.segment above 0 and overlap between 0 and 1, or segment = "
                "None"
            )
        self.sample_rate = sampling_rate
        self.channels = n_channels
        self.hop = int(encoder.hop)
        self.latent_dim = quantizer.latent_dim
        self.renormalize = renormalize
        self.segment = segment
        self.overlap = overlap
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder
        self.bandwidths = tuple(bandwidths)
        if self.bandwidths:
            quantizer.set_dropout_codebooks([self._codebooks_for(bandwidth) for bandwidth in self.bandwidths])
        if not quantizer.discrete:
            self.register_buffer("latent_pca", torch.eye(self.latent_dim))
            self.register_buffer("latent_mean", torch.zeros(self.latent_dim))
            self.register_buffer("fidelity", torch.zeros(self.latent_dim))

    @property
    def num_codebooks(self) -> int:  # type: ignore[override]
        """K in use; 0 of a continuous bottleneck."""
        return self.quantizer.num_codebooks

    @property
    def codebook_size(self) -> int:  # type: ignore[override]
        """S; 0 of a continuous bottleneck."""
        return self.quantizer.codebook_size

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.hop

    @property
    def total_codebooks(self) -> int:
        """K; 0 of a continuous bottleneck."""
        return self.quantizer.total_codebooks

    @property
    def bandwidth(self) -> float:
        """Kilobits per second of the codebooks in use."""
        return self.num_codebooks * self._bandwidth_of_one()

    def set_num_codebooks(self, number: int) -> None:
        """Use the first so many codebooks.

        Raises:
            ValueError: a number that this model does not have.
        """
        self.quantizer.set_num_codebooks(number)

    def set_bandwidth(self, kbps: float) -> None:
        """Use as many codebooks as a bandwidth pays for.

        Args:
            kbps: kilobits per second; one of `bandwidths`, where the model is made for some.

        Raises:
            ValueError: a bandwidth that this model does not have; lists those it has.
        """
        one = self._bandwidth_of_one()
        possible = self.bandwidths or tuple(one * n for n in range(1, self.total_codebooks + 1))
        chosen = [b for b in possible if math.isclose(b, kbps, rel_tol=1e-3)]
        if not chosen:
            listed = ", ".join(f"{b:.4g}" for b in possible)
            raise ValueError(f"{kbps:g} kb/s were asked for, but this model has {listed}; choose one of them")
        self.set_num_codebooks(self._codebooks_for(chosen[0]))

    def _bandwidth_of_one(self) -> float:
        """Kilobits per second of one codebook."""
        if not self.quantizer.discrete:
            raise ValueError(
                f"{type(self.quantizer).__name__} is continuous, it has no bandwidth; use a model with codebooks"
            )
        return math.log2(self.codebook_size) * self.frame_rate / 1000

    def _codebooks_for(self, kbps: float) -> int:
        number = math.floor(kbps / self._bandwidth_of_one() * (1 + 1e-6))
        if not 1 <= number <= self.total_codebooks:
            raise ValueError(
                f"{kbps:g} kb/s are {number} codebooks of {self._bandwidth_of_one():.4g} kb/s, but this model has "
                f"{self.total_codebooks}; make CompressionModel.bandwidths and NUM_QUANTIZERS agree"
            )
        return number

    def loudness(self, audio: Tensor) -> Tensor | None:
        """What the input is divided by, (B, C, T) -> (B, 1); None of a model that leaves levels alone."""
        if not self.renormalize:
            return None
        return audio.mean(1).square().mean(-1, keepdim=True).sqrt() + QUIETEST

    @property
    def segment_length(self) -> int | None:
        """Samples that are coded at once; None where a sound is coded as a whole."""
        return None if self.segment is None else max(1, int(self.segment * self.sample_rate))

    @property
    def segment_stride(self) -> int | None:
        """Samples from the start of a segment to the start of the next."""
        length = self.segment_length
        return None if length is None else max(1, int((1 - self.overlap) * length))

    def encode_segments(self, audio: Tensor) -> list[Latent]:
        """Encode a sound of any length, (B, C, T): each segment on its own, divided by its own loudness.

        The last segments are shorter, and what is missing of a frame is filled up by the encoder. Without segments
        the list has one element.

        Raises:
            ValueError: audio of another shape, or without samples.
        """
        if audio.ndim != 3 or audio.shape[1] != self.channels or not audio.shape[-1]:
            raise ValueError(
                f"audio of shape {tuple(audio.shape)} is not (batch, {self.channels}, samples), which this codec needs"
            )
        length = self.segment_length or audio.shape[-1]
        parts = cut_segments([audio], length=length, stride=self.segment_stride or length)
        return [self.encode_bands(part, deterministic=True) for part in parts]

    def decode_segments(self, latents: Sequence[Latent], length: int) -> Tensor:
        """Decode what `encode_segments` made, fading each segment into the next.

        Args:
            latents: of the segments, in their order.
            length: T of the sound.

        Returns:
            (B, C, T).

        Raises:
            ValueError: a length that these segments do not have.
        """
        expected = range(0, length, self.segment_stride or max(length, 1))
        if not latents or len(latents) != len(expected):
            raise ValueError(
                f"a sound of {length} samples has {len(expected)} segments of this codec, but {len(latents)} were "
                "given; give all of them and the length of the sound that was encoded"
            )
        decoded = (self.decode_latent(latent) for latent in latents)
        audio = torch.cat(list(overlap_add(decoded, stride=self.segment_stride or length)), -1)
        if audio.shape[-1] < length:
            raise ValueError(
                f"the segments make {audio.shape[-1]} samples, fewer than the {length} asked for; give the length of "
                "the sound that was encoded"
            )
        return audio[..., :length]

    def to_bands(self, audio: Tensor) -> Tensor:
        return audio

    def encode_bands(
        self, bands: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        scale = self.loudness(bands)
        if scale is not None:
            bands = bands / scale[..., None]
        latent = self.quantizer(self.encoder(bands), deterministic=deterministic, noise=noise, step=step)
        latent.scale = scale
        return latent

    def decode_bands(self, z: Tensor, phase: int = 2) -> Tensor:
        return self.decoder(z)

    def decode_latent(self, latent: Latent, phase: int = 2) -> Tensor:
        audio = self.decode_bands(latent.z, phase)
        return audio if latent.scale is None else audio * latent.scale[..., None]

    def from_bands(self, bands: Tensor) -> Tensor:
        return bands

    def forward(self, audio: Tensor) -> Tensor:
        """There and back in one piece, as in training: (B, C, T) -> (B, C, T)."""
        return self.decode_latent(self.encode(audio, deterministic=True))

    def receptive_field(self, *, recurrence: bool = True) -> tuple[int, int]:
        """As of every codec; that a normalisation over time hears the whole sound is left out, for it has no end."""
        renormalize, self.renormalize = self.renormalize, False
        normed = [(m, m.norm) for m in self.modules() if isinstance(getattr(m, "norm", None), nn.GroupNorm)]
        for module, _ in normed:
            module.norm = nn.Identity()
        try:
            return super().receptive_field(recurrence=recurrence)
        finally:
            self.renormalize = renormalize
            for module, norm in normed:
                module.norm = norm

    def dequantize(self, codes: Tensor) -> Tensor:
        """(B, K', N) -> (B, D, N), for the first K' codebooks."""
        return self.quantizer.dequantize(codes)

    def enable_streaming(self, delay: int) -> int:
        return self.enable_decoder_streaming(self.enable_encoder_streaming(delay))

    def enable_encoder_streaming(self, delay: int) -> int:
        """Delay in samples -> delay in latent frames."""
        if self.renormalize:
            raise NotStreamable(
                "a model that divides a whole sound by its loudness cannot work block by block; "
                "set CompressionModel.renormalize = False, or play it offline"
            )
        return stream_through(self.encoder, delay, "encoder")

    def enable_decoder_streaming(self, delay: int) -> int:
        """Delay in latent frames -> delay in samples."""
        return stream_through(self.decoder, delay, "decoder")

    def streaming(self) -> tuple["CompressionModel", StreamInfo]:
        """A copy that works on blocks of whole frames, and how it relates to this codec."""
        return streaming(self, self.hop)

    def controls(self, *, fidelity: float = 0.95, size: int | None = None) -> nn.Module:
        """Latents or codes as a plug-in shows them; see rave_tools.codec.controls.

        Args:
            fidelity: share of the latents' variance that the controls carry, where that can be chosen.
            size: exact number of controls instead.
        """
        unknown = torch.zeros(self.latent_dim)
        analysis = [getattr(self, name, unknown) for name in ("latent_pca", "latent_mean", "fidelity")]
        return self.quantizer.controls(*analysis, share=fidelity, size=size)
