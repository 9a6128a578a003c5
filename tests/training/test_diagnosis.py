"""Sick and healthy runs, made up as event files: each must be told from the other."""

import math

import numpy
import pytest
from torch.utils.tensorboard import SummaryWriter

from rave_tools.training.curves import Curve, read_curves, trend
from rave_tools.training.diagnosis import Stage, diagnose
from rave_tools.training.reference import Reference, references
from rave_tools.training.schedules import OnePhase, RAVESchedule

PHASE_1, LAST, EVERY = 2000, 4000, 50
CHANCE = 16.0
STEPS = [1, *range(EVERY, LAST + 1, EVERY)]
NOW = 2e9


def healthy(step, rng):
    """Every scalar of a run that goes well: distances fall, the adversary enters and both sides hold their own."""
    noise = 1 + 0.03 * rng.standard_normal()
    distance = (10 + 13 * math.exp(-step / 300)) * noise
    values = {
        "losses/fullband_spectral_distance": distance,
        "losses/multiband_spectral_distance": 1.1 * distance,
        "losses/kl": 0.15 * noise,
        "losses/loss": 2.2 * distance,
        "optimisation/beta_kl": 0.01,
        "optimisation/gradient_norm_generator": 60 * noise,
        "optimisation/learning_rate": 1e-3,
        "run/phase": 1.0 if step < PHASE_1 else 2.0,
        "run/steps_per_second": 5.0 * noise,
        "run/share_waiting_for_data": 0.02,
        "run/skipped_updates": 0.0,
    }
    if step >= PHASE_1:
        into = (step - PHASE_1) / (LAST - PHASE_1)
        values |= {
            "losses/discriminator": (CHANCE - 5 * into) * noise,
            "losses/adversarial": 4 * into,
            "losses/feature_matching": 0.6 * noise,
            "losses/score_real": 3 * into,
            "losses/score_fake": -4 * into,
            "optimisation/gradient_norm_discriminator": 40 * noise,
        }
    if step % 500 == 0 or step == 100:
        values["validation/distance"] = 11 + 6 * math.exp(-step / 300)
        values["validation/spectral_distance"] = values["validation/distance"]
    return values


@pytest.fixture
def run(tmp_path):
    """Writes a run whose healthy values are changed by a function of (step, values), and reads it back."""

    def write(change=lambda step, values: values, *, last=LAST):
        rng = numpy.random.default_rng(0)
        with SummaryWriter(str(tmp_path)) as writer:
            for step in [step for step in STEPS if step <= last]:
                for tag, value in change(step, healthy(step, rng)).items():
                    writer.add_scalar(tag, value, step)
        return read_curves(tmp_path)

    return write


def stage(step=LAST, **changes):
    facts = dict(max_steps=LAST, schedule=RAVESchedule(PHASE_1), chance=CHANCE, latents=16)
    return Stage(step, **{**facts, **changes})


def found(findings, subject):
    return [finding for finding in findings if finding.subject == subject]


def bad(findings):
    return [f"{f.severity} {f.subject}" for f in findings if f.severity in ("warning", "error")]


def scaled(tag, factor):
    def change(step, values):
        return {**values, **({tag: values[tag] * factor(step)} if tag in values else {})}

    return change


def put(tag, value):
    def change(step, values):
        return {**values, **({tag: value(step)} if tag in values else {})}

    return change


def test_a_healthy_run_has_neither_warning_nor_error(run):
    findings = diagnose(run(), stage(), now=NOW)
    assert not bad(findings)
    text = found(findings, "phase")[0].seen
    assert "step 4,000 of 4,000 (100.0 %); phase 2 of 2, adversarial fine-tuning, from 2,000" in text
    assert "the encoder is frozen" in text
    assert "the run is finished" in found(findings, "speed")[0].seen
    assert "of the 16 that guessing costs" in found(findings, "discriminator")[0].seen


def test_a_healthy_run_in_phase_1_is_still_learning_and_has_its_time_left(run):
    curves = run(last=800)
    findings = diagnose(curves, stage(800), now=curves.last_time + 7200)
    assert not bad(findings)
    assert "still learning" in found(findings, "fullband_spectral_distance")[0].means
    speed = found(findings, "speed")[0].seen
    assert "10 min" in speed and "last sign of life 2 h" in speed and "it does not run now" in speed
    assert not found(findings, "discriminator")


