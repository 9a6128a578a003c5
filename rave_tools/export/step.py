"""Streaming as a pure function: (input, knobs, state) -> (output, state).

A streaming codec keeps its state in its modules. File formats for hosts differ in how they keep state, so a half of the
codec is traced once into a flat graph whose state comes in and goes out; each format is a thin shell around it. The
graph has neither branches nor submodules, which is what makes a host's first blocks fast.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rave_tools.nn.normalization import SWITCHES, set_switches
from rave_tools.nn.streaming import Stateful

TEMPERATURE, NOISE, FIRST_SWITCH = range(3)
"""Places of the knobs in the tensor that each step gets; the switches of adaptive normalisation come last."""


def still_knobs(adaptive: bool) -> Tensor:
    """Knobs before anybody has turned them: all that is random in full, nothing learned.

    Args:
        adaptive: the model has adaptive instance normalisation.

    Returns:
        Shape (2,), or (6,) with the switches.
    """
    return torch.cat([torch.ones(FIRST_SWITCH), torch.zeros(len(SWITCHES) if adaptive else 0)])


class Turnable:
    """Mark of a module that a host can turn while it plays."""

    def turn(self, knobs: Tensor) -> None:
        """Take what belongs to this module from all knobs, before each block."""
        raise NotImplementedError


def run_chain(chain: Iterable[nn.Module], x: Tensor, knobs: Tensor) -> Tensor:
    """Modules in a row, each of their Turnable parts turned first."""
    for module in chain:
        if knobs.shape[0] > FIRST_SWITCH:
            set_switches(module, knobs[FIRST_SWITCH:])
        for part in module.modules():
            if isinstance(part, Turnable):
                part.turn(knobs)
        x = module(x)
    return x


Half = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """A half as a function.

    Attributes:
        function: ``(x, knobs, state) -> (y, state)``, TorchScript.
        silence: the state before anything was heard, for one row. Rows of each tensor are a multiple of the batch's.
    """

    function: torch.jit.ScriptFunction
    silence: list[Tensor]


def find_state(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a streaming module keeps what it has heard: (module, name of the tensor)."""
    places: list[tuple[nn.Module, str]] = []
    for child in module.modules():
        if isinstance(child, Stateful):
            places += [(child, name) for name in child.state_names]
    return places


@torch.no_grad()
def make_step(module: nn.Module, half: Half, *, x: Tensor, knobs: Tensor) -> Step:
    """Trace a half.

    Args:
        module: all that keeps state for the half; weights in it become constants.
        half: called with x and knobs.
        x: an example with one row. Shape (1, C, T).
        knobs: numbers that a host can turn. Shape (knobs,).

    Returns:
        The step; it works for any number of rows and any number of whole hops.
    """
    half(x, knobs)
    # Only what one block has filled is state: the rest has no extent in time.
    places = [(child, name) for child, name in find_state(module) if getattr(child, name).numel()]
    silence = [torch.zeros_like(getattr(child, name)) for child, name in places]
    if not silence:
        # A list without elements has no type: a half without memory passes one number through.
        silence = [torch.zeros(1, 1, 1)]

    def function(x: Tensor, knobs: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        for (child, name), value in zip(places, state):  # noqa: B905 (a half without memory has one state and no place)
            setattr(child, name, value)
        y = half(x, knobs)
        return y, [getattr(child, name) for child, name in places] or [state[0].clone()]

    with warnings.catch_warnings():
        # Shapes that are compared in Python are the same for every block; verification plays other sizes to prove it.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(function, (x, knobs, silence), check_trace=False)
    return Step(traced, silence)
