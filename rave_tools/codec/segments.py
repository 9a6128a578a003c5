"""Segments of a sound that are coded on their own, and their sum, faded into each other where they overlap."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def cut_segments(blocks: Iterable[Tensor], *, length: int, stride: int) -> Iterator[Tensor]:
    """Cut a signal into segments that overlap; in memory is never more than a block and a segment.

    Args:
        blocks: shape (..., n) with any n.
        length: samples of a segment; those at the end are shorter.
        stride: samples from the start of one to the start of the next, at most `length`.
    """
    waiting: Tensor | None = None
    for block in blocks:
        waiting = block if waiting is None else torch.cat([waiting, block], -1)
        while waiting.shape[-1] >= length:
            yield waiting[..., :length]
            waiting = waiting[..., stride:]
    while waiting is not None and waiting.shape[-1]:
        yield waiting[..., :length]
        waiting = waiting[..., stride:]


def segment_lengths(samples: int, *, length: int, stride: int) -> list[int]:
    """Samples of each of the segments that `cut_segments` makes of a sound."""
    return [min(length, samples - start) for start in range(0, samples, stride)]


def overlap_add(segments: Iterable[Tensor], *, stride: int) -> Iterator[Tensor]:
    """Join segments: a mean at every sample, with weights that rise to the middle of a segment and fall behind it.

    Args:
        segments: shape (..., n), the first one the longest.
        stride: samples from the start of one to the start of the next.

    Yields:
        Blocks of `stride` samples, then the rest.

    Source: Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.1 (segments of one second with
    10 ms of overlap).
    """
    weights: Tensor | None = None
    total = covered = torch.empty(0)
    for segment in segments:
        size = segment.shape[-1]
        if weights is None:
            ramp = torch.linspace(0, 1, size + 2, device=segment.device, dtype=segment.dtype)[1:-1]
            weights = torch.minimum(ramp, 1 - ramp)
            total, covered = segment[..., :0], weights[:0]
        else:
            yield total[..., :stride] / covered[:stride]
            total, covered = total[..., stride:], covered[stride:]
        longer = max(0, size - total.shape[-1])
        total = torch.nn.functional.pad(total, (0, longer))
        covered = torch.nn.functional.pad(covered, (0, longer))
        total[..., :size] += weights[:size] * segment
        covered[:size] += weights[:size]
    if weights is not None:
        yield total / covered
