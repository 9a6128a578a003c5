"""Latents as a prior sees them, and whether two codecs mean the same by them."""

import copy

import pytest
import torch

from rave_tools.generative.latent_space import LatentSpace, disagreement
from tests.export.small import small_codec

from .codes import HOP, CodeCodec


def test_controls_there_and_back():
    codec = small_codec()
    space = LatentSpace(codec, 3)
    audio = 0.1 * torch.randn(2, 1, 64 * 10)
    controls = space.encode(audio, deterministic=True)
    z = codec.encode(audio, deterministic=True).z
    expected = torch.einsum("kd,bdn->bkn", codec.latent_pca[:3], z - codec.latent_mean[:, None])
    torch.testing.assert_close(controls, expected)
    assert not torch.equal(space.encode(audio), space.encode(audio)), "the posterior is drawn from"
    whole = LatentSpace(codec, 8)
    torch.testing.assert_close(whole.to_latents(whole.encode(audio, deterministic=True)), z)
    assert space.to_latents(controls).shape == z.shape


def test_a_codec_agrees_with_itself_whatever_its_decoder_learned():
    codec, other = small_codec(), small_codec()
    with torch.no_grad():
        for parameter in other.decoder.parameters():
            parameter.add_(1)
    assert disagreement(codec, other, 4) == 0
    averaged = copy.deepcopy(codec)
    with torch.no_grad():
        for parameter in averaged.encoder.parameters():
            parameter.mul_(1.0001)
    assert 0 < disagreement(codec, averaged, 4) < 0.01


def test_codecs_that_differ_disagree():
    codec, other = small_codec(), small_codec()
    with torch.no_grad():
        for parameter in other.encoder.parameters():
            parameter.copy_(parameter.flip(0))
    assert disagreement(codec, other, 4) > 0.3
    assert disagreement(codec, small_codec(channels=2), 4) == float("inf")
    turned = small_codec()
    turned.latent_pca.copy_(turned.latent_pca.flip(0))
    assert disagreement(codec, turned, 4) > 0.3, "the same latents on other axes are other latents"


def test_codes_there_and_back():
    codec = CodeCodec()
    audio = torch.rand(2, 1, HOP * 10) * 2 - 1
    space = LatentSpace(codec, 2)
    codes = space.encode(audio)
    assert space.discrete and codes.shape == (2, 2, 10) and codes.dtype == torch.float32
    assert torch.equal(codes.long(), codec.encode(audio).codes[:, :2])
    assert torch.equal(LatentSpace(codec, 3).to_latents(LatentSpace(codec, 3).encode(audio)), codec.encode(audio).z)
    assert disagreement(codec, CodeCodec(), 2) == 0
    assert disagreement(codec, CodeCodec(size=4), 2) == float("inf")


def test_what_cannot_be_predicted_is_said():
    with pytest.raises(ValueError, match="predicts 9 latents and the codec has 8; set CONTROLS to at most 8"):
        LatentSpace(small_codec(), 9)
    with pytest.raises(ValueError, match="predicts 4 latents and the codec has 3 codebooks"):
        LatentSpace(CodeCodec(), 4)
    with pytest.raises(ValueError, match="codebooks were never placed"):
        LatentSpace(CodeCodec(placed=False), 2).encode(torch.zeros(1, 1, HOP))
