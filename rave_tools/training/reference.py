"""Curves of runs that went well, to hold others against; docs/reference_curves.md shows them."""

import json
from dataclasses import dataclass
from importlib import resources

FILE = "reference_curves.json"


@dataclass(frozen=True)
class Reference:
    """One run that went well.

    Attributes:
        name: of the run.
        model: configuration and overrides in words.
        measured: what the curve was measured with, in words.
        curves: TensorBoard's name -> (generator updates, value), ascending.
    """

    name: str
    model: str
    measured: str
    curves: dict[str, tuple[tuple[float, float], ...]]


def references() -> list[Reference]:
    """All of them, as the package ships them."""
    text = resources.files("rave_tools.training").joinpath(FILE).read_text(encoding="utf-8")
    return [
        Reference(
            run["name"], run["model"], run["measured"],
            {tag: tuple((float(s), float(value)) for s, value in points) for tag, points in run["curves"].items()},
        )
        for run in json.loads(text)["runs"]
    ]
