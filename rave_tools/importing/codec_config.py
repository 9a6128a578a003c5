"""From what the weights of a SEANet codec say, and a configuration beside them, to a configuration of ours."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from rave_tools.config_values import Macro
from rave_tools.errors import ConfigError, RunError
from rave_tools.importing import seanet
from rave_tools.importing.registry import Imported
from rave_tools.importing.translation import Ours, gin_text
from rave_tools.importing.weights import Opened

MODEL = "rave_tools.codec.compression.CompressionModel"
HALVES = {
    "encoder": "rave_tools.codec.nets.seanet.SEANetEncoder",
    "decoder": "rave_tools.codec.nets.seanet.SEANetDecoder",
}
CODEBOOKS = "rave_tools.codec.bottlenecks.residual.ResidualVectorQuantizer"
CONTINUOUS = "rave_tools.codec.bottlenecks.latent.Unquantized"
BALANCER = "rave_tools.criteria.combiners.Balancer"

NETS = {
    "channels": "CHANNELS", "dimension": "LATENT_SIZE", "n_filters": "CAPACITY", "ratios": "RATIOS",
    "lstm": "LSTM_LAYERS", "norm": "NORM", "causal": "CAUSAL", "pad_mode": "PAD_MODE", "true_skip": "TRUE_SKIP",
}  # fmt: skip
QUANTIZER = {
    "dimension": "LATENT_SIZE", "n_q": "NUM_QUANTIZERS", "bins": "CODEBOOK_SIZE", "q_dropout": "QUANTIZER_DROPOUT",
}  # fmt: skip
WHOLE = {"renormalize": "RENORMALIZE", "bandwidths": "BANDWIDTHS"}
"""Arguments of the parts -> facts of the whole, which the file states once."""

WITHOUT_CODES = {
    "fullband_waveform_distance": Macro("WAVEFORM_WEIGHT"), "fullband_spectral_distance": Macro("SPECTRAL_WEIGHT"),
    "adversarial": Macro("ADVERSARIAL_WEIGHT"), "feature_matching": Macro("FEATURE_MATCHING_WEIGHT"),
}  # fmt: skip
"""The losses of a codec that does not quantise."""

BASES = {48000: "models/encodec_48khz.gin", 32000: "models/encodec_32khz.gin", 16000: "models/audiogen_codec_16khz.gin"}
"""Shipped configurations by rate, whose training a run goes on with."""
BASE = "models/encodec_24khz.gin"

FRESH = ("adversary.", "combiner.")
"""What training keeps beside the codec, and published files do not."""


@dataclass
class Settings:
    """What weights do not show.

    Attributes:
        sampling_rate: in hertz.
        halves: further arguments of the encoder and the decoder, by half; those that the weights show are compared.
        quantizer: further arguments of the quantiser; `n_q` and `bins` are compared.
        model: further arguments of the model.
        continuous: there is no quantiser.
        norm_unseen: how the convolutions are normalised, where the weights do not show it.
        origin: what says all this, for errors.
    """

    sampling_rate: int
    halves: dict[str, dict[str, Any]]
    quantizer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    continuous: bool = False
    norm_unseen: str = "weight_norm"
    origin: str = "the configuration"


def describe(state: Mapping[str, Tensor], settings: Settings, path: Path) -> tuple[str, dict[str, Tensor], list[str]]:
    """The configuration of a SEANet codec, and its weights in the form that this configuration wants.

    Args:
        state: weights under encodec's names.
        settings: what they do not show.
        path: of the file, for errors.

    Returns:
        gin text, weights, and notes.

    Raises:
        RunError: these are no weights of such a codec.
        ConfigError: the settings contradict the weights.
    """
    notes: list[str] = []
    weights = dict(state)
    if seanet.folded(weights) and settings.norm_unseen == "weight_norm":
        bare = {half: int(given.get("disable_norm_outer_blocks", 0)) for half, given in settings.halves.items()}
        weights = seanet.take_apart(weights, path, bare=bare)
        notes.append(
            "the weights are not normalised: they are taken apart into length and direction, w = g v / |v| with v = w, "
            "so that training can go on with weight_norm as it began; the sound is the same to rounding"
        )
    macros: dict[str, Any] = {"SAMPLING_RATE": settings.sampling_rate}
    bindings: dict[tuple[str, str, str], Any] = {}

    def bind(target: str, arguments: Mapping[str, Any], facts: Mapping[str, str]) -> None:
        for name, value in arguments.items():
            stated = name in facts and macros.setdefault(facts[name], value) == value
            bindings["", target, name] = Macro(facts[name]) if stated else value

    for half, target in HALVES.items():
        seen = seanet.net(weights, half, path).arguments()
        given = settings.halves[half]
        compare(seen, given, f"{settings.origin}, {half}", path)
        bind(target, {**given, **seen}, NETS)
    model = dict(settings.model)
    if settings.continuous:
        size = macros["LATENT_SIZE"]
        bindings["", MODEL, "quantizer"] = Ours(CONTINUOUS)
        bindings["", CONTINUOUS, "dim"] = Macro("LATENT_SIZE")
        bindings["", BALANCER, "weights"] = WITHOUT_CODES
        weights.update(latent_pca=torch.eye(size), latent_mean=torch.zeros(size), fidelity=torch.zeros(size))
    else:
        books = seanet.codebooks(weights, path)
        sizes = {"n_q": books.n_q, "bins": books.bins}
        compare(sizes, settings.quantizer, f"{settings.origin}, quantiser", path)
        inside = {} if books.dim == macros["LATENT_SIZE"] else {"codebook_dim": books.dim}
        bind(CODEBOOKS, {**settings.quantizer, "dimension": macros["LATENT_SIZE"], **sizes, **inside}, QUANTIZER)
        frame_rate = settings.sampling_rate / math.prod(macros["RATIOS"])
        model["bandwidths"], unpaid = _payable(model["bandwidths"], books, frame_rate)
        if unpaid:
            notes.append(
                f"NOT TAKEN: the bandwidths {', '.join(f'{kbps:g}' for kbps in unpaid)} kb/s: {books.n_q} codebooks of "
                f"{books.bins} codes at {frame_rate:g} Hz cannot have them"
            )
    bind(MODEL, model, WHOLE)
    return gin_text(BASES.get(settings.sampling_rate, BASE), macros, bindings), weights, notes


def compare(seen: Mapping[str, Any], given: Mapping[str, Any], origin: str, path: Path) -> None:
    """Refuse settings that the weights contradict.

    Raises:
        ConfigError: lists both numbers of each.
    """
    wrong = [
        f"{name} is {given[name]} there and {value} in the weights"
        for name, value in seen.items()
        if name in given and plain(given[name]) != plain(value)
    ]
    if wrong:
        raise ConfigError(
            f"{origin} does not belong to the weights of {path}: {'; '.join(wrong)}. Give the configuration of this "
            "checkpoint"
        )


def plain(value: Any) -> Any:
    """Values that mean the same become equal."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _payable(
    bandwidths: Sequence[float], books: seanet.Codebooks, frame_rate: float
) -> tuple[tuple[float, ...], list[float]]:
    """Bandwidths that mean at least one codebook and no more than there are, and the others."""
    one = math.log2(books.bins) * frame_rate / 1000
    kept = tuple(kbps for kbps in bandwidths if 1 <= math.floor(kbps / one * (1 + 1e-6)) <= books.n_q)
    return kept, [kbps for kbps in bandwidths if kbps not in kept]


