"""The model half of acids-rave's configurations: filter bank, encoder, decoder, and what lies between them."""

import math
from typing import Any

from rave_tools.config_values import Macro
from rave_tools.errors import ConfigError
from rave_tools.importing.bindings import MISSING, Named, Table
from rave_tools.importing.translation import Draft, Ours, Part, Slot, Take

NETS = "rave_tools.codec.nets.rave"
BOTTLENECKS = "rave_tools.codec.bottlenecks"
CONVOLUTIONS = "rave_tools.nn.conv.Convolutions"
PQMF = "rave_tools.codec.pretransforms.pqmf.CachedPQMF"
RAVE = "rave_tools.codec.rave.RAVE"
NEVER = 1 << 40
"""Updates that no run reaches."""

CHANNELS = Macro("CHANNELS")
GIVEN = "whoever builds it supplies it"
STYLE = {"convolutions": Ours(CONVOLUTIONS)}

ACTIVATIONS = {"Snake": Part("rave_tools.nn.activations.Snake", ignored={"dim": GIVEN})}
ADAPTATIONS = {
    "AdaptiveInstanceNormalization": Part(
        "rave_tools.nn.normalization.AdaptiveInstanceNormalization", ignored={"dim": GIVEN}
    )
}
RECURRENCES = {
    "GRU": Part("rave_tools.nn.recurrent.GRU", takes={"num_layers": Take("num_layers")}, ignored={"latent_size": GIVEN})
}
LAYERS = {
    "activation": Slot("activation", ACTIVATIONS, called=False),
    "adain": Slot("adain", ADAPTATIONS, called=False, default=None),
    "recurrent_layer": Slot("recurrent_layer", RECURRENCES, called=False, default=None),
}

NOISES = {
    "NoiseGeneratorV2": Part(
        "rave_tools.nn.noise.NoiseGeneratorV2",
        takes={"hidden_size": Take("hidden_size"), "ratios": Take("ratios"), "noise_bands": Take("noise_bands")},
        slots={"activation": LAYERS["activation"]},
        ignored={"data_size": GIVEN, "n_channels": GIVEN, "in_size": GIVEN},
        fixed=STYLE,
    ),
}
V1_NOISE = Part(
    "rave_tools.nn.noise.NoiseGenerator",
    takes={"ratios": Take("ratios"), "noise_bands": Take("noise_bands")},
    ignored={"data_size": GIVEN, "in_size": GIVEN},
    fixed=STYLE,
)
RESIDUAL_STACK = Part(
    "rave_tools.nn.residual.ResidualStack",
    takes={"kernel_sizes": Take("kernel_sizes"), "dilations_list": Take("dilations")},
    ignored={"dim": GIVEN},
    fixed=STYLE,
)

SIZES = {
    "data_size": Take("data_size", macro="N_BAND", instead_of_none=1),
    "capacity": Take("capacity", macro="CAPACITY"),
    "ratios": Take("ratios", macro="RATIOS"),
}
HEADS = {"latent_size": Take("latent_size", macro="LATENT_SIZE"), "n_out": Take("n_out")}
UNITS = {
    "kernel_size": Take("kernel_size", macro="KERNEL_SIZE"),
    "dilations": Take("dilations", macro="DILATIONS"),
    "keep_dim": Take("keep_dim", default=False),
}
NETWORKS = {
    "EncoderV2": Part(
        f"{NETS}.EncoderV2",
        takes={
            **SIZES,
            **HEADS,
            **UNITS,
        },
        slots=LAYERS,
        neutral={"spectrogram": (None,)},
        ignored={"n_channels": GIVEN},
        fixed={"n_channels": CHANNELS, **STYLE},
    ),
    "Encoder": Part(
        f"{NETS}.EncoderV1",
        takes={
            **SIZES,
            **HEADS,
            "sample_norm": Take("sample_norm"),
            "repeat_layers": Take("repeat_layers"),
        },
        neutral={"recurrent_layer": (None,), "spectrogram": (None,)},
        ignored={"n_channels": GIVEN},
        fixed={"n_channels": CHANNELS, **STYLE},
    ),
}

