"""The one entrance of training: everything that a run needs comes in through these arguments."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from rave_tools.errors import UserError
from rave_tools.runs import RunDirectory
from rave_tools.training import summary
from rave_tools.training.cadence import NEVER, Cadence, Interrupts
from rave_tools.training.checkpoints import Checkpoints, Resume, restore_weights, transfer
from rave_tools.training.ema import EMA
from rave_tools.training.estimate import Estimating
from rave_tools.training.monitor import Display, Monitor
from rave_tools.training.parallel import GradientAveraging
from rave_tools.training.progress import Progress
from rave_tools.training.tensorboard import TensorBoard
from rave_tools.training.wandb import WandB, choose_mode
from rave_tools.training.wrapper import TrainingWrapper

LOGGER = logging.getLogger(__name__)
SMOKE_STEPS = 2
LONGEST_LIST = 20


class TrainingData(Protocol):
    """What a run asks of its Lightning data module, beyond the loaders.

    Attributes:
        n_signal: samples of a training window.
        batch: rows per batch and process.
        start_batch: where in the endless stream of batches to start; set before training.
        waited: total seconds spent waiting for training batches.
    """

    n_signal: int
    batch: int
    start_batch: int
    waited: float

    def describe(self) -> list[str]:
        """Lines about the data for the start of a run."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: generator updates made.
        best: best validation distance.
        skipped: updates left out because a gradient was not finite.
    """

    step: int
    best: float
    skipped: int


def train(
    *,
    wrapper: TrainingWrapper,
    data: TrainingData,
    run: RunDirectory,
    config_text: str,
    max_steps: int = 6_000_000,
    val_every: int = 10_000,
    save_every: int = 500_000,
    save_minutes: float = 10.0,
    log_every: int = 50,
    ema: float | None = None,
    precision: str = "32",
    accelerator: str = "auto",
    devices: int | list[int] = 1,
    accumulate: int = 1,
    compile: bool = False,
    seed: int | None = None,
    resume: Mapping[str, Any] | None = None,
    init_from: Mapping[str, Tensor] | None = None,
    codec: Mapping[str, Tensor] | None = None,
    estimate: bool = True,
    progress: bool = True,
    smoke_test: bool = False,
    facts: Mapping[str, Any] | None = None,
    listen: Callable[[Tensor], Tensor] | None = None,
    wandb: str = "off",
    wandb_project: str = "rave_tools",
    report: Callable[[str], None] = LOGGER.info,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Trains until the generator has made `max_steps` updates.

    Args:
        wrapper: model, losses, adversary and optimisers.
        data: batches, fixed validation segments.
        run: folder for checkpoints and events.
        config_text: effective configuration, saved with every checkpoint.
        max_steps: generator updates in all, those before a resume included.
        val_every: generator updates between validations; a short run is validated early as well.
        save_every: generator updates between checkpoints that are kept.
        save_minutes: longest time without a checkpoint.
        log_every: generator updates between two readings of the losses.
        ema: weight of the past in an average of the generator's weights; None keeps no average.
        precision: ``32``, ``bf16-mixed`` or ``16-mixed``.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: how many, or which.
        accumulate: batches whose gradients make one update.
        compile: whether the networks go through torch.compile.
        seed: of the model's noise; by default that of the resumed run, or 0.
        resume: contents of the checkpoint to go on from.
        init_from: weights to begin with, as far as they fit; what was and was not taken is reported.
        codec: weights of the trained codec whose latents a prior learns.
        estimate: whether to measure memory and time of all phases first.
        progress: whether to draw a bar; plain lines otherwise.
        smoke_test: only a few updates, to see whether everything works.
        facts: plain values to save with every checkpoint, such as the command's flags.
        listen: undoes what was done to the signal before it is heard.
        wandb: whether Weights & Biases shows the run as well: ``off``, ``auto``, ``online`` or ``offline``.
        wandb_project: name of the project there.
        report: takes what the run has to say, line by line.
        callbacks: further Lightning callbacks.

    Returns:
        How it ended.

    Raises:
        TrainingStopped: a signal ended it; a checkpoint was written.
        UserError: something outside is wrong (memory, disk, a checkpoint of another model, diverging losses).
    """
    wrapper.accumulate = accumulate
    mode = choose_mode(wandb, report)
    _load(wrapper, resume, init_from, seed, report)
    if codec is not None:
        wrapper.load_codec(codec)
    step = wrapper.counters.generator_updates
    _check(wrapper, data)
    if smoke_test:
        max_steps, val_every, save_every = step + SMOKE_STEPS, 1, NEVER
    if step >= max_steps:
        raise UserError(f"the run has already made {step} updates and --max_steps is {max_steps}; raise --max_steps")
    data.start_batch = wrapper.counters.batches
    past = dict((resume or {}).get("rave_tools", {}))
    wrapper.measure_receptive_field(past.get("receptive_field"))
    _introduce(wrapper, data, resume is not None, report)
    if compile:
        compile_networks(wrapper)
    average = _average(ema, resume)
    best = float(past.get("best_distance", float("inf")))
    bar = Progress(schedule=wrapper.schedule, max_steps=max_steps, step=step, report=report, bar=progress, best=best)
    checkpoints = Checkpoints(
        run.save,
        save_every=save_every,
        report=bar.line,
        config_text=config_text,
        facts=facts,
        ema=average,
        minutes=save_minutes,
        best=best,
    )
    interrupts = Interrupts(checkpoints.save_last, bar.line)
    trainer = _trainer(
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        root=str(run.path),
        callbacks=[
            *([average] if average is not None else []),
            *([Resume(resume)] if resume is not None else []),
            *_estimating(estimate, max_steps, bar, compile),
            Cadence(val_every=val_every, max_steps=max_steps),
            checkpoints,
            interrupts,
            *callbacks,
        ],
    )
    displays: list[Display] = []
    if trainer.is_global_zero:
        board = TensorBoard(
            run.path, sample_rate=wrapper.codec.sample_rate, config_text=config_text, purge_step=step + 1, listen=listen
        )
        displays = [board, bar]
        if mode is not None:
            shown = {**(facts or {}), "config": config_text}
            displays.append(WandB(run.path, mode=mode, project=wandb_project, sample_rate=wrapper.codec.sample_rate,
                                  config=shown, resume=resume is not None, report=bar.line, listen=listen))  # fmt: skip
    trainer.callbacks.append(Monitor(displays, every=log_every, waited=lambda: data.waited))
    with _quiet(), _clear_errors(wrapper, interrupts):
        trainer.fit(wrapper, datamodule=data)
    return Outcome(wrapper.counters.generator_updates, checkpoints.best, wrapper.counters.skipped)


