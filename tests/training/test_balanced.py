"""Training with balanced gradients: shares, exact resume, accumulation, TensorBoard."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rave_tools.criteria.combiners import Balancer
from rave_tools.errors import UserError
from rave_tools.runs import RunDirectory, load_checkpoint
from rave_tools.training.run import train

from .test_run import go, same_weights
from .toys import ToyData, toy_wrapper

WEIGHTS = {"fullband_distance": 1.0, "kl": 1.0, "adversarial": 3.0, "feature_matching": 3.0}


def balanced(**changes):
    return toy_wrapper(combiner=Balancer(WEIGHTS, decay=0.9), **changes)


@pytest.mark.parametrize("phase", [1, 2])
def test_each_loss_has_its_share_of_the_gradient_at_the_decoders_output(phase):
    """Whatever the scales of the losses, the weights say what counts."""
    wrapper = balanced(phase_1=0 if phase == 2 else 4)
    losses = wrapper.generator_losses(ToyData().audio(0))
    names = ["fullband_distance", *(["adversarial", "feature_matching"] if phase == 2 else [])]
    assert {*names, "kl"} == losses.keys()
    each = {name: torch.autograd.grad(losses[name], losses.output, retain_graph=True)[0] for name in names}
    total = wrapper.combiner(losses)
    (balanced_gradient,) = torch.autograd.grad(total, losses.output, retain_graph=True)
    weight = sum(WEIGHTS[name] for name in names)
    expected = sum(WEIGHTS[name] / weight * g / g.flatten(1).norm(dim=1).mean() for name, g in each.items())
    torch.testing.assert_close(balanced_gradient, expected)
    total.backward()
    assert (wrapper.codec.encoder.weight.grad is not None) == (phase == 1), "frozen in phase 2"
    assert all(p.grad is None for p in wrapper.adversary.parameters())


@pytest.mark.parametrize("estimate", [False, True])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, estimate):
    """The averages of the norms are in the checkpoint, and an estimate of costs leaves no trace in them."""
    whole, rows, _ = go(tmp_path / "whole", wrapper=balanced())
    go(tmp_path / "split", wrapper=balanced(), max_steps=7, estimate=estimate)
    again, after, _ = go(tmp_path / "split", wrapper=balanced(), resume="last", estimate=estimate)
    same_weights(whole, again)
    assert rows[-1] == after[-1]
    assert whole.combiner.norm_adversarial[1] > 1 and whole.combiner.norm_kl[1] == 0


def test_a_run_without_averages_is_not_resumed_with_them(tmp_path):
    """Averages that began anew would change the weight of every loss without a word."""
    go(tmp_path, max_steps=5)
    with pytest.raises(UserError, match="combiner.norm_fullband_distance is not in the checkpoint"):
        go(tmp_path, wrapper=balanced(), resume="last")


def test_weights_taken_from_another_run_say_that_the_averages_were_not(tmp_path):
    run = RunDirectory(tmp_path / "sum").create()
    go(run.path, max_steps=5)
    said: list[str] = []
    weights = load_checkpoint(run.checkpoint_path("last"))["state_dict"]
    go(tmp_path / "balanced", wrapper=balanced(), max_steps=1, init_from=weights, report=said.append)
    assert any("not taken: combiner.norm_fullband_distance is not in the checkpoint" in line for line in said)


class Doubled(ToyData):
    """The rows of two batches in one."""

    def audio(self, index):
        return torch.cat([ToyData().audio(2 * index), ToyData().audio(2 * index + 1)])


def test_accumulated_batches_leave_the_averages_of_one_large_batch(tmp_path):
    """Of the first update, before which the weights are the same: the very same, though each half saw half."""
    def quiet():
        wrapper = balanced(schedule=None, betas={})
        wrapper.codec.noisy = False
        wrapper.codec.noise_level.data.zero_()
        return wrapper

    large, _, _ = go(tmp_path / "large", wrapper=quiet_latents(quiet()), data=Doubled(), max_steps=1)
    small, _, _ = go(tmp_path / "small", wrapper=quiet_latents(quiet()), max_steps=1, accumulate=2)
    for name in ("fullband_distance", "adversarial", "feature_matching"):
        torch.testing.assert_close(
            small.combiner.get_buffer(f"norm_{name}"), large.combiner.get_buffer(f"norm_{name}")
        )


def quiet_latents(wrapper):
    """Latents without noise: two small batches draw other noise than a large one."""
    encode = wrapper.codec.encode_bands
    wrapper.codec.encode_bands = lambda bands, **options: encode(bands, **{**options, "deterministic": True})
    return wrapper


def test_shares_are_watched(tmp_path):
    train(
        wrapper=balanced(), data=ToyData(), run=RunDirectory(tmp_path).create(), config_text="# toy", max_steps=6,
        log_every=1, accelerator="cpu", progress=False, estimate=False, report=lambda line: None,
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path)).Reload()
    shares = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if "gradient_share" in tag}
    assert set(shares) == {f"optimisation/gradient_share_{name}" for name in WEIGHTS if name != "kl"}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
