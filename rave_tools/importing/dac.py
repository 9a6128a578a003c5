"""Descript's audio codec: files of weights with their arguments, and archives of torch.package."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rave_tools.config_values import Macro
from rave_tools.errors import RunError
from rave_tools.importing.codec_config import compare, imported, read_mapping
from rave_tools.importing.registry import Choice, Imported
from rave_tools.importing.translation import gin_text
from rave_tools.importing.weights import (
    check_family,
    choose_file,
    open_weights,
    tensors_of,
    unfolded,
    with_old_weight_norm,
)

SUFFIXES = (".pth", ".pt", ".th", ".bin", ".safetensors")
ENCODER = "rave_tools.codec.nets.dac.DACEncoder"
CODEBOOKS = "rave_tools.codec.bottlenecks.factorized.FactorizedResidualVQ"
BASES = {44100: "models/dac_44khz.gin", 24000: "models/dac_24khz.gin", 16000: "models/dac_16khz.gin"}
RATES = {(2, 4, 8, 8): {9: 44100, 18: 44100}, (2, 4, 5, 8): {32: 24000, 12: 16000}}
"""Ratios and number of codebooks of the published models -> hertz."""

KWARGS = {
    "encoder_dim": "CAPACITY", "encoder_rates": "RATIOS", "latent_dim": "LATENT_SIZE",
    "decoder_dim": "DECODER_CAPACITY",
    "n_codebooks": "NUM_QUANTIZERS", "codebook_size": "CODEBOOK_SIZE", "codebook_dim": "CODEBOOK_DIM",
    "quantizer_dropout": "QUANTIZER_DROPOUT", "sample_rate": "SAMPLING_RATE",
}  # fmt: skip
"""Arguments of descript-audio-codec -> our macros."""

HUB = {
    "encoder_hidden_size": "CAPACITY", "downsampling_ratios": "RATIOS", "hidden_size": "LATENT_SIZE",
    "decoder_hidden_size": "DECODER_CAPACITY", "n_codebooks": "NUM_QUANTIZERS", "codebook_size": "CODEBOOK_SIZE",
    "codebook_dim": "CODEBOOK_DIM", "quantizer_dropout": "QUANTIZER_DROPOUT", "sampling_rate": "SAMPLING_RATE",
}  # fmt: skip
"""The same in transformers' ``config.json``."""

UNIT = {"snake1": "block.0", "conv1": "block.1", "snake2": "block.2", "conv2": "block.3"}
"""Layers of a residual unit: transformers' name -> Descript's."""


def read(path: Path, choice: Choice) -> Imported:
    """A codec of descript-audio-codec in our terms.

    Args:
        path: the file, or a folder that has one.
        choice: which file; and its arguments as YAML or JSON, where the file has none.

    Raises:
        RunError: there is no such file, it has other weights, or its rate is unknown.
        ConfigError: its arguments do not belong to the weights.
    """
    file = choose_file(path, choice.checkpoint, SUFFIXES)
    opened = open_weights(file)
    inside = opened.content.get("state_dict")
    state = with_old_weight_norm(tensors_of(inside if isinstance(inside, Mapping) else opened.content, file))
    check_family(state, file, family="dac")
    metadata = opened.content.get("metadata")
    kwargs = metadata.get("kwargs") if isinstance(metadata, Mapping) else None
    origin, notes = f"metadata in {file.name}", []
    if choice.config is not None:
        kwargs, origin = read_mapping(choice.config), str(choice.config)
    given = {str(name): value for name, value in kwargs.items()} if isinstance(kwargs, Mapping) else {}
    known = {macro: given[name] for name, macro in KWARGS.items() if given.get(name) is not None}
    rates = known.get("RATIOS")
    upward = given.pop("decoder_rates", None)
    if rates is not None and upward is not None and list(upward) != list(rates)[::-1]:
        raise RunError(
            f"{origin}: decoder_rates {upward} are not encoder_rates {rates} backwards, as they must be here"
        )
    notes = [f"NOT TAKEN: {name} = {value} in {origin}: it has no counterpart here" for name, value in given.items()
             if name not in KWARGS]  # fmt: skip
    text, weights, more = describe(state, known, file, origin=origin)
    return imported(opened, text, weights, program="descript-audio-codec", notes=[*notes, *more], record=[])


