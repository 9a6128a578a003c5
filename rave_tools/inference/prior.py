"""A prior let loose: latents drawn one after the other, through the streaming decoder, in bounded memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.generative.latent_prior import LatentPrior
from rave_tools.generative.latent_space import LatentSpace
from rave_tools.nn.conv import fold_weight_norm
from rave_tools.nn.streaming import streaming

FRAMES = 16
"""Latent frames that are drawn and decoded at once."""


@torch.inference_mode()
def dream(
    prior: LatentPrior, codec: Autoencoder, *, samples: int, temperature: float = 1.0, device: str = "cpu"
) -> Iterator[Tensor]:
    """Sound from nothing.

    Random numbers come from torch's generator, so a seed set before makes the same sound again.

    Args:
        prior: trained on the latents of the codec.
        codec: trained; it stays as it is.
        samples: how many, at the codec's rate.
        temperature: 1 draws as the prior believes, 0 takes the most probable latents; what the prior leaves out is
            drawn at random in both cases.
        device: where to compute.

    Yields:
        Blocks (1, C, n), n samples in all.
    """
    twin, info = streaming(codec, codec.hop)
    twin = fold_weight_norm(twin).requires_grad_(False).to(device)
    space = LatentSpace(twin, prior.latent_size)
    sampler = prior.sampler().to(device)
    state = sampler.silence(1)
    # Latents that wait for the others, and the decoder's own delay, are no part of the sound.
    late = sampler.delay * codec.hop + info.latency
    made = 0
    while made < late + samples:
        noise = torch.rand(1, prior.latent_size, FRAMES, device=device)
        warmth = torch.full((1, 1, FRAMES), temperature, device=device)
        controls, state = sampler(warmth, noise, state)
        audio = twin.decode(space.to_latents(controls)).cpu()
        start, end = max(0, late - made), min(audio.shape[-1], late + samples - made)
        made += audio.shape[-1]
        if start < end:
            yield audio[..., start:end]
