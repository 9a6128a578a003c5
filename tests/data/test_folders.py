"""Straight from folders: one column of one segment, exact, the same whatever loads it; nothing left out in silence."""

import itertools
import json
import os
import pickle
from dataclasses import replace

import lightning.pytorch as lightning
import numpy as np
import pytest
import soundfile
import soxr
import torch

from rave_tools.data.columns import OpenFiles, layout
from rave_tools.data.datamodule import AudioDataModule
from rave_tools.data.datasets import DataError, Draw
from rave_tools.data.folders import FolderDataModule
from rave_tools.data.preprocess import Settings, preprocess
from rave_tools.data.readers import AudioError
from rave_tools.data.scan import scan
from rave_tools.data.segments import Geometry, Segment
from rave_tools.data.store import StoreError
from rave_tools.data.transforms import RandomGain

from .sounds import COMPRESSED, chirp, encode, write

MODEL = 24000
PLAIN = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAVEX", "PCM_24"), ("RF64", "PCM_24"), ("RF64", "PCM_16"),
    ("W64", "PCM_24"),
    ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("W64", "DOUBLE"),
]  # fmt: skip
DECODED = [("WAV", "PCM_U8"), ("AIFF", "PCM_24"), ("FLAC", "PCM_16"), ("CAF", "PCM_24")]


