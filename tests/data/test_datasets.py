"""Databases, our own and acids-rave's, as crops that only the seed decides."""

import lmdb
import numpy as np
import pytest
import yaml
from udls.generated import AudioExample

from rave_tools.data.datasets import AudioDataset, DataError, Draw, FixedSegments, LazyAudioDataset, open_dataset
from rave_tools.data.preprocess import Settings, preprocess
from rave_tools.data.transforms import RandomPitch, rave_defaults

from .sounds import RATE, chirp, encode, write

SIGNAL = 4096


def ramp(samples, start=0):
    """Audio whose value says its place: sample n is n / 32768."""
    return ((np.arange(samples) + start) / 32768).astype(np.float32)[None]


def database(folder, *, lazy=False, **changes):
    given = {"num_signal": SIGNAL, "sampling_rate": RATE, "validation_share": 0, "lazy": lazy, **changes}
    preprocess(Settings((str(folder / "sounds"),), str(folder / "db"), **given), workers=0)
    return str(folder / "db")


def rave_database(folder, records, channels):
    """As acids-rave 2.3.1 writes it: shape holds bytes per channel, metadata.yaml four fields, and there is no book."""
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for index, pcm in enumerate(records):
            data = pcm.tobytes()
            buffer = AudioExample.AudioBuffer(
                shape=(channels, len(data) // channels),
                sampling_rate=RATE,
                data=data,
                precision=AudioExample.Precision.INT16,
            )
            transaction.put(b"%08d" % index, AudioExample(buffers={"waveform": buffer}).SerializeToString())
    facts = {"lazy": False, "channels": channels, "n_seconds": 1.0, "sr": RATE}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(facts))
    return str(folder)


@pytest.mark.parametrize("lazy", [False, True])
def test_an_item_is_a_crop_of_its_file(tmp_path, lazy):
    audio = ramp(20000)
    write(tmp_path / "sounds" / "a.wav", audio)
    dataset = open_dataset(database(tmp_path, lazy=lazy), n_signal=SIGNAL)
    assert isinstance(dataset, LazyAudioDataset if lazy else AudioDataset)
    assert len(dataset) == 3
    starts = set()
    for epoch in range(30):
        for index in range(3):
            crop, valid, metadata = dataset[Draw(epoch, index)]
            start = round(metadata["start"] * RATE)
            assert crop.shape == (1, SIGNAL) and valid == SIGNAL
            assert np.array_equal(crop.numpy(), audio[:, start : start + SIGNAL])
            starts.add(start)
    assert len(starts) > 25 and min(starts) < 1000 and max(starts) > 14000


def test_the_tail_of_a_file_is_heard_with_the_sound_before_it(tmp_path):
    write(tmp_path / "sounds" / "a.wav", ramp(2 * SIGNAL + 100))
    dataset = AudioDataset(database(tmp_path), n_signal=SIGNAL)
    assert len(dataset) == 2
    for epoch in range(20):
        crop, valid, metadata = dataset[epoch, 1]
        assert valid == SIGNAL and np.array_equal(np.diff(crop.numpy()[0] * 32768), np.ones(SIGNAL - 1))
        assert metadata["start"] * RATE + SIGNAL > 2 * SIGNAL


def test_a_crop_longer_than_a_record_joins_records(tmp_path):
    write(tmp_path / "sounds" / "a.wav", ramp(30000))
    dataset = AudioDataset(database(tmp_path), n_signal=5 * SIGNAL)
    for index in range(len(dataset)):
        crop, valid, _ = dataset[3, index]
        assert valid == 5 * SIGNAL and np.array_equal(np.diff(crop.numpy()[0] * 32768), np.ones(5 * SIGNAL - 1))


@pytest.mark.parametrize("lazy", [False, True])
def test_a_short_file_is_padded_and_its_length_is_told(tmp_path, lazy):
    write(tmp_path / "sounds" / "a.wav", 0.5 + 0 * ramp(1000))
    crop, valid, _ = open_dataset(database(tmp_path, lazy=lazy), n_signal=SIGNAL)[0]
    assert valid == 1000 and crop.shape == (1, SIGNAL)
    assert (crop[:, :1000] == 0.5).all() and not crop[:, 1000:].any()


