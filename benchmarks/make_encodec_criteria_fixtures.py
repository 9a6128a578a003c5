"""Write tests/fixtures/encodec_*.pt by running audiocraft 1.3.0 and descript-audio-codec 1.0.0 on small criteria.

tests/fixtures/README.md says what they hold. Run with a Python that can import `audiocraft`, `dac` and `audiotools`
(for what else those import, empty modules suffice), never as part of the tests:

    python benchmarks/make_encodec_criteria_fixtures.py tests/fixtures [name ...]
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from audiocraft.adversarial import (
    AdversarialLoss,
    FeatureMatchingLoss,
    get_adv_criterion,
    get_fake_criterion,
    get_real_criterion,
)
from audiocraft.adversarial.discriminators.mpd import MultiPeriodDiscriminator
from audiocraft.adversarial.discriminators.msd import MultiScaleDiscriminator
from audiocraft.adversarial.discriminators.msstftd import MultiScaleSTFTDiscriminator
from audiocraft.losses import (
    SISNR,
    Balancer,
    MelSpectrogramL1Loss,
    MRSTFTLoss,
    MultiScaleMelSpectrogramLoss,
)
from audiotools import AudioSignal
from dac.model.discriminator import Discriminator
from dac.nn.loss import GANLoss, MelSpectrogramLoss
from torch import Tensor, nn

EVERY = 61
"""Of large tensors only every 61st number is kept."""


def draw(*shape: int, seed: int, scale: float = 0.3) -> Tensor:
    """Noise that half precision can hold."""
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).half().float()


def some(x: Tensor) -> dict[str, Any]:
    """A tensor's shape, every 61st number in the order of its indices, and the largest size of all of them."""
    values = x.detach().contiguous().flatten()[::EVERY].clone()
    return {"shape": list(x.shape), "values": values, "largest": float(x.detach().abs().max())}


