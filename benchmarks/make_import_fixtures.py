"""Write tests/fixtures/import/*.pt.xz by training and running acids-rave on tiny models; the README there says what
they hold.

Run with a Python that can import `rave` (the PyPI package acids-rave) and `scripts` (its commands), never as part of
the tests. Most come from 2.3.1 with Lightning 2, the others from the versions that their cases name:

    python benchmarks/make_import_fixtures.py tests/fixtures/import [name ...]
"""

import copy
import io
import lzma
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import cached_conv
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
import rave.dataset  # noqa: E402
import rave.model  # noqa: E402
from rave import core  # noqa: E402

TINY = ("CAPACITY = 2", "LATENT_SIZE = 4")
SMALL_CRITIC = ("discriminator.MultiPeriodDiscriminator.periods = [2]",
                "discriminator.MultiScaleDiscriminator.n_discriminators = 1")  # fmt: skip
ONE_SCALE = ("discriminator.MultiScaleDiscriminator.n_discriminators = 1",)
SMALL_NOISE = ("blocks.NoiseGeneratorV2.hidden_size = 4",)
SHORT = ("PHASE_1_DURATION = 4", "DILATIONS = [[1], [1], [3], [1, 3]]")
V2 = (*TINY, *SMALL_CRITIC)
FEW = (*V2, "DILATIONS = [[1], [1], [3], [1, 3]]")
FEW_CODES = ("NUM_QUANTIZERS = 2", "CODEBOOK_SIZE = 8", "NOISE_AUGMENTATION = 2")
# Functions of the configuration: left out of the fixtures, made again by the tests.
DERIVED = ("pqmf.", "audio_distance.", "multiband_audio_distance.")


@dataclass(frozen=True)
class Case:
    """One run of the peer.

    Attributes:
        configs: its configurations.
        overrides: gin bindings on top.
        channels: of the model.
        length: samples of the sound.
        batches: how many to train on; 0 leaves the run untrained, with lively weights.
        phase_2: whether an untrained run claims to be in its second phase.
        quantised: whether an untrained run uses its codebooks.
        version: of acids-rave.
        lightning: its major version.
        text: a further configuration, applied last.
    """

    configs: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    channels: int = 1
    length: int = 4096
    batches: int = 0
    phase_2: bool = False
    quantised: bool = False
    version: str = "2.3"
    lightning: int = 2
    text: str = ""


CASES = {
    "v1": Case(("v1.gin",), (*TINY, *ONE_SCALE)),
    "v1_phase_2": Case(("v1.gin",), (*TINY, *ONE_SCALE, "PHASE_1_DURATION = 10"), phase_2=True),
    "v1_stereo": Case(("v1.gin", "causal.gin"), (*TINY, *ONE_SCALE), channels=2),
    "v2": Case(("v2.gin",), (*V2, *SHORT), batches=9),
    "v2_lightning_1": Case(("v2.gin",), (*V2, *SHORT), batches=9, lightning=1),
    "v2_phase_1": Case(("v2.gin", "causal.gin"), (*V2, *SHORT), batches=2),
    "v2_small": Case(("v2_small.gin",), (*V2, *SMALL_NOISE), length=2048),
    "v2_noise_stereo": Case(("v2.gin", "noise.gin"), (*V2, *SMALL_NOISE), channels=2),
    "v2_other_numbers": Case(
        ("v2.gin",),
        (
            *V2, "RATIOS = [4, 2, 2]", "DILATIONS = [1, 2]", "N_BAND = 8", "pqmf.CachedPQMF.attenuation = 60",
            "SAMPLING_RATE = 48000", "blocks.GeneratorV2.capacity = 3", "variational/blocks.EncoderV2.kernel_size = 5",
            "blocks.VariationalEncoder.beta = 0.5",
            "discriminator.ConvNet.n_layers = 2", "RAVE.weights = {'feature_matching': 5, 'audio_distance': 2}",
            "cc.Conv1d.bias = True", "cc.ConvTranspose1d.bias = True",
        ),
        length=8 * 16 * 12,
        text=(
            "from __gin__ import dynamic_registration\nimport rave\nfrom rave import core\n"
            "rave.RAVE.gan_loss = @core.ls_gan"
        ),
    ),
    "v2_adain_snake": Case(("v2.gin", "adain.gin", "snake.gin", "noise.gin"), (*FEW, *SMALL_NOISE)),
    "v2_spectral_discriminator": Case(
        ("v2.gin", "spectral_discriminator.gin"),
        (
            *FEW,
            "discriminator.EncodecConvNet.capacity = 2",
            "discriminator.MultiScaleSpectralDiscriminator.scales = [64]",
        ),
    ),
    "wasserstein": Case(("v2.gin", "wasserstein.gin"), (*FEW, "NOISE_AUGMENTATION = 2"), batches=2),
    "spherical": Case(("v2.gin", "spherical.gin"), FEW),
    "discrete": Case(("discrete.gin",), (*FEW, *FEW_CODES)),
    "discrete_quantised": Case(("discrete.gin",), (*FEW, *FEW_CODES), quantised=True),
    "raspberry": Case(("raspberry.gin",), ("CAPACITY = 2", "LATENT_SIZE = 4", "RATIOS = [4, 2]", *ONE_SCALE)),
    "hybrid": Case(("v2.gin", "hybrid.gin"), (*FEW, "N_MELS = 8", "N_FFT = 512")),
    "hybrid_causal_stereo": Case(
        ("v2.gin", "hybrid.gin", "causal.gin"), (*FEW, "N_MELS = 8", "N_FFT = 512"), channels=2
    ),
    "v2_nopqmf": Case(("v2_nopqmf.gin",), (*V2, "DILATIONS = [[1], [1], [3], [1, 3]]")),
    "v2_with_augs": Case(("v2_with_augs.gin",), (*FEW, "N_MELS = 8", "N_FFT = 512")),
    "v2_of_2_1": Case(("v2.gin",), V2, version="2.1"),
    "v1_of_2_1": Case(("v1.gin",), (*TINY, *ONE_SCALE), version="2.1"),
    "v2_of_2_2": Case(("v2.gin", "noise.gin"), (*V2, *SMALL_NOISE), version="2.2"),
}  # fmt: skip

