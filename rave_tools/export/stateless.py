"""Files without a memory of their own: how they are checked, kept and described, whatever their format.

A format gives one file per method and a way to run them: ``(x, knobs, state) -> (y, state)``.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from rave_tools.errors import UserError
from rave_tools.export.deliver import ExportFailed
from rave_tools.export.nn_tilde import HostFacts
from rave_tools.export.prepare import ExportOptions, Measured
from rave_tools.export.pure import METHODS
from rave_tools.export.verify import BLOCKS, TOLERANCE_DB, Verification, cut, difference, make_measure

Run = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""One loaded method: (x, knobs, state) -> (y, state), audio as (B, C, T)."""

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


def refuse_options(name: str, options: ExportOptions) -> None:
    """Refuse what only a file with a memory and a queue of its own can do.

    Args:
        name: of the format.
        options: of the export.

    Raises:
        UserError: names the flag.
    """
    if not options.streaming:
        raise UserError(f"--nostreaming: --format {name} carries its state from block to block; leave the flag out")
    if options.buffered:
        raise UserError(f"--buffered: --format {name} has no queue, its host hands over whole hops; leave the flag out")
    if options.precision != "fp32":
        raise UserError(f"--precision {options.precision}: --format {name} is written in fp32; leave the flag out")


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
    inputs = {"method": method, "knobs": ["temperature", "noise"], "state_size": state_size, "block": block}
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


def play_step(run: Run, x: Tensor, sizes: list[int], *, state: Tensor, knobs: tuple[float, float] = QUIET) -> Tensor:
    """Feed a method block by block.

    Args:
        run: the method.
        x: shape (B, C, T).
        sizes: of the blocks, repeated.
        state: before the first block. Shape (B, state_size).
        knobs: temperature and noise.

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

    def silence(method: str, count: int = 1) -> Tensor:
        return torch.zeros(count, state_sizes[method])

    odd = play_step(forward, measure.audio[:rows], hops, state=silence("forward", rows))
    error, decibels = measure.compare(odd, rest)
    name = f"blocks of {block} samples" if block else "blocks of 1 to 16 hops in any order, 2 rows,"
    result.add(f"{name} equal the plain model", decibels <= TOLERANCE_DB, f"max error {error:.1e} ({decibels:.0f} dB)")

    single = play_step(forward, measure.audio[:1], [unit], state=silence("forward"))
    latents = play_step(runs["encode"], measure.audio[:1], [unit], state=silence("encode"))
    halves = play_step(runs["decode"], latents, [unit // facts.hop], state=silence("decode"))
    error, decibels = difference(halves, single)
    answer = f"max error {error:.1e} ({decibels:.0f} dB)"
    result.add("encode, then decode, equals forward", decibels <= TOLERANCE_DB, answer)

    again = play_step(forward, measure.audio[:1, :, : 4 * unit], [unit], state=silence("forward"))
    same = torch.equal(again, single[..., : 4 * unit])
    answer = "bit-equal to the first run" if same else "the first blocks differ"
    result.add("a state of zeros forgets everything", same, answer)

    garbage = torch.zeros(1, facts.channels, 4 * unit)
    garbage[..., 0], garbage[..., 1], garbage[..., 2], garbage[..., 3] = math.nan, math.inf, -math.inf, 4e21
    noisy = play_step(forward, garbage, [unit], state=silence("forward"), knobs=(1.0, 1.0))
    bad = int((~torch.isfinite(noisy)).sum())
    controls = torch.full((1, facts.latent_size, unit // facts.hop), math.nan)
    bad += int((~torch.isfinite(runs["decode"](controls, torch.ones(2), silence("decode"))[0])).sum())
    answer = f"{bad} samples are not finite"
    result.add("NaN, inf and garbage at the input leave the output finite", bad == 0, answer)
    return result


def finish(
    runs: Mapping[str, Run], measured: Measured, *, state_sizes: Mapping[str, int], block: int | None, path: Path
) -> Verification:
    """Verify loaded files.

    Raises:
        ExportFailed: they are not what they claim.
    """
    verification = verify_steps(runs, measured, state_sizes=state_sizes, block=block)
    if not verification.passed:
        reasons = "\n  ".join(verification.failures())
        raise ExportFailed(f"the files failed their verification and were not kept ({path}):\n  {reasons}")
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
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
