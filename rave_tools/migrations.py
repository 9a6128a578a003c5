"""Old names mended at the door: bindings and weights that earlier versions, or acids-rave, wrote differently.

A rename is one line in a table here, so that no class keeps a second name for a parameter.
"""

from collections.abc import Mapping
from typing import Any

SCHEMA = 1
"""Version of the layout of our own configurations and checkpoints; raised when a table below gains an entry."""

BINDING_RENAMES: Mapping[str, str] = {}
"""Old full binding name (``rave_tools.module.Class.parameter``, or a macro's name) -> new one."""

MODULE_RENAMES: Mapping[str, str] = {}
"""Old module or class (``rave_tools.module``, ``rave_tools.module.Class``) -> new one."""

RAVE_CODEC_PREFIXES = ("pqmf.", "spectrogram.", "encoder.", "decoder.")
RAVE_CODEC_BUFFERS = ("latent_pca", "latent_mean", "fidelity")
RAVE_ADVERSARY_PREFIX = "discriminator."
RAVE_DROPPED = {
    "warmed_up": "phases follow the step counter",
    "receptive_field": "a fact of the checkpoint",
    "enabled": "codes are in use from an update that the configuration names",
    "gru_state": "nothing ever uses it",
    **{f"{name}_{side}": "heard in a performance, no part of the model"
       for name in ("mean", "std", "learn", "num_update") for side in "xy"},
}
"""Last part of a key -> why there is no such weight here."""
RAVE_DISTANCES = ("audio_distance.", "multiband_audio_distance.")


def rename_binding(name: str) -> str:
    """The present name of a binding."""
    return BINDING_RENAMES.get(name, name)


def rename_module(name: str) -> str:
    """The present name of a module, a class or anything inside one."""
    for old, new in MODULE_RENAMES.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old):]
    return name


def checkpoint_schema(facts: Mapping[str, Any]) -> int:
    """The schema of a checkpoint of ours.

    Raises:
        ValueError: it was written by a newer version.
    """
    schema = int(facts.get("schema", SCHEMA))
    if schema > SCHEMA:
        raise ValueError(f"written by rave_tools {facts.get('version', '?')} with layout {schema}; this version reads "
                         f"layouts up to {SCHEMA}: upgrade rave_tools")
    return schema


def from_acids_rave(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Our wrapper's state dict from acids-rave's.

    The codec's keys are the same in both; here they stand under ``codec.``, and the discriminator under ``adversary.``.

    Args:
        state: the ``state_dict`` of an acids-rave checkpoint.

    Returns:
        The renamed weights, and one sentence for everything that was left out. What is unknown keeps its name, so that
        whoever loads it refuses it.
    """
    renamed: dict[str, Any] = {}
    dropped: list[str] = []
    for key, value in state.items():
        reason = RAVE_DROPPED.get(key.rpartition(".")[2])
        if key.startswith(RAVE_DISTANCES) or (key.startswith(RAVE_ADVERSARY_PREFIX) and key.endswith(".window")):
            reason = "follows from the configuration"
        if reason is not None:
            dropped.append(f"{key} is left out: {reason}")
        elif key.startswith(RAVE_CODEC_PREFIXES) or key in RAVE_CODEC_BUFFERS:
            renamed[f"codec.{key}"] = value
        elif key.startswith(RAVE_ADVERSARY_PREFIX):
            renamed[f"adversary.{key}"] = value
        else:
            renamed[key] = value
    return renamed, dropped