EXPORTS = {
    "v1": (Case(("v1.gin",), ("CAPACITY = 2", "LATENT_SIZE = 4", "RATIOS = [4, 2]", *ONE_SCALE)), False),
    "v2_streaming": (Case(("v2.gin",), FEW), True),
    "v2_stereo_streaming": (Case(("v2.gin", "noise.gin"), (*FEW, *SMALL_NOISE), channels=2), True),
    "discrete_streaming": (Case(("discrete.gin",), (*FEW, *FEW_CODES), quantised=True), True),
}
"""Runs that are exported, and whether in streaming form."""


def build(case: Case) -> rave.RAVE:
    """The model, as the peer's train command builds it."""
    gin.clear_config()
    given = {}
    if case.version >= "2.3":
        gin.bind_parameter("RAVE.n_channels", case.channels)
        given["n_channels"] = case.channels
    gin.parse_config_files_and_bindings(list(case.configs), list(case.overrides))
    with gin.unlock_config():
        gin.parse_config(case.text)
    torch.manual_seed(0)
    return rave.RAVE(**given)


def operative() -> str:
    """The configuration as the peer's train command writes it, after everything was made."""
    rave.dataset.split_dataset(range(100), 98)
    if hasattr(rave.model, "BetaWarmupCallback"):
        rave.model.BetaWarmupCallback()
    return gin.operative_config_str()


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
    if pl.__version__ >= "2":
        # It refuses a model with this hook of Lightning 1; what the hook does here is done after the training.
        if hasattr(type(model), "validation_epoch_end"):
            del type(model).validation_epoch_end
    else:
        type(model).validation_epoch_end = lambda *_: None
    data = torch.utils.data.DataLoader(list(sound(8, case.channels, 32768)), batch_size=2)
    from scripts.train import EMA

    callbacks = [rave.model.WarmupCallback(), rave.model.QuantizeCallback(), rave.model.BetaWarmupCallback(), EMA(0.9)]
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=case.batches, callbacks=callbacks, default_root_dir=str(folder),
        logger=pl.loggers.TensorBoardLogger(str(folder)), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
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
def mean_latent(model: rave.RAVE, case: Case, x: Tensor) -> Tensor:
    """Latents as the model's forward has them, but for the random part of the variational ones."""
    encoded = model.encode(x) if case.version >= "2.3" else model.encoder(model.pqmf(x))
    variational = isinstance(model.encoder, rave.blocks.VariationalEncoder)
    return encoded.chunk(2, 1)[0] if variational else model.encoder.reparametrize(encoded)[0]


@torch.no_grad()
def through(model: rave.RAVE, case: Case, x: Tensor) -> dict[str, Any]:
    """Audio through the mean of the latents."""
    latent = mean_latent(model.eval(), case, x)
    with recorded_noise() as uniform:
        audio = model.decode(latent)
    return {"x": x, "latent": latent, "audio": audio, "uniform": uniform}


