"""Items per second of our dataset beside acids-rave's, in one process each, in turn and never at the same time.

    python benchmarks/data_loading.py --input_path SOUNDS --peer VENV/bin/python [--rounds 7] [--case stored lazy]

Both read the same databases, which `rave_tools preprocess` makes of SOUNDS: so acids-rave is seen to read them.
Default transforms, items in random order, n_signal 131072, mono. The ratio is the median over the rounds, ours / peer.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIGNAL = 131072
ITEMS = {"stored": 400, "lazy": 60}


def ours(database: str) -> Callable[[int], object]:
    """One item of ours."""
    from rave_tools.data.datasets import open_dataset
    from rave_tools.data.transforms import rave_defaults

    dataset = open_dataset(database, n_signal=SIGNAL, split="all", transform=rave_defaults().at(44100))
    draws = iter(range(1 << 40))
    return lambda number: dataset[next(draws), number % len(dataset)][0]


def peer(database: str) -> Callable[[int], object]:
    """One item of acids-rave's."""
    import rave.dataset

    dataset = rave.dataset.get_dataset(database, 44100, SIGNAL, n_channels=1)
    return lambda number: dataset[number % len(dataset)]


def work(side: str, database: str, items: int) -> None:
    """Answer every line on stdin with the seconds that so many items took."""
    out = os.dup(1)
    os.dup2(2, 1)
    item = {"ours": ours, "peer": peer}[side](database)
    generator = random.Random(0)
    for _ in range(5):
        assert item(generator.randrange(1 << 30)).shape == (1, SIGNAL)
    os.write(out, b"ready\n")
    for _ in sys.stdin:
        numbers = [generator.randrange(1 << 30) for _ in range(items)]
        began, began_cpu = time.perf_counter(), time.process_time()
        for number in numbers:
            item(number)
        answer = {"wall": time.perf_counter() - began, "cpu": time.process_time() - began_cpu}
        os.write(out, (json.dumps(answer) + "\n").encode())


class Side:
    """One process that loads items when asked."""

    def __init__(self, side: str, python: str, database: Path, items: int):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if side == "ours":
            environment["PYTHONPATH"] = str(ROOT)
        command = [python, __file__, "--side", side, "--database", str(database), "--items", str(items)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.read()

    def read(self) -> str:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side ended early; its words are above")
        return line

    def ask(self) -> dict[str, float]:
        """Seconds for one portion of items."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self.read())


def main() -> None:
    """Make the databases, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_path", type=Path)
    parser.add_argument("--peer", help="Python of an environment with acids-rave and its ffmpeg")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", nargs="+", default=["stored", "lazy"], choices=tuple(ITEMS))
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--database", help=argparse.SUPPRESS)
    parser.add_argument("--items", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        work(given.side, given.database, given.items)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':7s} {'side':5s} {'items/s':>9s} {'cpu ms':>8s} {'ratio':>8s}")
        for case in given.case:
            database = Path(folder) / case
            command = [sys.executable, "-m", "rave_tools", "preprocess", "--input_path", str(given.input_path)]
            command += ["--output_path", str(database), "--downmix", "first", *(["--lazy"] if case == "lazy" else [])]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
            report(case, database, given)


def report(case: str, database: Path, given: argparse.Namespace) -> None:
    """Measure one case and print its rows."""
    items = ITEMS[case]
    pythons = {"ours": sys.executable, **({"peer": given.peer} if given.peer else {})}
    sides = {side: Side(side, python, database, items) for side, python in pythons.items()}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for round_ in range(given.rounds + 1):
        for name, side in sides.items():
            answer = side.ask()
            if round_:
                found[name].append(answer)
    for name, answers in found.items():
        rate = items / statistics.median(answer["wall"] for answer in answers)
        cpu = statistics.median(answer["cpu"] for answer in answers) / items * 1e3
        ratio = ""
        if name == "ours" and given.peer:
            ratio = (
                f"{statistics.median(p['wall'] / o['wall'] for p, o in zip(found['peer'], answers, strict=True)):7.2f}x"
            )
        print(f"{case:7s} {name:5s} {rate:9.1f} {cpu:8.3f} {ratio}", flush=True)
    for side in sides.values():
        side.process.stdin.close()
        side.process.wait()


if __name__ == "__main__":
    main()
