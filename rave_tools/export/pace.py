"""How fast any nn~ file plays: in a process of its own, as a host loads it, with one thread as hosts should run it."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from rave_tools.export.speed import FEWEST_BLOCKS, LOAD_BLOCKS, BlockTimes, Speed
from rave_tools.export.subject import Method, Subject
from rave_tools.findings import Finding, unknown

COMFORTABLE, TIGHT = 0.5, 1.0
"""Real-time factors: under the first there is room for everything else that a computer does, over the second none."""

SLOW_START = 0.1
"""Seconds of the first blocks together, beyond their budget, that a player notices as a gap."""

HOPS = (1, 2, 4)
MOST_BLOCKS = 1000


def time_way(
    path: str, way: Sequence[tuple[str, int]], ratio: int, *, rate: int, hops: Sequence[int], seconds: float
) -> Speed:
    """Load a file and play noise through some of its methods, one after the other, with one thread.

    Args:
        path: of the file.
        way: (method, its channels in), the first of which takes audio.
        ratio: samples per hop.
        rate: in hertz.
        hops: block sizes.
        seconds: to spend on each size, at most, unless FEWEST_BLOCKS take longer.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    module = torch.jit.load(path, map_location="cpu").eval()
    load = time.perf_counter() - start
    methods = [getattr(module, name) for name, _ in way]
    first: list[float] = []
    times = []
    with torch.inference_mode():
        for count in hops:
            x = 0.1 * torch.randn(1, way[0][1], count * ratio)
            spent: list[float] = []
            while len(spent) < FEWEST_BLOCKS or (sum(spent) < seconds and len(spent) < MOST_BLOCKS):
                start = time.perf_counter()
                y = x
                for method in methods:
                    y = method(y)
                spent.append(time.perf_counter() - start)
            first = first or spent[:LOAD_BLOCKS]
            steady = sorted(spent[LOAD_BLOCKS + 1 :])
            median, worst = steady[len(steady) // 2], steady[int(0.99 * (len(steady) - 1))]
            times.append(BlockTimes(count, count * ratio / rate, median, worst, len(steady)))
    return Speed(load, tuple(first), times[0].budget, tuple(times))


def measure_pace(subject: Subject, rate: int, *, hops: Sequence[int] = HOPS, seconds: float = 1.0) -> list[Finding]:
    """Real-time factors, load time and first blocks of the way from audio to audio, or of each method by itself.

    Args:
        subject: the file.
        rate: in hertz, at which it is played.
        hops: block sizes in multiples of the largest ratio.
        seconds: to spend on each size.
    """
    audio = [method for method in subject.methods.values() if method.ratio_in == 1]
    way: tuple[Method, ...] = subject.through or tuple(audio[:1])
    if not way:
        return [unknown("real-time factor", "no method takes audio", where="METHOD_params")]
    names = [(method.name, method.channels_in) for method in way]
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            speed = pool.submit(
                time_way, str(subject.path), names, subject.ratio, rate=rate, hops=tuple(hops), seconds=seconds
            ).result()
    except BrokenProcessPool:
        return [Finding(
            "error", "real-time factor", "a fresh process that played it ended at once", "a host would end too",
            "export it again", " + ".join(name for name, _ in names),
        )]  # fmt: skip
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        return [unknown("real-time factor", f"playing it fails: {lines[-1][:120]}", where="a fresh process")]
    return judge_pace(speed, subject.ratio, " + ".join(name for name, _ in names))


def _load() -> str:
    """How busy the machine is with everything, where the system tells it: other work makes times longer."""
    if not hasattr(os, "getloadavg"):
        return ""
    return f" (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)"


def judge_pace(speed: Speed, ratio: int, what: str) -> list[Finding]:
    """Words for measured times.

    Args:
        speed: as `time_way` measured it.
        ratio: samples per hop.
        what: the methods that were played.
    """
    findings = []
    for times in speed.times:
        factor = times.real_time_factor
        seen = f"{factor:.3f} for blocks of {times.hops * ratio} samples: median {1000 * times.median:.2f} ms, 99 % "
        seen += f"under {1000 * times.worst:.2f} ms, of {1000 * times.budget:.1f} ms ({times.blocks} blocks)"
        where = f"{what}, 1 thread, a fresh process on this machine{_load()}"
        if factor < COMFORTABLE:
            findings.append(Finding("ok", "real-time factor", f"{seen}; under {COMFORTABLE}", where=where))
        elif factor < TIGHT:
            findings.append(Finding(
                "warning", "real-time factor", f"{seen}; over {COMFORTABLE}",
                "dropouts when the computer does anything else", "a larger block, or a smaller model", where,
            ))  # fmt: skip
        else:
            findings.append(Finding(
                "error", "real-time factor", f"{seen}; over {TIGHT}", "slower than real time: constant dropouts here",
                "a larger block, a smaller model, or a faster machine", where,
            ))  # fmt: skip
    over = sum(speed.first) - speed.budget * len(speed.first)
    first = " and ".join(f"{1000 * seconds:.0f}" for seconds in speed.first)
    seen = f"loads in {1000 * speed.load:.0f} ms, first blocks take {first} ms of {1000 * speed.budget:.1f} ms each"
    if over > SLOW_START:
        findings.append(Finding(
            "note", "start", f"{seen}: {1000 * over:.0f} ms late (threshold {1000 * SLOW_START:.0f} ms)",
            "a gap when it starts in a host that plays already: the compiler specialises the graph",
            "a frozen export starts faster; play silence through it before the concert", what,
        ))  # fmt: skip
    else:
        findings.append(Finding("ok", "start", seen, where=what))
    return findings