def go_on(model: rave.RAVE, checkpoint: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """One more update of the generator, with optimisers that take up the checkpoint: what ours must do as well.

    Returns:
        The weights of the decoder, and what was drawn at random.
    """
    players = [player["optimizer"] for player in model.configure_optimizers()]
    for optimizer, state in zip(players, checkpoint["optimizer_states"], strict=True):
        optimizer.load_state_dict(copy.deepcopy(state))
    model.train()
    model.optimizers = lambda: players
    model.log = model.log_dict = lambda *_, **__: None
    normal, drawn = torch.randn_like, []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(normal(*args, **kwargs))
        return drawn[-1].clone()

    torch.randn_like = record
    try:
        with recorded_noise() as uniform:
            model.training_step(x, 1)
    finally:
        torch.randn_like = normal
    weights = {key: value.detach() for key, value in model.named_parameters() if key.startswith("decoder.")}
    return {"x": x, "gaussian": drawn, "uniform": uniform, "weights": weights}


def make(name: str, folder: Path) -> dict[str, Any]:
    """A fixture."""
    case = CASES[name]
    model = build(case)
    if case.batches:
        checkpoint = train(model, case, folder)
    else:
        enliven(model)
        if case.phase_2:
            model.encoder.set_warmed_up(True)
            model.decoder.set_warmed_up(True)
        if case.quantised:
            place_codes(model)
        steps = {"training_steps": 20 if case.phase_2 else 7}
        checkpoint = {"epoch": 0, "global_step": steps["training_steps"], "pytorch-lightning_version": pl.__version__,
                      "callbacks": {"WarmupCallback": steps}}  # fmt: skip
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = sound(1, case.channels, case.length)
    out = {"config": operative(), "every_key": list(state), **through(model, case, x)}
    checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(DERIVED)}
    for key in [key for key in checkpoint["callbacks"].get("EMA", {}) if key.startswith(DERIVED)]:
        del checkpoint["callbacks"]["EMA"][key]
    if name == "v2":
        field = model.receptive_field.clone()
        model.receptive_field.zero_()  # whose crop would leave nothing of so short a window
        after = go_on(model, checkpoint, out["x"].repeat(1, 1, 8))
        model.receptive_field.copy_(field)
        few = {key: value for key, value in after["weights"].items() if value.numel() < 99}
        out["continued"] = {"gaussian": after["gaussian"][0], "weights": few}
    return {**out, "checkpoint": checkpoint}


def export(name: str, path: Path) -> None:
    """The peer's own export of a model, as its command makes it."""
    from scripts import export as command

    torch.set_grad_enabled(True)  # which importing that command forbids
    case, streaming = EXPORTS[name]
    cached_conv.use_cached_conv(streaming)
    cached_conv.MAX_BATCH_SIZE = 2  # rows of state in the file; the peer writes 64
    model = build(case).eval()
    enliven(model)
    if case.quantised:
        place_codes(model)
    classes = {
        "VariationalEncoder": command.VariationalScriptedRAVE,
        "DiscreteEncoder": command.DiscreteScriptedRAVE,
    }
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "weight_g"):
                nn.utils.remove_weight_norm(module)
        scripted = classes[type(model.encoder).__name__](pretrained=model)
        scripted.decode(scripted.encode(torch.zeros(1, case.channels, 2**14)))
        scripted.export_to_ts(str(path))


def place_codes(model: rave.RAVE) -> None:
    """Use the codebooks of a discrete model, which the peer itself never does."""
    model.encoder.enabled = torch.tensor(1)
    for layer in model.encoder.rvq.layers:
        layer._codebook.inited.fill_(1)
        layer._codebook.embed.normal_()


def pack(content: bytes, path: Path) -> None:
    """Compress and report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(content, preset=9))
    sys.stdout.write(f"{path} {path.stat().st_size // 1024} KiB\n")


def compact(value: Any) -> Any:
    """Nested values with every tensor in storage of its own."""
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items()}
    return [compact(item) for item in value] if isinstance(value, list) else value


def main(folder: Path, *only: str) -> None:
    """Write the fixtures that are named, or all that this Python's versions can make."""
    torch.set_num_threads(1)
    version = metadata.version("acids-rave") if not hasattr(rave, "__version__") else rave.__version__
    for name, case in CASES.items():
        mine = version.startswith(case.version) and int(pl.__version__[0]) == case.lightning
        wanted = name in only if only else mine
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            made = compact(make(name, Path(temporary)))
        stream = io.BytesIO()
        torch.save(made, stream)
        pack(stream.getvalue(), folder / f"{name}.pt.xz")
    for name in EXPORTS:
        if f"exports/{name}" in only or (not only and version.startswith("2.3") and pl.__version__ >= "2"):
            with tempfile.TemporaryDirectory() as temporary:
                export(name, Path(temporary) / "model.ts")
                pack((Path(temporary) / "model.ts").read_bytes(), folder / "exports" / f"{name}.ts.xz")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
