"""brave's impulse: what a model in a file answers to one sample, in Python and in the block host; ms, and a picture.

    python benchmarks/impulse.py [--config brave] [--block 128] [--picture docs/brave_impulse.png]

The file is made here, at full size with random weights. An untrained model answers an
impulse over its whole receptive field, so the peak says little of its latency; what says it is the delay at which the
stream equals the plain model (the announced latency, asserted here), and where the answer begins. The host adds its
own block: block - 64 samples without a thread. Exits with 1 when brave is later than 10 ms at 44.1 kHz.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rave_tools import config  # noqa: E402
from rave_tools.codec.autoencoder import Autoencoder  # noqa: E402
from rave_tools.export.deliver import export  # noqa: E402
from rave_tools.export.prepare import ExportOptions, assemble  # noqa: E402
from rave_tools.export.verify import make_quiet, play  # noqa: E402
from tests.host import build  # noqa: E402

MOST_MILLISECONDS = 10.0
QUIET = ("--set", "temperature=0", "--set", "noise=0")
RELATIVE_BEGIN = 1e-3
"""An answer begins where it first reaches this share of its peak."""


def in_python(path: Path, audio: Tensor, block: int) -> np.ndarray:
    """What the file answers to (T,) samples, in blocks."""
    module = torch.jit.load(str(path)).eval()
    make_quiet(module)
    return play(module, audio[None, None], [block])[0, 0].double().numpy()


def in_host(path: Path, kind: str, blocks: int, block: int) -> tuple[np.ndarray, dict]:
    """What a listener of the block host hears, and its report."""
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        heard = Path(folder) / "heard.wav"
        command = [str(build.build()), str(path), "--input", kind, "--blocks", str(blocks), "--block", str(block)]
        done = subprocess.run([*command, *QUIET, "--output", str(heard)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return soundfile.read(heard, dtype="float64", always_2d=True)[0][:, 0], json.loads(done.stdout)


def best_shift(late: np.ndarray, early: np.ndarray) -> int:
    """By how many samples ``early`` must be delayed to look most like ``late``."""
    size = 2 * max(len(late), len(early))
    spectrum = np.fft.rfft(late, size) * np.conj(np.fft.rfft(early, size))
    place = int(np.argmax(np.fft.irfft(spectrum, size)))
    return place - size if place > size // 2 else place


def begin(response: np.ndarray) -> int:
    """First sample that reaches a share of the peak."""
    return int(np.argmax(np.abs(response) >= RELATIVE_BEGIN * np.abs(response).max()))


def centre(response: np.ndarray) -> float:
    """Centre of energy, in samples."""
    energy = response**2
    return float((np.arange(len(response)) * energy).sum() / energy.sum())


def measure(path: Path, codec: Autoencoder, options: ExportOptions, block: int) -> dict:
    """Responses in Python, in the host and of the plain model, and what they say."""
    assembled = assemble(codec, options)
    facts, (left, right) = assembled.facts, assembled.receptive_field
    at = -(-(left + facts.latency) // block) * block
    blocks = (at + left + right + facts.latency) // block + 8
    impulse = torch.zeros(blocks * block)
    impulse[at] = 1.0
    silence = torch.zeros_like(impulse)
    streamed = in_python(path, impulse, block) - in_python(path, silence, block)
    answers, report = {}, {}
    for kind in (f"impulse@{at}", "silence"):
        answers[kind[:7]], report = in_host(path, kind, blocks, block)
    heard = answers["impulse"] - answers["silence"]
    moved = torch.roll(impulse, facts.offset)
    plain = (assembled.reference(moved[None, None]) - assembled.reference(silence[None, None]))[0, 0].double().numpy()
    return {
        "facts": facts,
        "at": at,
        "host": report["host_latency"],
        "plain": plain,
        "streamed": streamed,
        "heard": heard,
        "late": best_shift(streamed, plain) + facts.offset,
        "late_in_host": best_shift(heard, plain) + facts.offset,
    }


def draw(found: dict, picture: Path, title: str) -> None:
    """Impulse and answers over milliseconds after the impulse."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    facts, at = found["facts"], found["at"]
    scale = 1000 / facts.sample_rate
    figure, axes = pyplot.subplots(3, 1, figsize=(9, 7), sharex=True)
    rows = (
        ("plain model, offline", found["plain"], 0),
        (f"{title}.ts in blocks, Python", found["streamed"], found["late"]),
        (f"{title}.ts in the block host", found["heard"], found["late_in_host"]),
    )
    for panel, (label, response, late) in zip(axes, rows, strict=True):
        span = slice(at - 200, at + 2200)
        panel.plot((np.arange(*span.indices(len(response))) - at) * scale, response[span], linewidth=0.8)
        panel.axvline(0, color="black", linewidth=0.8, label="impulse")
        if late:
            panel.axvline(
                late * scale, color="tab:red", linestyle="--", label=f"{late} samples = {late * scale:.2f} ms"
            )
        panel.set_title(label, loc="left", fontsize=10)
        panel.legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("ms after the impulse")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> int:
    """Export, play, print, draw, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="brave")
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "brave_impulse.png")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    codec = config.load(arguments.config.split("+"), []).build("CODEC").eval()
    options = ExportOptions(latent_size=min(8, codec.latent_dim))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{arguments.config}.ts"
        export(codec, path, options=options, time_it=False)
        found = measure(path, codec, options, arguments.block)
    facts, at = found["facts"], found["at"]
    scale = 1000 / facts.sample_rate
    plain, streamed, heard = found["plain"], found["streamed"], found["heard"]
    lines = (
        ("announced latency", facts.latency),
        ("stream equals the plain model at", found["late"]),
        ("the same in the host", found["late_in_host"]),
        ("of which the host's own block", found["host"]),
        ("answer begins, offline", begin(plain) - facts.offset - at),
        ("answer begins, Python", begin(streamed) - at),
        ("answer begins, host", begin(heard) - at),
        ("answer peaks, host", int(np.argmax(np.abs(heard))) - at),
        ("centre of energy, offline", centre(plain) - facts.offset - at),
        ("centre of energy, Python", centre(streamed) - at),
        ("centre of energy, host", centre(heard) - at),
    )
    print(f"{arguments.config}, blocks of {arguments.block} at {facts.sample_rate} Hz, random weights")
    for name, samples in lines:
        print(f"{name:34s} {samples:9.1f} samples {samples * scale:8.2f} ms")
    late = found["late"] - facts.offset
    size = len(plain) - max(late, 0)
    error = np.abs(streamed[late : late + size] - plain[:size]).max() / np.abs(plain).max()
    print(f"{'largest difference there':34s} {20 * np.log10(error):9.1f} dB of the peak")
    draw(found, arguments.picture, arguments.config)
    print(f"drew {arguments.picture}")
    failures = []
    if found["late"] != facts.latency:
        failures.append(f"the stream is {found['late']} samples late and announces {facts.latency}")
    if found["late_in_host"] != facts.latency + found["host"]:
        failures.append(f"in the host {found['late_in_host']} samples, not {facts.latency + found['host']}")
    if arguments.config == "brave" and found["late_in_host"] * scale >= MOST_MILLISECONDS:
        failures.append(f"{found['late_in_host'] * scale:.2f} ms in the host, not below {MOST_MILLISECONDS} ms")
    if arguments.config == "brave" and (begin(heard) - at) * scale >= MOST_MILLISECONDS:
        failures.append(f"the answer begins after {(begin(heard) - at) * scale:.2f} ms, not below {MOST_MILLISECONDS}")
    for failure in failures:
        print(f"MISSED {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