QUANTIZERS = {
    "ResidualVectorQuantization": Part(
        f"{BOTTLENECKS}.quantization.ResidualVectorQuantization",
        takes={
            "num_quantizers": Take("num_quantizers", macro="NUM_QUANTIZERS"),
            "dim": Take("dim", macro="LATENT_SIZE"),
            "codebook_size": Take("codebook_size", macro="CODEBOOK_SIZE"),
            "kmeans_init": Take("kmeans_init", True),
            "kmeans_iters": Take("kmeans_iters", 50),
            "decay": Take("decay", 0.99),
            "epsilon": Take("epsilon", 1e-5),
            "threshold_ema_dead_code": Take("threshold_ema_dead_code", 2),
        },
        neutral={"codebook_dim": (None,)},
        ignored={"commitment_weight": "counted in the weight of the commitment"},
    ),
}
ENCODERS = {
    "VariationalEncoder": Part(
        f"{BOTTLENECKS}.variational.VariationalEncoder",
        slots={"encoder": Slot("encoder", NETWORKS)},
        ignored={"beta": "counted in the weight of the KL divergence", "n_channels": GIVEN},
    ),
    "WasserteinEncoder": Part(
        f"{BOTTLENECKS}.wasserstein.WasserteinEncoder",
        takes={"noise_augmentation": Take("noise_augmentation", 0, macro="NOISE_AUGMENTATION")},
        slots={"encoder_cls": Slot("encoder", NETWORKS)},
        ignored={"n_channels": GIVEN},
    ),
    "SphericalEncoder": Part(
        f"{BOTTLENECKS}.spherical.SphericalEncoder",
        slots={"encoder_cls": Slot("encoder", NETWORKS)},
        ignored={"n_channels": GIVEN},
    ),
    "DiscreteEncoder": Part(
        f"{BOTTLENECKS}.discrete.DiscreteEncoder",
        takes={"noise_augmentation": Take("noise_augmentation", 0, macro="NOISE_AUGMENTATION")},
        slots={"encoder_cls": Slot("encoder", NETWORKS), "vq_cls": Slot("rvq", QUANTIZERS)},
        ignored={"n_channels": GIVEN, "num_quantizers": "the codebooks say it"},
        fixed={"quantize_from": Macro("QUANTIZE_FROM")},
    ),
}

DECODERS = {
    "GeneratorV2": Part(
        f"{NETS}.GeneratorV2",
        takes={
            **SIZES,
            **UNITS,
            "amplitude_modulation": Take("amplitude_modulation", default=False),
        },
        slots={**LAYERS, "noise_module": Slot("noise_module", NOISES, called=False, default=None)},
        ignored={"n_channels": GIVEN},
        fixed={"n_channels": CHANNELS, **STYLE},
    ),
    "Generator": Part(
        f"{NETS}.GeneratorV1",
        takes={
            **SIZES,
            "loud_stride": Take("loud_stride"),
        },
        neutral={"recurrent_layer": (None,)},
        ignored={"n_channels": GIVEN},
        fixed={"n_channels": CHANNELS, "residual_stack": Ours(RESIDUAL_STACK.ours, called=False), **STYLE},
        inner={"ResidualStack": RESIDUAL_STACK},
    ),
}

SPECTROGRAMS = {
    "torchaudio.MelSpectrogram": Part(
        "rave_tools.codec.pretransforms.mel.MelSpectrogram",
        takes={
            "sample_rate": Take("sample_rate", macro="SAMPLING_RATE"),
            "n_fft": Take("n_fft", 400, macro="N_FFT"),
            "hop_length": Take("hop_length"),
            "n_mels": Take("n_mels", 128, macro="N_MELS"),
        },
        neutral={
            "normalized": (True, "window"), "power": (2.0,), "f_min": (0.0,), "f_max": (None,), "pad": (0,),
            "center": (True,), "pad_mode": ("reflect",), "norm": (None,), "mel_scale": ("htk",), "wkwargs": (None,),
            "onesided": (None, True),
        },
        ignored={"win_length": "the window fills the frame"},
        fixed={"padding": "centered"},
    )
}  # fmt: skip
BANKS = {
    "CachedPQMF": Part(
        PQMF,
        takes={"attenuation": Take("attenuation"), "n_band": Take("n_band", macro="N_BAND")},
        neutral={"polyphase": (True,)},
        ignored={"n_channels": GIVEN},
    ),
}

