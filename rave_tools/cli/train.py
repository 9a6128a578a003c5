"""``rave_tools train``: from a database and a configuration to a run folder."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from ..errors import UserError
from . import training_data, usage
from .prior_training import DEFAULT_PRIOR, TrainedCodec, load_configuration, open_model, window

if TYPE_CHECKING:
    from ..config import Config
    from ..runs import OpenedRun, RunDirectory

HELP = "train a codec, or a prior on a codec's latents, on a database made by rave_tools preprocess"
DEFAULT_CONFIG = "v2"

# Flags that belong to the run and are saved in its configuration; those of the machine are not.
RUN_FLAGS = ("max_steps", "val_every", "save_every", "ema", "precision", "accumulate")
MACHINE_FLAGS = ("compile", "smoke_test", "estimate", "log_every", "save_minutes", "wandb", "wandb_project")
PRECISIONS = {"32": "32", "bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed", "16": "16-mixed", "16-mixed": "16-mixed"}


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command; names are RAVE's where RAVE has the flag."""
    string, number, switch, real, several = (
        absl_flags.DEFINE_string, absl_flags.DEFINE_integer, absl_flags.DEFINE_bool, absl_flags.DEFINE_float,
        absl_flags.DEFINE_multi_string,
    )  # fmt: skip
    where = {"flag_values": flags}
    string("name", None, "name of the run: its folder in --out_path", **where)
    training_data.define(flags)
    string("out_path", "runs", "folder of the runs", **where)
    several("config", [DEFAULT_CONFIG], "configuration, then others to apply over it", **where)
    string("model", None, "run folder or checkpoint of a trained codec, to train a prior on its latents", **where)
    several("override", [], "a gin binding applied last, as 'CAPACITY = 32'", **where)
    several("augment", [], "augmentation configuration, such as mute", **where)
    number("max_steps", 6_000_000, "last generator update", **where)
    number("val_every", 10_000, "generator updates between validations", **where)
    number("save_every", 500_000, "generator updates between checkpoints that are kept, besides last and best", **where)
    real("save_minutes", 10.0, "longest time without a checkpoint, in minutes", **where)
    number("log_every", 50, "generator updates between two readings of the losses", **where)
    number("n_signal", 131072, "samples of a training window", **where)
    number("batch", 8, "windows per batch, for each device", **where)
    number("accumulate", 1, "batches whose gradients make one update", **where)
    number("channels", 0, "channels of the model; 0: of the database, or, with --audio_path, its own", **where)
    string("resume", None, "run folder or checkpoint to go on from, where it stopped", **where)
    string("ckpt", None, "the same as --resume", **where)
    string("init_from", None, "run folder or checkpoint whose weights to begin with, as far as they fit", **where)
    number("workers", min(8, os.cpu_count() or 1), "processes that load data; one per core, at most 8", **where)
    string("accelerator", "auto", "auto, cpu, cuda or mps", **where)
    string("devices", "1", "how many devices, or which, as '0,2'", **where)
    absl_flags.DEFINE_multi_integer("gpu", None, "which GPU, as in RAVE; -1 trains on the CPU", **where)
    absl_flags.DEFINE_enum("precision", "32", list(PRECISIONS), "float32, or mixed with half precision", **where)
    switch("compile", False, "compile the networks: slow to start, then faster", **where)
    real("ema", None, "keep an average of the weights; weight of the past, such as 0.999", **where)
    switch("derivative", False, "train on the derivative of the signal", **where)
    switch("normalize", False, "train on normalised windows", **where)
    absl_flags.DEFINE_list("rand_pitch", None, "random speed between two factors, as 0.7,1.3", **where)
    number("seed", 0, "of weights, data order and noise", **where)
    absl_flags.DEFINE_enum(
        "wandb", "off", ["off", "auto", "online", "offline"],
        "show the run in Weights & Biases too (extra 'wandb'); auto takes what is installed and logged in", **where
    )  # fmt: skip
    string("wandb_project", "rave_tools", "name of the project in Weights & Biases", **where)
    switch("progress", True, "draw a bar on a terminal; otherwise a line now and then", **where)
    switch("estimate", True, "measure memory and time of all phases first", **where)
    switch("smoke_test", False, "a few updates of everything, to see whether it works", **where)


