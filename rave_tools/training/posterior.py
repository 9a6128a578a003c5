"""What a bottleneck carries, measured on sound: divergence per latent, active latents, principal axes, codes in use."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.training.latents import LatentAnalysis, analyse

ACTIVE_VARIANCE = 0.01
"""A latent whose mean varies less than this over the data is inactive (Burda, Grosse and Salakhutdinov, "Importance
weighted autoencoders", 2016, section 4.2)."""

STILL = 1e-6
"""Without a prior, which sets a scale, a latent is dead whose variance is below this share of the largest one."""

DEAD_KL = 0.02
"""A latent whose divergence is below this carries nothing: twice the nats per frame, as RAVE's penalty counts them."""


@dataclass(frozen=True)
class Posterior:
    """The latents of some sound.

    Attributes:
        frames: that were looked at.
        variance: of each latent's mean over the frames. Shape (D,).
        divergence: of each latent from a standard normal, without the factor 1/2, as RAVE's penalty ``kl`` has it; None
            where the bottleneck draws nothing. Shape (D,).
        analysis: principal axes of the means.
        entries_used: of each codebook; empty for continuous bottlenecks.
        perplexity: exponential of the entropy of each codebook's use, likewise.
    """

    frames: int
    variance: Tensor
    divergence: Tensor | None
    analysis: LatentAnalysis
    entries_used: tuple[int, ...] = ()
    perplexity: tuple[float, ...] = ()

    @property
    def dead(self) -> list[int]:
        """Latents that say nothing about the sound: their posterior is the prior, or their mean does not move."""
        if self.divergence is None:
            dead = self.variance <= STILL * self.variance.max()
        else:
            dead = (self.variance < ACTIVE_VARIANCE) | (self.divergence < DEAD_KL)
        return [int(index) for index in torch.nonzero(dead).flatten()]


@torch.no_grad()
def measure_posterior(codec: Autoencoder, sound: Iterable[Tensor]) -> Posterior:
    """Encode some sound and look at what comes out.

    The scale of the posterior is the difference between the latents for a noise of ones and for a noise of zeros, so
    that any bottleneck is asked through its contract.

    Args:
        codec: in evaluation mode.
        sound: batches of shape (B, C, T), T a whole number of frames.

    Raises:
        ValueError: no sound, or latents that are not finite.
    """
    means, scales, codes = [], [], []
    for audio in sound:
        latent = codec.encode(audio, deterministic=True)
        means.append(_rows(latent.z))
        if latent.codes is not None:
            codes.append(latent.codes.transpose(0, 1).flatten(1))
            continue
        shape = (audio.shape[0], codec.latent_dim, audio.shape[-1] // codec.hop)
        ends = [codec.encode(audio, noise=torch.full(shape, end)).z for end in (0.0, 1.0)]
        scales.append(_rows(ends[1] - ends[0]))
    if not means:
        raise ValueError("there is no sound to measure the latents on")
    mean = torch.cat(means).double()
    analysis = analyse(mean.float())
    divergence = None
    if scales and bool((scale := torch.cat(scales).double().abs()).any()):
        variance = scale.square().clamp(min=1e-12)
        divergence = (mean.square() + variance - variance.log() - 1).mean(0).float()
    used, perplexity = _use(torch.cat(codes, 1), codec.codebook_size) if codes else ((), ())
    return Posterior(len(mean), mean.var(0, unbiased=False).float(), divergence, analysis, used, perplexity)


def _rows(z: Tensor) -> Tensor:
    """(B, D, N) -> (B * N, D)."""
    return z.float().transpose(1, 2).flatten(0, 1)


def _use(codes: Tensor, size: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """How many entries each codebook uses, and how evenly. Codes of shape (K, frames)."""
    used, perplexity = [], []
    for book in codes:
        share = torch.bincount(book.flatten().long(), minlength=size).double()
        share = share[share > 0] / share.sum()
        used.append(len(share))
        perplexity.append(float(torch.exp(-(share * share.log()).sum())))
    return tuple(used), tuple(perplexity)
