"""Streaming exports beside acids-rave's own, in turn, one thread; exits with 1 where a floor is missed.

    python benchmarks/streaming.py --peer FOLDER [--ours FOLDER] [--blocks 2048 8192] [--long] [NAME ...]

FOLDER of the peer is what benchmarks/make_peer_exports.py wrote. Ours are made here at full size with random weights
by the product's own export, and kept under a name that hashes the sources. A NAME joins configurations by +, such as
v2+causal. Times are of `forward` by the thread's own clock, which other work on the machine disturbs less; p99.9 is by
the wall clock. First blocks, allocations and memory come from fresh processes of the block host in tests/host; `--long`
plays 10,000 blocks there. Of exports for any processor and for x86 the quicker one has to reach a floor; the row says
which it was.
"""

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rave_tools import config  # noqa: E402
from rave_tools.errors import UserError  # noqa: E402
from rave_tools.export.deliver import export  # noqa: E402
from rave_tools.export.prepare import ExportOptions  # noqa: E402
from tests.host import build  # noqa: E402

NAMES = ("v1", "v2", "v2_small", "v3", "discrete", "raspberry", "v2+causal", "v2_small+causal", "brave")
VARIANTS = (("fp32", "any"), ("fp32", "x86"), ("bf16", "any"), ("bf16", "x86"), ("fp16", "x86"))
FASTER = {
    ("v2", "fp32"): 2.2,
    ("v2", "bf16"): 3.5,
    ("v1", "fp32"): 1.5,
    ("v2_small", "fp32"): 1.5,
    ("v3", "fp32"): 2.2,
    ("discrete", "fp32"): 2.0,
}
"""At block 2048, how many times as fast as the peer."""
FASTER_BLOCK, LARGE_BLOCK, LOW_LATENCY_BLOCK = 2048, 8192, 128
ALLOCATIONS_SHARE = 0.1
LATENTS = 8
BURST = 6
"""Blocks in a row of one file; the first is not counted, since another file's weights lie in the cache."""
LONG_BLOCKS, MEGABYTES = 10_000, 1.0


@dataclass
class File:
    """One export, and what was measured of it.

    Attributes:
        path: of the archive.
        precision, processor: of ours; empty for the peer's.
        wall, cpu: milliseconds per block by block size.
        first, allocations: of a fresh host, at the first block size; milliseconds and calls per block.
        growth: megabytes over ten thousand blocks, or None.
        long_worst: p99.9 in milliseconds over them.
    """

    path: Path
    precision: str = ""
    processor: str = ""
    wall: dict[int, list[float]] = field(default_factory=dict)
    cpu: dict[int, list[float]] = field(default_factory=dict)
    first: float = 0.0
    allocations: float = 0.0
    growth: float | None = None
    long_worst: float | None = None


def digest() -> str:
    """Of everything that our exports depend on."""
    sources = sorted([*(ROOT / "rave_tools").rglob("*.py"), *(ROOT / "configs").rglob("*.gin")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources) + torch.__version__.encode()).hexdigest()[:8]


def our_file(name: str, precision: str, processor: str, folder: Path) -> File:
    """Export a configuration with random weights, or find it exported."""
    path = folder / f"{name}-{precision}-{processor}-{digest()}.ts"
    if not path.exists():
        torch.manual_seed(0)
        codec = config.load(name.split("+"), []).build("CODEC").eval()
        size = min(LATENTS, codec.latent_dim)
        options = ExportOptions(latent_size=size, precision=precision, processor=processor)
        try:
            export(codec, path, options=options, time_it=False)
        except UserError as error:
            if "--latent_size" not in str(error):
                raise
            options = ExportOptions(precision=precision, processor=processor)  # codes cannot be cut
            export(codec, path, options=options, time_it=False)
    return File(path, precision, processor)


def time_in_turn(files: list[File], block: int, rounds: int) -> None:
    """Bursts of each file in turn, in another order each round; fills ``wall`` and ``cpu``."""
    modules = []
    x = 0.1 * torch.randn(1, 1, block, generator=torch.Generator().manual_seed(0))
    order = list(range(len(files)))
    shuffle = random.Random(0)
    with torch.inference_mode():
        for file in files:
            module = torch.jit.load(str(file.path), map_location="cpu").eval()
            for _ in range(4):
                module(x)
            modules.append(module)
            file.wall[block], file.cpu[block] = [], []
        for _ in range(rounds):
            shuffle.shuffle(order)
            for i in order:
                for place in range(BURST):
                    wall, cpu = time.perf_counter(), time.thread_time()
                    modules[i](x)
                    if place:
                        files[i].wall[block].append(1000 * (time.perf_counter() - wall))
                        files[i].cpu[block].append(1000 * (time.thread_time() - cpu))


def ratio(peer: File, ours: File, block: int) -> float:
    """Median over the rounds of how many times as fast ours is."""
    size = BURST - 1
    rounds = range(0, len(ours.cpu[block]), size)
    medians = [
        statistics.median(peer.cpu[block][i : i + size]) / statistics.median(ours.cpu[block][i : i + size])
        for i in rounds
    ]
    return statistics.median(medians)