SICK = [
    ("a loss that is no number at the end", put("losses/loss", lambda s: math.nan if s > 3000 else 20.0),
     "error", "loss", "not finite, from step 3,050 to 4,000"),
    ("a loss that was no number for a while", put("losses/loss", lambda s: math.nan if s == 500 else 20.0),
     "warning", "loss", "1 of 81 readings are not finite, from step 500 to 500"),
    ("learning rate far too high", scaled("losses/fullband_spectral_distance", lambda s: 1 if s < 20 else 300.0),
     "error", "fullband_spectral_distance", "of the start (threshold 0.98 after 100 updates)"),
    ("nothing learnt", put("losses/fullband_spectral_distance", lambda s: 23.0 + 0.1 * (s % 3)),
     "error", "fullband_spectral_distance", "of the start"),
    ("lost again", scaled("losses/fullband_spectral_distance", lambda s: 1 if s < 3600 else 1.7),
     "warning", "fullband_spectral_distance", "times its lowest stretch"),
    ("oscillating", scaled("losses/multiband_spectral_distance", lambda s: 0.5 if s // EVERY % 2 else 1.5),
     "warning", "multiband_spectral_distance", "oscillating"),
    ("posterior collapse", put("losses/kl", lambda s: 0.15 if s < 100 else 0.002),
     "error", "posterior collapse", "kl 0.2 per frame in 16 latents (collapsed below 2.0)"),
    ("discriminator dominance", put("losses/discriminator", lambda s: 0.3),
     "error", "discriminator dominance", "0.02 of the 16 that guessing costs"),
    ("idle discriminator", put("losses/discriminator", lambda s: 16.0),
     "warning", "idle discriminator", "1.00 of the 16"),
    ("some updates skipped", put("run/skipped_updates", lambda s: float(s // 400)),
     "warning", "skipped updates", "10 updates left out (0.25 %"),
    ("many updates skipped", put("run/skipped_updates", lambda s: float(s // 10)),
     "error", "skipped updates", "400 updates left out (10.00 %"),
    ("exploding gradients", scaled("optimisation/gradient_norm_generator", lambda s: 1 if s < 3000 else 1e3),
     "warning", "gradients", "(threshold 30)"),
    ("starving for data", put("run/share_waiting_for_data", lambda s: 0.4),
     "warning", "data", "40 % of the time"),
    ("overfitted", put("validation/distance", lambda s: 11.0 if s <= 1000 else 16.0),
     "warning", "validation", "best 11 at 100"),
    ("the mean decodes badly", put("validation/spectral_distance", lambda s: 35.0),
     "warning", "unheard sound", "35 in the validation,"),
    ("far behind the reference", put("validation/distance", lambda s: 30.0 - s / 1e4),
     "warning", "reference", "(threshold 1.5)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "severity", "subject", "words"), [row[1:] for row in SICK],
                         ids=[row[0] for row in SICK])  # fmt: skip
def test_each_sickness_is_told_and_no_other(run, change, severity, subject, words):
    findings = diagnose(run(change), stage(), now=NOW)
    matching = [f for f in found(findings, subject) if words in f.seen]
    said = "\n".join(f"{f.severity} {f.subject}: {f.seen}" for f in findings)
    assert matching and matching[0].severity == severity, said
    assert matching[0].means and matching[0].mend and matching[0].where
    assert bad(findings) == [f"{severity} {subject}"]


def test_a_rise_is_a_warning_before_the_adversary_and_a_note_after_it(run):
    change = scaled("losses/fullband_spectral_distance", lambda s: 1 + 0.2 * (s - 1000) / 1000)

    def rising(step, values):
        return change(step, values) if step > 1000 else values

    early = diagnose(run(rising, last=1950), stage(1950, schedule=OnePhase()), now=NOW)
    assert "warning fullband_spectral_distance" in bad(early)
    assert "rising" in found(early, "fullband_spectral_distance")[0].seen


def test_the_same_rise_in_phase_2_is_a_note(run):
    tag = "losses/fullband_spectral_distance"
    change = scaled(tag, lambda s: 1 if s < PHASE_1 else 1 + 0.25 * (s - PHASE_1) / 2000)
    findings = diagnose(run(change), stage(), now=NOW)
    assert not bad(findings)
    finding = found(findings, "fullband_spectral_distance")[0]
    assert finding.severity == "note" and "rising" in finding.seen and "listen" in finding.means


def test_a_run_that_began_with_other_weights_need_not_learn_anew(run):
    change = put("losses/fullband_spectral_distance", lambda s: 10.0 + 0.1 * (s % 3))
    assert not bad(diagnose(run(change), stage(transferred=True), now=NOW))


def test_what_is_not_there_cannot_be_told(run, tmp_path):
    def short(step, values):
        return {tag: value for tag, value in values.items() if tag != "validation/distance"}

    findings = diagnose(run(short, last=300), stage(300), now=NOW)
    assert found(findings, "validation")[0].seen == "cannot tell: no validation yet"
    assert "7 readings in this phase, 12 are needed" in found(findings, "fullband_spectral_distance")[0].seen
    empty = diagnose(read_curves(tmp_path / "nowhere"), stage(0), now=NOW)
    assert found(empty, "losses")[0].seen.startswith("cannot tell: the run has no TensorBoard events")


def test_without_a_model_the_cost_of_guessing_is_unknown(run):
    findings = diagnose(run(), Stage(LAST), now=NOW)
    assert found(findings, "discriminator")[0].seen.startswith("cannot tell")
    assert "phase 2 since step 2,000" in found(findings, "phase")[0].seen


def test_a_resumed_run_hides_what_it_wrote_anew(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (10, 20, 30):
            writer.add_scalar("losses/loss", 1.0, step)
    with SummaryWriter(str(tmp_path), purge_step=20, filename_suffix=".later") as writer:
        writer.add_scalar("losses/loss", 2.0, 25)
    curve = read_curves(tmp_path).get("losses/loss")
    assert curve.steps.tolist() == [10, 25] and curve.values.tolist() == [1.0, 2.0]


def test_a_truncated_event_file_is_read_as_far_as_it_goes(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(100):
            writer.add_scalar("losses/loss", float(step), step)
    file = next(tmp_path.glob("events*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    curve = read_curves(tmp_path).get("losses/loss")
    assert 30 < len(curve) < 70 and curve.values[-1] == curve.steps[-1]


def made(values):
    steps = numpy.arange(len(values), dtype=float)
    return Curve("x", steps, numpy.array(values, dtype=float), steps)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (numpy.linspace(10, 12, 60), "rising"),
        (numpy.linspace(10, 9, 60), "falling"),
        (numpy.full(60, 10.0), "flat"),
        (10 + numpy.random.default_rng(1).standard_normal(60), "flat"),
        (10 + 5 * numpy.sin(numpy.arange(60)), "oscillating"),
        (numpy.append(numpy.full(59, 10.0), 1e6), "flat"),
        (numpy.append(numpy.full(59, 10.0), numpy.nan), "not finite"),
        (numpy.full(5, 10.0), "too short"),
        (numpy.linspace(10, 12, 5000) + numpy.random.default_rng(1).standard_normal(5000), "rising"),
    ],
)
def test_the_shape_of_a_curve(values, shape):
    assert trend(made(values)).shape == shape


def test_a_trend_has_the_slope_of_its_line_in_spite_of_outliers():
    values = numpy.linspace(10, 12, 100)
    values[::10] = 1000.0
    line = trend(made(values))
    assert line.change == pytest.approx(2 / numpy.median(values), rel=0.05)


def test_the_references_are_shipped_and_fall():
    shipped = references()
    assert [reference.name for reference in shipped] == ["v2_small, CAPACITY 8", "v2_small, CAPACITY 24"]
    for reference in shipped:
        points = reference.curves["validation/distance"]
        assert len(points) >= 6 and points[0][0] == 100 and points[-1][1] < points[0][1]
    assert dict(shipped[1].curves["validation/distance"])[1600] == 10.39


def test_a_run_equal_to_its_reference_is_told_so(run):
    points = tuple((float(s), 11 + 6 * math.exp(-s / 300)) for s in (100, 500, 1000, 4000))
    from rave_tools.training.diagnosis import against_references

    (finding,) = against_references(run(), [Reference("a twin", "", "", {"validation/distance": points})])
    assert finding.severity == "ok" and "11 at step 4,000, where a twin had 11" in finding.seen
