"""Write tests/fixtures/import/*.pt by training and running acids-rave on tiny models; its README says what they hold.

Run with a Python that can import `rave` (the PyPI package acids-rave 2.3.1) and `scripts` (its commands), never as
part of the tests:

    python benchmarks/make_import_fixtures.py tests/fixtures/import [name ...]
"""

import io
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytorch_lightning as pl
import scipy.signal
import torch
from torch import Tensor, nn

# Its newest release expects scipy before 1.13 and numpy before 2.4: these names and arguments have moved since.
_firwin, _kaiserord = scipy.signal.firwin, scipy.signal.kaiserord
scipy.signal.kaiser = scipy.signal.windows.kaiser
scipy.signal.kaiserord = lambda ripple, width: _kaiserord(ripple, np.asarray(width).item())
scipy.signal.firwin = lambda taps, cutoff, *, window, scale, nyq: _firwin(
    taps, np.asarray(cutoff).item(), window=window, scale=scale, fs=2 * nyq
)

import rave  # noqa: E402
from rave import core  # noqa: E402
from scripts.train import EMA  # noqa: E402

TINY = ("CAPACITY = 2", "LATENT_SIZE = 4")
SMALL_CRITIC = ("discriminator.MultiPeriodDiscriminator.periods = [2, 3]",
                "discriminator.MultiScaleDiscriminator.n_discriminators = 1")
SMALL_NOISE = ("blocks.NoiseGeneratorV2.hidden_size = 4",)
# Windows of the distances and the filter bank: functions of the configuration, rebuilt by whoever loads the weights.
DERIVED = ("pqmf.h", "pqmf.forward_conv", "pqmf.inverse_conv", "audio_distance.", "multiband_audio_distance.")


@dataclass(frozen=True)
class Case:
    """One run of the peer.

    Attributes:
        configs: its configurations.
        overrides: gin bindings on top.
        channels: of the model.
        batches: how many to train on; 0 leaves the run untrained, with lively weights.
        keep: the whole Lightning checkpoint, optimisers and all, instead of the weights.
    """

    configs: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    channels: int = 1
    batches: int = 0
    keep: bool = False
    length: int = 4096


CASES = {
    "v1": Case(("v1.gin",), (*TINY, "discriminator.MultiScaleDiscriminator.n_discriminators = 1")),
    "v2": Case(("v2.gin",), (*TINY, *SMALL_CRITIC, "PHASE_1_DURATION = 4"), batches=9, keep=True),
    "v2_small": Case(("v2_small.gin",), (*TINY, *SMALL_CRITIC, *SMALL_NOISE), length=2048),
    "v2_causal": Case(("v2.gin", "causal.gin"), (*TINY, *SMALL_CRITIC, "PHASE_1_DURATION = 4"), batches=2),
    "v2_noise_stereo": Case(("v2.gin", "noise.gin"), (*TINY, *SMALL_CRITIC, *SMALL_NOISE), channels=2),
}


def build(case: Case) -> rave.RAVE:
    """The model, as the peer's train command builds it."""
    gin.clear_config()
    gin.bind_parameter("RAVE.n_channels", case.channels)
    gin.parse_config_files_and_bindings(list(case.configs), list(case.overrides))
    torch.manual_seed(0)
    return rave.RAVE(n_channels=case.channels)


def enliven(model: nn.Module) -> None:
    """Make weights and statistics differ from their initial form, so that parity proves more than that."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("pqmf."):
                parameter.mul_(0.9 + 0.4 * torch.rand(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
            if name in ("latent_mean", "fidelity"):
                buffer.copy_(torch.linspace(0.1, 1, len(buffer)))
            if name == "latent_pca":
                buffer.copy_(torch.linalg.qr(torch.randn(buffer.shape, generator=generator))[0])


def sound(batch: int, channels: int, length: int, seed: int = 2) -> Tensor:
    """A chord in noise. Shape (batch, channels, length)."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / 44100
    frequency = 80 * 2 ** (5 * torch.rand(batch, channels, 4, 1, generator=generator))
    chord = torch.sin(2 * math.pi * frequency * time).sum(2) / 8
    return chord + 0.02 * torch.randn(batch, channels, length, generator=generator)


def train(model: rave.RAVE, case: Case, folder: Path) -> dict[str, Any]:
    """Train on some batches under Lightning; returns what Lightning saved."""
    # Lightning 2 refuses a model with the hook of Lightning 1; what it does here is done after the training.
    del type(model).validation_epoch_end
    data = torch.utils.data.DataLoader(list(sound(8, case.channels, 32768)), batch_size=2)
    callbacks = [rave.model.WarmupCallback(), rave.model.QuantizeCallback(), rave.model.BetaWarmupCallback(), EMA(0.9)]
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=case.batches, callbacks=callbacks, default_root_dir=str(folder), logger=pl.loggers.TensorBoardLogger(str(folder)),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    # Measured as its validation does, but entered afterwards: the windows here are too short to be cropped by it.
    field = core.get_rave_receptive_field(model.eval(), model.n_channels)
    trainer.fit(model.train(), data)
    model.receptive_field[:] = torch.tensor(field)
    path = folder / "run.ckpt"
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=False)


@contextmanager
def recorded_noise() -> Iterator[list[Tensor]]:
    """Collect what torch.rand_like returned."""
    drawn: list[Tensor] = []
    uniform = torch.rand_like

    def record(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(uniform(*args, **kwargs))
        return drawn[-1].clone()

    torch.rand_like = record
    try:
        yield drawn
    finally:
        torch.rand_like = uniform


@torch.no_grad()
def through(model: rave.RAVE, x: Tensor) -> dict[str, Any]:
    """Audio through the mean of the latents, as the model's forward has it but for the random part."""
    model.eval()
    z = model.encode(x)
    latent = z.chunk(2, 1)[0] if hasattr(model.encoder, "beta") else model.encoder.reparametrize(z)[0]
    with recorded_noise() as uniform:
        audio = model.decode(latent)
    return {"x": x, "latent": latent, "audio": audio, "uniform": uniform}


def make(name: str, folder: Path) -> dict[str, Any]:
    """A fixture."""
    case = CASES[name]
    model = build(case)
    out: dict[str, Any] = {}
    checkpoint = None
    if case.batches:
        checkpoint = train(model, case, folder)
    else:
        enliven(model)
    out["config"] = gin.operative_config_str()
    out["every_key"] = list(model.state_dict())
    out.update(through(model, sound(1, case.channels, case.length)))
    out["checkpoint"] = checkpoint if checkpoint is not None and case.keep else {
        "epoch": 0, "global_step": 0, "pytorch-lightning_version": pl.__version__, "state_dict": dict(model.state_dict())}
    return out


if __name__ == "__main__":
    import tempfile
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as t:
        out = make(sys.argv[2], Path(t))
        torch.save(out, Path(sys.argv[1]) / f"{sys.argv[2]}.raw.pt")
