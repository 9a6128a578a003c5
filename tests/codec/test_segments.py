"""Sounds in segments against encodec 0.1.1, and segments in bounded memory against all at once."""

from pathlib import Path

import pytest
import torch

from rave_tools.codec.bottlenecks.residual import ResidualVectorQuantizer
from rave_tools.codec.compression import CompressionModel
from rave_tools.codec.nets.seanet import SEANetDecoder, SEANetEncoder
from rave_tools.codec.segments import cut_segments, overlap_add, segment_lengths
from rave_tools.inference.reconstruct import machine_of, reconstruct

FIXTURE = Path(__file__).parents[1] / "fixtures" / "encodec_segments.pt"


@pytest.fixture(scope="module")
def peer():
    return torch.load(FIXTURE, weights_only=True)


@pytest.fixture(scope="module")
def model(peer):
    options = peer["options"]
    model = CompressionModel(
        sampling_rate=options["rate"],
        n_channels=2,
        encoder=SEANetEncoder(**options["sizes"]),
        decoder=SEANetDecoder(**options["sizes"]),
        quantizer=ResidualVectorQuantizer(dimension=6, n_q=3, bins=16),
        renormalize=True,
        segment=options["segment"],
        overlap=options["overlap"],
    )
    model.load_state_dict(peer["state"])
    return model.eval()


@torch.no_grad()
def test_codes_levels_and_sound_equal_the_peers(peer, model):
    assert len(peer["cases"]) == 7
    for case in peer["cases"]:
        latents = model.encode_segments(case["x"])
        assert len(latents) == len(case["codes"])
        for latent, codes, scale in zip(latents, case["codes"], case["scales"], strict=True):
            assert torch.equal(latent.codes, codes.long())
            torch.testing.assert_close(latent.scale, scale, atol=1e-7, rtol=1e-6)
        length = case["x"].shape[-1]
        torch.testing.assert_close(model.decode_segments(latents, length), case["y"], atol=1e-5, rtol=0)
    assert case["y"].std() > 0.1 and len(case["codes"]) > 3
    assert len(torch.cat([codes.flatten() for codes in case["codes"]]).unique()) > 4


@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, 100])
def test_files_are_played_in_segments(peer, model, chunk):
    machine = machine_of(model, live=False)
    for case in peer["cases"]:
        y = torch.cat(list(reconstruct(case["x"].split(77, -1), machine, chunk=chunk)), -1)
        torch.testing.assert_close(y, case["y"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_sound_that_is_longer_than_a_chunk_keeps_one_loudness_per_segment(model):
    torch.manual_seed(0)
    x = torch.randn(1, 2, (1 << 19) // 64) * torch.linspace(0.01, 1, (1 << 19) // 64)
    expected = model.decode_segments(model.encode_segments(x), x.shape[-1])
    y = torch.cat(list(reconstruct(x.split(1000, -1), machine_of(model, live=False), chunk=1)), -1)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("samples", "length", "stride"), [(1, 10, 7), (20, 10, 10), (21, 10, 4), (100, 10, 9)])
def test_segments_join_to_what_was_cut(samples, length, stride):
    x = torch.randn(2, samples)
    parts = list(cut_segments(x.split(3, -1), length=length, stride=stride))
    assert [part.shape[-1] for part in parts] == segment_lengths(samples, length=length, stride=stride)
    blocks = list(overlap_add(parts, stride=stride))
    assert len(blocks) == len(parts)
    torch.testing.assert_close(torch.cat(blocks, -1), x)


@torch.no_grad()
def test_wrong_lengths_are_refused(model):
    latents = model.encode_segments(torch.randn(1, 2, 1000))
    with pytest.raises(ValueError, match="has 2 segments of this codec, but 3 were given"):
        model.decode_segments(latents, 900)
    with pytest.raises(ValueError, match="fewer than the 1300"):
        model.decode_segments(latents, 1300)
    with pytest.raises(ValueError, match=r"not \(batch, 2, samples\)"):
        model.encode_segments(torch.randn(1, 1, 1000))


@torch.no_grad()
@pytest.mark.parametrize("renormalize", [True, False])
def test_without_segments_a_sound_that_is_normalised_over_time_is_played_whole(model, monkeypatch, renormalize):
    torch.manual_seed(0)
    monkeypatch.setattr(model, "segment", None)
    monkeypatch.setattr(model, "renormalize", renormalize)
    x = torch.randn(1, 2, 5003) * torch.linspace(0.01, 1, 5003)
    (latent,) = model.encode_segments(x)
    y = torch.cat(list(reconstruct(x.split(1000, -1), machine_of(model, live=False), chunk=400)), -1)
    torch.testing.assert_close(y, model.decode_segments([latent], 5003), atol=1e-5, rtol=0)
