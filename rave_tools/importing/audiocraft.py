"""Compression models of AudioCraft: exported files, and checkpoints of its solver."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rave_tools.errors import ConfigError, RunError
from rave_tools.importing.codec_config import Settings, describe, imported, parse_mapping, read_mapping, resolve
from rave_tools.importing.pickles import Record
from rave_tools.importing.registry import Choice, Imported
from rave_tools.importing.weights import (
    Opened,
    check_family,
    choose_file,
    open_weights,
    tensors_of,
    with_old_weight_norm,
)

SUFFIXES = (".th", ".bin", ".pt", ".pth", ".safetensors")
CONFIG = "xp.cfg"
NET_ARGUMENTS = (
    "channels", "dimension", "n_filters", "n_residual_layers", "ratios", "activation", "activation_params", "norm",
    "norm_params", "kernel_size", "last_kernel_size", "residual_kernel_size", "dilation_base", "causal", "pad_mode",
    "true_skip", "compress", "lstm", "disable_norm_outer_blocks",
)  # fmt: skip
DECODER_ARGUMENTS = ("trim_right_ratio", "final_activation", "final_activation_params")
QUANTIZER_ARGUMENTS = (
    "n_q", "bins", "q_dropout", "decay", "kmeans_init", "kmeans_iters", "threshold_ema_dead_code",
    "orthogonal_reg_weight", "orthogonal_reg_active_codes_only", "orthogonal_reg_max_codes",
)  # fmt: skip
SOLVERS = {"musicgen": "MusicGen", "audiogen": "AudioGen", "magnet": "MAGNeT", "diffusion": "a diffusion decoder"}


def read(path: Path, choice: Choice) -> Imported:
    """A compression model of AudioCraft in our terms.

    Args:
        path: ``compression_state_dict.bin``, ``checkpoint.th``, bare weights, or a folder with one of them.
        choice: which file; and its configuration in YAML, where the file has none.

    Raises:
        RunError: there is no such file, or no codec in it, or no configuration.
        ConfigError: its model has no counterpart here, or does not belong to the weights.
    """
    file = choose_file(path, choice.checkpoint, SUFFIXES)
    opened = open_weights(file)
    if "pretrained" in opened.content:
        raise RunError(
            f"{file} has no weights, only the name of others: {opened.content['pretrained']}; import those, with the "
            "--from of their program"
        )
    config, origin = _config(opened, choice)
    settings, notes, record = settings_of(config, origin)
    state, which = _state(opened)
    state = with_old_weight_norm(state)
    check_family(state, file, family="encodec")
    text, weights, more = describe(state, settings, file)
    return imported(opened, text, weights, program="audiocraft", notes=[*notes, *more], record=[which, *record])


def _config(opened: Opened, choice: Choice) -> tuple[dict[str, Any], str]:
    """What built the model, and where that stands."""
    if choice.config is not None:
        return read_mapping(choice.config), str(choice.config)
    origin = f"{CONFIG} in {opened.path.name}"
    config = opened.content.get(CONFIG)
    if config is None:
        raise RunError(
            f"{opened.path} has no configuration ({CONFIG}), without which its rate and padding are unknown; give it "
            "with --config FILE (YAML), or, for weights of the encodec package, import with --from encodec"
        )
    if isinstance(config, str):
        return parse_mapping(config, origin), origin
    return plain_config(config, origin), origin


def plain_config(config: Any, origin: str) -> Any:
    """An omegaconf object, of which a record was read, as plain values.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(config, Mapping):
        return {str(key): plain_config(value, origin) for key, value in config.items()}
    if isinstance(config, list):
        return [plain_config(value, origin) for value in config]
    if not isinstance(config, Record):
        return config
    if "_content" in config.state:
        return plain_config(config.state["_content"], origin)
    if "_val" in config.state:
        return plain_config(config.state["_val"], origin)
    raise ConfigError(f"{origin} holds a {config.of}, which is not read; export it as YAML and give that with --config")