def noise(seconds, channels, rate=48000, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (channels, round(seconds * rate))).astype(np.float32)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Six files of 32 channels, of several rates and containers."""
    folder = tmp_path_factory.mktemp("scenes")
    kinds = [(48000, "RF64"), (44100, "WAV"), (24000, "WAVEX"), (48000, "W64"), (96000, "RF64"), (48000, "WAV")]
    for number, (rate, kind) in enumerate(kinds):
        audio = noise(1.5, 32, rate, number)
        write(folder / "a" / f"scene_{number}.wav", audio, rate=rate, file_format=kind, subtype="PCM_24")
    return folder


def module(folder, **options):
    return FolderDataModule([str(folder)], **{"n_signal": 8192, "batch": 4, "sampling_rate": MODEL, **options})


def batches(data, count):
    found = list(itertools.islice(iter(data.train_dataloader()), count))
    data.teardown()
    return found


def equal(one, two):
    return all(
        torch.equal(a.audio, b.audio) and torch.equal(a.padding, b.padding) and a.metadata == b.metadata
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize(("kind", "subtype"), PLAIN + DECODED)
def test_a_column_has_exactly_the_samples_of_the_file(kind, subtype, tmp_path):
    path = write(tmp_path / "x.wav", noise(0.1, 7), rate=48000, file_format=kind, subtype=subtype)
    whole, _ = soundfile.read(path, dtype="float32")
    place, files = layout(str(path)), OpenFiles()
    assert (place.channels, place.rate, place.frames) == (7, 48000, 4800)
    assert bool(place.kind) == ((kind, subtype) in PLAIN)
    for channel in (0, 3, 6):
        assert np.array_equal(files.read(place, 0, 4800, channel)[0], whole[:, channel])
        assert np.array_equal(files.read(place, 4321, 479, channel)[0], whole[4321:, channel])
    assert np.array_equal(files.read(place, 100, 50, None), whole[100:150].T)
    files.close()


@pytest.mark.parametrize("name", ["vorbis.ogg", "opus.opus", "layer3.mp3"])
def test_a_compressed_file_is_read_to_its_very_end(name, tmp_path):
    encoder, rate = COMPRESSED[name]
    place = layout(str(encode(tmp_path / name, chirp(2.1, rate=rate), encoder=encoder, rate=rate)))
    assert place.frames == place.announced and abs(place.seconds - 2.1) < 0.1 and place.channels == 2
    assert OpenFiles().read(place, place.frames - 5000, 5000, 1).shape == (1, 5000)


def test_a_flac_that_lost_its_end_is_truncated(tmp_path):
    path = write(tmp_path / "x.flac", noise(3, 2, 44100), rate=44100, file_format="FLAC")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    place = layout(str(path))
    assert place.announced == 3 * 44100 and 0.8 < place.seconds < 1.05
    assert OpenFiles().read(place, place.frames - 5000, 5000, 1).shape == (1, 5000)


def test_offsets_beyond_four_gigabytes(tmp_path):
    """A sparse RF64 file: its header says 5 GB, only its last samples are on the disk."""
    path = write(tmp_path / "x.wav", noise(0.01, 32), rate=48000, file_format="RF64", subtype="PCM_24")
    small = layout(str(path))
    content = bytearray(path.read_bytes()[: small.offset + small.frames * 96])
    frames = 5_000_000_000 // 96
    at = content.index(b"ds64") + 16
    content[at : at + 8] = (frames * 96).to_bytes(8, "little")
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff" * 4
    with open(path, "wb") as file:
        file.write(content[: small.offset])
        file.truncate(small.offset + frames * 96)
        file.seek(small.offset + (frames - small.frames) * 96)
        file.write(content[small.offset :])
    place = layout(str(path))
    assert place.frames == frames == soundfile.info(path).frames
    wanted = noise(0.01, 32)[17]
    assert np.abs(OpenFiles().read(place, frames - small.frames, small.frames, 17)[0] - wanted).max() < 2**-22


@pytest.mark.parametrize("rate", [44100, 48000, 96000, 16000, MODEL])
def test_a_segment_is_what_one_cuts_out_of_the_whole_file_resampled(rate, tmp_path):
    audio = noise(2.0, 3, rate)
    path = write(tmp_path / "x.wav", audio, rate=rate, subtype="FLOAT")
    whole = soxr.resample(audio.T, rate, MODEL, quality="HQ").T if rate != MODEL else audio
    geometry, place, files = Geometry(8000, MODEL), layout(str(path)), OpenFiles()
    generator = np.random.default_rng(1)
    for _ in range(20):
        start = geometry.draw(place, generator)
        begin = start * MODEL // rate
        assert begin * rate == start * MODEL
        got, valid = geometry.read(Segment(place, start, 1), files)
        assert valid == 8000 and got.shape == (1, 8000)
        assert np.abs(got[0] - whole[1, begin : begin + 8000]).max() < 10 ** (-110 / 20)


def test_rates_that_share_nothing_do_not_drift(tmp_path):
    """A tone from 44,101 Hz stays the tone that it is, to its phase, wherever one begins."""
    rate, tone = 44101, 1234.5
    time = np.arange(3 * rate) / rate
    path = write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * tone * time)[None], rate=rate, subtype="FLOAT")
    geometry, place = Geometry(MODEL, MODEL), layout(str(path))
    assert geometry.step(rate) == 1
    got, _ = geometry.read(Segment(place, 31001, 0), OpenFiles())
    wanted = 0.5 * np.sin(2 * np.pi * tone * (31001 / rate + np.arange(MODEL) / MODEL))
    assert np.abs(got[0] - wanted).max() < 10 ** (-90 / 20)


def test_one_channel_is_drawn_and_all_come_in_order(sounds):
    data = module(sounds, n_signal=4096)
    seen = set()
    for position in range(60):
        audio, valid, metadata = data._train[Draw(0, position)]
        assert audio.shape == (1, 4096) and valid == 4096
        seen.add(metadata["channel"])
    assert len(seen) > 20 and max(seen) <= 31
    data = module(sounds, n_signal=4096, channels=32)
    segment, _ = data._train.draw(5)
    audio, _, metadata = data._train[Draw(0, 5)]
    assert audio.shape == (32, 4096) and metadata["channel"] == -1
    for channel in (0, 31):
        alone, _ = data._train.geometry.read(replace(segment, channel=channel), OpenFiles())
        assert np.abs(alone[0] - audio[channel].numpy()).max() < 1e-6
    assert next(iter(data.val_dataloader())).audio.shape == (4, 32, 4096)


def test_the_stream_continues_where_a_run_stopped(sounds):
    data = module(sounds, augmentations=[RandomGain()])
    whole = batches(data, 12)
    data.start_batch = 9
    assert equal(batches(data, 3), whole[9:])
    assert not equal(batches(module(sounds, seed=1), 1), whole[:1])


def test_processes_share_the_global_batch_row_by_row(sounds):
    alone = batches(module(sounds, batch=6), 3)
    parts = []
    for rank in range(3):
        data = module(sounds, batch=2)
        data.rank, data.world_size = rank, 3
        parts.append(batches(data, 3))
    for number, batch in enumerate(alone):
        for rank in range(3):
            assert torch.equal(batch.audio[rank::3], parts[rank][number].audio)


@pytest.mark.slow
def test_workers_change_nothing(sounds):
    assert equal(batches(module(sounds, workers=2), 6), batches(module(sounds), 6))


def test_validation_is_set_aside_by_file_and_stays(sounds, tmp_path):
    manifest = tmp_path / "validation_segments.json"
    first = module(sounds, manifest=manifest, validation_share=30)
    assert not manifest.exists()
    first.prepare_data()
    held = {file.name for file in first.held.files}
    assert len(held) == 2 and not held & {file.name for file in first._train.files}
    assert all(segment.layout.path.endswith(tuple(held)) for segment in first._validation.places)
    assert len({segment.channel for segment in first._validation.places}) > 5
    again = module(sounds, manifest=manifest, validation_share=30, seed=5, batch=3)
    assert again._validation.places == first._validation.places
    assert "taken up again" in "\n".join(again.describe())
    rows = [torch.cat([batch.audio for batch in data.val_dataloader()]) for data in (first, again)]
    assert torch.equal(*rows)


def test_saved_segments_outlive_new_files_and_name_those_that_are_gone(tmp_path):
    folder, manifest = tmp_path / "in", tmp_path / "run" / "validation_segments.json"
    for number in range(4):
        write(folder / f"{number}.wav", noise(1.2, 2, MODEL, number), rate=MODEL)
    first = module(folder, manifest=manifest)
    first.prepare_data()
    write(folder / "0_new.wav", noise(1.2, 2, MODEL, 9), rate=MODEL)
    second = module(folder, manifest=manifest)
    assert second._validation.places == first._validation.places
    assert len(second._train.files) == len(first._train.files) + 1
    with pytest.raises(DataError, match="n_signal 8192 then, 4096 now"):
        module(folder, manifest=manifest, n_signal=4096)
    held = folder / first.held.files[0].name
    write(held, noise(1.3, 2, MODEL), rate=MODEL)
    with pytest.raises(DataError, match=f"{held.name}: has changed"):
        module(folder, manifest=manifest)
    held.unlink()
    with pytest.raises(DataError, match=f"{held.name}: is gone"):
        module(folder, manifest=manifest)
    manifest.write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError, match=r"validation_segments.json: cannot be read"):
        module(folder, manifest=manifest)


def test_of_a_single_file_the_end_is_held_and_never_trained_on(tmp_path):
    path = write(tmp_path / "x.wav", noise(4, 2, 48000), rate=48000)
    data = module(tmp_path, validation_share=25)
    begin = data.held.files[0].begin
    assert 0.7 < begin / (4 * 48000) <= 0.75
    assert all(segment.start >= begin for segment in data._validation.places)
    needed = data._train.geometry.needed(48000)
    assert max(data._train.draw(position)[0].start for position in range(300)) + needed <= begin
    assert "x.wav, the only file" in "\n".join(data.describe())
    path.unlink()
    write(path, noise(1, 2, 48000), rate=48000)
    with pytest.raises(DataError, match=r"x.wav: is the only usable file"):
        module(tmp_path, n_signal=16000)


def test_what_is_left_out_is_counted_and_named(tmp_path):
    good = write(tmp_path / "good.wav", noise(1.5, 4), rate=48000, file_format="RF64", subtype="PCM_24")
    write(tmp_path / "good_too.wav", noise(1.5, 4), rate=48000)
    write(tmp_path / "short.wav", noise(0.3, 4), rate=48000)
    (tmp_path / "cut.wav").write_bytes(good.read_bytes()[: good.stat().st_size * 3 // 4])
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing of the kind")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    text = "\n".join(module(tmp_path).describe())
    assert "1 file(s) left out: shorter than 1 s" in text and "short.wav: 0.300 s" in text
    assert "1 file(s) left out: truncated" in text
    assert "cut.wav: its header announces 1.50 s and 1.12 s are there" in text
    assert "2 file(s) left out: unreadable" in text and "broken.wav" in text and "empty.wav" in text
    assert "1 other files passed over, by extension: 1 txt" in text
    used = scan([str(tmp_path)], channels=1, truncated="use", min_seconds=0.2)
    assert [file.name for file in used.files] == ["cut.wav", "good.wav", "good_too.wav", "short.wav"]
    assert 0 < 1.125 * 48000 - used.files[0].layout.frames < 30 and "cut.wav" in used.cut[0]


def test_a_header_that_was_never_finished_is_named(tmp_path):
    path = write(tmp_path / "x.wav", noise(1.5, 2), rate=48000)
    content = bytearray(path.read_bytes())
    content[40:44] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="never finished"):
        layout(str(path))


def test_files_of_another_channel_count_are_refused_or_skipped_by_policy(sounds, tmp_path):
    os.symlink(sounds / "a", tmp_path / "a")
    write(tmp_path / "stereo.wav", noise(1.5, 2), rate=48000)
    with pytest.raises(DataError, match=r"stereo.wav: 2 channels. Train with --channels 1 .* --other_channels skip"):
        module(tmp_path, channels=32)
    data = module(tmp_path, channels=32, other_channels="skip")
    assert "1 file(s) left out: not 32 channels" in "\n".join(data.describe())
    assert {segment.layout.channels for segment in data._validation.places} == {32}
    assert {file.layout.channels for file in module(tmp_path)._train.files} == {2, 32}


def test_mistakes_get_one_clear_error(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere: no such file or folder \(given as --audio_path\)"):
        module(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no sound file here or below \(1 txt\)"):
        module(tmp_path)
    write(tmp_path / "short.wav", noise(0.3, 1), rate=48000)
    with pytest.raises(DataError, match="none of 1 sound file"):
        module(tmp_path)
    with pytest.raises(DataError, match="--pick_by is 'colour'"):
        for name in "ab":
            write(tmp_path / f"{name}.wav", noise(2, 1), rate=48000)
        module(tmp_path, pick_by="colour")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_that_vanishes_or_shrinks_in_training_is_named(workers, tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.wav", noise(1.5, 2, MODEL), rate=MODEL)
    data = module(tmp_path, workers=workers)
    gone = data._train.files[0].layout.path
    if workers:
        os.remove(gone)
    else:
        os.truncate(gone, 5000)
    with pytest.raises((DataError, AudioError)) as caught:
        batches(data, 20)
    data.teardown()
    text = str(caught.value)
    assert text.startswith(gone) and "cannot be read any more" in text and len(text.splitlines()) == 1


@pytest.mark.parametrize("channel", [None, 0, 1])
def test_a_file_that_is_cut_off_while_it_is_read_is_an_error_and_not_the_end_of_the_process(
    channel, tmp_path, monkeypatch
):
    """Its length is looked at first; here it shrinks just after that."""
    path = write(tmp_path / "x.wav", noise(1.5, 2, MODEL), rate=MODEL)
    place, files, look = layout(str(path)), OpenFiles(), os.fstat
    assert files.read(place, 20000, 2000, channel).shape[1] == 2000

    def shrinks(number):
        found = look(number)
        os.truncate(path, 5000)
        return found

    monkeypatch.setattr("rave_tools.data.columns.os.fstat", shrinks)
    with pytest.raises(AudioError, match=r"x.wav: was there .* cannot be read any more \(it has become shorter\)"):
        files.read(place, 20000, 2000, channel)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("block", [1, 50, 7 * 8 * 1000])
def test_a_column_is_the_same_whatever_blocks_it_is_read_in(block, subtype, tmp_path, monkeypatch):
    path = write(tmp_path / "x.wav", noise(0.1, 7), rate=48000, subtype=subtype)
    whole, _ = soundfile.read(path, dtype="float32")
    monkeypatch.setattr("rave_tools.data.columns.COLUMN_BLOCK", block)
    files, place = OpenFiles(), layout(str(path))
    for start, frames in ((0, 4800), (4321, 479), (7, 1), (0, 0), (13, 2000)):
        for channel in (0, 6):
            assert np.array_equal(files.read(place, start, frames, channel)[0], whole[start : start + frames, channel])


def test_values_that_are_no_numbers_are_named(tmp_path):
    audio = noise(1.5, 2, MODEL)
    audio[1, 20000] = np.nan
    path = write(tmp_path / "x.wav", audio, rate=MODEL, subtype="FLOAT")
    files, place = OpenFiles(), layout(str(path))
    assert np.isfinite(files.read(place, 19000, 2000, 0)).all()
    with pytest.raises(AudioError, match=r"x.wav: holds values that are no numbers between 0.79 s and 0.88 s"):
        files.read(place, 19000, 2000, 1)


def test_short_files_are_followed_by_silence_and_said(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.wav", noise(1.1, 1, 48000), rate=48000)
    data = module(tmp_path, n_signal=48000)
    audio, valid, _ = data._train[Draw(0, 0)]
    assert valid == 26400 and audio.shape == (1, 48000)
    assert audio[0, 26390:26400].abs().max() > 0 and not audio[0, 26400:].any()
    assert "1 of 1 files are shorter than 48,000 samples" in "\n".join(data.describe())


def test_by_duration_every_second_is_as_likely(tmp_path):
    for name, seconds in (("long", 8), ("short", 2), ("other", 2)):
        write(tmp_path / f"{name}.wav", noise(seconds, 1, MODEL), rate=MODEL)
    shares = {}
    for pick_by in ("file", "duration"):
        data = module(tmp_path, pick_by=pick_by)
        files = {file.name: file.layout.seconds for file in data._train.files}
        drawn = [data._train.draw(position)[0].layout.path for position in range(600)]
        shares[pick_by] = {name: sum(path.endswith(name) for path in drawn) / 600 for name in files}
        weights = {name: seconds if pick_by == "duration" else 1 for name, seconds in files.items()}
        for name in files:
            assert abs(shares[pick_by][name] - weights[name] / sum(weights.values())) < 0.08


def test_the_least_recently_used_file_is_closed(tmp_path):
    places = [
        layout(str(write(tmp_path / f"{n}.wav", noise(0.1, 2, seed=n), rate=48000))) for n in range(5)
    ]
    files = OpenFiles(2)
    for place in (*places, places[0]):
        files.read(place, 0, 10, 0)
    assert list(files._open) == [places[4].path, places[0].path]
    travelled = pickle.loads(pickle.dumps(files))
    assert not travelled._open and np.array_equal(travelled.read(places[1], 5, 9, 1), files.read(places[1], 5, 9, 1))
    files.close()
    travelled.close()


class Nothing(lightning.LightningModule):
    """Looks at batches."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, _):
        assert batch.audio.shape == (4, 1, 8192)

    def validation_step(self, batch, _):
        assert batch.audio.shape[1:] == (1, 8192)

    def configure_optimizers(self):
        return []


