"""What a run says: table, estimate, progress, TensorBoard, pictures."""

import re

import pytest
import torch

from rave_tools import config
from rave_tools.runs import RunDirectory
from rave_tools.training import run, summary
from rave_tools.training.estimate import measure, report
from rave_tools.training.pictures import colour, comparison, log_spectrogram
from rave_tools.training.progress import Progress
from rave_tools.training.run import compile_networks, train
from rave_tools.training.schedules import RAVESchedule

from .toys import N_SIGNAL, ToyData, toy_wrapper


@pytest.fixture(scope="module")
def v2_small():
    return config.load(["v2_small"]).build_argument(run.train, "wrapper")


def test_table_of_v2_small_is_the_published_one(v2_small):
    rows = {re.split(r" +\| +", line)[0].strip(): line for line in summary.table(v2_small).splitlines()}
    for title, kind, size in (
        ("PQMF", "CachedPQMF", "16.7K"),
        ("Encoder", "VariationalEncoder", "3.9M"),
        ("Decoder", "GeneratorV2", "3.8M"),
        ("Discriminator", "CombineDiscriminators", "6.8M"),
        ("Audio Distance", "AudioDistanceV1", "0"),
        ("Multiband Audio Distance", "AudioDistanceV1", "0"),
    ):
        assert rows[title].split("|")[1].strip() == kind and rows[title].split("|")[2].strip() == size
    text = summary.table(v2_small)
    assert re.search(r"Total +14\.6M", text) and re.search(r"Size +58\.284 MB", text)
    assert re.search(r"Trainable +14\.6M", text) and re.search(r"Non-trainable +16\.7K", text)
    assert summary.count_parameters([v2_small]) == 14_570_888


@pytest.mark.parametrize(
    "files",
    [["v1"], ["v2"], ["v2_small"], ["v2", "no_adversary"], ["v2_small", "causal"], ["rave_v2_musicnet_no_adversary"]],
)
def test_losses_and_weights_of_the_shipped_models_agree(files):
    wrapper = config.load(files, ["CAPACITY = 8"]).build_argument(run.train, "wrapper")
    wrapper.combiner.declare(wrapper.declared_losses())


def test_receptive_field_and_crop_are_said(v2_small):
    v2_small._receptive_field = (44100, 22050)
    text = summary.receptive_field_report(v2_small, 131072)
    assert "1000.0 ms <-- x --> 500.0 ms" in text
    assert "the multiband judge leaves out 50 % of each window of 131072 samples" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.9, "59 s"), (125, "2 min 5 s"), (3600, "1 h"), (90061, "1 d 1 h")]
)
def test_readable_time(seconds, words):
    assert summary.readable_time(seconds) == words


