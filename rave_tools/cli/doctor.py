"""``rave_tools doctor``: what is wrong with a run or an exported file, in words and numbers."""

import json
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from ..errors import UserError
from ..findings import SEVERITIES, Finding, count, unknown
from .train import DEFAULT_CONFIG

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import Config
    from ..runs import OpenedRun
    from ..training.autoencoder import AutoencoderTrainingWrapper
    from ..training.diagnosis import Stage

HELP = "examine runs and exported files: losses, latents, latency, speed, the contract of the hosts"
ARGUMENTS = "RUN|MODEL.ts [...]"
WIDTH = 118
MOST_SOUND = 32
SAVED_TEXT = "the configuration in"


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command."""
    absl_flags.DEFINE_string("json", None, "also write all findings to this file", flag_values=flags)
    absl_flags.DEFINE_string(
        "checkpoint", "last", "checkpoint of a run whose weights are examined: last, best or step_N", flag_values=flags
    )
    absl_flags.DEFINE_bool("speed", True, "measure the speed of a .ts, some seconds", flag_values=flags)
    absl_flags.DEFINE_bool("data", True, "measure the latents on the run's validation sound", flag_values=flags)
    absl_flags.DEFINE_integer("sampling_rate", None, "in hertz, for a .ts that does not say it", flag_values=flags)
    absl_flags.DEFINE_bool("quiet", False, "print only warnings and errors", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> int:
    """Examine everything that is named; 1 when an error was found or something could not be opened."""
    if not arguments:
        print("error: name a run folder, a .ckpt or a .ts. See rave_tools doctor --help.", file=sys.stderr)
        return 2
    results: list[tuple[str, list[Finding]]] = []
    failed = False
    for name in arguments:
        try:
            findings = _examine(Path(name), flags)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            failed = True
            continue
        results.append((name, findings))
        _show(name, findings, quiet=flags["quiet"].value)
        failed = failed or count(findings)["error"] > 0
    if flags["json"].value:
        _write_json(Path(flags["json"].value), results)
    return 1 if failed else 0


def _show(name: str, findings: Sequence[Finding], *, quiet: bool) -> None:
    """Print the findings of one run or file, and their sum."""
    print(name)
    for finding in findings:
        if quiet and finding.severity in ("ok", "note"):
            continue
        head = f"  {finding.severity:<8} {finding.subject}: "
        print(textwrap.fill(f"{head}{finding.seen}", WIDTH, subsequent_indent=" " * 11, break_long_words=False))
        if finding.severity == "ok":
            continue
        for label, text in (("means", finding.means), ("do", finding.mend), ("read in", finding.where)):
            if text:
                line = f"           {label}: {text}"
                print(textwrap.fill(line, WIDTH, subsequent_indent=" " * 13, break_long_words=False))
    numbers = count(findings)
    parts = [f"{numbers[s]} {s}{'s' * (numbers[s] != 1 and s != 'ok')}" for s in reversed(SEVERITIES)]
    print(f"  {', '.join(parts)}")


def _write_json(path: Path, results: Sequence[tuple[str, list[Finding]]]) -> None:
    from ..runs import write_text

    content = [
        {"path": name, "counts": count(findings), "findings": [finding.as_dict() for finding in findings]}
        for name, findings in results
    ]
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _examine(path: Path, flags: absl_flags.FlagValues) -> list[Finding]:
    if path.suffix == ".ts" or (path.is_file() and path.suffix != ".ckpt"):
        from ..export.examine import examine

        return examine(path, time_it=flags["speed"].value, sample_rate=flags["sampling_rate"].value)
    return _examine_run(path, flags)


def _examine_run(path: Path, flags: absl_flags.FlagValues) -> list[Finding]:
    """A run folder, its checkpoints folder, or a lone checkpoint."""
    from ..errors import RunError
    from ..runs import open_run
    from ..training.condition import check_differences, check_disk, check_weights
    from ..training.curves import read_curves
    from ..training.diagnosis import Stage, diagnose

    folder = path.parent if path.name == "checkpoints" else path
    if path.is_file():
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    curves = read_curves(folder)
    try:
        opened = open_run(path, which=flags["checkpoint"].value)
    except RunError as error:
        if not curves.by_tag or _has_checkpoints(folder):
            raise
        reason = unknown("weights", str(error), where=str(folder))
        return [*diagnose(curves, Stage(curves.last_step)), reason]
    findings = check_weights(opened.state_dict, opened.extra.get("ema"), where=str(opened.path))
    lost = findings[0].severity == "error"
    try:
        config, wrapper = _rebuild(opened)
    except UserError as error:
        problem = _no_codec(error, opened)
        return [*diagnose(curves, Stage(opened.step)), *findings, problem, *check_disk(folder, opened.path)]
    stage = _stage(opened, config, wrapper, transferred=_transferred(folder))
    findings = [*diagnose(curves, stage), *findings]
    if not lost:
        findings += _anatomy(opened, config, wrapper, use_data=flags["data"].value)
    findings += check_disk(folder, opened.path)
    lines, names, why = _differences(folder, config)
    return [*findings, *check_differences(lines, names, why_none=why)]


def _no_codec(error: UserError, opened: "OpenedRun") -> Finding:
    """Why there is no model to look at: a run of another kind, or one that does not fit its own configuration."""
    seen = " ".join(str(error).split())
    if not opened.part("codec"):
        return unknown("model", f"this is no run of a codec, only curves and weights were examined ({seen})",
                       where=str(opened.path))  # fmt: skip
    return Finding(
        "error", "model", seen, "it cannot be rebuilt from the configuration saved with it, nor exported",
        "install the version that it was trained with (command.txt)", str(opened.path),
    )  # fmt: skip


def _has_checkpoints(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.ckpt"))


def _rebuild(opened: "OpenedRun") -> "tuple[Config, AutoencoderTrainingWrapper]":
    """The configuration of a checkpoint and the training wrapper that it describes, with its weights.

    Raises:
        UserError: the configuration cannot be read or built, or the weights do not fit it.
    """
    from .. import config
    from ..training.autoencoder import AutoencoderTrainingWrapper
    from ..training.run import train

    loaded = config.load([], text=opened.config_text, text_name=f"{SAVED_TEXT} {opened.path}")
    wrapper = loaded.build_argument(train, "wrapper")
    if not isinstance(wrapper, AutoencoderTrainingWrapper):
        raise UserError(f"its wrapper is a {type(wrapper).__name__}, and not an AutoencoderTrainingWrapper")
    try:
        wrapper.load_state_dict(opened.state_dict)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"the weights in {opened.path} do not fit the configuration beside them: {detail}") from error
    return loaded, wrapper.eval()


def _stage(
    opened: "OpenedRun", config: "Config", wrapper: "AutoencoderTrainingWrapper", *, transferred: bool
) -> "Stage":
    from ..training.condition import chance
    from ..training.diagnosis import Stage

    latents = None if wrapper.codec.num_codebooks else wrapper.codec.latent_dim
    return Stage(
        opened.step,
        max_steps=_bound(config, "max_steps"),
        schedule=wrapper.schedule,
        chance=chance(wrapper.adversary, wrapper.codec.channels),
        latents=latents,
        transferred=transferred,
    )


def _bound(config: "Config", parameter: str) -> int | None:
    """A number that the configuration binds to the entrance, as the run saved it; else the entrance's default."""
    import inspect

    from ..training.run import train

    for key, binding in config.bindings.items():
        if key.target.object is train and key.parameter == parameter and isinstance(binding.value, int):
            return binding.value
    default = inspect.signature(train).parameters[parameter].default
    return int(default) if isinstance(default, int) else None


