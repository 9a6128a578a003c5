"""float16 with a scaler, without a GPU: the scaler's arithmetic is the same on the CPU."""

from types import SimpleNamespace

import pytest
import torch

from rave_tools.criteria.combiners import Balancer
from rave_tools.errors import UserError
from rave_tools.training.wrapper import GradientGuard, ScalarMeans, gradient_norm, step_seed

from .toys import ToyData, to_batch, toy_wrapper


def scaled(wrapper, scale=2.0**10):
    """Stands in for Lightning's plugin for 16-mixed."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    optimizers = wrapper.configure_optimizers()

    class Stepping:
        def __init__(self, optimizer):
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

        def zero_grad(self, **options):
            self.optimizer.zero_grad(**options)

        def step(self):
            scaler.step(self.optimizer)
            scaler.update()

    wrapper.optimizers = lambda: [Stepping(optimizer) for optimizer in optimizers]
    wrapper.manual_backward = lambda loss: scaler.scale(loss).backward()
    wrapper._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    return scaler


def make(combiner):
    """A toy whose losses are added, or balanced."""
    weights = {"fullband_distance": 1.0, "kl": 1.0, "adversarial": 3.0, "feature_matching": 3.0}
    return toy_wrapper(**({"combiner": Balancer(weights, decay=0.9)} if combiner == "balanced" else {}))


@pytest.mark.parametrize("combiner", ["sum", "balanced"])
def test_scaled_training_equals_plain_training_and_reports_the_true_norm(combiner):
    plain, other = make(combiner), make(combiner)
    scaled(plain, 1.0), scaled(other)
    for index in range(8):
        for wrapper in (plain, other):
            wrapper.training_step(to_batch(ToyData().audio(index)), index)
        assert other.gradient_norms == pytest.approx(plain.gradient_norms, rel=1e-5)
    for (name, a), b in zip(plain.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    if combiner == "balanced":
        assert other.combiner.norm_adversarial[1] > 1


def test_an_overflow_enters_no_average():
    wrapper = make("balanced")
    scaled(wrapper)
    wrapper.training_step(to_batch(ToyData().audio(0)), 0)
    before = wrapper.combiner.norm_fullband_distance.clone()
    assert before[1] == 1
    audio = ToyData().audio(1)
    audio[0, 0, 0] = float("inf")
    wrapper.training_step(to_batch(audio), 1)
    assert wrapper.counters.skipped == 1 and torch.equal(wrapper.combiner.norm_fullband_distance, before)
    wrapper.training_step(to_batch(ToyData().audio(2)), 2)
    assert wrapper.counters.generator_updates == 2 and wrapper.combiner.norm_fullband_distance.isfinite().all()


def test_an_overflow_lowers_the_scale_and_is_counted_as_skipped():
    wrapper = toy_wrapper()
    scaler = scaled(wrapper)
    audio = ToyData().audio(0)
    audio[0, 0, 0] = float("inf")
    wrapper.training_step(to_batch(audio), 0)
    assert wrapper.counters.skipped == 1 and wrapper.counters.generator_updates == 0
    assert scaler.get_scale() == 2.0**9
    assert all(torch.isfinite(p).all() for p in wrapper.parameters())


def test_guard_stops_after_too_many_in_a_row_or_in_a_window():
    guard = GradientGuard(consecutive=3)
    losses = {"good": torch.tensor(1.0), "bad": torch.tensor(float("inf"))}
    assert guard.admit(1.0, losses)
    assert not guard.admit(float("nan"), losses) and not guard.admit(float("inf"), losses)
    with pytest.raises(UserError, match="3 updates in a row.*bad"):
        guard.admit(float("nan"), losses)
    guard = GradientGuard(consecutive=100, fraction=0.5, window=10)
    with pytest.raises(UserError, match="5 of the last 10"):
        for index in range(20):
            guard.admit(float("nan") if index % 2 else 1.0, {})


def test_norm_is_that_of_all_gradients_together():
    parameters = [
        torch.nn.Parameter(torch.zeros(3)),
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0.0, 4.0])
    assert float(gradient_norm(parameters)) == pytest.approx(5)
    assert float(gradient_norm(parameters[2:])) == 0


def test_means_are_over_what_was_observed():
    means = ScalarMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(10.0)})
    means.add({"a": torch.tensor(3.0)})
    assert means.read() == {"a": 2.0, "b": 10.0}
    assert means.read() == {}


def test_seeds_of_steps_differ_in_every_argument():
    seeds = {step_seed(seed, batch, rank) for seed in range(8) for batch in range(200) for rank in range(4)}
    assert len(seeds) == 8 * 200 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
