"""Residual codebooks in their place in a codec: parity with AudioCraft and encodec, revival, dropout, bandwidths."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rave_tools.codec.bottlenecks import quantization
from rave_tools.codec.bottlenecks.latent import Unquantized
from rave_tools.codec.bottlenecks.quantization import EuclideanCodebook, ResidualVectorQuantization
from rave_tools.codec.bottlenecks.residual import ResidualVectorQuantizer
from rave_tools.codec.compression import CompressionModel
from rave_tools.nn.conv import Conv1d, ConvTranspose1d

from .quantizer_processes import learn_alone

FIXTURE = Path(__file__).parents[1] / "fixtures" / "quantizers.pt"
AUDIOCRAFT = ["audiocraft", "audiocraft_dropout", "audiocraft_orthogonal", "audiocraft_orthogonal_few"]
AUDIOCRAFT += ["audiocraft_no_expiry"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def peer():
    return torch.load(FIXTURE, weights_only=True)


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, theirs, **{"rtol": 1e-5, "atol": 1e-5, **tolerance})


def compare_steps(quantizer, case):
    """Training steps with the peer's seeds: what comes out, what flows back, what is left behind."""
    quantizer.load_state_dict(case["initial"])
    quantizer.train()
    for index, step in enumerate(case["steps"]):
        x = step["x"].clone().requires_grad_()
        torch.manual_seed(index)
        latent = quantizer(x, step=index)
        assert latent.codes.equal(step["codes"].long())
        close(latent.z, step["quantized"])
        penalty = sum(latent.penalties.values())
        close(penalty, step["penalty"])
        loss = (latent.z * step["pull"]).sum() / 100 + penalty
        (gradient,) = torch.autograd.grad(loss, x)
        close(gradient, step["gradient"], rtol=1e-4, atol=1e-6)
        assert torch.rand(()) == step["next"], "as many random numbers must have been drawn"
    for name, value in case["steps"][-1]["state"].items():
        close(quantizer.state_dict()[name], value)


@pytest.mark.parametrize("name", AUDIOCRAFT)
def test_training_equals_audiocrafts(peer, name):
    compare_steps(ResidualVectorQuantizer(**peer[name]["options"], expiry="encodec"), peer[name])


def test_training_equals_encodecs(peer):
    case = peer["encodec"]
    compare_steps(ResidualVectorQuantizer(**case["options"], expiry="encodec", first_level_commits=True), case)


def test_projected_codes_equal_encodecs(peer):
    case = peer["encodec_projected"]
    core = ResidualVectorQuantization(3, 8, 24, codebook_dim=3, kmeans_init=False, expiry="encodec")
    core.load_state_dict(case["initial"])
    for index, step in enumerate(case["steps"]):
        x = step["x"].clone().requires_grad_()
        torch.manual_seed(index)
        quantized, codes, commitment = core(x, learn=True)
        assert codes.equal(step["codes"].long())
        close(quantized, step["quantized"])
        loss = (quantized * step["pull"]).sum() / 100 + commitment / 3
        names, parameters = zip(*core.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, [x, *parameters])
        close(gradients[0], step["gradient"], rtol=1e-4, atol=1e-6)
        for name, gradient in zip(names, gradients[1:], strict=True):
            close(gradient, step["parameter_gradients"][name], rtol=1e-4, atol=1e-5)
    for name, value in case["steps"][-1]["state"].items():
        close(core.state_dict()[name], value)


def test_codes_equal_audiocrafts_with_any_number_of_codebooks(peer):
    case = peer["audiocraft"]
    quantizer = ResidualVectorQuantizer(**case["options"]).eval()
    quantizer.load_state_dict(case["steps"][-1]["state"])
    for number in (1, 2, 3):
        quantizer.set_num_codebooks(number)
        latent = quantizer(case["steps"][0]["x"])
        assert latent.codes.equal(case[f"codes_{number}"].long())
        assert latent.codes.equal(quantizer.encode(case["steps"][0]["x"]))
        close(latent.z, case[f"decoded_{number}"])
        assert latent.z.equal(quantizer.dequantize(latent.codes))


