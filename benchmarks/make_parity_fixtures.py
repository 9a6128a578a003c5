"""Write tests/fixtures/*.pt by running acids-rave 2.3.1 on small models; tests/fixtures/README.md says what they hold.

Run with a Python that can import `rave` (the PyPI package acids-rave 2.3.1), never as part of the tests:

    python benchmarks/make_parity_fixtures.py tests/fixtures [name ...]
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gin
import numpy as np
import rave
import torch
from rave import blocks, core, descript_discriminator, discriminator, pqmf, quantization
from torch import Tensor, nn

TINY = {"CAPACITY": 4, "LATENT_SIZE": 8}
RATIOS = {"v1": [4, 4, 4, 2], "v2": [4, 4, 4, 2], "v2_small": [4, 2, 2, 2]}
DILATIONS = [[1, 3, 9], [1, 3, 9], [1, 3, 9], [1, 3]]


def configure(configs: list[str], overrides: list[str]) -> None:
    """Parse configurations afresh."""
    gin.clear_config()
    gin.parse_config_files_and_bindings(configs, overrides)


def build(configs: list[str], overrides: list[str], channels: int) -> rave.RAVE:
    """A model of the peer with lively weights."""
    configure(configs, overrides)
    torch.manual_seed(0)
    model = rave.RAVE(n_channels=channels)
    enliven(model)
    return model


def enliven(model: nn.Module) -> None:
    """Make weights differ from their initial form, so that parity proves more than the initialisation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("pqmf."):
                continue
            factor = torch.rand(parameter.shape, generator=generator)
            parameter.mul_(0.8 + 0.9 * factor if name.endswith("weight_g") else 0.9 + 0.2 * factor)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