KNOWN = {
    name
    for parts in (
        ACTIVATIONS, ADAPTATIONS, RECURRENCES, NOISES, NETWORKS, QUANTIZERS, ENCODERS, DECODERS, SPECTROGRAMS, BANKS
    )
    for name in parts
} | {
    "normalization", "cc.Conv1d", "cc.ConvTranspose1d", "cc.get_padding", "NoiseGenerator", "ResidualStack",
    "DilatedUnit", "ResidualLayer", "UpsampleLayer", "get_augmented_latent_size",
}  # fmt: skip
"""Foreign classes and functions that this half understands."""


def network(table: Table) -> Named:
    """The network inside the encoder's bottleneck.

    Raises:
        ConfigError: the configuration binds none.
    """
    encoder = table.need(Named("RAVE"), "encoder")
    if isinstance(encoder, Named) and encoder.name in ENCODERS:
        for parameter in ("encoder", "encoder_cls"):
            inner = table.get(encoder, parameter)
            if isinstance(inner, Named):
                return inner
    raise ConfigError(
        f"{table.origin}: RAVE.encoder = {encoder!s} cannot be imported: no network is bound to it, or that class is "
        f"not known here; known are {', '.join(ENCODERS)}"
    )


def channels_of(table: Table, rows: int) -> int:
    """Audio channels of a model whose encoder's input has so many rows."""
    size = table.get(network(table), "data_size")
    # Without a size the peer takes the channels themselves, for each channel.
    return math.isqrt(rows) if size in (MISSING, None) else rows // int(size)


def translate_model(draft: Draft, model: Named, *, channels: int) -> int | None:
    """Everything that makes sound.

    Args:
        draft: receives it.
        model: the foreign model.
        channels: as its weights have them.

    Returns:
        The batch from which on the run means to quantise; None for never, or without codebooks.

    Raises:
        ConfigError: some part has no counterpart here.
    """
    table = draft.table
    draft.state("CHANNELS", channels)
    draft.bind(RAVE, "sampling_rate", int(table.need(model, "sampling_rate")), macro="SAMPLING_RATE")
    draft.bind(RAVE, "n_channels", CHANNELS)
    _modes(draft, model)
    for name, parts in (("pqmf", BANKS), ("encoder", ENCODERS), ("decoder", DECODERS)):
        draft.bind(RAVE, name, draft.choose(model, name, table.need(model, name), Slot(name, parts)))
    _sizes(draft, model)
    _dilations(draft, model)
    _noise_of_v1(draft, model)
    _convolutions(draft, model)
    return _quantization(draft, model)


def _modes(draft: Draft, model: Named) -> None:
    """What lies between waveform and network, on both sides; older switches say it otherwise."""
    table = draft.table

    heard, made = table.get(model, "input_mode", "pqmf"), table.get(model, "output_mode", "pqmf")
    encoded, decoded = table.get(model, "enable_pqmf_encode", None), table.get(model, "enable_pqmf_decode", None)
    if encoded is not None or decoded is not None:
        # A switch that is not given is off, once the other one is.
        heard, made = ("pqmf" if encoded else "raw"), ("pqmf" if decoded else "raw")
    spectrogram = table.get(model, "spectrogram", None)
    if table.get(model, "is_mel_input", None) is not None:
        heard = "mel"
    modes = (("input_mode", heard, ("pqmf", "mel", "raw")), ("output_mode", made, ("pqmf", "raw")))
    for parameter, mode, allowed in modes:
        if mode not in allowed:
            raise draft.refuse(model, parameter, mode, f"it is one of {', '.join(allowed)}")
        draft.bind(RAVE, parameter, mode)
    if heard == "mel":
        slot = Slot("spectrogram", SPECTROGRAMS)
        if spectrogram is None:
            raise draft.refuse(model, "spectrogram", None, "the encoder hears mel spectra and none are bound")
        draft.bind(RAVE, "spectrogram", draft.choose(model, "spectrogram", spectrogram, slot))
        if table.get(model, "pqmf", None) is not None and _causal(table):
            draft.notes.append("the mel spectra stay centred, as in acids-rave: they look half a frame ahead")
    elif spectrogram is not None:
        draft.notes.append("the spectrogram of this configuration is not taken: the encoder does not hear it")


