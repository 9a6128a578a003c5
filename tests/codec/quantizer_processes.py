"""What each of two processes does in test_quantizers.py: python -m codec.quantizer_processes RANK PORT FOLDER."""

import os
import sys

import torch
from torch import distributed

from rave_tools.codec.bottlenecks.residual import ResidualVectorQuantizer

STEPS = 12
CASES = {
    "usage": dict(expiry="usage"),
    "count": dict(expiry="count"),
    "encodec": dict(expiry="encodec"),
    "dropout": dict(q_dropout=True),
    "none": dict(expiry="none", kmeans_init=False),
}


def make(**options):
    torch.manual_seed(0)
    return ResidualVectorQuantizer(4, 3, bins=32, **options).train()


def batch(step, rank):
    """Rows of one process; they may differ in number."""
    generator = torch.Generator().manual_seed(2 * step + rank)
    return torch.randn(1, 4, 40 + 10 * rank, generator=generator)


def learn_alone():
    """One process that sees what both see, without chance."""
    quantizer = make(**CASES["none"])
    for step in range(STEPS):
        quantizer(torch.cat([batch(step, rank) for rank in range(2)], -1).requires_grad_(), step=step)
    return quantizer.state_dict()


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    facts = {}
    for name, options in CASES.items():
        quantizer = make(**options)
        levels = []
        for step in range(STEPS):
            torch.manual_seed(1000 * step + rank)  # the seed of a step is another in every process
            levels.append(quantizer(batch(step, rank).requires_grad_(), step=step).codes.shape[1])
        facts[name] = {"state": quantizer.state_dict(), "levels": levels}
    torch.save(facts, f"{folder}/rank_{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
