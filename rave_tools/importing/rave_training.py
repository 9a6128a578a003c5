"""The training half of acids-rave's configurations: distances, discriminators, weights of the losses, schedules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rave_tools.config_values import Macro
from rave_tools.errors import ConfigError
from rave_tools.importing.bindings import MISSING, Named, Table
from rave_tools.importing.rave_model import CHANNELS, GIVEN
from rave_tools.importing.translation import Draft, Ours, Part, Slot, Take

CRITERIA = "rave_tools.criteria"
WRAPPER = "rave_tools.training.autoencoder.AutoencoderTrainingWrapper"
JUDGE = "rave_tools.training.wrapper.Judge"
ADVERSARY = "rave_tools.training.adversary.Adversary"
SUM = f"{CRITERIA}.combiners.WeightedSum"
SCHEDULE = "rave_tools.training.schedules"
ADAM = "torch.optim.Adam"

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


def _many(ours: str, parameter: str) -> Part:
    """A discriminator made of several equal networks; which, says one parameter."""
    return Part(
        f"{CRITERIA}.discriminators.{ours}",
        takes={parameter: Take(parameter)},
        slots={"convnet": Slot("convnet", CONVNETS, called=False)},
        ignored={"n_channels": GIVEN},
        fixed={"channels": CHANNELS},
    )


SINGLE_DISCRIMINATORS = {
    "MultiScaleDiscriminator": _many("multi_scale.MultiScaleDiscriminator", "n_discriminators"),
    "MultiPeriodDiscriminator": _many("multi_period.MultiPeriodDiscriminator", "periods"),
    "MultiScaleSpectralDiscriminator": _many("spectral.MultiScaleSpectralDiscriminator", "scales"),
    "MultiScaleSpectralDiscriminator1d": _many("spectral.MultiScaleSpectralDiscriminator1d", "scales"),
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

KNOWN = {
    name
    for parts in (SPECTRA, SPECTRAL_DISTANCES, DISTANCES, CONVNETS, DISCRIMINATORS, FEATURE_MATCHING)
    for name in parts
} | {"Balancer", "EMA", "BetaWarmupCallback", *GAMES}
"""Foreign classes and functions that this half understands."""


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
class Course:
    """How a run goes from phase to phase.

    Attributes:
        phase_1_duration: in generator updates.
        update_discriminator_every: in batches.
        discriminator_known: whether the discriminator goes on; otherwise another begins.
    """

    phase_1_duration: int
    update_discriminator_every: int
    discriminator_known: bool


def translate_training(draft: Draft, model: Named, players: tuple[Player, Player]) -> Course:
    """Everything that teaches: who judges, how much each judge counts, when what is learnt.

    Args:
        draft: receives it.
        model: the foreign model, its own half translated already.
        players: generator and discriminator, as the checkpoint has them.

    Raises:
        ConfigError: some part has no counterpart here.
    """
    table = draft.table
    known = _discriminator(draft, model)
    _judges(draft, model)
    game = table.need(model, "gan_loss")
    if not isinstance(game, Named) or game.name not in GAMES:
        raise draft.refuse(model, "gan_loss", game, f"known are {', '.join(GAMES)}")
    for side in ("discriminator_loss", "generator_loss"):
        draft.bind(f"{CRITERIA}.adversarial.{side}", "kind", GAMES[game.name])
    matching = Slot("feature_matching", FEATURE_MATCHING)
    chosen = draft.choose(model, "feature_matching_fun", table.need(model, "feature_matching_fun"), matching)
    draft.bind(ADVERSARY, "feature_matching", chosen)
    draft.bind(chosen.target, "skip", int(table.get(model, "num_skipped_features", 0)), scope=chosen.scope)
    course = _course(draft, model, known)
    _weights(draft, model)
    for name, player in zip(("generator", "discriminator"), players, strict=True):
        for setting, value in player.settings.items():
            draft.bind(ADAM, setting, value, scope=name)
    if not players[0].decays:
        draft.bind(WRAPPER, "learning_rate", None)
        draft.notes.append("the generator's learning rate stays where it is: this run was trained without a decay")
    return course


def _discriminator(draft: Draft, model: Named) -> bool:
    """The adversary; one without counterpart is replaced, for the model is whole without it.

    Returns:
        Whether it has a counterpart.
    """
    slot, foreign = Slot("discriminator", DISCRIMINATORS), draft.table.need(model, "discriminator")
    try:
        Draft(draft.table, draft.base).choose(model, "discriminator", foreign, slot)
    except ConfigError as error:
        draft.notes.append(f"NOT TAKEN: {error} The model is whole without it; training goes on against a new "
                           "discriminator, that of v2")  # fmt: skip
        draft.bind(ADVERSARY, "discriminator", Ours(DISCRIMINATORS["CombineDiscriminators"].ours))
        for name in _inside(foreign, draft.table):
            draft.ignore(name, {"*": "the discriminator is not taken"})
        return False
    draft.bind(ADVERSARY, "discriminator", draft.choose(model, "discriminator", foreign, slot))
    return True


def _inside(value: Any, table: Table) -> set[str]:
    """The classes that a value names, and those that are bound to them in turn."""
    found: set[str] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (list, tuple)):
            waiting += item
        elif isinstance(item, Named) and item.name not in found:
            found.add(item.name)
            lines = [line for line in table.lines.values() if line.name == item.name]
            waiting += [table.resolved(line.value, item.scope) for line in lines]
    return found


def _judges(draft: Draft, model: Named) -> None:
    """The distances, each in the scope of its judge."""
    for parameter, scope in (("audio_distance", "fullband"), ("multiband_audio_distance", "multiband")):
        distance = draft.table.need(model, parameter)
        part = draft.choose(model, parameter, distance, Slot("criterion", DISTANCES), scope=scope)
        draft.bind(JUDGE, "criterion", Ours(part.target, part.scope), scope=scope)
    crop = draft.table.get(model, "valid_signal_crop", False)
    draft.bind(f"{CRITERIA}.views.Bands", "valid_crop", bool(crop))


def _course(draft: Draft, model: Named, discriminator_known: bool) -> Course:
    """When the second phase begins, whose turn it is in it, and whether the encoder learns on."""
    table, schedule = draft.table, f"{SCHEDULE}.RAVESchedule"
    duration = max(0, int(table.need(model, "phase_1_duration")))
    every = int(table.get(model, "update_discriminator_every", 2))
    draft.bind(schedule, "phase_1_duration", duration, macro="PHASE_1_DURATION")
    draft.bind(schedule, "update_discriminator_every", every, macro="UPDATE_DISCRIMINATOR_EVERY")
    draft.bind(schedule, "freeze_encoder", table.need(model, "encoder").name in FREEZING)
    return Course(duration, every, discriminator_known)


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
    encoder = table.need(model, "encoder")
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
    own = table.get(encoder, "beta", 1.0)
    quantizer = table.get(encoder, "vq_cls")
    if isinstance(quantizer, Named):
        own = table.get(quantizer, "commitment_weight", 1.0)
    return float(own)


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
