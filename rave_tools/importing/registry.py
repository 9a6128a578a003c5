"""Whose runs can be imported: one line per family, loaded when it is asked for."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rave_tools.errors import UserError

if TYPE_CHECKING:
    import torch

SOURCES = {
    "rave": "rave_tools.importing.rave",
    "encodec": "rave_tools.importing.encodec",
    "audiocraft": "rave_tools.importing.audiocraft",
    "transformers": "rave_tools.importing.hub",
    "dac": "rave_tools.importing.dac",
}
"""Name for ``--from`` -> module with a function ``read`` (see `Reader`)."""


@dataclass
class Imported:
    """A foreign run in our terms, before a model was built from it.

    Attributes:
        config_text: gin that describes the training wrapper; it may include shipped configurations.
        state_dict: the wrapper's weights under our names.
        ema: averaged weights, under the same names, or empty.
        optimizers: for each player the saved state of each of its parameters by name, or None: it starts fresh.
        counters: where the run stands, by the names of our counters.
        facts: further plain values for the checkpoint.
        notes: sentences for the person, in the order of their weight.
        record: everything that was decided, line by line, to be kept beside the run.
        fresh: beginnings of names of weights that are not imported but begin anew.
    """

    config_text: str
    state_dict: "dict[str, torch.Tensor]"
    ema: "dict[str, torch.Tensor]" = field(default_factory=dict)
    optimizers: "Sequence[dict[str, dict[str, Any]] | None]" = ()
    counters: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    record: list[str] = field(default_factory=list)
    fresh: tuple[str, ...] = ()


Reader = Callable[[Path, "Choice"], Imported]


@dataclass(frozen=True)
class Choice:
    """What a person may say about the run beside its path.

    Attributes:
        checkpoint: part of a checkpoint's name, where a folder has several.
        config: the configuration's file, where it is not found beside the checkpoint.
    """

    checkpoint: str | None = None
    config: Path | None = None


def reader(name: str) -> Reader:
    """The function that reads runs of a family.

    Raises:
        UserError: there is none of that name.
    """
    if name not in SOURCES:
        raise UserError(f"there is no importer '{name}'; there are {', '.join(SOURCES)}")
    return importlib.import_module(SOURCES[name]).read
