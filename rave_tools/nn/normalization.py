"""Normalisations of signals inside a network."""

from typing import Any

import torch
from torch import Tensor, nn

from rave_tools.nn.streaming import Pointwise, Stateful, Streamable

SWITCHES = ("learn_source", "learn_target", "reset_source", "reset_target")
"""What a host can turn, in the order of `AdaptiveInstanceNormalization.switches`."""

PEER_STATISTICS = tuple(f"{name}_{side}" for side in "xy" for name in ("mean", "std", "learn", "num_update"))
"""Buffers of acids-rave that hold what was heard in a performance, in 64 rows; training never touches them."""


class SampleNorm(nn.Module, Pointwise):
    """Divide each instant by its Euclidean norm over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def running_statistics(x: Tensor, heard: Tensor, learn: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations of everything heard up to and including each instant.

    A block's sums are taken around the mean known before it, and moved to the new one by Chan's formula, so that hours
    of signal lose no precision and no division into blocks changes the result.

    Args:
        x: shape (B, C, T).
        heard: the same three numbers before the block. Shape (B, 2C + 1, 1).
        learn: 1 to learn, 0 to leave everything as it is. Scalar.

    Returns:
        Shape (B, 2C + 1, T).

    Source: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", 1983.
    """
    channels = x.shape[1]
    count, mean, spread = heard[:, :1], heard[:, 1 : channels + 1], heard[:, channels + 1 :]
    mean = torch.where(count > 0, mean, learn * x[..., :1])  # around what a signal begins with, nothing cancels
    ones = torch.ones_like(x[:, :1])
    counts = count + learn * torch.cumsum(ones, -1)
    deviation = learn * (x - mean)
    first = torch.cumsum(deviation, -1)
    second = torch.cumsum(deviation * deviation, -1)
    shift = first / counts.clamp_min(1)
    return torch.cat([counts, mean + shift, spread + second - first * shift], 1)


def transfer_statistics(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Give a signal the mean and deviation of the target instead of the source's.

    Until both have heard two instants the signal passes as it is.

    Args:
        x: shape (B, C, T).
        source, target: see running_statistics. Shape (B, 2C + 1, 1 or T).

    Returns:
        Shape (B, C, T).
    """
    channels = x.shape[1]
    deviation_in = torch.sqrt(source[:, channels + 1 :].clamp_min(0) / (source[:, :1] - 1).clamp_min(1))
    deviation_out = torch.sqrt(target[:, channels + 1 :].clamp_min(0) / (target[:, :1] - 1).clamp_min(1))
    scaled = (x - source[:, 1 : channels + 1]) / (deviation_in + 1e-5) * deviation_out
    known = torch.logical_and(source[:, :1] > 1, target[:, :1] > 1)
    return torch.where(known, scaled + target[:, 1 : channels + 1], x)


def adapt(x: Tensor, source: Tensor, target: Tensor, switches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One block of adaptive instance normalisation, a pure function without branches.

    While the target is learned the signal passes as it is and the source is not learned.

    Args:
        x: shape (B, C, T).
        source, target: statistics before the block. Shape (B, 2C + 1, 1).
        switches: see SWITCHES. Shape (4,).

    Returns:
        The signal (B, C, T), and source and target after the block.
    """
    source = source * (1 - switches[2])
    target = target * (1 - switches[3])
    sources = running_statistics(x, source, switches[0] * (1 - switches[1]))
    targets = running_statistics(x, target, switches[1])
    y = torch.where(switches[1] > 0, x, transfer_statistics(x, sources, target))
    return y, sources[..., -1:].clone(), targets[..., -1:].clone()


@torch.jit.script_if_tracing
def adapt_when_asked(x: Tensor, source: Tensor, target: Tensor, switches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `adapt`, without its cost while no switch is on; a traced model keeps the branch."""
    if bool((switches != 0).any()):
        return adapt(x, source, target, switches)
    return transfer_statistics(x, source, target), source, target


class AdaptiveInstanceNormalization(nn.Module, Streamable, Stateful):
    """Learn the statistics of a source and of a target while playing, then dress the one in the other.

    Nothing happens in training, and nothing in evaluation until both have been learned. The statistics are state: made
    anew for another batch size, forgotten by a reset, one set per row. They are those of all that was heard while the
    switch was on, at each instant, so that they do not depend on the division into blocks (acids-rave averages the
    deviations of its blocks, which is not a number in a layer that sees one frame per block).

    Args:
        dim: C.

    Attributes:
        switches: 0 or 1 for each of SWITCHES; set by whoever plays the model. Shape (4,).
        source, target: count, mean and sum of squared deviations. Shape (B, 2C + 1, 1).

    Source: Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", 2017.
    """

    state_names = ("source", "target")
    source: Tensor
    target: Tensor
    switches: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("switches", torch.zeros(len(SWITCHES)), persistent=False)
        for name in self.state_names:
            self.register_buffer(name, torch.zeros(0, 2 * dim + 1, 1), persistent=False)

    def enable_streaming(self, delay: int) -> int:
        return delay

    def forget(self) -> None:
        self.source = torch.zeros_like(self.source[:0])
        self.target = torch.zeros_like(self.target[:0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        if self.training:
            return x
        if self.source.shape[0] != x.shape[0]:
            self.source = torch.zeros(x.shape[0], 2 * self.dim + 1, 1, dtype=x.dtype, device=x.device)
            self.target = torch.zeros_like(self.source)
        if x.shape[0] == 0:
            return x
        # A compiler takes no branch that depends on a number.
        function = adapt if torch.compiler.is_compiling() else adapt_when_asked
        y, source, target = function(x, self.source, self.target, self.switches)
        self.source, self.target = source.detach(), target.detach()
        return y

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Statistics in a checkpoint of acids-rave belong to a performance, not to the model."""
        for name in PEER_STATISTICS:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def set_switches(model: nn.Module, switches: Tensor) -> bool:
    """Turn the switches of every adaptive instance normalisation in a model; says whether there is one.

    Args:
        model: of any kind.
        switches: see SWITCHES. Shape (4,).
    """
    found = [module for module in model.modules() if isinstance(module, AdaptiveInstanceNormalization)]
    for module in found:
        module.switches = switches
    return bool(found)