def fitting_bandwidths(bandwidths: Sequence[float], *, n_q: int, bins: int, frame_rate: float) -> tuple[float, ...]:
    """Bandwidths in kilobits per second, if the codebooks pay for the largest to the last and for each; else none."""
    one = math.log2(bins) * frame_rate / 1000
    numbers = [math.floor(kbps / one * (1 + 1e-6)) for kbps in bandwidths]
    return tuple(bandwidths) if numbers and min(numbers) >= 1 and max(numbers) == n_q else ()


def imported(
    opened: Opened,
    text: str,
    weights: Mapping[str, Tensor],
    *,
    program: str,
    notes: Sequence[str],
    record: Sequence[str],
) -> Imported:
    """A codec as a run that has made no update yet: published weights come without optimisers and discriminators."""
    kept = [
        "the file has no discriminator and no optimisers, and says nothing about updates: training begins at update 0, "
        "with these weights and a fresh adversary"
    ]
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in weights.values()):
        kept.append("the weights were saved in half precision; the run has them in single precision")
    lines = [f"checkpoint {opened.path}", *record]
    if opened.replaced:
        lines.append(f"objects in the checkpoint that were not opened: {', '.join(opened.replaced)}")
    return Imported(
        text,
        {f"codec.{name}": value for name, value in weights.items()},
        counters={"generator_updates": 0, "discriminator_updates": 0, "batches": 0},
        facts={"imported": {"from": program, "checkpoint": opened.path.name}},
        notes=sorted([*opened.notes, *notes, *kept], key=lambda note: not note.startswith(("NOT WHOLE", "NOT TAKEN"))),
        record=lines,
        fresh=FRESH,
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """A configuration in JSON or YAML.

    Raises:
        RunError: there is no such file, or it holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    return parse_mapping(text, str(path))


def parse_mapping(text: str, origin: str) -> dict[str, Any]:
    """As `read_mapping`, of a text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RunError(f"{origin} is neither JSON nor YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise RunError(f"{origin} holds one {type(value).__name__}, where names and values were expected")
    return value


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its references to itself, ``${a.b}``, replaced by what they refer to.

    Others, which only their program can evaluate, stay as they are.

    Raises:
        ConfigError: a reference leads nowhere, or in a circle.
    """

    def look_up(name: str, through: tuple[str, ...]) -> Any:
        if name in through:
            raise ConfigError(f"${{{name}}} refers to itself in the configuration")
        value: Any = config
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise ConfigError(f"the configuration refers to ${{{name}}}, which it does not have")
            value = value[part]
        return walk(value, (*through, name))

    def walk(value: Any, through: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(item, through) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, through) for item in value]
        if isinstance(value, str) and (match := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            return look_up(match[1], through)
        return value

    return {key: walk(value, ()) for key, value in config.items()}
