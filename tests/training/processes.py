"""What each of two processes does in test_parallel.py: python -m training.processes RANK PORT FOLDER [COMBINER]."""

import os
import sys

import torch

from rave_tools.criteria.combiners import Balancer
from rave_tools.runs import RunDirectory
from rave_tools.training.run import train

from .toys import ToyData, adam, toy_wrapper


def quiet_wrapper(**changes):
    """A toy whose only noise is that of the latents, which is drawn for the whole batch."""
    # Adam makes a full step of a gradient that is nothing but rounding; a larger epsilon does not.
    smooth = dict(generator_optimizer=adam(1e-2, 1e-3), discriminator_optimizer=adam(1e-3, 1e-3))
    wrapper = toy_wrapper(**{**smooth, **changes})
    wrapper.codec.noisy = False
    return wrapper


def wrapper_with(combiner):
    """The same, with the losses added ("sum"), or with a share of the gradient each ("balanced", "balanced_whole")."""
    if combiner == "sum":
        return quiet_wrapper()
    weights = {"fullband_distance": 1.0, "kl": 1.0, "adversarial": 3.0, "feature_matching": 3.0}
    return quiet_wrapper(combiner=Balancer(weights, decay=0.9, per_item=combiner == "balanced"))


def work(rank: int, port: int, folder: str, combiner: str = "sum") -> None:
    """Train as process `rank` of two."""
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    wrapper = wrapper_with(combiner)
    if rank == 1:  # equal weights are the strategy's business
        with torch.no_grad():
            for parameter in wrapper.parameters():
                parameter.add_(1.0)
    train(
        wrapper=wrapper,
        data=ToyData(batch=2, validation=3 - rank, rank=rank, world=2),
        run=RunDirectory(folder),
        config_text="# toy",
        max_steps=12,
        val_every=5,
        accelerator="cpu",
        devices=2,
        ema=0.9,
        progress=False,
        report=lambda line: None,
    )
    torch.save(wrapper.state_dict(), f"{folder}/rank_{rank}.pt")
    torch.save([wrapper.counters.as_dict(), wrapper.validation.verdict.distance], f"{folder}/facts_{rank}.pt")


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
