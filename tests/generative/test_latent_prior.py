"""The prior: acids-rave's numbers, causal, its likelihood by hand, its sampler equal to the network, what it learns."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rave_tools.generative.latent_prior import LatentPrior
from rave_tools.generative.quantization import from_classes, from_diagonal, to_classes, to_diagonal
from rave_tools.nn.streaming import streaming

FIXTURE = Path(__file__).parents[1] / "fixtures" / "prior.pt"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(latents=4, **changes):
    sizes = dict(resolution=8, res_size=16, skp_size=8, kernel_size=3, cycle_size=2, n_layers=3)
    return LatentPrior(latents, **{**sizes, **changes}).eval().requires_grad_(False)


def excited(prior):
    """Weights large enough for probabilities that are far from equal."""
    for parameter in prior.parameters():
        parameter.mul_(3)
    return prior


def test_parity_with_acids_rave():
    peer = torch.load(FIXTURE, weights_only=True)
    prior = LatentPrior(**peer["sizes"])
    missing, unexpected = prior.load_state_dict(peer["state"], strict=False)
    assert not unexpected and set(missing) == {"latent_shift", "latent_scale"}
    classes = prior.classes(peer["z"])
    frames = prior.one_hot(classes)
    assert torch.equal(frames, peer["frames"])
    logits = prior(frames)
    torch.testing.assert_close(logits, peer["logits"], rtol=0, atol=1e-6)
    loss = F.cross_entropy(logits[..., :-1].unflatten(1, (4, 8)).transpose(1, 2), classes[..., 1:])
    torch.testing.assert_close(loss, peer["loss"])
    decoded = from_classes(classes, torch.zeros(classes.shape), 8)
    torch.testing.assert_close(decoded, peer["decoded"], rtol=0, atol=1e-6)
    assert torch.equal(from_diagonal(to_diagonal(peer["z"])), peer["restored"])


def test_classes_are_equally_probable_and_return_to_their_numbers():
    x = torch.randn(200_000)
    classes = to_classes(x, 16)
    torch.testing.assert_close(classes.bincount(minlength=16) / len(x), torch.full((16,), 1 / 16), rtol=0, atol=3e-3)
    again = from_classes(classes, torch.rand(len(x)), 16)
    assert torch.equal(to_classes(again, 16), classes)
    assert abs(float(again.mean())) < 0.01 and abs(float(again.std()) - 1) < 0.01
    assert to_classes(torch.tensor([-9.0, 9.0]), 16).tolist() == [0, 15]
    assert from_classes(torch.tensor([0, 15]), torch.tensor([0.0, 1.0]), 16).tolist() == [-4, 4]


def test_the_diagonal_puts_every_latent_behind_those_before_it():
    x = torch.arange(3 * 10).reshape(1, 3, 10)
    frames = to_diagonal(x)
    assert frames.shape == (1, 3, 8)
    for step in range(8):
        assert frames[0, :, step].tolist() == [int(x[0, d, step + 2 - d]) for d in range(3)]
    assert torch.equal(from_diagonal(frames), x[..., 2:8])


@pytest.mark.parametrize("frame", [0, 5, 11])
def test_the_future_does_not_change_the_past(frame):
    prior = excited(small())
    classes = torch.randint(8, (1, 4, 12))
    changed = classes.clone()
    changed[:, 2, frame] = (changed[:, 2, frame] + 3) % 8
    before, after = prior.logits(classes), prior.logits(changed)
    assert torch.equal(before[:, :, : frame + 1], after[:, :, : frame + 1])
    assert frame == 11 or not torch.allclose(before[:, :, frame + 1], after[:, :, frame + 1])


def test_the_receptive_field_is_what_it_says():
    prior = LatentPrior(2, resolution=4, res_size=4, skp_size=4, kernel_size=3, cycle_size=3, n_layers=4).double()
    frames = torch.rand(1, 8, 60, dtype=torch.float64, requires_grad=True)
    prior(frames)[0, :, -1].square().sum().backward()
    reached = frames.grad[0].abs().sum(0).nonzero().flatten()
    assert 60 - int(reached[0]) == prior.receptive_field == 2 * (1 + 1 + 2 + 4 + 1) + 1


def test_likelihood_equals_a_slow_reference():
    """One latent after the other, each from the numbers before it alone, with softmax and quantisation by hand."""
    prior = excited(small(latents=2)).double()
    prior.standardize(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.3]))
    controls = torch.randn(1, 2, 9, dtype=torch.float64)
    found = prior.log_likelihood(controls)

    def slice_of(d, n):
        x = (float(controls[0, d, n]) - float(prior.latent_shift[d])) / float(prior.latent_scale[d])
        return min(7, int(8 * 0.5 * (1 + math.erf(x / math.sqrt(2)))))

    frames = [[slice_of(d, step + 1 - d) for d in range(2)] for step in range(8)]
    assert found.shape == (1, 2, 8)
    for step in range(8):
        past = torch.zeros(1, 16, step + 1, dtype=torch.float64)
        for earlier in range(step):
            for d in range(2):
                past[0, 8 * d + frames[earlier][d], earlier + 1] = 1
        logits = prior(past)[0, :, -1].tolist()
        for d in range(2):
            own = [math.exp(value) for value in logits[8 * d : 8 * d + 8]]
            expected = math.log(own[frames[step][d]] / sum(own))
            assert float(found[0, d, step]) == pytest.approx(expected, abs=1e-6)


def test_the_network_streams_exactly():
    prior = excited(small()).double()
    twin, info = streaming(prior)
    assert (info.offset, info.latency) == (0, 0)
    frames = prior.one_hot(torch.randint(8, (2, 4, 40)))
    # A stream knows no beginning; the plain network pads every layer with zeros at the same place.
    expected = prior(frames)
    y = torch.cat([twin(part) for part in frames.split([1, 7, 2, 20, 10], -1)], -1)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def drawn_classes(sampler, temperature, noise):
    """Logits and classes of every step, one frame at a time."""
    state, logits, classes = sampler.silence(noise.shape[0]), [], []
    for n in range(noise.shape[-1]):
        logits.append(sampler.predict(state)[0])
        _, state = sampler(temperature[..., n : n + 1], noise[..., n : n + 1], state)
        classes.append(state[0][..., -1].long() - 1)
    return torch.stack(logits, 2), torch.stack(classes, -1)


def test_sampling_predicts_what_the_network_predicts():
    prior = excited(small())
    noise = torch.rand(3, 4, 30)
    logits, classes = drawn_classes(prior.sampler(), torch.ones(3, 1, 30), noise)
    assert classes.unique().numel() == 8
    torch.testing.assert_close(logits, prior.logits(classes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scripted", [False, True])
def test_the_step_is_pure_and_knows_no_blocks(scripted):
    prior = excited(small())
    prior.standardize(torch.arange(4.0), torch.tensor([1.0, 2.0, 0.5, 3.0]))
    sampler = torch.jit.script(prior.sampler()) if scripted else prior.sampler()
    temperature, noise = torch.rand(2, 1, 24), torch.rand(2, 4, 24)
    beginning = sampler.silence(2)
    whole, _ = sampler(temperature, noise, beginning)
    assert all(not room.any() for room in beginning)
    parts, state = [], beginning
    for start, end in ((0, 1), (1, 6), (6, 8), (8, 24)):
        part, state = sampler(temperature[..., start:end], noise[..., start:end], state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, -1), whole, rtol=0, atol=1e-4)
    alone, _ = sampler(temperature[1:], noise[1:], sampler.silence(1))
    torch.testing.assert_close(alone[0], whole[1], rtol=0, atol=1e-4)
    plain, _ = prior.sampler()(temperature, noise, beginning)
    torch.testing.assert_close(plain, whole, rtol=0, atol=1e-4)  # a low temperature magnifies the rounding of logits


def test_latents_lie_in_their_classes_and_are_aligned_again():
    prior = excited(small())
    prior.standardize(torch.tensor([1.0, 0.0, -2.0, 0.0]), torch.tensor([1.0, 2.0, 0.5, 3.0]))
    sampler = prior.sampler()
    temperature, noise = torch.ones(1, 1, 30), torch.rand(1, 4, 30)
    latents, _ = sampler(temperature, noise, sampler.silence(1))
    _, classes = drawn_classes(sampler, temperature, noise)
    heard = latents[..., sampler.delay :]
    assert torch.equal(prior.classes(heard), classes[..., 3:27])


def test_temperature():
    prior = excited(small())
    sampler = prior.sampler()
    logits = torch.randn(1, 4, 8).expand(100_000, 4, 8)
    for temperature in (0.5, 1.0, 2.0):
        classes, within = sampler.draw(logits, torch.full((100_000, 1), temperature), torch.rand(100_000, 4))
        share = F.one_hot(classes, 8).float().mean(0)
        torch.testing.assert_close(share, torch.softmax(logits[0] / temperature, -1), rtol=0, atol=0.01)
        assert abs(float(within.mean()) - 0.5) < 0.01 and abs(float(within.var()) - 1 / 12) < 0.01
    for temperature in (0.0, -1.0):
        classes, within = sampler.draw(logits, torch.full((100_000, 1), temperature), torch.rand(100_000, 4))
        assert torch.equal(classes, logits.argmax(-1)) and bool((within == 0.5).all())
    noise = torch.tensor([[0.0, 1 - 2**-24, 0.5, 1e-9]])
    classes, within = sampler.draw(100 * logits[:1], torch.ones(1, 1), noise)
    assert bool(((classes >= 0) & (classes < 8)).all()) and bool(((within >= 0) & (within <= 1)).all())


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="res_size is 16, no multiple of its 3 latents; take 18"):
        small(latents=3)
    with pytest.raises(ValueError, match="two classes"):
        small(resolution=1)
    with pytest.raises(ValueError, match="4 latents and needs at least as many frames, not 4 latents in 3 frames"):
        small().classes(torch.zeros(1, 4, 3))


def process(rows, frames, generator):
    """Two latents: a slow wander, and one that repeats the first, two frames later and negated, with some noise."""
    draws = torch.randn(rows, frames + 50, generator=generator)
    slow = torch.zeros(rows, frames + 50)
    for n in range(1, frames + 50):
        slow[:, n] = 0.9 * slow[:, n - 1] + math.sqrt(1 - 0.81) * draws[:, n]
    other = -0.95 * slow.roll(2, 1) + math.sqrt(1 - 0.95**2) * torch.randn(rows, frames + 50, generator=generator)
    return torch.stack([3 + 2 * slow, 0.1 * other], 1)[..., 50:]


def statistics(x):
    """Mean and deviation of both latents, correlation of neighbours in the first, of the second with the first."""
    mean, deviation = x.mean((0, 2)), x.std((0, 2))
    y = (x - mean[:, None]) / deviation[:, None]
    neighbours = (y[:, 0, 1:] * y[:, 0, :-1]).mean()
    across = (y[:, 1, 2:] * y[:, 0, :-2]).mean()
    return [*mean.tolist(), *deviation.tolist(), float(neighbours), float(across)]


@pytest.mark.slow
def test_it_learns_a_process_and_its_samples_follow_it():
    generator = torch.Generator().manual_seed(1)
    prior = LatentPrior(2, resolution=16, res_size=32, skp_size=32, n_layers=3, cycle_size=3)
    prior.standardize(torch.tensor([3.0, 0.0]), torch.tensor([2.0, 0.1]))
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    held = process(64, 64, generator)
    first = float(-prior.log_likelihood(held).mean().detach())
    for _ in range(400):
        loss = -prior.log_likelihood(process(32, 64, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    last = float(-prior.log_likelihood(held).mean().detach())
    assert first == pytest.approx(math.log(16), abs=0.2)
    # What a perfect prior of the unquantised process gains over independent latents: -log sqrt(1 - r^2) each.
    gain = -0.5 * (0.5 * math.log(1 - 0.81) + 0.5 * math.log(1 - 0.95**2))
    assert math.log(16) - last == pytest.approx(gain, abs=0.25)
    sampler = prior.sampler()
    drawn, _ = sampler(torch.ones(64, 1, 100), torch.rand(64, 2, 100, generator=generator), sampler.silence(64))
    expected = statistics(process(64, 100, generator))
    for ours, theirs, room in zip(statistics(drawn[..., 10:]), expected, (0.5, 0.03, 0.3, 0.02, 0.1, 0.1), strict=True):
        assert ours == pytest.approx(theirs, abs=room)