class Frames(nn.Module):
    """An encoder or a decoder of one layer."""

    def __init__(self, size, hop, *, encoder):
        super().__init__()
        self.hop, self.latent_size, self.n_out = hop, size, 1
        self.in_channels = self.out_channels = 1
        make = Conv1d if encoder else ConvTranspose1d
        self.net = make(*((1, size) if encoder else (size, 1)), hop, stride=hop)

    def forward(self, x):
        return self.net(x)


def codec(quantizer, *, hop=320, **options):
    parts = [Frames(quantizer.latent_dim, hop, encoder=encoder) for encoder in (True, False)]
    return CompressionModel(
        sampling_rate=24000, encoder=parts[0], decoder=parts[1], quantizer=quantizer, **options
    ).eval()


def test_bandwidths_equal_encodecs(peer):
    model = codec(ResidualVectorQuantizer(16, 32), bandwidths=[1.5, 3, 6, 12, 24])
    for number, layer in enumerate(model.quantizer.vq.layers):
        drawn = np.random.RandomState(number).standard_normal((1024, 16)) * 0.8**number
        layer.codebook.embed.copy_(torch.from_numpy(drawn).float())
        layer.codebook.inited.fill_(1)
    x = torch.from_numpy(np.random.RandomState(99).standard_normal((2, 16, 30))).float()
    assert model.bandwidth == 24
    for bandwidth, expected in peer["encodec_bandwidths"].items():
        model.set_bandwidth(float(bandwidth))
        assert model.bandwidth == float(bandwidth)
        latent = model.quantizer(x)
        assert latent.codes.equal(expected["codes"].long())
        close(latent.z, expected["decoded"])


def test_a_bandwidth_that_does_not_exist_is_refused_with_those_that_do():
    model = codec(ResidualVectorQuantizer(4, 8), bandwidths=[1.5, 3, 6])
    with pytest.raises(ValueError, match=r"2 kb/s were asked for, but this model has 1.5, 3, 6"):
        model.set_bandwidth(2)
    free = codec(ResidualVectorQuantizer(4, 3))
    free.set_bandwidth(1.5)
    assert (free.num_codebooks, free.total_codebooks) == (2, 3)
    with pytest.raises(ValueError, match=r"this model has 0.75, 1.5, 2.25"):
        free.set_bandwidth(3)
    with pytest.raises(ValueError, match="choose between 1 and 3"):
        free.set_num_codebooks(4)
    with pytest.raises(ValueError, match="24 kb/s are 32 codebooks of 0.75 kb/s, but this model has 8"):
        codec(ResidualVectorQuantizer(4, 8), bandwidths=[6, 24])
    continuous = codec(Unquantized(4))
    for act in (lambda: continuous.set_num_codebooks(1), lambda: continuous.set_bandwidth(1)):
        with pytest.raises(ValueError, match="continuous"):
            act()


def test_codes_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="1 to 3 codebooks"):
        ResidualVectorQuantizer(4, 3).dequantize(torch.zeros(1, 4, 5, dtype=torch.long))


def test_dropout_draws_the_bandwidths_from_the_seed():
    quantizer = ResidualVectorQuantizer(4, 8, bins=16, q_dropout=True)
    codec(quantizer, bandwidths=[0.3 * n for n in (1, 2, 8)])
    quantizer.train()

    def draw(seed):
        torch.manual_seed(seed)
        return quantizer(torch.ones(1, 4, 20, requires_grad=True), step=0).codes.shape[1]

    draws = [draw(seed) for seed in range(30)]
    assert set(draws) == {1, 2, 8}
    assert draws == [draw(seed) for seed in range(30)]
    with torch.no_grad():
        assert draws == [draw(seed) for seed in range(30)], "in the discriminator's turn too"
    assert quantizer(torch.ones(1, 4, 20), deterministic=True).codes.shape[1] == 8
    quantizer.set_dropout_codebooks([])
    assert {draw(seed) for seed in range(60)} == set(range(1, 9))
    quantizer.set_num_codebooks(3)
    assert {draw(seed) for seed in range(60)} == {1, 2, 3}
    quantizer.eval()
    assert quantizer(torch.ones(1, 4, 20)).codes.shape[1] == 3


