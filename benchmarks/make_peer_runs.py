"""Write runs of acids-rave 2.3.1 at full size, trained for some batches, for benchmarks/import_null.py to import.

Run with a Python that can import `rave` and its commands (the PyPI package acids-rave), never as part of the tests:

    python benchmarks/make_peer_runs.py FOLDER SOUND v2_small v2 v1 discrete v3 ...

Each NAME, configurations joined by +, becomes FOLDER/NAME: config.gin, version_0/checkpoints/last.ckpt with optimisers
and averaged weights, and heard.pt: what the peer's model answers to seconds of SOUND, with the run's weights and with
the averaged ones, in single precision and in double. A few batches leave a model that shouts; so afterwards both sets
of weights are scaled until every layer answers SOUND at the level of its neighbours, the last one quietly, as a trained
model does; the second phase begins after four batches. After a name, +raw leaves the weights as they are, to be trained
further, and next.pt beside them is one more update of the generator; +codes places the codebooks, +stereo gives two
channels. Folders that exist are kept.
"""

import sys
import time
from pathlib import Path
from typing import Any

import make_import_fixtures as small
import soundfile
import torch

BATCHES = 7
SECONDS = 4
QUIET = 0.1
WINDOW = 131072


def weighted(layer: Any) -> bool:
    """Whether a layer is a convolution whose weights have a norm of their own."""
    return hasattr(layer, "weight_g")


@torch.no_grad()
def level(model: Any, x: torch.Tensor) -> None:
    """Scale each convolution of encoder and decoder so that a sound leaves it with a deviation of 1, the last QUIET."""
    last = [one for one in model.decoder.net.modules() if weighted(one)][-1]
    names = ("synth", "waveform_module")
    head = next((part for name in names if (part := getattr(model.decoder, name, None)) is not None), last)
    heads = set(head.modules())

    def scale(layer: Any, _: Any, out: torch.Tensor) -> torch.Tensor:
        factor = (QUIET if layer in heads else 1) / out.std().clamp(min=1e-6)
        layer.weight_g.mul_(factor)
        return out * factor

    layers = [one for part in (model.encoder, model.decoder) for one in part.modules() if weighted(one)]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    model.eval()
    model.decode(model.encoder.reparametrize(model.encode(x))[0])
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def answers(model: Any, case: small.Case, x: torch.Tensor) -> dict[str, Any]:
    """The model's answer in both precisions, with the same random numbers."""
    single = small.through(model, case, x)
    model.double()
    latent = small.mean_latent(model, case, x.double())
    latent[:, model.latent_size :] = single["latent"][:, model.latent_size :]
    own, drawn = torch.rand_like, iter(single["uniform"])
    torch.rand_like = lambda like: next(drawn).to(like)
    try:
        audio = model.decode(latent)
    finally:
        torch.rand_like = own
    model.float()
    return {**single, "exact_latent": latent, "exact_audio": audio}


def make(name: str, folder: Path, sound: torch.Tensor) -> None:
    """One run."""
    parts = name.split("+")
    configs = tuple(f"{part}.gin" for part in parts if part not in ("codes", "raw", "stereo"))
    channels = 2 if "stereo" in parts else 1
    case = small.Case(
        configs, ("PHASE_1_DURATION = 4",), channels=channels, batches=BATCHES, quantised="codes" in parts
    )
    sound = sound if channels == 2 else sound.mean(1, keepdim=True)
    model = small.build(case)
    if "raw" not in parts:
        small.enliven(model)
    checkpoints = folder / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    checkpoint = small.train(model, case, folder)
    averaged = checkpoint["callbacks"]["EMA"]
    if case.quantised:
        small.place_codes(model)
    if "raw" not in parts:
        level(model, sound)
    checkpoint["state_dict"] = {key: value.clone() for key, value in model.state_dict().items()}
    heard = {"last": answers(model, case, sound)}
    model.load_state_dict(averaged, strict=False)
    if "raw" not in parts:
        level(model, sound)
    averaged.update({key: value.data.clone() for key, value in model.named_parameters()})
    heard["ema"] = answers(model, case, sound)
    torch.save(heard, folder / "heard.pt")
    if "raw" in parts:
        model.load_state_dict(checkpoint["state_dict"])
        torch.save(small.go_on(model, checkpoint, sound[..., :WINDOW]), folder / "next.pt")
    (folder / "config.gin").write_text(small.operative())
    torch.save(checkpoint, checkpoints / "last.ckpt")
    (folder / "run.ckpt").unlink()


def main(folder: Path, file: Path, *names: str) -> None:
    """Write every run that is not there."""
    torch.set_num_threads(1)
    samples, rate = soundfile.read(file, frames=SECONDS * 44100, start=10 * 44100, dtype="float32", always_2d=True)
    if rate != 44100:
        raise ValueError(f"{file} has {rate} Hz; the models here have 44100")
    if samples.shape[1] != 2:
        raise ValueError(f"{file} has {samples.shape[1]} channels; two are needed")
    sound = torch.from_numpy(samples.T)[None, :, : len(samples) // 4096 * 4096]
    for name in names:
        if (folder / name).exists():
            continue
        start = time.perf_counter()
        make(name, folder / f".{name}", sound)
        (folder / f".{name}").rename(folder / name)
        sys.stdout.write(f"{folder / name}: {time.perf_counter() - start:.0f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