@contextmanager
def recorded_noise() -> Iterator[list[Tensor]]:
    """Collect what torch.rand_like and torch.randn_like returned, in order."""
    drawn: list[Tensor] = []

    def record(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def recording(*args: Any, **kwargs: Any) -> Tensor:
            value = function(*args, **kwargs)
            drawn.append(value.detach().clone())
            return value

        return recording

    uniform, normal = torch.rand_like, torch.randn_like
    torch.rand_like, torch.randn_like = record(uniform), record(normal)
    try:
        yield drawn
    finally:
        torch.rand_like, torch.randn_like = uniform, normal


def sound(batch: int, channels: int, length: int, seed: int = 2) -> Tensor:
    """A chord in noise, representable in half precision."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / 44100
    frequency = 80 * 2 ** (5 * torch.rand(batch, channels, 4, 1, generator=generator))
    chord = torch.sin(2 * torch.pi * frequency * time).sum(2) / 8
    noise = 0.02 * torch.randn(batch, channels, length, generator=generator)
    return (chord + noise).half().float()


def state(module: nn.Module, *without: str) -> dict[str, Tensor]:
    """A copy of a state dict without the keys that start with one of the given prefixes."""
    return {k: v.detach().clone() for k, v in module.state_dict().items() if not k.startswith(without)}


@torch.no_grad()
def make_pqmf(bands: int) -> dict[str, Any]:
    """Filters, analysis and synthesis, centred and causal."""
    out: dict[str, Any] = {"attenuation": 100, "n_band": bands, "x": sound(2, 1, 4096)}
    torch.manual_seed(3)
    out["random_bands"] = torch.randn(2, bands, 4096 // bands)
    for padding in ("centered", "causal"):
        configure(["v1.gin"] + ["causal.gin"] * (padding == "causal"), [f"N_BAND = {bands}"])
        bank = gin.get_configurable(pqmf.CachedPQMF)()
        analysed = bank(out["x"])
        out["state"] = state(bank)
        out[padding] = {
            "bands": analysed,
            "reconstruction": bank.inverse(analysed),
            "synthesis": bank.inverse(out["random_bands"]),
        }
    return out


@torch.no_grad()
def make_model(name: str, *, channels: int = 1, mixins: tuple[str, ...] = ()) -> dict[str, Any]:
    """A whole model stage by stage: bands, encoder, reparametrisation, decoder, audio."""
    overrides = [f"{k} = {v}" for k, v in TINY.items()]
    if name == "v2_small" or "noise.gin" in mixins:
        overrides.append("blocks.NoiseGeneratorV2.hidden_size = 8")
    out: dict[str, Any] = {
        "config": name,
        "mixins": list(mixins),
        "overrides": overrides,
        "channels": channels,
        "ratios": RATIOS[name],
        "dilations": DILATIONS,
        "x": sound(2 // channels, channels, 2048 if name == "v2_small" else 4096),
    }
    for padding in ("centered", "causal"):
        configs = [f"{name}.gin", *mixins] + ["causal.gin"] * (padding == "causal")
        model = build(configs, overrides, channels).eval()
        if "state" in out:
            model.load_state_dict(out["state"], strict=False)
        out["state"] = state(model, "pqmf.", "discriminator.", "audio_distance.", "multiband_audio_distance.")
        out["every_key"] = list(model.state_dict())
        out[padding] = stages(model, out["x"], is_v1=name == "v1")
    return out


def stages(model: rave.RAVE, x: Tensor, *, is_v1: bool) -> dict[str, Any]:
    """What each part of a model gives."""
    result: dict[str, Any] = {}
    encoded, bands = model.encode(x, return_mb=True)
    torch.manual_seed(4)
    with recorded_noise() as gaussian:
        z, kl = model.encoder.reparametrize(encoded)
    result.update(bands=bands, encoded=encoded, gaussian=gaussian[0], z=z, kl=kl)
    with recorded_noise() as uniform:
        decoded = model.decoder(z)
    result.update(decoded_bands=decoded, uniform=uniform[0] if uniform else None)
    torch.manual_seed(5)
    with recorded_noise() as uniform:
        result["audio"] = model.decode(z)
    result["audio_uniform"] = uniform[0] if uniform else None
    if is_v1:
        model.decoder.set_warmed_up(True)
        with recorded_noise() as uniform:
            result["decoded_bands_with_noise"] = model.decoder(z)
        result["uniform_with_noise"] = uniform[0]
        model.encoder.train()
        result["encoded_in_training"] = model.encoder(bands)
    return result


BRAVE = [
    "RATIOS = [2, 2, 2, 1]",
    "pqmf.CachedPQMF.attenuation = 40",
    "blocks.ResidualStack.dilations_list = [[3, 1], [9, 1], [27, 1], [36, 1]]",
    "blocks.Generator.use_noise = False",
]
"""What the authors of BRAVE bind on top of v1."""

CODES = [
    "NUM_QUANTIZERS = 3",
    "CODEBOOK_SIZE = 16",
    "quantization.ResidualVectorQuantization.num_quantizers = 3",
    "quantization.ResidualVectorQuantization.codebook_size = 16",
]


@torch.no_grad()
def make_family(configs: list[str], extra: list[str], *, hop: int) -> dict[str, Any]:
    """A whole model with any bottleneck, input and output, in evaluation mode."""
    overrides = ["CAPACITY = 2", "LATENT_SIZE = 4", *extra]
    out: dict[str, Any] = {"configs": configs, "overrides": overrides, "x": sound(2, 1, 2 * hop)}
    for padding in ("centered", "causal"):
        model = build(configs + ["causal.gin"] * (padding == "causal"), overrides, 1).eval()
        if "state" in out:
            model.load_state_dict(out["state"], strict=False)
        elif isinstance(model.encoder, blocks.DiscreteEncoder):
            place_codebooks(model)
        out["state"] = state(model, "pqmf.", "spectrogram.", "discriminator.", "audio_distance.", "multiband_")
        # Statistics of a performance, 64 rows of zeros and ones for each layer.
        out["state"] = {k: v for k, v in out["state"].items() if not k.endswith(("_x", "_y"))}
        out["every_key"] = list(model.state_dict())
        encoded = model.encode(out["x"])
        torch.manual_seed(4)
        with recorded_noise() as gaussian:
            z, penalty = model.encoder.reparametrize(encoded)[:2]
        result = {"encoded": encoded, "z": z, "penalty": penalty, "audio": model.decode(z)}
        result["gaussian"] = gaussian[0] if gaussian else None
        if isinstance(model.encoder, blocks.DiscreteEncoder):
            result["codes"] = model.encoder.rvq.encode(encoded)
            result["dequantized"] = model.encoder.rvq.decode(result["codes"])
        out[padding] = result
    return out


def place_codebooks(model: rave.RAVE) -> None:
    """What the peer's hook would do, were it spelt right, and codes that differ."""
    generator = torch.Generator().manual_seed(7)
    model.encoder.enabled.fill_(1)
    for i, layer in enumerate(model.encoder.rvq.layers):
        codes = layer._codebook
        codes.inited.fill_(1)
        codes.embed.copy_(0.05 * 0.5**i * torch.randn(codes.embed.shape, generator=generator))


def make_blocks() -> dict[str, Any]:
    """A codebook's update, adaptive normalisation, angles on a sphere, Snake, the discrepancy of two clouds."""
    generator = torch.Generator().manual_seed(9)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gin.clear_config()
    quantizer = quantization.VectorQuantization(4, 8, kmeans_init=False, threshold_ema_dead_code=0).train()
    codes = quantizer._codebook
    codes.embed.copy_(normal(8, 4))
    codes.embed_avg.copy_(codes.embed * 3)
    codes.cluster_size.fill_(3)
    out: dict[str, Any] = {"codebook_before": state(codes), "vectors": normal(2, 4, 20)}
    vectors = out["vectors"].clone().requires_grad_()
    quantized, indices, commitment = quantizer(vectors)
    (gradient,) = torch.autograd.grad(commitment.sum(), vectors)
    out.update(codebook_after=state(codes), quantized=quantized, codes=indices, commitment=commitment.sum())
    out["commitment_gradient"] = gradient

    with torch.no_grad():
        layer = blocks.AdaptiveInstanceNormalization(3).eval()
        out["target"], out["source"], out["content"] = normal(2, 3, 50) * 2 + 1, normal(2, 3, 40) - 3, normal(2, 3, 30)
        layer.learn_y.fill_(1)
        layer(out["target"])
        layer.learn_y.zero_()
        layer.learn_x.fill_(1)
        layer(out["source"])
        layer.learn_x.zero_()
        out["adapted"] = layer(out["content"])

        directions = nn.functional.normalize(normal(2, 5, 9), dim=1)
        out["directions"] = directions
        out["angles"] = blocks.unit_norm_vector_to_angles(directions.clone())
        out["from_angles"] = blocks.angles_to_unit_norm_vector(out["angles"].clone())

        snake = blocks.Snake(3)
        snake.alpha.copy_(0.5 + torch.rand(3, 1, generator=generator))
        out["snake_state"], out["snake"] = state(snake), snake(out["content"])

        out["cloud"], out["prior"] = normal(12, 4) * 2, normal(12, 4)
        wasserstein = blocks.WasserteinEncoder(lambda n_channels: nn.Identity())
        out["discrepancy"] = wasserstein.compute_mmd(out["cloud"], out["prior"])
    return out


@torch.no_grad()
def make_discriminators() -> dict[str, Any]:
    """Scores and feature maps; the last entry of every scale is the verdict."""
    overrides = [
        "CAPACITY = 4",
        "discriminator.MultiScaleSpectralDiscriminator1d.scales = [128, 64]",
        "discriminator.MultiPeriodDiscriminator.periods = [2, 3, 5]",
    ]
    spectral = [
        "discriminator.MultiScaleSpectralDiscriminator.scales = [64]",
        "discriminator.EncodecConvNet.capacity = 4",
    ]
    cases = {
        "multi_scale": (discriminator.MultiScaleDiscriminator, 1),
        "multi_scale_stereo": (discriminator.MultiScaleDiscriminator, 2),
        "multi_period": (discriminator.MultiPeriodDiscriminator, 1),
        "multi_period_stereo": (discriminator.MultiPeriodDiscriminator, 2),
        "spectral_1d": (discriminator.MultiScaleSpectralDiscriminator1d, 1),
        "spectral_2d": (discriminator.MultiScaleSpectralDiscriminator, 1),
        "combined": (discriminator.CombineDiscriminators, 1),
    }
    out: dict[str, Any] = {
        "capacity": 4,
        "spectral_1d_scales": [128, 64],
        "periods": [2, 3, 5],
        "spectral_2d_scales": [64],
    }
    for name, (cls, channels) in cases.items():
        if name == "spectral_2d":
            configure(["v2.gin", "spectral_discriminator.gin"], overrides + spectral)
        else:
            configure(["v2.gin"], overrides)
        torch.manual_seed(6)
        model = gin.get_configurable(cls)(n_channels=channels)
        enliven(model)
        x = sound(2, channels, 509 if name == "spectral_2d" else 1021)
        features = [[f.clone() for f in scale] for scale in model(x)]
        out[name] = {"state": state(model), "x": x, "features": features}
    return out


@torch.no_grad()
def make_descript() -> dict[str, Any]:
    """Every 97th value of Descript's feature maps; the weights are too many to keep, and drawn by a fixed rule instead.

    The rule, for tensor i of the state dict, windows left out: uniform numbers in [-1, 1) of numpy's RandomState(i);
    lengths of weights (weight_g) are 1.2 + 0.4 u, biases 0.1 u.
    """
    gin.clear_config()
    sizes = {"periods": [2, 3, 5], "fft_sizes": [128, 64]}
    out: dict[str, Any] = {**sizes, "every": 97}
    for name, channels, length in (("mono", 1, 1021), ("stereo", 2, 1020), ("three", 3, 700)):
        model = descript_discriminator.DescriptDiscriminator(**sizes, n_channels=channels)
        kept = {k: v for k, v in model.state_dict().items() if not k.endswith(".window")}
        for index, (key, value) in enumerate(kept.items()):
            drawn = torch.from_numpy(np.random.RandomState(index).uniform(-1, 1, value.shape)).float()
            value.copy_(1.2 + 0.4 * drawn if key.endswith("weight_g") else 0.1 * drawn if "bias" in key else drawn)
        x = sound(2, channels, length)
        features = [[{"shape": list(f.shape), "values": f.flatten()[::97]} for f in scale] for scale in model(x)]
        out[name] = {
            "shapes": {k: list(v.shape) for k, v in kept.items()},
            "every_key": list(model.state_dict()),
            "x": x,
            "features": features,
        }
    return out


def with_gradient(function: Callable[[Tensor, Tensor], Any], target: Tensor, estimate: Tensor) -> dict[str, Any]:
    """Named values, and the gradient of their sum with respect to the estimate."""
    estimate = estimate.clone().requires_grad_()
    values = function(target, estimate)
    if not isinstance(values, dict):
        values = {"value": values}
    sum(values.values()).backward()
    return {"values": {k: v.detach() for k, v in values.items()}, "gradient": estimate.grad}


def make_losses() -> dict[str, Any]:
    """Distances and adversarial losses with their gradients."""
    target, estimate = sound(1, 2, 5000), sound(1, 2, 5000, seed=7)
    out: dict[str, Any] = {"target": target, "estimate": estimate, "sample_rate": 44100}
    scales = [2048, 1024, 512, 256, 128]

    def stft(**options: Any) -> Callable[[], nn.Module]:
        return lambda: core.MultiScaleSTFT(scales=scales, sample_rate=44100, **options)

    out["audio_distance"] = with_gradient(core.AudioDistanceV1(stft(), 1e-7), target, estimate)
    out["audio_distance_normalized"] = with_gradient(
        core.AudioDistanceV1(stft(normalized=True), 1e-5), target, estimate
    )
    phase = core.WeightedInstantaneousSpectralDistance(stft(magnitude=False), weighted=True)
    out["phase_distance"] = with_gradient(phase, target, estimate)

    def spectral(n_fft: int) -> nn.Module:
        return core.SpectralDistance(n_fft, 44100, ("L1", "L2"), 1, True, mel=32)

    out["encodec_distance"] = with_gradient(core.EncodecAudioDistance([2048, 512], spectral), target, estimate)
    for norm in ("L1", "L2"):
        for relative in (False, True):

            def difference(x: Tensor, y: Tensor, norm: str = norm, relative: bool = relative) -> Tensor:
                return core.mean_difference(x, y, norm, relative)

            out[f"mean_difference_{norm}_{'relative' if relative else 'absolute'}"] = with_gradient(
                difference, target, estimate
            )
    mel = core.MelScale(44100, 1024, 80).mel
    out["mel_44100_1024_80"] = mel
    out["adversarial"] = {}
    torch.manual_seed(8)
    real, fake = 2 * torch.randn(3, 1, 40), 2 * torch.randn(3, 1, 40)
    out["score_real"], out["score_fake"] = real, fake
    for name, function in {
        "hinge": core.hinge_gan,
        "least_squares": core.ls_gan,
        "nonsaturating": core.nonsaturating_gan,
    }.items():
        r, f = real.clone().requires_grad_(), fake.clone().requires_grad_()
        dis, gen = function(r, f)
        (gradient_gen,) = torch.autograd.grad(gen, f, retain_graph=True)
        gradients_dis = torch.autograd.grad(dis, [r, f])
        out["adversarial"][name] = {
            "discriminator": dis.detach(),
            "generator": gen.detach(),
            "generator_gradient": gradient_gen,
            "discriminator_gradients": list(gradients_dis),
        }
    return out


class Recorder:
    """Stands in for Lightning around the peer's training step."""

    def __init__(self, model: rave.RAVE) -> None:
        generator, critic = model.configure_optimizers()
        self.optimizers = (generator["optimizer"], critic["optimizer"])
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["eps"] = 1e-4  # at 1e-8, a gradient of rounding noise becomes a full step
        self.scheduler = generator["lr_scheduler"]["scheduler"]
        self.logged: dict[str, Tensor] = {}
        model.optimizers = lambda: self.optimizers
        model.log = lambda name, value, **_: self.logged.__setitem__(name, torch.as_tensor(value).detach().clone())
        model.log_dict = lambda values, **_: [model.log(k, v) for k, v in values.items()]


def make_training(*, adversarial: bool) -> dict[str, Any]:
    """Three consecutive updates of the peer, Lightning replaced by the loop it would run."""
    overrides = [
        "CAPACITY = 4",
        "LATENT_SIZE = 8",
        "PHASE_1_DURATION = 10",
        "discriminator.MultiPeriodDiscriminator.periods = [2, 3]",
        "discriminator.MultiScaleDiscriminator.n_discriminators = 2",
        "BetaWarmupCallback.warmup_len = 6",
        "core.AudioDistanceV1.log_epsilon = 1e-1",  # at 1e-7, rounding in all but silent bins rules the gradient
    ]
    model = build(["v2.gin"], overrides, 1).train()
    length, field = 40960, (3000, 2500)
    model.receptive_field[:] = torch.tensor(field)
    model.warmed_up = adversarial
    callback = rave.BetaWarmupCallback()
    recorder = Recorder(model)
    watched = ["encoder.encoder.net.0.weight_v", "decoder.net.0.weight_v", "decoder.net.2.weight_g",
               "discriminator.discriminators.1.layers.0.net.0.weight_v"]  # fmt: skip
    hidden = ("pqmf.", "audio_distance.", "multiband_audio_distance.", "receptive_field")
    out: dict[str, Any] = {
        "overrides": overrides,
        "receptive_field": list(field),
        "initial": state(model, *hidden),
        "steps": [],
    }
    out["x"] = sound(2, 1, length).half()
    parameters = dict(model.named_parameters())
    for index in range(3):
        callback.on_train_batch_start(None, model, None, index)
        recorder.logged = {}
        rate = recorder.optimizers[0].param_groups[0]["lr"]
        for parameter in parameters.values():
            parameter.grad = None
        torch.manual_seed(100 + index)
        with recorded_noise() as gaussian:
            model.training_step(out["x"].float().roll(index * 1000, -1), index)
        is_critic = adversarial and index % model.update_discriminator_every == 0
        out["steps"].append({
            "gaussian": gaussian[0],
            "learning_rate": rate,
            "updates": "discriminator" if is_critic else "generator",
            "logged": dict(recorder.logged),
            "gradients": {k: parameters[k].grad.clone() for k in watched
                          if parameters[k].grad is not None and k.startswith("discriminator") == is_critic},
        })  # fmt: skip
        recorder.scheduler.step()
    out["final"] = state(model, *hidden)
    out["weights"] = dict(model.weights)
    return out


def make_schedules() -> dict[str, Any]:
    """Values of beta and of the learning rate by training batch."""
    out: dict[str, Any] = {}
    for name, kwargs in {
        "logarithmic": {"initial_value": 1e-6, "target_value": 5e-2, "warmup_len": 20},
        "linear": {"initial_value": 0.1, "target_value": 0.5, "warmup_len": 20, "log": False},
    }.items():
        gin.clear_config()
        callback, model = rave.BetaWarmupCallback(**kwargs), nn.Module()
        betas = []
        for index in range(25):
            callback.on_train_batch_start(None, model, None, index)
            betas.append(float(model.beta_factor))
        out[f"beta_{name}"] = {"arguments": kwargs, "beta": betas}
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 1e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=20)
    rates = []
    for _ in range(25):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    out["learning_rate"] = {"phase_1_duration": 20, "learning_rate": rates}
    return out