def _load(
    wrapper: TrainingWrapper,
    resume: Mapping[str, Any] | None,
    init_from: Mapping[str, Tensor] | None,
    seed: int | None,
    report: Callable[[str], None],
) -> None:
    """Weights from a checkpoint of this run or of another one, and the seed."""
    if resume is not None:
        restore_weights(wrapper, resume)
        wrapper.seed = int(resume["rave_tools"].get("seed", wrapper.seed))
    if init_from is not None:
        _begin_with(wrapper, init_from, report)
    if seed is not None:
        wrapper.seed = seed


def _begin_with(wrapper: TrainingWrapper, weights: Mapping[str, Tensor], report: Callable[[str], None]) -> None:
    """Weights of another run, as far as they fit, and a word about each that does not.

    Raises:
        UserError: not one of the weights that this training moves was taken.
    """
    taken, left = transfer(wrapper, weights)
    learnt = {name: p.numel() for name, p in wrapper.named_parameters() if p.requires_grad}
    fitting = learnt.keys() & set(taken)
    if not fitting:
        raise UserError(
            f"--init_from: none of the {len(learnt)} weights that this training moves is in the checkpoint with its "
            f"shape ({'; '.join(left[:3])}); take the --config, CAPACITY and --channels of the run that it is from, or "
            "leave --init_from out"
        )
    share = 100 * sum(learnt[name] for name in fitting) / sum(learnt.values())
    report(
        f"initial weights: {len(taken)} of {len(wrapper.state_dict())} tensors taken, {len(left)} not; "
        f"{share:.1f} % of the {summary.readable_count(sum(learnt.values()))} numbers that learn"
    )
    for part in dict.fromkeys(_part(name) for name in learnt):
        own = [name for name in learnt if _part(name) == part]
        report(f"  {part}: {len(fitting.intersection(own))} of {len(own)} weights taken")
    for reason in left[:LONGEST_LIST]:
        report(f"  not taken: {reason}")
    if len(left) > LONGEST_LIST:
        report(f"  ... and {len(left) - LONGEST_LIST} more")