def run(flags: absl_flags.FlagValues) -> int:
    """Train, or go on training."""
    import torch

    from ..training.cadence import TrainingStopped
    from ..training.memory import keep_freed_memory
    from ..training.run import train

    first = os.environ.get("LOCAL_RANK", "0") == "0"
    report = _say if first else _say_nothing
    opened = _opened(flags)
    values = training_data.data_values(flags, opened)
    folder = _folder(flags, opened, first=first)
    model = open_model(flags["model"].value, resuming=opened is not None, report=report)
    loaded = _configuration(flags, opened, model, values, report)
    training_data.take_macros(values, flags, opened, loaded)
    if model is not None and not flags["n_signal"].present:
        values["n_signal"] = max(values["n_signal"], window(loaded, model))
    settings = {name: flags[name].value for name in RUN_FLAGS if flags[name].present}
    if "precision" in settings:
        settings["precision"] = PRECISIONS[settings["precision"]]
    machine = _machine(flags)
    torch.set_float32_matmul_precision("high")  # as RAVE: TF32 on the GPUs that have it
    _check_precision(settings.get("precision", "32"), machine["accelerator"])
    if machine["accelerator"] == "cpu" or (machine["accelerator"] == "auto" and not torch.cuda.is_available()):
        keep_freed_memory()
        # The gradients of a recurrent layer fade away, and such numbers cost a processor six times as long.
        torch.set_flush_denormal(True)
    text = loaded.operative(train, **settings)
    facts = _facts(values, model, opened)
    fresh = first and not folder.path.exists()
    data = training_data.build(values, loaded, workers=flags["workers"].value, run=folder.path)
    torch.manual_seed(values["seed"])
    if first:
        folder.create()
        folder.write_config(text)
        folder.write_command(usage.command_line("train", flags))
    try:
        outcome = loaded.call(
            train,
            data=data,
            run=folder,
            config_text=text,
            facts=facts,
            seed=values["seed"],
            resume=None if opened is None else {**opened.extra, "state_dict": opened.state_dict},
            init_from=_initial(flags),
            codec=None if model is None else model.weights,
            listen=training_data.listener(values, data),
            progress=flags["progress"].value and sys.stderr.isatty() and first,
            report=report,
            **settings,
            **machine,
        )
    except TrainingStopped as stopped:
        saved = f"the checkpoint is in {folder.checkpoints}" if stopped.saved else "without saving"
        report(f"stopped at step {stopped.step}, {saved}; go on with: rave_tools train --resume {folder.path}")
        return 128 + stopped.signum
    except UserError:
        if fresh:
            folder.discard()
        raise
    codec = facts.get("model")
    way = f"--run {codec} --prior {folder.path}" if codec else f"--run {folder.path} --streaming"
    report(
        f"done at step {outcome.step}; best validation distance {outcome.best:.4f}; "
        f"export with: rave_tools export {way}"
    )
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _say_nothing(line: str) -> None:
    """Processes other than the first one train in silence."""


def _opened(flags: absl_flags.FlagValues) -> "OpenedRun | None":
    """The checkpoint to go on from."""
    from ..runs import open_run

    path = flags["resume"].value or flags["ckpt"].value
    if path and flags["init_from"].value:
        raise UserError("--resume goes on with a run, --init_from begins a new one with its weights; choose one")
    return open_run(path) if path else None


def _folder(flags: absl_flags.FlagValues, opened: "OpenedRun | None", *, first: bool) -> "RunDirectory":
    """The run's folder; an existing run is never overwritten."""
    from ..runs import RunDirectory

    name = flags["name"].value
    if opened is not None and not name:
        if opened.path.parent.name != "checkpoints":
            raise UserError(f"{opened.path} lies in no run folder; give the run that goes on from it a --name")
        return RunDirectory(opened.path.parent.parent)
    if not name:
        raise UserError("--name is required: the name of the run")
    if Path(name).name != name or name == "..":
        raise UserError(f"--name {name}: a run is one folder inside --out_path; leave out the slashes and dots")
    folder = RunDirectory(Path(flags["out_path"].value) / name)
    same = opened is not None and opened.path.parent.parent.resolve() == folder.path.resolve()
    if first and not same and folder.existing():
        raise UserError(
            f"there is a run at {folder.path} already; go on with it (--resume {folder.path}) or choose another --name"
        )
    return folder


