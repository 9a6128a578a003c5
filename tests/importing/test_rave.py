"""Runs of acids-rave, made by its own code, become ours: same sound, same place in the training."""

import lzma
import shutil

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from rave_tools import config
from rave_tools.cli import opening
from rave_tools.cli.main import main
from rave_tools.contracts import AudioBatch
from rave_tools.importing import rave_config
from rave_tools.importing.rave_training import Player
from rave_tools.runs import RunDirectory, open_run
from rave_tools.training import run as training

from .runs_of_rave import FOLDER, NAMES, load, write


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bring(theirs, ours, *words):
    return main(["import", "--run", str(theirs), "--output", str(ours), *words])


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Name of a fixture -> (fixture, folder of the run made of it); each is imported once."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            fixture = load(name)
            assert bring(write(fixture, folder / "theirs"), folder / "ours") == 0
            made[name] = fixture, folder / "ours"
        return made[name]

    return make


def effective(folder):
    return config.load([], text=open_run(folder).config_text)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_sound_is_the_same(imported, name, monkeypatch):
    fixture, folder = imported(name)
    codec, _ = opening.open_codec(str(folder))
    latent = codec.encode(fixture["x"], deterministic=True).z
    # Beside the latents, some decoders hear noise; the fixture has drawn it.
    torch.testing.assert_close(latent, fixture["latent"][:, : latent.shape[1]], rtol=1e-5, atol=1e-5)
    if fixture["uniform"]:
        drawn = iter(fixture["uniform"])
        monkeypatch.setattr(torch, "rand_like", lambda like: next(drawn).reshape(like.shape))
    torch.testing.assert_close(codec.decode(fixture["latent"]), fixture["audio"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_binding_is_accounted_for_and_the_file_stands_alone(imported, name):
    _, folder = imported(name)
    assert "NOT TAKEN" not in (folder / "import.txt").read_text()
    text = (folder / "config.gin").read_text()
    assert "\ninclude " not in text
    loaded = config.load([], text=text)
    loaded.check_unused(training.train, ["db_path"])
    assert loaded.operative(training.train) == text == open_run(folder).config_text


@pytest.mark.parametrize("name", ["v2", "v2_lightning_1"])
def test_the_place_in_the_training_is_kept(imported, name):
    fixture, folder = imported(name)
    opened = open_run(folder, ema=True)
    facts = opened.facts
    # 4 batches of phase 1, then every batch whose number in its epoch of four is 0 belongs to the discriminator.
    assert (opened.step, facts["discriminator_updates"], facts["batches"], facts["phase"]) == (7, 2, 9, 2)
    assert facts["receptive_field"] == fixture["checkpoint"]["state_dict"]["receptive_field"].tolist()
    assert facts["imported"]["global_step"] == 9
    averaged = fixture["checkpoint"]["callbacks"]["EMA"]
    key = "decoder.net.0.weight_v"
    assert torch.equal(opened.part("codec")[key], averaged[key])
    assert not torch.equal(averaged[key], fixture["checkpoint"]["state_dict"][key])


def test_the_place_without_optimisers_is_shared_out(imported):
    _, folder = imported("v1_phase_2")
    facts = open_run(folder).facts
    assert facts["generator_updates"] == 15 and facts["discriminator_updates"] == 5 and facts["phase"] == 2
    _, folder = imported("v1")
    assert open_run(folder).facts["generator_updates"] == 7 and open_run(folder).facts["phase"] == 1


def test_optimisers_go_on_by_name(imported):
    """acids-rave numbers its parameters; ours may stand in another order, so each is found by its weight's name."""
    fixture, folder = imported("v2")
    opened = open_run(folder)
    wrapper = effective(folder).build_argument(training.train, "wrapper")
    names = {id(parameter): name for name, parameter in wrapper.named_parameters()}
    theirs = [key for key in fixture["checkpoint"]["state_dict"] if key.startswith(("encoder.", "decoder."))
              and "warmed_up" not in key]  # fmt: skip
    for position, parameter in enumerate(wrapper.learners()[0]):
        saved = opened.extra["optimizer_states"][0]["state"][position]
        key = names[id(parameter)].removeprefix("codec.")
        expected = fixture["checkpoint"]["optimizer_states"][0]["state"][theirs.index(key)]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(saved[moment], expected[moment])
        assert float(saved["step"]) == float(expected["step"]) == (4 if key.startswith("encoder.") else 7)


class One(LightningDataModule):
    """One window, again and again."""

    def __init__(self, x):
        super().__init__()
        self.batch, self.n_signal, self.start_batch, self.waited = 1, x.shape[-1], 0, 0.0
        self._batches = DataLoader([AudioBatch(x, torch.zeros(1, x.shape[-1], dtype=torch.bool), [{}])], None)

    def describe(self):
        return []

    def train_dataloader(self):
        return self._batches

    def val_dataloader(self):
        return self._batches


def test_the_next_update_is_the_one_that_acids_rave_makes(imported, tmp_path):
    """With its moments, counters, weights of the losses and learning rate, one step further leads to the same place."""
    fixture, folder = imported("v2")
    opened = open_run(folder)
    wrapper = effective(folder).build_argument(training.train, "wrapper")
    wrapper._latent_noise = lambda audio: fixture["continued"]["gaussian"]
    training.train(
        wrapper=wrapper, data=One(fixture["x"].repeat(1, 1, 8)), run=RunDirectory(tmp_path).create(),
        config_text=opened.config_text, resume={**opened.extra, "state_dict": opened.state_dict}, max_steps=8,
        val_every=10**9, accelerator="cpu", progress=False, estimate=False,
    )  # fmt: skip
    assert wrapper.counters.as_dict()["batches"] == 10
    after = wrapper.state_dict()
    for name, expected in fixture["continued"]["weights"].items():
        before = fixture["checkpoint"]["state_dict"][name]
        moved = (expected - before).square().mean().sqrt()
        difference = (after[f"codec.{name}"] - expected).square().mean().sqrt()
        assert moved > 1e-6 and difference < 0.02 * moved, (name, float(moved), float(difference))


def test_losses_weigh_what_they_weighed(imported):
    """Since 2.3 acids-rave multiplies feature matching by its weight twice, before it did so once."""

    def weights(name):
        _, folder = imported(name)
        wrapper = effective(folder).build_argument(training.train, "wrapper")
        return wrapper, wrapper.combiner.weights

    _, modern = weights("v2")
    assert modern["feature_matching"] == 400 and modern["kl"] == modern["adversarial"] == 1
    wrapper, older = weights("v2_of_2_2")
    assert older["feature_matching"] == 20 and wrapper.beta("kl") == 0.02
    wrapper, oldest = weights("v2_of_2_1")
    assert oldest["feature_matching"] == 20 and oldest["kl"] == 0.1 and wrapper.beta("kl") == 1
    _, odd = weights("v2_other_numbers")
    assert odd["fullband_spectral_distance"] == 2 and odd["feature_matching"] == 25 and odd["kl"] == 0.5


def test_other_numbers_arrive(imported):
    _, folder = imported("v2_other_numbers")
    wrapper = effective(folder).build_argument(training.train, "wrapper")
    codec = wrapper.codec
    assert (codec.sample_rate, codec.bands, codec.hop) == (48000, 8, 128)
    assert codec.decoder.net[0].weight_v.shape == (3 * 8, 4, 3)
    assert codec.encoder.encoder.net[0].weight_v.shape[-1] == 11
    assert wrapper.adversary.discriminator_loss(torch.zeros(1), torch.zeros(1)) == 1  # least squares; hinge gives 2
    assert codec.decoder.net[0].bias is not None


def test_lost_channels_are_mended_and_said(tmp_path, capsys):
    fixture = load("v2_noise_stereo")
    assert "n_channels" not in fixture["config"].partition("model.RAVE")[2]
    theirs = write(fixture, tmp_path / "theirs")
    assert bring(theirs, tmp_path / "ours") == 0
    assert "does not say n_channels" in capsys.readouterr().out
    assert effective(tmp_path / "ours").macro("CHANNELS") == 2
    (theirs / "config.gin").write_text(fixture["config"] + "model.RAVE.n_channels = 1\n")
    assert bring(theirs, tmp_path / "again") == 0
    assert "says n_channels = 1, but the weights have 2: mended" in capsys.readouterr().out


def test_a_v1_of_the_first_phase_is_heard_without_its_noise(imported):
    """acids-rave leaves the branch out until it learns; so do export and generate."""
    quiet, _ = opening.open_codec(str(imported("v1")[1]))
    noisy, _ = opening.open_codec(str(imported("v1_phase_2")[1]))
    z = torch.zeros(1, 4, 1)
    assert torch.equal(quiet.decode(z), quiet.decode(z))
    assert not torch.equal(noisy.decode(z), noisy.decode(z))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    time = np.arange(44100) / 44100
    for number in range(4):
        tone = 0.3 * np.sin(2 * np.pi * 110 * (number + 1) * time)
        soundfile.write(folder / f"{number}.wav", tone.astype("f4"), 44100)
    return folder


@pytest.mark.slow
def test_training_export_and_generation_go_on(imported, sounds, tmp_path, capsys):
    _, folder = imported("v2")
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    db = tmp_path / "db"
    assert main(["preprocess", "--input_path", str(sounds), "--output_path", str(db), "--num_signal", "32768"]) == 0
    words = ["--db_path", str(db), "--n_signal", "32768", "--batch", "1", "--workers", "0", "--accelerator", "cpu"]
    capsys.readouterr()
    assert main(["train", "--resume", str(run), *words, "--max_steps", "9", "--noestimate", "--ema", "0.9"]) == 0
    assert "resuming at step 7, phase 2 (adversarial fine-tuning)" in capsys.readouterr().out
    assert open_run(run).step == 9
    assert main(["export", "--run", str(run), "--name", "ours", "--nospeed", "--ema_weights"]) == 0
    out = tmp_path / "out"
    assert main(["generate", "--model", str(run), "--input", str(sounds), "--out_path", str(out), "--noprogress"]) == 0
    assert main(["generate", "--model", str(run / "ours.ts"), "--input", str(sounds), "--out_path", str(out / "ts"),
                 "--noprogress"]) == 0  # fmt: skip
    for path in (next(out.glob("*.wav")), next(out.glob("ts/*.wav"))):
        heard, _ = soundfile.read(path)
        assert len(heard) == 44100 and np.isfinite(heard).all() and np.abs(heard).max() > 0


def changed(fixture, old, new):
    assert old in fixture["config"]
    fixture["config"] = fixture["config"].replace(old, new)
    return fixture


def without(fixture, key):
    del fixture["checkpoint"]["state_dict"][key]
    return fixture


def with_weights(fixture, **weights):
    fixture["checkpoint"]["state_dict"].update(weights)
    return fixture


WRONG = {
    "unknown encoder": (
        lambda f: changed(f, "RAVE.encoder = @blocks.VariationalEncoder", "RAVE.encoder = @blocks.VariationalEncodr"),
        "RAVE.encoder = @VariationalEncodr cannot be imported: no network is bound to it, or that class is not known "
        "here; known are VariationalEncoder",
    ),
    "class of another package": (
        lambda f: changed(f, "GeneratorV2.noise_module = None", "GeneratorV2.noise_module = @mine.Breath"),
        "GeneratorV2.noise_module = @mine.Breath cannot be imported",
    ),
    "value without counterpart": (
        lambda f: changed(
            changed(f, "RAVE.spectrogram = None", "RAVE.spectrogram = @mine.Cochlea()"), "input_mode = 'pqmf'",
            "input_mode = 'mel'",
        ),
        "RAVE.spectrogram = @mine.Cochlea() cannot be imported",
    ),
    "mode without counterpart": (
        lambda f: changed(f, "input_mode = 'pqmf'", "input_mode = 'tarot'"),
        "RAVE.input_mode = tarot cannot be imported: it is one of pqmf, mel, raw",
    ),
    "no gin": (lambda f: changed(f, "CAPACITY = 2", "CAPACITY = = 2"), "config.gin:"),
    "undefined macro": (lambda f: changed(f, "CAPACITY = 2", ""), "uses %CAPACITY, which it does not define"),
    "includes": (
        lambda f: changed(f, "CAPACITY = 2", "include 'configs/v1.gin'"),
        "includes configs/v1.gin",
    ),
    "another program": (
        lambda f: {**f, "config": "Encoder.width = 3\n"},
        "it is no configuration of an acids-rave model",
    ),
    "another capacity": (
        lambda f: changed(f, "CAPACITY = 2", "CAPACITY = 3"),
        "do not fit the model that its configuration describes: codec.encoder.encoder.net.0.weight_g is (2, 1, 1) "
        "instead of (3, 1, 1)",
    ),
    "a missing weight": (
        lambda f: without(f, "decoder.net.0.weight_g"), "codec.decoder.net.0.weight_g is missing",
    ),
    "a weight too many": (
        lambda f: with_weights(f, **{"decoder.extra": torch.zeros(2)}), "codec.decoder.extra (2,) is left over",
    ),
    "an odd weight": (lambda f: with_weights(f, mystery=torch.zeros(2)), "mystery (2,) is left over"),
    "no weights": (lambda f: {**f, "checkpoint": {"epoch": 3}}, "it holds epoch, and no state_dict"),
    "another model": (
        lambda f: {**f, "checkpoint": {"state_dict": {"lstm.weight": torch.zeros(2)}}},
        "is no checkpoint of a RAVE: among its 1 tensors are lstm.weight",
    ),
    "RAVE 1": (lambda f: with_weights(f, **{"encoder.net.0.weight": torch.zeros(2)}), "is of RAVE 1 (2021)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_imported_gets_one_line(case, tmp_path, capsys):
    spoil, message = WRONG[case]
    theirs = write(spoil(load("v2_phase_1")), tmp_path / "theirs")
    assert bring(theirs, tmp_path / "ours") == 1
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_the_other_commands_point_to_the_import(tmp_path, capsys):
    theirs = write(load("v2_phase_1"), tmp_path / "theirs")
    for path in (theirs, theirs / "version_0", theirs / "version_0" / "checkpoints" / "last.ckpt"):
        assert main(["export", "--run", str(path)]) == 1
        assert "If acids-rave made it: rave_tools import --run" in capsys.readouterr().err


def test_what_has_no_counterpart_is_said_aloud(tmp_path, capsys):
    fixture = load("v2_phase_1")
    fixture["config"] += "rave.mine.Thing.size = 3\nblocks.GeneratorV2.swing = 2\n"
    assert bring(write(fixture, tmp_path / "theirs"), tmp_path / "ours") == 0
    said = capsys.readouterr().out
    assert "NOT TAKEN: Thing.size = 3 (line " in said and "NOT TAKEN: GeneratorV2.swing = 2 (line " in said


def test_the_discriminator_of_v3_is_carried_over():
    """Its size is fixed in acids-rave, too large for a fixture; benchmarks/import_null.py imports a whole v3."""
    name = "descript_discriminator.DescriptDiscriminator"
    text = changed(load("v2"), "RAVE.discriminator = @", f"RAVE.discriminator = @{name} #")["config"]
    text += f"{name}.periods = [2, 3]\n{name}.rates = []\n{name}.sample_rate = 44100\n"
    players = Player({"lr": 1e-3}, True), Player({"lr": 1e-4})
    translation = rave_config.translate(rave_config.read(text, "v3"), channels=2, players=players)
    wrapper = config.load([], text=translation.text, text_name="v3").build_argument(training.train, "wrapper")
    weights = wrapper.adversary.discriminator.state_dict()
    assert translation.course.discriminator_known and not translation.untaken
    assert weights["discriminators.1.convs.0.0.weight_v"].shape == (32, 2, 5, 1)
    assert weights["discriminators.2.band_convs.4.0.0.weight_v"].shape == (32, 4, 3, 9)


def test_a_strange_discriminator_is_replaced_and_the_rest_is_kept(tmp_path, capsys):
    fixture = changed(load("v2"), "RAVE.discriminator = @", "RAVE.discriminator = @mine.Jury #")
    fixture["config"] += "mine.Jury.seats = 12\nmine.Jury.clerks = [@mine.Clerk]\nmine.Clerk.chief = @mine.Jury\n"
    assert bring(write(fixture, tmp_path / "theirs"), tmp_path / "ours") == 0
    said = capsys.readouterr().out
    assert "RAVE.discriminator = @mine.Jury cannot be imported" in said and "Jury.seats" not in said
    assert "Clerk" not in said
    assert "optimiser of the generator: goes on" in said and "optimiser of the discriminator: starts fresh" in said
    opened = open_run(tmp_path / "ours")
    wrapper = effective(tmp_path / "ours").build_argument(training.train, "wrapper")
    wrapper.load_state_dict(opened.state_dict)
    key = "decoder.net.0.weight_v"
    assert torch.equal(opened.part("codec")[key], fixture["checkpoint"]["state_dict"][key])
    assert opened.part("adversary")["discriminator.discriminators.0.layers.0.net.0.weight_v"].isfinite().all()


def test_files_that_are_not_there_or_not_whole(tmp_path, capsys):
    fixture = load("v2_phase_1")

    def fails(message, *words):
        assert bring(*words) == 1
        assert message in capsys.readouterr().err

    bare = write(fixture, tmp_path / "bare", config=False)
    fails("no config.gin beside", bare, tmp_path / "ours")
    (tmp_path / "elsewhere.gin").write_text(fixture["config"])
    assert bring(bare, tmp_path / "found", "--config", str(tmp_path / "elsewhere.gin")) == 0
    fails("there is a run at", bare, tmp_path / "found", "--config", str(tmp_path / "elsewhere.gin"))
    whole = write(fixture, tmp_path / "whole")
    file = whole / "version_0" / "checkpoints" / "last.ckpt"
    assert bring(file, tmp_path / "from_file") == 0
    data = file.read_bytes()
    middle = data.index(fixture["checkpoint"]["state_dict"]["decoder.net.0.weight_v"].numpy().tobytes())
    file.write_bytes(data[:middle] + b"oops" + data[middle + 4 :])
    capsys.readouterr()
    assert bring(file, tmp_path / "spoilt") == 0
    assert "NOT WHOLE: the checksum of last/data/" in capsys.readouterr().out
    file.write_bytes(data[: len(data) // 2])
    fails(f"is damaged or no checkpoint (truncated at {len(data) // 2} bytes)", whole, tmp_path / "ours")
    file.write_text("lunch")
    fails("is damaged or no checkpoint (it is no torch archive)", whole, tmp_path / "ours")
    fails("no run at", tmp_path / "nothing", tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    fails("has no checkpoint (*.ckpt)", tmp_path / "empty", tmp_path / "ours")
    fails("is a checkpoint of rave_tools already", tmp_path / "found" / "checkpoints" / "last.ckpt", tmp_path / "ours")
    fails("is an export", _touched(tmp_path / "model.ts"), tmp_path / "ours")
    fails("is a file", bare, tmp_path / "elsewhere.gin")


def _touched(path):
    path.write_bytes(b"")
    return path


def test_the_newest_checkpoint_is_taken_and_another_can_be_chosen(tmp_path, capsys):
    fixture = load("v2")
    theirs = write(fixture, tmp_path / "theirs", name="best")
    fixture["checkpoint"]["callbacks"]["WarmupCallback"]["training_steps"] = 11
    write(fixture, tmp_path / "theirs", name="epoch_500")
    assert bring(theirs, tmp_path / "newest") == 0
    assert "of 2 checkpoints the newest is taken, epoch_500.ckpt; others: best.ckpt" in capsys.readouterr().out
    assert bring(theirs, tmp_path / "best", "--checkpoint", "best") == 0
    assert open_run(tmp_path / "best").facts["batches"] == 9 and open_run(tmp_path / "newest").facts["batches"] == 11
    assert bring(theirs, tmp_path / "none", "--checkpoint", "bst") == 1
    assert "it has epoch_500.ckpt, best.ckpt" in capsys.readouterr().err


def test_optimisers_that_do_not_match_start_fresh_and_it_is_said(tmp_path, capsys):
    fixture = load("v2")
    fixture["checkpoint"]["optimizer_states"][0]["state"][3]["exp_avg"] = torch.zeros(1, 2, 3, 4)
    assert bring(write(fixture, tmp_path / "theirs"), tmp_path / "ours") == 0
    said = capsys.readouterr().out
    assert "the generator's optimiser starts fresh" in said and "optimiser of the discriminator: goes on" in said
    saved = open_run(tmp_path / "ours").extra["optimizer_states"]
    assert not saved[0]["state"] and saved[1]["state"]


def test_a_phase_that_the_configuration_denies_is_believed(tmp_path, capsys):
    fixture = changed(load("v2"), "PHASE_1_DURATION = 4", "PHASE_1_DURATION = 400")
    assert bring(write(fixture, tmp_path / "theirs"), tmp_path / "ours") == 0
    assert "PHASE_1_DURATION is set to 7" in capsys.readouterr().out
    assert effective(tmp_path / "ours").macro("PHASE_1_DURATION") == 7
    assert open_run(tmp_path / "ours").facts["phase"] == 2


def test_flags_are_our_own(capsys):
    assert main(["import", "--runn", "x"]) == 2
    assert "Did you mean --run?" in capsys.readouterr().err
    assert main(["import", "--run", "x", "--output", "y", "--from", "encodek"]) == 2
    assert "--from" in capsys.readouterr().err
    assert main(["import", "--run", "x"]) == 2
    assert "--output is required" in capsys.readouterr().err


def test_fixtures_stay_small():
    assert len(NAMES) >= 12
    for path in FOLDER.glob("*.xz"):
        assert path.stat().st_size < 300 * 1024
        assert lzma.LZMADecompressor().decompress(path.read_bytes()[:4096]) is not None
