"""What the curves of a run say: where it is, whether its losses behave, who wins the game.

Every rule takes curves and returns findings; none of them opens a file, so that each can be shown a made-up sick run.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rave_tools.findings import Finding, unknown
from rave_tools.training.curves import Curve, Curves, Trend, interpolate, trend
from rave_tools.training.reference import Reference, references
from rave_tools.training.schedules import Schedule
from rave_tools.training.summary import readable_time

WINDOW = 0.5
"""Share of a phase's readings, the last ones, on which trends are judged."""

GAME = {"adversarial", "feature_matching", "discriminator", "loss_discriminator", "score_real", "score_fake"}
TOTALS = {"loss", "loss_discriminator"}

NO_PROGRESS = 0.98
"""A distance whose last readings are above this share of its first ones has learnt nothing."""

EARLY = 100
"""Generator updates before which no distance is judged."""

REGROWTH = 1.3
"""A distance this much above its own lowest stretch has been lost again."""

UNHEARD = 2.0
"""A validation distance this many times that of training, at the same time, is no mere gap of generalisation."""

BEHIND = 1.5
"""A validation distance above the reference's by this factor at the same step is far behind."""

DOMINANT, IDLE = 0.2, 0.98
"""Discriminator loss as a share of what guessing costs: below the first it always wins, above the second it learns
nothing."""

GAME_READINGS = 10
COLLAPSED_KL = 2.0
"""Divergence of all latents of a frame together, as RAVE's penalty counts it (twice the nats), below which they say
less than one nat about it: the posterior is the prior, but for what rounding and noise leave. A model that has learnt
nothing yet begins above that."""

SKIPPED_WARNING, SKIPPED_ERROR = 0.001, 0.05
WAITING = 0.1
EXPLODING = 30.0
STALE = 15 * 60.0


@dataclass(frozen=True)
class Stage:
    """Where a run stands.

    Attributes:
        step: generator updates made.
        max_steps: at which it ends; None when unknown.
        schedule: its phases; None when the model could not be built.
        chance: loss of a discriminator that guesses, summed over its scales; None without an adversary.
        latents: D, None when unknown.
        transferred: it began with the weights of another run (--init_from).
    """

    step: int
    max_steps: int | None = None
    schedule: Schedule | None = None
    chance: float | None = None
    latents: int | None = None
    transferred: bool = False


def diagnose(curves: Curves, stage: Stage, *, now: float | None = None) -> list[Finding]:
    """All findings that the curves of a run allow.

    Args:
        curves: of the run.
        stage: where it stands.
        now: seconds since the epoch; the clock's by default.
    """
    findings = [*progress(curves, stage), *pace(curves, stage, time.time() if now is None else now)]
    if not curves.by_tag:
        return [*findings, unknown(
            "losses", "the run has no TensorBoard events", where="events.out.tfevents.*",
            mend="give the run's folder, with the events that training wrote into it",
        )]  # fmt: skip
    start = phase_start(curves)
    findings += [*not_finite(curves), *skipped(curves, stage), *gradients(curves, start)]
    findings += [*distances(curves, stage, start), *validation(curves, start), *unheard(curves)]
    findings += against_references(curves)
    return [*findings, *collapse(curves, stage), *game(curves, stage)]


def phase_start(curves: Curves) -> float:
    """The step at which the phase of the last reading began."""
    phase = curves.get("run/phase")
    if phase is None or not len(phase):
        return 0.0
    other = [step for step, value in zip(phase.steps, phase.values, strict=True) if value != phase.values[-1]]
    later = phase.steps[phase.steps > other[-1]] if other else phase.steps
    return float(later[0])


def progress(curves: Curves, stage: Stage) -> Iterator[Finding]:
    """Phase and step."""
    total = f" of {stage.max_steps:,} ({100 * stage.step / stage.max_steps:.1f} %)" if stage.max_steps else ""
    text, where = f"step {stage.step:,}{total}", "checkpoint counters and configuration"
    if stage.schedule is not None:
        now = stage.schedule.at(stage.step)
        rows = stage.schedule.stretches(max(stage.max_steps or 0, stage.step + 1))
        begin = 0
        for phase, updates, _ in rows:
            if phase.number == now.number:
                until = f" to {min(begin + updates, stage.max_steps):,}" if stage.max_steps else ""
                text += f"; phase {now.number} of {rows[-1][0].number}, {now.name}, from {begin:,}{until}"
            begin += updates
        text += "; the adversary plays" if now.adversarial else "; no adversary yet" if len(rows) > 1 else ""
        text += ", the encoder is frozen" if now.encoder_frozen else ""
    else:
        phase = curves.get("run/phase")
        if phase is None:
            yield unknown("phase", text + ", without a model or a curve run/phase to tell the phase", where=where)
            return
        text += f"; phase {int(phase.values[-1])} since step {phase_start(curves):,.0f}"
        where = "run/phase"
    yield Finding("note", "phase", text, where=where)


