"""The balancer against its closed form, on losses whose gradients are known."""

import pytest
import torch

from rave_tools.contracts import Losses
from rave_tools.criteria.combiners import Balancer, WeightedSum

WEIGHTS = {"a": 1.0, "b": 3.0}


def linear(output, directions):
    """Losses whose gradients at the output are the directions / B."""
    values = {name: (output * direction).flatten(1).sum(1).mean() for name, direction in directions.items()}
    return Losses(values, output=output)


def draw(rows=4, seed=0, names=("a", "b")):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a": 100.0, "b": 0.01}
    return {name: sizes[name] * torch.randn(rows, 2, 5, generator=generator) for name in names}


def gradient_of(balancer, directions, **facts):
    output = torch.zeros(next(iter(directions.values())).shape, requires_grad=True)
    losses = linear(output, directions)
    for name, value in facts.items():
        setattr(losses, name, value)
    balancer(losses).backward()
    return output.grad


def sizes_of(gradient, *, per_item=True):
    return gradient.flatten(1).norm(dim=1).mean() if per_item else gradient.norm()


@pytest.mark.parametrize("per_item", [True, False])
def test_closed_form_over_several_updates(per_item):
    """Running averages of norms, older ones fading, divided by what the fading leaves of their number."""
    balancer = Balancer(WEIGHTS, total_norm=0.7, decay=0.9, per_item=per_item)
    history: dict[str, list[float]] = {"a": [], "b": []}
    for update in range(5):
        names = ("a",) if update == 1 else ("a", "b")  # a loss may be absent for a while: its average waits
        directions = draw(seed=update, names=names)
        expected = 0
        for name in names:
            g = directions[name] / 4
            history[name].append(float(sizes_of(g, per_item=per_item)))
            fading = [0.9**age for age in reversed(range(len(history[name])))]
            average = sum(f * n for f, n in zip(fading, history[name], strict=True)) / sum(fading)
            expected = expected + 0.7 * WEIGHTS[name] / sum(WEIGHTS[n] for n in names) * g / average
        torch.testing.assert_close(gradient_of(balancer, directions), expected)
        balancer.settle()


def test_each_loss_gets_its_share_whatever_its_scale():
    balancer, directions = Balancer(WEIGHTS), draw()
    gradient = gradient_of(balancer, directions)
    for name, share in (("a", 0.25), ("b", 0.75)):
        alone = gradient_of(Balancer({name: 1.0}), {name: directions[name]})
        assert sizes_of(alone) == pytest.approx(1, rel=1e-5)
        gradient = gradient - share * alone
    assert gradient.abs().max() < 1e-6
    # What is watched is what each would have had without balancing.
    raw = {name: sizes_of(direction) for name, direction in directions.items()}
    assert float(balancer.shares["a"]) == pytest.approx(float(raw["a"] / (raw["a"] + raw["b"])), rel=1e-5)


def test_the_value_is_the_sum_of_the_balanced_losses():
    balancer, output = Balancer(WEIGHTS), torch.randn(4, 2, 5, requires_grad=True)
    directions = draw()
    losses = linear(output, directions)
    expected = sum(w / 4 * losses[name] / sizes_of(directions[name] / 4) for name, w in WEIGHTS.items())
    torch.testing.assert_close(balancer(losses), expected)


def test_losses_that_do_not_depend_on_the_output_pass_aside():
    balancer = Balancer({**WEIGHTS, "kl": 0.5})
    latent = torch.tensor([2.0], requires_grad=True)
    output = torch.zeros(4, 2, 5, requires_grad=True)
    losses = linear(output, draw())
    losses["kl"] = latent.square().sum()
    total = balancer(losses)
    total.backward()
    assert latent.grad == 0.5 * 4
    torch.testing.assert_close(output.grad, gradient_of(Balancer(WEIGHTS), draw()))
    balancer.settle()
    assert balancer.norm_kl.sum() == 0 and "kl" not in balancer.shares
    losses = linear(torch.zeros(4, 2, 5, requires_grad=True), draw())
    losses["kl"] = torch.tensor(4.0)  # a frozen encoder: a number, not a thing to differentiate
    assert torch.isfinite(balancer(losses))


@pytest.mark.parametrize("per_item", [True, False])
def test_accumulated_batches_leave_the_averages_of_one_large_batch(per_item):
    whole, parts = (Balancer(WEIGHTS, decay=0.9, per_item=per_item) for _ in range(2))
    for update in range(3):
        directions = draw(rows=6, seed=update)
        gradient_of(whole, directions)
        for part in range(3):
            gradient_of(parts, {k: v[2 * part : 2 * part + 2] for k, v in directions.items()}, parts=3)
        whole.settle()
        parts.settle()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)


