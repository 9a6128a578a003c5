"""A run of acids-rave with Descript's discriminator: the critic comes along, weight by weight."""

import torch

from rave_tools import config
from rave_tools.cli.main import main
from rave_tools.criteria.discriminators.descript import DescriptDiscriminator
from rave_tools.runs import open_run
from rave_tools.training import run as training

from .runs_of_rave import load, write

# As acids-rave 2.3.1 writes them into a run's config.gin, but for the smaller sizes.
THEIRS = """
descript_discriminator.DescriptDiscriminator.bands = \\
    [(0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]
descript_discriminator.DescriptDiscriminator.fft_sizes = [64]
descript_discriminator.DescriptDiscriminator.periods = []
descript_discriminator.DescriptDiscriminator.rates = []
descript_discriminator.DescriptDiscriminator.sample_rate = 44100
"""
CHOICE = "model.RAVE.discriminator = @"


def with_descript(fixture: dict, critic: DescriptDiscriminator) -> dict:
    imports = "from rave import discriminator\n"
    before, after = "discriminator.Combine", "descript_discriminator.Descript"
    text = fixture["config"].replace(imports, "from rave import descript_discriminator\n" + imports)
    text = text.replace(f"{CHOICE}{before}Discriminators", f"{CHOICE}{after}Discriminator")
    state = fixture["checkpoint"]["state_dict"]
    kept = {key: value for key, value in state.items() if not key.startswith("discriminator.")}
    kept |= {f"discriminator.{key}": value for key, value in critic.state_dict().items()}
    kept["discriminator.discriminators.0.stft.window"] = torch.hann_window(64)
    return {**fixture, "config": text + THEIRS, "checkpoint": {**fixture["checkpoint"], "state_dict": kept}}


def test_descripts_critic_is_imported(tmp_path):
    torch.manual_seed(0)
    critic = DescriptDiscriminator(periods=[], fft_sizes=[64])
    theirs = write(with_descript(load("v2_spectral_discriminator"), critic), tmp_path / "theirs")
    assert main(["import", "--run", str(theirs), "--output", str(tmp_path / "ours")]) == 0
    assert "NOT TAKEN" not in (tmp_path / "ours" / "import.txt").read_text()
    opened = open_run(tmp_path / "ours")
    wrapper = config.load([], text=opened.config_text).build_argument(training.train, "wrapper")
    wrapper.load_state_dict(opened.state_dict)
    audio = torch.randn(2, 1, 700)
    ours = wrapper.adversary.discriminator
    for mine, other in zip(ours(audio), critic(audio), strict=True):
        assert torch.equal(mine.logits, other.logits)
