"""Every configuration at full size, every promise measured: a Markdown table, a row at a time.

    python -m benchmarks.matrix docs/matrix.md [--only 'v2 causal,brave'] [--hosts any,x86] [--rounds 3] [--seconds 0.5]

To be run from the root of a checkout. Weights are random and loud (tests/loud.py), the first steps of a training are
taken with them, then they are exported and played. The cells:

* trains: an update of each player in each phase on one window, all losses and weights finite afterwards; seconds.
* streams: the exported file against the plain model at the announced latency, in blocks of 1 to 16 hops in any order
  and two rows, one hop, and through the queue; the largest difference of all in dB relative to the plain model's peak.
* exports: how many checks of the file's verification passed.
* real-time factor: median time of a block over its duration, one thread, a fresh process per round; the median of all
  rounds, each of which times every size in turn.
* host: the C++ block host plays noise in blocks of one hop on a thread of its own; blocks that were late, once it
  settled.

The exit status is 1 if any cell failed.
"""

import argparse
import copy
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from rave_tools import config
from rave_tools.codec.rave import RAVE
from rave_tools.export.deliver import Delivered, ExportOptions, export
from rave_tools.export.speed import measure_speed
from rave_tools.training import run
from rave_tools.training.autoencoder import AutoencoderTrainingWrapper
from tests.host import build
from tests.loud import make_loud

NAMES = (
    "v1", "v2", "v2_small", "v2_nopqmf", "v2_nopqmf_small", "v2_with_augs", "v3", "discrete", "discrete_v3", "onnx",
    "raspberry", "brave", "v1 causal", "v2 causal", "v2_small causal", "v3 causal", "discrete causal",
    "raspberry causal", "v2 hybrid", "v2 hybrid causal", "v2 noise", "v2 wasserstein", "v2 spherical",
    "v2 spherical causal", "v2 adain snake", "v2_nopqmf causal", "onnx causal", "v2 noise causal",
    "v2 wasserstein causal", "v2 adain", "v2 snake", "v2 no_adversary", "v2 rave_double_weighting",
)  # fmt: skip
HOPS = (1, 2, 4)
HOST_BLOCKS = 200
DECIBELS = re.compile(r"\((-?\d+) dB\)")
COLUMNS = (
    "configuration", "trains", "streams, dB", "exports", "RTF, 1 hop", "RTF, 2 hops", "RTF, 4 hops",
    "latency, samples", "latency, ms", "MB", "C++ host, late blocks",
)  # fmt: skip


@dataclass
class Row:
    """What was measured of a configuration.

    Attributes:
        name: of its files, and of the processor if it is a special one.
        cells: by column; a column without a cell was not reached.
        failed: whether any of them is not as promised.
    """

    name: str
    cells: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def measure(self, columns: Sequence[str], what: Callable[[], Sequence[str]]) -> None:
        """Fill some columns, or say in the first of them why not."""
        try:
            self.cells.update(zip(columns, what(), strict=True))
        except Exception as problem:  # a row tells what failed, and the others go on
            self.failed = True
            self.cells[columns[0]] = f"FAILED: {type(problem).__name__}: {' '.join(str(problem).split())[:160]}"

    def markdown(self) -> str:
        """A line of the table."""
        return f"| {self.name} | " + " | ".join(self.cells.get(column, "-") for column in COLUMNS[1:]) + " |"


def shipped(name: str) -> bool:
    """Whether this checkout has every file of a configuration."""
    return all(any(Path("configs").rglob(f"{word}.gin")) for word in name.split())


def take_steps(wrapper: AutoencoderTrainingWrapper) -> Sequence[str]:
    """An update of each player in each phase."""
    wrapper.train()
    wrapper.combiner.declare(wrapper.declared_losses())
    optimizers = wrapper.configure_optimizers()
    audio = 0.3 * torch.randn(1, wrapper.codec.channels, 2048 * wrapper.codec.bands)
    seconds = []
    for _ in range(3 if wrapper.adversary is not None else 1):
        turn = int(wrapper.discriminator_turn)
        start = time.perf_counter()
        wrapper.zero_grad(set_to_none=True)
        losses = wrapper.discriminator_losses(audio) if turn else wrapper.generator_losses(audio)
        total = losses["discriminator"] if turn else wrapper.combiner(losses)
        total.backward()
        optimizers[turn].step()
        seconds.append(f"{time.perf_counter() - start:.1f}")
        if not all(bool(torch.isfinite(x).all()) for x in (total.detach(), *wrapper.parameters())):
            raise RuntimeError(f"a loss or a weight is not finite: {losses}")
        if turn:
            wrapper.counters.discriminator_updates += 1
        else:
            wrapper.counters.generator_updates += 1
    wrapper.zero_grad(set_to_none=True)
    return [" + ".join(seconds) + " s"]


def look_at(delivered: Delivered) -> Sequence[str]:
    """Streams, exports, latencies, size."""
    checks = delivered.verification.checks
    errors = [int(DECIBELS.findall(check.answer)[0]) for check in checks if "equal the plain model" in check.name]
    passed = sum(check.passed for check in checks)
    latency = delivered.facts.latency
    milliseconds = 1000 * latency / delivered.facts.sample_rate
    size = f"{delivered.size / 1e6:.1f}"
    return [str(max(errors)), f"{passed} of {len(checks)}", f"{latency:,}", f"{milliseconds:.1f}", size]


