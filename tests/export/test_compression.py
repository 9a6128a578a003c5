"""Codecs on the waveform as files for hosts: codes or latents as signals, streams that equal the plain model."""

import errno
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from rave_tools import config
from rave_tools.codec.compression import CompressionModel
from rave_tools.errors import UserError
from rave_tools.export.deliver import Delivered, ExportOptions, export
from rave_tools.export.plain import PlainModel
from rave_tools.export.prepare import assemble
from rave_tools.export.program import export_program
from rave_tools.export.verify import play
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


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressionModel, Delivered]:
    """Frames of 320 samples, which no power of two divides; its file starts with the queue."""
    model = codec("encodec_baseline", "CAPACITY = 2", "LATENT_SIZE = 6")
    path = tmp_path_factory.mktemp("odd") / "codec.ts"
    return model, export(model, path, options=ExportOptions(buffered=True), time_it=False)


@pytest.mark.parametrize("block", [64, 128, 256, 512, 1024, 2048])
def test_blocks_of_powers_of_two_are_heard_whole_and_as_late_as_announced(block, odd) -> None:
    """Exactly: a click, a lost or a doubled sample would be as loud as the sound."""
    model, made = odd
    file = torch.jit.load(str(made.path))
    file.set_temperature(0.0)
    audio = 0.3 * torch.randn(1, 1, 40 * 2048)
    heard = play(file, audio, [block])
    (late,) = file.get_latency()
    assert late == made.facts.latency + 320 == 320
    expected = PlainModel(model, model.controls(), sample_rate=model.sample_rate, channels=1)(audio)
    assert heard.shape == audio.shape and not heard[..., :late].any()
    error = (heard[..., late:] - expected[..., :-late]).abs().max()
    assert error < 1e-5 * expected.abs().max() and expected.std() > 0.1


def test_what_nn_tilde_cannot_do_with_odd_frames_is_said(odd) -> None:
    model, made = odd
    assert any("320 samples, no power of two" in warning and "queue" in warning for warning in made.warnings)
    file = torch.jit.load(str(made.path))
    with pytest.raises(Exception, match="whole latent frames of 320 samples; play forward"):
        file.encode(torch.zeros(1, 1, 512))
    # Nobody else is told: other formats take whole frames.
    assert not any("nn~" in warning for warning in assemble(model, ExportOptions()).warnings)


def test_precision_is_kept_in_the_file(odd, tmp_path) -> None:
    """The LSTM's units speak to each other in full precision, all else at half the size."""
    model = codec("encodec_baseline", "CAPACITY = 4", "LATENT_SIZE = 64")
    sizes = {}
    for precision in ("fp32", "bf16"):
        path = tmp_path / f"{precision}.ts"
        sizes[precision] = export(model, path, options=ExportOptions(precision=precision), time_it=False).size
    weights = 4 * sum(value.numel() for net in (model.encoder, model.decoder) for value in net.parameters())
    assert sizes["fp32"] - sizes["bf16"] > 0.3 * weights


def test_latents_without_a_distribution_are_all_shown() -> None:
    """The others would be drawn at random, from a distribution that these latents do not follow."""
    model = codec("encodec_baseline", *SMALL)
    model.latent_pca.copy_(torch.eye(6))
    model.fidelity.copy_(torch.tensor([0.96, 0.97, 0.98, 0.99, 0.995, 1.0]))
    assert assemble(model, ExportOptions()).facts.latent_size == 6
    assert assemble(model, ExportOptions(fidelity=0.95)).facts.latent_size == 1


@pytest.mark.parametrize("write", [export, partial(export_program, block=8)])
def test_a_full_disk_is_an_error_and_leaves_nothing(write, tmp_path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = codec("encodec_baseline", *SMALL)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full; free some space"):
        write(model, tmp_path / "codec.ts", options=ExportOptions(), time_it=False)
    assert not list(tmp_path.iterdir())


def test_a_causal_model_with_zeros_is_not_late() -> None:
    for name in ("encodec_24khz", "encodec_baseline"):
        overrides = [*CODES, "BANDWIDTHS = []", "PAD_MODE = 'constant'"] if name == "encodec_24khz" else SMALL
        assert codec(name, *overrides).streaming()[1].latency == 0


def test_a_precision_that_a_model_cannot_bear_is_refused_with_the_mend(tmp_path) -> None:
    """Loud random snakes make any rounding large."""
    model = codec("dac_16khz", *CODES[1:], "CAPACITY = 2", "DECODER_CAPACITY = 16", "RATIOS = [2, 4, 5, 8]")
    with pytest.raises(UserError, match="leave --precision out"):
        export(model, tmp_path / "codec.ts", options=ExportOptions(precision="bf16"), time_it=False)
    assert not list(tmp_path.iterdir())


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
