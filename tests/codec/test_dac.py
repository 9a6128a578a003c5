"""Descript's codec: parity with its own program, odd strides, streaming, configurations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rave_tools import config
from rave_tools.codec.bottlenecks.factorized import FactorizedResidualVQ
from rave_tools.codec.compression import CompressionModel
from rave_tools.codec.nets.dac import DACDecoder, DACEncoder
from rave_tools.criteria.discriminators.descript import DescriptDiscriminator
from rave_tools.nn.conv import fold_weight_norm
from rave_tools.training import run
from tests.loud import make_loud

FIXTURE = Path(__file__).parents[1] / "fixtures" / "dac.pt"
CONFIGS = ["dac_44khz", "dac_24khz", "dac_16khz"]
SMALL = ["CAPACITY = 2", "DECODER_CAPACITY = 16", "LATENT_SIZE = 8", "NUM_QUANTIZERS = 3", "CODEBOOK_SIZE = 16"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def peer():
    return torch.load(FIXTURE, weights_only=True)


def build(*, rates, latent_size, whole=True, capacity=2, decoder_capacity=16, channels=1, sampling_rate=44100, **sizes):
    sizes = {"n_codebooks": 4, "codebook_size": 16, "codebook_dim": 3, **sizes}
    return CompressionModel(
        sampling_rate=sampling_rate,
        n_channels=channels,
        encoder=DACEncoder(channels, capacity, ratios=rates, latent_size=latent_size),
        decoder=DACDecoder(channels, decoder_capacity, ratios=rates, latent_size=latent_size, whole=whole),
        quantizer=FactorizedResidualVQ(latent_size, **sizes),
    ).eval()


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, theirs, **{"rtol": 1e-5, "atol": 1e-5, **tolerance})


@pytest.mark.parametrize("name", ["even", "odd"])
def test_codes_and_sound_equal_descripts(peer, name):
    case = peer[name]
    model = build(rates=case["rates"], latent_size=case["z"].shape[1], whole=False)
    model.load_state_dict(case["state"])
    with torch.no_grad():
        close(model.encoder(case["x"]), case["encoded"])
        latent = model.encode(case["x"])
        assert latent.codes.equal(case["codes"].long())
        close(latent.z, case["z"])
        close(latent.penalties["commitment"], case["commitment"])
        close(latent.penalties["codebook"], case["codebook"])
        close(model.dequantize(latent.codes), case["z"])
        close(model.dequantize(latent.codes[:, :2]), case["from_two_codes"])
        audio, theirs = model.decode(latent.z), case["audio"]
        assert audio.shape == case["x"].shape
        close(audio[..., : theirs.shape[-1]], theirs)
        assert audio[..., theirs.shape[-1] :].eq(0).all()
        model.set_num_codebooks(2)
        close(model.encode(case["x"]).z, case["z_two"])


def test_odd_strides_lose_nothing(peer):
    """The original's output is too short by one sample per odd stride, times what follows; only the end differs."""
    case = peer["odd"]
    assert case["audio"].shape[-1] < case["x"].shape[-1]
    model = build(rates=case["rates"], latent_size=case["z"].shape[1])
    model.load_state_dict(case["state"])
    with torch.no_grad():
        audio = model.decode(case["z"])
    assert audio.shape == case["x"].shape
    right = model.receptive_field()[1] + model.hop
    close(audio[..., :-right], case["audio"][..., : audio.shape[-1] - right])
    assert audio[..., -3:].abs().min() > 0


def test_the_quantiser_trains_as_descripts(peer):
    case = peer["training"]
    quantizer = FactorizedResidualVQ(8, 4, codebook_size=16, codebook_dim=3, quantizer_dropout=0.5).train()
    quantizer.load_state_dict(case["state"])
    x = case["x"].clone().requires_grad_()
    torch.manual_seed(11)
    latent = quantizer(x, step=0)
    assert latent.codes.equal(case["codes"].long())
    close(latent.z, case["z"])
    commitment, codebook = latent.penalties["commitment"], latent.penalties["codebook"]
    close(commitment, case["commitment"])
    close(codebook, case["codebook"])
    loss = (latent.z * case["pull"]).sum() / 100 + 0.25 * commitment + codebook
    names, parameters = zip(*quantizer.named_parameters(), strict=True)
    gradient, *others = torch.autograd.grad(loss, [x, *parameters])
    close(gradient, case["gradient"], rtol=1e-4, atol=1e-6)
    assert set(names) == case["parameter_gradients"].keys()
    for name, other in zip(names, others, strict=True):
        close(other, case["parameter_gradients"][name], rtol=1e-4, atol=1e-6)


def test_half_of_a_batch_drops_codebooks_the_other_keeps_them():
    quantizer = FactorizedResidualVQ(6, 4, codebook_size=16, quantizer_dropout=0.5).train()
    h = torch.randn(8, 6, 10, requires_grad=True)
    latent = quantizer(h)
    for item in range(8):
        matches = [
            torch.allclose(quantizer.dequantize(latent.codes[item, None, :n])[0], latent.z[item], atol=1e-5)
            for n in range(1, 5)
        ]
        assert sum(matches) == 1
        assert item < 4 or matches[3]
    everything = quantizer.eval()(h.detach())
    assert everything.z[4:].allclose(latent.z[4:], atol=1e-5)
    told = quantizer.statistics()
    assert 1 < told["perplexity_1"] <= 16 and 0 < told["used_4"] <= 1


