"""Runs of acids-rave: find the files, read the checkpoint, count its steps as we do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rave_tools import migrations
from rave_tools.errors import RunError
from rave_tools.importing import rave_config, rave_model
from rave_tools.importing.pickles import Record, load_foreign, spoilt_record
from rave_tools.importing.rave_training import Player
from rave_tools.importing.registry import Choice, Imported

CONFIG_NAME = "config.gin"
DEPTH = 3
"""Folders above a checkpoint that are searched for its configuration: RUN/version_0/checkpoints/last.ckpt."""

SETTINGS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
"""What torch's Adam takes by itself; other values are carried over."""

LEARNING_RATES = ((1e-3, True), (1e-4, False))
"""(rate, whether it decays) of generator and discriminator in acids-rave 2.3."""


def read(path: Path, choice: Choice) -> Imported:
    """A run of acids-rave in our terms.

    Args:
        path: run folder, or checkpoint.
        choice: which checkpoint, and where its configuration lies.

    Raises:
        RunError: there is no run, or no checkpoint of RAVE, or its configuration is missing.
        ConfigError: its model has no counterpart here.
    """
    file, others = find_checkpoint(path, choice.checkpoint)
    content, replaced = load_foreign(file)
    state = _weights(content, file)
    config_path = choice.config or find_config(file, path)
    table = rave_config.read(_text(config_path), str(config_path))
    notes, record = [], [f"checkpoint {file}", f"configuration {config_path}"]
    if others:
        notes.append(f"of {len(others) + 1} checkpoints the newest is taken, {file.name}; others: "
                     f"{', '.join(sorted({other.name for other in others})[:6])} (--checkpoint chooses)")  # fmt: skip
    spoilt = spoilt_record(file)
    if spoilt is not None:
        notes.append(f"NOT WHOLE: the checksum of {spoilt} in {file.name} is wrong: the file has probably been damaged "
                     "since it was written, and some weights are not what they were; copy it again")  # fmt: skip
    channels = _channels(table, state, notes)
    optimizers = _optimizer_states(content)
    players = _players(content, optimizers)
    translation = rave_config.translate(table, channels=channels, players=players)
    weights, dropped = migrations.from_acids_rave(state)
    counters, phase, text = _counters(content, state, optimizers, translation, notes)
    text += _quantization(translation, state, weights, counters["generator_updates"], notes)
    notes += translation.notes
    named = _by_name(state, optimizers, notes)
    fresh = () if translation.course.discriminator_known else ("adversary.",)
    if fresh:
        weights = {key: value for key, value in weights.items() if not key.startswith(fresh)}
        named = [named[0], None] if named else named
    field = [int(value) for value in state.get("receptive_field", [])]
    facts: dict[str, Any] = {"imported": {"from": "acids-rave", "checkpoint": file.name,
                                          "global_step": int(content.get("global_step", 0))}}  # fmt: skip
    facts["phase"] = phase
    if any(field):
        facts["receptive_field"] = field
    ema = _ema(content, notes)
    notes += [f"NOT TAKEN: {line}: it has no counterpart here" for line in translation.untaken]
    notes.sort(key=lambda note: not note.startswith(("NOT WHOLE", "NOT TAKEN")))
    if replaced:
        record.append(f"objects in the checkpoint that were not opened: {', '.join(replaced)}")
    record += [f"weights: {line}" for line in dropped]
    record += [f"binding {binding} is left out: {reason}" for binding, reason in translation.left]
    return Imported(text, weights, ema, named, counters, facts, notes, record, fresh)


