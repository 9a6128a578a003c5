"""A trained codec becomes a verified file, or nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.errors import UserError
from rave_tools.export.nn_tilde import script, write
from rave_tools.export.player import HostFacts
from rave_tools.export.prepare import ExportOptions, prepare
from rave_tools.export.speed import Speed, measure_speed
from rave_tools.export.verify import Verification, verify
from rave_tools.generative.latent_prior import LatentPrior

Report = Callable[[str], None]


class ExportFailed(UserError):
    """The file did not do what it claims, so it was not kept."""


@dataclass(frozen=True)
class Delivered:
    """A file and what is known about it.

    Attributes:
        path: of the file.
        facts: its numbers.
        verification: every check, passed.
        size: in bytes.
        warnings: what a person should know before using it.
    """

    path: Path
    facts: HostFacts
    verification: Verification
    size: int
    warnings: list[str]


def export(
    codec: Autoencoder,
    path: Path,
    *,
    options: ExportOptions,
    prior: LatentPrior | None = None,
    time_it: bool = True,
    report: Report | None = None,
) -> Delivered:
    """Export a codec for realtime hosts.

    Args:
        codec: trained; it stays as it is.
        path: of the file, ending in ``.ts``.
        options: what the file should be.
        prior: of the codec, for the method ``prior``.
        time_it: measure its speed in a process of its own.
        report: told what happens.

    Returns:
        The file, its facts and its verification.

    Raises:
        UserError: options that the codec cannot meet.
        ExportFailed: the file is not what it claims; nothing is left at ``path``, an older file there stays.
    """
    tell = report or (lambda line: None)
    tell("preparing: folding weights, finding the grid with the least latency")
    prepared = prepare(codec, options, prior)
    tell("compiling")
    module = script(prepared.host)
    outcome: list[Verification] = []

    def check(passing: Path) -> None:
        tell("verifying the saved file against the plain model")
        speed: Speed | None = measure_speed(passing) if time_it else None
        verification = verify(passing, prepared, speed)
        outcome.append(verification)
        if not verification.passed:
            reasons = "\n  ".join(verification.failures())
            if options.precision != "fp32":
                reasons += "\n  leave --precision out: its rounding is too much for this model"
            raise ExportFailed(f"the file failed its verification and was not kept ({path}):\n  {reasons}")

    write(module, path, facts=prepared.facts, check=check)
    warnings = prepared.warnings + odd_frames(prepared.facts) + too_slow(outcome[0].speed, prepared.facts)
    return Delivered(path, prepared.facts, outcome[0], path.stat().st_size, warnings)


def odd_frames(facts: HostFacts) -> list[str]:
    """What a latent frame that fits no block of nn~ means there; nothing for any other."""
    if not facts.hop & (facts.hop - 1):
        return []
    return [
        f"one latent frame is {facts.hop} samples, no power of two, and nn~ plays blocks of powers of two: forward "
        "takes them through its queue, one frame later; encode and decode cannot be objects of their own there"
    ]


def too_slow(speed: Speed | None, facts: HostFacts) -> list[str]:
    """Whether this machine cannot play the file live, in all or in some sizes of blocks; nothing where it can."""
    slow = [] if speed is None or not facts.streaming else [t for t in speed.times if t.real_time_factor >= 1]
    if speed is None or not slow:
        return []
    best = min(speed.times, key=lambda times: times.real_time_factor)
    if best in slow:
        return [
            f"too slow to play live on this machine: {best.real_time_factor:.1f} times the duration of a block at "
            "best, with one thread; it needs a smaller model (CAPACITY) or a faster processor"
        ]
    sizes = " and ".join(str(times.hops * facts.hop) for times in slow)
    return [
        f"too slow to play live on this machine in blocks of {sizes} samples; blocks of {best.hops * facts.hop} take "
        f"{best.real_time_factor:.2f} of their duration"
    ]


def describe(delivered: Delivered) -> list[str]:
    """A table of everything measured, one row per line."""
    facts, result = delivered.facts, delivered.verification
    milliseconds = 1000 / facts.sample_rate
    late = facts.latency + facts.hop
    rows = [
        ("file", f"{delivered.path} ({delivered.size / 1e6:.1f} MB)"),
        ("sample rate", f"{facts.sample_rate} Hz"),
        ("precision", f"{facts.precision}, processor {facts.processor}"),
        ("channels", f"{facts.channels} in, {facts.target_channels} out"),
        ("ratio", f"{facts.hop} samples per latent ({facts.hop * milliseconds:.1f} ms)"),
        ("latents", f"{facts.latent_size} of {facts.full_latent_size}"),
        ("latency", f"{facts.latency} samples = {facts.latency * milliseconds:.1f} ms"),
        ("", f"of which {facts.offset} samples shift the analysis grid"),
        ("latency, small blocks", f"{late} samples = {late * milliseconds:.1f} ms"),
    ]
    if not facts.streaming:
        rows[-3:] = [("latency", "none: it does not stream, every block begins with a click")]
    rows += [("ok" if check.passed else "FAILED", f"{check.name}: {check.answer}") for check in result.checks]
    if result.speed is not None:
        rows += describe_speed(result.speed, facts)
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def describe_speed(speed: Speed, facts: HostFacts) -> list[tuple[str, str]]:
    """Rows about time: one thread, as hosts should run it."""
    first = " and ".join(f"{seconds * 1000:.0f}" for seconds in speed.first)
    rows = [
        ("load", f"{speed.load * 1000:.0f} ms"),
        ("first blocks", f"{first} ms (a block lasts {speed.budget * 1000:.1f} ms)"),
    ]
    for times in speed.times:
        size = f"{times.hops} hop{'s' * (times.hops > 1)} ({times.hops * facts.hop} samples)"
        spent = f"median {times.median * 1000:.2f} ms, p99 {times.worst * 1000:.2f} ms of {times.budget * 1000:.1f} ms"
        rows.append(("real-time factor", f"{times.real_time_factor:.3f} for {size}, 1 thread: {spent}"))
    if speed.prior is not None:
        factor = speed.prior.real_time_factor
        spent = f"median {speed.prior.median * 1000:.2f} ms of {speed.prior.budget * 1000:.1f} ms"
        rows.append(("", f"{factor:.3f} more for a latent frame of the prior: {spent}"))
    return rows
