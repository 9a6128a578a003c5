"""Codecs on the waveform as files for hosts: codes or latents as signals, streams that equal the plain model."""

from pathlib import Path

import pytest
import torch

from rave_tools import config
from rave_tools.codec.compression import CompressionModel
from rave_tools.errors import UserError
from rave_tools.export.deliver import ExportOptions, export
from tests.loud import make_loud

SMALL = ["CAPACITY = 2", "LATENT_SIZE = 6", "RATIOS = [4, 2]"]
CODES = [*SMALL, "NUM_QUANTIZERS = 3", "CODEBOOK_SIZE = 16"]
BLOCKS = (1, 3, 2, 8, 1)
"""Hops."""


def codec(name: str, *overrides: str) -> CompressionModel:
    torch.manual_seed(0)
    built = config.load([name], overrides).build("CODEC").eval()
    make_loud(built)
    return built


def played(module: torch.jit.ScriptModule, method: str, signal: torch.Tensor, unit: int) -> torch.Tensor:
    """A signal in blocks, which grow and shrink."""
    out, start, turn = [], 0, 0
    while start < signal.shape[-1]:
        size = BLOCKS[turn % len(BLOCKS)] * unit
        out.append(getattr(module, method)(signal[..., start : start + size]))
        start, turn = start + size, turn + 1
    return torch.cat(out, -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("encodec_24khz", [*CODES, "BANDWIDTHS = []", "PAD_MODE = 'constant'"]),
        ("encodec_24khz", [*CODES, "BANDWIDTHS = []"]),
        ("encodec_baseline", [*SMALL, "CHANNELS = 2"]),
        ("encodec_32khz", CODES),
        ("dac_16khz", [*CODES, "DECODER_CAPACITY = 16"]),
    ],
)
def test_a_host_hears_the_model(name: str, overrides: list[str], tmp_path: Path) -> None:
    model = codec(name, *overrides)
    made = export(model, tmp_path / "codec.ts", options=ExportOptions(), time_it=False)
    assert made.verification.passed
    file = torch.jit.load(str(made.path))
    size = 3 if model.num_codebooks else model.latent_dim
    assert file.encode_params.tolist() == [model.channels, 1, size, model.hop]
    assert file.decode_params.tolist()[:2] == [size, model.hop]
    twin, info = model.streaming()
    audio = 0.3 * torch.randn(1, model.channels, 30 * model.hop)
    with torch.no_grad():
        shown = played(file, "encode", audio, model.hop)
        latents = torch.cat([twin.encode(block).z for block in audio.split(model.hop, -1)], -1)
        if model.num_codebooks:
            # What the file shows are codes, and they say what the stream's latents are.
            assert torch.equal(shown, shown.round()) and shown.min() >= 0 and shown.max() <= 15
            torch.testing.assert_close(model.dequantize(shown.long()), latents, atol=1e-4, rtol=1e-4)
        else:
            torch.testing.assert_close(shown, latents, atol=1e-4, rtol=1e-4)
    assert made.facts.latency == info.latency


def test_a_causal_model_with_zeros_is_not_late() -> None:
    for name in ("encodec_24khz", "encodec_baseline"):
        overrides = [*CODES, "BANDWIDTHS = []", "PAD_MODE = 'constant'"] if name == "encodec_24khz" else SMALL
        assert codec(name, *overrides).streaming()[1].latency == 0


@pytest.mark.parametrize(
    ("overrides", "streaming", "complaint"),
    [
        ([], True, "loudness.*RENORMALIZE = False"),
        ([], False, "loudness.*RENORMALIZE = False"),
        (["RENORMALIZE = False"], True, "cannot be exported for streaming: time_group_norm.*weight_norm"),
        (["RENORMALIZE = False"], False, "padded by reflect.*PAD_MODE = 'constant'"),
    ],
)
def test_what_no_host_can_play_is_refused_in_words(overrides, streaming, complaint, tmp_path) -> None:
    model = codec("encodec_48khz", *CODES, "BANDWIDTHS = []", *overrides)
    with pytest.raises(UserError, match=complaint):
        export(model, tmp_path / "codec.ts", options=ExportOptions(streaming=streaming), time_it=False)
    assert not list(tmp_path.iterdir())