def describe(
    state: Mapping[str, Tensor], given: Mapping[str, Any], path: Path, *, origin: str
) -> tuple[str, dict[str, Tensor], list[str]]:
    """The configuration of a codec, its weights with normalisation, and notes.

    Args:
        state: weights under Descript's names.
        given: what is said of it, by our macros; what the weights show is compared.
        path: of the file, for errors.
        origin: what says it.

    Raises:
        RunError: a weight is missing, or the rate is neither said nor known.
        ConfigError: something given does not belong to the weights.
    """
    notes: list[str] = []
    weights = dict(state)
    if not any(name.endswith(".weight_g") for name in weights):
        plain = [name for name, value in weights.items() if name.endswith(".weight") and value.ndim == 3]
        weights = unfolded(weights, plain)
        notes.append(
            "the weights are not normalised: they are taken apart into length and direction, w = g v / |v| with v = w, "
            "so that training can go on as it began; the sound is the same to rounding"
        )
    seen = _sizes(weights, path)
    codes = seen["CODEBOOK_DIM"]
    given = dict(given)
    if isinstance(codes, int) and isinstance(given.get("CODEBOOK_DIM"), (list, tuple)):
        codes = seen["CODEBOOK_DIM"] = [codes] * seen["NUM_QUANTIZERS"]
    compare(seen, given, origin, path)
    rate = given.get("SAMPLING_RATE")
    if rate is None:
        rate = RATES.get(tuple(seen["RATIOS"]), {}).get(seen["NUM_QUANTIZERS"])
        if rate is None:
            raise RunError(
                f"{path} does not say its sample rate, and with ratios {seen['RATIOS']} and {seen['NUM_QUANTIZERS']} "
                "codebooks it is none of Descript's own; give it with --config FILE, a file with the line "
                "'sample_rate: 44100'"
            )
        notes.append(f"the file does not say its rate: {rate} Hz is assumed, as in Descript's codec of this size")
    channels = _shape(weights, "encoder.block.0", path)[1]
    macros = {**seen, "SAMPLING_RATE": int(rate), "CHANNELS": channels}
    if "QUANTIZER_DROPOUT" in given:
        macros["QUANTIZER_DROPOUT"] = float(given["QUANTIZER_DROPOUT"])
    if any(ratio % 2 for ratio in seen["RATIOS"]):
        notes.append(
            "some of its ratios are odd: there the original loses the last samples of a sound, here they are kept "
            "(--override 'DACDecoder.whole = False' for the original)"
        )
    bindings = {("", ENCODER, "latent_size"): Macro("LATENT_SIZE"), ("", CODEBOOKS, "input_dim"): Macro("LATENT_SIZE")}
    return gin_text(BASES.get(int(rate), BASES[44100]), macros, bindings), weights, notes


def settings_of_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` of a DacModel says, by our macros."""
    return {macro: config[name] for name, macro in HUB.items() if config.get(name) is not None}


def _sizes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """What the weights show, by our macros."""
    ratios: list[int] = []
    while f"encoder.block.{len(ratios) + 1}.block.4.weight_v" in state:
        ratios.append(_shape(state, f"encoder.block.{len(ratios) + 1}.block.4", path)[2] // 2)
    pattern = re.compile(r"quantizer\.quantizers\.\d+\.codebook\.weight")
    books = [tuple(value.shape) for name, value in state.items() if pattern.fullmatch(name)]
    if not ratios or not books or len({size for size, _ in books}) != 1:
        raise RunError(
            f"{path} has {len(ratios)} blocks in its encoder and {len(books)} codebooks of one size; is it whole?"
        )
    dims = [dim for _, dim in books]
    return {
        "CAPACITY": _shape(state, "encoder.block.0", path)[0],
        "RATIOS": ratios,
        "LATENT_SIZE": _shape(state, f"encoder.block.{len(ratios) + 2}", path)[0],
        "DECODER_CAPACITY": _shape(state, "decoder.model.0", path)[0],
        "NUM_QUANTIZERS": len(books),
        "CODEBOOK_SIZE": books[0][0],
        "CODEBOOK_DIM": dims[0] if len(set(dims)) == 1 else dims,
    }


def _shape(state: Mapping[str, Tensor], name: str, path: Path) -> Sequence[int]:
    value = state.get(f"{name}.weight_v")
    if value is None or value.ndim != 3:
        raise RunError(f"{path} has no weight {name}.weight_v; is it whole?")
    return value.shape


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' DacModel under Descript's names."""
    depth = {half: len({name.split(".")[2] for name in state if name.startswith(f"{half}.block.")})
             for half in ("encoder", "decoder")}  # fmt: skip
    return {_descript_name(name, depth): value for name, value in state.items()}


def _descript_name(name: str, depth: Mapping[str, int]) -> str:
    half, _, rest = name.partition(".")
    if half not in depth:
        return name
    root = "encoder.block" if half == "encoder" else "decoder.model"
    outer = {"conv1": 0, "snake1": depth[half] + 1, "conv2": depth[half] + 2}
    part, _, last = rest.partition(".")
    if part in outer:
        return f"{root}.{outer[part]}.{last}"
    index, part, last = last.split(".", 2)
    block = f"{root}.{int(index) + 1}.block"
    if part.startswith("res_unit"):
        first = 0 if half == "encoder" else 2
        layer, _, last = last.partition(".")
        return f"{block}.{int(part.removeprefix('res_unit')) - 1 + first}.{UNIT.get(layer, layer)}.{last}"
    places = {"snake1": 3, "conv1": 4} if half == "encoder" else {"snake1": 0, "conv_t1": 1}
    return f"{block}.{places.get(part, part)}.{last}"