def test_draws_differ_between_epochs_items_and_seeds_and_nothing_else(tmp_path):
    write(tmp_path / "sounds" / "a.wav", chirp(2.0, channels=1))
    path = database(tmp_path)
    transform = rave_defaults().at(RATE)
    one, two = (AudioDataset(path, n_signal=SIGNAL, transform=transform, seed=5) for _ in range(2))
    for draw in [(0, 0), (7, 2), (0, 1)]:
        assert np.array_equal(one[draw][0], two[draw][0])
    two[1, 1]
    assert np.array_equal(one[3, 3][0], two[3, 3][0]), "what was drawn before plays no role"
    assert not np.array_equal(one[0, 0][0], one[1, 0][0])
    assert not np.array_equal(one[0, 0][0], AudioDataset(path, n_signal=SIGNAL, transform=transform, seed=6)[0, 0][0])


@pytest.mark.parametrize("channels", [1, 2])
def test_databases_of_acids_rave_are_read(tmp_path, channels):
    pcm = np.random.default_rng(0).integers(-9000, 9000, (60, channels, 2 * SIGNAL), dtype=np.int16)
    path = rave_database(tmp_path / "db", pcm, channels)
    train, held = (open_dataset(path, n_signal=SIGNAL, split=split) for split in ("train", "validation"))
    assert len(train) == 59 and len(held) == 1
    crop, valid, metadata = train[4, 17]
    start = round(metadata["start"] * RATE)
    assert valid == SIGNAL
    assert np.array_equal(crop.numpy(), pcm[17][:, start : start + SIGNAL] / np.float32(32768))
    assert np.array_equal(held[0, 0][0].numpy().shape, (channels, SIGNAL))


def test_lazy_databases_of_acids_rave_are_read(tmp_path):
    paths = [write(tmp_path / f"{number}.wav", ramp(9000)) for number in range(2)]
    (tmp_path / "db").mkdir()
    with lmdb.open(str(tmp_path / "db")) as environment, environment.begin(write=True) as transaction:
        for index, path in enumerate(paths):
            example = AudioExample(metadata={"path": str(path), "length": str(9000 / RATE), "channels": "1"})
            transaction.put(b"%08d" % index, example.SerializeToString())
    (tmp_path / "db" / "metadata.yaml").write_text(
        yaml.safe_dump({"lazy": True, "channels": 1, "n_seconds": 0.8, "sr": RATE})
    )
    dataset = open_dataset(str(tmp_path / "db"), n_signal=SIGNAL)
    crop, _, metadata = dataset[0, 0]
    start = round(metadata["start"] * RATE)
    assert np.array_equal(crop.numpy(), ramp(9000)[:, start : start + SIGNAL])


def test_acids_rave_reads_ours(tmp_path):
    """What its AudioDataset and random crop do with a record, step by step."""
    write(tmp_path / "sounds" / "a.wav", chirp(1.0, channels=2))
    write(tmp_path / "sounds" / "short.wav", chirp(0.05, channels=2))
    path = database(tmp_path, channels=2)
    channels = yaml.safe_load((tmp_path / "db" / "metadata.yaml").read_text())["channels"]
    with lmdb.open(path, lock=False) as environment, environment.begin() as transaction:
        keys = list(transaction.cursor().iternext(values=False))
        examples = [AudioExample.FromString(transaction.get(key)) for key in keys]
    assert len(examples) == 4
    for example in examples:
        buffer = example.buffers["waveform"]
        assert buffer.precision == AudioExample.Precision.INT16
        audio = np.frombuffer(buffer.data, dtype=np.int16).astype(np.float32) / (2**15 - 1)
        audio = audio.reshape(channels, -1)
        assert audio.shape == tuple(buffer.shape) and audio.shape[-1] - SIGNAL >= 0


