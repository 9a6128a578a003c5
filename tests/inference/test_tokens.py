"""Sound to tokens and back in parts equals one pass."""

import pytest
import torch
from torch.nn import functional as F

from rave_tools import config
from rave_tools.inference.tokens import Tokenizer, identity
from tests.loud import make_loud

HEADER = "from __gin__ import dynamic_registration\n"
SMALL = "CAPACITY = 4\nLATENT_SIZE = 6\nNUM_QUANTIZERS = 3\nCODEBOOK_SIZE = 16\nBANDWIDTHS = []\n"
CONFIGS = {
    "encodec": (f"include 'encodec_24khz.gin'\n{SMALL}LSTM_LAYERS = 0\n", "codes"),
    "looks_ahead": (f"include 'encodec_32khz.gin'\n{SMALL}LSTM_LAYERS = 1\n", "codes"),
    "rave": ("include 'v1.gin'\nCAPACITY = 4\nRATIOS = [4, 4, 2, 2]\nLATENT_SIZE = 8\n", "latents"),
}


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_parts_equal_one_pass(name):
    torch.manual_seed(0)
    text, kind = CONFIGS[name]
    codec = config.load([], text=HEADER + text).build("CODEC").eval()
    make_loud(codec)
    if name == "rave":
        codec.decoder.noise_from_phase = 3  # what is drawn at random equals nothing
    tokenizer = Tokenizer(codec, kind, chunk=5000)
    samples = 100_003
    audio = 0.3 * torch.randn(2, codec.channels, samples)
    blocks = list(tokenizer.encode(audio.split(777, -1), []))
    kept = torch.cat(blocks, -1)
    padded = F.pad(audio, (0, -samples % codec.hop))
    latent = codec.encode(padded, deterministic=True)
    assert len(blocks) > 10 and tokenizer.frames(samples) == [kept.shape[-1]]
    if kind == "codes":
        # Random codebooks hold codes that are the same but for rounding, which then decides between them.
        assert (kept == latent.codes).float().mean() > 0.9 and len(kept.unique()) > 8
        torch.testing.assert_close(codec.dequantize(kept), codec.dequantize(latent.codes), atol=1e-6, rtol=0)
    else:
        torch.testing.assert_close(kept, latent.z, atol=1e-5, rtol=0)
    sound = torch.cat(list(tokenizer.decode(kept.split(100, -1), samples=samples, scales=None)), -1)
    expected = codec.from_bands(codec.decode_latent(latent))[..., :samples]
    torch.testing.assert_close(sound, expected, atol=5e-5, rtol=0)
    assert sound.std() > 1e-2


def test_the_identity_follows_the_weights_and_nothing_else():
    codec = config.load([], text=HEADER + CONFIGS["encodec"][0]).build("CODEC")
    first = identity(codec, kind="codes", dtype="float32", run="a")
    assert identity(codec, kind="codes", dtype="float32", run="b").hash == first.hash
    assert first.dtype == "int16"
    codec.set_num_codebooks(2)
    assert identity(codec, kind="codes", dtype="float32", run="a").hash != first.hash
    codec.set_num_codebooks(3)
    with torch.no_grad():
        next(codec.parameters()).view(-1)[0] += 1e-6
    assert identity(codec, kind="codes", dtype="float32", run="a").hash != first.hash
