import math
from pathlib import Path

import pytest
import torch

from rave_tools.training.schedules import AdversarialSchedule, LinearDecay, LogRamp, OnePhase, RAVESchedule

from .test_run import go, same_weights
from .toys import toy_wrapper

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_phases_switch_at_the_given_update():
    schedule = RAVESchedule(10, 4)
    assert (schedule.at(9).number, schedule.at(9).adversarial, schedule.at(9).encoder_frozen) == (1, False, False)
    assert (schedule.at(10).number, schedule.at(10).adversarial, schedule.at(10).encoder_frozen) == (2, True, True)
    assert not RAVESchedule(10, freeze_encoder=False).at(10).encoder_frozen


def test_turns_follow_the_period_and_the_discriminator_begins():
    schedule, generator, discriminator, turns = RAVESchedule(5, 4), 5, 0, ""
    for _ in range(12):
        if schedule.discriminator_turn(generator, discriminator):
            discriminator, turns = discriminator + 1, turns + "D"
        else:
            generator, turns = generator + 1, turns + "G"
    assert turns == "DGGGDGGGDGGG"
    assert not any(schedule.discriminator_turn(updates, 0) for updates in range(5))


def test_a_period_that_starves_the_generator_is_refused():
    with pytest.raises(ValueError, match="update_discriminator_every"):
        RAVESchedule(5, 1)


def test_stretches_cover_the_run():
    rows = RAVESchedule(10, 4).stretches(25)
    assert [(phase.number, updates) for phase, updates, _ in rows] == [(1, 10), (2, 15)]
    assert rows[1][2] == pytest.approx(1 / 3)
    assert [updates for _, updates, _ in RAVESchedule(10, 4).stretches(7)] == [7]
    assert OnePhase().stretches(7)[0][1] == 7


def turns_of(schedule, batches, generator=0, discriminator=0):
    """D and G in the order in which batches are given out."""
    turns = ""
    for _ in range(batches):
        if schedule.discriminator_turn(generator, discriminator):
            discriminator, turns = discriminator + 1, turns + "D"
        else:
            generator, turns = generator + 1, turns + "G"
    return turns


@pytest.mark.parametrize("probability", [0.25, 2 / 3, 1.0])
def test_adversarial_turns_fall_at_random_in_the_right_number(probability):
    schedule = AdversarialSchedule(0, probability, shares_batches=False, seed=3)
    turns = turns_of(schedule, 20000)
    assert turns.count("D") / turns.count("G") == pytest.approx(probability, rel=0.05)
    # As by chance: what came before says nothing, so after a D comes a D as often as anywhere.
    share = probability / (1 + probability)
    again = sum(one == other == "D" for one, other in zip(turns, turns[1:], strict=False))
    assert again / turns.count("D") == pytest.approx(share, abs=0.02)
    assert not any(schedule.discriminator_joins(updates, 0) for updates in range(100))
    schedule = AdversarialSchedule(0, probability, seed=3)
    assert turns_of(schedule, 100) == 100 * "G"
    joined = [schedule.discriminator_joins(updates, 0) for updates in range(20000)]
    assert sum(joined) / 20000 == pytest.approx(probability, rel=0.05)
    assert turns != turns_of(AdversarialSchedule(0, probability, shares_batches=False, seed=4), 20000)


def test_adversarial_turns_are_resumed_where_they_stood():
    whole = turns_of(AdversarialSchedule(shares_batches=False, seed=1), 300)
    generator, discriminator = whole[:120].count("G"), whole[:120].count("D")
    assert turns_of(AdversarialSchedule(shares_batches=False, seed=1), 180, generator, discriminator) == whole[120:]


def test_a_run_with_random_turns_is_resumed_bit_for_bit(tmp_path):
    def random_turns():
        return toy_wrapper(schedule=AdversarialSchedule(2, 2 / 3, shares_batches=False, seed=5))

    whole, rows, _ = go(tmp_path / "whole", wrapper=random_turns())
    go(tmp_path / "split", wrapper=random_turns(), max_steps=7)
    again, after, _ = go(tmp_path / "split", wrapper=random_turns(), resume="last")
    same_weights(whole, again)
    assert rows[-1] == after[-1]
    turns = turns_of(AdversarialSchedule(2, 2 / 3, shares_batches=False, seed=5), whole.counters.batches)
    assert whole.counters.discriminator_updates == turns.count("D") > 0
    assert whole.counters.generator_updates == turns.count("G") == 12


def test_the_adversary_enters_at_its_start():
    schedule = AdversarialSchedule(10, 1.0)
    assert [schedule.at(updates).adversarial for updates in (0, 9, 10)] == [False, False, True]
    assert not any(schedule.at(updates).encoder_frozen for updates in (0, 10))
    assert turns_of(schedule, 10) == 10 * "G"
    assert not schedule.discriminator_joins(9, 0) and schedule.discriminator_joins(10, 0)
    assert [(phase.number, updates, share) for phase, updates, share in schedule.stretches(25)] == [
        (1, 10, 0.0),
        (2, 15, 1.0),
    ]
    ((only, updates, share),) = AdversarialSchedule().stretches(25)
    assert (only.number, only.adversarial, updates, share) == (1, True, 25, 2 / 3)
    assert len(schedule.stretches(7)) == 1


def test_an_adversary_that_never_learns_is_refused():
    for probability in (0.0, 1.5):
        with pytest.raises(ValueError, match="AdversarialSchedule.discriminator_probability"):
            AdversarialSchedule(0, probability)
    with pytest.raises(ValueError, match="AdversarialSchedule.start"):
        AdversarialSchedule(-1)


def test_ramp_and_decay_equal_the_peers():
    peer = torch.load(FIXTURES / "schedules.pt", weights_only=True)
    settings, beta = peer["beta_logarithmic"]["arguments"], peer["beta_logarithmic"]["beta"]
    ramp = LogRamp(settings["initial_value"], settings["target_value"], settings["warmup_len"])
    assert [ramp(step) for step in range(len(beta))] == pytest.approx(beta, rel=1e-12)
    rates = peer["learning_rate"]["learning_rate"]
    decay = LinearDecay(1.0, 0.1, peer["learning_rate"]["phase_1_duration"])
    assert [1e-3 * decay(step) for step in range(len(rates))] == pytest.approx(rates, rel=1e-12)


def test_log_ramp_is_linear_in_the_logarithm_and_then_constant():
    ramp = LogRamp(1e-6, 5e-2, 20000)
    assert ramp(9999) == pytest.approx(math.sqrt(1e-6 * 5e-2))
    assert ramp(19999) == ramp(10**9) == 5e-2
    assert LogRamp(0.1, 0.1)(0) == 0.1


def test_log_ramp_refuses_zero():
    with pytest.raises(ValueError, match="positive"):
        LogRamp(0.0, 1.0, 10)


def test_linear_decay():
    decay = LinearDecay(1.0, 0.1, 100)
    assert (decay(0), decay(50), decay(100), decay(500)) == (1.0, pytest.approx(0.55), 0.1, 0.1)
