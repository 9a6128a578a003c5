"""Residual vector quantisation with codebooks that follow their vectors (SoundStream, arXiv 2107.03312, sec. III-C)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

ROWS_AT_ONCE = 8192
"""Vectors compared with a codebook at once while it is made: 32 MB for 1,024 codes."""

VECTORS_PER_CENTRE = 4
"""Where there are less, centres are the vectors themselves, and nothing is left for the next codebook to stand on."""

FAINTEST_COUNT = 1e-12

FRAMES_ALIKE = 16
"""Neighbouring vectors say nearly the same: of so many, one counts where it is asked how sure a mean is."""

Expiry = Literal["count", "usage", "encodec", "none"]

Watch = Callable[[Tensor, Tensor], Tensor]
"""(codes (S, D), indices (n,)) -> scalar."""


@dataclass
class Quantized:
    """What a row of codebooks made of vectors.

    Attributes:
        vectors: sums of the chosen codes. In training their gradient goes straight through. Shape (n, D).
        indices: shape (K', n).
        commitments: the squared distance of what each level was given from what it chose, averaged. Shape (K',).
        watched: what a watcher said of each level; nothing without one. Shape (K',).
    """

    vectors: Tensor
    indices: Tensor
    commitments: Tensor
    watched: Tensor


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the closest code, the first of those that are equally close.

    Args:
        vectors: shape (n, D).
        codes: shape (S, D).

    Returns:
        Shape (n,).
    """
    # |x - e|^2 without |x|^2, which is the same for all codes.
    # min is twice as fast as argmin on processors, and as sure to answer with the first.
    return torch.addmm(codes.square().sum(1), vectors, codes.T, alpha=-2).min(1).indices


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


def in_company() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized()


def from_first_process(tensor: Tensor) -> Tensor:
    """The first process's numbers, in every process."""
    if in_company():
        tensor = tensor.contiguous()
        distributed.broadcast(tensor, 0)
    return tensor


def from_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes in every process, those of the first one first; they may differ in number."""
    if not in_company():
        return rows
    own = torch.tensor([rows.shape[0]], device=rows.device)
    counts = [torch.zeros_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, own)
    numbers = [int(count) for count in counts]
    padded = rows.new_zeros(max(numbers), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    parts = [torch.zeros_like(padded) for _ in numbers]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])


def over_processes(tensor: Tensor) -> Tensor:
    """The sum over all processes, in every process."""
    if in_company():
        distributed.all_reduce(tensor)
    return tensor


class Usage(nn.Module):
    """How often codes were chosen of late; for the logs, so it is in no checkpoint.

    Args:
        size: number of codes S.
        decay: weight of the past at each update.

    Attributes:
        recent: running count of choices. Shape (S,).
        replaced: share of the codes that were last moved because nothing chose them.
    """

    recent: Tensor
    replaced: Tensor

    def __init__(self, size: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("recent", torch.zeros(size), persistent=False)
        self.register_buffer("replaced", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def count(self, counts: Tensor) -> None:
        """Take in how many vectors chose each code (S,)."""
        self.recent.lerp_(counts, 1 - self.decay)

    @torch.no_grad()
    def forget(self, codes: Tensor) -> None:
        """Begin anew with those codes that were moved (S,)."""
        self.recent.masked_fill_(codes, 0)
        self.replaced.copy_(codes.float().mean())

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """Scalars on their device, without waiting for it.

        Returns:
            ``perplexity``: of the choices, between 1 and S; ``used``: share of codes chosen at least once in the last
            1 / (1 - decay) updates; ``replaced``: share that was last moved.
        """
        shares = self.recent / self.recent.sum().clamp_min(1e-12)
        faintest = (1 - self.decay) * self.decay ** (1 / (1 - self.decay)) if self.decay < 1 else 0.0
        return {
            "perplexity": torch.special.entr(shares).sum().exp(),
            "used": (self.recent > faintest).float().mean(),
            "replaced": self.replaced.clone(),
        }


class EuclideanCodebook(nn.Module):
    """Vectors that stand for their neighbourhoods; each moves to the running mean of what it stood for.

    What becomes of codes that hardly anything chooses is the `expiry`:

    - ``usage``: every `check_every` updates, codes whose running count is below `usage_ratio` of the mean count are
      moved to vectors of the batch, no two to the same one (moshi, Défossez et al., 2024). What is little is relative,
      so it works with any number of vectors per batch. While an encoder is young its latents wander about, further in
      an update than they differ: all codes travel with their mean (`travel`), and as codes have little time to be
      chosen, a moved one begins with `revived_usage` of the mean count (moshi: 1), the placed ones with counts of a
      single update. A first batch of few vectors places few codes, the next checks place the rest.
    - ``count``: in every update, codes whose running count is below `threshold_ema_dead_code` are moved. With few
      vectors per batch (less than the threshold for each code) they are moved for ever.
    - ``encodec``: EnCodec's and AudioCraft's update, step by step. There the same update overwrites the codes that
      were moved, so nothing is revived; and the sums begin as means, so that codes shrink by their counts at first.
      For comparisons with those programs.
    - ``none``: they stay.

    Args:
        dim: D.
        codebook_size: S.
        kmeans_init: begin with the cluster centres of the first batch.
        kmeans_iters: iterations of that.
        decay: weight of the past in the running counts and sums.
        epsilon: counts are smoothed by it, but not with ``usage``, where all codes count for something and smoothing
            would pull the rarer ones towards zero.
        threshold_ema_dead_code: see ``count``; 0 for never.
        expiry: see above.
        usage_ratio, revived_usage, check_every: see ``usage``.

    Attributes:
        inited: 1 once the codes stand for something that was heard.
        usage: of the codes, for the logs.

    Raises:
        ValueError: an expiry that does not exist, or revived codes that would be moved again at once.
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
        expiry: Expiry = "count",
        usage_ratio: float = 0.1,
        revived_usage: float = 0.15,
        check_every: int = 5,
    ) -> None:
        super().__init__()
        if expiry not in get_args(Expiry):
            raise ValueError(f"expiry of codes is {expiry!r}; it is one of {', '.join(get_args(Expiry))}")
        if expiry == "usage" and revived_usage <= usage_ratio:
            raise ValueError(
                f"revived_usage is {revived_usage} of the mean count, but codes below {usage_ratio} of it are moved; "
                "set revived_usage over usage_ratio"
            )
        self.codebook_size = codebook_size
        self.kmeans_iters = kmeans_iters
        self.decay = decay
        self.epsilon = epsilon
        self.threshold = threshold_ema_dead_code
        self.expiry = expiry
        self.usage_ratio = usage_ratio
        self.revived_usage = revived_usage
        self.check_every = check_every
        embed = torch.zeros(codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
        self.register_buffer("inited", torch.tensor([float(not kmeans_init)]))
        self.register_buffer("cluster_size", torch.full((codebook_size,), float(expiry != "encodec")))
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", embed.clone())
        self.usage = Usage(codebook_size, decay=decay)

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, D) -> indices (n,)."""
        return nearest(vectors, self.embed)

    def decode(self, indices: Tensor) -> Tensor:
        """(..., ) -> (..., D)."""
        return F.embedding(indices, self.embed)

    @torch.no_grad()
    def begin(self, vectors: Tensor) -> None:
        """Place the codes among the vectors of a first batch, those of all processes, unless they have a place."""
        if bool(self.inited.all()):
            return
        vectors = from_all_processes(vectors)
        number = self.codebook_size
        if self.expiry == "usage":
            number = min(number, max(1, len(vectors) // VECTORS_PER_CENTRE))
        centres, counts = kmeans(vectors, number, iterations=self.kmeans_iters)
        self.embed.zero_()[:number] = from_first_process(centres)
        self.cluster_size.zero_()[:number] = from_first_process(counts)
        if self.expiry == "usage":
            self.cluster_size.mul_(1 - self.decay)  # as if it had been the first of the updates
        self.embed_avg.copy_(self.embed)
        if self.expiry != "encodec":
            self.embed_avg.mul_(self.cluster_size[:, None])
        self.inited.fill_(1)

    @torch.no_grad()
    def travel(self, vectors: Tensor) -> None:
        """Move all codes by as much as the mean of the vectors moved, as far as that is not the chance of a batch.

        Of the squared distance between the mean of a batch and the running one, what the spread of the vectors explains
        is taken off (James and Stein, 1961), so codes of an encoder that has settled stay where they are.

        Args:
            vectors: shape (n, D).
        """
        number = over_processes(vectors.new_tensor(float(len(vectors))))
        mean = over_processes(vectors.sum(0)) / number
        spread = over_processes((vectors - mean).square().sum()) / number
        way = mean - self.embed_avg.sum(0) / self.cluster_size.sum().clamp_min(FAINTEST_COUNT)
        chance = spread * FRAMES_ALIKE / number
        step = way * (1 - chance / way.square().sum().clamp_min(torch.finfo(way.dtype).tiny)).clamp_min(0)
        self.embed.add_(step)
        self.embed_avg.addcmul_(self.cluster_size[:, None], step)

    @torch.no_grad()
    def follow(self, vectors: Tensor, indices: Tensor, step: int | None = None) -> None:
        """Move the codes towards what they stood for in a batch, and the useless ones elsewhere.

        Args:
            vectors: shape (n, D).
            indices: what `encode` answered to them. Shape (n,).
            step: number of the update; None checks the usage whatever the number.
        """
        if self.expiry == "encodec" and self.threshold and bool((self.cluster_size < self.threshold).any()):
            draw(vectors, self.codebook_size)  # what is drawn is overwritten below; the generator must have moved on
        counts, sums = sums_by_code(vectors, indices, self.codebook_size)
        counts = over_processes(counts)
        self.usage.count(counts)
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.embed_avg.lerp_(over_processes(sums), 1 - self.decay)
        total = self.cluster_size.sum()
        if self.expiry == "usage":
            divisor = self.cluster_size.clamp_min(FAINTEST_COUNT)
        else:
            divisor = (self.cluster_size + self.epsilon) / (total + self.codebook_size * self.epsilon) * total
        self.embed.copy_(self.embed_avg / divisor[:, None])
        if self.expiry == "count":
            dead = self.cluster_size < self.threshold
            self.usage.replaced.zero_()
            if bool(dead.any()):
                self._revive(dead, from_first_process(draw(vectors, self.codebook_size)), self.threshold)
        if self.expiry == "usage" and (step is None or step % self.check_every == 0):
            usage = total / self.codebook_size
            dead = self.cluster_size < self.usage_ratio * usage
            # As many rows in every process; the last column says which of them are vectors.
            drawn = F.pad(draw(vectors, min(len(vectors), self.codebook_size)), (0, 1), value=1.0)
            drawn = from_first_process(F.pad(drawn, (0, 0, 0, self.codebook_size - len(drawn))))
            fresh = drawn[(dead.cumsum(0) - 1).clamp_min(0)]
            self._revive(dead & (fresh[:, -1] > 0), fresh[:, :-1], self.revived_usage * usage)

    def _revive(self, dead: Tensor, fresh: Tensor, usage: Tensor | float) -> None:
        """Move codes: dead (S,), fresh (S, D), and how much they count as used."""
        self.embed.copy_(torch.where(dead[:, None], fresh, self.embed))
        self.embed_avg.copy_(torch.where(dead[:, None], fresh * usage, self.embed_avg))
        self.cluster_size.copy_(torch.where(dead, usage, self.cluster_size))
        self.usage.forget(dead)


class VectorQuantization(nn.Module):
    """One codebook, under the name that checkpoints have for it, and the way to it.

    Args:
        codebook: the codes.
        dim: D of the vectors, where it is not that of the codes: they are then projected there and back.
    """

    def __init__(self, codebook: EuclideanCodebook, *, dim: int | None = None) -> None:
        super().__init__()
        width = codebook.embed.shape[1]
        self.projected = dim is not None and dim != width
        self.project_in: nn.Module = nn.Linear(dim, width) if self.projected else nn.Identity()
        self.project_out: nn.Module = nn.Linear(width, dim) if self.projected else nn.Identity()
        self._codebook = codebook

    @property
    def codebook(self) -> EuclideanCodebook:
        """The codes."""
        return self._codebook

    def encode(self, vectors: Tensor) -> Tensor:
        """(n, D) -> indices (n,)."""
        return self.codebook.encode(self.project_in(vectors))

    def decode(self, indices: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        return self.project_out(self.codebook.decode(indices))

    def table(self) -> Tensor:
        """What each code stands for: (S, D)."""
        return self.project_out(self.codebook.embed)

    def quantize(
        self, vectors: Tensor, *, learn: bool, placed: bool = False, step: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose codes, and let the codebook follow.

        Args:
            vectors: shape (n, D).
            learn: whether the codebook begins, or moves.
            placed: whether the codebook is known to have begun, which a device would have to be asked for.
            step: number of the update, see EuclideanCodebook.follow.

        Returns:
            The codes themselves (n, D), without gradient, or straight through where they are projected; indices (n,);
            the squared distance of a vector from its code, averaged, whose gradient reaches the vectors.
        """
        vectors = self.project_in(vectors)
        heard = vectors.detach()
        if learn and not placed:
            self.codebook.begin(heard)
        if learn and self.codebook.expiry == "usage":
            self.codebook.travel(heard)
        indices = self.codebook.encode(heard)
        chosen = self.codebook.decode(indices)
        if learn:
            self.codebook.follow(heard, indices, step)
        commitment = F.mse_loss(vectors, chosen)
        if self.projected:
            chosen = self.project_out(straight_through(vectors, chosen))
        return chosen, indices, commitment


def straight_through(vectors: Tensor, chosen: Tensor) -> Tensor:
    """The chosen ones, with the gradient of the vectors."""
    if torch.is_grad_enabled() and vectors.requires_grad:
        return vectors + (chosen - vectors).detach()
    return chosen


class ResidualVectorQuantization(nn.Module):
    """Codebooks in a row, each for what the ones before left over.

    Every codebook's commitment reaches the encoder: what is left over is computed from detached codes (in acids-rave
    and in Meta's encodec, from straight-through ones, whose gradient cancels, so that only the first codebook's does).

    Args:
        num_quantizers: K.
        dim: D.
        codebook_size: S.
        codebook_dim: of the codes, to which the vectors are projected; D without projections.
        kmeans_init, kmeans_iters, decay, epsilon, threshold_ema_dead_code, expiry, usage_ratio, revived_usage,
            check_every: see EuclideanCodebook.
    """

    def __init__(
        self,
        num_quantizers: int,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        kmeans_init: bool = True,
        kmeans_iters: int = 50,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        threshold_ema_dead_code: float = 2,
        expiry: Expiry = "count",
        usage_ratio: float = 0.1,
        revived_usage: float = 0.15,
        check_every: int = 5,
    ) -> None:
        super().__init__()
        self.num_quantizers = num_quantizers
        self.dim = dim
        self.codebook_size = codebook_size
        self.expiry = expiry
        self.layers = nn.ModuleList(
            VectorQuantization(
                EuclideanCodebook(
                    dim if codebook_dim is None else codebook_dim,
                    codebook_size,
                    kmeans_init=kmeans_init,
                    kmeans_iters=kmeans_iters,
                    decay=decay,
                    epsilon=epsilon,
                    threshold_ema_dead_code=threshold_ema_dead_code,
                    expiry=expiry,
                    usage_ratio=usage_ratio,
                    revived_usage=revived_usage,
                    check_every=check_every,
                ),
                dim=dim,
            )
            for _ in range(num_quantizers)
        )

    @property
    def projected(self) -> bool:
        """Whether vectors are compared with the codes in another space than their own."""
        return any(layer.projected for layer in self.layers)

    @property
    def ready(self) -> bool:
        """Whether every codebook stands for something that was heard."""
        return bool(torch.cat([layer.codebook.inited for layer in self.layers]).all())

    def quantize(
        self,
        vectors: Tensor,
        *,
        learn: bool,
        levels: int | None = None,
        step: int | None = None,
        first_alone: bool = False,
        watch: Watch | None = None,
    ) -> Quantized:
        """Choose codes, level by level.

        Args:
            vectors: shape (n, D).
            learn: whether the codebooks move.
            levels: K', the first codebooks to use; all without.
            step: number of the update, see EuclideanCodebook.follow.
            first_alone: whether the commitments of all levels but the first are without a gradient.
            watch: asked about each level after it learned.
        """
        rest, total = vectors, torch.zeros_like(vectors)
        indices, commitments, watched = [], [], []
        placed = learn and self.ready
        for layer in self.layers[:levels]:
            chosen, choice, commitment = layer.quantize(rest, learn=learn, placed=placed, step=step)
            rest = rest - chosen
            if first_alone:
                rest = rest.detach()
            total = total + chosen
            indices.append(choice)
            commitments.append(commitment)
            if watch is not None:
                watched.append(watch(layer.codebook.embed, choice))
        if not self.projected:
            total = straight_through(vectors, total)
        return Quantized(
            total, torch.stack(indices), torch.stack(commitments), torch.stack(watched) if watched else vectors[:0, 0]
        )

    @torch.no_grad()
    def begin(self, vectors: Tensor) -> None:
        """Place all codebooks, each among what the ones before leave of vectors (n, D), unless they have a place."""
        if self.ready:
            return
        for layer in self.layers:
            layer.codebook.begin(layer.project_in(vectors))
            vectors = vectors - layer.decode(layer.encode(vectors))

    def forward(self, z: Tensor, *, learn: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise.

        Args:
            z: shape (B, D, N).
            learn: whether the codebooks move.

        Returns:
            Quantised latents whose gradient goes straight through (B, D, N); codes (B, K, N); the commitment, summed
            over codebooks.
        """
        found = self.quantize(to_vectors(z), learn=learn)
        return to_latents(found.vectors, z), to_codes(found.indices, z), found.commitments.sum()

    def encode(self, z: Tensor, levels: int | None = None) -> Tensor:
        """Latents to codes: (B, D, N) -> (B, K', N), of the first K' codebooks; all without."""
        rest = to_vectors(z)
        indices = []
        for layer in self.layers[:levels]:
            indices.append(layer.encode(rest))
            rest = rest - layer.decode(indices[-1])
        return to_codes(torch.stack(indices), z)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to latents: (B, K', N) -> (B, D, N), for the first K' <= K codebooks."""
        if not 1 <= codes.shape[1] <= self.num_quantizers:
            raise ValueError(f"codes of {codes.shape[1]} codebooks; this quantiser has {self.num_quantizers}")
        first, *others = codes.unbind(1)
        total = self.layers[0].decode(first)
        for layer, indices in zip(self.layers[1:], others, strict=False):
            total = total + layer.decode(indices)
        return total.transpose(1, 2)

    def tables(self) -> Tensor:
        """What each code of each codebook stands for: (K, S, D)."""
        return torch.stack([layer.table() for layer in self.layers])


def to_vectors(z: Tensor) -> Tensor:
    """(B, D, N) -> (B * N, D)."""
    return z.transpose(1, 2).flatten(0, 1)


def to_latents(vectors: Tensor, like: Tensor) -> Tensor:
    """(B * N, D) -> (B, D, N)."""
    return vectors.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)


def to_codes(indices: Tensor, like: Tensor) -> Tensor:
    """(K, B * N) -> (B, K, N)."""
    return indices.unflatten(1, (like.shape[0], like.shape[2])).transpose(0, 1)