def time_file(path: Path, rounds: int, seconds: float) -> Sequence[str]:
    """Real-time factors."""
    measured = [measure_speed(path, HOPS, seconds).times for _ in range(rounds)]
    sizes = zip(*measured, strict=True)
    return [f"{statistics.median(times.real_time_factor for times in of_one_size):.3f}" for of_one_size in sizes]


def play_in_host(host: Path, delivered: Delivered) -> Sequence[str]:
    """Late blocks of the block host."""
    command = [host, delivered.path, "--block", delivered.facts.hop, "--blocks", HOST_BLOCKS, "--thread", "worker"]
    command += ["--threads", "1"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr)
    played = json.loads(done.stdout)["objects"][0]
    if played["errors"] or played["nonfinite"]:
        raise RuntimeError(f"{played['errors']} errors ({played['first_error']}), {played['nonfinite']} not finite")
    return [f"{played['late_settled']} of {played['blocks']}"]


def check_loudness(delivered: Delivered) -> None:
    """Two silent models are equal: what is compared must be heard.

    Raises:
        RuntimeError: the file answers noise with next to nothing.
    """
    module = torch.jit.load(str(delivered.path)).eval()
    with torch.inference_mode():
        level = float(module.forward(0.3 * torch.randn(1, delivered.facts.channels, 32 * delivered.facts.hop)).std())
    if not level > 1e-2:
        raise RuntimeError(f"its level is {level:.1e}: verified on nothing")


def measure(name: str, processors: Sequence[str], host: Path, folder: Path, arguments: argparse.Namespace) -> list[Row]:
    """One row per processor."""
    torch.manual_seed(0)
    rows = [Row(name if processor == "any" else f"{name} ({processor})") for processor in processors]
    built: list[AutoencoderTrainingWrapper] = []

    def train() -> Sequence[str]:
        built.append(config.load(name.split(), ["PHASE_1_DURATION = 1"]).build_argument(run.train, "wrapper").eval())
        make_loud(built[0].codec)
        codecs.append(copy.deepcopy(built[0].codec))
        return take_steps(built[0])

    codecs: list[RAVE] = []
    rows[0].measure(["trains"], train)
    if not codecs:
        return rows[:1]
    codec = codecs[0].eval()
    built.clear()
    gc.collect()
    for row, processor in zip(rows, processors, strict=True):
        row.cells.setdefault("trains", rows[0].cells["trains"])
        path = folder / "model.ts"
        delivered: list[Delivered] = []

        def deliver(path: Path = path, processor: str = processor, delivered: list[Delivered] = delivered) -> list[str]:
            delivered.append(export(codec, path, options=ExportOptions(processor=processor), time_it=False))
            check_loudness(delivered[0])
            return list(look_at(delivered[0]))

        row.measure(["streams, dB", "exports", "latency, samples", "latency, ms", "MB"], deliver)
        if not delivered:
            continue
        row.measure(COLUMNS[4:7], partial(time_file, path, arguments.rounds, arguments.seconds))
        row.measure(COLUMNS[-1:], partial(play_in_host, host, delivered[0]))
        path.unlink()
    return rows


def machine() -> str:
    """Processor, cores, versions."""
    described = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", described.read_text()) if described.exists() else []
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, torch {torch.__version__}"


def commit() -> str:
    """Of the checkout, with a mark if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def document(rows: Sequence[Row], arguments: argparse.Namespace, loads: Sequence[float], begun: str) -> str:
    """The page."""
    command = "python -m benchmarks.matrix " + " ".join(f"'{word}'" if " " in word else word for word in sys.argv[1:])
    busy = f"{min(loads):.1f} to {max(loads):.1f}"
    lines = [
        "# Every configuration, measured", "",
        "At full size, mono, 44.1 kHz, random weights. What the columns mean stands in `benchmarks/matrix.py`. Trains:",
        "seconds per step (generator in phase 1, discriminator and generator in phase 2), batch 1. Streams: exported",
        "file against the plain model, largest difference in dB of its peak. RTF: real-time factor, one thread,",
        f"median of {arguments.rounds} rounds in fresh processes; below 1 is faster than real time.", "",
        f"    {command}", "",
        f"{machine()}; {begun}; load average while it ran {busy} (its own work is 1",
        "to 2; more is other work on the machine, which makes times longer).", "",
        "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *(row.markdown() for row in rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print and write row by row; 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="Markdown file to write")
    parser.add_argument("--only", default="", help="configurations, separated by commas")
    parser.add_argument("--hosts", default="any", help="processors to export for, separated by commas: any, x86")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes per real-time factor")
    parser.add_argument("--seconds", type=float, default=0.5, help="per block size and round")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",")] if arguments.only else list(filter(shipped, NAMES))
    host = build.build()
    begun = f"commit {commit()}; begun {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
    rows: list[Row] = []
    loads = [os.getloadavg()[0]]
    print("| " + " | ".join(COLUMNS) + " |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            new = measure(name, arguments.hosts.split(","), host, Path(folder), arguments)
            rows += new
            loads.append(os.getloadavg()[0])
            print("\n".join(row.markdown() for row in new), flush=True)
            arguments.file.write_text(document(rows, arguments, loads, begun))
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
