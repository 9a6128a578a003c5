"""A streaming codec equals the plain one at the announced latency, for every block size."""

import pytest
import torch
from torch.nn import functional as F

from rave_tools.nn.conv import fold_weight_norm
from rave_tools.nn.streaming import reset

from .small_models import rave_v1, rave_v2, rave_v2_small

SILENCE = 2**16
BLOCKS = [1, 2, 1, 4, 3, 8, 1, 16, 2, 5]

# acids-rave's latencies, measured on its exports (samples at 44.1 kHz)
PEER = {
    ("v1", "centered"): 25_488,
    ("v1", "causal"): 1_360,
    ("v2", "centered"): 26_720,
    ("v2", "causal"): 1_696,
    ("v2_small", "centered"): 10_528,
    ("v2_small", "causal"): 480,
}
MODELS = {"v1": rave_v1, "v2": rave_v2, "v2_small": rave_v2_small}


@pytest.fixture(autouse=True)
def quiet_noise(monkeypatch):
    """The noise branch is random by nature: 0.5 becomes silence."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, 0.5))


def largest_error(codec, twin, info, x, blocks):
    # An even number of frames: the plain model's sign changes are those of a signal that began an even number of bands'
    # samples ago.
    silence = SILENCE // (2 * codec.hop) * 2 * codec.hop
    with torch.no_grad():
        late = F.pad(x, (silence + info.offset, 0))[..., : silence + x.shape[-1]]
        expected = codec(late)[..., silence:]
        outputs, start = [], 0
        for block in blocks:
            outputs.append(twin(x[..., start : start + block * codec.hop]))
            start += block * codec.hop
        y = torch.cat(outputs, -1)
    rest = info.latency - info.offset
    end = start - codec.receptive_field()[1] - codec.hop
    assert end - rest > 4 * codec.hop, "the test signal is too short to show anything"
    expected = expected[..., : end - rest]
    return float((y[..., rest:end] - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("padding", ["centered", "causal"])
@pytest.mark.parametrize("name", list(MODELS))
def test_stream_equals_plain(name, padding):
    codec = fold_weight_norm(MODELS[name](padding=padding)).double().eval()
    twin, info = codec.streaming()
    assert 0 <= info.offset < codec.hop
    assert info.latency <= PEER[name, padding]
    blocks = BLOCKS * (2048 // codec.hop)
    x = torch.randn(2, 1, sum(blocks) * codec.hop, dtype=torch.float64)
    assert largest_error(codec, twin, info, x, blocks) < 1e-9
    reset(twin)
    assert largest_error(codec, twin, info, x, blocks[::-1]) < 1e-9


def test_odd_frames_keep_the_bands_apart():
    """Where a delay is an odd number of PQMF frames the sign of odd bands must follow (acids-rave's v1 does not)."""
    codec = rave_v2(ratios=(3, 1), dilations=[[1], [1]]).double().eval()
    assert codec.hop // codec.bands == 3
    twin, info = codec.streaming()
    x = torch.randn(1, 1, 60 * codec.hop, dtype=torch.float64)
    assert largest_error(codec, twin, info, x, [1] * 30 + [2, 5, 3] * 3) < 1e-9


def test_trained_batch_norm():
    """Statistics and biases that answer silence: exact once the receptive field has been heard."""
    codec = rave_v1().double()
    with torch.no_grad():
        for _ in range(3):
            codec(torch.randn(2, 1, codec.hop * 4, dtype=torch.float64) + 0.3)
    codec.eval()
    twin, info = codec.streaming()
    silence = torch.zeros(1, 1, SILENCE, dtype=torch.float64)
    with torch.no_grad():
        twin(silence)
    x = torch.randn(1, 1, sum(BLOCKS) * codec.hop, dtype=torch.float64)
    assert largest_error(codec, twin, info, x, BLOCKS) < 1e-9


def test_halves_compose():
    """encode and decode are methods of their own in a host; together they are the whole."""
    codec = rave_v2_small().double().eval()
    whole, info = codec.streaming()
    halves, _ = codec.streaming()
    x = torch.randn(1, 1, 40 * codec.hop, dtype=torch.float64)
    with torch.no_grad():
        for part in x.split(2 * codec.hop, -1):
            z = halves.encode(part, deterministic=True).z
            assert z.shape[-1] == 2
            torch.testing.assert_close(halves.decode(z), whole(part))


@pytest.mark.parametrize(("value", "complaint"), [(float("nan"), "not finite"), (0.0, "weights are zero")])
def test_a_broken_model_has_no_receptive_field(value, complaint):
    codec = rave_v2_small()
    with torch.no_grad():
        for name, parameter in codec.decoder.named_parameters():
            if name.endswith("weight_g"):
                parameter.fill_(value)
    with pytest.raises(ValueError, match=complaint):
        codec.receptive_field()
