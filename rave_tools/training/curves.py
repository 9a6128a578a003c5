"""The curves of a run, read back from its TensorBoard events, and what their shape says by robust statistics."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy

FEWEST_READINGS = 12
"""Below this, no trend is told."""

MOST_READINGS = 400
"""Longer curves are thinned out to the medians of this many stretches: trends compare every pair."""

SIGNIFICANT = 3.0
"""Standard deviations of Mann and Kendall's statistic from which a trend is one."""

RISE, FALL = 0.05, 0.01
"""Least change over the window, relative to its median, that counts: a loss may rise in vain, but not fall in vain."""

SCATTER = 0.30
"""Robust standard deviation around the trend, relative to the median, from which a curve oscillates."""

QUARTILES = 1.349
"""Distance of a normal distribution's quartiles, in standard deviations."""

Shape = Literal["not finite", "too short", "rising", "falling", "oscillating", "flat"]


@dataclass(frozen=True)
class Curve:
    """One scalar over the run.

    Attributes:
        tag: TensorBoard's name.
        steps: generator updates, ascending.
        values: one per step.
        times: seconds since the epoch at which they were written.
    """

    tag: str
    steps: numpy.ndarray
    values: numpy.ndarray
    times: numpy.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def since(self, step: float) -> "Curve":
        """The readings at and after a step."""
        kept = self.steps >= step
        return Curve(self.tag, self.steps[kept], self.values[kept], self.times[kept])

    def tail(self, share: float, *, fewest: int = FEWEST_READINGS) -> "Curve":
        """The last share of the readings, and at least `fewest` of them."""
        begin = min(int(len(self) * (1 - share)), max(0, len(self) - fewest))
        return Curve(self.tag, self.steps[begin:], self.values[begin:], self.times[begin:])

    @property
    def median(self) -> float:
        """Of the finite readings; not a number without any."""
        finite = self.values[numpy.isfinite(self.values)]
        return float(numpy.median(finite)) if len(finite) else math.nan

    @property
    def broken(self) -> int:
        """How many readings are not finite."""
        return int((~numpy.isfinite(self.values)).sum())


@dataclass(frozen=True)
class Trend:
    """What a stretch of a curve does.

    Attributes:
        shape: in a word.
        change: from begin to end along the robust line, relative to the median's size.
        scatter: robust standard deviation around that line, likewise.
        significance: Mann and Kendall's z.
        readings: that were looked at.
        median: of the stretch.
    """

    shape: Shape
    change: float = 0.0
    scatter: float = 0.0
    significance: float = 0.0
    readings: int = 0
    median: float = math.nan

    def __str__(self) -> str:
        if self.shape in ("not finite", "too short"):
            return f"{self.shape} ({self.readings} readings)"
        return (
            f"{self.shape}: {100 * self.change:+.1f} % over {self.readings} readings around {self.median:.4g}, "
            f"z {self.significance:+.1f}, scatter {100 * self.scatter:.0f} %"
        )


@dataclass
class Curves:
    """Every scalar of a run.

    Attributes:
        by_tag: curves by TensorBoard's name.
        files: the event files that were read.
        last_time: seconds since the epoch of the last event, 0 without any.
    """

    by_tag: dict[str, Curve] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    last_time: float = 0.0

    def __contains__(self, tag: str) -> bool:
        return tag in self.by_tag

    def get(self, tag: str) -> Curve | None:
        """A curve, None where the run did not write it."""
        return self.by_tag.get(tag)

    def group(self, name: str) -> dict[str, Curve]:
        """The curves of a group such as ``losses``, by their names inside it."""
        start = f"{name}/"
        return {tag[len(start) :]: curve for tag, curve in self.by_tag.items() if tag.startswith(start)}

    @property
    def last_step(self) -> int:
        """The last step at which anything was written, 0 without any."""
        return max((int(curve.steps[-1]) for curve in self.by_tag.values() if len(curve)), default=0)