@pytest.mark.parametrize("per_item", [True, False])
def test_equal_parts_make_the_gradient_of_one_large_batch(per_item):
    directions = draw(rows=2)
    twice = {name: torch.cat([value, value]) for name, value in directions.items()}
    whole = gradient_of(Balancer(WEIGHTS, per_item=per_item), twice)
    parts = Balancer(WEIGHTS, per_item=per_item)
    halves = [gradient_of(parts, directions, parts=2) / 2 for _ in range(2)]  # the trainer's mean over the parts
    torch.testing.assert_close(torch.cat(halves), whole)


def test_magnified_losses_give_the_same_gradient():
    plain, magnified = Balancer(WEIGHTS), Balancer(WEIGHTS)
    torch.testing.assert_close(gradient_of(magnified, draw(), scale=65536.0), gradient_of(plain, draw()))
    assert torch.equal(magnified.pending_a, plain.pending_a)


def test_without_balancing_it_is_a_weighted_sum_that_is_watched():
    balancer, sum_of_them = Balancer(WEIGHTS, balance_grads=False), WeightedSum(WEIGHTS)
    output = torch.zeros(4, 2, 5, requires_grad=True)
    total = sum_of_them(linear(output, draw()))
    total.backward()
    torch.testing.assert_close(gradient_of(balancer, draw()), output.grad)
    torch.testing.assert_close(balancer(linear(output, draw())), total.detach())
    assert balancer.factors == WEIGHTS
    assert float(balancer.shares["a"]) > 0.99, "as loud as it is"
    balancer.settle()
    assert balancer.norm_a[1] == 1


def test_a_loss_without_weight_is_only_watched():
    """As AudioCraft's losses of weight 0; nobody differentiates it, so it may even be infinite."""
    balancer, output = Balancer({**WEIGHTS, "watched": 0.0}), torch.zeros(4, 2, 5, requires_grad=True)
    losses = linear(output, draw())
    losses["watched"] = output.sum() / 0
    balancer(losses).backward()
    torch.testing.assert_close(output.grad, gradient_of(Balancer(WEIGHTS), draw()))
    assert "watched" not in balancer.shares
    with pytest.raises(ValueError, match="weights are all 0"):
        Balancer({"a": 0.0})


def test_factors_are_what_the_losses_were_multiplied_by():
    balancer, directions = Balancer(WEIGHTS), draw()
    gradient = gradient_of(balancer, directions)
    expected = sum(factor * directions[name] / 4 for name, factor in balancer.factors.items())
    torch.testing.assert_close(gradient, expected)
    assert set(balancer.factors) == set(WEIGHTS)


@pytest.mark.parametrize("per_item", [True, False])
def test_an_overflow_is_forgotten(per_item):
    balancer = Balancer(WEIGHTS, per_item=per_item)
    gradient_of(balancer, draw())
    balancer.settle()
    before = {name: value.clone() for name, value in balancer.state_dict().items()}
    directions = draw(seed=1)
    directions["a"][0, 0, 0] = float("inf")
    assert not gradient_of(balancer, directions).isfinite().all()  # the guard, or the scaler, leaves the update out
    balancer.settle()
    assert torch.equal(balancer.norm_a, before["norm_a"])
    assert gradient_of(balancer, draw()).isfinite().all()


def test_averages_are_saved():
    first = Balancer(WEIGHTS, decay=0.9)
    for update in range(2):
        gradient_of(first, draw(seed=update))
        first.settle()
    second = Balancer(WEIGHTS, decay=0.9)
    second.load_state_dict(first.state_dict())
    assert torch.equal(gradient_of(first, draw(seed=2)), gradient_of(second, draw(seed=2)))
    assert set(first.state_dict()) == {"norm_a", "norm_b"}


def test_a_vanishing_gradient_is_no_division_by_zero():
    directions = draw()
    directions["b"] = torch.zeros_like(directions["b"])
    assert gradient_of(Balancer(WEIGHTS), directions).isfinite().all()


def test_mistakes():
    with pytest.raises(ValueError, match="no weight for the losses b"):
        gradient_of(Balancer({"a": 1.0}), draw())
    with pytest.raises(ValueError, match="no loss for the weights c"):
        Balancer({"a": 1.0, "c": 1.0}).declare(["a"])
    with pytest.raises(ValueError, match="use WeightedSum"):
        Balancer({"a": 1.0})({"a": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="decay is 1.0"):
        Balancer({"a": 1.0}, decay=1.0)
    with pytest.raises(ValueError, match="negative are a"):
        Balancer({"a": -1.0})
