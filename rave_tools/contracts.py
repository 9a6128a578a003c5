"""The vocabulary every wing shares: what is passed between them, and nothing else.

Shape legend, used in every docstring of the package:

    B batch · C channels · T samples · D latent dimensions · N latent frames
    K codebooks · S sequence steps · M bands · F frequency bins

Audio is float32 in [-1, 1] and always has three dimensions, (B, C, T).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass
class AudioBatch:
    """A batch of training examples.

    Attributes:
        audio: waveforms in [-1, 1]. Shape (B, C, T).
        padding: True where a sample is padding and not sound. Shape (B, T).
        metadata: one dictionary per row (source file, start in seconds, ...).
    """

    audio: Tensor
    padding: Tensor
    metadata: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Latent:
    """What crosses a bottleneck.

    Attributes:
        z: continuous latents, ready for the decoder. Shape (B, D, N).
        codes: codebook indices for discrete bottlenecks, else None. Shape (B, K, N).
        penalties: named, unweighted scalars (``kl``, ``commitment``, ``mmd``, ...). A beta is the trainer's business.
        scale: what the sound was divided by before it was encoded, else None. Shape (B, 1).
    """

    z: Tensor
    codes: Tensor | None = None
    penalties: dict[str, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None


@dataclass
class Features:
    """What one scale of a discriminator saw.

    Attributes:
        logits: the verdict, any shape.
        maps: intermediate feature maps, first layer first, the logits not among them.
    """

    logits: Tensor
    maps: list[Tensor]


@dataclass
class Reconstruction:
    """What the judges look at: a target, its estimate, and both as the codec's bands.

    Attributes:
        target: (B, C, T).
        estimate: (B, C, T).
        target_bands: the pretransform's view of the target, (B, C*M, T/M); the waveform itself without pretransform.
        estimate_bands: likewise for the estimate.
        receptive_field: samples to the left and right of an output sample that the codec looks at.
        decoded: the decoder's own output, of which the estimate and its bands are made; None where nobody asks.
    """

    target: Tensor
    estimate: Tensor
    target_bands: Tensor
    estimate_bands: Tensor
    receptive_field: tuple[int, int] = (0, 0)
    decoded: Tensor | None = None


class Losses(dict[str, Tensor]):
    """Named, unweighted scalars of one batch, with what a combiner may want to know of them.

    Attributes:
        output: what the decoder gave and the losses judge; None where nothing was decoded.
        parts: batches, accumulated and of all processes, whose mean makes one update.
        scale: what the trainer multiplies losses by before it differentiates them, for half precision's sake.
    """

    def __init__(self, losses: Mapping[str, Tensor], *, output: Tensor | None = None) -> None:
        super().__init__(losses)
        self.output = output
        self.parts = 1
        self.scale = 1.0


@runtime_checkable
class Pretransform(Protocol):
    """An invertible change of representation in front of a network (PQMF, patches, wavelets, a frozen codec)."""

    ratio: int

    def encode(self, audio: Tensor) -> Tensor:
        """(B, C, T) -> (B, C*M, T / ratio)."""

    def decode(self, bands: Tensor) -> Tensor:
        """(B, C*M, T / ratio) -> (B, C, T)."""


@runtime_checkable
class Codec(Protocol):
    """Audio <-> latents, as everything outside the codec wing sees it.

    The facts are derived from the parts; nobody states them twice.
    """

    sample_rate: int
    channels: int
    hop: int
    latent_dim: int
    num_codebooks: int
    codebook_size: int

    def encode(self, audio: Tensor) -> Latent:
        """(B, C, T) -> Latent with z (B, D, T / hop)."""

    def decode(self, z: Tensor) -> Tensor:
        """(B, D, N) -> (B, C, N * hop)."""

    def dequantize(self, codes: Tensor) -> Tensor:
        """(B, K, N) -> (B, D, N)."""


class Discriminator(Protocol):
    """Judges audio at one or several scales."""

    def __call__(self, audio: Tensor) -> list[Features]:
        """(B, C, T) -> one Features per scale."""


class Criterion(Protocol):
    """What is good? Returns named scalars, never weights."""

    def __call__(self, target: Tensor, estimate: Tensor) -> Mapping[str, Tensor]:
        """(B, C, T) x 2 -> {name: scalar}."""


class View(Protocol):
    """The pair that a judge should see: the waveform, the bands, mid/side, the valid crop."""

    def __call__(self, reconstruction: Reconstruction) -> tuple[Tensor, Tensor]:
        """-> (target, estimate)."""


def collate(items: Sequence[tuple[Tensor, int, dict[str, Any]]]) -> AudioBatch:
    """Stack (audio (C, T), valid samples, metadata) items into an AudioBatch."""
    audio = torch.stack([item[0] for item in items])
    valid = torch.tensor([item[1] for item in items])
    padding = torch.arange(audio.shape[-1])[None] >= valid[:, None]
    return AudioBatch(audio, padding, [item[2] for item in items])