def pace(curves: Curves, stage: Stage, now: float) -> Iterator[Finding]:
    """Updates per second, the time left, and whether training waits for data."""
    speed = curves.get("run/steps_per_second")
    if speed is None or not len(speed):
        yield unknown("speed", "no curve run/steps_per_second", where="events.out.tfevents.*")
        return
    recent = speed.since(phase_start(curves)).tail(0.1, fewest=5)
    text = f"{recent.median:.2f} generator updates per second (median of the last {len(recent)} readings)"
    over = bool(stage.max_steps) and stage.step >= (stage.max_steps or 0)
    age = max(0.0, now - curves.last_time)
    if over:
        text += "; the run is finished"
    elif stage.max_steps and recent.median > 0:
        left = (stage.max_steps - stage.step) / recent.median
        text += f"; {readable_time(left)} left at this speed"
        text += f"; last sign of life {readable_time(age)} ago" + (": it does not run now" if age > STALE else "")
    yield Finding("note", "speed", text, where="run/steps_per_second")
    waiting = curves.get("run/share_waiting_for_data")
    if waiting is not None and len(waiting):
        share = waiting.tail(0.2, fewest=5).median
        seen = f"{100 * share:.0f} % of the time is spent waiting for data (threshold {100 * WAITING:.0f} %)"
        if share > WAITING:
            yield Finding("warning", "data", seen, "the processor is not used", "more --workers, or a faster disk",
                          "run/share_waiting_for_data")  # fmt: skip
        else:
            yield Finding("ok", "data", seen, where="run/share_waiting_for_data")


def not_finite(curves: Curves) -> Iterator[Finding]:
    """Readings of losses that are no numbers."""
    losses = {**curves.group("losses"), **curves.group("validation")}
    bad = {name: curve for name, curve in losses.items() if curve.broken}
    for name, curve in bad.items():
        wrong = curve.steps[[not math.isfinite(value) for value in curve.values]]
        still = not math.isfinite(curve.values[-1])
        yield Finding(
            "error" if still else "warning", name,
            f"{curve.broken} of {len(curve)} readings are not finite, from step {wrong[0]:,.0f} to {wrong[-1]:,.0f}",
            "the run has diverged" if still else "some updates diverged; the run recovered",
            "resume from a step_N checkpoint before that, with a lower learning rate or --precision 32", curve.tag,
        )  # fmt: skip
    if losses and not bad:
        yield Finding("ok", "NaN", f"0 of {sum(map(len, losses.values()))} readings of {len(losses)} losses are not "
                      "finite", where="losses/*, validation/*")  # fmt: skip


def skipped(curves: Curves, stage: Stage) -> Iterator[Finding]:
    """Updates left out because a gradient was not finite."""
    curve = curves.get("run/skipped_updates")
    if curve is None or not len(curve):
        return
    number = int(curve.values[-1])
    share = number / max(stage.step, 1)
    seen = f"{number:,} updates left out ({100 * share:.2f} %; thresholds {100 * SKIPPED_WARNING:.1f} and "
    seen += f"{100 * SKIPPED_ERROR:.0f} %)"
    if share > SKIPPED_WARNING:
        yield Finding(
            "error" if share > SKIPPED_ERROR else "warning", "skipped updates", seen, "gradients were not finite",
            "lower the learning rate, set clip_norm, or train with --precision 32", curve.tag,
        )  # fmt: skip
    else:
        yield Finding("ok" if not number else "note", "skipped updates", seen, where=curve.tag)


