"""What a run will cost in memory and time, measured by one real forward and backward of every kind of step."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rave_tools.contracts import AudioBatch
from rave_tools.training.monitor import peak_memory, process_memory
from rave_tools.training.parallel import world_size
from rave_tools.training.schedules import Phase
from rave_tools.training.summary import readable_time
from rave_tools.training.wrapper import Counters, TrainingWrapper

REPEAT_BELOW_SECONDS = 3.0
MOMENTS_PER_WEIGHT = 2

Precision = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class PhaseCost:
    """One phase, as measured.

    Attributes:
        phase: which.
        updates: generator updates that the run will make in it.
        generator_seconds: of one generator step.
        discriminator_seconds: of one discriminator step; 0 where there is none.
        discriminator_share: discriminator steps per generator step.
        memory: peak in GiB, the optimiser's moments included; 0 where it cannot be measured.
    """

    phase: Phase
    updates: int
    generator_seconds: float
    discriminator_seconds: float
    discriminator_share: float
    memory: float

    @property
    def seconds_per_update(self) -> float:
        """Time of a generator update with its share of the discriminator's."""
        return self.generator_seconds + self.discriminator_share * self.discriminator_seconds


@dataclass(frozen=True)
class Estimate:
    """Costs of all phases of a run."""

    costs: list[PhaseCost]

    def relative_cost(self, number: int, reference: int) -> float | None:
        """How much longer an update of one phase takes than one of another; None when one was not measured."""
        seconds = {cost.phase.number: cost.seconds_per_update for cost in self.costs}
        if number not in seconds or not seconds.get(reference):
            return None
        return seconds[number] / seconds[reference]

    @property
    def seconds(self) -> float:
        """The whole run."""
        return sum(cost.seconds_per_update * cost.updates for cost in self.costs)


def measure(
    wrapper: TrainingWrapper,
    audio: Tensor,
    *,
    max_steps: int,
    precision: Precision = nullcontext,
    compiled: bool = False,
) -> Estimate:
    """Runs one forward and backward of every kind of step on real data, without changing a weight.

    Gradients are dropped and buffers put back; no optimiser steps. A kind of step that takes under 3 seconds runs
    twice and the second time counts, because the first one also pays for warming up. Only what is still to come is
    counted.

    Args:
        wrapper: on its device.
        audio: one batch. Shape (B, C, T).
        max_steps: generator updates of the run.
        precision: makes the context in which a step runs.
        compiled: the first step of each kind compiles, and must not be what is measured.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in wrapper.named_buffers()}
    counters, done = wrapper.counters, 0
    costs = []
    try:
        for phase, updates, share in wrapper.schedule.stretches(max_steps):
            wrapper.counters = Counters(generator_updates=done)
            done += updates
            left = min(updates, done - counters.generator_updates)
            if left > 0:
                costs.append(_measure_phase(wrapper, audio, phase, left, share, precision, compiled))
    finally:
        _reset_peak(audio.device)
        wrapper.counters = counters
        wrapper.zero_grad(set_to_none=True)
        for name, buffer in wrapper.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
    return Estimate(costs)


def _measure_phase(
    wrapper: TrainingWrapper,
    audio: Tensor,
    phase: Phase,
    updates: int,
    share: float,
    precision: Precision,
    compiled: bool,
) -> PhaseCost:
    device = audio.device
    _reset_peak(device)

    def generator() -> Tensor:
        return wrapper.combiner(wrapper.generator_losses(audio))

    def discriminator() -> Tensor:
        return wrapper.discriminator_losses(audio, estimate=known)["discriminator"]

    adversarial = phase.adversarial and wrapper.adversary is not None
    # A discriminator that shares the generator's batches finds the estimate made.
    known = torch.rand_like(audio) if adversarial and wrapper.schedule.shares_batches else None
    seconds = _time(generator, wrapper, device, precision, compiled)
    against = _time(discriminator, wrapper, device, precision, compiled) if adversarial else 0.0
    learners = wrapper.learners() if adversarial else wrapper.learners()[:1]
    held = sum(MOMENTS_PER_WEIGHT * p.numel() * p.element_size() for group in learners for p in group) / 2**30
    peak = peak_memory(device)
    return PhaseCost(phase, updates, seconds, against, share if adversarial else 0.0, peak + held if peak else 0.0)


def _time(
    step: Callable[[], Tensor],
    wrapper: TrainingWrapper,
    device: torch.device,
    precision: Precision,
    compiled: bool,
) -> float:
    for attempt in range(2):
        wrapper.zero_grad(set_to_none=True)
        start = time.monotonic()
        with precision():
            loss = step()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.monotonic() - start
        # Several processes must agree on the number of steps, since a step holds collectives: they always take two.
        if world_size() == 1 and elapsed >= REPEAT_BELOW_SECONDS and not (compiled and attempt == 0):
            break
    return elapsed


def _reset_peak(device: torch.device) -> None:
    """Forgets earlier peaks where the platform can: CUDA's statistics, or Linux's high-water mark of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif process_memory("VmHWM"):
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
                clear.write("5")
        except OSError:
            return


class Estimating(Callback):
    """Makes the estimate on the first batch and says it.

    Args:
        max_steps: generator updates of the run.
        tell: receives each line.
        receive: receives the estimate itself.
        compiled: see `measure`.
    """

    def __init__(
        self,
        *,
        max_steps: int,
        tell: Callable[[str], None],
        receive: Callable[[Estimate], None],
        compiled: bool = False,
    ) -> None:
        self._max_steps = max_steps
        self._tell = tell
        self._receive = receive
        self._compiled = compiled
        self._done = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: AudioBatch, batch_idx: int
    ) -> None:
        """Once, before the first batch is trained on."""
        if self._done:
            return
        self._done = True
        estimate = measure(
            pl_module,
            batch.audio,
            max_steps=self._max_steps,
            precision=trainer.precision_plugin.train_step_context,
            compiled=self._compiled,
        )
        for line in report(estimate, *batch.audio.shape[::2]):
            self._tell(line)
        self._receive(estimate)


def report(estimate: Estimate, batch_size: int, n_signal: int) -> list[str]:
    """The estimate in words, with how it was made."""
    lines = []
    for cost in estimate.costs:
        steps = f"generator step {cost.generator_seconds:.3g} s"
        if cost.discriminator_share:
            steps += f", discriminator step {cost.discriminator_seconds:.3g} s"
        memory = f", peak memory {cost.memory:.2f} GiB" if cost.memory else ""
        lines.append(
            f"Phase {cost.phase.number} ({cost.phase.name}): {steps}{memory}; {cost.updates:,} updates = "
            f"{readable_time(cost.updates * cost.seconds_per_update)}"
        )
    lines.append(
        f"In all: {readable_time(estimate.seconds)}. Measured just now with one real step of each kind (batch "
        f"{batch_size}, {n_signal} samples), plus Adam's moments; validation, checkpoints and a slow disk come on top."
    )
    return lines
