"""SEANet against encodec 0.1.1 and audiocraft 1.3.0, and against itself block by block; the shipped EnCodecs."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rave_tools import config
from rave_tools.codec.autoencoder import LONGEST_MEMORY
from rave_tools.codec.nets.seanet import SEANetDecoder, SEANetEncoder
from rave_tools.nn.compose import Sequential
from rave_tools.nn.conv import fold_weight_norm
from rave_tools.nn.padded_conv import StreamableConv1d, StreamableConvTranspose1d
from rave_tools.nn.recurrent import LSTM
from rave_tools.nn.streaming import NotStreamable, reset, streaming
from rave_tools.training import run
from tests.loud import make_loud

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONFIGS = ["encodec_24khz", "encodec_48khz", "encodec_32khz", "audiogen_codec_16khz"]
SMALL = ["CAPACITY = 2", "LATENT_SIZE = 6", "NUM_QUANTIZERS = 2", "CODEBOOK_SIZE = 16", "BANDWIDTHS = []"]
SMALL += ["DISCRIMINATOR_CAPACITY = 2"]
DECODER_ONLY = ("trim_right_ratio", "final_activation", "final_activation_params")
VARIANTS = [
    "encodec_24k", "encodec_48k", "audiogen", "causal_constant", "many_channels", "spectral", "group_params", "deep",
    "trim_half", "trim_none", "outer_1", "outer_2", "outer_all", "relu_tanh",
]  # fmt: skip
PARAMETERS = {"encodec_24khz": 14_851_810, "audiogen_codec_16khz": 56_819_138}
WARM = 400
"""Frames after which a stream has forgotten how it began."""


@pytest.fixture(scope="module")
def peers():
    return torch.load(FIXTURES / "seanet.pt", weights_only=True)


def unpack(packed):
    shapes = packed["shapes"]
    parts = packed["values"].split([torch.Size(shape).numel() for shape in shapes.values()])
    return {key: part.view(shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}


def build(options):
    shared = {name: value for name, value in options.items() if name not in DECODER_ONLY}
    return SEANetEncoder(**shared), SEANetDecoder(**options)


def restore(case):
    nets = build(case["options"])
    for net, name in zip(nets, ("encoder", "decoder"), strict=True):
        net.load_state_dict(unpack(case[name]))
        net.eval()
    return nets


def enliven(*nets):
    """Loud weights and biases."""
    with torch.no_grad():
        for net in nets:
            for name, parameter in net.named_parameters():
                parameter.mul_(1.5) if parameter.ndim > 1 and not name.endswith("_v") else parameter.add_(0.05)
    return nets


def play(twin, x, blocks):
    """The stream of a signal, in blocks of so many frames of `hop` samples."""
    with torch.no_grad():
        return torch.cat([twin(part) for part in x.split(blocks, -1)], -1)


def test_every_variant_is_tested(peers):
    assert sorted(peers) == sorted(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("folded", [False, True])
def test_equals_the_peer(peers, name, folded):
    encoder, decoder = restore(peers[name])
    if folded:
        fold_weight_norm(encoder)
        fold_weight_norm(decoder)
    assert len(peers[name]["cases"]) == 3
    for case in peers[name]["cases"]:
        with torch.no_grad():
            assert float(case["y"].std()) > 1e-3
            torch.testing.assert_close(encoder(case["x"]), case["z"], rtol=0, atol=1e-5)
            torch.testing.assert_close(decoder(case["z"]), case["y"], rtol=0, atol=1e-5)


def test_spectral_norm_follows_in_training(peers):
    encoder, _ = restore(peers["spectral"])
    encoder.train()
    x = peers["spectral"]["cases"][1]["x"]
    for expected in peers["spectral"]["training"]:
        y = encoder(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    y.square().sum().backward()
    assert all(bool(p.grad.any()) for p in encoder.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_full_size_has_the_peers_keys(name):
    expected = torch.load(FIXTURES / "seanet_sizes.pt", weights_only=True)[name]
    with torch.device("meta"):
        codec = config.load([name], []).build_argument(run.train, "wrapper").codec
    shapes = {key: list(value.shape) for key, value in codec.state_dict().items()}
    assert {key: shape for key, shape in shapes.items() if not key.startswith("quantizer.")} == expected
    if name in PARAMETERS:
        assert sum(p.numel() for p in codec.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel", [1, 3, 7, 10])
@pytest.mark.parametrize("dilation", [1, 3])
def test_a_convolution_streams(kernel, stride, causal, dilation):
    if (kernel - 1) * dilation + 1 < stride:
        with pytest.raises(ValueError, match="larger kernel_size"):
            StreamableConv1d(2, 3, kernel, stride=stride, dilation=dilation, causal=causal, pad_mode="constant")
        return
    torch.manual_seed(0)
    layer = StreamableConv1d(2, 3, kernel, stride=stride, dilation=dilation, causal=causal, pad_mode="constant")
    layer = layer.double()
    twin, info = streaming(layer, stride)
    x = torch.randn(3, 2, 60 * stride, dtype=torch.float64)
    silence = torch.zeros(3, 2, info.offset, dtype=torch.float64)
    expected = layer(torch.cat([silence, x], -1))
    late = twin.enable_streaming(-info.offset)
    for blocks in ([1, 7, 2, 20, 30], [30, 1, 1, 8, 20], [60]):
        reset(twin)
        y = play(twin, x, [b * stride for b in blocks])
        assert y.shape[-1] == 60
        torch.testing.assert_close(y[..., late:], expected[..., : 60 - late], rtol=0, atol=1e-12)
    if causal:
        assert (info.offset, late) == (0, 0)


@pytest.mark.parametrize(("causal", "ratio"), [(True, 1.0), (True, 0.5), (True, 0.0), (False, 1.0)])
@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (6, 3), (5, 1), (3, 3), (7, 2)])
def test_a_transposed_convolution_streams(kernel, stride, causal, ratio):
    torch.manual_seed(0)
    layer = StreamableConvTranspose1d(2, 3, kernel, stride=stride, causal=causal, trim_right_ratio=ratio).double()
    twin, info = streaming(layer)
    x = torch.randn(3, 2, 40, dtype=torch.float64)
    expected = layer(x)
    assert expected.shape[-1] == 40 * stride
    late = info.latency
    assert late == layer.left and (late == 0 or not (causal and ratio == 1))
    for blocks in ([1, 7, 2, 20, 10], [40]):
        reset(twin)
        y = play(twin, x, blocks)
        torch.testing.assert_close(y[..., late:], expected[..., : 40 * stride - late], rtol=0, atol=1e-12)


@pytest.mark.parametrize("skip", [True, False])
def test_the_lstm_goes_on(skip):
    torch.manual_seed(0)
    layer = LSTM(5, 2, skip=skip).double().eval()
    twin, info = streaming(layer)
    assert info.latency == 0
    x = torch.randn(3, 5, 30, dtype=torch.float64)
    for blocks in ([30], [1] * 30, [1, 7, 2, 16, 4]):
        reset(twin)
        torch.testing.assert_close(play(twin, x, blocks), layer(x), rtol=0, atol=1e-12)
    reset(twin)
    torch.testing.assert_close(twin(x[:1, :, :9]), layer(x[:1, :, :9]), rtol=0, atol=1e-12)
    assert twin(x[:0]).shape[0] == 0
    torch.testing.assert_close(twin(x[..., :1]), layer(x[..., :1]), rtol=0, atol=1e-12)
    reference = x.permute(2, 0, 1)
    reference = layer.lstm(reference)[0] + reference * skip
    torch.testing.assert_close(layer(x), reference.permute(1, 2, 0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("true_skip", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_causal_networks_stream_from_the_first_sample(true_skip, channels):
    torch.manual_seed(0)
    options = {"channels": channels, "dimension": 5, "n_filters": 4, "ratios": (4, 3, 2), "n_residual_layers": 2}
    options |= {"norm": "weight_norm", "causal": True, "pad_mode": "constant", "true_skip": true_skip, "lstm": 2}
    model = Sequential(*enliven(*build(options))).double().eval()
    twin, info = streaming(model, 24)
    assert (info.offset, info.latency) == (0, 0)
    x = torch.randn(2, channels, 24 * 20, dtype=torch.float64)
    expected = model(x).detach()
    for blocks in ([1, 7, 2, 9, 1], [9, 1, 10], [1] * 20):
        reset(twin)
        y = play(twin, x, [24 * b for b in blocks])
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("pad_mode", ["reflect", "replicate"])
def test_other_padding_differs_in_the_beginning_and_at_the_end_alone(pad_mode):
    torch.manual_seed(0)
    options = {"dimension": 5, "n_filters": 4, "ratios": (3, 2), "norm": "weight_norm", "causal": True}
    model = Sequential(*enliven(*build({**options, "pad_mode": pad_mode}))).double().eval()
    twin, info = streaming(model, 6)
    assert info.latency == 0
    x = torch.randn(2, 1, 6 * 60, dtype=torch.float64)
    expected = model(x).detach()
    y = play(twin, x, [6 * b for b in (1, 30, 29)])
    assert not torch.allclose(y[..., :6], expected[..., :6], atol=1e-3 * float(expected.abs().max()))
    late = slice(6 * 40, None)
    torch.testing.assert_close(y[..., late], expected[..., late], rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_configurations_train_and_stream(name, channels):
    torch.manual_seed(0)
    overrides = [*SMALL, f"CHANNELS = {channels}"]
    if name == "encodec_48khz":
        with pytest.raises(NotStreamable, match="renormalize = False"):
            config.load([name], SMALL).build_argument(run.train, "wrapper").codec.streaming()
        overrides += ["RENORMALIZE = False"]
        with pytest.raises(NotStreamable, match="norm = 'weight_norm'"):
            config.load([name], overrides).build_argument(run.train, "wrapper").codec.streaming()
        overrides += ["NORM = 'weight_norm'"]
    loaded = config.load([name], overrides)
    loaded.check_unused(run.train, ["db_path"])
    wrapper = loaded.build_argument(run.train, "wrapper").train()
    wrapper.combiner.declare(wrapper.declared_losses())
    codec = wrapper.codec
    make_loud(codec)
    losses = wrapper.generator_losses(0.3 * torch.randn(2, channels, 16 * codec.hop))
    total = wrapper.combiner(losses)
    total.backward()
    assert torch.isfinite(total)
    named = [*codec.encoder.named_parameters(), *codec.decoder.named_parameters()]
    assert all(bool(parameter.grad.isfinite().all()) for _, parameter in named)
    # A direction of one number has no gradient but rounding.
    scalar = {name for name, parameter in named if name.endswith("weight_v") and parameter[0].numel() == 1}
    assert [name for name, parameter in named if not parameter.grad.any() and name not in scalar] == []

    codec = fold_weight_norm(codec).double().eval()
    plain = Sequential(codec.encoder, codec.decoder)
    twin, info = streaming(plain, codec.hop)
    blocks = [1, 7, 2, 1, 16, 13]
    frames = sum(blocks)
    x = torch.randn(2, channels, frames * codec.hop, dtype=torch.float64)
    silence = torch.zeros(2, channels, WARM * codec.hop, dtype=torch.float64)
    late = info.latency - info.offset
    with torch.no_grad():
        # Biases and cells answer the silence before; 24 kHz reflects its beginning, as published.
        expected = plain(torch.cat([silence, F.pad(x, (info.offset, 0))], -1))[..., silence.shape[-1] :]
    assert (info.latency == 0) == (name == "encodec_24khz")
    for order in (blocks, blocks[::-1]):
        reset(twin)
        play(twin, silence, [silence.shape[-1]])
        y = play(twin, x, [b * codec.hop for b in order])
        stop = y.shape[-1] - 4 * codec.hop
        assert late < 24 * codec.hop
        got, wanted = y[..., late:stop], expected[..., : stop - late]
        assert float(wanted.std()) > 1e-2
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("true_skip", [True, False])
def test_torchscript_streams_too(true_skip):
    torch.manual_seed(0)
    options = {"dimension": 4, "n_filters": 2, "ratios": (3, 2), "norm": "weight_norm", "causal": True, "lstm": 2}
    options |= {"pad_mode": "constant", "true_skip": true_skip}
    model = fold_weight_norm(Sequential(*enliven(*build(options)))).eval().requires_grad_(False)
    twin, _ = streaming(model, 6)
    x = torch.randn(2, 1, 60)
    expected = model(x)
    atol = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(play(torch.jit.script(twin), x, [6, 24, 30]), expected, rtol=0, atol=atol)
    torch.testing.assert_close(torch.jit.script(model)(x), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("params", [None, {"alpha": 0.7}, {"alpha": 1.0, "inplace": True}])
def test_writing_over_an_activations_input_changes_nothing(params):
    torch.manual_seed(0)
    net = SEANetEncoder(1, 4, n_filters=2, ratios=(3, 2), activation_params=params)
    twin = SEANetEncoder(1, 4, n_filters=2, ratios=(3, 2), activation_params=params)
    twin.load_state_dict(net.state_dict())
    for module in twin.modules():
        if isinstance(module, nn.ELU):
            module.inplace = False
    x = torch.randn(2, 1, 60)
    kept = x.clone()
    for one in (net, twin):
        one(x).square().sum().backward()
    assert torch.equal(x, kept)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_24_khz_with_zeros_streams_from_the_first_sample():
    torch.manual_seed(0)
    loaded = config.load(["encodec_24khz"], [*SMALL, "PAD_MODE = 'constant'"])
    codec = loaded.build_argument(run.train, "wrapper").codec
    make_loud(codec)
    codec = fold_weight_norm(codec).double().eval()
    twin, info = codec.streaming()
    assert (info.offset, info.latency) == (0, 0)
    x = torch.randn(2, 1, 40 * codec.hop, dtype=torch.float64)
    y = play(twin, x, [b * codec.hop for b in (1, 7, 2, 1, 16, 13)])
    torch.testing.assert_close(y, codec(x).detach(), rtol=0, atol=1e-10)


def test_the_recurrence_can_be_left_out_of_the_receptive_field():
    torch.manual_seed(0)
    codec = config.load(["audiogen_codec_16khz"], SMALL).build_argument(run.train, "wrapper").codec
    make_loud(codec)
    codec.quantizer = nn.Identity()
    codec.forward = lambda audio: codec.decoder(codec.encoder(audio))
    left, right = codec.receptive_field(recurrence=False)
    longer, same = codec.receptive_field()
    assert longer > left > 0 and abs(same - right) <= 2 < right


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"norm": "layer_norm"}, "norm is 'layer_norm'; it is one of none, weight_norm"),
        ({"norm": "time_group_norm", "causal": True}, "cannot be causal; set causal = False"),
        ({"norm_params": {"eps": 1e-3}}, "arguments of time_group_norm"),
        ({"pad_mode": "mirror"}, "pad_mode is 'mirror'; it is one of constant"),
        ({"activation": "Elu"}, "activation 'Elu' is no class of torch.nn"),
        ({"disable_norm_outer_blocks": 9}, "disable_norm_outer_blocks is 9, but there are 6 blocks"),
        ({"compress": 64}, "use a smaller compress"),
        ({"ratios": []}, "at least one stride"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, complaint):
    for kind in (SEANetEncoder, SEANetDecoder):
        with pytest.raises(ValueError, match=complaint):
            kind(**options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"trim_right_ratio": 0.5}, "set causal = True"),
        ({"trim_right_ratio": 1.5, "causal": True}, "a share between 0 and 1"),
        ({"final_activation_params": {"alpha": 1}}, "without final_activation"),
    ],
)
def test_what_a_decoder_cannot_be_is_refused_by_name(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        SEANetDecoder(**options)


def test_a_memory_without_end_is_looked_for_no_longer_than_some_seconds():
    """Gates that stay open: what was heard a minute ago is still there, and asking for it must come to an end."""
    torch.manual_seed(0)
    codec = config.load(["encodec_baseline"], ["CAPACITY = 2", "LATENT_SIZE = 4"]).build("CODEC")
    for layer in (module.lstm for module in codec.modules() if isinstance(module, LSTM)):
        for name, bias in layer.named_parameters():
            if name.startswith("bias_ih"):
                bias.data[layer.hidden_size : 2 * layer.hidden_size] = 20.0  # the gates that forget
    left, right = codec.receptive_field()
    assert LONGEST_MEMORY <= left < 2 * LONGEST_MEMORY and right <= codec.hop
