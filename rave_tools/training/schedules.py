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


class AdversarialSchedule:
    """An adversary from update `start` on, whose updates fall at random: so many per update of the generator.

    Nothing is frozen. Chance is a hash of the counters, so a resumed run takes the very turns that it would have taken.
    There are two ways to give the discriminator its updates, each with `discriminator_probability` of them per update
    of the generator: the generator's batch, before the generator is updated (`discriminator_joins`), as AudioCraft and
    Descript do, which saves a decoding; or batches of its own (`discriminator_turn`).

    Args:
        start: generator updates before the adversary enters.
        discriminator_probability: discriminator updates per generator update, over 0 and at most 1. EnCodec takes 2/3
            at 24 kHz and 1/2 at 48 kHz; 1 in AudioCraft's trainings.
        shares_batches: the discriminator learns from the generator's batches; otherwise it has its own.
        seed: of the turns.

    Raises:
        ValueError: a probability that is none, or a start before the beginning.

    Source: Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.4.
    """

    def __init__(
        self, start: int = 0, discriminator_probability: float = 2 / 3, *, shares_batches: bool = True, seed: int = 0
    ) -> None:
        if not 0 < discriminator_probability <= 1:
            raise ValueError(
                f"discriminator_probability is {discriminator_probability}; set "
                "AdversarialSchedule.discriminator_probability over 0 and at most 1, or train without an adversary"
            )
        if start < 0:
            raise ValueError(f"start is {start} generator updates; set AdversarialSchedule.start >= 0")
        self.start = start
        self.discriminator_probability = discriminator_probability
        self.shares_batches = shares_batches
        self.seed = seed
        self._alone = Phase(1, "reconstruction", adversarial=False, encoder_frozen=False)
        self._together = Phase(2 if start else 1, "adversarial training", adversarial=True, encoder_frozen=False)

    def at(self, generator_updates: int) -> Phase:
        """Phase in force when `generator_updates` updates have been made."""
        return self._alone if generator_updates < self.start else self._together

    def discriminator_turn(self, generator_updates: int, discriminator_updates: int) -> bool:
        """Whether the next batch belongs to the discriminator alone.

        Of the batches a share p / (1 + p) does, each by a chance of its own, which makes p per generator update.
        """
        if self.shares_batches or generator_updates < self.start:
            return False
        probability = self.discriminator_probability
        return _chance(self.seed, generator_updates + discriminator_updates) < probability / (1 + probability)

    def discriminator_joins(self, generator_updates: int, discriminator_updates: int) -> bool:
        """Whether the discriminator, too, is updated on the generator's next batch: with probability p."""
        if not self.shares_batches or generator_updates < self.start:
            return False
        return _chance(self.seed, generator_updates) < self.discriminator_probability

    def stretches(self, max_steps: int) -> list[tuple[Phase, int, float]]:
        """(phase, generator updates in it, discriminator updates per generator update) up to `max_steps`."""
        first = min(self.start, max_steps)
        rows = [(self._alone, first, 0.0), (self._together, max_steps - first, self.discriminator_probability)]
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


class ExponentialDecay:
    """A factor that each update multiplies by `gamma`.

    Args:
        gamma: over 0; 0.999996 halves the factor in 173,000 updates.

    Raises:
        ValueError: a factor that is not positive.
    """

    def __init__(self, gamma: float) -> None:
        if gamma <= 0:
            raise ValueError(f"gamma is {gamma}; set ExponentialDecay.gamma over 0, such as 0.999996")
        self.gamma = gamma

    def __call__(self, updates: int) -> float:
        return self.gamma**updates


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


def _chance(seed: int, position: int) -> float:
    """A number in [0, 1) that two integers decide, as good as drawn at random.

    The mixing is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    2014).
    """
    mask = (1 << 64) - 1
    state = (seed * 0xD1B54A32D192ED03 + (position + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return ((state ^ (state >> 31)) >> 11) / (1 << 53)