def find_checkpoint(path: Path, name: str | None) -> tuple[Path, list[Path]]:
    """The checkpoint that a path means, and the others that it might have meant.

    Args:
        path: a ``.ckpt``, or a folder with some anywhere below it.
        name: part of the file's name; otherwise the newest is taken, as acids-rave does.

    Raises:
        RunError: there is none.
    """
    if path.is_file():
        if path.suffix == ".ts":
            raise RunError(f"{path} is an export: it has no weights to train; play it with rave_tools generate --model")
        return path, []
    if not path.is_dir():
        raise RunError(f"no run at {path}")
    found = sorted(path.rglob("*.ckpt"), key=lambda item: item.stat().st_mtime, reverse=True)
    if not found:
        raise RunError(f"{path} has no checkpoint (*.ckpt) anywhere below it")
    if name is None:
        return found[0], found[1:]
    chosen = [item for item in found if item.stem == name] or [item for item in found if name in item.name]
    if not chosen:
        raise RunError(f"{path} has no checkpoint '{name}'; it has {', '.join(item.name for item in found[:8])}")
    return chosen[0], []


def find_config(file: Path, path: Path) -> Path:
    """The configuration beside a checkpoint or in a folder above it.

    Args:
        file: the checkpoint.
        path: what the person gave.

    Raises:
        RunError: there is none.
    """
    folders = [file.parent, *list(file.resolve().parents)[1:DEPTH]]
    if path.is_dir():
        folders.insert(0, path)
    for folder in folders:
        if (folder / CONFIG_NAME).is_file():
            return folder / CONFIG_NAME
    raise RunError(f"no {CONFIG_NAME} beside {file} or in the {DEPTH - 1} folders above it, and without it the model "
                   "cannot be built; say where it is with --config FILE")  # fmt: skip


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _weights(content: Mapping[Any, Any], file: Path) -> dict[str, Tensor]:
    """The weights of a RAVE 2.

    Raises:
        RunError: these are others.
    """
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise RunError(f"{file} is no checkpoint of acids-rave: it holds {', '.join(sorted(map(str, content))[:8])}, "
                       "and no state_dict")  # fmt: skip
    if "rave_tools" in content:
        raise RunError(f"{file} is a checkpoint of rave_tools already; train, export and generate take it as it is")
    weights = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not {"latent_pca", "latent_mean", "fidelity"} <= weights.keys() or not any(
        key.startswith("decoder.net.") for key in weights
    ):
        raise RunError(f"{file} is no checkpoint of a RAVE: among its {len(weights)} tensors are "
                       f"{', '.join(list(weights)[:4]) or 'none'}")  # fmt: skip
    if any(key.startswith("encoder.net.") for key in weights):
        raise RunError(f"{file} is of RAVE 1 (2021), whose networks are others; models of acids-rave 2.1 and later "
                       "are read. Its export (.ts) plays in rave_tools generate")  # fmt: skip
    return weights


def _channels(table: Any, state: Mapping[str, Tensor], notes: list[str]) -> int:
    """How many the weights have; what the configuration says or has lost is mended, and said."""
    stated = rave_config.stated_channels(table)
    first = next((state[key] for key in ("encoder.encoder.net.0.weight_v", "encoder.encoder.net.0.weight")
                  if key in state), None)  # fmt: skip
    if first is None:
        return stated or 1
    channels = max(1, rave_model.channels_of(table, first.shape[1]))
    if stated is None and channels != 1:
        notes.append(f"{CONFIG_NAME} does not say n_channels, as acids-rave's do not; the weights have {channels}")
    elif stated is not None and stated != channels:
        notes.append(f"{CONFIG_NAME} says n_channels = {stated}, but the weights have {channels}: mended")
    return channels


@dataclass(frozen=True)
class _Adam:
    """One player's optimiser as Lightning saved it.

    Attributes:
        group: its settings.
        states: by position of the parameter.
    """

    group: Mapping[str, Any]
    states: Mapping[int, Mapping[str, Any]]

    @property
    def updates(self) -> int:
        """Updates made: of the parameter that was in most of them, for a frozen one stops counting."""
        return max((int(state["step"]) for state in self.states.values()), default=0)