def _state(opened: Opened) -> tuple[dict[str, Tensor], str]:
    """The weights, best ones first, and which they are."""
    best = opened.content.get("best_state")
    inner = best.get("model") if isinstance(best, Mapping) else None
    for state, which in (
        (inner, "weights: the best ones (best_state.model); those of the last update are left out"),
        (best, "weights: best_state"),
        (opened.content.get("model"), "weights: those of the last update (model), for the checkpoint has no best ones"),
        (opened.content, "weights: the whole file"),
    ):
        if isinstance(state, Mapping) and any(isinstance(value, Tensor) for value in state.values()):
            return tensors_of(state, opened.path), which
    return tensors_of(opened.content, opened.path), ""


def settings_of(config: Mapping[str, Any], origin: str) -> tuple[Settings, list[str], list[str]]:
    """What AudioCraft's configuration says of the codec.

    Args:
        config: as a mapping, with its references to itself.
        origin: what to call it in errors.

    Returns:
        The settings, notes about keys without counterpart, and what was left out.

    Raises:
        ConfigError: another model than EnCodec.
    """
    if not isinstance(config, Mapping) or "seanet" not in config or "encodec" not in config:
        solver = str(config.get("solver", "")) if isinstance(config, Mapping) else ""
        if solver in SOLVERS:
            raise ConfigError(
                f"{origin} is of {SOLVERS[solver]} (solver {solver}), a model over codes and no codec; its codec lies "
                "beside it in compression_state_dict.bin"
            )
        raise ConfigError(
            f"{origin} describes no compression model of AudioCraft: it has no sections encodec and seanet"
        )
    config = resolve(config)
    codec, nets = dict(config["encodec"]), dict(config["seanet"])
    if (kind := config.get("compression_model", "encodec")) != "encodec" or codec.get(
        "autoencoder", "seanet"
    ) != "seanet":
        raise ConfigError(
            f"{origin}: {kind} with {codec.get('autoencoder')} has no counterpart here; read is encodec with seanet"
        )
    quantizer = str(codec.get("quantizer", "rvq"))
    if quantizer not in ("rvq", "no_quant"):
        raise ConfigError(f"{origin}: the quantiser {quantizer} has no counterpart here; read are rvq and no_quant")
    notes: list[str] = []
    halves, own = {}, {"encoder": nets.pop("encoder", None) or {}, "decoder": nets.pop("decoder", None) or {}}
    for half, more in own.items():
        known = (*NET_ARGUMENTS, *(DECODER_ARGUMENTS if half == "decoder" else ()))
        halves[half] = _known({**nets, **more}, known, f"seanet.{half}", notes)
    books = {} if quantizer == "no_quant" else _known(config.get("rvq") or {}, QUANTIZER_ARGUMENTS, "rvq", notes)
    taken = ("autoencoder", "quantizer", "sample_rate", "channels", "causal", "renormalize", "renorm")
    _known(codec, taken, "encodec", notes)
    if "sample_rate" not in codec:
        raise ConfigError(f"{origin} does not say encodec.sample_rate")
    used = ("encodec", "seanet", "rvq", "no_quant", "compression_model", "sample_rate", "channels", "solver")
    rest = [key for key in config if key not in used]
    record = [f"section {key} of {origin} is left out: it is about training, data or the machine" for key in rest]
    if rest:
        notes.append(
            f"only the model is taken from {origin}; training goes on as the shipped configuration says, and not as "
            f"{', '.join(rest[:6])}{', ...' if len(rest) > 6 else ''} there"
        )
    settings = Settings(
        int(codec["sample_rate"]),
        halves,
        quantizer=books,
        model={"renormalize": bool(codec.get("renormalize", False)), "segment": None, "bandwidths": ()},
        continuous=quantizer == "no_quant",
        norm_unseen=str(nets.get("norm", "none")),
        origin=origin,
    )
    return settings, notes, record


def _known(section: Mapping[str, Any], names: tuple[str, ...], title: str, notes: list[str]) -> dict[str, Any]:
    """The arguments that have a counterpart; the others are said."""
    for name, value in section.items():
        if name not in names:
            notes.append(f"NOT TAKEN: {title}.{name} = {value}: it has no counterpart here")
    return {name: value for name, value in section.items() if name in names}
