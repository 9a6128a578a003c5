"""A discrete codec in a few lines, with everything that a prior asks of one."""

import torch
from torch import Tensor, nn

from rave_tools.contracts import Latent

HOP, CODEBOOKS = 8, 3


class Digits(nn.Module):
    """Controls: what the digits of a number stand for."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.base = base

    def hidden(self, codes: Tensor) -> Tensor:
        weights = self.base ** -torch.arange(1.0, codes.shape[1] + 1)
        return torch.einsum("bkn,k->bn", codes, weights).unsqueeze(1)


class CodeCodec(nn.Module):
    """A frame is its mean between 0 and 1, in so many digits of base `size`.

    Args:
        size: of a codebook.
        placed: whether there are codes at all.
    """

    sample_rate, channels, hop, latent_dim, num_codebooks = 8000, 1, HOP, 1, CODEBOOKS

    def __init__(self, *, size: int = 8, placed: bool = True) -> None:
        super().__init__()
        self.codebook_size = size
        self.placed = placed
        self.encoder = self.decoder = nn.Linear(1, 1)

    def encode(self, audio: Tensor, *, deterministic: bool = False) -> Latent:
        rest = (audio.unflatten(-1, (-1, HOP)).mean((1, 3)) + 1) / 2
        if not self.placed:
            return Latent(rest.unsqueeze(1))
        digits = []
        for _ in range(CODEBOOKS):
            digits.append((rest * self.codebook_size).floor().clamp(0, self.codebook_size - 1))
            rest = rest * self.codebook_size - digits[-1]
        codes = torch.stack(digits, 1)
        return Latent(self.controls(size=CODEBOOKS).hidden(codes), codes.long())

    def decode(self, z: Tensor) -> Tensor:
        return (2 * z - 1).repeat_interleave(HOP, -1)

    def controls(self, *, size: int) -> Digits:
        return Digits(self.codebook_size)