def read_curves(folder: Path) -> Curves:
    """Read all event files of a run folder, in order; what a resumed run wrote anew replaces what it had written.

    A file that ends in the middle of an event, as that of a running or killed training may, is read up to there.

    Args:
        folder: of the run.
    """
    files = sorted(folder.glob("events.out.tfevents.*"), key=lambda file: (_written(file), file.name))
    points: dict[str, dict[int, tuple[float, float]]] = {}
    last = 0.0
    for file in files:
        for event in _events(file):
            last = max(last, event.wall_time)
            if event.HasField("session_log") and event.session_log.status == event.session_log.START:
                for readings in points.values():
                    for step in [step for step in readings if step >= event.step]:
                        del readings[step]
            for value in event.summary.value if event.HasField("summary") else ():
                number = _scalar(value)
                if number is not None:
                    points.setdefault(value.tag, {})[int(event.step)] = (number, event.wall_time)
    return Curves({tag: _curve(tag, readings) for tag, readings in points.items() if readings}, files, last)


def _written(file: Path) -> int:
    """The second in which a file was begun, which stands in its name."""
    part = file.name.split(".")[3:4]
    return int(part[0]) if part and part[0].isdigit() else 0


def _events(file: Path) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    yield from LegacyEventFileLoader(str(file)).Load()


def _scalar(value: Any) -> float | None:
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind == "tensor" and len(value.tensor.float_val) == 1:
        return float(value.tensor.float_val[0])
    return None


def _curve(tag: str, readings: dict[int, tuple[float, float]]) -> Curve:
    steps = sorted(readings)
    values, times = zip(*(readings[step] for step in steps), strict=True)
    return Curve(tag, numpy.array(steps, dtype=float), numpy.array(values, dtype=float), numpy.array(times))


def trend(curve: Curve) -> Trend:
    """What a stretch of a curve does, by statistics that single outliers cannot move.

    The line is Theil and Sen's (the median of all slopes), its significance Mann and Kendall's (the excess of rising
    over falling pairs), the scatter the distance of the quartiles around the line.

    Source: Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968; Mann, 1945.
    """
    if curve.broken:
        return Trend("not finite", readings=len(curve))
    if len(curve) < FEWEST_READINGS:
        return Trend("too short", readings=len(curve), median=curve.median)
    steps, values = _thinned(curve.steps, curve.values)
    earlier, later = numpy.triu_indices(len(steps), 1)
    rises = values[later] - values[earlier]
    slope = float(numpy.median(rises / (steps[later] - steps[earlier])))
    n = len(steps)
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    excess = float(numpy.sign(rises).sum())
    z = (excess - math.copysign(1, excess)) / deviation if excess else 0.0
    size = max(abs(float(numpy.median(values))), 1e-12)
    change = slope * float(steps[-1] - steps[0]) / size
    rest = values - slope * steps
    scatter = float(numpy.subtract(*numpy.percentile(rest, [75, 25]))) / QUARTILES / size
    shape: Shape = "flat"
    if z > SIGNIFICANT and change > RISE:
        shape = "rising"
    elif z < -SIGNIFICANT and change < -FALL:
        shape = "falling"
    elif scatter > SCATTER:
        shape = "oscillating"
    return Trend(shape, change, scatter, z, len(curve), float(numpy.median(values)))


def _thinned(steps: numpy.ndarray, values: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    if len(steps) <= MOST_READINGS:
        return steps, values
    parts = numpy.array_split(numpy.arange(len(steps)), MOST_READINGS)
    return (
        numpy.array([steps[part].mean() for part in parts]), numpy.array([numpy.median(values[part]) for part in parts])
    )


def interpolate(points: Sequence[tuple[float, float]], step: float) -> float | None:
    """The value of a reference curve at a step, in a straight line between its points; None outside of them."""
    if not points or not points[0][0] <= step <= points[-1][0]:
        return None
    return float(numpy.interp(step, [point[0] for point in points], [point[1] for point in points]))
