"""The latents of a codec as a prior sees them: what a plug-in shows of them, in both directions."""

from typing import Any

import torch
from torch import Tensor


class LatentSpace:
    """Audio to the controls of a trained codec and back, without gradients.

    Args:
        codec: trained; met through its contract, with ``encode(audio, deterministic=...)`` and ``controls(size=...)``.
        size: D, how many controls. They are ordered, the most telling first.

    Attributes:
        discrete: the controls are codebook indices, coarsest codebook first.

    Raises:
        ValueError: a codec with fewer latents than that.
    """

    def __init__(self, codec: Any, size: int) -> None:
        self.discrete = codec.num_codebooks > 0
        there = codec.num_codebooks or codec.latent_dim
        if size > there:
            raise ValueError(
                f"the prior predicts {size} latents and the codec has {there}{' codebooks' if self.discrete else ''}; "
                f"set CONTROLS to at most {there}"
            )
        self.codec = codec
        self.size = size
        self._controls = codec.controls(size=size).to(next(codec.parameters()).device)

    @torch.no_grad()
    def encode(self, audio: Tensor, *, deterministic: bool = False) -> Tensor:
        """Audio to controls: (B, C, T) -> (B, D, T / hop); drawn from the posterior unless deterministic.

        Raises:
            ValueError: codebooks that were never placed.
        """
        latent = self.codec.encode(audio, deterministic=deterministic)
        if not self.discrete:
            return self._controls.shown(latent.z)
        if latent.codes is None:
            raise ValueError("the codec's codebooks were never placed, so it has no codes to predict; train it longer")
        return latent.codes[:, : self.size].to(latent.z.dtype)

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
    names = ("sample_rate", "channels", "hop", "latent_dim", "num_codebooks", "codebook_size")
    facts = [[getattr(c, name) for name in names] for c in (codec, other)]
    if facts[0] != facts[1]:
        return float("inf")
    generator = torch.Generator().manual_seed(20)
    frames = 64
    swell = torch.linspace(0, 1, frames * codec.hop)
    audio = 0.3 * swell * torch.randn(1, codec.channels, frames * codec.hop, generator=generator)
    first, second = (LatentSpace(c, size).encode(audio, deterministic=True) for c in (codec, other))
    return float((first - second).square().mean().sqrt() / first.square().mean().sqrt().clamp(min=1e-12))
