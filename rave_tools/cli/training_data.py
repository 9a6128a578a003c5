"""The data side of ``rave_tools train``: a database, or folders of sound files without one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from ..errors import UserError

if TYPE_CHECKING:
    from ..config import Config
    from ..data.datamodule import AudioDataModule
    from ..data.folders import FolderDataModule
    from ..runs import OpenedRun

# Flags that only folders know.
FOLDER_FLAGS = ("min_seconds", "validation_share", "other_channels", "truncated", "pick_by")
# Flags that say what the data are like; a resumed run keeps its own unless they are given again.
DATA_FLAGS = (
    "db_path", "audio_path", *FOLDER_FLAGS, "channel_choice", "n_signal", "batch", "seed", "augment", "derivative",
    "normalize", "rand_pitch",
)  # fmt: skip


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags that say where the sound is and how it is taken."""
    where = {"flag_values": flags}
    absl_flags.DEFINE_string("db_path", None, "database made by rave_tools preprocess", **where)
    absl_flags.DEFINE_multi_string(
        "audio_path", None, "folder of sound files to train on without a database, instead of --db_path", **where
    )
    absl_flags.DEFINE_float("min_seconds", 1.0, "--audio_path: leave out shorter files", lower_bound=0.0, **where)
    absl_flags.DEFINE_float("validation_share", 5.0, "--audio_path: percent of the files for validation", **where)
    absl_flags.DEFINE_enum(
        "other_channels", "error", ["error", "skip"], "--audio_path: files with another count of channels", **where
    )
    absl_flags.DEFINE_enum(
        "truncated", "refuse", ["refuse", "use"], "--audio_path: files that end before their header does", **where
    )
    absl_flags.DEFINE_enum(
        "pick_by", "file", ["file", "duration"], "--audio_path: every file, or every second, as likely", **where
    )
    absl_flags.DEFINE_enum(
        "channel_choice", None, ["random", "mean", "first"],
        "--db_path: how a model of fewer channels than the database hears it", **where,
    )  # fmt: skip


def data_values(flags: absl_flags.FlagValues, opened: "OpenedRun | None") -> dict[str, Any]:
    """Values of the data flags: as given, else as the resumed run had them, else the defaults.

    Raises:
        UserError: there is no sound, or twice; a flag has no meaning there.
    """
    saved: Mapping[str, Any] = opened.facts.get("flags", {}) if opened is not None else {}
    values = {
        name: flags[name].value if flags[name].present or name not in saved else saved[name] for name in DATA_FLAGS
    }
    if flags["db_path"].value and flags["audio_path"].value:
        raise UserError("--db_path is a database, --audio_path a folder of sound files without one; give one of both")
    for given, other in (("db_path", "audio_path"), ("audio_path", "db_path")):
        if flags[given].value:
            values[other] = None
    if not values["db_path"] and not values["audio_path"]:
        raise UserError(
            "--db_path is required: a database made by rave_tools preprocess; or --audio_path: a folder of sound files"
        )
    if values["db_path"]:
        values["db_path"] = str(Path(values["db_path"]).resolve())
        out_of_place = [name for name in FOLDER_FLAGS if flags[name].present]
    else:
        values["audio_path"] = [str(Path(folder).expanduser().resolve()) for folder in values["audio_path"]]
        out_of_place = ["channel_choice"] if flags["channel_choice"].present else []
    if out_of_place:
        place = "--audio_path" if values["db_path"] else "--db_path"
        raise UserError(f"--{out_of_place[0]} is for {place}; leave it out")
    if values["rand_pitch"]:
        values["rand_pitch"] = _pitch(values["rand_pitch"])
    return values


def take_macros(
    values: dict[str, Any], flags: absl_flags.FlagValues, opened: "OpenedRun | None", loaded: "Config"
) -> None:
    """What a configuration says about window and batch, where neither the command nor the resumed run says it."""
    from .. import config

    saved = {} if opened is None else opened.facts.get("flags", {})  # none of an imported run
    for name, macro in (("n_signal", config.N_SIGNAL), ("batch", config.BATCH)):
        if name not in saved and not flags[name].present and loaded.has_macro(macro):
            values[name] = int(loaded.macro(macro))


def _pitch(words: list[Any]) -> list[float]:
    try:
        low, high = (float(word) for word in words)
    except ValueError as error:
        raise UserError(f"--rand_pitch {','.join(map(str, words))} is not two factors, such as 0.7,1.3") from error
    return [low, high]


def channels_of(values: Mapping[str, Any], report: Callable[[str], None]) -> int:
    """Channels of a model for which no flag says them; 0 leaves them to the configuration."""
    if not values["db_path"]:
        return 0
    from ..data.store import read_facts

    channels = read_facts(values["db_path"]).channels
    report(f"channels: {channels}, as in the database (--channels changes it)")
    return channels


def build(
    values: Mapping[str, Any], loaded: "Config", *, workers: int, run: Path | None, batch: int | None = None
) -> "AudioDataModule | FolderDataModule":
    """The data module that the values describe.

    Args:
        values: of the data flags, as a command gives or a checkpoint keeps them.
        loaded: the configuration.
        workers: processes that load.
        run: folder of the run, where the validation segments of `--audio_path` are kept; None for nowhere.
        batch: instead of the values' own.

    Returns:
        The module.
    """
    common: dict[str, Any] = {
        "n_signal": values["n_signal"],
        "batch": batch or values["batch"],
        "sampling_rate": loaded.macro("SAMPLING_RATE"),
        "channels": loaded.macro("CHANNELS"),
        "workers": workers,
        "seed": values.get("seed", 0),
        "augmentations": _augmentations(values.get("augment", []), loaded),
        "derivative": bool(values.get("derivative")),
        "normalize": bool(values.get("normalize")),
        "rand_pitch": tuple(values["rand_pitch"]) if values.get("rand_pitch") else None,
    }
    if not values.get("audio_path"):
        from ..data.datamodule import AudioDataModule

        return AudioDataModule(values["db_path"], downmix=values.get("channel_choice"), **common)
    from ..data.folders import FolderDataModule
    from ..data.heldout import MANIFEST

    manifest = None if run is None else run / MANIFEST
    return FolderDataModule(
        values["audio_path"], manifest=manifest, **{name: values[name] for name in FOLDER_FLAGS}, **common
    )


def _augmentations(files: list[str], loaded: "Config") -> list[Any]:
    """The model's own augmentation, then those of the command."""
    from .. import config

    own = [loaded.build(config.AUGMENTATION)] if loaded.has_macro(config.AUGMENTATION) else []
    return [*own, *(config.load([name]).build(config.AUGMENTATION) for name in files)]


@dataclass(frozen=True)
class _Integrated:
    """Makes the derivative of a signal audible as the signal itself."""

    sampling_rate: int

    def __call__(self, audio: Any) -> Any:
        import torch

        from ..data.transforms import Integrator

        return torch.from_numpy(Integrator(sampling_rate=self.sampling_rate)(audio.numpy()))


def listener(
    values: Mapping[str, Any], data: "AudioDataModule | FolderDataModule"
) -> Callable[[Any], Any] | None:
    """What makes the model's signal audible, where that is not the sound itself."""
    return _Integrated(data.sampling_rate) if values["derivative"] else None