def _optimizer_states(content: Mapping[Any, Any]) -> list[_Adam]:
    """Generator's and discriminator's, or nothing where the checkpoint keeps none that can be understood."""
    saved = content.get("optimizer_states")
    if not isinstance(saved, Sequence) or len(saved) != 2:
        return []
    made = []
    for one in saved:
        groups, states = (one.get("param_groups"), one.get("state")) if isinstance(one, Mapping) else (None, None)
        if not groups or len(groups) != 1 or not isinstance(states, Mapping) or isinstance(groups[0], Record):
            return []
        order = list(groups[0].get("params", []))
        places = {key: index for index, key in enumerate(order)}
        needed = {"step", "exp_avg", "exp_avg_sq"}
        if any(key not in places or not needed <= set(state) for key, state in states.items()):
            return []
        made.append(_Adam(groups[0], {places[key]: state for key, state in states.items()}))
    return made


def _players(content: Mapping[Any, Any], optimizers: Sequence[_Adam]) -> tuple[Player, Player]:
    """Settings of both optimisers; of the usual ones where the checkpoint does not keep them."""
    if not optimizers:
        generator, critic = (Player({"lr": rate, "betas": (0.5, 0.9)}, decays) for rate, decays in LEARNING_RATES)
        return generator, critic
    made = []
    for index, adam in enumerate(optimizers):
        settings: dict[str, Any] = {"lr": float(adam.group.get("initial_lr", adam.group["lr"]))}
        for name, default in SETTINGS.items():
            value = adam.group.get(name, default)
            if value != default:
                settings[name] = tuple(value) if isinstance(value, (list, tuple)) else value
        made.append(Player(settings, index == 0 and bool(content.get("lr_schedulers"))))
    return made[0], made[1]


def _counters(
    content: Mapping[Any, Any],
    state: Mapping[str, Tensor],
    optimizers: Sequence[_Adam],
    translation: rave_config.Translation,
    notes: list[str],
) -> tuple[dict[str, int], int, str]:
    """Updates of each player and batches; acids-rave counts only batches of both together.

    The optimisers know their own updates. Without them, batches are shared out as the schedule does it.

    Returns:
        The counters, the phase, and the configuration, whose first phase ends where it ended.
    """
    batches = _batches(content)
    duration, every = translation.course.phase_1_duration, translation.course.update_discriminator_every
    if optimizers:
        generator, critic = (adam.updates for adam in optimizers)
        how = "counted by their own optimisers"
    else:
        later = max(0, batches - duration)
        critic = math.ceil(later / every)
        generator = batches - critic
        how = f"shared out of {batches} batches: the checkpoint keeps no optimiser that could tell"
    batches = max(batches, generator + critic)
    text = translation.text
    warmed = any(bool(value.any()) for key, value in state.items() if key.endswith("warmed_up"))
    if warmed and generator < duration:
        notes.append(
            f"the run is in its second phase (warmed_up), which its configuration begins only at {duration}: "
            f"PHASE_1_DURATION is set to {generator}"
        )
        text += f"PHASE_1_DURATION = {generator}\n"
        duration = generator
    if not warmed and generator > duration and any(key.endswith("warmed_up") for key in state):
        notes.append(
            f"the run was still in its first phase (warmed_up) after {generator} updates, which its configuration ends "
            f"at {duration}: it goes on in the second"
        )
    phase = 1 if generator < duration else 2
    notes.append(
        f"{generator} generator and {critic} discriminator updates, {how}; acids-rave's global_step says "
        f"{int(content.get('global_step', 0))}. It goes on in phase {phase}"
    )
    return {"generator_updates": generator, "discriminator_updates": critic, "batches": batches}, phase, text