def test_lightning_trains_from_it_and_keeps_the_segments(sounds, tmp_path):
    manifest = tmp_path / "validation_segments.json"
    trainer = lightning.Trainer(
        max_epochs=1, limit_train_batches=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    data = module(sounds, manifest=manifest)
    trainer.fit(Nothing(), datamodule=data)
    assert data.batches_served == 3
    assert len(json.loads(manifest.read_text())["segments"]) == len(data._validation)


@pytest.mark.parametrize("channels", [1, 32])
def test_a_database_of_32_channels_feeds_one_channel_or_all(channels, tmp_path):
    for number in range(3):
        write(tmp_path / "in" / f"{number}.wav", chirp(0.5, channels=32, seed=number, noise=0), rate=22050)
    preprocess(
        Settings((str(tmp_path / "in"),), str(tmp_path / "db"), num_signal=2048, sampling_rate=22050, channels=32),
        workers=0,
    )
    options = {"n_signal": 2048, "batch": 4, "channels": channels, "phase_mangle": 0.0}
    data = AudioDataModule(str(tmp_path / "db"), downmix="random" if channels == 1 else None, **options)
    first = batches(data, 6)
    assert first[0].audio.shape == (4, channels, 2048)
    data.start_batch = 4
    assert equal(batches(data, 2), first[4:])
    if channels == 1:  # the tone of a channel tells which one it is
        tones = {int(np.abs(np.fft.rfft(row[0].numpy())).argmax()) for batch in first for row in batch.audio}
        assert len(tones) > 8
