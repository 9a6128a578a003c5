"""Every codec on the waveform, as a person trains it: two updates from a folder of sounds, and what they leave.

Streams are tested in tests/codec/test_seanet.py and test_dac.py, exports in tests/export/test_compression.py.
"""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rave_tools import config
from rave_tools.cli.main import main
from rave_tools.cli.opening import open_codec
from rave_tools.runs import open_run
from rave_tools.training import run

SMALL = {
    "CAPACITY": 2, "LATENT_SIZE": 8, "NUM_QUANTIZERS": 4, "CODEBOOK_SIZE": 16, "DISCRIMINATOR_CAPACITY": 2,
    "DECODER_CAPACITY": 32, "BANDWIDTHS": [], "BATCH": 2,
}  # fmt: skip
CODES = ["encodec_24khz", "encodec_48khz", "encodec_32khz", "audiogen_codec_16khz"]
CODES += ["dac_44khz", "dac_24khz", "dac_16khz"]
CONTINUOUS = ["encodec_baseline", "encodec_baseline_1ch", "encodec_baseline_32ch"]


def small(name: str) -> list[str]:
    loaded = config.load([name])
    without_codes = {"NUM_QUANTIZERS", "CODEBOOK_SIZE"} if name in CONTINUOUS else set()
    return [
        f"{macro} = {value}"
        for macro, value in SMALL.items()
        if loaded.has_macro(macro) and macro not in without_codes
    ]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of noises that decay, by their number of channels."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for channels in (1, 2, 32):
        (folder / str(channels)).mkdir()
        for number in range(3):
            envelope = np.exp(-np.linspace(0, 4, 48000))[:, None]
            noise = 0.3 * envelope * generator.standard_normal((48000, channels))
            soundfile.write(folder / str(channels) / f"{number}.wav", noise, 24000, subtype="PCM_24")
    return {channels: folder / str(channels) for channels in (1, 2, 32)}


@pytest.mark.parametrize("name", [*CODES, *CONTINUOUS])
def test_two_updates_from_a_folder(name: str, sounds: dict[int, Path], tmp_path: Path) -> None:
    loaded = config.load([name], small(name))
    channels = loaded.macro("CHANNELS")
    words = ["train", "--config", name, "--audio_path", str(sounds[channels]), "--out_path", str(tmp_path)]
    words += ["--name", "run", "--workers", "0", "--accelerator", "cpu", "--smoke_test"]
    words += [word for binding in small(name) for word in ("--override", binding)]
    words += ["--batch", "2"]
    torch.manual_seed(0)
    assert main(words) == 0
    opened = open_run(tmp_path / "run")
    assert opened.step == 2
    assert opened.facts["discriminator_updates"] == sum(
        run_schedule(loaded).discriminator_joins(step, 0) for step in range(2)
    )
    codec, _ = open_codec(str(tmp_path / "run"))
    assert codec.channels == channels and bool(codec.num_codebooks) == (name in CODES)
    shown = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["scalars"]
    assert any(tag.startswith("validation/") and tag.endswith("spectral_distance") for tag in shown)
    assert "losses/adversarial" in shown
    if name.startswith(("encodec", "audiogen")):
        assert "optimisation/gradient_share_adversarial" in shown
        assert "optimisation/gradient_weight_fullband_spectral_distance" in shown
    if name in CODES:
        assert any(tag.startswith("codebooks/") for tag in shown)


def run_schedule(loaded: config.Config):
    return loaded.build_argument(run.train, "wrapper").schedule


@pytest.mark.parametrize("name", [*CODES, *CONTINUOUS])
def test_a_recipe_knows_its_window(name: str) -> None:
    loaded = config.load([name], small(name))
    assert loaded.macro("N_SIGNAL") % loaded.build("CODEC").hop == 0


def test_the_baseline_is_judged_by_its_reconstruction_alone() -> None:
    """0.1 times the samples' distance and 1 times the spectra's, whatever the adversary says."""
    wrapper = config.load(["encodec_baseline"], small("encodec_baseline")).build_argument(run.train, "wrapper")
    audio = 0.1 * torch.randn(2, 1, 24000)
    wrapper.codec.eval()
    with torch.no_grad():
        reconstruction, latent = wrapper.reconstruct(audio, deterministic=True)
        wrapper.validation.add(reconstruction, latent)
        verdict = wrapper.validation.finish(wrapper.codec)
        parts = [judge(reconstruction) for judge in wrapper.judges]
    merged = {name: float(value) for part in parts for name, value in part.items()}
    expected = 0.1 * merged["fullband_waveform_distance"] + merged["fullband_spectral_distance"]
    assert verdict.distance == pytest.approx(expected, rel=1e-3)
    assert set(verdict.named) == {"fullband_waveform_distance", "fullband_spectral_distance"}


def test_the_recipes_are_those_of_the_baseline() -> None:
    """24 kHz, one second, batches of 32 and 4, 300 epochs of 2,000 updates, 3e-4, weights 0.1, 1, 3 and 3."""
    for channels, batch in ((1, 32), (32, 4)):
        loaded = config.load([f"encodec_baseline_{channels}ch"])
        facts = [loaded.macro(name) for name in ("SAMPLING_RATE", "N_SIGNAL", "BATCH", "CHANNELS", "LEARNING_RATE")]
        assert facts == [24000, 24000, batch, channels, 3e-4]
        text = loaded.operative(run.train)
        assert "max_steps = 600000" in text and "val_every = 2000" in text
        wrapper = config.load([f"encodec_baseline_{channels}ch"], ["CAPACITY = 2"]).build_argument(run.train, "wrapper")
        assert wrapper.combiner.weights == {
            "fullband_waveform_distance": 0.1, "fullband_spectral_distance": 1.0, "adversarial": 3.0,
            "feature_matching": 3.0,
        }  # fmt: skip
        first = next(iter(wrapper.adversary.discriminator.discriminators)).convs[0].conv
        assert first.in_channels == 2 * channels
        assert not wrapper.codec.num_codebooks


def test_a_weight_for_a_loss_that_no_judge_gives_is_refused() -> None:
    with pytest.raises(config.ConfigError, match=r"validation_weights has fullband_kl.*fullband_spectral_distance"):
        config.load(["encodec_baseline"], [
            *small("encodec_baseline"), "autoencoder.AutoencoderTrainingWrapper.validation_weights = {'fullband_kl': 1}"
        ]).build_argument(run.train, "wrapper")  # fmt: skip
