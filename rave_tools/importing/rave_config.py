"""acids-rave's configurations in terms of ours, by tables.

Read is the ``config.gin`` that a run of acids-rave 2.1 to 2.3 writes (gin's operative configuration: every parameter
that the model used, macros, full names), under whatever names it imports its modules.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rave_tools.config_values import Macro
from rave_tools.errors import ConfigError
from rave_tools.importing.bindings import MISSING, Named, Table
from rave_tools.importing.translation import Draft, Ours, Part, Slot, Take

BASE = "base/rave.gin"
PACKAGE = "rave"
MODULES = (
    "balancer", "blocks", "core", "dataset", "descript_discriminator", "discriminator", "model", "pqmf", "prior",
    "quantization", "resampler", "transforms",
)  # fmt: skip
ALIASES = {"cached_conv": "cc", "cc": "cc", "nn": "torch", "torchaudio": "torchaudio"}

NETS = "rave_tools.codec.nets.rave"
BOTTLENECKS = "rave_tools.codec.bottlenecks"
CRITERIA = "rave_tools.criteria"
CONVOLUTIONS = "rave_tools.nn.conv.Convolutions"
PQMF = "rave_tools.codec.pretransforms.pqmf.CachedPQMF"
RAVE = "rave_tools.codec.rave.RAVE"
WRAPPER = "rave_tools.training.autoencoder.AutoencoderTrainingWrapper"
JUDGE = "rave_tools.training.wrapper.Judge"
ADVERSARY = "rave_tools.training.adversary.Adversary"
SUM = f"{CRITERIA}.combiners.WeightedSum"
SCHEDULE = "rave_tools.training.schedules"
ADAM = "torch.optim.Adam"

CHANNELS = Macro("CHANNELS")
NEVER = 1 << 40
"""Updates that no run reaches."""
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

NETWORKS = {
    "EncoderV2": Part(
        f"{NETS}.EncoderV2",
        takes={
            "data_size": Take("data_size", macro="N_BAND", instead_of_none=1),
            "capacity": Take("capacity", macro="CAPACITY"),
            "ratios": Take("ratios", macro="RATIOS"),
            "latent_size": Take("latent_size", macro="LATENT_SIZE"),
            "n_out": Take("n_out"),
            "kernel_size": Take("kernel_size", macro="KERNEL_SIZE"),
            "dilations": Take("dilations", macro="DILATIONS"),
            "keep_dim": Take("keep_dim", default=False),
        },
        slots=LAYERS,
        neutral={"spectrogram": (None,)},
        ignored={"n_channels": GIVEN},
        fixed={"n_channels": CHANNELS, **STYLE},
    ),
    "Encoder": Part(
        f"{NETS}.EncoderV1",
        takes={
            "data_size": Take("data_size", macro="N_BAND", instead_of_none=1),
            "capacity": Take("capacity", macro="CAPACITY"),
            "ratios": Take("ratios", macro="RATIOS"),
            "latent_size": Take("latent_size", macro="LATENT_SIZE"),
            "n_out": Take("n_out"),
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
            "data_size": Take("data_size", macro="N_BAND", instead_of_none=1),
            "capacity": Take("capacity", macro="CAPACITY"),
            "ratios": Take("ratios", macro="RATIOS"),
            "kernel_size": Take("kernel_size", macro="KERNEL_SIZE"),
            "dilations": Take("dilations", macro="DILATIONS"),
            "keep_dim": Take("keep_dim", default=False),
            "amplitude_modulation": Take("amplitude_modulation", default=False),
        },
        slots={**LAYERS, "noise_module": Slot("noise_module", NOISES, called=False, default=None)},
        ignored={"n_channels": GIVEN},
        fixed={"n_channels": CHANNELS, **STYLE},
    ),
    "Generator": Part(
        f"{NETS}.GeneratorV1",
        takes={
            "data_size": Take("data_size", macro="N_BAND", instead_of_none=1),
            "capacity": Take("capacity", macro="CAPACITY"),
            "ratios": Take("ratios", macro="RATIOS"),
            "loud_stride": Take("loud_stride"),
        },
        neutral={"recurrent_layer": (None,)},
        ignored={"n_channels": GIVEN},
        fixed={"n_channels": CHANNELS, "residual_stack": Ours(RESIDUAL_STACK.ours, called=False), **STYLE},
        inner={"ResidualStack": RESIDUAL_STACK},
    ),
}

SPECTRA = {
    "MultiScaleSTFT": Part(
        f"{CRITERIA}.multiresolution.MultiScaleSTFT",
        takes={
            "scales": Take("scales"),
            "magnitude": Take("magnitude", default=True),
            "normalized": Take("normalized", default=False),
            "num_mels": Take("num_mels", default=None),
            "sample_rate": Take("sample_rate", macro="SAMPLING_RATE"),
        },
    ),
}
SPECTRAL_DISTANCES = {
    "SpectralDistance": Part(
        f"{CRITERIA}.multiresolution.SpectralDistance",
        takes={
            "sampling_rate": Take("sample_rate", macro="SAMPLING_RATE"),
            "norm": Take("norm"),
            "power": Take("power"),
            "normalized": Take("normalized"),
            "mel": Take("mel", default=None),
        },
        ignored={"n_fft": GIVEN},
    ),
}
DISTANCES = {
    "AudioDistanceV1": Part(
        f"{CRITERIA}.multiresolution.AudioDistanceV1",
        takes={"log_epsilon": Take("log_epsilon")},
        slots={"multiscale_stft": Slot("multiscale_stft", SPECTRA)},
    ),
    "WeightedInstantaneousSpectralDistance": Part(
        f"{CRITERIA}.multiresolution.WeightedInstantaneousSpectralDistance",
        takes={"weighted": Take("weighted", default=False)},
        slots={"multiscale_stft": Slot("multiscale_stft", SPECTRA)},
    ),
    "EncodecAudioDistance": Part(
        f"{CRITERIA}.multiresolution.EncodecAudioDistance",
        takes={"scales": Take("scales")},
        slots={"spectral_distance": Slot("spectral_distance", SPECTRAL_DISTANCES, called=False)},
    ),
}
LOSSES_OF_DISTANCE = {
    "AudioDistanceV1": ("spectral_distance",),
    "WeightedInstantaneousSpectralDistance": ("spectral_distance", "phase_distance"),
    "EncodecAudioDistance": ("waveform_distance", "spectral_distance"),
}

CONVNETS = {
    "ConvNet": Part(
        f"{CRITERIA}.discriminators.convnet.ConvNet",
        takes={
            "capacity": Take("capacity", macro="DISCRIMINATOR_CAPACITY"),
            "n_layers": Take("n_layers"),
            "kernel_size": Take("kernel_size"),
            "stride": Take("stride"),
            "out_size": Take("out_channels", default=1),
        },
        ignored={"in_size": GIVEN, "conv": "follows from kernel_size"},
        inner={
            "normalization": Part(
                f"{CRITERIA}.discriminators.convnet.ConvNet",
                takes={"mode": Take("weight_norm", "identity", table={"identity": False, "weight_norm": True})},
            )
        },
    ),
    "EncodecConvNet": Part(
        f"{CRITERIA}.discriminators.spectral.EncodecConvNet",
        takes={"capacity": Take("capacity")},
        ignored={"n_channels": GIVEN},
    ),
}
SINGLE_DISCRIMINATORS = {
    "MultiScaleDiscriminator": Part(
        f"{CRITERIA}.discriminators.multi_scale.MultiScaleDiscriminator",
        takes={"n_discriminators": Take("n_discriminators")},
        slots={"convnet": Slot("convnet", CONVNETS, called=False)},
        ignored={"n_channels": GIVEN},
        fixed={"channels": CHANNELS},
    ),
    "MultiPeriodDiscriminator": Part(
        f"{CRITERIA}.discriminators.multi_period.MultiPeriodDiscriminator",
        takes={"periods": Take("periods")},
        slots={"convnet": Slot("convnet", CONVNETS, called=False)},
        ignored={"n_channels": GIVEN},
        fixed={"channels": CHANNELS},
    ),
    "MultiScaleSpectralDiscriminator": Part(
        f"{CRITERIA}.discriminators.spectral.MultiScaleSpectralDiscriminator",
        takes={"scales": Take("scales")},
        slots={"convnet": Slot("convnet", CONVNETS, called=False)},
        ignored={"n_channels": GIVEN},
        fixed={"channels": CHANNELS},
    ),
    "MultiScaleSpectralDiscriminator1d": Part(
        f"{CRITERIA}.discriminators.spectral.MultiScaleSpectralDiscriminator1d",
        takes={"scales": Take("scales")},
        slots={"convnet": Slot("convnet", CONVNETS, called=False)},
        ignored={"n_channels": GIVEN},
        fixed={"channels": CHANNELS},
    ),
}
DISCRIMINATORS = {
    **SINGLE_DISCRIMINATORS,
    "CombineDiscriminators": Part(
        f"{CRITERIA}.discriminators.combine.CombineDiscriminators",
        slots={"discriminators": Slot("discriminators", SINGLE_DISCRIMINATORS, called=False)},
        ignored={"n_channels": GIVEN},
        fixed={"channels": CHANNELS},
    ),
    "DescriptDiscriminator": Part(
        f"{CRITERIA}.discriminators.descript.DescriptDiscriminator",
        takes={
            "periods": Take("periods", (2, 3, 5, 7, 11)),
            "fft_sizes": Take("fft_sizes", (2048, 1024, 512)),
            "bands": Take("bands", ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))),
        },
        neutral={"rates": ([], ())},
        ignored={"n_channels": GIVEN, "sample_rate": "stands for nothing in it"},
        fixed={"capacity": 32, "channels": CHANNELS},
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
FEATURE_MATCHING = {
    "mean_difference": Part(
        f"{CRITERIA}.adversarial.FeatureMatching",
        takes={"norm": Take("norm", default="L1"), "relative": Take("relative", default=False)},
        fixed={"include_logits": True},
    ),
}
GAMES = {"hinge_gan": "hinge", "ls_gan": "least_squares", "nonsaturating_gan": "nonsaturating"}
PENALTIES = {"VariationalEncoder": "kl", "WasserteinEncoder": "mmd", "DiscreteEncoder": "commitment"}
FREEZING = ("VariationalEncoder", "WasserteinEncoder")
"""Encoders that acids-rave stops training in its second phase."""

SINCE_2_3 = ("n_bands", "input_mode", "output_mode", "audio_monitor_epochs", "n_channels")
"""Parameters of the model by which a configuration of 2.3 is known."""

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
HELPERS = (
    "normalization", "cc.Conv1d", "cc.ConvTranspose1d", "cc.get_padding", "NoiseGenerator", "ResidualStack",
    "DilatedUnit", "ResidualLayer", "UpsampleLayer", "get_augmented_latent_size", "Balancer", "EMA",
    "BetaWarmupCallback",
)  # fmt: skip


@dataclass(frozen=True)
class Player:
    """How a run of acids-rave trained one of its two players.

    Attributes:
        settings: of its Adam, by our names of them.
        decays: whether its learning rate falls linearly to a tenth during the first phase.
    """

    settings: Mapping[str, Any]
    decays: bool = False


@dataclass(frozen=True)
class Translation:
    """A configuration of ours, made of one of acids-rave's.

    Attributes:
        text: gin, on top of shipped configurations.
        left: (binding of theirs, why it does not matter here).
        untaken: bindings of theirs that have no counterpart, with their lines.
        notes: what a person should know.
        phase_1_duration: in generator updates.
        update_discriminator_every: in batches.
        quantize_from: the batch from which on it means to quantise; None for never, or without codebooks.
    """

    text: str
    left: list[tuple[str, str]] = field(default_factory=list)
    untaken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    phase_1_duration: int = 0
    update_discriminator_every: int = 2
    quantize_from: int | None = None


def read(text: str, origin: str) -> Table:
    """The bindings of a configuration of acids-rave.

    Raises:
        ConfigError: it is no gin, or describes no RAVE.
    """
    table = Table(text, origin, package=PACKAGE, modules=MODULES, aliases=ALIASES)
    if not table.has("RAVE"):
        raise ConfigError(f"{origin} binds nothing of RAVE: it is no configuration of an acids-rave model")
    return table


def network(table: Table) -> Named:
    """The network inside the encoder's bottleneck.

    Raises:
        ConfigError: the configuration binds none.
    """
    encoder = _need(table, Named("RAVE"), "encoder")
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
    draft.state("CHANNELS", channels)
    rate = int(_need(table, model, "sampling_rate"))
    draft.bind(RAVE, "sampling_rate", rate, macro="SAMPLING_RATE")
    draft.bind(RAVE, "n_channels", CHANNELS)
    _modes(draft, model)
    for parameter, slot in (
        ("pqmf", Slot("pqmf", BANKS)),
        ("encoder", Slot("encoder", ENCODERS)),
        ("decoder", Slot("decoder", DECODERS)),
    ):
        draft.bind(RAVE, slot.ours, draft.choose(model, parameter, _need(table, model, parameter), slot))
    _sizes(draft, model)
    _dilations(draft, model)
    _noise_of_v1(draft, model)
    _convolutions(draft, model)
    _training(draft, model, players)
    quantize_from = _quantization(draft, model)
    for name, reasons in IGNORED.items():
        draft.ignore(name, reasons)
    for name in AUGMENTATIONS:
        if table.has(name):
            draft.ignore(name, {"*": f"an augmentation of the data: give --augment when training goes on ({name})"})
    _torch_defaults(draft)
    duration = max(0, int(table.get(model, "phase_1_duration")))
    every = table.get(model, "update_discriminator_every")
    untaken = [f"{line} = {line.value!r} (line {line.number})" for line in draft.finish(_known())]
    return Translation(
        draft.text(), draft.left, untaken, draft.notes, duration, 2 if every is MISSING else int(every), quantize_from
    )


def _need(table: Table, owner: Named, parameter: str) -> Any:
    value = table.get(owner, parameter)
    if value is MISSING:
        raise ConfigError(f"{table.origin} does not bind {owner.name}.{parameter}, without which there is no model")
    return value


def _modes(draft: Draft, model: Named) -> None:
    """What lies between waveform and network, on both sides; older switches say it otherwise."""
    table = draft.table

    def value(parameter: str, default: Any) -> Any:
        found = table.get(model, parameter)
        return default if found is MISSING else found

    heard, made = value("input_mode", "pqmf"), value("output_mode", "pqmf")
    encoded, decoded = value("enable_pqmf_encode", None), value("enable_pqmf_decode", None)
    if encoded is not None or decoded is not None:
        # A switch that is not given is off, once the other one is.
        heard, made = ("pqmf" if encoded else "raw"), ("pqmf" if decoded else "raw")
    spectrogram = value("spectrogram", None)
    if value("is_mel_input", None) is not None:
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
        if value("pqmf", None) is not None and _causal(table):
            draft.notes.append("the mel spectra stay centred, as in acids-rave: they look half a frame ahead")
    elif spectrogram is not None:
        draft.notes.append("the spectrogram of this configuration is not taken: the encoder does not hear it")


def _causal(table: Table) -> bool:
    return any(table.get(owner, "mode") == "causal" for owner in table.owners("cc.get_padding"))


def _sizes(draft: Draft, model: Named) -> None:
    """The latent size that the decoder sees, and the one that the model states."""
    table = draft.table
    decoder = _need(table, model, "decoder")
    size = table.get(decoder, "latent_size")
    if isinstance(size, Named) and size.name == "get_augmented_latent_size":
        size = int(_need(table, size, "latent_size")) + int(_need(table, size, "noise_augmentation"))
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
    decoder = _need(table, model, "decoder")
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
    decoder = _need(draft.table, model, "decoder")
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
    scopes = [_need(table, model, "decoder").scope, network(table).scope]
    style: dict[str, Any] = {}
    for ours, name, parameter, default in (
        ("bias", "cc.Conv1d", "bias", True),
        ("bias", "cc.ConvTranspose1d", "bias", True),
        ("padding", "cc.get_padding", "mode", "centered"),
        ("normalization", "normalization", "mode", "identity"),
    ):
        for scope in scopes:
            value = table.get(Named(name, scope), parameter)
            value = default if value is MISSING else value
            if style.setdefault(ours, value) != value:
                raise draft.refuse(Named(name), parameter, value, f"other parts of the model have {style[ours]}")
    for ours, value in style.items():
        draft.bind(CONVOLUTIONS, ours, value)
    draft.bind(PQMF, "padding", style["padding"])


def _quantization(draft: Draft, model: Named) -> int | None:
    """From which batch on the run means to quantise."""
    start = draft.table.get(model, "warmup_quantize")
    if _need(draft.table, model, "encoder").name != "DiscreteEncoder":
        draft.ignore("RAVE", {"warmup_quantize": "nothing is quantised in this model"})
        return None
    draft.state("QUANTIZE_FROM", NEVER)
    return None if start in (MISSING, None) else max(0, int(start))


def _training(draft: Draft, model: Named, players: tuple[Player, Player]) -> None:
    table = draft.table
    draft.bind(ADVERSARY, "discriminator", draft.choose(
        model, "discriminator", _need(table, model, "discriminator"), Slot("discriminator", DISCRIMINATORS)
    ))  # fmt: skip
    _judges(draft, model)
    game = _need(table, model, "gan_loss")
    if not isinstance(game, Named) or game.name not in GAMES:
        raise draft.refuse(model, "gan_loss", game, f"known are {', '.join(GAMES)}")
    for side in ("discriminator_loss", "generator_loss"):
        draft.bind(f"{CRITERIA}.adversarial.{side}", "kind", GAMES[game.name])
    matching = Slot("feature_matching", FEATURE_MATCHING)
    chosen = draft.choose(model, "feature_matching_fun", _need(table, model, "feature_matching_fun"), matching)
    draft.bind(ADVERSARY, "feature_matching", chosen)
    draft.bind(chosen.target, "skip", int(table.get(model, "num_skipped_features")), scope=chosen.scope)
    _schedule(draft, model)
    _weights(draft, model)
    for name, player in zip(("generator", "discriminator"), players, strict=True):
        for setting, value in player.settings.items():
            draft.bind(ADAM, setting, value, scope=name)
    if not players[0].decays:
        draft.bind(WRAPPER, "learning_rate", None)
        draft.notes.append("the generator's learning rate stays where it is: this run was trained without a decay")


def _judges(draft: Draft, model: Named) -> None:
    """The distances, each in the scope of its judge."""
    for parameter, scope in (("audio_distance", "fullband"), ("multiband_audio_distance", "multiband")):
        distance = _need(draft.table, model, parameter)
        part = draft.choose(model, parameter, distance, Slot("criterion", DISTANCES), scope=scope)
        draft.bind(JUDGE, "criterion", Ours(part.target, part.scope), scope=scope)
    crop = draft.table.get(model, "valid_signal_crop")
    draft.bind(f"{CRITERIA}.views.Bands", "valid_crop", bool(crop) and crop is not MISSING)


def _schedule(draft: Draft, model: Named) -> None:
    table = draft.table
    duration = int(_need(table, model, "phase_1_duration"))
    draft.bind(f"{SCHEDULE}.RAVESchedule", "phase_1_duration", max(0, duration), macro="PHASE_1_DURATION")
    every = table.get(model, "update_discriminator_every")
    draft.bind(
        f"{SCHEDULE}.RAVESchedule", "update_discriminator_every", 2 if every is MISSING else int(every),
        macro="UPDATE_DISCRIMINATOR_EVERY",
    )  # fmt: skip
    encoder = _need(table, model, "encoder")
    draft.bind(f"{SCHEDULE}.RAVESchedule", "freeze_encoder", encoder.name in FREEZING)


def _weights(draft: Draft, model: Named) -> None:
    """Every loss with the factor that it had in their sum.

    Since 2.3 a distance has two factors, one for its kind and one by its own name, and feature matching and the
    adversary are multiplied by their weight twice. Before, every weight counted once.
    """
    table = draft.table
    given, modern = _given_weights(draft, model)
    weights: dict[str, float] = {}
    used = set()

    def factor(name: str, default: float = 1.0) -> float:
        used.add(name)
        return float(given.get(name, default))

    for parameter, prefix in (("audio_distance", "fullband"), ("multiband_audio_distance", "multiband")):
        distance = table.get(model, parameter)
        for loss in LOSSES_OF_DISTANCE[distance.name]:
            kind = factor(parameter) if modern else 1.0
            weights[f"{prefix}_{loss}"] = kind * factor(f"{prefix}_{loss}")
    encoder = _need(table, model, "encoder")
    penalty = PENALTIES.get(encoder.name)
    if penalty is not None:
        weights[penalty] = factor("regularization") * _own_factor(table, encoder)
    else:
        used.add("regularization")
    weights["adversarial"] = factor("adversarial")
    weights["feature_matching"] = factor("feature_matching", 20.0 if modern else 1.0)
    twice = [name for name in ("adversarial", "feature_matching") if modern and weights[name] != 1]
    draft.state("FEATURE_MATCHING_WEIGHT", weights["feature_matching"])
    draft.bind(SUM, "weights", {**weights, "feature_matching": Macro("FEATURE_MATCHING_WEIGHT")})
    draft.bind(SUM, "applied_twice", twice)
    if twice:
        acts = ", ".join(f"{name} {weights[name]:g} acts as {weights[name] ** 2:g}" for name in twice)
        draft.notes.append(
            f"acids-rave 2.3 applies these weights twice, and so does this run, to go on as it was: {acts} "
            "(WeightedSum.applied_twice, the mixin rave_double_weighting)"
        )
    for name in sorted(set(given) - used - {"audio_distance", "multiband_audio_distance"}):
        draft.notes.append(f"NOT TAKEN: the weight {name} = {given[name]!r}: no loss of this model has that name")
    _beta(draft, penalty)


def _own_factor(table: Table, encoder: Named) -> float:
    """The factor that a bottleneck itself puts on its penalty."""
    own = table.get(encoder, "beta")
    quantizer = table.get(encoder, "vq_cls")
    if isinstance(quantizer, Named):
        own = table.get(quantizer, "commitment_weight")
    return 1.0 if own is MISSING else float(own)


def _given_weights(draft: Draft, model: Named) -> tuple[dict[str, Any], bool]:
    """The weights as written, and whether the run is of 2.3 or later."""
    table = draft.table
    modern = any(table.get(model, parameter) is not MISSING for parameter in SINCE_2_3)
    balancer = table.get(model, "balancer")
    if isinstance(balancer, Named):
        owner = balancer
        if table.get(owner, "scale_gradients") is True:
            raise draft.refuse(owner, "scale_gradients", True, "gradients balanced by their norms have no counterpart")
        reason = "without scaled gradients the balancer is a weighted sum"
        draft.ignore("Balancer", {"deny_list": reason, "ema_averager": reason})
        draft.ignore("EMA", {"*": reason})
    else:
        owner = model
    older, newer = table.get(owner, "weights"), table.get(model, "loss_weights")
    chosen = newer if newer not in (MISSING, None) else older
    return ({} if chosen in (MISSING, None) else dict(chosen)), modern


def _beta(draft: Draft, penalty: str | None) -> None:
    """The ramp of beta; before 2.2 there was none, and the weight of the penalty says it all."""
    table = draft.table
    callback = next(iter(table.owners("BetaWarmupCallback")), Named("BetaWarmupCallback"))
    initial, target, steps, logarithmic = (
        table.get(callback, parameter) for parameter in ("initial_value", "target_value", "warmup_len", "log")
    )
    if penalty is None:
        draft.bind(WRAPPER, "betas", {})
        return
    if initial is MISSING and target is MISSING:
        draft.bind(WRAPPER, "betas", {})
        draft.notes.append("no ramp of beta: this configuration has none, its weight of the penalty is constant")
        return
    initial, target, steps = (
        default if value is MISSING else value
        for value, default in ((initial, 0.2), (target, 0.2), (steps, 1))
    )
    draft.state("BETA_INITIAL", initial)
    draft.state("BETA_TARGET", target)
    draft.state("BETA_WARMUP", steps)
    ramp, names, scope = f"{SCHEDULE}.LogRamp", ("initial", "target"), ""
    if logarithmic is False:
        ramp, names, scope = f"{SCHEDULE}.LinearDecay", ("start", "end"), "beta"
        draft.notes.append("beta rises linearly here one update later than in acids-rave")
    for parameter, macro in zip((*names, "steps"), ("BETA_INITIAL", "BETA_TARGET", "BETA_WARMUP"), strict=True):
        draft.bind(ramp, parameter, Macro(macro), scope=scope)
    draft.bind(WRAPPER, "betas", {penalty: Ours(ramp, scope)})


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


def _known() -> set[str]:
    tables: list[dict[str, Any]] = [ACTIVATIONS, ADAPTATIONS, RECURRENCES, QUANTIZERS, SPECTROGRAMS, NOISES]
    tables += [NETWORKS, ENCODERS, DECODERS]
    tables += [SPECTRA, SPECTRAL_DISTANCES, DISTANCES, CONVNETS, DISCRIMINATORS, BANKS, FEATURE_MATCHING]
    return {name for table in tables for name in table} | set(HELPERS) | set(GAMES)