def _configuration(
    flags: absl_flags.FlagValues,
    opened: "OpenedRun | None",
    model: TrainedCodec | None,
    values: Mapping[str, Any],
    report: Callable[[str], None],
) -> "Config":
    """The configuration: files, then facts of the data, then overrides; on resume over the run's own, and said."""
    from .. import config

    channels = flags["channels"].value
    if model is not None:
        if channels:
            raise UserError("--channels is a fact of the codec that --model names; leave it out")
        names = flags["config"].value if flags["config"].present else [DEFAULT_PRIOR]
        return load_configuration(names, [*model.overrides(), *flags["override"].value], model)
    if opened is None:
        channels = channels or training_data.channels_of(values, report)
        overrides = [*([f"CHANNELS = {channels}"] if channels else []), *flags["override"].value]
        return load_configuration(flags["config"].value, overrides, None)
    files = flags["config"].value if flags["config"].present else []
    overrides = [*([f"CHANNELS = {channels}"] if channels else []), *flags["override"].value]
    before = config.load([], text=opened.config_text)
    after = config.load(files, overrides, text=opened.config_text)
    for line in config.differences(before, after):
        report(f"changed on resume: {line}")
    return after


def _facts(values: dict[str, Any], model: TrainedCodec | None, opened: "OpenedRun | None") -> dict[str, Any]:
    """What a checkpoint keeps of the command: the data flags, and where a prior's codec came from."""
    path = str(model.path) if model is not None else opened.facts.get("model") if opened is not None else None
    return {"flags": values, **({"model": path} if path else {})}


def _initial(flags: absl_flags.FlagValues) -> Mapping[str, Any] | None:
    from ..runs import open_run

    return open_run(flags["init_from"].value).state_dict if flags["init_from"].value else None


def _machine(flags: absl_flags.FlagValues) -> dict[str, Any]:
    """Where to train, checked before anything is loaded, and how."""
    import torch

    chosen = {name: flags[name].value for name in MACHINE_FLAGS if flags[name].present}
    accelerator, devices = flags["accelerator"].value, _devices(flags["devices"].value)
    if flags["gpu"].value:
        cpu = flags["gpu"].value == [-1]
        accelerator, devices = ("cpu", 1) if cpu else ("cuda", list(flags["gpu"].value))
    if accelerator not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"--accelerator {accelerator} is none of auto, cpu, cuda, mps")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here; use --accelerator cpu, or install a torch built for your GPU")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("torch finds no MPS device here; use --accelerator cpu")
    if accelerator == "cuda" and (missing := _missing_device(devices, torch.cuda.device_count())):
        raise UserError(f"--devices {missing}: there are {torch.cuda.device_count()} CUDA devices here")
    return {**chosen, "accelerator": accelerator, "devices": devices}


def _devices(text: str) -> int | list[int]:
    """``2`` is a number of devices, ``0,2`` or ``1,`` says which."""
    try:
        return [int(word) for word in text.split(",") if word] if "," in text else int(text)
    except ValueError as error:
        raise UserError(f"--devices {text} is neither a number of devices nor a list such as 0,2") from error


def _missing_device(devices: int | list[int], count: int) -> str:
    wanted = devices if isinstance(devices, int) else max(devices) + 1
    return str(devices) if wanted > count else ""


def _check_precision(precision: str, accelerator: str) -> None:
    """float16 needs a scaler and a GPU that computes in it.

    Raises:
        UserError: it is asked for elsewhere.
    """
    import torch

    cuda = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    if precision == "16-mixed" and not cuda:
        raise UserError("--precision 16 needs a CUDA device; use --precision bf16 or 32")