def enliven(model: nn.Module) -> nn.Module:
    """Make weights differ from their initial form, so that parity proves more than the initialisation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            factor = torch.rand(parameter.shape, generator=generator)
            parameter.mul_(1.0 + factor if name.endswith("weight_g") else 0.8 + 0.4 * factor)
            if name.endswith("bias"):
                parameter.copy_(0.2 * factor)
    return model


def discriminator(model: nn.Module, channels: int, length: int, *, loss: str) -> dict[str, Any]:
    """Verdicts and feature maps of two sounds, and both sides of the game with gradients."""
    enliven(model)
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.endswith("window")}
    real, fake = draw(2, channels, length, seed=2), draw(2, channels, length, seed=3)
    with torch.no_grad():
        logits, maps = model(real)
    game = AdversarialLoss(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        get_adv_criterion(loss),
        get_real_criterion(loss),
        get_fake_criterion(loss),
        FeatureMatchingLoss(),
    )
    against = game.train_adv(fake, real)
    weights = {name: some(p.grad) for name, p in model.named_parameters() if name.startswith("discriminators.0.")}
    model.zero_grad()
    fake.requires_grad_()
    adversarial, features = game(fake, real)
    return {
        "state": state,
        "channels": channels,
        "length": length,
        "real": real.half(),
        "fake": fake.detach().half(),
        "logits": [some(x) for x in logits],
        "maps": [[some(m) for m in scale] for scale in maps],
        "loss": loss,
        "discriminator": against.detach(),
        "discriminator_gradients": weights,
        "adversarial": adversarial.detach(),
        "adversarial_gradient": some(torch.autograd.grad(adversarial, fake, retain_graph=True)[0]),
        "feature_matching": features.detach(),
        "feature_matching_gradient": some(torch.autograd.grad(features, fake)[0]),
    }


def make_encodec_stft() -> dict[str, Any]:
    """AudioCraft's MS-STFT discriminator."""
    facts = {"n_ffts": [256, 64], "filters": 4, "slope": 0.3}
    spectra = partial(
        MultiScaleSTFTDiscriminator,
        facts["filters"],
        n_ffts=facts["n_ffts"],
        hop_lengths=[n // 4 for n in facts["n_ffts"]],
        win_lengths=facts["n_ffts"],
        activation_params={"negative_slope": facts["slope"]},
    )
    torch.manual_seed(0)
    out: dict[str, Any] = {"every": EVERY, **facts}
    out["mono"] = discriminator(spectra(in_channels=1), 1, 1500, loss="hinge")
    out["stereo"] = discriminator(spectra(in_channels=2), 2, 700, loss="mse")
    out["many"] = discriminator(spectra(in_channels=32), 32, 300, loss="hinge2")
    return out


def make_encodec_waveform() -> dict[str, Any]:
    """AudioCraft's discriminators of periods and of scales."""
    torch.manual_seed(0)
    out: dict[str, Any] = {"every": EVERY}
    out["periods"] = discriminator(
        MultiPeriodDiscriminator(in_channels=2, periods=[2, 3, 5], filters=1, max_filters=16), 2, 601, loss="hinge"
    )
    out["scales"] = discriminator(
        MultiScaleDiscriminator(in_channels=2, filters=8, max_filters=16, downsample_scales=[4, 2]), 2, 601, loss="mse"
    )
    return out


def make_encodec_descript() -> dict[str, Any]:
    """Descript's network of one spectrum, whose frames match the strides of its codec; weights by rule."""
    model = Discriminator(periods=[], fft_sizes=[64], bands=[(0.0, 0.5), (0.5, 1.0)])
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(by_rule(shapes))
    x, y = draw(2, 1, 503, seed=2), draw(2, 1, 503, seed=3)
    with torch.no_grad():
        maps = model(x)
    game, real = GANLoss(model), AudioSignal(x, 44100)
    fake = AudioSignal(y.clone().requires_grad_(), 44100)
    adversarial, features = game.generator_loss(fake, real)
    return {
        "every": EVERY,
        "shapes": shapes,
        "x": x,
        "y": y,
        "maps": [[some(m) for m in scale] for scale in maps],
        "discriminator": game.discriminator_loss(fake, real).detach(),
        "adversarial": adversarial.detach(),
        "adversarial_gradient": some(torch.autograd.grad(adversarial, fake.audio_data, retain_graph=True)[0]),
        "feature_matching": features.detach(),
        "feature_matching_gradient": some(torch.autograd.grad(features, fake.audio_data)[0]),
    }


def by_rule(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights that need not be stored; the rule is that of descript.pt."""
    weights = {}
    for index, (key, shape) in enumerate(shapes.items()):
        drawn = torch.from_numpy(np.random.RandomState(index).uniform(-1, 1, shape)).float()
        weights[key] = 1.2 + 0.4 * drawn if key.endswith("weight_g") else 0.1 * drawn if "bias" in key else drawn
    return weights


def game_losses() -> dict[str, Any]:
    """The verdicts' losses alone."""
    real, fake = draw(2, 1, 9, 5, seed=4, scale=2.0), draw(2, 1, 9, 5, seed=5, scale=2.0)
    out: dict[str, Any] = {"real": real, "fake": fake}
    for kind in ("mse", "hinge", "hinge2"):
        out[kind] = {
            "real": get_real_criterion(kind)(real),
            "fake": get_fake_criterion(kind)(fake),
            "generator": get_adv_criterion(kind)(fake),
        }
    return out


def value_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor, estimate: Tensor) -> dict[str, Any]:
    """Of a loss (estimate, target) -> scalar."""
    leaf = estimate.clone().requires_grad_()
    value = loss(leaf, target)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return {"value": value.detach().reshape(()), "gradient": some(gradient)}


def slaney_filters(sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float | None) -> Any:
    """librosa's default mel filters, as torchaudio makes them."""
    high = sr / 2 if fmax is None else fmax
    filters = torchaudio.functional.melscale_fbanks(
        n_fft // 2 + 1, fmin, high, n_mels, sr, norm="slaney", mel_scale="slaney"
    )
    return filters.T.numpy()


def make_encodec_losses() -> dict[str, Any]:
    """Values, and gradients with respect to the estimate, of every distance; one channel and 32."""
    AudioSignal.get_mel_filters = staticmethod(slaney_filters)
    windows = [32, 64, 128, 256, 512, 1024, 2048]
    descript = MelSpectrogramLoss(
        n_mels=[5, 10, 20, 40, 80, 160, 320], window_lengths=windows, mel_fmin=[0.0] * 7, mel_fmax=[None] * 7,
        pow=1.0, clamp_eps=1e-5, mag_weight=0.0,
    )  # fmt: skip
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mel": MelSpectrogramL1Loss(24000, n_fft=1024, hop_length=256, win_length=1024, n_mels=64),
        "mel_linear": MelSpectrogramL1Loss(24000, n_fft=512, hop_length=128, win_length=512, n_mels=20, log=False),
        "multi_scale": MultiScaleMelSpectrogramLoss(24000, f_min=64, normalized=True, alphas=False),
        "multi_scale_alphas": MultiScaleMelSpectrogramLoss(24000),
        "resolutions": MRSTFTLoss(factor_sc=0.5, factor_mag=0.5),
        "si_snr": SISNR(24000, segment=0.05),
        "si_snr_whole": SISNR(24000, segment=1600 / 24000, overlap=0.0),
        "descript": lambda y, x: descript(AudioSignal(y, 44100), AudioSignal(x, 44100)),
    }
    out: dict[str, Any] = {"every": EVERY, "game": game_losses()}
    for name, channels in (("mono", 1), ("many", 32)):
        target = draw(2 if channels == 1 else 1, channels, 1600, seed=6)
        estimate = (0.7 * target + draw(*target.shape, seed=7, scale=0.1)).half().float()
        out[name] = {"target": target.half(), "estimate": estimate.half()}
        out[name] |= {key: value_and_gradient(loss, target, estimate) for key, loss in losses.items()}
    return out