def make_prior() -> dict[str, Any]:
    """The prior's network, quantisation, diagonal shift and loss."""
    from rave.prior.model import Prior

    sizes = {"resolution": 8, "res_size": 16, "skp_size": 8, "kernel_size": 3, "cycle_size": 2, "n_layers": 3}
    torch.manual_seed(3)
    prior = Prior(**sizes, latent_size=4)
    enliven(prior)
    prior.quantized_normal.dither = False
    z = torch.randn(2, 4, 20)
    frames = prior.quantized_normal.encode(prior.diagonal_shift(z))
    logits = prior.forward(frames)
    target = torch.argmax(prior.split_classes(frames[..., 1:]), -1).flatten()
    estimate = prior.split_classes(logits[..., :-1]).flatten(0, 2)
    return {
        "sizes": {**sizes, "latent_size": 4},
        "state": prior.state_dict(),
        "z": z,
        "frames": frames,
        "logits": logits,
        "loss": nn.functional.cross_entropy(estimate, target),
        "decoded": prior.quantized_normal.decode(frames),
        "restored": prior.diagonal_shift.inverse(prior.diagonal_shift(z)),
    }


def compact(value: Any) -> Any:
    """Nested values with every tensor in storage of its own, so that a view does not drag its base into the file."""
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {k: compact(v) for k, v in value.items()}
    return [compact(v) for v in value] if isinstance(value, list) else value