def _part(name: str) -> str:
    """'codec.encoder.net.0.bias' -> 'codec.encoder'."""
    return ".".join(name.split(".")[:2])


def _check(wrapper: TrainingWrapper, data: TrainingData) -> None:
    """What must agree before the first step.

    Raises:
        UserError: a window of no whole number of frames, a loss without a weight, a weight without a loss.
    """
    try:
        names = wrapper.declared_losses()
        if hasattr(wrapper.combiner, "declare"):
            wrapper.combiner.declare(names)
    except ValueError as error:
        raise UserError(str(error)) from error
    hop = wrapper.codec.hop
    if data.n_signal % hop:
        raise UserError(
            f"--n_signal {data.n_signal} is not a whole number of the model's frames of {hop} samples; "
            f"use {max(1, round(data.n_signal / hop)) * hop}"
        )
    wrapper.check_window(data.n_signal)


def _introduce(
    wrapper: TrainingWrapper, data: TrainingData, resuming: bool, report: Callable[[str], None]
) -> None:
    """What is about to be trained, on what, and from where."""
    lines = [*data.describe(), *summary.table(wrapper).splitlines(), ""]
    lines.append(summary.receptive_field_report(wrapper, data.n_signal))
    lines.append(summary.latency_report(wrapper.codec))
    if resuming:
        phase = wrapper.phase
        step = wrapper.counters.generator_updates
        lines.append(f"resuming at step {step}, phase {phase.number} ({phase.name})")
    for line in lines:
        report(line)


def _average(factor: float | None, resume: Mapping[str, Any] | None) -> EMA | None:
    """The averaged weights; a resumed run goes on averaging when its checkpoint did."""
    if factor is None:
        return None
    average = EMA(factor)
    if resume is not None and resume.get("ema"):
        average.restore(dict(resume["ema"]))
    return average


def _estimating(wanted: bool, max_steps: int, bar: Progress, compiled: bool) -> list[Callback]:
    if not wanted:
        return []

    def receive(found: Any) -> None:
        bar.estimate = found

    return [Estimating(max_steps=max_steps, tell=bar.line, receive=receive, compiled=compiled)]


def compile_networks(wrapper: TrainingWrapper, **options: Any) -> None:
    """Compiles the networks that are worth it in place: names in the checkpoint stay as they are.

    Args:
        wrapper: whose networks.
        options: of torch.compile.
    """
    for network in wrapper.networks():
        network.compile(**options)


def _trainer(
    *, precision: str, accelerator: str, devices: int | list[int], root: str, callbacks: list[Callback]
) -> Trainer:
    """Lightning for devices, processes and precision; the rest of its services is done here in the open."""
    count = devices if isinstance(devices, int) else len(devices)
    several = count != 1
    with _quiet():
        return Trainer(
            accelerator="gpu" if accelerator == "cuda" else accelerator,
            devices=devices,
            strategy=GradientAveraging() if several else "auto",
            sync_batchnorm=several and accelerator in ("auto", "cuda") and torch.cuda.is_available(),
            precision="32-true" if precision == "32" else precision,
            callbacks=callbacks,
            default_root_dir=root,
            max_epochs=-1,
            val_check_interval=NEVER,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
            benchmark=torch.cuda.is_available(),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out Lightning's hints, which speak of services that are not used here."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _clear_errors(wrapper: TrainingWrapper, interrupts: Interrupts) -> Iterator[None]:
    """Says what to do when the device has no memory left, and keeps an interruption one."""
    try:
        yield
    except SystemExit as error:  # Lightning's answer to Ctrl-C before the first step
        raise KeyboardInterrupt from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory on {wrapper.device} in phase {wrapper.phase.number} at step "
            f"{wrapper.counters.generator_updates}: lower --batch (and raise --accumulate as much), lower --n_signal, "
            "or train with --precision bf16-mixed"
        ) from error
    except Exception as error:
        if (better := interrupts.instead_of(error)) is error:
            raise
        raise better from error
