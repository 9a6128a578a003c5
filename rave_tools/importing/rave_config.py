"""acids-rave's configurations in terms of ours, by tables.

Read is the ``config.gin`` that a run of acids-rave 2.1 to 2.3 writes (gin's operative configuration: every parameter
that the model used, macros, full names), under whatever names it imports its modules. What a model becomes stands in
`rave_model`, what its training becomes in `rave_training`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rave_tools.errors import ConfigError
from rave_tools.importing import rave_model, rave_training
from rave_tools.importing.bindings import MISSING, Named, Table
from rave_tools.importing.rave_model import GIVEN
from rave_tools.importing.rave_training import Course, Player
from rave_tools.importing.translation import Draft

BASE = "base/rave.gin"
PACKAGE = "rave"
MODULES = (
    "balancer", "blocks", "core", "dataset", "descript_discriminator", "discriminator", "model", "pqmf", "prior",
    "quantization", "resampler", "transforms",
)  # fmt: skip
ALIASES = {"cached_conv": "cc", "cc": "cc", "nn": "torch", "torchaudio": "torchaudio"}
IGNORED: Mapping[str, Mapping[str, str]] = {
    "RAVE": {
        "n_bands": "the filter bank says it",
        "audio_monitor_epochs": "how often sound was logged",
    },
    "split_dataset": {"*": "data are chosen when training starts"},
    "get_dataset": {"*": "data are chosen when training starts: --augment, --derivative, --normalize, --rand_pitch"},
    "n_fft_to_num_bands": {"*": "a size that follows from others"},
    "cc.get_padding": {"stride": GIVEN, "dilation": GIVEN, "kernel_size": GIVEN},
}
AUGMENTATIONS = ("RandomCompress", "RandomGain", "RandomMute", "FrequencyMasking", "Compress", "RandomPitch")
TORCH_DEFAULTS = {
    "bias": True, "device": None, "dilation": 1, "dtype": None, "groups": 1, "padding": 0, "padding_mode": "zeros",
    "stride": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Translation:
    """A configuration of ours, made of one of acids-rave's.

    Attributes:
        text: gin, on top of shipped configurations.
        course: when its training does what.
        quantize_from: the batch from which on it means to quantise; None for never, or without codebooks.
        left: (binding of theirs, why it does not matter here).
        untaken: bindings of theirs that have no counterpart, with their lines.
        notes: what a person should know.
    """

    text: str
    course: Course
    quantize_from: int | None
    left: list[tuple[str, str]]
    untaken: list[str]
    notes: list[str]


def read(text: str, origin: str) -> Table:
    """The bindings of a configuration of acids-rave.

    Raises:
        ConfigError: it is no gin, or describes no RAVE.
    """
    table = Table(text, origin, package=PACKAGE, modules=MODULES, aliases=ALIASES)
    if not table.has("RAVE"):
        raise ConfigError(f"{origin} binds nothing of RAVE: it is no configuration of an acids-rave model")
    return table


def stated_channels(table: Table) -> int | None:
    """What the configuration says about the channels: most say nothing, for they were given at the command line."""
    value = table.get(Named("RAVE"), "n_channels")
    return None if value is MISSING else int(value)


def translate(table: Table, *, channels: int, players: tuple[Player, Player]) -> Translation:
    """A whole configuration.

    Args:
        table: see `read`.
        channels: of the model, as its weights have them.
        players: generator and discriminator, as the checkpoint has them.

    Raises:
        ConfigError: the model is made of something that has no counterpart here.
    """
    draft = Draft(table, BASE)
    model = Named("RAVE")
    quantize_from = rave_model.translate_model(draft, model, channels=channels)
    course = rave_training.translate_training(draft, model, players)
    for name, reasons in IGNORED.items():
        draft.ignore(name, reasons)
    for name in AUGMENTATIONS:
        if table.has(name):
            draft.ignore(name, {"*": f"an augmentation of the data: give --augment when training goes on ({name})"})
    _torch_defaults(draft)
    untaken = [
        f"{line} = {line.value!r} (line {line.number})" for line in draft.finish(rave_model.KNOWN | rave_training.KNOWN)
    ]
    return Translation(draft.text(), course, quantize_from, draft.left, untaken, draft.notes)


def _torch_defaults(draft: Draft) -> None:
    """torch's own layers are listed with what they take when nothing is bound."""
    table = draft.table
    for name in ("torch.nn.Conv1d", "torch.nn.Conv2d", "torch.Conv1d", "torch.Conv2d"):
        for owner in table.owners(name):
            plain = {
                parameter: "torch's default" for parameter, default in TORCH_DEFAULTS.items()
                if (line := table.lines.get(("/".join(owner.scope), name, parameter))) is not None
                and line.value == default
            }  # fmt: skip
            draft.ignore(name, plain)