def main(folder: Path, *only: str) -> None:
    """Write every fixture, or those that are named."""
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "pqmf_16": lambda: make_pqmf(16),
        "pqmf_4": lambda: make_pqmf(4),
        "rave_v1": lambda: make_model("v1"),
        "rave_v2": lambda: make_model("v2"),
        "rave_v2_small": lambda: make_model("v2_small"),
        "rave_v2_noise_stereo": lambda: make_model("v2", channels=2, mixins=("noise.gin",)),
        "discriminators": make_discriminators,
        "descript": make_descript,
        "losses": make_losses,
        "training_phase_1": lambda: make_training(adversarial=False),
        "training_phase_2": lambda: make_training(adversarial=True),
        "schedules": make_schedules,
        "blocks": make_blocks,
        "family_onnx": lambda: make_family(["onnx.gin"], [], hop=2048),
        "family_brave": lambda: make_family(["v1.gin"], BRAVE, hop=128 * 8),
        "family_v2_nopqmf": lambda: make_family(["v2_nopqmf.gin"], [], hop=2048),
        "family_v3": lambda: make_family(["v3.gin"], [], hop=2048),
        "family_discrete": lambda: make_family(["discrete.gin"], ["NOISE_AUGMENTATION = 3", *CODES], hop=1024),
        "family_discrete_v3": lambda: make_family(["discrete_v3.gin"], ["NOISE_AUGMENTATION = 3", *CODES], hop=1024),
        "family_hybrid": lambda: make_family(["hybrid.gin"], ["N_MELS = 32"], hop=2048),
        "family_wasserstein": lambda: make_family(
            ["v2.gin", "wasserstein.gin"], ["NOISE_AUGMENTATION = 3"], hop=2048
        ),
        "family_spherical": lambda: make_family(["v2.gin", "spherical.gin"], [], hop=2048),
        "prior": make_prior,
    }
    makers = {name: make for name, make in makers.items() if not only or name in only}
    for name, make in makers.items():
        path = folder / f"{name}.pt"
        torch.save(compact(make()), path)
        sys.stdout.write(f"{path} {path.stat().st_size // 1024} KiB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
