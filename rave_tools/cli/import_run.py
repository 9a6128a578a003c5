"""``rave_tools import``: a run of another program becomes one of ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from ..errors import UserError
from ..importing.registry import SOURCES, Choice, reader
from . import usage

if TYPE_CHECKING:
    from ..config import Config
    from ..importing.registry import Imported

HELP = "make a run or published weights of another program one of ours, to train on, export and play"
RECORD_NAME = "import.txt"


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command."""
    absl_flags.DEFINE_enum("from", "rave", list(SOURCES), "which program made it", flag_values=flags)
    absl_flags.DEFINE_string("run", None, "run folder or checkpoint of that program", flag_values=flags)
    absl_flags.DEFINE_string("output", None, "folder of the new run", required=True, flag_values=flags)
    absl_flags.DEFINE_string(
        "checkpoint", None, "the file, or a folder that has it; beside --run: which of a folder's checkpoints, by a "
        "part of its name (default: the newest)", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string(
        "config", None, "its configuration, where it does not lie in the checkpoint or beside it", flag_values=flags
    )
    absl_flags.DEFINE_multi_string(
        "override", [], "gin binding on top of what was imported, for what the checkpoint does not say; repeatable",
        flag_values=flags,
    )  # fmt: skip


def run(flags: absl_flags.FlagValues) -> int:
    """Read, translate, build, compare every weight, write, and say what was done."""
    from ..importing.checkpoint import check_weights, content
    from ..runs import RunDirectory

    folder = RunDirectory(flags["output"].value)
    if folder.existing() or folder.config_path.exists():
        raise UserError(f"there is a run at {folder.path} already; choose another --output")
    if folder.path.is_file():
        raise UserError(f"--output {folder.path} is a file; give the folder of the new run")
    path, choice = _chosen(flags)
    imported = reader(flags["from"].value)(path, choice)
    text, wrapper = _built(imported, flags["override"].value)
    check_weights(imported, wrapper, of=str(path))
    made = content(imported, wrapper, config_text=text)
    folder.create()
    folder.write_config(text)
    folder.write_command(usage.command_line("import", flags))
    folder.save("last", made)
    report = lines_of(imported, wrapper, made)
    _write_record(folder.path / RECORD_NAME, [*report, "", *imported.record])
    print("\n".join(report))
    print(f"every decision is in {folder.path / RECORD_NAME}; go on with:")
    print(f"  rave_tools generate --model {folder.path} --input SOUNDS")
    print(f"  rave_tools export --run {folder.path}")
    print(f"  rave_tools train --resume {folder.path} --db_path DATABASE")
    return 0


def _chosen(flags: absl_flags.FlagValues) -> tuple[Path, Choice]:
    """What is to be imported. Without --run, --checkpoint is the file itself and not a part of its name."""
    run, checkpoint, config_file = (flags[name].value for name in ("run", "checkpoint", "config"))
    if run is None and checkpoint is None:
        raise UserError("nothing to import: give --checkpoint FILE, or --run FOLDER")
    config_path = Path(config_file).expanduser() if config_file else None
    if run is None:
        return Path(checkpoint).expanduser(), Choice(None, config_path)
    return Path(run).expanduser(), Choice(checkpoint, config_path)


def _built(imported: "Imported", overrides: Sequence[str]) -> tuple[str, Any]:
    """The run's own configuration, which alone rebuilds the model, and the training wrapper that it describes."""
    from .. import config
    from ..training.run import train

    described = config.load([], overrides, text=imported.config_text, text_name="the imported configuration")
    text = described.operative(train)
    alone: Config = config.load([], text=text)
    return text, alone.build_argument(train, "wrapper")


def lines_of(imported: "Imported", wrapper: Any, made: dict[str, Any]) -> Sequence[str]:
    """What was imported, in words."""
    codec = wrapper.codec
    lines = [
        f"imported: {type(codec).__name__}, {codec.sample_rate} Hz, {codec.channels} channels, {codec.hop} samples per "
        f"latent frame, {len(imported.state_dict)} weights, each in its place"
    ]
    players = ("generator", "discriminator")
    for index, (player, optimizer) in enumerate(zip(players, made["optimizer_states"], strict=False)):
        moments = len(optimizer["state"])
        state = f"goes on with the moments of {moments} weights" if moments else "starts fresh"
        if not optimizer["state"] and index < len(imported.optimizers) and imported.optimizers[index] is not None:
            state = "has made no update yet"
        lines.append(f"optimiser of the {player}: {state}")
    return [*lines, *imported.notes]


def _write_record(path: Path, lines: Sequence[str]) -> None:
    from ..runs import write_text

    write_text(path, "\n".join(lines) + "\n")
