"""Training steps equal acids-rave's: losses, gradients and updated weights of v2 in both phases, read from its config.

The peer multiplies feature matching by its weight twice; `losses/rave_double_weighting.gin` reproduces that.
"""

from pathlib import Path

import pytest
import torch

from rave_tools import config
from rave_tools.training import run
from rave_tools.training.autoencoder import AutoencoderTrainingWrapper
from rave_tools.training.schedules import Constant, LinearDecay, LogRamp

FIXTURES = Path(__file__).parent / "fixtures"
OVERRIDES = [
    "CAPACITY = 4",
    "LATENT_SIZE = 8",
    "PHASE_1_DURATION = 10",
    "BETA_WARMUP = 6",
    "multiresolution.AudioDistanceV1.log_epsilon = 1e-1",
    "multi_period.MultiPeriodDiscriminator.periods = [2, 3]",
    "multi_scale.MultiScaleDiscriminator.n_discriminators = 2",
]


def our_key(key: str) -> str:
    """Where the peer's weight lives in our wrapper."""
    return f"adversary.{key}" if key.startswith("discriminator.") else f"codec.{key}"


def learnt(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {our_key(key): value for key, value in state.items() if not key.endswith("warmed_up")}


def build(fixture: dict, configs: list[str]) -> AutoencoderTrainingWrapper:
    wrapper = config.load(configs, OVERRIDES).build_argument(run.train, "wrapper")
    _, unexpected = wrapper.load_state_dict(learnt(fixture["initial"]), strict=False)
    assert not unexpected
    wrapper._receptive_field = tuple(fixture["receptive_field"])
    return wrapper


def optimizers(wrapper: AutoencoderTrainingWrapper) -> dict[str, torch.optim.Optimizer]:
    made = wrapper.configure_optimizers()
    for optimizer in made:
        # as in the fixture: at 1e-8, a gradient of rounding noise becomes a full step
        optimizer.param_groups[0]["eps"] = 1e-4
    return dict(zip(("generator", "discriminator"), made, strict=True))


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)
    assert error < tolerance, f"{what}: relative error {error:.1e}"


def check_generator_losses(losses: dict[str, torch.Tensor], logged: dict[str, torch.Tensor]) -> None:
    names = {"fullband_spectral_distance", "multiband_spectral_distance"} | ({"adversarial"} & losses.keys())
    for name in names:
        close(losses[name], logged[name], 1e-5, name)
    close(losses["kl"], logged["regularization"], 1e-5, "kl")
    if "feature_matching" in losses:
        close(20 * losses["feature_matching"], logged["feature_matching"], 1e-5, "feature_matching")


def one_update(wrapper, optimizer, audio, step, tolerance) -> None:
    """What `training_step` does between two updates of the counters, without a Lightning trainer."""
    wrapper._latent_noise = lambda _: step["gaussian"]
    optimizer.zero_grad(set_to_none=True)
    if step["updates"] == "discriminator":
        losses = wrapper.discriminator_losses(audio)
        close(losses["discriminator"], step["logged"]["loss_dis"], 1e-5, "discriminator")
        losses["discriminator"].backward()
    else:
        losses = wrapper.generator_losses(audio)
        check_generator_losses(losses, step["logged"])
        wrapper.combiner(losses).backward()
        optimizer.param_groups[0]["lr"] = step["learning_rate"]
    parameters = dict(wrapper.named_parameters())
    for key, gradient in step["gradients"].items():
        close(parameters[our_key(key)].grad, gradient, tolerance, f"gradient of {key}")
    optimizer.step()


@pytest.mark.parametrize("phase", [1, 2])
def test_three_updates(phase: int) -> None:
    fixture = torch.load(FIXTURES / f"training_phase_{phase}.pt", weights_only=True)
    wrapper = build(fixture, ["v2", "rave_double_weighting"]).train()
    made = optimizers(wrapper)
    for index, step in enumerate(fixture["steps"]):
        wrapper.counters.generator_updates = index + (10 if phase == 2 else 0)
        ramp = LogRamp(1e-6, 5e-2, 6)
        wrapper.betas = {"kl": Constant(ramp(index))}
        audio = fixture["x"].float().roll(1000 * index, -1)
        # spectral phases of silent bins turn at a rounding error, so the gradients drift apart where the losses do not
        one_update(wrapper, made[step["updates"]], audio, step, tolerance=3e-2 if index else 1e-4)
    state = wrapper.state_dict()
    for key, value in learnt(fixture["final"]).items():
        # Where a gradient is rounding noise a single weight may go its own way; as a whole they go the peer's.
        moved = (value - fixture["initial"][key.split(".", 1)[1]]).norm()
        assert (state[key] - value).norm() <= 0.05 * moved + 1e-7, key


def test_single_weighting_is_the_default_and_differs_only_in_feature_matching() -> None:
    fixture = torch.load(FIXTURES / "training_phase_2.pt", weights_only=True)
    once, twice = build(fixture, ["v2"]), build(fixture, ["v2", "rave_double_weighting"])
    assert once.combiner.weights == {**twice.combiner.weights, "feature_matching": 20.0}
    assert twice.combiner.weights["feature_matching"] == 400.0


def test_the_encoder_stands_still_in_phase_2() -> None:
    fixture = torch.load(FIXTURES / "training_phase_2.pt", weights_only=True)
    encoder = [key for key in fixture["initial"] if key.startswith("encoder.encoder.")]
    assert encoder
    assert all(torch.equal(fixture["initial"][key], fixture["final"][key]) for key in encoder)


def test_schedules() -> None:
    fixture = torch.load(FIXTURES / "schedules.pt", weights_only=True)
    arguments = fixture["beta_logarithmic"]["arguments"]
    ramp = LogRamp(arguments["initial_value"], arguments["target_value"], arguments["warmup_len"])
    assert [ramp(i) for i in range(25)] == pytest.approx(fixture["beta_logarithmic"]["beta"], rel=1e-9)
    decay = LinearDecay(1.0, 0.1, fixture["learning_rate"]["phase_1_duration"])
    assert [1e-3 * decay(i) for i in range(25)] == pytest.approx(fixture["learning_rate"]["learning_rate"], rel=1e-9)