def test_all_codebooks_are_placed_at_once_on_what_is_left():
    quantizer = ResidualVectorQuantizer(4, 5, bins=16, q_dropout=True).train()
    z = torch.randn(2, 4, 300)
    before = quantizer.eval()(z)
    assert before.codes is None and before.z.equal(z) and before.penalties["commitment"] == 0
    assert "never placed" in quantizer.controls(torch.eye(4), z, z, share=1, size=None).caution
    quantizer.train()(z.clone().requires_grad_(), step=0)
    assert quantizer.vq.ready
    codes = quantizer.eval().encode(z)
    errors = [float((quantizer.dequantize(codes[:, :n]) - z).square().mean()) for n in range(1, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize("rows", [1500, 60])
def test_revival_by_usage_fills_the_codebook(rows):
    """Also with less vectors in a batch than there are codes; and in the peers' update nothing is revived."""

    def used(expiry):
        torch.manual_seed(0)
        codebook = EuclideanCodebook(4, 128, expiry=expiry)
        for step in range(100):
            vectors = torch.randn(rows, 4)
            codebook.begin(vectors * 0.01)  # a first batch that says nothing about the others
            codebook.follow(vectors, codebook.encode(vectors), step)
        return len(codebook.encode(torch.randn(8000, 4)).unique()) / 128, codebook

    share, codebook = used("usage")
    assert share > 0.95
    assert codebook.usage.statistics()["perplexity"] > 0.5 * 128
    assert used("encodec")[0] < 0.3


def test_revival_by_count_throws_away_all_codes_for_ever_where_vectors_are_few():
    """What `usage` is for: 60 vectors cannot choose each of 128 codes twice."""
    replaced = {}
    for expiry in ("count", "usage"):
        codebook = EuclideanCodebook(4, 128, expiry=expiry)
        shares = []
        for step in range(100):
            vectors = torch.randn(60, 4)
            codebook.begin(vectors)
            codebook.follow(vectors, codebook.encode(vectors), step)
            shares.append(float(codebook.usage.replaced))
        replaced[expiry] = sum(shares[50:]) / 50
    assert replaced["count"] > 0.8
    assert replaced["usage"] < 0.1


@pytest.mark.parametrize("expiry", ["usage", "none"])
def test_codes_travel_with_a_young_encoder(expiry):
    """Latents whose mean moves by twice their spread in every update: without travelling, codes are far behind."""
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantization(2, 4, 128, expiry=expiry, kmeans_iters=5)
    mean = torch.zeros(4)
    for step in range(60):
        mean += 0.2 * F.normalize(torch.randn(4) + 1, dim=0)
        vectors = mean + 0.05 * torch.randn(600, 4)
        quantizer.quantize(vectors, learn=True, step=step)
    shares = [float(layer.codebook.usage.statistics()["used"]) for layer in quantizer.layers]
    error = float((quantizer.quantize(vectors, learn=False).vectors - vectors).square().mean())
    if expiry == "usage":
        assert min(shares) > 0.9 and error < 0.05**2 / 4
    else:
        assert error > 10 * 0.05**2


def test_codes_of_a_settled_encoder_stay():
    """The mean of a batch differs by chance from that of another one, and that moves nothing."""
    torch.manual_seed(0)
    codebook = EuclideanCodebook(8, 64, expiry="usage")
    vectors = torch.randn(4000, 8)
    codebook.begin(vectors)
    before = codebook.embed.clone()
    for _ in range(20):
        codebook.travel(vectors[torch.randperm(4000)[:600]])
    assert torch.equal(codebook.embed, before)
    codebook.travel(vectors + 3)
    close(codebook.embed, before + 3, atol=0.01, rtol=0)
    close(codebook.embed_avg, codebook.embed * codebook.cluster_size[:, None], atol=1e-3, rtol=1e-3)


def test_revived_codes_stand_apart():
    codebook = EuclideanCodebook(2, 32, kmeans_init=False, expiry="usage")
    codebook.cluster_size.zero_()[0] = 32
    vectors = torch.randn(10, 2)
    codebook.follow(vectors, torch.zeros(10, dtype=torch.long), step=1)
    assert codebook.usage.replaced == 0, "only every fifth update checks"
    codebook.follow(vectors, torch.zeros(10, dtype=torch.long), step=5)
    moved = codebook.embed[(codebook.embed[:, None] == vectors).all(-1).any(1)]
    assert len(moved) == len(moved.unique(dim=0)) == 10
    close(codebook.usage.replaced, torch.tensor(10 / 32))
    close(codebook.embed_avg[1:11], codebook.embed[1:11] * codebook.cluster_size[1:11, None])


def test_rare_codes_are_means_too():
    """Smoothed counts would pull them towards zero where vectors are few."""
    codebook = EuclideanCodebook(2, 1000, kmeans_init=False, expiry="usage")
    codebook.cluster_size.fill_(1e-5)
    codebook.embed.copy_(3 + torch.randn(1000, 2))
    codebook.embed_avg.copy_(1e-5 * codebook.embed)
    before = codebook.embed.clone()
    codebook.follow(before[:2], torch.tensor([0, 1]), step=1)
    close(codebook.embed, before)


def test_statistics_say_what_happens():
    quantizer = ResidualVectorQuantizer(2, 2, bins=8, expiry="none").train()
    points = torch.randn(4, 2)
    for step in range(5):
        z = points[torch.randint(4, (1, 200))].transpose(1, 2)
        quantizer(z.requires_grad_(), step=step)
    told = quantizer.statistics()
    assert list(told) == [f"{name}_{n}" for n in (1, 2) for name in ("perplexity", "used", "replaced")]
    assert told["used_1"] == 0.5
    assert 3.8 < told["perplexity_1"] <= 4.001
    assert told["replaced_1"] == 0
    assert set(quantizer.state_dict()) == {
        f"vq.layers.{q}._codebook.{name}" for q in (0, 1) for name in ("inited", "cluster_size", "embed", "embed_avg")
    }


def test_what_a_checkpoint_holds_is_enough_to_go_on():
    """The checks of the usage are a function of the update's number, the draws of its seed."""

    def learn(quantizer, steps):
        for step in steps:
            torch.manual_seed(step)
            quantizer.train()(torch.randn(1, 4, 50).requires_grad_(), step=step)
        return quantizer.state_dict()

    whole = ResidualVectorQuantizer(4, 3, bins=64, q_dropout=True)
    begun, resumed = (ResidualVectorQuantizer(4, 3, bins=64, q_dropout=True) for _ in range(2))
    resumed.load_state_dict(learn(begun, range(13)))
    expected = learn(whole, range(30))
    for name, value in learn(resumed, range(13, 30)).items():
        assert value.equal(expected[name]), name


class Host(nn.Module):
    """What an export compiles."""

    def __init__(self, controls):
        super().__init__()
        self.controls = controls

    def forward(self, x):
        return self.controls.hidden(x)


def test_codes_as_a_host_sees_them():
    quantizer = ResidualVectorQuantizer(4, 3, bins=16, codebook_dim=2).train()
    z = torch.randn(1, 4, 50)
    quantizer(z.requires_grad_(), step=0)
    quantizer.eval().set_num_codebooks(2)
    latent = quantizer(z.detach())
    controls = quantizer.controls(torch.eye(4), torch.zeros(4), torch.zeros(4), share=0.95, size=None)
    shown = controls.shown(quantizer.sample(z.detach()))
    assert shown.equal(latent.codes.float())
    close(controls.hidden(shown), latent.z)
    close(torch.jit.script(Host(controls))(shown), latent.z)


def test_of_equal_codes_the_first_is_chosen():
    codes = torch.randn(20, 4).repeat(3, 1)
    assert quantization.nearest(codes, codes).equal(torch.arange(60) % 20)


def test_the_memory_of_kmeans_is_bounded(monkeypatch):
    largest = []
    original = quantization.nearest
    monkeypatch.setattr(quantization, "nearest", lambda rows, codes: largest.append(len(rows)) or original(rows, codes))
    quantization.kmeans(torch.randn(20000, 2), 8, iterations=2)
    assert max(largest) == quantization.ROWS_AT_ONCE and sum(largest) == 40000


def test_two_processes_hold_the_same_codebooks(tmp_path):
    """And those of one process with the double batch, but for what is drawn at random."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "codec.quantizer_processes", str(rank), str(port), str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in range(2))
    for case, facts in first.items():
        assert facts["levels"] == second[case]["levels"]
        for name, value in facts["state"].items():
            assert value.equal(second[case]["state"][name]), (case, name)
    assert len(set(first["dropout"]["levels"])) > 1
    alone = learn_alone()
    for name, value in first["none"]["state"].items():
        close(value, alone[name], rtol=1e-4, atol=1e-4)
