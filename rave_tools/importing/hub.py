"""Codecs of transformers, EncodecModel and DacModel: a folder with ``config.json`` and the weights beside it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rave_tools.errors import ConfigError, RunError
from rave_tools.importing import dac, seanet
from rave_tools.importing.codec_config import Settings, describe, imported, read_mapping
from rave_tools.importing.registry import Choice, Imported
from rave_tools.importing.weights import check_family, choose_file, open_weights, tensors_of, with_old_weight_norm

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
CONFIG_NAME = "config.json"
PART = "audio_encoder"
"""Where MusicGen's files keep their codec, in the configuration and before the names of the weights."""

NET_ARGUMENTS = {
    "audio_channels": "channels", "hidden_size": "dimension", "num_filters": "n_filters",
    "num_residual_layers": "n_residual_layers", "upsampling_ratios": "ratios", "norm_type": "norm",
    "kernel_size": "kernel_size", "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size", "dilation_growth_rate": "dilation_base",
    "use_causal_conv": "causal", "pad_mode": "pad_mode", "compress": "compress", "num_lstm_layers": "lstm",
}  # fmt: skip
OTHERS = (
    "use_conv_shortcut", "trim_right_ratio", "sampling_rate", "normalize", "chunk_length_s", "overlap",
    "target_bandwidths", "codebook_size", "codebook_dim",
)  # fmt: skip
DEFAULTS: Mapping[str, Any] = {
    "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0], "sampling_rate": 24000, "audio_channels": 1, "normalize": False,
    "chunk_length_s": None, "overlap": None, "hidden_size": 128, "num_filters": 32, "num_residual_layers": 1,
    "upsampling_ratios": [8, 5, 4, 2], "norm_type": "weight_norm", "kernel_size": 7, "last_kernel_size": 7,
    "residual_kernel_size": 3, "dilation_growth_rate": 2, "use_causal_conv": True, "pad_mode": "reflect", "compress": 2,
    "num_lstm_layers": 2, "trim_right_ratio": 1.0, "codebook_size": 1024, "use_conv_shortcut": True,
}  # fmt: skip
"""What transformers' EncodecConfig takes where a file says nothing."""

DAC_IMPLIED = ("upsampling_ratios", "commitment_loss_weight", "codebook_loss_weight")
"""What the ratios say already, and weights of losses, which the shipped configuration has."""

ADMINISTRATION = re.compile(
    r"_.*|architectures|model_type|(torch_)?dtype|transformers_version|id2label|label2id|(return|output|use)_.*|"
    r"problem_type|is_encoder_decoder|chunk_size_feed_forward|.*token_id|tie_.*|name_or_path|hop_length|frame_rate|"
    r"num_quantizers|chunk_length|chunk_stride|codebook_nbits|bits_per_codebook"
)
"""Names in ``config.json`` that say nothing about the model, or what others say."""


def read(path: Path, choice: Choice) -> Imported:
    """A codec of transformers in our terms.

    Args:
        path: the folder that ``save_pretrained`` has written or that was downloaded, or its file of weights.
        choice: which file of several; and ``config.json``, where it does not lie beside the weights.

    Raises:
        RunError: a file is missing or has other weights.
        ConfigError: the configuration does not belong to the weights, or is of another model.
    """
    for index in path.glob("*.index.json") if path.is_dir() else ():
        raise RunError(
            f"{path} keeps its weights in several files ({index.name}), which is not read; save them in one file"
        )
    file = choose_file(path, choice.checkpoint, SUFFIXES)
    config_path = choice.config or file.parent / CONFIG_NAME
    if not config_path.is_file():
        raise RunError(f"no {config_path}, without which the codec cannot be built; say where it is with --config FILE")
    config = read_mapping(config_path)
    opened = open_weights(file)
    state = with_old_weight_norm(tensors_of(opened.content, file))
    notes: list[str] = []
    if isinstance(config.get(PART), Mapping):
        config = dict(config[PART])
        count = len(state)
        state = {name.removeprefix(f"{PART}."): value for name, value in state.items() if name.startswith(f"{PART}.")}
        notes.append(f"only its codec ({PART}) is taken, {len(state)} of {count} tensors")
    kind = config.get("model_type")
    if kind not in ("encodec", "dac"):
        raise ConfigError(f"{config_path} is of the model {kind}; read are encodec and dac, also inside of musicgen")
    check_family(state, file, family="transformers")
    if kind == "dac":
        weights = dac.from_transformers(state)
        text, weights, more = dac.describe(weights, dac.settings_of_hub(config), file, origin=str(config_path))
        notes += _untaken(config, (*dac.HUB, *DAC_IMPLIED), str(config_path))
        record: list[str] = []
    else:
        settings, unknown, record = settings_of(config, str(config_path))
        text, weights, more = describe(seanet.from_transformers(state), settings, file)
        notes += unknown
    return imported(opened, text, weights, program="transformers", notes=[*notes, *more], record=record)


def settings_of(config: Mapping[str, Any], origin: str) -> tuple[Settings, list[str], list[str]]:
    """What a ``config.json`` of an EncodecModel says; see audiocraft.settings_of.

    Raises:
        ConfigError: it is of another model.
    """
    if "upsampling_ratios" not in config and config.get("model_type") != "encodec":
        raise ConfigError(
            f"{origin} describes no codec: it is neither AudioCraft's (sections encodec and seanet) nor that of an "
            "EncodecModel of transformers (model_type encodec)"
        )
    notes = _untaken(config, (*NET_ARGUMENTS, *OTHERS), origin)
    full = {**DEFAULTS, **config}
    net = {ours: full[theirs] for theirs, ours in NET_ARGUMENTS.items()}
    net.update(true_skip=not full["use_conv_shortcut"], norm_params={})
    if not full["num_residual_layers"]:
        del net["true_skip"], net["residual_kernel_size"], net["compress"]
    model = {
        "renormalize": full["normalize"],
        "segment": full["chunk_length_s"],
        "bandwidths": tuple(full["target_bandwidths"]),
    }
    if full["overlap"] is not None:
        model["overlap"] = full["overlap"]
    settings = Settings(
        full["sampling_rate"],
        {"encoder": net, "decoder": {**net, "trim_right_ratio": full["trim_right_ratio"]}},
        quantizer={"bins": full["codebook_size"]},
        model=model,
        norm_unseen=full["norm_type"],
        origin=origin,
    )
    return settings, notes, []


def _untaken(config: Mapping[str, Any], names: tuple[str, ...], origin: str) -> list[str]:
    """Notes about what a configuration says beside the names that are known."""
    return [
        f"NOT TAKEN: {name} = {value} in {origin}: it has no counterpart here"
        for name, value in config.items()
        if name not in names and not ADMINISTRATION.fullmatch(name)
    ]
