"""Checkpoints of a run: what they hold, when they are written, and how a run goes on from one."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import rave_tools
from rave_tools.errors import UserError
from rave_tools.training.ema import EMA
from rave_tools.training.wrapper import Counters, TrainingWrapper

Write = Callable[[str, dict[str, Any]], Any]


def capture(
    trainer: Trainer,
    wrapper: TrainingWrapper,
    *,
    config_text: str,
    ema: EMA | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole state of a run as tensors, numbers and strings.

    No generator of random numbers is in it: noise and data are functions of the counters.

    Args:
        trainer: whose optimisers and precision are saved.
        wrapper: weights and counters.
        config_text: the effective configuration, so that a lone file can be opened.
        ema: averaged weights, saved under ``ema``.
        facts: further plain values, saved under ``rave_tools``.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    state = {
        "state_dict": wrapper.state_dict(),
        "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "scaler": scaler.state_dict() if scaler is not None else {},
        "config": config_text,
        "rave_tools": {
            "version": rave_tools.__version__,
            **(facts or {}),
            **wrapper.counters.as_dict(),
            "seed": wrapper.seed,
            "phase": wrapper.phase.number,
            "receptive_field": list(wrapper.receptive_field),
        },
    }
    if ema is not None:
        state["ema"] = ema.saved()
    return state


def restore_weights(wrapper: TrainingWrapper, checkpoint: Mapping[str, Any]) -> None:
    """Weights and counters; call before the optimisers exist.

    Raises:
        UserError: the checkpoint is of another model; lists what does not fit.
    """
    taken, left = transfer(wrapper, checkpoint["state_dict"])
    if left:
        raise UserError(
            "cannot resume: the checkpoint does not fit the model that the configuration describes: "
            + "; ".join(left[:5])
            + (f"; and {len(left) - 5} more" if len(left) > 5 else "")
            + ". Resume without --config and --override, or start a new run with --init_from"
        )
    wrapper.counters = Counters.from_mapping(checkpoint["rave_tools"])


def transfer(wrapper: TrainingWrapper, saved: Mapping[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Copies the tensors that fit by name and shape.

    Returns:
        (names taken, reasons for everything that was not).
    """
    own = wrapper.state_dict()
    fits = {name: tensor for name, tensor in saved.items() if name in own and own[name].shape == tensor.shape}
    left = [f"{name} is not in the checkpoint" for name in own if name not in saved]
    left += [f"{name} is not in the model" for name in saved if name not in own]
    left += [
        f"{name} is {tuple(saved[name].shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
        for name in own
        if name in saved and name not in fits
    ]
    wrapper.load_state_dict({**own, **fits})
    return list(fits), left


class Resume(Callback):
    """Hands the optimisers their past when training starts; their settings come from the configuration.

    Args:
        checkpoint: as `capture` made it.
    """

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self._checkpoint: Mapping[str, Any] | None = checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once; then the file's contents are let go.

        Raises:
            UserError: the optimisers of the checkpoint are not those of the configuration.
        """
        states = self._checkpoint.get("optimizer_states", [])
        if len(states) != len(trainer.optimizers):
            raise UserError(
                f"cannot resume: the checkpoint has {len(states)} optimisers and the configuration "
                f"{len(trainer.optimizers)} (with or without adversary); use --init_from to take only the weights"
            )
        for optimizer, state in zip(trainer.optimizers, states, strict=True):
            settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            # The configuration's settings first: where torch puts a step counter depends on them (fused, capturable).
            groups = [{**group, **own} for group, own in zip(state["param_groups"], settings, strict=False)]
            _load_optimizer(optimizer, {**state, "param_groups": groups})
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and self._checkpoint.get("scaler"):
            scaler.load_state_dict(dict(self._checkpoint["scaler"]))
        self._checkpoint = None


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    try:
        optimizer.load_state_dict(dict(state))
    except (ValueError, KeyError) as error:
        raise UserError(
            f"cannot resume: the state of {type(optimizer).__name__} in the checkpoint does not fit ({error}); "
            "use --init_from to take only the weights"
        ) from error


class Checkpoints(Callback):
    """Writes `last` early, every few minutes, at every validation and at the end; `best`; and `step_N` to keep.

    Args:
        write: (name without suffix, state) -> anything; writes atomically, in the first process only.
        save_every: generator updates between the checkpoints that are kept.
        early: the first checkpoint comes at this update.
        minutes: longest time without a checkpoint.
        report: told when a periodic checkpoint could not be written.
        config_text: effective configuration.
        ema: averaged weights to save along.
        facts: plain values to save along.
        best: best validation distance of the run so far.
    """

    def __init__(
        self,
        write: Write,
        *,
        save_every: int,
        report: Callable[[str], None],
        config_text: str,
        ema: EMA | None = None,
        facts: Mapping[str, Any] | None = None,
        early: int = 100,
        minutes: float = 10.0,
        best: float = float("inf"),
    ) -> None:
        self._write = write
        self.save_every = save_every
        self.early = early
        self.seconds = 60 * minutes
        self.best = best
        self._report = report
        self._config_text = config_text
        self._ema = ema
        self._facts = dict(facts or {})
        self._saved = -1
        self._kept = -1
        self._time = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remembers whom to save."""
        self._trainer, self._wrapper = trainer, pl_module

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was just loaded needs no saving."""
        self._saved = self._kept = pl_module.counters.generator_updates
        self._time = time.monotonic()

    def save(self, *names: str) -> None:
        """Writes the present state under each of the names."""
        if self._trainer.is_global_zero:
            state = capture(
                self._trainer,
                self._wrapper,
                config_text=self._config_text,
                ema=self._ema,
                facts={**self._facts, "best_distance": self.best},
            )
            for name in names:
                self._write(name, state)
        if "last" in names:
            self._saved = self._wrapper.counters.generator_updates
        self._time = time.monotonic()

    def save_last(self) -> None:
        """Writes `last`, whatever the time; errors are the caller's."""
        self.save("last")

    def _try(self, names: Sequence[str]) -> None:
        """A full disk at three in the morning must not end a training: it is reported, and tried again later."""
        try:
            self.save(*names)
        except (UserError, OSError) as error:
            self._time = time.monotonic()
            self._report(f"warning: no checkpoint written: {error} Training goes on; the one before is intact.")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Looks whether one is due."""
        step = pl_module.counters.generator_updates
        if not pl_module.at_boundary or step == self._saved:
            return
        names = []
        if step == self.early or (trainer.is_global_zero and time.monotonic() - self._time >= self.seconds):
            names.append("last")
        if step % self.save_every == 0 and step != self._kept:
            self._kept = step
            names.append(f"step_{step:08d}")
        if names:
            self._try(names)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The best so far is kept apart; the last one goes with it."""
        verdict = pl_module.validation.verdict
        names = ["last"]
        if verdict is not None and verdict.distance < self.best:
            self.best = verdict.distance
            names.append("best")
        self._try(names)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing done since the last checkpoint is lost."""
        if pl_module.counters.generator_updates != self._saved:
            self.save_last()