def play_in_host(host: Path, path: Path, block: int, *arguments: object) -> dict:
    """The report of a fresh host."""
    command = [str(host), str(path), "--block", str(block), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{path.name} does not play in the block host: {done.stderr.strip()}")
    report = json.loads(done.stdout)
    if report["objects"][0]["errors"] or report["objects"][0]["nonfinite"]:
        raise SystemExit(f"{path.name}: the host counted failing blocks or samples that are not finite")
    return report


def ask_host(host: Path, file: File, block: int, long: bool) -> None:
    """First block, allocations and, if asked, memory."""
    reports = [play_in_host(host, file.path, block, "--blocks", 40)["objects"][0] for _ in range(3)]
    file.first = statistics.median(report["first_ms"][0] for report in reports)
    file.allocations = reports[0]["allocations"]["thread"]["p50"]
    if long:
        report = play_in_host(host, file.path, block, "--blocks", LONG_BLOCKS, "--warm", 200)
        file.growth = report["rss_mb"]["end"] - report["rss_mb"]["playing"][0]
        file.long_worst = report["objects"][0]["wall_ms"]["p999"]


def percentile(values: list[float], share: float) -> float:
    """Of a list of any order."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def row(name: str, block: int, peer: File | None, ours: File) -> str:
    """One line of the table."""
    mine = statistics.median(ours.cpu[block])
    theirs = f"{statistics.median(peer.cpu[block]):8.2f}" if peer else f"{'-':>8s}"
    times = f"{ratio(peer, ours, block):6.2f}x" if peer else f"{'-':>7s}"
    worst = percentile(ours.wall[block], 0.999) if ours.long_worst is None else ours.long_worst
    calls = f"{peer.allocations if peer else 0:6.0f} {ours.allocations:6.0f}"
    load = 100 * mine / (1000 * block / 44100)
    grown = "" if ours.growth is None else f" {ours.growth:+7.2f}"
    return (
        f"{name:16s} {ours.precision:5s} {ours.processor:4s} {block:5d} {theirs} {mine:8.2f} {times} {load:6.1f}% "
        f"{worst:9.2f} {calls} {ours.first:8.1f} {ours.path.stat().st_size / 1e6:6.1f}{grown}"
    )


def missed(name: str, peer: File | None, ours: list[File], blocks: list[int]) -> list[str]:
    """The project's floors that these measurements do not reach, in words."""
    found = []
    for file in ours:
        label = f"{name} {file.precision} {file.processor}"
        budget = 1000 * blocks[0] / 44100
        if file.first >= budget:
            found.append(f"{label}: the first block takes {file.first:.1f} ms, not below {budget:.1f}")
        if peer and file.allocations > ALLOCATIONS_SHARE * peer.allocations:
            most = ALLOCATIONS_SHARE * peer.allocations
            found.append(f"{label}: {file.allocations:.0f} allocations per block, more than {most:.0f}")
        if file.growth is not None and file.growth > MEGABYTES:
            found.append(f"{label}: memory grew by {file.growth:.1f} MB over {LONG_BLOCKS} blocks")
        if name in ("discrete", "brave"):
            for block in blocks:
                spent = statistics.median(file.cpu[block])
                if spent >= 1000 * block / 44100:
                    found.append(f"{label}: {spent:.1f} ms for a block of {block} is slower than real time")
    for precision in {file.precision for file in ours} if peer else ():
        choices = [file for file in ours if file.precision == precision]
        for block in blocks:
            floor = FASTER.get((name, precision), 1.0) if block == FASTER_BLOCK else 1.0
            if block not in (FASTER_BLOCK, LARGE_BLOCK):
                continue
            reached, best = max((ratio(peer, file, block), file.processor) for file in choices)
            if reached < floor:
                found.append(f"{name} {precision} at {block}: {reached:.2f}x (processor {best}), not {floor}x")
    return found


def main() -> int:
    """Parse, export, measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME")
    parser.add_argument("--peer", type=Path, required=True, help="folder of the peer's exports")
    parser.add_argument("--ours", type=Path, default=ROOT / "benchmarks" / "exports", help="folder for ours")
    parser.add_argument("--blocks", type=int, nargs="+", default=[FASTER_BLOCK, LARGE_BLOCK])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--variants", nargs="+", default=["-".join(variant) for variant in VARIANTS])
    parser.add_argument("--long", action="store_true", help=f"also {LONG_BLOCKS} blocks in the host")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.ours.mkdir(parents=True, exist_ok=True)
    host = build.build()
    head = f"{'':16s} {'':10s} {'block':>5s} {'ms peer':>8s} {'ms ours':>8s} {'ratio':>7s} {'load':>7s} {'p99.9':>9s}"
    print(f"{head} {'allocations':>13s} {'1st ms':>8s} {'MB':>6s}{'  growth' if arguments.long else ''}", flush=True)
    failures = []
    for name in arguments.names:
        blocks = [LOW_LATENCY_BLOCK] if name == "brave" else arguments.blocks
        peer = None if name == "brave" else File(arguments.peer / f"{name}.ts")
        if peer and not peer.path.is_file():
            raise SystemExit(f"{peer.path} is missing: make it with benchmarks/make_peer_exports.py")
        ours = [our_file(name, *variant.split("-"), arguments.ours) for variant in arguments.variants]
        files = [*([peer] if peer else []), *ours]
        for file in files:
            ask_host(host, file, blocks[0], arguments.long and file is not peer)
        for block in blocks:
            time_in_turn(files, block, arguments.rounds)
            for file in ours:
                print(row(name, block, peer, file), flush=True)
        failures += missed(name, peer, ours, blocks)
    for failure in failures:
        print(f"MISSED {failure}")
    print(f"{len(failures)} floors missed" if failures else "every floor reached")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
