"""The latents of a codec as a prior sees them: what a plug-in shows of them, in both directions."""

from typing import Any

import torch
from torch import Tensor


class LatentSpace:
    """Audio to the controls of a trained codec and back, without gradients.

    Args:
        codec: trained; met through its contract, with ``encode(audio, deterministic=...)`` and ``controls(size=...)``.
        size: D, how many controls. They are ordered, the most telling first.

    Raises:
        ValueError: a codec without continuous latents, or with fewer than that.
    """

    def __init__(self, codec: Any, size: int) -> None:
        if codec.num_codebooks:
            raise ValueError(
                f"this codec has {codec.num_codebooks} codebooks, and a prior over codebook indices is missing here: "
                "the prior quantises continuous latents by itself. Train it on a variational or wasserstein codec"
            )
        if size > codec.latent_dim:
            raise ValueError(
                f"the prior predicts {size} latents and the codec has {codec.latent_dim}; "
                f"set CONTROLS to at most {codec.latent_dim}"
            )
        self.codec = codec
        self.size = size
        self._controls = codec.controls(size=size).to(next(codec.parameters()).device)

    @torch.no_grad()
    def encode(self, audio: Tensor, *, deterministic: bool = False) -> Tensor:
        """Audio to controls: (B, C, T) -> (B, D, T / hop); drawn from the posterior unless deterministic."""
        return self._controls.shown(self.codec.encode(audio, deterministic=deterministic).z)

    @torch.no_grad()
    def to_latents(self, controls: Tensor) -> Tensor:
        """Controls to what the codec decodes, what was cut away drawn at random: (B, D, N) -> (B, all latents, N)."""
        return self._controls.hidden(controls)


@torch.no_grad()
def disagreement(codec: Any, other: Any, size: int) -> float:
    """How differently two codecs see the same sound, as a share of the controls' deviation.

    Two checkpoints of one run, of which the later one has only trained its decoder, agree; so does an average of the
    weights, almost.

    Args:
        codec, other: trained.
        size: how many controls to compare.

    Returns:
        Root mean square of the difference over that of the controls; infinite where they cannot be compared.
    """
    facts = [(c.sample_rate, c.channels, c.hop, c.latent_dim, c.num_codebooks) for c in (codec, other)]
    if facts[0] != facts[1]:
        return float("inf")
    generator = torch.Generator().manual_seed(20)
    frames = 64
    swell = torch.linspace(0, 1, frames * codec.hop)
    audio = 0.3 * swell * torch.randn(1, codec.channels, frames * codec.hop, generator=generator)
    first, second = (LatentSpace(c, size).encode(audio, deterministic=True) for c in (codec, other))
    return float((first - second).square().mean().sqrt() / first.square().mean().sqrt().clamp(min=1e-12))
