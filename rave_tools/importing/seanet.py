"""What the weights of a SEANet codec say about it, under the names of encodec and AudioCraft."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rave_tools.errors import RunError
from rave_tools.importing.weights import unfolded

FORMS = ("weight_v", "weight_orig", "weight")
"""Last parts of the names under which a convolution keeps its weight, normalised or not."""


@dataclass(frozen=True)
class Net:
    """Sizes of one half of the codec; names are AudioCraft's."""

    channels: int
    dimension: int
    n_filters: int
    n_residual_layers: int
    ratios: list[int]
    norm: str
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    true_skip: bool
    compress: int
    lstm: int
    disable_norm_outer_blocks: int

    def arguments(self) -> dict[str, Any]:
        """For its constructor."""
        return dict(vars(self))


@dataclass(frozen=True)
class Codebooks:
    """Sizes of the quantiser; `dim` is that of the codes."""

    n_q: int
    bins: int
    dim: int


class Layers:
    """The layers of one half, each with its kind and its weights.

    Args:
        state: weights of the codec.
        half: ``encoder`` or ``decoder``.
        path: of the file, for errors.
    """

    def __init__(self, state: Mapping[str, Tensor], half: str, path: Path) -> None:
        self.half = half
        self._path = path
        pattern = re.compile(rf"{half}\.model\.(\d+)\.(.+)")
        found: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if match := pattern.fullmatch(name):
                found.setdefault(int(match[1]), {})[match[2]] = value
        self.places = sorted(found)
        self.layers = [found[index] for index in self.places]
        if len(self.layers) < 3:
            raise RunError(
                f"{path} has no {half} of a SEANet: {len(self.layers)} layers {half}.model.*; is the file whole?"
            )

    def kind(self, index: int) -> str:
        """``conv``, ``convtr``, ``block`` or ``lstm``.

        Raises:
            RunError: a layer of another kind.
        """
        kinds = {name.split(".", 1)[0] for name in self.layers[index]}
        kind = "block" if kinds <= {"block", "shortcut"} and "block" in kinds else next(iter(kinds))
        if kind not in ("conv", "convtr", "block", "lstm") or (len(kinds) > 1 and kind != "block"):
            raise RunError(
                f"{self._path}: the {self.half} has a layer of {', '.join(sorted(kinds))}, which no SEANet has"
            )
        return kind

    def shape(self, index: int, *where: str) -> Sequence[int]:
        """Shape of the weight of a convolution.

        Raises:
            RunError: it is missing.
        """
        for form in FORMS:
            value = self.layers[index].get(".".join((*where, form)))
            if value is not None and value.ndim == 3:
                return value.shape
        raise RunError(f"{self._path}: the {self.half} has no weight {'.'.join(where)}.* in its layer {index}")

    def norm(self, index: int) -> str | None:
        """How a layer's (first) convolution is normalised; None: it is not, or its normalisation is folded in."""
        names = self.layers[index]
        if any(name.endswith(".weight_g") for name in names):
            return "weight_norm"
        if any(name.endswith(".weight_orig") for name in names):
            return "spectral_norm"
        return "time_group_norm" if any(name.endswith(".norm.weight") for name in names) else None


