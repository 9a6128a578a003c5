"""Where a run stands, in words: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable

from tqdm import tqdm

from rave_tools.training.estimate import Estimate
from rave_tools.training.schedules import Schedule
from rave_tools.training.summary import readable_time
from rave_tools.training.validation import Verdict


class Progress:
    """Says phase, step, loss, speed and the time that is left.

    The time left counts what a later phase costs more, once `estimate` holds its measurement.

    Args:
        schedule: tells the stretches that are still to come.
        max_steps: last generator update.
        step: first one.
        report: takes whole lines.
        bar: draw a bar on standard error; otherwise a line every `seconds`.
        best: validation distance to beat.
        seconds: see `bar`.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        max_steps: int,
        step: int,
        report: Callable[[str], None],
        bar: bool,
        best: float = float("inf"),
        seconds: float = 30.0,
    ) -> None:
        self._schedule = schedule
        self._max_steps = max_steps
        self._report = report
        self._seconds = seconds
        self.estimate: Estimate | None = None
        self._last_line = float("-inf")
        self._best = best
        self._bar = (
            tqdm(
                total=max_steps,
                initial=step,
                unit="step",
                dynamic_ncols=True,
                leave=True,
                bar_format="{percentage:3.0f}% |{bar}| {desc}",
            )
            if bar
            else None
        )

    def scalars(self, step: int, values: dict[str, float], phase: str) -> None:
        """Moves the bar, or prints a line when it is time for one."""
        loss = values.get("loss", float("nan"))
        rate = values["steps_per_second"]
        text = (
            f"phase {values['phase']:.0f} ({phase}) step {step:,}/{self._max_steps:,} loss {loss:.4g} "
            f"{rate:.2f} steps/s, {self._time_left(step, rate)}"
        )
        if values["skipped_updates"]:
            text += f", {values['skipped_updates']:.0f} updates skipped"
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.n = step
            self._bar.refresh()
        elif time.monotonic() - self._last_line >= self._seconds or step >= self._max_steps:
            self._last_line = time.monotonic()
            self._report(text)

    def _time_left(self, step: int, rate: float) -> str:
        if rate <= 0:
            return "time left unknown"
        number = self._schedule.at(step).number
        seconds, honest = 0.0, True
        done = 0
        for phase, updates, _ in self._schedule.stretches(self._max_steps):
            left = max(0, done + updates - max(step, done))
            done += updates
            factor = self.estimate.relative_cost(phase.number, number) if self.estimate is not None else None
            honest = honest and (phase.number == number or not left or factor is not None)
            seconds += left / rate * (factor or 1.0)
        return f"{readable_time(seconds)} left" + ("" if honest else " at this phase's speed")

    def verdict(self, step: int, verdict: Verdict) -> None:
        """One line per validation."""
        better = verdict.distance < self._best
        self._best = min(self._best, verdict.distance)
        text = f"step {step:,}: validation distance {verdict.distance:.4f}" + (" (best so far)" if better else "")
        if verdict.dimensions:
            text += "; latent dimensions for fidelity " + ", ".join(
                f"{share:g}: {count}" for share, count in verdict.dimensions.items()
            )
        self.line(text)

    def line(self, text: str) -> None:
        """A line that does not tear the bar."""
        if self._bar is not None:
            self._bar.clear()
        self._report(text)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
