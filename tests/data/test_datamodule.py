"""Batches: infinite, the same whatever loads them, continued where a run stopped, shared between processes."""

import itertools
import multiprocessing
import os
import signal

import lightning.pytorch as lightning
import pytest
import torch

from rave_tools.data import transforms
from rave_tools.data.datamodule import AudioDataModule, BatchPlan
from rave_tools.data.datasets import DataError
from rave_tools.data.preprocess import Settings, preprocess

from .sounds import RATE, chirp, write

SIGNAL = 2048


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number in range(12):
        write(folder / "sounds" / f"{number}.wav", chirp(0.3 + 0.1 * (number % 4), channels=1, seed=number))
    given = {"num_signal": SIGNAL, "sampling_rate": RATE, "validation_share": 10}
    preprocess(Settings((str(folder / "sounds"),), str(folder / "db"), **given), workers=0)
    return str(folder / "db")


def module(database, **options):
    return AudioDataModule(database, **{"n_signal": SIGNAL, "batch": 4, **options})


def batches(data, count):
    found = list(itertools.islice(iter(data.train_dataloader()), count))
    data.teardown()
    return found


def equal(one, two):
    return all(
        torch.equal(a.audio, b.audio) and torch.equal(a.padding, b.padding) and a.metadata == b.metadata
        for a, b in zip(one, two, strict=True)
    )


def test_a_batch_has_three_dimensions_padding_and_metadata(database):
    batch = batches(module(database), 1)[0]
    assert batch.audio.shape == (4, 1, SIGNAL) and batch.audio.dtype == torch.float32
    assert batch.padding.shape == (4, SIGNAL) and batch.padding.dtype == torch.bool
    assert set(batch.metadata[0]) == {"source", "start", "index", "epoch"}


def test_the_stream_continues_where_a_run_stopped(database):
    data = module(database, augmentations=[transforms.RandomGain(), transforms.RandomPitch()])
    whole = batches(data, 30)
    data.start_batch = 23
    assert equal(batches(data, 7), whole[23:])
    assert not equal(batches(module(database, seed=1), 1), whole[:1])


@pytest.mark.slow
def test_workers_change_nothing(database):
    options = {"augmentations": [transforms.RandomMute(), transforms.RandomPhaseMangle()]}
    data = module(database, workers=2, **options)
    assert equal(batches(data, 12), batches(module(database, **options), 12))
    assert data.waited > 0 and data.batches_served == 12


def test_processes_share_the_global_batch_row_by_row(database):
    alone = batches(module(database, batch=6), 5)
    parts = []
    for rank in range(3):
        data = module(database, batch=2)
        data.rank, data.world_size = rank, 3
        parts.append(batches(data, 5))
    for number, batch in enumerate(alone):
        for rank in range(3):
            assert torch.equal(parts[rank][number].audio, batch.audio[rank::3])


def test_every_pass_takes_every_record_once_and_in_a_new_order():
    plan = BatchPlan(7, batch=3, seed=0)
    draws = [draw for counter in range(14) for draw in plan.rows(counter)]
    for epoch in range(6):
        taken = [draw.index for draw in draws if draw.epoch == epoch]
        assert sorted(taken) == list(range(7))
    assert [draw.index for draw in draws[:7]] != [draw.index for draw in draws[7:14]]


def test_a_database_smaller_than_the_batch_feeds_it_with_several_crops(tmp_path):
    write(tmp_path / "sounds" / "a.wav", chirp(0.5, channels=1))
    settings = Settings((str(tmp_path / "sounds"),), str(tmp_path / "db"), num_signal=SIGNAL, sampling_rate=RATE)
    preprocess(settings, workers=0)
    data = module(str(tmp_path / "db"), batch=32)
    batch = batches(data, 1)[0]
    assert batch.audio.shape[0] == 32 and len({item["start"] for item in batch.metadata}) > 16
    assert any("fewer than the batch" in line for line in data.describe())


