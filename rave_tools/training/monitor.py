"""What a run says about itself while it runs: numbers read now and then, handed to whoever wants to show them."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rave_tools.training.validation import Verdict
from rave_tools.training.wrapper import TrainingWrapper


class Display(Protocol):
    """Shows a run: TensorBoard, a progress bar, lines of text."""

    def scalars(self, step: int, values: dict[str, float], phase: str) -> None:
        """Means since the last call, and the state of the run."""

    def verdict(self, step: int, verdict: Verdict) -> None:
        """Result of a validation."""

    def close(self) -> None:
        """The run is over."""


def peak_memory(device: torch.device) -> float:
    """Most memory that the training has held so far, in GiB: the device's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    return process_memory("VmHWM")


def process_memory(field: str) -> float:
    """A memory field of this process (``VmRSS`` now, ``VmHWM`` at most so far), in GiB; 0 where there is no /proc."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(f"{field}:")) / 2**20
    except (OSError, StopIteration):
        return 0.0


class Monitor(Callback):
    """Reads the wrapper's means every so often and hands them to the displays.

    Reading waits for the device, so it happens every `every` generator updates, or when `seconds` have passed on a
    machine where updates are slow.

    Args:
        displays: who shows the numbers; only in the first process.
        every: generator updates between two readings.
        seconds: or this long, whichever comes first.
        waited: total time spent waiting for data so far, in seconds.
    """

    def __init__(
        self,
        displays: Sequence[Display],
        *,
        every: int = 50,
        seconds: float = 10.0,
        waited: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.displays = list(displays)
        self.every = every
        self.seconds = seconds
        self.waited = waited
        self._paused = 0.0
        self._pause_start = 0.0
        self._started = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Starts the clock with the first batch: an estimate made before it is no training time."""
        if not self._started:
            self._started = True
            self._mark(pl_module)

    def _mark(self, wrapper: TrainingWrapper) -> None:
        self._time, self._paused = time.monotonic(), 0.0
        self._waited, self._step = self.waited(), wrapper.counters.generator_updates

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Reads when it is time."""
        steps = pl_module.counters.generator_updates - self._step
        if steps > 0 and (steps >= self.every or time.monotonic() - self._time >= self.seconds or self._step == 0):
            self._read(pl_module)

    def _read(self, wrapper: TrainingWrapper) -> None:
        values = wrapper.means.read()
        step, phase = wrapper.counters.generator_updates, wrapper.phase
        elapsed = max(time.monotonic() - self._time - self._paused, 1e-9)
        values |= {f"gradient_norm_{who}": norm for who, norm in wrapper.gradient_norms.items()}
        names = ("learning_rate", "learning_rate_discriminator")
        values |= dict(zip(names, wrapper.learning_rates(), strict=False))
        values |= {f"beta_{name}": wrapper.beta(name) for name in wrapper.betas}
        values |= {name: float(value) for name, value in wrapper.watched().items()}
        values |= {
            "phase": float(phase.number),
            "steps_per_second": (step - self._step) / elapsed,
            "share_waiting_for_data": (self.waited() - self._waited) / elapsed,
            "peak_memory_GiB": peak_memory(wrapper.device),
            "skipped_updates": float(wrapper.counters.skipped),
            "discriminator_updates": float(wrapper.counters.discriminator_updates),
        }
        for display in self.displays:
            display.scalars(step, values, phase.name)
        self._mark(wrapper)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation does not count as training time."""
        self._pause_start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the verdict."""
        self._paused += time.monotonic() - self._pause_start
        verdict = pl_module.validation.verdict
        for display in self.displays if verdict is not None else ():
            display.verdict(pl_module.counters.generator_updates, verdict)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the last readings."""
        if pl_module.counters.generator_updates > self._step:
            self._read(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the displays."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes the displays."""
        for display in self.displays:
            display.close()
        self.displays = []