def test_estimate_measures_both_phases_and_changes_nothing():
    wrapper = toy_wrapper(phase_1=100, every=4)
    before = {name: value.clone() for name, value in wrapper.state_dict().items()}
    found = measure(wrapper, torch.randn(2, 1, N_SIGNAL), max_steps=400)
    assert [cost.phase.number for cost in found.costs] == [1, 2]
    assert [cost.updates for cost in found.costs] == [100, 300]
    first, second = found.costs
    assert first.discriminator_seconds == 0 < second.discriminator_seconds
    assert second.seconds_per_update == pytest.approx(second.generator_seconds + second.discriminator_seconds / 3)
    assert found.seconds == pytest.approx(100 * first.seconds_per_update + 300 * second.seconds_per_update)
    assert all(torch.equal(value, wrapper.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in wrapper.parameters())
    assert wrapper.counters.as_dict()["generator_updates"] == 0
    text = "\n".join(report(found, 2, N_SIGNAL))
    assert "Phase 1" in text and "Phase 2" in text and "Measured just now" in text


def test_estimate_of_a_resumed_run_counts_what_is_left():
    wrapper = toy_wrapper(phase_1=100)
    wrapper.counters.generator_updates = 150
    assert [cost.updates for cost in measure(wrapper, torch.randn(2, 1, N_SIGNAL), max_steps=400).costs] == [250]


def test_progress_says_phase_step_loss_speed_and_time_left():
    lines = []
    progress = Progress(
        schedule=RAVESchedule(1000, 4), max_steps=3000, step=0, report=lines.append, bar=False, seconds=0
    )
    values = {"loss": 1.5, "steps_per_second": 2.0, "phase": 1.0, "skipped_updates": 0.0}
    progress.scalars(100, values, "representation learning")
    assert "phase 1 (representation learning) step 100/3,000 loss 1.5 2.00 steps/s" in lines[0]
    assert "at this phase's speed" in lines[0]
    wrapper = toy_wrapper(phase_1=1000, every=4)
    progress.estimate = measure(wrapper, torch.randn(2, 1, N_SIGNAL), max_steps=3000)
    progress.scalars(100, values, "representation learning")
    ratio = progress.estimate.relative_cost(2, 1)
    assert lines[1].endswith(f"{summary.readable_time(900 / 2 + 2000 / 2 * ratio)} left")


def test_a_tone_is_a_bright_line_at_its_frequency():
    tone = torch.sin(2 * torch.pi * 0.125 * torch.arange(16384))
    levels = log_spectrogram(tone)
    assert int(levels.mean(1).argmax()) == pytest.approx(0.125 * 1024, abs=1)
    assert levels.min() >= 0 and levels.max() <= 1


def test_louder_is_brighter_and_the_estimate_stands_above():
    brightness = colour(torch.linspace(0, 1, 50)).mean(0)
    assert (brightness.diff() > 0).all()
    picture = comparison(torch.zeros(1, 4096), torch.randn(1, 4096))
    assert picture.shape == (3, 516, 768)
    assert picture[:, :256].mean() > 0.4 > picture[:, 260:].mean()


def test_tensorboard_gets_everything(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(
        wrapper=toy_wrapper(),
        data=ToyData(),
        run=RunDirectory(tmp_path).create(),
        config_text="FACT = 1",
        max_steps=12,
        val_every=5,
        log_every=1,
        accelerator="cpu",
        progress=False,
        estimate=False,
        report=lambda line: None,
    )
    events = EventAccumulator(str(tmp_path), {"audio": 0, "images": 0}).Reload()
    tags = events.Tags()
    assert {
        "losses/loss",
        "losses/loss_discriminator",
        "losses/fullband_distance",
        "losses/kl",
        "losses/adversarial",
        "losses/feature_matching",
        "losses/score_real",
        "losses/score_fake",
        "run/phase",
        "run/steps_per_second",
        "run/share_waiting_for_data",
        "run/peak_memory_GiB",
        "run/skipped_updates",
        "optimisation/beta_kl",
        "optimisation/learning_rate",
        "optimisation/learning_rate_discriminator",
        "optimisation/gradient_norm_generator",
        "optimisation/gradient_norm_discriminator",
        "validation/distance",
        "latents/dimensions_for_fidelity_0.95",
    } <= set(tags["scalars"])
    assert [event.value for event in events.Scalars("run/phase")][::11] == [1.0, 2.0]
    assert "reconstruction_then_original/0" in tags["audio"]
    assert "reconstruction_above_original/0" in tags["images"]
    assert any("config" in tag for tag in tags["tensors"])


def test_compiled_networks_keep_their_names_and_their_numbers(tmp_path):
    plain, compiled = toy_wrapper(), toy_wrapper()
    compile_networks(compiled, backend="aot_eager")
    assert list(plain.state_dict()) == list(compiled.state_dict())
    audio = torch.randn(2, 1, N_SIGNAL)
    for updates in (0, 5):
        for wrapper in (plain, compiled):
            wrapper.counters.generator_updates = updates
            torch.manual_seed(0)
            wrapper.combiner(wrapper.generator_losses(audio)).backward()
        for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, msg=name)
