"""What the weights of a run say: are they finite, what do the latents carry, how far does the model look, how late."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.errors import UserError
from rave_tools.findings import Finding, unknown
from rave_tools.training.adversary import Adversary
from rave_tools.training.autoencoder import AutoencoderTrainingWrapper
from rave_tools.training.latents import LatentAnalysis, keeps_analysis
from rave_tools.training.posterior import ACTIVE_VARIANCE, DEAD_KL, STILL, Posterior, measure_posterior

FIDELITIES = (0.8, 0.9, 0.95, 0.99, 0.999)
CROPPED = 50.0
"""Percent of a window that a judge may leave out."""

CHECKPOINTS_ROOM = 3
"""Checkpoints that should still fit on the disk: each is written beside the one that it replaces, best beside last."""

SHORT_PROBE = 8192
UNUSED_ENTRIES = 0.1


def check_weights(state: Mapping[str, Tensor], averaged: Mapping[str, Tensor] | None, *, where: str) -> list[Finding]:
    """Whether every number of a checkpoint is one, and whether an average is kept.

    Args:
        state: the training wrapper's weights.
        averaged: those of the EMA, None without.
        where: the file.
    """
    every = {**dict(state), **{f"ema of {name}": value for name, value in (averaged or {}).items()}}
    bad = [name for name, value in every.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    numbers = sum(value.numel() for value in every.values())
    if bad:
        names = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        found = [Finding(
            "error", "weights", f"{len(bad)} of {len(every)} tensors are not finite: {names}", "the model is lost",
            "go on from an earlier checkpoint with a lower learning rate", where,
        )]  # fmt: skip
    else:
        found = [Finding("ok", "weights", f"all {numbers:,} numbers of {len(every)} tensors are finite", where=where)]
    if averaged:
        found.append(Finding("ok", "EMA", f"{len(averaged)} averaged tensors; export --ema_weights takes them",
                             where=where))  # fmt: skip
    else:
        found.append(Finding("note", "EMA", "no averaged weights", mend="--ema 0.999 keeps some, also on resume",
                             where=where))  # fmt: skip
    return found


def check_disk(folder: Path, checkpoint: Path) -> list[Finding]:
    """Whether the next checkpoints will fit."""
    size, free = checkpoint.stat().st_size, shutil.disk_usage(folder).free
    seen = f"{free / 2**30:.1f} GiB free, a checkpoint takes {size / 2**30:.3f} GiB ({free / max(size, 1):.0f} fit, "
    seen += f"{CHECKPOINTS_ROOM} should)"
    if free < CHECKPOINTS_ROOM * size:
        return [Finding("error", "disk", seen, "the next checkpoint may fail", "free some space", str(folder))]
    return [Finding("ok", "disk", seen, where=str(folder))]


def check_latents(codec: Autoencoder, sound: Iterable[Tensor] | None, *, why_none: str, where: str) -> list[Finding]:
    """Dead latents, collapse and fidelity: measured on sound where there is some, else from the saved analysis.

    Args:
        codec: with the run's weights, in evaluation mode.
        sound: validation audio, batches of shape (B, C, T).
        why_none: why there is no sound, for the findings.
        where: what the sound or the analysis was read from.
    """
    if sound is not None:
        try:
            posterior = measure_posterior(codec, sound)
        except (ValueError, UserError) as error:
            return [unknown("latents", str(error), where=where)]
        return [*judge_posterior(posterior, codec, where=where), _fidelity(posterior.analysis, where)]
    found = [unknown("dead latents", why_none, where=where, mend="make the run's database reachable")]
    if not keeps_analysis(codec):
        return [*found, unknown("fidelity", "this codec keeps no analysis of its latents", where=where)]
    if not bool(codec.fidelity.any()):
        reason = "the latents were never analysed: no validation yet"
        return [*found, unknown("fidelity", reason, where="the buffer fidelity")]
    saved = LatentAnalysis(codec.latent_mean, codec.latent_pca, codec.fidelity)
    return [*found, _fidelity(saved, "the buffer fidelity of the checkpoint")]


def judge_posterior(posterior: Posterior, codec: Autoencoder, *, where: str) -> list[Finding]:
    """Words for measured latents."""
    if posterior.entries_used:
        used, size = posterior.entries_used, codec.codebook_size
        poor = [book for book, number in enumerate(used) if number < UNUSED_ENTRIES * size]
        seen = f"entries in use of {size}: {', '.join(map(str, used))}; perplexity "
        seen += ", ".join(f"{value:.0f}" for value in posterior.perplexity) + f" ({posterior.frames} frames)"
        if poor:
            return [Finding(
                "warning", "codebooks", f"{seen}; under {100 * UNUSED_ENTRIES:.0f} % in {len(poor)} of {len(used)}",
                "entries that are never chosen carry nothing; with few frames that is to be expected",
                "look again with more sound; otherwise fewer entries", where,
            )]  # fmt: skip
        return [Finding("ok", "codebooks", seen, where=where)]
    dead, total = posterior.dead, len(posterior.variance)
    drawn = posterior.divergence is not None
    thresholds = f"variance of the mean < {ACTIVE_VARIANCE} or kl < {DEAD_KL}"
    thresholds = thresholds if drawn else f"variance at most {STILL:g} of the largest"
    seen = f"{total - len(dead)} of {total} latents carry signal, {len(dead)} are dead ({thresholds}; "
    seen += f"{posterior.frames} frames)"
    if posterior.divergence is not None:
        best = posterior.divergence.topk(min(4, total))
        seen += f"; kl {float(posterior.divergence.sum()):.3g} per frame, most in "
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        seen += ", ".join(f"{index} ({value:.2g})" for index, value in pairs)
    if len(dead) == total and not drawn:
        return [Finding(
            "error", "dead latents", seen, "no latent changes with the sound", "begin anew with a lower learning rate",
            where,
        )]  # fmt: skip
    if len(dead) == total:
        return [Finding(
            "error", "posterior collapse", seen, "no latent says anything about the sound",
            "lower BETA_TARGET by ten, or warm it up more slowly (BETA_WARMUP)", where,
        )]  # fmt: skip
    if dead and not drawn:
        return [Finding("note", "dead latents", seen, "nothing holds them at the prior: they are of no use, or were "
                        "never learnt", "fewer latents, or longer training", where)]  # fmt: skip
    if dead:
        return [Finding(
            "note", "dead latents", seen, "normal for a variational codec, which spends only what it needs; exports "
            "leave them out", "lower BETA_TARGET if too few carry signal", where,
        )]  # fmt: skip
    return [Finding("ok", "dead latents", seen, where=where)]


def _fidelity(analysis: LatentAnalysis, where: str) -> Finding:
    needed = {share: analysis.dimensions(share) for share in FIDELITIES}
    seen = ", ".join(f"{share}: {number}" for share, number in needed.items())
    seen = f"axes that carry this share of the variance, of {len(analysis.fidelity)}: {seen}"
    if needed[FIDELITIES[-1]] == 1 and len(analysis.fidelity) > 1:
        return Finding("note", "fidelity", seen, "one axis, usually loudness, carries everything: normal in the first "
                       "thousands of updates", "lower BETA_TARGET if it stays so", where)  # fmt: skip
    return Finding("ok", "fidelity", seen, where=where)


def check_window(
    wrapper: AutoencoderTrainingWrapper, n_signal: int | None, earlier: Sequence[int] | None = None
) -> list[Finding]:
    """How far the model looks, and whether the training window is long enough for that.

    Args:
        wrapper: with the run's weights.
        n_signal: samples of a training window; None when unknown.
        earlier: the receptive field that the run measured when it began.
    """
    try:
        left, right = wrapper.measure_receptive_field(earlier)
    except ValueError as error:
        return [Finding("error", "receptive field", " ".join(str(error).split()), "its output ignores its input",
                        "begin anew with a lower learning rate", "gradient of one output sample")]  # fmt: skip
    rate = wrapper.codec.sample_rate
    seen = f"looks {left} samples ({1000 * left / rate:.0f} ms) back and {right} ({1000 * right / rate:.0f} ms) ahead"
    if n_signal is None:
        return [unknown("window", f"{seen}; the run does not say its --n_signal", where="checkpoint")]
    where = "receptive field by gradient, --n_signal"
    lost = 0.0
    for judge in wrapper.judges:
        if getattr(judge.view, "valid_crop", False):
            frames = n_signal // wrapper.codec.bands
            start, stop = judge.view.crop(frames, wrapper.codec.bands, (left, right))
            lost = max(lost, 100 * (1 - (stop - start) / frames))
    seen += f"; judges with a valid crop leave out {lost:.0f} % of a window of {n_signal} samples (threshold "
    seen += f"{CROPPED:.0f} %)"
    short = n_signal < left + right
    if lost > CROPPED or short:
        return [Finding(
            "warning", "window", seen + (f"; the window is shorter than {left + right} samples" if short else ""),
            "much of what is computed is not judged" if lost > CROPPED
            else "every output is judged with silence within its reach", "a longer --n_signal", where,
        )]  # fmt: skip
    return [Finding("ok", "window", seen, where=where)]


def check_latency(codec: Autoencoder) -> list[Finding]:
    """The delay of its streaming form against the plain model."""
    try:
        _, info = codec.streaming()  # type: ignore[attr-defined]
    except (ValueError, UserError, AttributeError) as error:
        reason = f"it does not stream: {' '.join(str(error).split())[:160]}"
        return [unknown("latency", reason, where="codec.streaming()")]
    milliseconds = 1000 / codec.sample_rate
    block = codec.hop
    return [Finding(
        "note", "latency", f"{info.latency} samples ({info.latency * milliseconds:.1f} ms) when streaming, in blocks "
        f"of {block} ({block * milliseconds:.1f} ms) or more", "the host's block comes on top; for the real-time "
        "factor export it and call doctor on the .ts", where="codec.streaming()",
    )]  # fmt: skip


@torch.no_grad()
def chance(adversary: Adversary | None, channels: int) -> float | None:
    """What the discriminator's loss is, summed over its scales, when it can only guess.

    Guessing answers the same number for real and for generated sound; the best such number costs what is returned
    (2 per scale for a hinge).

    Args:
        adversary: None gives None.
        channels: of its input.
    """
    if adversary is None:
        return None
    scales = len(adversary.discriminator(torch.zeros(2, channels, SHORT_PROBE)))
    guesses = torch.linspace(-2, 2, 401)
    each = min(float(adversary.discriminator_loss(guess[None], guess[None])) for guess in guesses)
    return scales * each


def check_differences(lines: Sequence[str] | None, names: Sequence[str], *, why_none: str = "") -> list[Finding]:
    """How the run's configuration differs from the shipped files that it was started with.

    Args:
        lines: one per binding that differs; None when that could not be found out.
        names: of the shipped files.
        why_none: why it could not.
    """
    if lines is None:
        return [unknown("configuration", why_none, where="command.txt")]
    shipped = " + ".join(names)
    if not lines:
        return [Finding("ok", "configuration", f"as shipped: {shipped}", where="config.gin")]
    shown = "; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
    seen = f"{len(lines)} bindings differ from {shipped}: {shown}"
    return [Finding("note", "configuration", seen, where="config.gin")]
