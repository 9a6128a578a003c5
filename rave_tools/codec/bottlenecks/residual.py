"""EnCodec's and AudioCraft's bottleneck: residual codebooks that follow their vectors, as many of them as one wants."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rave_tools.codec.bottlenecks.latent import LatentBottleneck
from rave_tools.codec.bottlenecks.quantization import (
    Expiry,
    ResidualVectorQuantization,
    from_first_process,
    in_company,
    to_codes,
    to_latents,
    to_vectors,
)
from rave_tools.codec.controls import CodeControls
from rave_tools.contracts import Latent


class VariableCodebooks(LatentBottleneck):
    """A bottleneck of K codebooks of which the first n are in use, and decode by themselves.

    Args:
        dim: D.
        total: K.
        codebook_size: S.

    Attributes:
        total_codebooks: K.
        dropout_codebooks: numbers of codebooks that training draws from; empty for any number from 1 to n.
    """

    discrete = True

    def __init__(self, dim: int, total: int, codebook_size: int) -> None:
        super().__init__(dim)
        if total < 1 or codebook_size < 1:
            raise ValueError(
                f"{type(self).__name__} needs at least one codebook of one code, got {total} of {codebook_size}; "
                "mend NUM_QUANTIZERS and CODEBOOK_SIZE"
            )
        self.total_codebooks = total
        self.codebook_size = codebook_size
        self.dropout_codebooks: tuple[int, ...] = ()
        self._in_use = total

    @property
    def num_codebooks(self) -> int:  # type: ignore[override]
        """How many are in use."""
        return self._in_use

    def set_num_codebooks(self, number: int) -> None:
        """Use the first so many codebooks.

        Raises:
            ValueError: a number that is not between 1 and K.
        """
        if not 1 <= number <= self.total_codebooks:
            raise ValueError(
                f"{number} codebooks were asked for, but this model has {self.total_codebooks}; choose between 1 and "
                f"{self.total_codebooks}"
            )
        self._in_use = number

    def set_dropout_codebooks(self, numbers: Sequence[int]) -> None:
        """Let quantiser dropout draw from these numbers of codebooks.

        Raises:
            ValueError: numbers that are not between 1 and K.
        """
        if wrong := [n for n in numbers if not 1 <= n <= self.total_codebooks]:
            raise ValueError(
                f"quantiser dropout to {', '.join(map(str, wrong))} codebooks, but there are {self.total_codebooks}; "
                "mend the bandwidths or NUM_QUANTIZERS"
            )
        self.dropout_codebooks = tuple(numbers)

    def check_codes(self, codes: Tensor) -> None:
        """Refuse codes that are not (B, K', N) with 1 <= K' <= K, or not among the S codes."""
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= self.total_codebooks:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)}; this model reads (batch, codebooks, frames) with 1 to "
                f"{self.total_codebooks} codebooks"
            )

    def encode(self, h: Tensor, levels: int | None = None) -> Tensor:
        """Latents to codes: (B, D, N) -> (B, K', N).

        Args:
            h: latents before the codebooks.
            levels: K', the first codebooks; by default those in use.
        """
        raise NotImplementedError

    def sample(self, h: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Latents before the codebooks, which belong to the controls: (B, D, N) -> (B, D, N)."""
        return h.clone()


class FirstCodebooks(nn.Module):
    """What encodes with the first codebooks of a bottleneck, whatever number is in use.

    Args:
        bottleneck: of the codebooks.
        number: of them.
    """

    def __init__(self, bottleneck: VariableCodebooks, number: int) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.number = number

    def encode(self, h: Tensor) -> Tensor:
        """(B, D, N) -> (B, number, N)."""
        return self.bottleneck.encode(h, self.number)


class ResidualVectorQuantizer(VariableCodebooks):
    """Residual vector quantisation by codebooks that follow their vectors; arguments and keys are AudioCraft's.

    The codebooks are placed by k-means in the first update, each on what the ones before leave, and follow in every
    update of the encoder: in training mode, with gradients. Until they are placed latents pass as they are, without
    codes.

    The penalty ``commitment`` is the mean over the codebooks in use, ``orthogonality`` (where it has a weight) too.

    Args:
        dimension: D.
        n_q: K.
        q_dropout: in training, use a number of codebooks drawn for each batch: of `dropout_codebooks` where there are
            some (the paper: those of the bandwidths; CompressionModel.bandwidths says them), else from 1 to n
            (AudioCraft). Drawn from torch's generator, the first process's number in all of them.
        bins: S.
        decay: weight of the past in the running counts and sums.
        kmeans_init: place the codebooks by k-means.
        kmeans_iters: iterations of that.
        threshold_ema_dead_code: for the expiries ``count`` and ``encodec``; the default one judges by `usage_ratio`.
        expiry, usage_ratio, revived_usage, check_every: see EuclideanCodebook.
        orthogonal_reg_weight: weight of how parallel the codes are. As in AudioCraft: codes that follow running means
            have no gradient, so it is a number in the logs and moves nothing.
        orthogonal_reg_active_codes_only: count only codes that the batch chose.
        orthogonal_reg_max_codes: count that many codes at most, drawn at random.
        codebook_dim: project the latents to codes of that size; with D, or None, there are no projections.
        first_level_commits: only the first codebook's commitment reaches the encoder, as in Meta's encodec package.

    Source: Zeghidour et al., "SoundStream", 2021, section III-C; Défossez et al., "High Fidelity Neural Audio
    Compression", 2022, section 3.2.
    """

    def __init__(
        self,
        dimension: int = 128,
        n_q: int = 8,
        *,
        q_dropout: bool = False,
        bins: int = 1024,
        decay: float = 0.99,
        kmeans_init: bool = True,
        kmeans_iters: int = 10,
        threshold_ema_dead_code: float = 2,
        expiry: Expiry = "usage",
        usage_ratio: float = 0.1,
        revived_usage: float = 0.15,
        check_every: int = 5,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_dim: int | None = None,
        first_level_commits: bool = False,
    ) -> None:
        super().__init__(dimension, n_q, bins)
        self.q_dropout = q_dropout
        self.orthogonal_weight = orthogonal_reg_weight
        self.orthogonal_active_only = orthogonal_reg_active_codes_only
        self.orthogonal_max_codes = orthogonal_reg_max_codes
        self.first_level_commits = first_level_commits
        self.vq = ResidualVectorQuantization(
            n_q,
            dimension,
            bins,
            codebook_dim=codebook_dim,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            decay=decay,
            threshold_ema_dead_code=threshold_ema_dead_code,
            expiry=expiry,
            usage_ratio=usage_ratio,
            revived_usage=revived_usage,
            check_every=check_every,
        )

    @property
    def placed(self) -> bool:
        """Whether the first codebook stands for something that was heard; the others are placed with it."""
        return bool(self.vq.layers[0].codebook.inited.all())

    def forward(
        self, h: Tensor, *, deterministic: bool = False, noise: Tensor | None = None, step: int | None = None
    ) -> Latent:
        """(B, D, N) -> Latent with z and codes of the codebooks in use; the codebooks follow in training."""
        h = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
        learn = self.training and torch.is_grad_enabled()
        if not (learn or self.placed):
            return Latent(h, penalties=dict.fromkeys(self._penalties(), h.new_zeros(())))
        with torch.autocast(h.device.type, enabled=False):
            vectors = to_vectors(h)
            # A discriminator, in whose turn nothing is learned here, hears the same numbers of codebooks.
            dropout = self.q_dropout and self.training and not deterministic
            levels = self._draw_levels(h.device) if dropout else self.num_codebooks
            if learn and self.vq.expiry != "encodec":
                self.vq.begin(vectors.detach())
            found = self.vq.quantize(
                vectors,
                learn=learn,
                levels=levels,
                step=step,
                first_alone=self.first_level_commits,
                watch=self._orthogonality if self.orthogonal_weight else None,
            )
            penalties = [found.commitments.mean()]
            if self.orthogonal_weight:
                penalties.append(found.watched.mean())
        return Latent(
            to_latents(found.vectors, h),
            to_codes(found.indices, h),
            dict(zip(self._penalties(), penalties, strict=True)),
        )

    def _penalties(self) -> list[str]:
        return ["commitment", "orthogonality"] if self.orthogonal_weight else ["commitment"]

    def _draw_levels(self, device: torch.device) -> int:
        """How many codebooks a batch uses, the same in all processes."""
        choices = [n for n in self.dropout_codebooks if n <= self.num_codebooks] or range(1, self.num_codebooks + 1)
        drawn = torch.randint(0, len(choices), (1,))
        return choices[int(from_first_process(drawn.to(device)) if in_company() else drawn)]

    def _orthogonality(self, codes: Tensor, indices: Tensor) -> Tensor:
        """Mean squared difference of the codes' cosines from the identity (arXiv 2112.00384, eq. 2), weighted."""
        if self.orthogonal_active_only:
            codes = codes[indices.unique()]
        if self.orthogonal_max_codes is not None and len(codes) > self.orthogonal_max_codes:
            codes = codes[torch.randperm(len(codes), device=codes.device)[: self.orthogonal_max_codes]]
        directions = F.normalize(codes, dim=-1)
        cosines = directions @ directions.T
        return self.orthogonal_weight * (cosines - torch.eye(len(codes), device=codes.device)).square().mean()

    def encode(self, h: Tensor, levels: int | None = None) -> Tensor:
        return self.vq.encode(h.float(), self.num_codebooks if levels is None else levels)

    def dequantize(self, codes: Tensor) -> Tensor:
        """(B, K', N) -> (B, D, N), for the first K' codebooks."""
        self.check_codes(codes)
        return self.vq.decode(codes)

    def statistics(self) -> dict[str, Tensor]:
        """How well the codebooks in use are used of late: ``perplexity_1``, ``used_1``, ``replaced_1``, ...

        Scalars on their device; see Usage.statistics.
        """
        return {
            f"{name}_{number}": value
            for number, layer in enumerate(self.vq.layers[: self.num_codebooks], 1)
            for name, value in layer.codebook.usage.statistics().items()
        }

    def controls(
        self, components: Tensor, mean: Tensor, fidelity: Tensor, *, share: float, size: int | None
    ) -> nn.Module:
        """Codes as signals, by default of the codebooks in use."""
        caution = ""
        if not self.placed:
            caution = "the codebooks of this run were never placed, so its codes mean nothing; train longer"
        number = self.num_codebooks if size is None else size
        return CodeControls(FirstCodebooks(self, number), self.vq.tables().detach(), number, caution=caution)
