"""What stands between encoder and decoder: codebooks, spheres, clouds, and how a host sees them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rave_tools.codec.bottlenecks import quantization
from rave_tools.codec.bottlenecks.discrete import DiscreteEncoder
from rave_tools.codec.bottlenecks.quantization import EuclideanCodebook, ResidualVectorQuantization, kmeans
from rave_tools.codec.bottlenecks.spherical import SphericalEncoder
from rave_tools.codec.bottlenecks.variational import VariationalEncoder
from rave_tools.codec.bottlenecks.wasserstein import WasserteinEncoder, maximum_mean_discrepancy
from rave_tools.codec.controls import angles_to_direction, direction_to_angles

FIXTURE = Path(__file__).parents[1] / "fixtures" / "blocks.pt"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def peer():
    return torch.load(FIXTURE, weights_only=True)


class Network(nn.Module):
    """An encoder of one matrix."""

    def __init__(self, latent_size, n_out=1):
        super().__init__()
        self.hop, self.in_channels, self.latent_size, self.n_out = 1, 3, latent_size, n_out
        self.net = nn.Conv1d(3, latent_size * n_out, 1, bias=False)

    def forward(self, x):
        return self.net(x)


class Host(nn.Module):
    """What an export compiles."""

    def __init__(self, controls):
        super().__init__()
        self.controls = controls

    def forward(self, x):
        return self.controls.hidden(x)


def discrete(*, size=4, codebooks=3, codes=16, **options):
    return DiscreteEncoder(Network(size), ResidualVectorQuantization(codebooks, size, codes), **options)


def blobs(rows=2, frames=200, centres=16, size=4):
    """Latents around a few points: (B, D, N)."""
    points = 5 * torch.randn(centres, size)
    chosen = torch.randint(centres, (rows, frames))
    return (points[chosen] + 0.05 * torch.randn(rows, frames, size)).transpose(1, 2)


def test_a_codebook_moves_as_the_peers(peer):
    codebook = EuclideanCodebook(4, 8, kmeans_init=False, threshold_ema_dead_code=0)
    codebook.load_state_dict(peer["codebook_before"])
    layer = quantization.VectorQuantization(codebook)
    rows, _, frames = peer["vectors"].shape
    vectors = peer["vectors"].transpose(1, 2).reshape(-1, 4).requires_grad_()
    chosen, indices, commitment = layer.quantize(vectors, learn=True)
    assert indices.reshape(rows, frames).equal(peer["codes"])
    torch.testing.assert_close(chosen.reshape(rows, frames, 4).transpose(1, 2), peer["quantized"], rtol=0, atol=1e-6)
    torch.testing.assert_close(commitment, peer["commitment"])
    (gradient,) = torch.autograd.grad(commitment, vectors)
    torch.testing.assert_close(gradient.reshape(rows, frames, 4).transpose(1, 2), peer["commitment_gradient"])
    for name, value in peer["codebook_after"].items():
        torch.testing.assert_close(codebook.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_kmeans_finds_the_centres_in_chunks(monkeypatch):
    vectors = blobs(frames=400).transpose(1, 2).reshape(-1, 4)
    torch.manual_seed(1)
    whole, counts = kmeans(vectors, 16, iterations=20)
    monkeypatch.setattr(quantization, "ROWS_AT_ONCE", 37)
    torch.manual_seed(1)
    pieces, _ = kmeans(vectors, 16, iterations=20)
    torch.testing.assert_close(pieces, whole)
    assert counts.sum() == len(vectors)
    distances = torch.cdist(vectors, whole).min(1).values
    assert distances.square().mean() < 0.2 * vectors.var(0).sum()


def test_a_placed_codebook_stays_where_its_vectors_are():
    """acids-rave begins with means for sums, and the codes shrink by their counts in the first updates."""
    codebook = EuclideanCodebook(4, 4, threshold_ema_dead_code=0)
    vectors = blobs(centres=4).transpose(1, 2).reshape(-1, 4)
    codebook.begin(vectors)
    before = codebook.embed.clone()
    codebook.follow(vectors, codebook.encode(vectors))
    torch.testing.assert_close(codebook.embed, before, rtol=1e-3, atol=1e-3)


def test_dead_codes_come_back_to_life():
    """And stay: in acids-rave the next line of the update undoes it."""
    codebook = EuclideanCodebook(4, 8, kmeans_init=False)
    codebook.embed[4:] = 1000.0
    codebook.embed_avg.copy_(codebook.embed)
    vectors = blobs().transpose(1, 2).reshape(-1, 4)
    for _ in range(5):
        codebook.follow(vectors, codebook.encode(vectors))
    assert codebook.embed.abs().max() < 50
    assert len(codebook.encode(vectors).unique()) > 4


def test_usage_grows_and_the_error_falls():
    rvq = ResidualVectorQuantization(2, 4, 16, kmeans_init=False)
    z = blobs()

    def measure():
        quantized, codes, _ = rvq(z)
        return len(codes[:, 0].unique()), float((quantized - z).square().mean())

    usage, error = measure()
    for _ in range(60):
        rvq(z, learn=True)
    later_usage, later_error = measure()
    assert later_usage > usage
    assert later_error < 0.1 * error


def test_each_codebook_takes_some_of_the_rest():
    rvq = ResidualVectorQuantization(4, 4, 16)
    z = torch.randn(2, 4, 300)
    rvq(z, learn=True)
    codes = rvq.encode(z)
    errors = [float((rvq.decode(codes[:, :k]) - z).square().mean()) for k in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


def test_codes_round_trip():
    bottleneck = discrete()
    x = torch.randn(2, 3, 50)
    bottleneck.train().encode(x, step=0)
    latent = bottleneck.eval().encode(x)
    assert latent.codes.shape == (2, 3, 50)
    torch.testing.assert_close(bottleneck.dequantize(latent.codes), latent.z)
    with pytest.raises(ValueError, match="codes of 4 codebooks"):
        bottleneck.dequantize(torch.zeros(1, 4, 2, dtype=torch.long))


def test_the_gradient_goes_straight_through_once_and_every_codebook_commits():
    rvq = ResidualVectorQuantization(3, 4, 8)
    z = torch.randn(2, 4, 60)
    rvq(z, learn=True)
    z.requires_grad_()
    quantized, _, commitment = rvq(z)
    (through,) = torch.autograd.grad(quantized.sum(), z, retain_graph=True)
    assert through.equal(torch.ones_like(z))
    (pull,) = torch.autograd.grad(commitment, z)
    codes = rvq.encode(z)
    rests = sum(z.detach() - rvq.decode(codes[:, :k]) for k in (1, 2, 3))
    torch.testing.assert_close(pull, 2 * rests / z.numel())


def test_quantisation_begins_with_the_step():
    bottleneck = discrete(quantize_from=10).train()
    x = torch.randn(2, 3, 50)
    for step in (0, 9):
        latent = bottleneck.encode(x, step=step)
        assert latent.codes is None
        assert latent.z.equal(bottleneck(x))
        assert latent.penalties["commitment"] == 0
    latent = bottleneck.encode(x, step=10)
    assert latent.codes is not None
    assert latent.penalties["commitment"] > 0
    assert bottleneck.eval().encode(x).codes is not None


def test_codebooks_learn_when_the_encoder_does():
    """Neither in validation, nor while the discriminator has its turn, nor behind a frozen encoder."""
    bottleneck = discrete().train()
    x = torch.randn(2, 3, 50)
    bottleneck.encode(x, step=0)

    def embed():
        return [layer.codebook.embed.clone() for layer in bottleneck.rvq.layers]

    before = embed()
    with torch.no_grad():
        bottleneck.encode(x + 1, step=1)
    bottleneck.eval().encode(x + 1, step=1)
    assert all(a.equal(b) for a, b in zip(before, embed(), strict=True))
    bottleneck.train().encode(x + 1, step=1)
    assert not any(a.equal(b) for a, b in zip(before, embed(), strict=True))


def test_codes_as_a_host_sees_them():
    bottleneck = discrete(noise_augmentation=5)
    x = torch.randn(2, 3, 50)
    bottleneck.train().encode(x, step=0)
    latent = bottleneck.eval().encode(x)
    analysis = (torch.eye(4), torch.zeros(4), torch.zeros(4))
    controls = torch.jit.script(Host(bottleneck.controls(*analysis, share=0.95, size=None)))
    shown = bottleneck.controls(*analysis, share=0.95, size=None).shown(bottleneck.sample(bottleneck(x)))
    assert shown.equal(latent.codes.float())
    hidden = controls(shown + 0.4)
    torch.testing.assert_close(hidden[:, :4], latent.z)
    assert hidden.shape[1] == 9 and hidden[:, 4:].std() > 0.5
    controls.controls.temperature = 0.0
    assert controls(shown)[:, 4:].abs().max() == 0
    wild = torch.tensor([float("nan"), float("inf"), -1e9, 1e9])[None, None].expand(1, 3, 4)
    low, high = controls(torch.zeros(1, 3, 1)), controls(torch.full((1, 3, 1), 15.0))
    torch.testing.assert_close(controls(wild), torch.cat([low, low, low, high], -1))
    coarse = bottleneck.controls(*analysis, share=0.95, size=1)
    torch.testing.assert_close(coarse.hidden(shown[:, :1])[:, :4], bottleneck.dequantize(latent.codes[:, :1]))
    assert coarse.caution == ""
    assert "never placed" in discrete().controls(*analysis, share=0.95, size=None).caution


def test_angles_equal_the_peers(peer):
    torch.testing.assert_close(direction_to_angles(peer["directions"]), peer["angles"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(angles_to_direction(peer["angles"]), peer["from_angles"], rtol=1e-4, atol=1e-5)


def test_angles_round_trip_and_survive_poles():
    anywhere = nn.functional.normalize(torch.randn(1, 5, 40), dim=1)
    directions = torch.cat([anywhere, torch.eye(5)[None], -torch.eye(5)[None]], -1)
    angles = direction_to_angles(directions)
    assert angles.abs().max() <= 1
    torch.testing.assert_close(angles_to_direction(angles), directions, rtol=0, atol=2e-6)
    # The last angle goes round, the others stop at the pole.
    turned = angles_to_direction(angles + torch.tensor([0, 0, 0, 2.0])[None, :, None])
    torch.testing.assert_close(turned, directions, rtol=0, atol=1e-5)


def test_a_sphere_has_a_place_for_silence():
    bottleneck = SphericalEncoder(Network(4))
    x = torch.randn(1, 3, 10)
    x[..., 4:7] = 0
    x.requires_grad_()
    z = bottleneck.encode(x).z
    torch.testing.assert_close(z.norm(dim=1), torch.ones(1, 10))
    assert direction_to_angles(z.detach())[..., 4:7].abs().max() < 1e-6
    z.square().sum().backward()
    z = bottleneck.encode(x).z
    (gradient,) = torch.autograd.grad((z * torch.randn_like(z)).sum(), x)
    assert torch.isfinite(gradient).all()
    controls = bottleneck.controls(torch.eye(4), torch.zeros(4), torch.zeros(4), share=0.95, size=None)
    torch.testing.assert_close(controls.hidden(controls.shown(z)), z, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="3 angles"):
        bottleneck.controls(torch.eye(4), torch.zeros(4), torch.zeros(4), share=0.95, size=2)


def test_discrepancy_equals_the_peers(peer):
    torch.testing.assert_close(maximum_mean_discrepancy(peer["cloud"], peer["prior"]), peer["discrepancy"])


def test_discrepancy_falls_as_the_clouds_meet():
    prior = torch.randn(200, 4)
    apart = [float(maximum_mean_discrepancy(torch.randn(200, 4) + shift, prior)) for shift in (4.0, 2.0, 1.0, 0.0)]
    assert apart == sorted(apart, reverse=True)
    assert float(maximum_mean_discrepancy(prior, prior)) == pytest.approx(0, abs=1e-6)


def test_noise_stands_beside_the_latents():
    bottleneck = WasserteinEncoder(Network(4), noise_augmentation=6)
    z = bottleneck.encode(torch.randn(2, 3, 500)).z.detach()
    assert z.shape[1] == 4
    augmented = bottleneck.augment(z)
    assert augmented[:, :4].equal(z)
    assert abs(float(augmented[:, 4:].std()) - 1) < 0.1
    assert bottleneck.augment(z, 0.0)[:, 4:].abs().max() == 0
    assert bottleneck.augment(augmented).equal(augmented)
    with pytest.raises(ValueError, match="5 channels; this model has 4"):
        bottleneck.augment(z.repeat(1, 2, 1)[:, :5])


@pytest.mark.parametrize("make", [VariationalEncoder, SphericalEncoder, WasserteinEncoder])
def test_a_network_with_the_wrong_number_of_outputs_is_refused(make):
    wrong = 1 if make is VariationalEncoder else 2
    with pytest.raises(ValueError, match=f"{make.__name__} needs {3 - wrong} outputs per latent"):
        make(Network(4, n_out=wrong))


def test_codes_of_a_continuous_bottleneck():
    with pytest.raises(ValueError, match="continuous"):
        SphericalEncoder(Network(4)).dequantize(torch.zeros(1, 1, 1, dtype=torch.long))