def test_codes_as_a_host_sees_them():
    quantizer = FactorizedResidualVQ(6, 4, codebook_size=16).eval()
    with torch.no_grad():
        for layer in quantizer.quantizers:
            layer.out_proj.bias.normal_()
    h = torch.randn(1, 6, 20)
    latent = quantizer(h)
    assert latent.codes.equal(quantizer.encode(h))
    for size in (4, 2):
        controls = quantizer.controls(torch.eye(6), torch.zeros(6), torch.zeros(6), share=1, size=size)
        shown = controls.shown(quantizer.sample(h))
        assert shown.equal(latent.codes[:, :size].float())
        close(controls.hidden(shown), quantizer.dequantize(latent.codes[:, :size]))
    quantizer.set_num_codebooks(2)
    everything = quantizer.controls(torch.eye(6), torch.zeros(6), torch.zeros(6), share=1, size=4)
    assert everything.shown(h).equal(latent.codes.float())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (dict(codebook_dim=[8, 8]), "2 numbers for 9 codebooks"),
        (dict(quantizer_dropout=2), "a share between 0 and 1"),
        (dict(codebook_size=0), "at least one codebook"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        FactorizedResidualVQ(16, **options)


def test_strides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="RATIOS"):
        DACEncoder(1, 2, ratios=[])
    with pytest.raises(ValueError, match="cannot halve them 4 times"):
        DACDecoder(1, 24)


def test_the_44_khz_codec_has_descripts_names_shapes_and_beginning(peer):
    full = peer["full"]
    with torch.device("meta"):
        wrapper = config.load(["dac_44khz"], []).build_argument(run.train, "wrapper")
    codec = wrapper.codec
    shapes = {name: list(value.shape) for name, value in codec.state_dict().items()}
    assert shapes == full["shapes"]
    assert sum(p.numel() for p in codec.parameters()) == full["parameters"] == 76651890
    first = DACEncoder(1, 64, ratios=[2], latent_size=8).block[1].block[0].block[1]
    assert float(first.kernel().detach().std()) == pytest.approx(full["first_deviation"], rel=0.02)
    assert float(first.bias.detach().abs().max()) == full["largest_bias"] == 0


def test_the_discriminator_equals_descripts(peer):
    case = peer["discriminator"]
    ours = DescriptDiscriminator(periods=[2], fft_sizes=[512], match_stride=True)
    state = ours.state_dict()
    assert list(state) == case["keys"]
    for i, (name, tensor) in enumerate(state.items()):
        u = torch.from_numpy(np.random.RandomState(i).uniform(-1, 1, tuple(tensor.shape))).float()
        tensor.copy_(1.2 + 0.4 * u if name.endswith("weight_g") else 0.1 * u if name.endswith("bias") else u)
    with torch.no_grad():
        for found, expected in zip(ours(case["x"]), case["features"], strict=True):
            for mine, theirs in zip([*found.maps, found.logits], expected, strict=True):
                assert list(mine.shape) == theirs["shape"]
                scale = float(theirs["values"].abs().max())
                close(mine.flatten()[::1997], theirs["values"], rtol=1e-4, atol=1e-5 * scale)


def load(name, *overrides):
    return config.load([name], [*SMALL, "DISCRIMINATOR_CAPACITY = 2", *overrides])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_train_and_stream(name, channels):
    wrapper = load(name, f"CHANNELS = {channels}").build_argument(run.train, "wrapper")
    codec = wrapper.codec
    make_loud(codec)
    losses = wrapper.generator_losses(0.3 * torch.randn(2, channels, 16 * codec.hop))
    wrapper.combiner(losses).backward()
    assert set(losses) == {"commitment", "codebook", "fullband_spectral_distance", "adversarial", "feature_matching"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in codec.parameters())
    codec = fold_weight_norm(codec).double().eval()
    twin, info = codec.streaming()
    assert 0 <= info.offset < codec.hop
    blocks = [1, 2, 4, 1, 3] * 4
    x = 0.3 * torch.randn(1, channels, sum(blocks) * codec.hop, dtype=torch.float64)
    silence = 30 * codec.hop
    nothing = torch.zeros(1, channels, silence, dtype=torch.float64)
    with torch.no_grad():
        expected = codec(F.pad(x, (silence + info.offset, -info.offset)))[..., silence:]
        twin(nothing)
        y = torch.cat([twin(part) for part in x.split([n * codec.hop for n in blocks], -1)], -1)
    rest = info.latency - info.offset
    end = x.shape[-1] - codec.receptive_field()[1] - codec.hop
    assert end - rest > 4 * codec.hop
    difference = (y[..., rest:end] - expected[..., : end - rest]).abs().max()
    assert expected.std() > 0.05
    assert difference < 1e-9
