"""Import runs of acids-rave and subtract what it plays from what the imported runs play: a null test.

    python benchmarks/make_peer_runs.py FOLDER SOUND NAME ...     # with a Python that has acids-rave
    python benchmarks/import_null.py FOLDER OUTPUT [NAME ...]     # with ours

Random parts are fed the same numbers: latents are the means on both sides, the noise branch hears what the peer drew.
Prints for each run, with its weights and with its averaged ones, the largest error of latents and of audio, and the
audio's residual relative to its own level. The exit code is 1 where an error is above 1e-5.
"""

import contextlib
import io
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rave_tools.cli import opening
from rave_tools.cli.main import main as rave_tools

LIMIT = 1e-5


@contextmanager
def fed(uniform: list[Tensor]) -> Iterator[None]:
    """Let torch.rand_like return what was drawn elsewhere."""
    own, drawn = torch.rand_like, iter(uniform)
    torch.rand_like = lambda like: next(drawn).reshape(like.shape)
    try:
        yield
    finally:
        torch.rand_like = own


def decibels(error: Tensor, of: Tensor) -> float:
    """Level of an error relative to a signal."""
    return 10 * math.log10(max(float(error.double().square().mean() / of.double().square().mean()), 1e-30))


@torch.no_grad()
def compare(run: Path, answer: dict[str, Any], *, ema: bool) -> tuple[float, float, float, float]:
    """Largest error of the latents and of the audio, residual in dB, and the level of the audio in dBFS."""
    codec, _ = opening.open_codec(str(run), ema=ema)
    latent = codec.encode(answer["x"], deterministic=True).z
    # Decoders that hear noise beside the latents are given the peer's, its latents may differ by rounding only.
    heard = torch.cat([latent, answer["latent"][:, latent.shape[1] :]], 1)
    with fed(answer["uniform"]):
        audio = codec.decode(heard)
    error, expected = audio - answer["audio"], answer["audio"]
    return (
        float((latent - answer["latent"][:, : latent.shape[1]]).abs().max()),
        float(error.abs().max()),
        decibels(error, expected),
        decibels(expected, torch.ones(1)),
    )


def main(folder: Path, output: Path, *names: str) -> int:
    """Import and compare every run, or those that are named."""
    torch.set_num_threads(1)
    worst = 0.0
    found = [path.name for path in sorted(folder.iterdir()) if (path / "heard.pt").is_file()]
    print(f"{'run':<16}{'weights':<9}{'import s':>9}{'latent':>10}{'audio':>10}{'null dB':>9}{'level dBFS':>12}")
    for name in names or found:
        start, said = time.perf_counter(), io.StringIO()
        if not (output / name).exists():
            with contextlib.redirect_stdout(said):
                code = rave_tools(["import", "--run", str(folder / name), "--output", str(output / name)])
            if code:
                return code
        took = time.perf_counter() - start
        for which, answer in torch.load(folder / name / "heard.pt", weights_only=True).items():
            latent, audio, null, level = compare(output / name, answer, ema=which == "ema")
            worst = max(worst, audio)
            print(f"{name:<16}{which:<9}{took:>9.1f}{latent:>10.1e}{audio:>10.1e}{null:>9.1f}{level:>12.1f}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
