"""What happens when: pure functions of the counters, so that resuming is exact by construction."""

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Phase:
    """What one stretch of the training does.

    Attributes:
        number: 1, 2, ... in order of appearance.
        name: in words, for the progress bar and the logs.
        adversarial: whether the discriminator trains and judges the generator.
        encoder_frozen: whether the encoder's weights stay as they are.
    """

    number: int
    name: str
    adversarial: bool
    encoder_frozen: bool


class Schedule(Protocol):
    """Decides the phase and whose turn it is from the counters alone.

    Attributes:
        shares_batches: the discriminator learns from the generator's batches instead of having its own.
    """

    shares_batches: bool

    def at(self, generator_updates: int) -> Phase:
        """Phase in force when `generator_updates` updates have been made."""

    def discriminator_turn(self, generator_updates: int, discriminator_updates: int) -> bool:
        """Whether the next batch belongs to the discriminator."""

    def discriminator_joins(self, generator_updates: int, discriminator_updates: int) -> bool:
        """Whether the discriminator learns from the generator's next batch as well, before it judges it."""

    def stretches(self, max_steps: int) -> list[tuple[Phase, int, float]]:
        """(phase, generator updates in it, discriminator updates per generator update) up to `max_steps`."""


class RAVESchedule:
    """Two phases: learn a representation, then freeze it and let an adversary sharpen the decoder.

    In the second phase one batch out of `update_discriminator_every` belongs to the discriminator, the first one too.

    Args:
        phase_1_duration: generator updates before the adversary enters.
        update_discriminator_every: period of the discriminator's turns, in batches; at least 2.
        freeze_encoder: whether the encoder stops learning in the second phase.

    Raises:
        ValueError: a period under 2, in which the generator would never have a turn.

    Source: Caillon and Esling, "RAVE", arXiv 2111.05011, section 3.
    """

    def __init__(
        self, phase_1_duration: int, update_discriminator_every: int = 2, *, freeze_encoder: bool = True
    ) -> None:
        if update_discriminator_every < 2:
            raise ValueError(
                f"update_discriminator_every is {update_discriminator_every}, which leaves the generator no turn; "
                "set RAVESchedule.update_discriminator_every to at least 2"
            )
        if phase_1_duration < 0:
            raise ValueError(f"phase_1_duration is {phase_1_duration} generator updates; set PHASE_1_DURATION >= 0")
        self.shares_batches = False
        self.phase_1_duration = phase_1_duration
        self.update_discriminator_every = update_discriminator_every
        self._first = Phase(1, "representation learning", adversarial=False, encoder_frozen=False)
        self._second = Phase(2, "adversarial fine-tuning", adversarial=True, encoder_frozen=freeze_encoder)

    def at(self, generator_updates: int) -> Phase:
        """Phase in force when `generator_updates` updates have been made."""
        return self._first if generator_updates < self.phase_1_duration else self._second

    def discriminator_turn(self, generator_updates: int, discriminator_updates: int) -> bool:
        """Whether the next batch belongs to the discriminator."""
        since = generator_updates - self.phase_1_duration
        return since >= 0 and (since + discriminator_updates) % self.update_discriminator_every == 0

    def discriminator_joins(self, generator_updates: int, discriminator_updates: int) -> bool:
        """Never: it has batches of its own."""
        return False

    def stretches(self, max_steps: int) -> list[tuple[Phase, int, float]]:
        """(phase, generator updates in it, discriminator updates per generator update) up to `max_steps`."""
        first = min(self.phase_1_duration, max_steps)
        rows = [(self._first, first, 0.0), (self._second, max_steps - first, 1 / (self.update_discriminator_every - 1))]
        return [row for row in rows if row[1] > 0]


class OnePhase:
    """A single phase for ever: no adversary, nothing frozen.

    Args:
        name: in words.
    """

    def __init__(self, name: str = "reconstruction") -> None:
        self.shares_batches = False
        self._phase = Phase(1, name, adversarial=False, encoder_frozen=False)

    def at(self, generator_updates: int) -> Phase:
        """The only phase."""
        return self._phase

    def discriminator_turn(self, generator_updates: int, discriminator_updates: int) -> bool:
        """Never."""
        return False

    def discriminator_joins(self, generator_updates: int, discriminator_updates: int) -> bool:
        """Never."""
        return False

    def stretches(self, max_steps: int) -> list[tuple[Phase, int, float]]:
        """One row: the whole run."""
        return [(self._phase, max_steps, 0.0)] if max_steps > 0 else []


class LinearDecay:
    """A factor going linearly from `start` to `end` in `steps` updates, then constant.

    Args:
        start: factor at update 0.
        end: factor from update `steps` on.
        steps: length of the slope, in generator updates.
    """

    def __init__(self, start: float, end: float, steps: int) -> None:
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, generator_updates: int) -> float:
        if generator_updates >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * generator_updates / self.steps


class LogRamp:
    """A factor whose logarithm goes linearly from `initial` to `target`: a beta that spans orders of magnitude.

    The first update is step 1 of the ramp, as in acids-rave, whose counter rises before it is read.

    Args:
        initial: factor before the ramp, positive.
        target: factor from the update number `steps` on, positive.
        steps: length of the ramp, in generator updates.

    Raises:
        ValueError: a bound whose logarithm does not exist, when there is a ramp at all.
    """

    def __init__(self, initial: float, target: float, steps: int = 1) -> None:
        if steps > 1 and min(initial, target) <= 0:
            raise ValueError(f"a logarithmic ramp needs positive bounds, not {initial} and {target}; raise the lower")
        self.initial, self.target, self.steps = initial, target, steps

    def __call__(self, generator_updates: int) -> float:
        position = generator_updates + 1
        if position >= self.steps:
            return self.target
        ratio = position / self.steps
        return math.exp(math.log(self.initial) * (1 - ratio) + math.log(self.target) * ratio)


class Constant:
    """The same factor at every update."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def __call__(self, generator_updates: int) -> float:
        return self.value
