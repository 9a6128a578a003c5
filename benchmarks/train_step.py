"""Training steps of v2 beside acids-rave's, in turn on the same machine: seconds per step and peak memory.

    python benchmarks/train_step.py --peer PYTHON [--config v2] [--batch 2] [--n_signal 65536] [--rounds 7]

PYTHON must be able to import `rave` (acids-rave 2.3.1; it sees this command's PYTHONPATH). Both sides run their own
`training_step` on the same noise, without a Lightning trainer around it and without a valid crop (at 65,536 samples
the peer's leaves less than a window). Every phase has a process of its own on each side; the two work in turn, never
together. `cpu` is the time of all threads together, which other work on the machine disturbs less. A cycle of phase 2
is one discriminator step and the three generator steps until the next one.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
KINDS = {1: ["generator"], 2: ["generator", "discriminator"]}
CLOCKS = ("wall", "cpu")
GENERATOR_STEPS_PER_CYCLE = 3


def our_step(config_name: str, phase: int) -> Callable[[object, str], None]:
    """(audio, kind) -> one update of ours."""
    import torch

    from rave_tools import config
    from rave_tools.contracts import AudioBatch
    from rave_tools.training import run

    duration = 10**9 if phase == 1 else 0
    wrapper = (
        config.load([config_name], [f"PHASE_1_DURATION = {duration}"]).build_argument(run.train, "wrapper").train()
    )
    optimizers = wrapper.configure_optimizers()
    wrapper.optimizers = lambda: optimizers
    wrapper.manual_backward = lambda loss: loss.backward()
    wrapper._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=None))
    every = wrapper.schedule.update_discriminator_every

    def step(audio: torch.Tensor, kind: str) -> None:
        if phase == 2:
            wrapper.counters.generator_updates = 0 if kind == "discriminator" else every - 1
            wrapper.counters.discriminator_updates = 0 if kind == "discriminator" else every
        if wrapper.discriminator_turn != (kind == "discriminator"):
            raise RuntimeError(f"the schedule does not give the {kind} its turn")
        wrapper.training_step(AudioBatch(audio, torch.zeros(audio.shape[0], audio.shape[-1], dtype=torch.bool)), 0)

    return step


def peer_step(config_name: str, phase: int) -> Callable[[object, str], None]:
    """(audio, kind) -> one update of the peer."""
    import gin
    import rave
    import torch

    gin.parse_config_files_and_bindings([f"{config_name}.gin"], [])
    model = rave.RAVE(n_channels=1).train()
    generator, critic = model.configure_optimizers()
    optimizers = generator["optimizer"], critic["optimizer"]
    model.optimizers = lambda: optimizers
    model.log = lambda *_, **__: None
    model.log_dict = lambda *_, **__: None
    model.warmed_up = phase == 2

    def step(audio: torch.Tensor, kind: str) -> None:
        model.training_step(audio.clone(), 0 if kind == "discriminator" or phase == 1 else 1)

    return step


def work(side: str, arguments: argparse.Namespace) -> None:
    """Answer each line naming a kind of step with the seconds that one took."""
    import torch

    torch.set_num_threads(arguments.threads)
    make = our_step if side == "ours" else peer_step
    with Silence():
        step = make(arguments.config, arguments.phase)
    audio = 0.1 * torch.randn(arguments.batch, 1, arguments.n_signal, generator=torch.Generator().manual_seed(0))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        start, start_cpu = time.perf_counter(), time.process_time()
        step(audio, line.strip())
        elapsed, elapsed_cpu = time.perf_counter() - start, time.process_time() - start_cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        sys.stdout.write(json.dumps({"wall": elapsed, "cpu": elapsed_cpu, "peak_gib": memory}) + "\n")
        sys.stdout.flush()


class Silence:
    """Keeps what libraries print off the pipe that the measurements use."""

    def __enter__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        os.dup2(self._out, 1)


class Side:
    """One process that makes steps when asked."""

    def __init__(self, python: str, side: str, phase: int, arguments: argparse.Namespace) -> None:
        # threads that wait asleep leave the other cores alone, so that other work on the machine disturbs less
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        if side == "ours":
            environment["PYTHONPATH"] = str(ROOT)
        command = [python, __file__, "--work", side, "--phase", str(phase), "--config", arguments.config]
        command += ["--batch", str(arguments.batch), "--n_signal", str(arguments.n_signal)]
        command += ["--threads", str(arguments.threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._read()
        self.peak_gib = 0.0

    def step(self, kind: str) -> dict[str, float]:
        """Seconds of one step, by both clocks."""
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        answer = json.loads(self._read())
        self.peak_gib = answer["peak_gib"]
        return answer

    def _read(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended early: {' '.join(self.process.args)}")
        return line

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def measure(phase: int, arguments: argparse.Namespace) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Seconds per side, kind of step and clock, the sides in turn; and the peak memory under ("", "peak_gib")."""
    sides = {
        "peer": Side(arguments.peer, "peer", phase, arguments),
        "ours": Side(sys.executable, "ours", phase, arguments),
    }
    found: dict[str, dict[tuple[str, str], list[float]]] = {name: defaultdict(list) for name in sides}
    for round_ in range(arguments.rounds + 1):
        for kind in KINDS[phase]:
            for name, side in sides.items():
                answer = side.step(kind)
                for clock in CLOCKS if round_ else ():  # the first one warms up
                    found[name][kind, clock].append(answer[clock])
    for name, side in sides.items():
        found[name]["", "peak_gib"] = [side.peak_gib]
        side.close()
    return found


def row(name: str, peer: list[float], ours: list[float], unit: str) -> str:
    """One line: medians, and the median of the ratios of neighbouring measurements."""
    ratio = statistics.median(p / o for p, o in zip(peer, ours, strict=True))
    return f"{name:26s} {statistics.median(peer):8.3f} {statistics.median(ours):8.3f} {unit:4s} {ratio:6.2f}x"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default="python")
    parser.add_argument("--config", default="v2")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--n_signal", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--phase", type=int, choices=(1, 2))
    parser.add_argument("--work", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments)
        return
    print(f"{arguments.config}, batch {arguments.batch}, {arguments.n_signal} samples, {arguments.threads} threads")
    print(f"{'':26s} {'peer':>8s} {'ours':>8s} {'':4s} {'ratio':>7s}")
    for phase in [arguments.phase] if arguments.phase else [1, 2]:
        found = measure(phase, arguments)
        peer, ours = found["peer"], found["ours"]
        for clock in CLOCKS:
            for kind in KINDS[phase]:
                print(row(f"phase {phase} {kind} {clock}", peer[kind, clock], ours[kind, clock], "s"))
            if phase == 2:
                print(row(f"phase 2 cycle {clock}", cycle(peer, clock), cycle(ours, clock), "s"))
        print(row(f"phase {phase} peak memory", peer["", "peak_gib"], ours["", "peak_gib"], "GiB"))


def cycle(found: dict[tuple[str, str], list[float]], clock: str) -> list[float]:
    """Seconds of whole cycles of phase 2."""
    pairs = zip(found["generator", clock], found["discriminator", clock], strict=True)
    return [GENERATOR_STEPS_PER_CYCLE * generator + critic for generator, critic in pairs]


if __name__ == "__main__":
    main()
