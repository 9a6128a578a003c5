"""Every model and bottleneck of RAVE, built from a shipped .gin file, equals acids-rave 2.3.1 on the same weights."""

from pathlib import Path

import pytest
import torch

from rave_tools import config
from rave_tools.nn.normalization import PEER_STATISTICS

FIXTURES = Path(__file__).parents[1] / "fixtures"
CODES = ["NUM_QUANTIZERS = 3", "CODEBOOK_SIZE = 16", "NOISE_AUGMENTATION = 3"]

# fixture: (our configurations, our overrides)
FAMILY = {
    "onnx": (["onnx"], []),
    "brave": (["brave"], []),
    "v2_nopqmf": (["v2_nopqmf"], []),
    "v3": (["v3"], []),
    "discrete": (["discrete"], CODES),
    "discrete_v3": (["discrete_v3"], CODES),
    "hybrid": (["v2", "hybrid"], ["N_MELS = 32"]),
    "wasserstein": (["v2", "wasserstein"], ["NOISE_AUGMENTATION = 3"]),
    "spherical": (["v2", "spherical"], []),
}

# Where acids-rave has a place for what is no weight here: phases and quantisation follow the step counter, the
# receptive field is measured, statistics and states belong to a performance.
NO_WEIGHTS = ("warmed_up", "receptive_field", "enabled", "gru_state")
OTHERS = ("discriminator.", "audio_distance.", "multiband_audio_distance.")


def is_no_weight(key):
    return key.endswith(NO_WEIGHTS) or (".net." in key and key.endswith(tuple("." + name for name in PEER_STATISTICS)))


@pytest.fixture(params=FAMILY)
def name(request):
    return request.param


@pytest.fixture(params=["centered", "causal"])
def padding(request):
    return request.param


def loaded(name, padding):
    fixture = torch.load(FIXTURES / f"family_{name}.pt", weights_only=True)
    configs, overrides = FAMILY[name]
    overrides = ["CAPACITY = 2", "LATENT_SIZE = 4", *overrides]
    if padding == "causal":
        configs = [*configs, "causal"]
        if name == "hybrid":
            overrides.append("MelSpectrogram.padding = 'centered'")  # acids-rave's spectra always look ahead
    elif name == "brave":
        overrides += ["Convolutions.padding = 'centered'", "CachedPQMF.padding = 'centered'"]
    codec = config.load(configs, overrides).build("CODEC").eval()
    state = {key: value for key, value in fixture["state"].items() if not is_no_weight(key)}
    missing, unexpected = codec.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith(("pqmf.", "spectrogram.")) for key in missing)
    return fixture, fixture[padding], codec


def test_state_dict_keys_are_the_peers(name):
    fixture, _, codec = loaded(name, "centered")
    theirs = {key for key in fixture["every_key"] if not key.startswith(OTHERS) and not is_no_weight(key)}
    assert set(codec.state_dict()) == theirs


@torch.no_grad()
def test_forward(name, padding):
    fixture, expected, codec = loaded(name, padding)
    statistics = codec.encoder(codec.encoder_input(fixture["x"]))
    torch.testing.assert_close(statistics, expected["encoded"], rtol=1e-5, atol=1e-5)
    latents = expected["z"][:, : codec.latent_dim]
    noise = None
    if name == "wasserstein":
        # Drawn by the peer for all frames of the batch in a row.
        noise = expected["gaussian"].reshape(fixture["x"].shape[0], -1, codec.latent_dim).transpose(1, 2)
    elif expected["gaussian"] is not None and codec.encoder.noise_augmentation == 0:
        noise = expected["gaussian"]
    latent = codec.encode(fixture["x"], noise=noise)
    if name == "spherical" and padding == "causal":
        # Its causal filter bank hears nothing in the first frame, where the peer divides zero by zero.
        heard = torch.isfinite(latents)
        assert not heard.all()
        torch.testing.assert_close(latent.z[heard], latents[heard], rtol=1e-5, atol=1e-5)
        assert torch.isfinite(codec(fixture["x"])).all()
        return
    torch.testing.assert_close(latent.z, latents, rtol=1e-5, atol=1e-5)
    audio = codec.decode(expected["z"])
    torch.testing.assert_close(audio, expected["audio"], rtol=1e-5, atol=1e-5)
    if name == "wasserstein":
        torch.testing.assert_close(latent.penalties["mmd"], expected["penalty"], rtol=1e-5, atol=1e-6)
    if codec.encoder.discrete:
        assert latent.codes.equal(expected["codes"])
        assert len(latent.codes.unique()) > 2, "codes that are all alike prove nothing"
        torch.testing.assert_close(codec.dequantize(latent.codes), expected["dequantized"])


def test_a_state_dict_of_the_peer_loads_as_it_is(name):
    """Statistics of adaptive normalisations and the unused state of a GRU are passed over by the layers themselves."""
    fixture, _, codec = loaded(name, "centered")
    state = dict(codec.state_dict())
    rows = {key: torch.ones(64, 1, 1) for key in fixture["every_key"] if key.endswith((*PEER_STATISTICS, "gru_state"))}
    codec.load_state_dict({**state, **rows})