def net(state: Mapping[str, Tensor], half: str, path: Path) -> Net:
    """Sizes of the encoder or the decoder.

    Raises:
        RunError: these are no weights of one.
    """
    layers = Layers(state, half, path)
    kinds = [layers.kind(index) for index in range(len(layers.layers))]
    step = "conv" if half == "encoder" else "convtr"
    inner = range(1, len(kinds) - 1)
    steps = [index for index in inner if kinds[index] == step]
    blocks = [index for index in inner if kinds[index] == "block"]
    if kinds[0] != "conv" or kinds[-1] != "conv" or not steps or len(blocks) % len(steps):
        raise RunError(f"{path}: the {half} has the layers {', '.join(kinds)}, which are not those of a SEANet")
    first, last = layers.shape(0, "conv", "conv"), layers.shape(len(kinds) - 1, "conv", "conv")
    ratios = [layers.shape(index, step, step)[2] // 2 for index in steps]
    narrow, wide = (first, last) if half == "encoder" else (last, first)
    residual: dict[str, Any] = {"residual_kernel_size": 3, "true_skip": True, "compress": 2}
    if blocks:
        inside = layers.shape(blocks[0], "block", "1", "conv", "conv")
        residual = {
            "residual_kernel_size": inside[2],
            "true_skip": not any(name.startswith("shortcut.") for name in layers.layers[blocks[0]]),
            "compress": inside[1] // inside[0],
        }
    lstm = next((layers.layers[index] for index in inner if kinds[index] == "lstm"), {})
    norms = [layers.norm(index) for index in range(len(kinds))]
    return Net(
        channels=narrow[1] if half == "encoder" else narrow[0],
        dimension=wide[0] if half == "encoder" else wide[1],
        n_filters=narrow[0] if half == "encoder" else narrow[1],
        n_residual_layers=len(blocks) // len(steps),
        ratios=ratios[::-1] if half == "encoder" else ratios,
        norm=next((norm for norm in norms if norm is not None), "none"),
        kernel_size=first[2],
        last_kernel_size=last[2],
        lstm=sum(name.startswith("lstm.weight_ih_l") for name in lstm),
        disable_norm_outer_blocks=_bare(kinds, norms, half),
        **residual,
    )


def _bare(kinds: Sequence[str], norms: Sequence[str | None], half: str) -> int:
    """How many outer blocks have no normalisation while the others have one."""
    blocks = outer_blocks(kinds, half)
    bare = [all(norms[index] is None for index in block) for block in blocks]
    return 0 if all(bare) else bare.index(False)


def outer_blocks(kinds: Sequence[str], half: str) -> list[list[int]]:
    """Positions of the layers that ``disable_norm_outer_blocks`` counts as one, from the waveform inwards.

    The outermost convolutions are one each; between them, one is the residual layers and the step beside them.
    """
    order = [index for index, kind in enumerate(kinds) if kind != "lstm"]
    if half == "decoder":
        order.reverse()
    blocks: list[list[int]] = [[order[0]], []]
    for index in order[1:-1]:
        blocks[-1].append(index)
        if kinds[index] in ("conv", "convtr"):
            blocks.append([])
    blocks[-1] = [order[-1]]
    return blocks


def codebooks(state: Mapping[str, Tensor], path: Path) -> Codebooks:
    """Sizes of the quantiser.

    Raises:
        RunError: there is none.
    """
    pattern = re.compile(r"quantizer\.vq\.layers\.(\d+)\._codebook\.embed")
    tables = [value for name, value in state.items() if pattern.fullmatch(name)]
    if not tables or any(table.shape != tables[0].shape or table.ndim != 2 for table in tables):
        raise RunError(
            f"{path} has {len(tables)} codebooks (quantizer.vq.layers.*._codebook.embed) of one size; is it whole?"
        )
    return Codebooks(len(tables), tables[0].shape[0], tables[0].shape[1])


def folded(state: Mapping[str, Tensor]) -> bool:
    """Whether no convolution keeps a normalisation of its own."""
    return not any(name.endswith((".weight_g", ".weight_orig", ".norm.weight")) for name in state)


def take_apart(state: Mapping[str, Tensor], path: Path, *, bare: Mapping[str, int]) -> dict[str, Tensor]:
    """Convolutions of the nets with their weight as length and direction.

    Args:
        state: weights.
        path: of the file, for errors.
        bare: how many outer blocks of each half have no normalisation.
    """
    made = dict(state)
    for half, count in bare.items():
        layers = Layers(state, half, path)
        kinds = [layers.kind(index) for index in range(len(layers.layers))]
        left = {f"{half}.model.{layers.places[i]}." for block in outer_blocks(kinds, half)[:count] for i in block}
        made = unfolded(made, [
            name for name, value in state.items()
            if name.startswith(half) and name.endswith((".conv.weight", ".convtr.weight")) and value.ndim == 3
            and not name.startswith(tuple(left))
        ])  # fmt: skip
    return made


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' EncodecModel under the names of encodec and AudioCraft.

    In the decoder a convolution that stands between the first and the last layer, outside of the blocks, is transposed;
    transformers calls it like the others.
    """
    decoder = [int(match[1]) for name in state if (match := re.match(r"decoder\.layers\.(\d+)\.", name))]
    ends = (0, max(decoder, default=0))
    made = {}
    for name, value in state.items():
        half, _, rest = name.partition(".layers.")
        if half == "quantizer":
            index, _, rest = rest.partition(".")
            made[f"quantizer.vq.layers.{index}.{rest.replace('codebook.', '_codebook.', 1)}"] = value
            continue
        index, _, rest = rest.partition(".")
        transposed = half == "decoder" and int(index or 0) not in ends and rest.startswith(("conv.", "norm."))
        own = "convtr" if transposed else "conv"
        rest = re.sub(r"(^|\.)conv\.", rf"\1{own}.{own}.", rest)
        rest = re.sub(r"(^|\.)norm\.", rf"\1{own}.norm.", rest)
        made[f"{half}.model.{index}.{rest}"] = value
    return made
