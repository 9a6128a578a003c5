"""Files without a memory of their own: how they are checked, kept and described, whatever their format.

A format gives one file per method and a way to run them: ``(x, knobs, state) -> (y, state)``.
"""

import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rave_tools.errors import UserError
from rave_tools.export.deliver import ExportFailed, describe_speed
from rave_tools.export.player import HostFacts
from rave_tools.export.prepare import ExportOptions, Measured
from rave_tools.export.pure import METHODS
from rave_tools.export.speed import SECONDS_PER_SIZE, Speed, time_calls
from rave_tools.export.step import still_knobs
from rave_tools.export.verify import BLOCKS, TOLERANCE_DB, Verification, cut, difference, make_measure, verdict
from rave_tools.nn.normalization import SWITCHES

Run = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""One loaded method: (x, knobs, state) -> (y, state), audio as (B, C, T)."""

MODEL_OPTIONS = ("fidelity", "latent_size", "sample_rate", "channels")
"""Options about the model itself, which every format honours."""

REASON = "it is an option of --format nn_tilde; leave it out"

REASONS = {
    "streaming": "its files are made to carry state from block to block; leave it out",
    "buffered": "the queue for blocks of any length is its host's; leave it out",
    "precision": "it is written in fp32; leave it out",
}

QUIET = (0.0, 0.0)
"""Knobs with everything random off."""


@dataclass(frozen=True)
class Written:
    """Files of one model and what is known about them.

    Attributes:
        paths: per method.
        facts: numbers of the model.
        state_sizes: numbers of state per row, per method.
        block: samples of every block, None for any number of hops.
        verification: every check, passed.
        warnings: what a person should know before using them.
    """

    paths: dict[str, Path]
    facts: HostFacts
    state_sizes: dict[str, int]
    block: int | None
    verification: Verification
    warnings: list[str]


def refuse_options(name: str, options: ExportOptions, *, honoured: Collection[str] = MODEL_OPTIONS) -> None:
    """Refuse every option that a format cannot honour.

    Args:
        name: of the format.
        options: of the export.
        honoured: names of options that mean something to the format; the others must be left alone.

    Raises:
        UserError: names the flag.
    """
    for option in fields(options):
        value = getattr(options, option.name)
        if option.name not in honoured and value != option.default:
            flag = f"--no{option.name}" if value is False else f"--{option.name}"
            number = "" if isinstance(value, bool) else f" {value}"
            raise UserError(f"{flag}{number} means nothing to --format {name}: {REASONS.get(option.name, REASON)}")


def check_block(block: int | None, facts: HostFacts) -> None:
    """Refuse a fixed block that is not whole hops.

    Raises:
        UserError: names both numbers.
    """
    if block is not None and (block < facts.hop or block % facts.hop):
        raise UserError(f"--block {block}: a block is a whole number of hops of {facts.hop} samples")


def name_files(path: Path) -> dict[str, Path]:
    """One file per method: ``forward`` has the name itself, the halves have it with their own behind."""
    return {
        method: path if method == "forward" else path.with_name(f"{path.stem}_{method}{path.suffix}")
        for method in METHODS
    }


def describe_method(facts: HostFacts, method: str, *, state_size: int, block: int | None) -> str:
    """What a host must know about a file, as JSON: HostFacts and the inputs of the method."""
    knobs = ["temperature", "noise"] + list(SWITCHES) * facts.adaptive
    inputs = {"method": method, "knobs": knobs, "state_size": state_size, "block": block}
    return json.dumps(asdict(facts) | inputs)


def keep(
    paths: Mapping[str, Path], write: Callable[[str, Path], None], check: Callable[[dict[str, Path]], None]
) -> None:
    """Write files under passing names, check them, and only then give them their names: all of them or none.

    Args:
        paths: per method.
        write: called with each method and its passing name.
        check: called with the passing names; raises when they must not be kept.
    """
    with ExitStack() as cleaning:
        passing = {}
        for method, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            passing[method] = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
            cleaning.callback(passing[method].unlink, missing_ok=True)
            write(method, passing[method])
        check(passing)
        for method, path in paths.items():
            passing[method].replace(path)


def play_step(run: Run, x: Tensor, sizes: list[int], *, state: Tensor, knobs: Sequence[float] = QUIET) -> Tensor:
    """Feed a method block by block.

    Args:
        run: the method.
        x: shape (B, C, T).
        sizes: of the blocks, repeated.
        state: before the first block. Shape (B, state_size).
        knobs: temperature and noise, and switches where the model has them.

    Returns:
        Shape (B, C', T'), of the blocks that fit.
    """
    outputs = []
    for start, end in cut(x.shape[-1], sizes):
        y, state = run(x[..., start:end].contiguous(), torch.tensor(knobs), state)
        outputs.append(y)
    return torch.cat(outputs, -1)


def verify_steps(
    runs: Mapping[str, Run], measured: Measured, *, state_sizes: Mapping[str, int], block: int | None
) -> Verification:
    """Ask loaded files everything.

    Args:
        runs: loaded methods.
        measured: the plain model, and numbers.
        state_sizes: per method.
        block: samples of every block when the files know no other, and one row.

    Returns:
        All answers; ``passed`` says whether the files may be kept.
    """
    facts = measured.facts
    result = Verification()
    measure = make_measure(measured)
    rest = facts.latency - facts.offset
    forward = runs["forward"]
    rows = 1 if block else 2
    hops = [block] if block else [hops * facts.hop for hops in BLOCKS]
    unit = block or facts.hop

    loud = still_knobs(facts.adaptive)
    quiet = tuple(torch.zeros_like(loud).tolist())

    def silence(method: str, count: int = 1) -> Tensor:
        return torch.zeros(count, state_sizes[method])

    odd = play_step(forward, measure.audio[:rows], hops, state=silence("forward", rows), knobs=quiet)
    name = f"blocks of {block} samples" if block else "blocks of 1 to 16 hops in any order, 2 rows,"


    def encode() -> Tensor:
        return play_step(runs["encode"], measure.audio[:rows], hops, state=silence("encode", rows), knobs=quiet)

    answers = verdict(measure, odd, rest, precision="fp32", encode=encode)
    result.add(f"{name} equal the plain model", *answers)

    single = play_step(forward, measure.audio[:1], [unit], state=silence("forward"), knobs=quiet)
    latents = play_step(runs["encode"], measure.audio[:1], [unit], state=silence("encode"), knobs=quiet)
    halves = play_step(runs["decode"], latents, [unit // facts.hop], state=silence("decode"), knobs=quiet)
    error, decibels = difference(halves, single)
    answer = f"max error {error:.1e} ({decibels:.0f} dB)"
    result.add("encode, then decode, equals forward", decibels <= TOLERANCE_DB, answer)

    again = play_step(forward, measure.audio[:1, :, : 4 * unit], [unit], state=silence("forward"), knobs=quiet)
    same = torch.equal(again, single[..., : 4 * unit])
    answer = "bit-equal to the first run" if same else "the first blocks differ"
    result.add("a state of zeros forgets everything", same, answer)

    garbage = torch.zeros(1, facts.channels, 4 * unit)
    garbage[..., 0], garbage[..., 1], garbage[..., 2], garbage[..., 3] = math.nan, math.inf, -math.inf, 4e21
    noisy = play_step(forward, garbage, [unit], state=silence("forward"), knobs=loud.tolist())
    bad = int((~torch.isfinite(noisy)).sum())
    controls = torch.full((1, facts.latent_size, unit // facts.hop), math.nan)
    bad += int((~torch.isfinite(runs["decode"](controls, loud, silence("decode"))[0])).sum())
    answer = f"{bad} samples are not finite"
    result.add("NaN, inf and garbage at the input leave the output finite", bad == 0, answer)
    return result


@dataclass(frozen=True)
class Rhythm:
    """What it takes to time ``forward``.

    Attributes:
        sample_rate, hop, channels: of the model.
        state_size: numbers of state per row.
        hops: block sizes.
        knobs: as a host finds them.
    """

    sample_rate: int
    hop: int
    channels: int
    state_size: int
    hops: tuple[int, ...]
    knobs: Tensor


def time_run(load: Callable[[Path], Run], path: Path, rhythm: Rhythm, seconds: float) -> Speed:
    """Load ``forward`` and play noise through it, with one thread."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    run = load(path)
    loaded = time.perf_counter() - start
    first: list[float] = []
    times = []
    for hops in rhythm.hops:
        x = 0.1 * torch.randn(1, rhythm.channels, hops * rhythm.hop)
        call = partial(run, x, rhythm.knobs, torch.zeros(1, rhythm.state_size))
        budget = hops * rhythm.hop / rhythm.sample_rate
        settled, early = time_calls(call, hops=hops, budget=budget, seconds=seconds)
        first = first or early
        times.append(settled)
    return Speed(loaded, tuple(first), times[0].budget, tuple(times))