def test_validation_is_the_same_every_time_without_random_transforms(database):
    data = module(database, augmentations=[transforms.RandomMute(1.0)])
    one, two = list(data.val_dataloader()), list(data.val_dataloader())
    assert equal(one, two) and len(one) == len(data.val_dataloader())
    assert sum(batch.audio.shape[0] for batch in one) == data.validation_records
    assert all(row.abs().max() > 0.1 for batch in one for row in batch.audio)
    seen = {item["source"] for batch in batches(data, 40) for item in batch.metadata}
    assert seen.isdisjoint({item["source"] for batch in one for item in batch.metadata}) and len(seen) == 10
    data.rank, data.world_size = 1, 2
    assert sum(batch.audio.shape[0] for batch in data.val_dataloader()) == data.validation_records // 2


def test_without_validation_it_is_judged_on_training_and_says_so(tmp_path):
    write(tmp_path / "sounds" / "a.wav", chirp(0.05, channels=1))
    settings = Settings((str(tmp_path / "sounds"),), str(tmp_path / "db"), num_signal=SIGNAL, sampling_rate=RATE)
    preprocess(settings, workers=0)
    data = module(str(tmp_path / "db"))
    assert any("judged on sound that it has seen" in line for line in data.describe())
    assert any("shorter than" in line for line in data.describe())
    assert len(list(data.val_dataloader())) == 1


def test_another_rate_is_said(database):
    data = module(database, sampling_rate=RATE * 2)
    assert any("resampled while loading" in line for line in data.describe())
    assert batches(data, 1)[0].audio.shape == (4, 1, SIGNAL)


def test_derivative_and_normalisation_reach_validation_too(database):
    plain = next(iter(module(database).val_dataloader())).audio
    changed = next(iter(module(database, derivative=True, normalize=True).val_dataloader())).audio
    loud = plain / plain.abs().amax(dim=-1, keepdim=True)
    assert torch.allclose(changed[..., 1:], (loud[..., 1:] - loud[..., :-1]) / 2, atol=1e-6)


def test_what_does_not_fit_is_refused(database):
    with pytest.raises(DataError, match="the model has 2 channels and the database 1"):
        module(database, channels=2)
    with pytest.raises(DataError, match="batch is 0"):
        module(database, batch=0)


@pytest.mark.slow
def test_an_error_in_a_worker_is_one_line(tmp_path):
    path = write(tmp_path / "sounds" / "a.wav", chirp(1.0))
    settings = Settings(
        (str(tmp_path / "sounds"),), str(tmp_path / "db"), num_signal=SIGNAL, sampling_rate=RATE, lazy=True
    )
    preprocess(settings, workers=0)
    data = module(str(tmp_path / "db"), workers=1)
    path.unlink()
    with pytest.raises(DataError) as caught:
        batches(data, 1)
    assert "a.wav: No such file" in str(caught.value) and "\n" not in str(caught.value)


class Consumer(lightning.LightningModule):
    """Counts what Lightning hands over."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained, self.validated = [], 0

    def training_step(self, batch, _):
        self.trained.append(batch.audio.clone())
        return (batch.audio.mean() * self.weight).sum()

    def validation_step(self, batch, _):
        self.validated += batch.audio.shape[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_takes_it_as_it_is(database, tmp_path):
    data, consumer = module(database), Consumer()
    trainer = lightning.Trainer(
        max_steps=6,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.fit(consumer, datamodule=data)
    expected = batches(module(database), 6)
    assert all(torch.equal(one, two.audio) for one, two in zip(consumer.trained, expected, strict=True))
    assert consumer.validated == 2 * data.validation_records


def test_a_signal_to_the_whole_group_ends_no_loader(database):
    """Torch turns a loader's death into an error in the middle of an update, and the update's checkpoint is lost."""
    data = module(database, workers=1)
    before = set(multiprocessing.active_children())
    stream = iter(data.train_dataloader())
    next(stream)
    (loader,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(loader.pid, number)
    later = list(itertools.islice(stream, 40))  # more than were prefetched when the signals came
    assert len(later) == 40 and loader.is_alive()
    stream.close()
    data.teardown()
    loader.join(30)
    assert not loader.is_alive()
