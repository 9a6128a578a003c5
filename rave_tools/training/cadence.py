"""When a run validates, when it stops, and how it can be interrupted: all counted in generator updates."""

import signal
import threading
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rave_tools.training.parallel import any_process, world_size

NEVER = 10**12
ASK_EVERY = 10


class Cadence(Callback):
    """Validates every so many generator updates, once early, and at the end; stops at the last update.

    Lightning counts batches, of which the discriminator takes its share; so it is told to validate never, and this
    callback tells it after which batch the time has come.

    Args:
        val_every: generator updates between validations.
        max_steps: last generator update.
        early: the first validation of a short run: after `min(val_every, early)` updates.
    """

    def __init__(self, *, val_every: int, max_steps: int, early: int = 100) -> None:
        self.val_every = val_every
        self.max_steps = max_steps
        self.early = min(val_every, early)
        self._validated = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is due at the step from which a run starts or resumes; it may already be over."""
        trainer.val_check_batch = NEVER
        self._validated = pl_module.counters.generator_updates

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Looks at the counter after every batch."""
        step = pl_module.counters.generator_updates
        due = step != self._validated and (step % self.val_every == 0 or step == self.early) and pl_module.at_boundary
        trainer.val_check_batch = 1 if due else NEVER
        if due:
            self._validated = step
        if step >= self.max_steps:
            trainer.should_stop = True


class TrainingStopped(Exception):
    """A signal ended the training.

    Attributes:
        signum: which signal.
        step: generator updates made.
        saved: whether a checkpoint holds all of them.
    """

    def __init__(self, signum: int, step: int, *, saved: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}")
        self.signum = signum
        self.step = step
        self.saved = saved


class Interrupts(Callback):
    """Turns Ctrl-C and SIGTERM into a stop between two updates, with a checkpoint; a second one stops at once.

    Args:
        save: writes the checkpoint.
        report: says what is going on.
    """

    def __init__(self, save: Callable[[], Any], report: Callable[[str], None]) -> None:
        self._save = save
        self._report = report
        self._received = 0
        self._previous: dict[int, Any] = {}
        self._batches = 0
        self._step = 0
        self._saved = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals over, where that is possible: only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)

    def _receive(self, signum: int, _frame: Any) -> None:
        if self._received or not self._batches:
            # The second time, or before anything was learnt that could be saved.
            raise TrainingStopped(signum, self._step, saved=False)
        self._received = signum
        self._report("Finishing this step and saving a checkpoint; once more to stop at once.")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stops here if a signal came; several processes agree on it every few batches."""
        self._batches += 1
        self._step = pl_module.counters.generator_updates
        if not pl_module.at_boundary or (world_size() > 1 and self._batches % ASK_EVERY):
            return
        if any_process(bool(self._received), pl_module.device):
            self._save()
            raise TrainingStopped(self._received or signal.SIGTERM, self._step, saved=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A signal may also kill a process that loads data, and the main one finds out first by an error."""
        if self._received and not isinstance(exception, TrainingStopped) and pl_module.at_boundary:
            self._save()
            self._step = pl_module.counters.generator_updates
            self._saved = True
        self._restore()

    def instead_of(self, error: BaseException) -> BaseException:
        """What to raise for an error that may only be the consequence of a signal."""
        if not self._received or isinstance(error, TrainingStopped):
            return error
        return TrainingStopped(self._received, self._step, saved=self._saved)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
