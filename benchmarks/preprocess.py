"""`rave_tools preprocess` beside `rave preprocess`, on the same files, in turn and never at the same time.

    python benchmarks/preprocess.py --input_path SOUNDS --peer VENV/bin/python [--rounds 5] [--case mono many lazy]

mono: one channel out of the files of SOUNDS (the first --files of them, by name). many: 32 channels
out of a synthesised wav of 32 channels. lazy: the index alone. Wall and processor time of the whole command, the
start of Python included; the ratio is the median over the rounds, peer / ours. Without --peer only ours is measured.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import yaml

ROOT = Path(__file__).resolve().parent.parent
MANY = 32


def command(side: str, python: str, arguments: Sequence[str]) -> list[str]:
    """The command line of a side."""
    if side == "ours":
        return [python, "-m", "rave_tools", "preprocess", *arguments]
    return [str(Path(python).with_name("rave")), "preprocess", *arguments]


def timed(side: str, python: str, arguments: Sequence[str], database: Path) -> dict[str, float]:
    """Run one side once."""
    shutil.rmtree(database, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} if side == "ours" else dict(os.environ)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*command(side, python, arguments), "--output_path", str(database)],
        input="y\n",  # acids-rave asks before it makes a lazy database
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    seconds = yaml.safe_load((database / "metadata.yaml").read_text())["n_seconds"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "seconds": seconds}


def folder_of(source: Path, files: int, work: Path) -> Path:
    """A folder with links to the first so many files."""
    folder = work / "files"
    folder.mkdir()
    for path in sorted(item for item in source.rglob("*") if item.is_file())[:files]:
        (folder / path.name).symlink_to(path)
    return folder


def many_channels(work: Path, seconds: int) -> Path:
    """A folder with two wavs of 32 channels at 24 kHz."""
    folder = work / "many"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(2):
        audio = (0.1 * generator.standard_normal((24000 * seconds // 2, MANY))).clip(-1, 1)
        soundfile.write(folder / f"{number}.wav", audio, 24000, subtype="PCM_16", format="WAV")
    return folder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_path", required=True, type=Path)
    parser.add_argument("--peer", help="Python of an environment with acids-rave and its ffmpeg")
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--many_seconds", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", nargs="+", default=["mono", "many", "lazy"], choices=("mono", "many", "lazy"))
    parser.add_argument("--work", type=Path, help="folder for the databases; a temporary one if not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        work = Path(name)
        files = folder_of(given.input_path, given.files, work)
        print(
            f"{'':6s} {'side':5s} {'wall s':>8s} {'cpu s':>8s} {'stored s':>9s} {'wall ratio':>11s} {'cpu ratio':>10s}"
        )
        for case in given.case:
            folder = many_channels(work, given.many_seconds) if case == "many" else files
            arguments = ["--input_path", str(folder), "--num_signal", "131072"]
            if case == "many":
                arguments += ["--channels", str(MANY), "--sampling_rate", "24000"]
            if case == "lazy":
                arguments += ["--lazy"]
            report(case, arguments, given, work)


def report(case: str, arguments: Sequence[str], given: argparse.Namespace, work: Path) -> None:
    """Measure one case and print its rows."""
    sides = {"ours": sys.executable, **({"peer": given.peer} if given.peer else {})}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for round_ in range(given.rounds + 1):
        for side, python in sides.items():
            result = timed(side, python, arguments, work / f"db_{side}")
            if round_:  # the first round warms the disk's cache
                found[side].append(result)
    ratios = {
        clock: statistics.median(p[clock] / o[clock] for p, o in zip(found["peer"], found["ours"], strict=True))
        for clock in (("wall", "cpu") if given.peer else ())
    }
    for side, results in found.items():
        medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
        end = f" {ratios['wall']:10.2f}x {ratios['cpu']:9.2f}x" if side == "ours" and ratios else ""
        print(
            f"{case:6s} {side:5s} {medians['wall']:8.2f} {medians['cpu']:8.2f} {medians['seconds']:9.1f}{end}",
            flush=True,
        )


if __name__ == "__main__":
    main()
