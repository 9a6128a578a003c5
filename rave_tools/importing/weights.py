"""Published weights of codecs, in whatever file they lie and in whatever form: opened without running anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rave_tools.errors import RunError
from rave_tools.importing.packages import is_package, load_package
from rave_tools.importing.pickles import load_foreign, spoilt_record
from rave_tools.importing.safetensors import SUFFIX, load_safetensors, looks_like_safetensors

ORIGINAL = "parametrizations.weight.original"
"""How torch's second weight normalisation names length (0) and direction (1)."""

FAMILIES = {
    "quantizer.quantizers.0.in_proj.": "dac",
    "encoder.layers.0.": "transformers",
    "encoder.model.0.conv.": "encodec",
    "latent_pca": "rave",
}
"""How the names of some weight begin -> whose they are."""


@dataclass(frozen=True)
class Opened:
    """A file of weights.

    Attributes:
        path: of the file.
        content: what lies in it: the weights, or what was saved with them.
        replaced: names of classes whose objects were not opened.
        notes: what a person should know about the file.
    """

    path: Path
    content: dict[Any, Any]
    replaced: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)


def choose_file(path: Path, name: str | None, suffixes: Sequence[str]) -> Path:
    """The file of weights that a path means.

    Args:
        path: the file, or a folder that has one.
        name: part of the file's name, where the folder has several.
        suffixes: of such files.

    Raises:
        RunError: there is none, or there are several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise RunError(f"there is no file {path}")
    found = sorted(item for item in path.iterdir() if item.suffix in suffixes and item.is_file())
    chosen = [item for item in found if name is None or name in item.name]
    if not chosen:
        what = (
            f"no file '{name}' of weights; it has {', '.join(item.name for item in found)}" if found else "no weights"
        )
        raise RunError(f"{path} has {what} ({', '.join(suffixes)})")
    if len(chosen) > 1:
        raise RunError(
            f"{path} has several files of weights, {', '.join(item.name for item in chosen)}; name one of them"
        )
    return chosen[0]


def open_weights(path: Path) -> Opened:
    """Read a file of any format that codecs are published in.

    Raises:
        RunError: it is truncated, damaged, or no file of weights.
    """
    if not path.is_file():
        raise RunError(f"there is no file {path}")
    if path.suffix == ".ts":
        raise RunError(f"{path} is an export: it has no weights to train; play it with rave_tools generate --model")
    if path.suffix == SUFFIX or looks_like_safetensors(path):
        return Opened(path, dict(load_safetensors(path)))
    if is_package(path):
        found = load_package(path)
        return Opened(path, found, found.pop("replaced"))
    content, replaced = load_foreign(path)
    if "rave_tools" in content:
        raise RunError(f"{path} is a checkpoint of rave_tools already; train, export and generate take it as it is")
    notes = []
    if (spoilt := spoilt_record(path)) is not None:
        notes.append(
            f"NOT WHOLE: the checksum of {spoilt} in {path.name} is wrong: the file has probably been damaged since it "
            "was written, and some weights are not what they were; copy it again"
        )
    return Opened(path, content, replaced, notes)


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights among what a file holds.

    Raises:
        RunError: there are none, or some are not numbers.
    """
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)} if isinstance(
        content, Mapping
    ) else {}  # fmt: skip
    if not state:
        held = ", ".join(sorted(map(str, content))[:8]) if isinstance(content, Mapping) else type(content).__name__
        raise RunError(f"{path} holds no weights by name, but {held or 'nothing'}")
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RunError(
                f"{path}: {name} holds numbers that are not finite; the file is damaged, or its training diverged"
            )
    return state


def family_of(state: Mapping[str, Any]) -> str | None:
    """Whose weights these are, by their names; None if nobody's that is known."""
    if "encoder.conv1.bias" in state:
        return "transformers"
    for start, family in FAMILIES.items():
        if any(name.startswith(start) for name in state):
            return family
    return None


def check_family(state: Mapping[str, Any], path: Path, *, family: str) -> None:
    """Refuse another family's weights by its name.

    Raises:
        RunError: they are of another family, or of none that is known.
    """
    found = family_of(state)
    if found == family:
        return
    if found is None:
        raise RunError(
            f"{path} is no codec that is known here: among its {len(state)} tensors are {', '.join(list(state)[:4])}; "
            "read are the codecs of encodec, audiocraft, transformers and descript-audio-codec"
        )
    raise RunError(f"{path} has weights as {found} names them, not {family}; import it with --from {found}")


def with_old_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose normalisation is named as in torch's first implementation, ``weight_g`` and ``weight_v``."""
    return {
        name.replace(f"{ORIGINAL}0", "weight_g").replace(f"{ORIGINAL}1", "weight_v"): value
        for name, value in state.items()
    }


def unfolded(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Weights taken apart into length and direction, so that training can go on with normalised ones.

    The direction is the weight itself; w = g v / |v| then is what it was, to rounding.

    Args:
        state: weights.
        names: of those to take apart, ``*.weight`` each.
    """
    made = dict(state)
    for name in names:
        weight = made.pop(name).float()
        made[f"{name}_g"] = torch.norm_except_dim(weight, 2, 0)
        made[f"{name}_v"] = weight
    return made
