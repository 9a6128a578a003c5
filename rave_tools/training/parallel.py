"""Several processes: equal weights at the start, averaged gradients after every backward, nothing else.

torch's DistributedDataParallel hooks a reducer into the graph and expects every backward to reach every parameter; a
game of two networks with turns and a frozen encoder never does. One flat all-reduce after the backward has no such
expectations, and is the same arithmetic.
"""

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes; does nothing alone."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def broadcast_state(module: nn.Module) -> None:
    """Gives every process the weights and buffers of process 0; does nothing alone."""
    if world_size() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        contiguous = tensor.detach().contiguous()
        dist.broadcast(contiguous, src=0)
        tensor.copy_(contiguous)


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process: all of them act on it together or none does."""
    if world_size() == 1:
        return flag
    tensor = torch.tensor(float(flag), device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def gather(items: list[T]) -> list[T]:
    """The items of all processes in every process, those of process 0 first; they may differ in number."""
    if world_size() == 1:
        return items
    parts: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


class GradientAveraging(DDPStrategy):
    """Lightning's strategy for several processes, without wrapping the module in DistributedDataParallel."""

    def configure_ddp(self) -> None:
        """Where the parent would wrap the module: equal weights are all that is needed."""
        broadcast_state(self.model)
