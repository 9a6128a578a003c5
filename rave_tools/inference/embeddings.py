"""What a Frechet distance is measured in: vectors that stand for stretches of sound."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.criteria.measures import Undefined
from rave_tools.data.audio_io import resample
from rave_tools.dsp import spectral
from rave_tools.errors import UserError
from rave_tools.inference.exported import load, rate_of

WINDOW, HOP, BANDS = 2048, 1024, 64
FLOOR = 1e-5


@dataclass(frozen=True)
class Embedding:
    """A function of sound, and its name, without which its scores mean nothing.

    Attributes:
        name: printed with every score.
        rate: in hertz, that it hears at.
        embed: (B, 1, T) -> (N, D).
    """

    name: str
    rate: int
    embed: Callable[[Tensor], Tensor]

    def __call__(self, sound: Tensor, rate: int) -> Tensor:
        """Channels, each by itself: (C, n) at a rate -> (N, D).

        Raises:
            Undefined: too short for one vector.
        """
        audio = resample(np.ascontiguousarray(sound.float().cpu().numpy()), rate, self.rate)
        return self.embed(torch.from_numpy(audio)[:, None])


def log_mel(rate: int) -> Embedding:
    """Log-mel frames: needs no download and belongs to no codec; hears timbre, not time.

    Args:
        rate: in hertz.
    """
    filters = spectral.mel_filters(rate, WINDOW, BANDS)

    def embed(x: Tensor) -> Tensor:
        if x.shape[-1] < WINDOW:
            raise Undefined(f"too short (under {WINDOW} samples)")
        spectrum = spectral.stft(x[:, 0], WINDOW, hop=HOP, center=False).abs()
        mels = (filters @ spectrum).clamp_min(FLOOR).log10()
        return mels.transpose(-1, -2).flatten(0, -2)

    return Embedding(f"log-mel frames ({BANDS} bands, {WINDOW} samples, hop {HOP}, {rate} Hz)", rate, embed)


def latents(codec: Autoencoder, name: str, *, device: str = "cpu") -> Embedding:
    """Latent frames of a trained codec; a mono channel is given to all channels of a codec with more.

    Args:
        codec: trained.
        name: of the run.
        device: where to compute.
    """
    codec = codec.to(device).eval()

    @torch.inference_mode()
    def embed(x: Tensor) -> Tensor:
        whole = x.shape[-1] // codec.hop * codec.hop
        if not whole:
            raise Undefined(f"too short (under {codec.hop} samples)")
        z = codec.encode(x[..., :whole].expand(-1, codec.channels, -1).to(device), deterministic=True).z
        return z.transpose(1, 2).flatten(0, 1).cpu()

    return Embedding(f"latents of {name} ({codec.latent_dim} dimensions)", codec.sample_rate, embed)


def exported(path: Path, *, rate: int | None = None, device: str = "cpu") -> Embedding:
    """A TorchScript module (B, 1, T) -> (B, D) or (B, D, N).

    Args:
        path: the file.
        rate: in hertz, if the module does not say it by an attribute ``sample_rate``, ``sampling_rate`` or ``sr``.
        device: where to compute.

    Raises:
        UserError: it cannot be loaded, or does not say its rate.
    """
    module = load(path, device)
    rate = rate_of(module) or rate
    if rate is None:
        raise UserError(f"{path} does not say its sample rate; give it with --embedding_rate")

    @torch.inference_mode()
    def embed(x: Tensor) -> Tensor:
        try:
            vectors = module(x.to(device))
        except RuntimeError as error:
            raise Undefined(f"the embedding failed: {str(error).strip().splitlines()[-1]}") from error
        if not isinstance(vectors, Tensor) or vectors.ndim not in (2, 3) or vectors.shape[0] != x.shape[0]:
            raise UserError(
                f"{path} is no embedding: of {tuple(x.shape)} it made "
                f"{tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__}, "
                "not (batch, dimensions) or (batch, dimensions, frames)"
            )
        return (vectors if vectors.ndim == 2 else vectors.transpose(1, 2).flatten(0, 1)).float().cpu()

    return Embedding(f"{path.name} ({rate} Hz)", rate, embed)
