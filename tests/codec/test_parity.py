"""Codecs equal acids-rave 2.3.1 with the same weights (fixtures: tests/fixtures/README.md)."""

from pathlib import Path

import pytest
import torch

from rave_tools.codec.pretransforms.pqmf import CachedPQMF

from .small_models import rave_v1, rave_v2, rave_v2_small

FIXTURES = Path(__file__).parents[1] / "fixtures"
DROPPED = ("warmed_up", "receptive_field")
NOISE = {"hidden_size": 8, "ratios": [2, 2, 2], "noise_bands": 5}


def build(name, padding):
    if name == "rave_v1":
        return rave_v1(padding=padding)
    if name == "rave_v2":
        return rave_v2(padding=padding)
    if name == "rave_v2_small":
        return rave_v2(padding=padding, ratios=(4, 2, 2, 2), noise={**NOISE, "noise_bands": 32})
    return rave_v2(padding=padding, noise=NOISE, n_channels=2)


@pytest.fixture(params=["rave_v1", "rave_v2", "rave_v2_small", "rave_v2_noise_stereo"])
def name(request):
    return request.param


@pytest.fixture(params=["centered", "causal"])
def padding(request):
    return request.param


def load(name):
    return torch.load(FIXTURES / f"{name}.pt", weights_only=True)


def loaded(name, padding):
    fixture = load(name)
    codec = build(name, padding).eval()
    state = {key: value for key, value in fixture["state"].items() if not key.endswith(DROPPED)}
    missing, unexpected = codec.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith("pqmf.") for key in missing)
    return fixture, fixture[padding], codec


def replay_uniform(monkeypatch, uniform):
    """torch.rand_like gives what the peer drew."""
    monkeypatch.setattr(torch, "rand_like", lambda like: uniform.reshape(like.shape))


def test_state_dict_keys_are_the_peers(name):
    fixture = load(name)
    theirs = {
        key
        for key in fixture["every_key"]
        if not key.startswith(("discriminator.", "audio_distance.", "multiband_audio_distance."))
        and not key.endswith(DROPPED)
    }
    assert set(build(name, "centered").state_dict()) == theirs


@pytest.mark.parametrize("bands", [4, 16])
def test_pqmf(bands, padding):
    fixture = load(f"pqmf_{bands}")
    pqmf = CachedPQMF(fixture["attenuation"], fixture["n_band"], padding)
    for key, value in fixture["state"].items():
        torch.testing.assert_close(pqmf.state_dict()[key], value, rtol=0, atol=1e-7)
    expected = fixture[padding]
    encoded = pqmf.encode(fixture["x"])
    torch.testing.assert_close(encoded, expected["bands"], rtol=0, atol=1e-5)
    torch.testing.assert_close(pqmf.decode(encoded), expected["reconstruction"], rtol=0, atol=1e-5)
    torch.testing.assert_close(pqmf.decode(fixture["random_bands"]), expected["synthesis"], rtol=0, atol=2e-5)


@torch.no_grad()
def test_encoder_and_bottleneck(name, padding):
    fixture, expected, codec = loaded(name, padding)
    bands = codec.to_bands(fixture["x"])
    torch.testing.assert_close(bands, expected["bands"], rtol=0, atol=1e-5)
    statistics = codec.encoder(bands)
    torch.testing.assert_close(statistics, expected["encoded"], rtol=1e-5, atol=1e-5)
    latent = codec.encoder.reparametrize(expected["encoded"], expected["gaussian"])
    torch.testing.assert_close(latent.z, expected["z"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(latent.penalties["kl"], expected["kl"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_decoder(name, padding, monkeypatch):
    fixture, expected, codec = loaded(name, padding)
    if expected["uniform"] is not None:
        replay_uniform(monkeypatch, expected["uniform"])
    bands = codec.decode_bands(expected["z"], phase=1)
    torch.testing.assert_close(bands, expected["decoded_bands"], rtol=1e-5, atol=1e-5)
    if name == "rave_v1":
        replay_uniform(monkeypatch, expected["uniform_with_noise"])
        bands = codec.decode_bands(expected["z"], phase=2)
        torch.testing.assert_close(bands, expected["decoded_bands_with_noise"], rtol=1e-5, atol=1e-5)
        return
    if expected["audio_uniform"] is not None:
        replay_uniform(monkeypatch, expected["audio_uniform"])
    torch.testing.assert_close(codec.decode(expected["z"]), expected["audio"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_batch_norm_of_v1_in_training(padding):
    _, expected, codec = loaded("rave_v1", padding)
    torch.testing.assert_close(
        codec.train().encoder(expected["bands"]), expected["encoded_in_training"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("codec", "encoder", "decoder", "hop"),
    [
        (lambda: rave_v1(capacity=64, latent_size=128), 4_834_176, 12_778_193, 2048),
        (lambda: rave_v2(capacity=96, latent_size=128), 16_056_928, 15_479_072, 2048),
        (lambda: rave_v2_small(capacity=48, latent_size=128), 3_945_904, 3_816_608, 512),
    ],
    ids=["v1", "v2", "v2_small"],
)
def test_parameter_counts(codec, encoder, decoder, hop):
    model = codec()
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.pqmf, model.encoder, model.decoder)]
    assert counts == [16_656, encoder, decoder]
    assert model.hop == hop
