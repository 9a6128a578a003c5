"""A discriminator that learns from the generator's batches: AudioCraft's order, exact resume, accumulation."""

import copy

import pytest
import torch

from rave_tools.training.schedules import Phase
from rave_tools.training.wrapper import step_seed

from .test_run import go, same_weights
from .toys import ToyData, adam, hinge_discriminator, match, squared, toy_wrapper


class EverySecond:
    """The discriminator joins the first batch, the third, ..."""

    shares_batches = True
    phase = Phase(1, "adversarial", adversarial=True, encoder_frozen=False)

    def at(self, generator_updates):
        return self.phase

    def discriminator_turn(self, generator_updates, discriminator_updates):
        return False

    def discriminator_joins(self, generator_updates, discriminator_updates):
        return generator_updates % 2 == 0

    def stretches(self, max_steps):
        return [(self.phase, max_steps, 0.5)]


def shared(**changes):
    # With a large eps: Adam turns the rounding of a gradient that cancels into a whole step.
    arguments = {"generator_optimizer": adam(1e-2, eps=1.0), "discriminator_optimizer": adam(1e-2, eps=1.0)}
    return toy_wrapper(schedule=EverySecond(), learning_rate=None, betas={}, **{**arguments, **changes})


def test_the_discriminator_learns_first_and_judges_then(tmp_path):
    """Against the same update written out: D on the detached estimate, its step, then G against the new D."""
    wrapper = shared()
    wrapper.codec.noisy = False
    plain = copy.deepcopy(wrapper)
    trained, rows, _ = go(tmp_path, wrapper=wrapper, max_steps=1)

    optimizers = plain.configure_optimizers()
    audio = ToyData().audio(0)
    torch.manual_seed(step_seed(plain.seed, 0, 0))
    reconstruction, latent = plain.reconstruct(audio)
    fakes = plain.adversary.discriminator(reconstruction.estimate.detach())
    reals = plain.adversary.discriminator(audio)
    loss = sum(hinge_discriminator(r.logits, f.logits) for r, f in zip(reals, fakes, strict=True))
    loss.backward()
    optimizers[1].step()
    fakes = plain.adversary.discriminator(reconstruction.estimate)
    reals = plain.adversary.discriminator(audio)
    total = latent.penalties["kl"] + squared(audio, reconstruction.estimate)["distance"]
    total = total - sum(f.logits.mean() for f in fakes) + match(reals, fakes)
    learning = [p for p in plain.codec.parameters() if p.requires_grad]
    for parameter, gradient in zip(learning, torch.autograd.grad(total, learning, allow_unused=True), strict=True):
        parameter.grad = gradient
    optimizers[0].step()
    for (name, a), b in zip(trained.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert rows[0][1]["loss_discriminator"] == pytest.approx(float(loss))


def test_it_joins_the_batches_that_the_schedule_says_and_costs_none_of_its_own(tmp_path):
    wrapper, rows, _ = go(tmp_path, wrapper=shared(), max_steps=6)
    assert wrapper.counters.as_dict() == {
        "generator_updates": 6, "discriminator_updates": 3, "batches": 6, "skipped": 0
    }  # fmt: skip
    assert ["loss_discriminator" in row for _, row in rows] == [True, False] * 3
    assert all("adversarial" in row for _, row in rows)


@pytest.mark.parametrize(("stop", "accumulate"), [(3, 1), (2, 1), (3, 2)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, stop, accumulate):
    whole, rows, _ = go(tmp_path / "whole", wrapper=shared(), max_steps=6, accumulate=accumulate)
    go(tmp_path / "split", wrapper=shared(), max_steps=stop, accumulate=accumulate)
    again, after, _ = go(
        tmp_path / "split", wrapper=shared(), max_steps=6, accumulate=accumulate, resume="last", estimate=True
    )
    same_weights(whole, again)
    assert rows[-1] == after[-1]
    assert whole.counters.batches == 6 * accumulate


def test_accumulated_halves_teach_the_discriminator_like_one_batch(tmp_path):
    """Of the first update; it sees both halves before it is changed."""

    class Doubled(ToyData):
        def audio(self, index):
            return torch.cat([ToyData().audio(2 * index), ToyData().audio(2 * index + 1)])

    def quiet():
        wrapper = shared()
        wrapper.codec.noisy = False
        original = wrapper.reconstruct
        wrapper.reconstruct = lambda audio, **options: original(audio, **{**options, "deterministic": True})
        return wrapper

    one, _, _ = go(tmp_path / "one", wrapper=quiet(), data=Doubled(), max_steps=1)
    two, _, _ = go(tmp_path / "two", wrapper=quiet(), max_steps=1, accumulate=2)
    for a, b in zip(one.adversary.parameters(), two.adversary.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_each_player_has_its_own_longest_gradient(tmp_path):
    """With plain steps of rate 1 the weights move by the gradient, so by its limit at most."""

    def plain_steps(parameters):
        return torch.optim.SGD(parameters, lr=1.0)

    optimizers = {"generator_optimizer": plain_steps, "discriminator_optimizer": plain_steps}
    wrapper = shared(**optimizers, clip_norm=1e-3, discriminator_clip_norm=1e-5)
    before = [[p.detach().clone() for p in player] for player in wrapper.learners()]
    trained, _, _ = go(tmp_path, wrapper=wrapper, max_steps=1)
    moved = [
        float(torch.stack([(now - then).norm() for now, then in zip(*pair, strict=True)]).norm())
        for pair in zip(trained.learners(), before, strict=True)
    ]
    assert moved == pytest.approx([1e-3, 1e-5], rel=0.02)
