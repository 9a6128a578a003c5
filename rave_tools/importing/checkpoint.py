"""From an imported run and the model that its configuration describes to a checkpoint of ours."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rave_tools.errors import RunError
from rave_tools.importing.registry import Imported

LISTED = 12


class Learner(Protocol):
    """What is asked of a training wrapper."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its weights."""

    def named_parameters(self) -> Any:
        """Names and parameters."""

    def learners(self) -> list[list[nn.Parameter]]:
        """Parameters of each player, in the order in which its optimiser numbers them."""


def check_weights(imported: Imported, model: Learner, *, of: str) -> None:
    """Every weight of the model must be among the imported ones, in its shape, and none must be left over.

    Args:
        imported: the run.
        model: built from the translated configuration.
        of: what was imported, for the error.

    Raises:
        RunError: lists the weights that are missing, left over or of another shape.
    """
    weights = imported.state_dict
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(imported.fresh)}
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} {tuple(value.shape)} is left over" for name, value in weights.items() if name not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise RunError(
            f"the weights of {of} do not fit the model that its configuration describes: "
            f"{'; '.join(problems[:LISTED])}{more}"
        )


def content(imported: Imported, model: Learner, *, config_text: str) -> dict[str, Any]:
    """What `rave_tools.runs.save_checkpoint` writes, so that training goes on from it.

    Args:
        imported: the run, whose weights fit the model.
        model: the training wrapper.
        config_text: the effective configuration.
    """
    own = model.state_dict()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizers = []
    for index, parameters in enumerate(model.learners()):
        saved = imported.optimizers[index] if index < len(imported.optimizers) else None
        order = [names[id(parameter)] for parameter in parameters]
        optimizers.append({"state": _states(order, saved), "param_groups": [{"params": list(range(len(order)))}]})
    made: dict[str, Any] = {
        "state_dict": {
            name: imported.state_dict.get(name, value).detach().to(value.dtype).clone() for name, value in own.items()
        },
        "optimizer_states": optimizers,
        "scaler": {},
        "config": config_text,
        "rave_tools": {**imported.facts, **imported.counters, "seed": 0},
    }
    averaged = {name: value.detach().clone() for name, value in imported.ema.items() if name in own}
    if averaged:
        made["ema"] = averaged
    return made


def _states(order: Sequence[str], saved: Mapping[str, Mapping[str, Any]] | None) -> dict[int, dict[str, Any]]:
    """Adam's moments by position. The counter of steps is a tensor since torch 1.12."""
    if saved is None:
        return {}
    return {
        position: {
            "step": torch.as_tensor(float(saved[name]["step"])),
            **{
                key: value.detach().clone()
                for key, value in saved[name].items()
                if isinstance(value, Tensor) and key != "step"
            },
        }
        for position, name in enumerate(order)
        if name in saved
    }
