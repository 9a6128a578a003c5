"""Descript's bottleneck: residual codebooks of few dimensions that learn by gradients, compared by their directions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.codec.bottlenecks.quantization import Usage, over_processes, straight_through
from rave_tools.codec.bottlenecks.residual import FirstCodebooks, VariableCodebooks
from rave_tools.codec.controls import CodeControls
from rave_tools.contracts import Latent
from rave_tools.nn.conv import Conv1d


class FactorizedCodebook(nn.Module):
    """A codebook in a space of its own, with a way there and back.

    Args:
        input_dim: D of the latents.
        codebook_size: S.
        codebook_dim: of the codes.

    Attributes:
        usage: of the codes, for the logs.
    """

    def __init__(self, input_dim: int, codebook_size: int, *, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = Conv1d(input_dim, codebook_dim, 1, weight_norm=True)
        self.out_proj = Conv1d(codebook_dim, input_dim, 1, weight_norm=True)
        for projection in (self.in_proj, self.out_proj):
            nn.init.zeros_(projection.bias)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)
        self.usage = Usage(codebook_size)

    def choose(self, latents: Tensor) -> Tensor:
        """Codes whose directions are closest: (B, codebook_dim, N) -> (B, N)."""
        # Both have length 1, so the closest has the largest cosine.
        directions = F.normalize(latents, dim=1).transpose(1, 2)
        return (directions @ F.normalize(self.codebook.weight).T).argmax(-1)

    def look_up(self, codes: Tensor) -> Tensor:
        """Codes as they are, not their directions: (B, N) -> (B, codebook_dim, N)."""
        return self.codebook(codes).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, N) -> (B, D, N)."""
        return self.out_proj(self.look_up(codes))

    def table(self) -> Tensor:
        """What each code stands for: (S, D)."""
        return self.out_proj(self.codebook.weight.T[None])[0].T

    def forward(self, rest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantise.

        Args:
            rest: shape (B, D, N).

        Returns:
            What was chosen (B, D, N), whose gradient goes straight through; its codes (B, N); how far the latents are
            from the codes (the encoder's fault), and the codes from the latents (the codebook's), mean squares of each
            item (B,).
        """
        latents = self.in_proj(rest)
        codes = self.choose(latents.detach())
        chosen = self.look_up(codes)
        commitment = (latents - chosen.detach()).square().mean((1, 2))
        distance = (chosen - latents.detach()).square().mean((1, 2))
        return self.out_proj(straight_through(latents, chosen.detach())), codes, commitment, distance

    @torch.no_grad()
    def count(self, codes: Tensor) -> None:
        """Remember what a batch chose (B, N)."""
        counts = torch.zeros_like(self.usage.recent)
        counts.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten(), dtype=counts.dtype))
        self.usage.count(over_processes(counts))


class FactorizedResidualVQ(VariableCodebooks):
    """Residual vector quantisation in few dimensions, with directions compared.

    Penalties ``commitment`` and ``codebook`` are means over latents and items, summed over the codebooks.

    Args:
        input_dim: D.
        n_codebooks: K.
        codebook_size: S.
        codebook_dim: of the codes; one number for all codebooks or one for each.
        quantizer_dropout: share of a batch's items, the first ones, that use a number of codebooks drawn for each in
            training: of `dropout_codebooks` where there are some, else from 1 to n.

    Source: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", 2023, sections 3.2 and 3.3.
    """

    def __init__(
        self,
        input_dim: int = 512,
        n_codebooks: int = 9,
        *,
        codebook_size: int = 1024,
        codebook_dim: int | Sequence[int] = 8,
        quantizer_dropout: float = 0.0,
    ) -> None:
        super().__init__(input_dim, n_codebooks, codebook_size)
        sizes = [codebook_dim] * n_codebooks if isinstance(codebook_dim, int) else list(codebook_dim)
        if len(sizes) != n_codebooks:
            raise ValueError(
                f"codebook_dim has {len(sizes)} numbers for {n_codebooks} codebooks; give "
                "FactorizedResidualVQ.codebook_dim one number, or one for each"
            )
        if not 0 <= quantizer_dropout <= 1:
            raise ValueError(
                f"FactorizedResidualVQ.quantizer_dropout is {quantizer_dropout}; it is a share between 0 and 1"
            )
        self.quantizer_dropout = float(quantizer_dropout)
        self.quantizers = nn.ModuleList(
            FactorizedCodebook(input_dim, codebook_size, codebook_dim=size) for size in sizes
        )

    def forward(
        self, h: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """(B, D, N) -> Latent with z, codes of the codebooks in use, and penalties."""
        h = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
        with torch.autocast(h.device.type, enabled=False):
            dropout = self.training and not deterministic
            numbers = self._draw_levels(h.shape[0]).to(h.device) if dropout else None
            rest, total = h, torch.zeros_like(h)
            codes, penalties = [], torch.zeros(2, device=h.device)
            for level, quantizer in enumerate(self.quantizers[: self.num_codebooks]):
                chosen, choice, commitment, distance = quantizer(rest)
                rest = rest - chosen
                distances = torch.stack([commitment, distance])
                if numbers is not None:
                    heard = level < numbers
                    chosen, distances = chosen * heard[:, None, None], distances * heard
                if self.training and torch.is_grad_enabled():
                    quantizer.count(choice)
                total = total + chosen
                penalties = penalties + distances.mean(1)
                codes.append(choice)
        return Latent(total, torch.stack(codes, 1), {"commitment": penalties[0], "codebook": penalties[1]})

    def _draw_levels(self, items: int) -> Tensor:
        """How many codebooks each item uses (items,)."""
        numbers = torch.full((items,), self.num_codebooks)
        dropped = int(items * self.quantizer_dropout)
        choices = [n for n in self.dropout_codebooks if n <= self.num_codebooks] or range(1, self.num_codebooks + 1)
        drawn = torch.tensor(list(choices))[torch.randint(0, len(choices), (items,))]
        return torch.cat([drawn[:dropped], numbers[dropped:]])

    def encode(self, h: Tensor, levels: int | None = None) -> Tensor:
        rest, codes = h.float(), []
        for quantizer in self.quantizers[: self.num_codebooks if levels is None else levels]:
            codes.append(quantizer.choose(quantizer.in_proj(rest)))
            rest = rest - quantizer.decode(codes[-1])
        return torch.stack(codes, 1)

    def dequantize(self, codes: Tensor) -> Tensor:
        """(B, K', N) -> (B, D, N), for the first K' codebooks."""
        self.check_codes(codes)
        first, *others = codes.unbind(1)
        total = self.quantizers[0].decode(first)
        for quantizer, choice in zip(self.quantizers[1:], others, strict=False):
            total = total + quantizer.decode(choice)
        return total

    def statistics(self) -> dict[str, Tensor]:
        """How well the codebooks in use are used of late: ``perplexity_1``, ``used_1``, ...

        Scalars on their device; see Usage.statistics. Nothing is ever replaced here.
        """
        return {
            f"{name}_{number}": value
            for number, quantizer in enumerate(self.quantizers[: self.num_codebooks], 1)
            for name, value in quantizer.usage.statistics().items()
            if name != "replaced"
        }

    @torch.no_grad()
    def controls(
        self, components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None
    ) -> nn.Module:
        """Codes as signals, by default of the codebooks in use."""
        tables = torch.stack([quantizer.table() for quantizer in self.quantizers])
        number = self.num_codebooks if size is None else size
        return CodeControls(FirstCodebooks(self, number), tables, number)