def _anatomy(
    opened: "OpenedRun", config: "Config", wrapper: "AutoencoderTrainingWrapper", *, use_data: bool
) -> list[Finding]:
    """What takes the model itself: latents, receptive field, latency."""
    from ..training.condition import check_latency, check_latents, check_window

    values = dict(opened.facts.get("flags", {}))
    sound, why = _sound(values, config, opened.path.parent.parent) if use_data else (None, "not asked for (--nodata)")
    where = f"validation sound in {_place(values)}" if sound is not None else "the checkpoint"
    findings = check_latents(wrapper.codec, sound, why_none=why, where=where)
    findings += check_window(wrapper, values.get("n_signal"), opened.facts.get("receptive_field"))
    return findings + check_latency(wrapper.codec)


def _place(values: dict[str, Any]) -> str | None:
    """Where the run's sound is: its database, or the first of its folders."""
    return values.get("db_path") or next(iter(values.get("audio_path") or ()), None)


def _sound(values: dict[str, Any], config: "Config", run: Path) -> "tuple[list[Tensor] | None, str]":
    """Validation audio of the run's own database, and why there is none."""
    from . import training_data

    place = _place(values)
    if not place:
        return None, "the checkpoint does not say its database"
    if not Path(place).exists():
        return None, f"the run's database {place} is not here"
    try:
        data = training_data.build({**values, "augment": []}, config, workers=0, run=run, batch=1)
        batches = [batch.audio for batch, _ in zip(data.val_dataloader(), range(MOST_SOUND), strict=False)]
        data.teardown()
    except (UserError, OSError, KeyError) as error:
        return None, f"the run's database {place} cannot be read: {' '.join(str(error).split())}"
    return (batches, "") if batches else (None, f"the run's database {place} holds no validation sound")


def _differences(folder: Path, config: "Config") -> tuple[list[str] | None, list[str], str]:
    """What differs from the shipped files that the run was started with, their names, and why that is unknown."""
    from .. import config as configurations
    from ..config import load

    command = folder / "command.txt"
    if not command.is_file():
        return None, [], f"there is no {command} to say which configuration it was started with"
    starts = list(_starts(command.read_text(encoding="utf-8")))
    if not starts:
        return None, [], f"{command} has no rave_tools train that began it"
    names = [word.partition("=")[2] for word in starts[-1] if word.startswith("--config=")] or [DEFAULT_CONFIG]
    try:
        shipped = load(names)
    except UserError as error:
        return None, names, f"{' '.join(str(error).split())}"
    lines = [line for line in configurations.differences(shipped, config)
             if not line.endswith("(gone)") and not line.startswith("run.train.")]  # fmt: skip
    return [_without_origin(line) for line in lines], names, ""


def _without_origin(line: str) -> str:
    """A difference without the place in the run's own file, which every one of them has."""
    text, found, _ = line.partition(f"; {SAVED_TEXT}")
    return f"{text})" if found else line.partition(f" (new, {SAVED_TEXT}")[0]


def _starts(text: str) -> Iterator[list[str]]:
    """The training commands in a run's command.txt that did not resume."""
    for line in text.splitlines():
        try:
            words = [] if line.startswith("#") else shlex.split(line)
        except ValueError:  # a quote that somebody's editor has left open
            continue
        if words[:2] == ["rave_tools", "train"] and not any(w.startswith(("--resume", "--ckpt")) for w in words):
            yield words


def _transferred(folder: Path) -> bool:
    """Whether the run began with the weights of another one."""
    command = folder / "command.txt"
    starts = list(_starts(command.read_text(encoding="utf-8"))) if command.is_file() else []
    return bool(starts) and any(word.startswith("--init_from") for word in starts[-1])
