"""Residual vector quantisation with codebooks that follow their vectors (SoundStream, arXiv 2107.03312, sec. III-C)."""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

ROWS_AT_ONCE = 8192
"""Vectors compared with a codebook at once while it is made: 32 MB for 1,024 codes."""


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the closest code.

    Args:
        vectors: shape (n, D).
        codes: shape (S, D).

    Returns:
        Shape (n,).
    """
    # |x - e|^2 without |x|^2, which is the same for all codes.
    return torch.argmin(codes.square().sum(1) - 2 * vectors @ codes.T, dim=1)


def draw(vectors: Tensor, number: int) -> Tensor:
    """Vectors at random, each at most once if there are enough: (n, D) -> (number, D)."""
    rows = vectors.shape[0]
    if rows >= number:
        return vectors[torch.randperm(rows, device=vectors.device)[:number]]
    return vectors[torch.randint(rows, (number,), device=vectors.device)]


def sums_by_code(vectors: Tensor, indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many vectors chose each code, and their sum.

    Args:
        vectors: shape (n, D).
        indices: shape (n,).
        size: number of codes S.

    Returns:
        Shapes (S,) and (S, D).
    """
    counts = torch.zeros(size, dtype=vectors.dtype, device=vectors.device)
    sums = torch.zeros(size, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    counts.index_add_(0, indices, torch.ones_like(vectors[:, 0]))
    sums.index_add_(0, indices, vectors)
    return counts, sums


def kmeans(vectors: Tensor, clusters: int, *, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from vectors drawn at random; a centre that nobody chooses stays where it is.

    Args:
        vectors: shape (n, D).
        clusters: S.
        iterations: of assigning and averaging.

    Returns:
        Centres (S, D) and how many vectors chose each in the last assignment (S,).
    """
    centres = draw(vectors, clusters)
    counts = torch.zeros(clusters, dtype=vectors.dtype, device=vectors.device)
    for _ in range(iterations):
        indices = torch.cat([nearest(rows, centres) for rows in vectors.split(ROWS_AT_ONCE)])
        counts, sums = sums_by_code(vectors, indices, clusters)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return centres, counts


def from_first_process(tensor: Tensor) -> Tensor:
    """The first process's numbers, in every process."""
    if distributed.is_available() and distributed.is_initialized():
        tensor = tensor.contiguous()
        distributed.broadcast(tensor, 0)
    return tensor


def over_processes(tensor: Tensor) -> Tensor:
    """The sum over all processes, in every process."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


class EuclideanCodebook(nn.Module):
    """Vectors that stand for their neighbourhoods; each moves to the running mean of what it stood for.

    Two defects of the implementation that RAVE and EnCodec share are absent: the sums begin as means times counts (not
    as means, which shrink by the count at the first update), and a revived code is given a sum and a count as well (or
    the next line of the update would undo it).

    Args:
        dim: D.
        codebook_size: S.
        kmeans_init: begin with the cluster centres of the first batch.
        kmeans_iters: iterations of that.
        decay: weight of the past in the running counts and sums.
        epsilon: counts are smoothed by it.
        threshold_ema_dead_code: a code whose running count falls below is moved to a vector of the batch; 0 for never.

    Attributes:
        inited: 1 once the codes stand for something that was heard.
    """

    inited: Tensor
    cluster_size: Tensor
    embed: Tensor
    embed_avg: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        kmeans_init: bool = True,
        kmeans_iters: int = 50,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        threshold_ema_dead_code: float = 2,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.kmeans_iters = kmeans_iters
        self.decay = decay
        self.epsilon = epsilon
        self.threshold = threshold_ema_dead_code
        embed = nn.init.kaiming_uniform_(torch.empty(codebook_size, dim))
        self.register_buffer("inited", torch.tensor([float(not kmeans_init)]))
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", embed.clone())

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, D) -> indices (n,)."""
        return nearest(vectors, self.embed)

    def decode(self, indices: Tensor) -> Tensor:
        """(..., ) -> (..., D)."""
        return F.embedding(indices, self.embed)

    @torch.no_grad()
    def begin(self, vectors: Tensor) -> None:
        """Place the codes among the vectors of a first batch, unless they have a place."""
        if bool(self.inited.all()):
            return
        centres, counts = kmeans(vectors, self.codebook_size, iterations=self.kmeans_iters)
        self.embed.copy_(from_first_process(centres))
        self.cluster_size.copy_(from_first_process(counts))
        self.embed_avg.copy_(self.embed * self.cluster_size[:, None])
        self.inited.fill_(1)

    @torch.no_grad()
    def follow(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the codes towards what they stood for in a batch, and the useless ones elsewhere.

        Args:
            vectors: shape (n, D).
            indices: what `encode` answered to them. Shape (n,).
        """
        counts, sums = sums_by_code(vectors, indices, self.codebook_size)
        self.cluster_size.lerp_(over_processes(counts), 1 - self.decay)
        self.embed_avg.lerp_(over_processes(sums), 1 - self.decay)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.epsilon) / (total + self.codebook_size * self.epsilon) * total
        self.embed.copy_(self.embed_avg / smoothed[:, None])
        dead = self.cluster_size < self.threshold
        if not bool(dead.any()):
            return
        fresh = from_first_process(draw(vectors, self.codebook_size))
        self.embed.copy_(torch.where(dead[:, None], fresh, self.embed))
        self.embed_avg.copy_(torch.where(dead[:, None], fresh * self.threshold, self.embed_avg))
        self.cluster_size.masked_fill_(dead, self.threshold)


class VectorQuantization(nn.Module):
    """One codebook, under the name that checkpoints have for it.

    Args:
        codebook: the codes.
    """

    def __init__(self, codebook: EuclideanCodebook) -> None:
        super().__init__()
        self._codebook = codebook

    @property
    def codebook(self) -> EuclideanCodebook:
        """The codes."""
        return self._codebook

    def quantize(self, vectors: Tensor, *, learn: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Choose codes, and let the codebook follow.

        Args:
            vectors: shape (n, D).
            learn: whether the codebook begins, or moves.

        Returns:
            The codes themselves (n, D), without gradient; indices (n,); the squared distance of a vector from its code,
            averaged, whose gradient reaches the vectors.
        """
        heard = vectors.detach()
        if learn:
            self.codebook.begin(heard)
        indices = self.codebook.encode(heard)
        chosen = self.codebook.decode(indices)
        if learn:
            self.codebook.follow(heard, indices)
        return chosen, indices, F.mse_loss(vectors, chosen)


class ResidualVectorQuantization(nn.Module):
    """Codebooks in a row, each for what the ones before left over.

    Every codebook's commitment reaches the encoder: what is left over is computed from detached codes (in acids-rave,
    from straight-through ones, whose gradient cancels, so that only the first codebook's does).

    Args:
        num_quantizers: K.
        dim: D.
        codebook_size: S.
        kmeans_init, kmeans_iters, decay, epsilon, threshold_ema_dead_code: see EuclideanCodebook.
    """

    def __init__(
        self,
        num_quantizers: int,
        dim: int,
        codebook_size: int,
        *,
        kmeans_init: bool = True,
        kmeans_iters: int = 50,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        threshold_ema_dead_code: float = 2,
    ) -> None:
        super().__init__()
        self.num_quantizers = num_quantizers
        self.dim = dim
        self.codebook_size = codebook_size
        self.layers = nn.ModuleList(
            VectorQuantization(
                EuclideanCodebook(
                    dim,
                    codebook_size,
                    kmeans_init=kmeans_init,
                    kmeans_iters=kmeans_iters,
                    decay=decay,
                    epsilon=epsilon,
                    threshold_ema_dead_code=threshold_ema_dead_code,
                )
            )
            for _ in range(num_quantizers)
        )

    @property
    def ready(self) -> bool:
        """Whether every codebook stands for something that was heard."""
        return all(bool(layer.codebook.inited.all()) for layer in self.layers)

    def forward(self, z: Tensor, *, learn: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise.

        Args:
            z: shape (B, D, N).
            learn: whether the codebooks move.

        Returns:
            Quantised latents whose gradient goes straight through (B, D, N); codes (B, K, N); the commitment, summed
            over codebooks.
        """
        rows, _, frames = z.shape
        vectors = z.transpose(1, 2).reshape(rows * frames, self.dim)
        rest, total = vectors, torch.zeros_like(vectors)
        codes, commitments = [], []
        for layer in self.layers:
            chosen, indices, commitment = layer.quantize(rest, learn=learn)
            rest = rest - chosen
            total = total + chosen
            codes.append(indices.reshape(rows, frames))
            commitments.append(commitment)
        total = vectors + (total - vectors).detach()
        return (
            total.reshape(rows, frames, self.dim).transpose(1, 2),
            torch.stack(codes, 1),
            torch.stack(commitments).sum(),
        )

    def encode(self, z: Tensor) -> Tensor:
        """Latents to codes: (B, D, N) -> (B, K, N)."""
        rows, frames = z.shape[0], z.shape[2]
        rest = z.transpose(1, 2).reshape(rows * frames, self.dim)
        codes = []
        for layer in self.layers:
            indices = layer.codebook.encode(rest)
            rest = rest - layer.codebook.decode(indices)
            codes.append(indices.reshape(rows, frames))
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to latents: (B, K', N) -> (B, D, N), for the first K' <= K codebooks."""
        if not 1 <= codes.shape[1] <= self.num_quantizers:
            raise ValueError(f"codes of {codes.shape[1]} codebooks; this quantiser has {self.num_quantizers}")
        chosen = [layer.codebook.decode(i) for layer, i in zip(self.layers, codes.unbind(1), strict=False)]
        return torch.stack(chosen).sum(0).transpose(1, 2)

    def tables(self) -> Tensor:
        """What each code of each codebook stands for: (K, S, D)."""
        return torch.stack([layer.codebook.embed for layer in self.layers])