def _quantization(
    translation: rave_config.Translation, state: Mapping[str, Tensor], weights: dict[str, Tensor], step: int,
    notes: list[str],
) -> str:
    """From when on codes are in use. What the encoder says about itself decides, not what its configuration meant.

    Returns:
        A line for the configuration, or nothing where there are no codebooks.
    """
    enabled = state.get("encoder.enabled")
    if enabled is None:
        return ""
    if bool(enabled.any()):
        return "QUANTIZE_FROM = 0\n"
    for key in [key for key in weights if key.endswith("_codebook.inited")]:
        weights[key] = torch.zeros_like(weights[key])  # what stands in codebooks that nobody used was never placed
    if translation.quantize_from is None:
        notes.append("this run has never quantised and does not mean to: its latents stay continuous")
        return ""
    start = max(step, translation.quantize_from)
    notes.append(
        "this run was to quantise and never did (a defect of acids-rave): its latents are continuous until training "
        f"goes on, and quantised from update {start} (--override 'QUANTIZE_FROM = {rave_model.NEVER}' for never)"
    )
    return f"QUANTIZE_FROM = {start}\n"


def _batches(content: Mapping[Any, Any]) -> int:
    """Training batches seen: by acids-rave's own counters, else by Lightning's."""
    callbacks = content.get("callbacks")
    for key, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if _callback(key) in ("WarmupCallback", "BetaWarmupCallback") and isinstance(state, Mapping):
            return int(state.get("training_steps", 0))
    return int(content.get("global_step", 0))


def _callback(key: Any) -> str:
    """The class that a callback's state belongs to; before Lightning 1.5 the key was the class itself."""
    name = key.of if isinstance(key, type) and issubclass(key, Record) else str(key)
    return name.partition("{")[0].rpartition(".")[2]


def _ema(content: Mapping[Any, Any], notes: list[str]) -> dict[str, Tensor]:
    """Averaged weights of the codec, under our names."""
    callbacks = content.get("callbacks")
    for key, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if _callback(key) == "EMA" and isinstance(state, Mapping) and state:
            averaged = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
            learnt = {name: value for name, value in averaged.items() if name.startswith(("encoder.", "decoder."))}
            kept, _ = migrations.from_acids_rave(learnt)
            notes.append(f"{len(kept)} averaged weights of the codec (--ema_weights); go on averaging with --ema")
            return kept
    return {}


def _by_name(
    state: Mapping[str, Tensor], optimizers: Sequence[_Adam], notes: list[str]
) -> list[dict[str, dict[str, Any]] | None]:
    """Each player's optimiser state by our name of the parameter.

    acids-rave numbers the generator's parameters through the encoder and then the decoder, in the order of the state
    dict; what of it is a parameter and no buffer is told by the shapes, which must agree one by one.
    """
    if not optimizers:
        notes.append("both optimisers start fresh: the checkpoint keeps no state of theirs that can be read")
        return []
    named: list[dict[str, dict[str, Any]] | None] = []
    for adam, prefixes, place, player in zip(
        optimizers, (("encoder.", "decoder."), ("discriminator.",)), ("codec.", "adversary."),
        ("generator", "discriminator"), strict=True,
    ):  # fmt: skip
        names = [key for prefix in prefixes for key in state if key.startswith(prefix) and is_parameter(key)]
        fits = len(names) == len(adam.group["params"]) and all(
            isinstance(one["exp_avg"], Tensor) and one["exp_avg"].shape == state[names[index]].shape
            for index, one in adam.states.items()
        )
        if not fits:
            notes.append(f"the {player}'s optimiser starts fresh: its {len(adam.group['params'])} states do not match "
                         f"the {len(names)} weights one by one")  # fmt: skip
            named.append(None)
            continue
        named.append({place + names[index]: dict(one) for index, one in adam.states.items()})
    return named


BUFFERS = (
    "warmed_up", "target_size", "running_mean", "running_var", "num_batches_tracked", "window", "enabled", "inited",
    "cluster_size", "embed", "embed_avg", "gru_state", "mean_x", "std_x", "learn_x", "num_update_x", "mean_y", "std_y",
    "learn_y", "num_update_y",
)  # fmt: skip


def is_parameter(key: str) -> bool:
    """Whether an entry of acids-rave's state dict is learnt by gradients; the others are statistics and constants."""
    return key.rpartition(".")[2] not in BUFFERS
