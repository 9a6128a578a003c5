"""Weights of Meta's encodec package: bare state dicts, which say nothing of rate, causality and padding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rave_tools.errors import RunError
from rave_tools.importing import seanet
from rave_tools.importing.audiocraft import settings_of as settings_of_audiocraft
from rave_tools.importing.codec_config import (
    Settings,
    describe,
    fitting_bandwidths,
    imported,
    read_mapping,
)
from rave_tools.importing.hub import settings_of as settings_of_hub
from rave_tools.importing.registry import Choice, Imported
from rave_tools.importing.weights import check_family, choose_file, open_weights, tensors_of, with_old_weight_norm

SUFFIXES = (".th", ".pt", ".pth", ".bin", ".safetensors")

KINDS: Mapping[bool, dict[str, Any]] = {
    False: {"sampling_rate": 24000, "causal": True, "bandwidths": (1.5, 3.0, 6.0, 12.0, 24.0), "model": {}},
    True: {
        "sampling_rate": 48000,
        "causal": False,
        "bandwidths": (3.0, 6.0, 12.0, 24.0),
        "model": {"renormalize": True, "segment": 1.0, "overlap": 0.01},
    },
}
"""The two models that were published, by whether they normalise activations over time (time_group_norm)."""


def read(path: Path, choice: Choice) -> Imported:
    """A codec of the encodec package in our terms.

    Args:
        path: the file, or a folder that has one.
        choice: which file, and a configuration of AudioCraft's or transformers' form, where the kind is another one.

    Raises:
        RunError: there is no such file, or it has other weights.
        ConfigError: a configuration contradicts the weights.
    """
    file = choose_file(path, choice.checkpoint, SUFFIXES)
    opened = open_weights(file)
    if "xp.cfg" in opened.content:
        raise RunError(
            f"{file} is a checkpoint of AudioCraft, with its configuration inside; import it with --from audiocraft"
        )
    inside = opened.content.get("state_dict")
    state = with_old_weight_norm(tensors_of(inside if isinstance(inside, Mapping) else opened.content, file))
    if any(name.startswith("transformer.") for name in state):
        raise RunError(
            f"{file} is encodec's language model over codes, no codec; import encodec_24khz-*.th or encodec_48khz-*.th"
        )
    check_family(state, file, family="encodec")
    notes: list[str] = []
    record: list[str] = []
    if choice.config is None:
        settings, note = assumed(state, file)
        notes.append(note)
    else:
        config = read_mapping(choice.config)
        own = settings_of_audiocraft if "seanet" in config else settings_of_hub
        settings, more, record = own(config, str(choice.config))
        notes += more
    text, weights, more = describe(state, settings, file)
    return imported(opened, text, weights, program="encodec", notes=[*notes, *more], record=record)


def assumed(state: Mapping[str, Tensor], path: Path) -> tuple[Settings, str]:
    """What a file of the published kinds must have been made with, and a sentence that says so.

    Raises:
        RunError: it is of another kind.
    """
    net = seanet.net(state, "encoder", path)
    if net.true_skip and net.n_residual_layers:
        raise RunError(
            f"{path} has residual blocks without a convolution in their shortcut, as AudioCraft's have: rate, "
            "causality and padding of such a codec cannot be told from its weights. Give its configuration with "
            "--config FILE"
        )
    kind = KINDS[net.norm == "time_group_norm"]
    rate, books = kind["sampling_rate"], seanet.codebooks(state, path)
    hop = 1
    for ratio in net.ratios:
        hop *= ratio
    bandwidths = fitting_bandwidths(kind["bandwidths"], n_q=books.n_q, bins=books.bins, frame_rate=rate / hop)
    half = {"causal": kind["causal"], "pad_mode": "reflect", "dilation_base": 2, "norm_params": {}}
    settings = Settings(
        rate,
        {"encoder": half, "decoder": {**half, "trim_right_ratio": 1.0}},
        model={"renormalize": False, "segment": None, **kind["model"], "bandwidths": bandwidths},
    )
    return settings, (
        f"the file says nothing of it, so as in encodec's {rate // 1000} kHz model, whose normalisation it has, are "
        f"assumed: {rate} Hz, {'causal' if kind['causal'] else 'not causal'}, padding by reflection"
        f"{', each second divided by its loudness' if kind['model'] else ''} (--config FILE, or --override "
        "'SAMPLING_RATE = ...', for others)"
    )