def _causal(table: Table) -> bool:
    return any(table.get(owner, "mode") == "causal" for owner in table.owners("cc.get_padding"))


def _sizes(draft: Draft, model: Named) -> None:
    """The latent size that the decoder sees, and the one that the model states."""
    table = draft.table
    decoder = table.need(model, "decoder")
    size = table.get(decoder, "latent_size")
    if isinstance(size, Named) and size.name == "get_augmented_latent_size":
        size = int(table.need(size, "latent_size")) + int(table.need(size, "noise_augmentation"))
    if not isinstance(size, int):
        raise draft.refuse(decoder, "latent_size", size, "a number is needed")
    target = DECODERS[decoder.name].ours
    draft.bind(target, "latent_size", size, macro="LATENT_SIZE")
    stated = table.get(model, "latent_size")
    if stated is not MISSING and stated != draft.macros.get("LATENT_SIZE"):
        raise draft.refuse(model, "latent_size", stated, f"the encoder has {draft.macros.get('LATENT_SIZE')}")


def _dilations(draft: Draft, model: Named) -> None:
    """Lists of dilations beyond the ratios are never reached in acids-rave: the encoder's last, the decoder's first."""
    table = draft.table
    decoder = table.need(model, "decoder")
    for owner, parts, from_end in ((network(table), NETWORKS, False), (decoder, DECODERS, True)):
        dilations, ratios = table.get(owner, "dilations"), table.get(owner, "ratios")
        if dilations is MISSING or isinstance(dilations[0], int) or len(dilations) == len(ratios):
            continue
        if len(dilations) < len(ratios):
            raise draft.refuse(owner, "dilations", dilations, f"there are {len(ratios)} ratios")
        kept = list(dilations)[-len(ratios):] if from_end else list(dilations)[: len(ratios)]
        draft.bind(parts[owner.name].ours, "dilations", kept, scope="/".join(owner.scope))


def _noise_of_v1(draft: Draft, model: Named) -> None:
    """The first generator says whether it has noise by a switch, and builds the branch itself."""
    decoder = draft.table.need(model, "decoder")
    if decoder.name != "Generator":
        return
    noisy = draft.table.get(decoder, "use_noise")
    branch = None
    if noisy:
        draft.part(Named("NoiseGenerator", decoder.scope), V1_NOISE)
        branch = Ours(V1_NOISE.ours, called=False)
    draft.bind(DECODERS["Generator"].ours, "noise_module", branch)


def _convolutions(draft: Draft, model: Named) -> None:
    """One style for all: bias, padding and normalisation, which must not differ between encoder and decoder."""
    table = draft.table
    scopes = [table.need(model, "decoder").scope, network(table).scope]
    style: dict[str, Any] = {}
    for ours, name, parameter, default in (
        ("bias", "cc.Conv1d", "bias", True),
        ("bias", "cc.ConvTranspose1d", "bias", True),
        ("padding", "cc.get_padding", "mode", "centered"),
        ("normalization", "normalization", "mode", "identity"),
    ):
        for scope in scopes:
            value = table.get(Named(name, scope), parameter, default)
            if style.setdefault(ours, value) != value:
                raise draft.refuse(Named(name), parameter, value, f"other parts of the model have {style[ours]}")
    for ours, value in style.items():
        draft.bind(CONVOLUTIONS, ours, value)
    draft.bind(PQMF, "padding", style["padding"])


def _quantization(draft: Draft, model: Named) -> int | None:
    """From which batch on the run means to quantise."""
    start = draft.table.get(model, "warmup_quantize")
    if draft.table.need(model, "encoder").name != "DiscreteEncoder":
        draft.ignore("RAVE", {"warmup_quantize": "nothing is quantised in this model"})
        return None
    draft.state("QUANTIZE_FROM", NEVER)
    return None if start in (MISSING, None) else max(0, int(start))