def test_the_split_keeps_files_apart_and_the_segments_are_fixed(tmp_path):
    for number in range(10):
        write(tmp_path / "sounds" / f"{number}.wav", chirp(1.0, channels=1, seed=number))
    path = database(tmp_path, validation_share=20)
    train, held = (open_dataset(path, n_signal=SIGNAL, split=split) for split in ("train", "validation"))
    assert set(train.spans.paths).isdisjoint(held.spans.paths) and len(held.spans.paths) == 2
    assert len(open_dataset(path, n_signal=SIGNAL, split="all").spans.paths) == 10
    segments = FixedSegments(held, limit=100)
    assert len(segments) == 10, "a second holds five segments of 4096 and a bit"
    again = FixedSegments(held, limit=100)
    assert all(np.array_equal(segments[index][0], again[index][0]) for index in range(10))
    few = FixedSegments(held, limit=4)
    assert len(few) == 4 and np.array_equal(few[0][0], segments[0][0]) and np.array_equal(few[3][0], segments[9][0])


@pytest.mark.parametrize("lazy", [False, True])
def test_another_rate_is_resampled_while_loading(tmp_path, lazy):
    time = np.arange(3 * RATE) / RATE
    write(tmp_path / "sounds" / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * time)[None].astype(np.float32))
    dataset = open_dataset(database(tmp_path, lazy=lazy), n_signal=8192, sampling_rate=16000)
    crop, valid, _ = dataset[0, 1]
    assert crop.shape == (1, 8192) and valid == 8192
    spectrum = np.abs(np.fft.rfft(crop[0].numpy() * np.hanning(8192)))
    assert np.argmax(spectrum) * 16000 / 8192 == pytest.approx(1000, abs=2)


def test_random_pitch_reads_more_and_returns_what_was_asked_for(tmp_path):
    write(tmp_path / "sounds" / "a.wav", chirp(3.0, channels=1))
    dataset = AudioDataset(database(tmp_path), n_signal=SIGNAL, stretch=RandomPitch((1.5, 1.5), prob=1))
    for index in range(len(dataset)):
        crop, valid, _ = dataset[0, index]
        assert crop.shape == (1, SIGNAL) and valid >= SIGNAL - 1


def test_channels_that_do_not_fit_name_both_numbers(tmp_path):
    write(tmp_path / "sounds" / "a.wav", chirp(1.0, channels=2))
    path = database(tmp_path, channels=2)
    with pytest.raises(DataError, match="the model has 3 channels and the database 2"):
        AudioDataset(path, n_signal=SIGNAL, channels=3)
    with pytest.raises(DataError, match="the model has 1 channels and the database 2"):
        AudioDataset(path, n_signal=SIGNAL, channels=1)
    mono = AudioDataset(path, n_signal=SIGNAL, channels=1, downmix="mean")[0, 0][0]
    stereo = AudioDataset(path, n_signal=SIGNAL)[0, 0][0]
    assert np.allclose(mono, stereo.mean(dim=0, keepdim=True), atol=1e-6)


def test_lazy_reads_compressed_files_at_the_right_place(tmp_path):
    audio = chirp(4.0, rate=44100, noise=0)
    (tmp_path / "sounds").mkdir()
    encode(tmp_path / "sounds" / "a.ogg", audio, encoder="soundfile", rate=44100)
    dataset = open_dataset(database(tmp_path, lazy=True, sampling_rate=44100), n_signal=SIGNAL)
    for index in range(len(dataset)):
        crop, _, metadata = dataset[1, index]
        start = round(metadata["start"] * 44100)
        expected = audio[:, start : start + SIGNAL].mean(axis=0)
        assert np.mean((crop[0].numpy() - expected) ** 2) < 0.05 * np.mean(expected**2)


def test_a_vanished_file_is_named(tmp_path):
    path = write(tmp_path / "sounds" / "a.wav", chirp(1.0))
    dataset = open_dataset(database(tmp_path, lazy=True), n_signal=SIGNAL)
    path.unlink()
    with pytest.raises(Exception, match="a.wav: No such file"):
        dataset[0]