def balanced(target: Tensor, estimates: Tensor, weights: dict[str, float], **options: Any) -> dict[str, Any]:
    """Four consecutive updates of a balancer."""
    balancer = Balancer(weights, monitor=True, **options)
    gradients, values, ratios = [], [], []
    for estimate in estimates:
        leaf = estimate.clone().requires_grad_()
        losses = {
            "absolute": (leaf - target).abs().mean(),
            "square": 100 * (leaf - target).square().mean(),
            "wave": torch.sin(3 * leaf).mean(),
        }
        values.append(balancer.backward(losses, leaf).detach())
        gradients.append(leaf.grad)
        ratios.append({name: float(value) for name, value in balancer.metrics.items()})
    return {"gradients": torch.stack(gradients), "values": torch.stack(values), "ratios": ratios}


def make_encodec_balancer() -> dict[str, Any]:
    """AudioCraft's balancer: as it is, without balancing, with the norm of the whole batch."""
    weights = {"absolute": 0.1, "square": 1.0, "wave": 3.0}
    target = draw(4, 2, 50, seed=8)
    estimates = torch.stack([draw(4, 2, 50, seed=9 + i, scale=0.2 * (i + 1)) for i in range(4)])
    run = partial(balanced, target, estimates, weights)
    return {
        "weights": weights,
        "target": target,
        "estimates": estimates,
        "default": run(),
        "fast": run(ema_decay=0.5, total_norm=0.7),
        "no_balance": run(balance_grads=False),
        "global_norm": run(per_batch_item=False),
    }


def main() -> None:
    """Write the files that are named, or all."""
    folder = Path(sys.argv[1])
    makers = {name.removeprefix("make_"): maker for name, maker in globals().items() if name.startswith("make_")}
    for name in sys.argv[2:] or makers:
        path = folder / f"{name}.pt"
        torch.save(makers[name](), path)
        print(path, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
