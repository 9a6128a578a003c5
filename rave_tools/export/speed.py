"""How fast a file runs: in a process of its own, as a host loads it, with one thread as hosts should run it."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

SECONDS_PER_SIZE = 2.0
FEWEST_BLOCKS = 20
LOAD_BLOCKS = 2
"""The first blocks, in which the host's compiler specialises the graph; they are told apart from the others."""


@dataclass(frozen=True)
class BlockTimes:
    """How long ``forward`` takes on blocks of one size.

    Attributes:
        hops: per block.
        budget: duration of the block itself, in seconds.
        median, worst: in seconds; worst is the 99th percentile.
        blocks: measured.
    """

    hops: int
    budget: float
    median: float
    worst: float
    blocks: int

    @property
    def real_time_factor(self) -> float:
        """Share of the block's duration that its computation takes; below 1 is faster than real time."""
        return self.median / self.budget


@dataclass(frozen=True)
class Speed:
    """What a fresh process measured.

    Attributes:
        load: seconds until the file is loaded.
        first: seconds for each of the very first blocks.
        budget: duration of such a block, in seconds.
        times: per block size.
        prior: method ``prior`` on one latent frame, if there is one.
    """

    load: float
    first: tuple[float, ...]
    budget: float
    times: tuple[BlockTimes, ...]
    prior: BlockTimes | None = None


def time_calls(
    call: Callable[[], object], *, hops: int, budget: float, seconds: float
) -> tuple[BlockTimes, list[float]]:
    """Call something again and again.

    Args:
        call: plays one block.
        hops: in the block.
        budget: duration of the block, in seconds.
        seconds: to spend, at most.

    Returns:
        The times of settled calls, and those of the first calls.
    """
    spent: list[float] = []
    while len(spent) < FEWEST_BLOCKS or sum(spent) < seconds * (len(spent) < 1000):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    steady = sorted(spent[LOAD_BLOCKS + 1 :])
    median, worst = steady[len(steady) // 2], steady[int(0.99 * (len(steady) - 1))]
    return BlockTimes(hops, budget, median, worst, len(steady)), spent[:LOAD_BLOCKS]


def time_blocks(path: str, hops: tuple[int, ...], seconds: float) -> Speed:
    """Load a file and play noise through it with one thread.

    Args:
        path: of the file.
        hops: block sizes.
        seconds: to spend on each size, at most.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    module = torch.jit.load(path, map_location="cpu").eval()
    load = time.perf_counter() - start
    first: list[float] = []
    times = []
    with torch.inference_mode():
        for count in hops:
            size = count * int(module.hop)
            x = 0.1 * torch.randn(1, int(module.n_channels), size)
            call = partial(module.forward, x)
            settled, early = time_calls(call, hops=count, budget=size / int(module.sr), seconds=seconds)
            first = first or early
            times.append(settled)
        prior = time_prior(module, seconds) if hasattr(module, "prior_params") else None
    return Speed(load, tuple(first), times[0].budget, tuple(times), prior)


def time_prior(module: torch.jit.ScriptModule, seconds: float) -> BlockTimes:
    """Draw one latent frame after the other, for so many seconds at most."""
    budget = int(module.hop) / int(module.sr)
    settled, _ = time_calls(partial(module.prior, torch.ones(1, 1, 1)), hops=1, budget=budget, seconds=seconds)
    return settled


def measure_speed(path: Path, hops: tuple[int, ...] = (1, 2, 4), seconds: float = SECONDS_PER_SIZE) -> Speed:
    """``time_blocks`` in a process that has never seen the model."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(time_blocks, str(path), hops, seconds).result()