def measure_run(
    load: Callable[[Path], Run],
    path: Path,
    facts: HostFacts,
    *,
    state_size: int = 0,
    block: int | None = None,
    seconds: float = SECONDS_PER_SIZE,
) -> Speed:
    """``time_run`` in a process that has never seen the model.

    Args:
        load: opens the file.
        path: of ``forward``.
        facts: numbers of the model.
        state_size: numbers of state per row.
        block: samples of every block when the file knows no other.
        seconds: to spend on each size, at most.
    """
    hops = (block // facts.hop,) if block else (1, 2, 4)
    rhythm = Rhythm(facts.sample_rate, facts.hop, facts.channels, state_size, hops, still_knobs(facts.adaptive))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(time_run, load, path, rhythm, seconds).result()


def finish(
    load: Callable[[Path], Run],
    passing: Mapping[str, Path],
    measured: Measured,
    *,
    state_sizes: Mapping[str, int],
    block: int | None,
    path: Path,
    time_it: bool,
) -> Verification:
    """Load files anew, verify them and time ``forward``.

    Raises:
        ExportFailed: they are not what they claim.
    """
    runs = {method: load(file) for method, file in passing.items()}
    verification = verify_steps(runs, measured, state_sizes=state_sizes, block=block)
    if not verification.passed:
        reasons = "\n  ".join(verification.failures())
        raise ExportFailed(f"the files failed their verification and were not kept ({path}):\n  {reasons}")
    if time_it:
        state_size = state_sizes["forward"]
        verification.speed = measure_run(load, passing["forward"], measured.facts, state_size=state_size, block=block)
    return verification


def describe_written(written: Written) -> list[str]:
    """A table of everything measured, one row per line."""
    facts = written.facts
    milliseconds = 1000 / facts.sample_rate
    rows = [(method, f"{path} ({path.stat().st_size / 1e6:.1f} MB)") for method, path in written.paths.items()]
    rows += [
        ("sample rate", f"{facts.sample_rate} Hz"),
        ("channels", f"{facts.channels} in, {facts.target_channels} out"),
        ("ratio", f"{facts.hop} samples per latent ({facts.hop * milliseconds:.1f} ms)"),
        ("latents", f"{facts.latent_size} of {facts.full_latent_size}"),
        ("latency", f"{facts.latency} samples = {facts.latency * milliseconds:.1f} ms"),
        ("", f"of which {facts.offset} samples shift the analysis grid"),
        ("blocks", f"{written.block} samples, one row" if written.block else "any number of hops and rows"),
        ("state", ", ".join(f"{method} {size}" for method, size in written.state_sizes.items()) + " numbers per row"),
    ]
    checks = written.verification.checks
    rows += [("ok" if check.passed else "FAILED", f"{check.name}: {check.answer}") for check in checks]
    if written.verification.speed is not None:
        rows += describe_speed(written.verification.speed, facts)
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
