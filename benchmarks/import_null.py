"""Import runs of acids-rave and subtract what it plays from what the imported runs play: a null test.

    python benchmarks/make_peer_runs.py FOLDER SOUND NAME ...     # with a Python that has acids-rave
    python benchmarks/import_null.py FOLDER OUTPUT [NAME ...]     # with ours

Random parts are fed the same numbers: latents are the means on both sides, the noise branch hears what the peer drew.
Printed for each run, with its weights and with its averaged ones: the largest error of the audio against the peer's
(`error`), beside that of the peer's own rounding (`rounding`: its audio against its own in double precision); the
residual in dB below the audio; and the same residual with both sides in double precision, where rounding is out of the
way (`exact dB`). Where a run has a next.pt, one update is made of the imported run as well, and printed is how far its
decoder's weights end from the peer's, relative to the way that they went. The exit code is 1 where an error is above
1e-5.
"""

import contextlib
import io
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from rave_tools import config
from rave_tools.cli import opening
from rave_tools.cli.main import main as rave_tools
from rave_tools.contracts import AudioBatch
from rave_tools.runs import RunDirectory, open_run
from rave_tools.training import run as training

LIMIT = 1e-5


@contextmanager
def fed(uniform: list[Tensor]) -> Iterator[None]:
    """Let torch.rand_like return what was drawn elsewhere, to those who ask for as much."""
    own, drawn = torch.rand_like, {one.numel(): one for one in uniform}

    def feed(like: Tensor) -> Tensor:
        return drawn[like.numel()].reshape(like.shape).to(like) if like.numel() in drawn else own(like)

    torch.rand_like = feed
    try:
        yield
    finally:
        torch.rand_like = own


def decibels(error: Tensor, of: Tensor) -> float:
    """Level of an error relative to a signal."""
    return 10 * math.log10(max(float(error.double().square().mean() / of.double().square().mean()), 1e-30))


@torch.no_grad()
def play(run: Path, x: Tensor, latent: Tensor, uniform: list[Tensor], *, ema: bool) -> tuple[Tensor, Tensor]:
    """Latents and audio of an imported run, in the precision of the sound.

    Decoders that hear noise beside the latents are given the peer's.
    """
    codec, _ = opening.open_codec(str(run), ema=ema)
    own = codec.to(x.dtype).encode(x, deterministic=True).z
    with fed(uniform):
        return own, codec.decode(torch.cat([own, latent[:, own.shape[1] :]], 1))


def row(run: Path, answer: dict[str, Any], *, ema: bool) -> tuple[float, ...]:
    """Errors of latents and audio, the peer's rounding, both residuals, and the level of the audio in dBFS."""
    x, latent, audio, uniform = (answer[key] for key in ("x", "latent", "audio", "uniform"))
    own, heard = play(run, x, latent, uniform, ema=ema)
    _, exact = play(run, x.double(), answer["exact_latent"], uniform, ema=ema)
    return (
        float((own - latent[:, : own.shape[1]]).abs().max()),
        float((heard - audio).abs().max()),
        float((audio - answer["exact_audio"]).abs().max()),
        decibels(heard - audio, audio),
        decibels(exact - answer["exact_audio"], audio),
        decibels(audio, torch.ones(1)),
    )


class OneWindow(LightningDataModule):
    """The same window, again and again."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.batch, self.n_signal, self.start_batch, self.waited = 1, x.shape[-1], 0, 0.0
        self._batches = DataLoader([AudioBatch(x, torch.zeros(1, x.shape[-1], dtype=torch.bool), [{}])], None)

    def describe(self) -> list[str]:
        """Nothing to say."""
        return []

    def train_dataloader(self) -> DataLoader[AudioBatch]:
        """The window."""
        return self._batches

    val_dataloader = train_dataloader


def update(run: Path, theirs: dict[str, Any]) -> float:
    """Distance of the decoder's weights from the peer's after one update, relative to the peer's way."""
    opened = open_run(run)
    wrapper = config.load([], text=opened.config_text).build_argument(training.train, "wrapper")
    wrapper._latent_noise = lambda audio: theirs["gaussian"][0]
    before = opened.part("codec")
    with tempfile.TemporaryDirectory() as temporary, fed(theirs["uniform"]):
        training.train(
            wrapper=wrapper, data=OneWindow(theirs["x"]), run=RunDirectory(temporary).create(),
            config_text=opened.config_text, resume={**opened.extra, "state_dict": opened.state_dict},
            max_steps=opened.step + 1, val_every=10**9, accelerator="cpu", progress=False, estimate=False,
        )  # fmt: skip
    after, expected = wrapper.codec.state_dict(), theirs["weights"]
    way = sum(float((expected[name] - before[name]).square().sum()) for name in expected)
    return math.sqrt(sum(float((after[name] - expected[name]).square().sum()) for name in expected) / way)


def main(folder: Path, output: Path, *names: str) -> int:
    """Import and compare every run, or those that are named."""
    torch.set_num_threads(1)
    worst = 0.0
    found = [path.name for path in sorted(folder.iterdir()) if (path / "heard.pt").is_file()]
    print(f"{'run':<32}{'weights':<9}{'import s':>9}{'latents':>10}{'error':>10}{'rounding':>10}"
          f"{'null dB':>9}{'exact dB':>10}{'level dBFS':>12}")  # fmt: skip
    for name in names or found:
        start, said = time.perf_counter(), io.StringIO()
        if not (output / name).exists():
            with contextlib.redirect_stdout(said):
                code = rave_tools(["import", "--run", str(folder / name), "--output", str(output / name)])
            if code:
                return code
        took = time.perf_counter() - start
        for which, answer in torch.load(folder / name / "heard.pt", weights_only=True).items():
            latents, error, rounding, null, exact, level = row(output / name, answer, ema=which == "ema")
            worst = max(worst, error)
            print(f"{name:<32}{which:<9}{took:>9.1f}{latents:>10.1e}{error:>10.1e}{rounding:>10.1e}"
                  f"{null:>9.1f}{exact:>10.1f}{level:>12.1f}", flush=True)  # fmt: skip
        if (folder / name / "next.pt").is_file():
            off = update(output / name, torch.load(folder / name / "next.pt", weights_only=True))
            print(f"{name:<32}next update: {off:.2%} of the way off", flush=True)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
