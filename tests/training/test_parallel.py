"""Two processes on half batches equal one process on the whole batch, the adversary included."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rave_tools.runs import RunDirectory, open_run
from rave_tools.training.run import train

from .processes import wrapper_with
from .toys import ToyData, to_batch


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(rank, port, folder, *words):
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "training.processes", str(rank), str(port), str(folder), *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


class Together(ToyData):
    """What two processes with two rows each see, in one."""

    def audio(self, index):
        halves = [ToyData(batch=2, rank=rank, world=2).audio(index) for rank in range(2)]
        return torch.stack(halves, 1).flatten(0, 1)

    def val_dataloader(self):
        parts = [ToyData(batch=2, validation=3 - rank, rank=rank, world=2).val_dataloader() for rank in range(2)]
        return type(parts[0])([to_batch(batch.audio) for part in parts for batch in part])


@pytest.mark.parametrize("combiner", ["sum", "balanced", "balanced_whole"])
def test_two_processes_equal_one_with_the_double_batch(combiner, tmp_path):
    RunDirectory(tmp_path).create()
    port = free_port()
    processes = [start(rank, port, tmp_path, combiner) for rank in range(2)]
    alone = wrapper_with(combiner)
    train(
        wrapper=alone, data=Together(), run=RunDirectory(tmp_path / "alone").create(), config_text="# toy",
        max_steps=12, val_every=5, accelerator="cpu", ema=0.9, progress=False, estimate=False, report=lambda line: None,
    )  # fmt: skip
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in range(2))
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
        torch.testing.assert_close(weight, alone.state_dict()[name], atol=2e-5, rtol=1e-4, msg=name)
    facts = [torch.load(tmp_path / f"facts_{rank}.pt", weights_only=True) for rank in range(2)]
    assert facts[0] == facts[1]
    assert facts[0][0]["discriminator_updates"] == 4
    assert facts[0][1] == pytest.approx(alone.validation.verdict.distance, rel=1e-4)
    assert open_run(tmp_path, which="last").step == 12