def gradients(curves: Curves, start: float) -> Iterator[Finding]:
    """Norms of the gradients, now against the beginning of the phase."""
    for who in ("generator", "discriminator"):
        curve = curves.get(f"optimisation/gradient_norm_{who}")
        if curve is None or len(curve.since(start)) < 2 * GAME_READINGS:
            continue
        curve = curve.since(start)
        first, last = curve.values[:GAME_READINGS], curve.tail(0.1, fewest=GAME_READINGS)
        before = float(sorted(first)[len(first) // 2])
        factor = last.median / max(before, 1e-12)
        seen = f"gradient norm of the {who} {last.median:.3g}, {factor:.1f} times that of the phase's first readings"
        # A discriminator begins with the small gradients of one that knows nothing, and grows by nature.
        if who == "generator" and factor > EXPLODING or last.broken:
            yield Finding(
                "warning", "gradients", f"{seen} (threshold {EXPLODING:.0f})", "training becomes unstable",
                "lower the learning rate, or set AutoencoderTrainingWrapper.clip_norm", curve.tag,
            )  # fmt: skip
        else:
            yield Finding("ok", "gradients", seen, where=curve.tag)


def judged(curves: Curves) -> dict[str, Curve]:
    """The distances that the judges measured: all losses but totals, the game's and the penalties'."""
    penalties = {tag.removeprefix("beta_") for tag in curves.group("optimisation") if tag.startswith("beta_")}
    return {
        name: curve for name, curve in curves.group("losses").items() if name not in GAME | TOTALS | penalties
    }


def distances(curves: Curves, stage: Stage, start: float) -> Iterator[Finding]:
    """What each judged distance does in the present phase, and whether anything was learnt at all."""
    found = judged(curves)
    if not found:
        yield unknown("losses", "no judged distance among losses/*", where="losses/*")
    adversarial = stage.schedule is not None and stage.schedule.at(stage.step).adversarial
    adversarial = adversarial or "losses/discriminator" in curves
    for name, curve in found.items():
        if curve.broken:
            continue
        first = float(curve.values[0])
        recent = curve.since(start).tail(WINDOW)
        line = trend(recent)
        if line.shape == "too short":
            yield unknown(name, f"{len(recent)} readings in this phase, 12 are needed for a trend", where=curve.tag)
            continue
        learns = not stage.transferred and curve.steps[-1] >= EARLY
        yield _distance(name, curve, first=first, line=line, adversarial=adversarial, learns=learns)


def _distance(name: str, curve: Curve, *, first: float, line: Trend, adversarial: bool, learns: bool) -> Finding:
    """One distance in words; the worst that is true of it comes first."""
    last = curve.tail(0.1, fewest=5).median
    lowest = _lowest(curve)
    ratio, regrowth = last / max(first, 1e-12), last / max(lowest, 1e-12)
    seen = f"{first:.4g} at the start, {last:.4g} now; {line}"
    if learns and ratio > NO_PROGRESS:
        return Finding(
            "error", name, f"{seen}; now {ratio:.2f} of the start (threshold {NO_PROGRESS} after {EARLY} updates)",
            "nothing has been learnt: usually the learning rate is too high",
            "start anew with a tenth of the learning rate", curve.tag,
        )  # fmt: skip
    if line.shape == "oscillating":
        return Finding("warning", name, f"{seen} (threshold 30 %)", "the loss jumps about its trend",
                       "lower the learning rate, or a larger batch (--accumulate)", curve.tag)  # fmt: skip
    if regrowth > REGROWTH:
        return Finding(
            "warning", name, f"{seen}; {regrowth:.2f} times its lowest stretch of {lowest:.4g} (threshold {REGROWTH})",
            "what was learnt is being lost" + ("; in phase 2 a little is normal, this is much" if adversarial else ""),
            "resume from before the rise with a lower learning rate", curve.tag,
        )  # fmt: skip
    if line.shape == "rising":
        if adversarial:
            return Finding(
                "note", name, seen, "normal after the adversary has entered: the sound sharpens while the spectra move "
                "away; listen", where=curve.tag,
            )  # fmt: skip
        return Finding(
            "warning", name, f"{seen} (threshold +5 %)", "the reconstruction gets worse without an adversary",
            "lower the learning rate or BETA_TARGET", curve.tag,
        )  # fmt: skip
    if line.shape == "falling":
        return Finding("ok", name, seen, "still learning", where=curve.tag)
    if adversarial:
        return Finding("ok", name, seen, "steady while the adversary sharpens the sound", where=curve.tag)
    return Finding("note", name, seen, "a plateau: this phase has little left to teach", where=curve.tag)


def _lowest(curve: Curve) -> float:
    """The lowest median of any tenth of the readings."""
    size = max(5, len(curve) // 10)
    starts = range(0, max(1, len(curve) - size + 1), max(1, size // 2))
    return min(
        Curve("", curve.steps[s : s + size], curve.values[s : s + size], curve.times[s : s + size]).median
        for s in starts
    )  # fmt: skip


def validation(curves: Curves, start: float) -> Iterator[Finding]:
    """The distance on fixed segments: the best, and where it goes."""
    curve = curves.get("validation/distance")
    if curve is None or not len(curve):
        yield unknown("validation", "no validation yet", where="validation/distance",
                      mend="wait for the first one, at --val_every or step 100")  # fmt: skip
        return
    if not math.isfinite(curve.values[-1]):
        return
    best = min(range(len(curve)), key=lambda i: curve.values[i] if math.isfinite(curve.values[i]) else math.inf)
    last, lowest = float(curve.values[-1]), float(curve.values[best])
    seen = f"distance {last:.4g} at step {curve.steps[-1]:,.0f}, best {lowest:.4g} at {curve.steps[best]:,.0f} "
    seen += f"({len(curve)} validations)"
    worse = last / max(lowest, 1e-12)
    since = len(curve) - 1 - best
    if worse > REGROWTH:
        yield Finding(
            "warning", "validation", f"{seen}; now {worse:.2f} times the best (threshold {REGROWTH})",
            "it has overfitted, or lost what it had learnt", "export --checkpoint best; compare with losses/*",
            curve.tag,
        )  # fmt: skip
    elif since >= 10 and curve.steps[best] >= start:
        yield Finding("note", "validation", f"{seen}; no better since {since} validations (threshold 10)",
                      "a plateau on unheard sound", where=curve.tag)  # fmt: skip
    else:
        yield Finding("ok", "validation", seen, where=curve.tag)


def unheard(curves: Curves) -> Iterator[Finding]:
    """The validation's distance beside that of the training: other sound, and the mean instead of samples."""
    parts = {name: curve for name, curve in curves.group("validation").items() if name != "distance"}
    rows = []
    for name, curve in parts.items():
        twins = [twin for judge, twin in judged(curves).items() if judge.endswith(f"_{name}")]
        if twins and math.isfinite(curve.values[-1]):
            near = [twin.since(twin.steps[-1] - 0.1 * (twin.steps[-1] - twin.steps[0])).median for twin in twins]
            rows.append((float(curve.values[-1]) / max(*near, 1e-12), name, float(curve.values[-1]), max(near)))
    if not rows:
        return
    factor, name, there, here = max(rows)
    seen = f"{name} {there:.4g} in the validation, {here:.4g} in training: {factor:.2f} times (threshold {UNHEARD})"
    where = f"validation/{name}, losses/*_{name}"
    if factor > UNHEARD:
        yield Finding(
            "warning", "unheard sound", seen, "the decoder does badly on other sound, or on the posterior's mean, "
            "which it never hears in training: a collapsing posterior does this, and sound of another kind",
            "look at posterior and dead latents; validate on sound like that of the training", where,
        )  # fmt: skip
    else:
        yield Finding("ok", "unheard sound", seen, where=where)


def against_references(curves: Curves, known: Sequence[Reference] | None = None) -> Iterator[Finding]:
    """The validation distance beside those of runs that went well, at the same step."""
    curve = curves.get("validation/distance")
    if curve is None or not len(curve) or not math.isfinite(curve.values[-1]):
        return
    rows, least = [], math.inf
    for reference in references() if known is None else known:
        points = reference.curves.get("validation/distance", ())
        usable = [(step, value) for step, value in zip(curve.steps, curve.values, strict=True)
                  if interpolate(points, step) is not None and math.isfinite(value)]  # fmt: skip
        if usable:
            step, value = usable[-1]
            expected = interpolate(points, step) or math.nan
            rows.append(f"{value:.4g} at step {step:,.0f}, where {reference.name} had {expected:.4g}")
            least = min(least, value / expected)
    where = "validation/distance, docs/reference_curves.md"
    if not rows:
        yield unknown("reference", "no validation within the steps that the reference curves cover", where=where)
        return
    seen = "; ".join(rows)
    means = "other sound and sizes have other distances: compare the shape first"
    if least > BEHIND:
        yield Finding("warning", "reference", f"{seen}; {least:.2f} times at least (threshold {BEHIND})",
                      "far behind runs that went well, if its judge is the same; " + means,
                      "compare learning rate, beta and data with the reference's", where)  # fmt: skip
    else:
        yield Finding("ok", "reference", seen, means, where=where)


def collapse(curves: Curves, stage: Stage) -> Iterator[Finding]:
    """Whether the posterior has become the prior, from the logged penalty alone."""
    kl, beta = curves.get("losses/kl"), curves.get("optimisation/beta_kl")
    if kl is None or beta is None or not len(kl) or not len(beta):
        return
    factor = beta.tail(0.1, fewest=1).median
    if not factor > 0:
        yield unknown("posterior", "the factor of kl is 0", where="optimisation/beta_kl")
        return
    divergence = kl.tail(0.1, fewest=5).median / factor
    where = "losses/kl divided by optimisation/beta_kl"
    latents = "" if stage.latents is None else f" in {stage.latents} latents"
    seen = f"kl {divergence:.3g} per frame{latents} (collapsed below {COLLAPSED_KL})"
    if divergence < COLLAPSED_KL:
        yield Finding(
            "error", "posterior collapse", seen, "the posterior is the prior: latents say nothing about the sound, and "
            "the decoder paints an average",
            f"lower BETA_TARGET (now {factor:.3g}) by ten, or warm it up more slowly (BETA_WARMUP)", where,
        )  # fmt: skip
    else:
        yield Finding("ok", "posterior", seen, where=where)


def game(curves: Curves, stage: Stage) -> Iterator[Finding]:
    """Who wins between generator and discriminator: the discriminator's loss against that of one that guesses."""
    loss = curves.get("losses/discriminator")
    if loss is None or not len(loss):
        now = stage.schedule.at(stage.step) if stage.schedule is not None else None
        if now is not None and now.adversarial:
            yield unknown("discriminator", "it plays, but nothing was logged yet", where="losses/discriminator")
        return
    if loss.broken:
        return
    if stage.chance is None:
        reason = f"loss {loss.tail(0.2).median:.3g}, and no model to tell what guessing would cost"
        yield unknown("discriminator", reason, where=loss.tag)
        return
    if len(loss) < GAME_READINGS:
        yield unknown("discriminator", f"{len(loss)} readings of its loss, {GAME_READINGS} are needed", where=loss.tag)
        return
    recent = loss.tail(0.3, fewest=GAME_READINGS)
    share = recent.median / stage.chance
    seen = f"loss {recent.median:.3g} (median of the last {len(recent)} readings), {share:.2f} of the "
    seen += f"{stage.chance:.3g} that guessing costs{_scores(curves)}"
    if share < DOMINANT:
        yield Finding(
            "error", "discriminator dominance", f"{seen} (threshold {DOMINANT})",
            "it is right about everything, and its gradient teaches the generator nothing",
            "lower the discriminator's learning rate or DISCRIMINATOR_CAPACITY, or raise UPDATE_DISCRIMINATOR_EVERY",
            loss.tag,
        )  # fmt: skip
    elif share > IDLE:
        yield Finding(
            "warning", "idle discriminator", f"{seen} (threshold {IDLE})",
            "it cannot tell real from generated, and teaches the generator nothing",
            "wait if the adversary has just entered; otherwise raise its learning rate or capacity", loss.tag,
        )  # fmt: skip
    else:
        yield Finding("ok", "discriminator", f"{seen} (balanced between {DOMINANT} and {IDLE})", where=loss.tag)
    yield from _matching(curves)


def _scores(curves: Curves) -> str:
    real, fake = curves.get("losses/score_real"), curves.get("losses/score_fake")
    if real is None or fake is None or not len(real) or not len(fake):
        return ""
    return f"; mean scores {real.tail(0.3).median:.3g} for real, {fake.tail(0.3).median:.3g} for generated sound"


def _matching(curves: Curves) -> Iterable[Finding]:
    curve = curves.get("losses/feature_matching")
    if curve is None or curve.broken:
        return
    line = trend(curve.tail(WINDOW))
    if line.shape == "rising":
        yield Finding("note", "feature matching", str(line), "the discriminator finds new differences faster than the "
                      "generator removes them: normal at first, not for ever", where=curve.tag)  # fmt: skip
    elif line.shape != "too short":
        yield Finding("ok", "feature matching", str(line), where=curve.tag)
