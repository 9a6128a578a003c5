"""Files become records: nothing lost, everything said, the same in every run, and resumable."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import soundfile
import yaml

from rave_tools.data import recording
from rave_tools.data.decoding import fit_channels, to_int16
from rave_tools.data.preprocess import PreprocessError, Settings, preprocess, survey
from rave_tools.data.sources import JOURNAL_FILE, Source, divide, read_book, search
from rave_tools.data.store import ExampleStore, StoreError, read_facts

from .sounds import RATE, chirp, encode, write

SIGNAL = 4096
CHUNK = 2 * SIGNAL


def settings(folder, **changes):
    given = {"num_signal": SIGNAL, "sampling_rate": RATE, **changes}
    return Settings((str(folder / "sounds"),), str(folder / "db"), **given)


def stored(database, channels=1):
    """All records as int16 (records, C, T) with their metadata."""
    store = ExampleStore(database)
    rows = []
    for index in range(len(store)):
        pcm = np.round(store.read(index, 0, store.samples(index)) * 32768).astype(np.int16)
        rows.append((pcm, store.metadata(index)))
    store.close()
    return rows


def sound_of(rows, path):
    """A file's sound put together again from its records, padding left out."""
    parts = [pcm[:, : int(metadata["valid"])] for pcm, metadata in rows if metadata["path"] == str(path)]
    return np.concatenate(parts, axis=1)


@pytest.fixture
def folder(tmp_path):
    sounds = tmp_path / "sounds"
    write(sounds / "b" / "long.wav", chirp(1.7, channels=1, seed=1))
    write(sounds / "a.WAV", chirp(0.9, channels=1, seed=2))
    write(sounds / "short.flac", chirp(0.05, channels=1, seed=3), file_format="FLAC")
    write(sounds / "exact.wav", chirp(2 * CHUNK / RATE, channels=1, seed=4))
    return tmp_path


def test_nothing_is_lost(folder):
    summary = preprocess(settings(folder), workers=0)
    rows = stored(folder / "db")
    assert [os.path.basename(source.path) for source in summary.sources] == [
        "a.WAV",
        "long.wav",
        "exact.wav",
        "short.flac",
    ]
    for source in summary.sources:
        original = soundfile.read(source.path, dtype="int16", always_2d=True)[0].T
        assert np.array_equal(sound_of(rows, source.path), original), "16-bit files pass to the bit"
        assert source.samples == original.shape[1] and source.records == -(-original.shape[1] // CHUNK)
    metadata = yaml.safe_load((folder / "db" / "metadata.yaml").read_text())
    assert metadata["n_seconds"] == pytest.approx(summary.found_seconds) == pytest.approx(summary.stored_seconds)
    assert (metadata["channels"], metadata["lazy"], metadata["sr"]) == (1, False, RATE)
    assert all(SIGNAL <= pcm.shape[1] <= CHUNK for pcm, _ in rows), (
        "RAVE's random crop of num_signal finds room in every record"
    )
    assert all(not pcm[:, int(metadata["valid"]) :].any() for pcm, metadata in rows)
    assert not (folder / "db" / JOURNAL_FILE).exists()


def test_every_run_and_any_number_of_workers_makes_the_same(folder):
    for number in range(6):
        write(folder / "sounds" / f"more{number}.wav", chirp(0.3 + 0.2 * number, seed=number))
    results = []
    for name, workers in (("one", 0), ("two", 3)):
        preprocess(
            Settings(
                (str(folder / "sounds"),), str(folder / name), num_signal=SIGNAL, sampling_rate=RATE, downmix="random"
            ),
            workers=workers,
        )
        results.append((stored(folder / name), (folder / name / "sources.jsonl").read_text()))
    assert results[0][1] == results[1][1]
    assert [metadata for _, metadata in results[0][0]] == [metadata for _, metadata in results[1][0]]
    assert all(np.array_equal(one, two) for (one, _), (two, _) in zip(results[0][0], results[1][0]))


def test_bad_files_are_listed_with_their_reasons(folder):
    sounds = folder / "sounds"
    (sounds / "empty.wav").write_bytes(b"")
    (sounds / "fake.wav").write_text("<html>not found</html>" * 100)
    write(sounds / "silent.wav", np.zeros((1, 30000), np.float32))
    write(sounds / "hollow.wav", np.zeros((1, 0), np.float32))
    (sounds / "notes.txt").write_text("not a sound")
    summary = preprocess(settings(folder), workers=2)
    reasons = {os.path.basename(source.path): source.skipped for source in summary.skipped}
    assert set(reasons) == {"empty.wav", "fake.wav", "silent.wav", "hollow.wav"}
    assert (
        "0 bytes" in reasons["empty.wav"] and "not audio" in reasons["fake.wav"] and "silent" in reasons["silent.wav"]
    )
    assert "no samples" in reasons["hollow.wav"]
    assert summary.passed_over == {"txt": 1}
    assert len(summary.used) == 4


def test_strict_refuses_and_keeps_what_was_done(folder):
    (folder / "sounds" / "empty.wav").write_bytes(b"")
    with pytest.raises(PreprocessError, match=r"--strict: 1 of 5.*\n.*empty.wav: is empty"):
        preprocess(settings(folder), workers=0, strict=True)
    with pytest.raises(StoreError, match="unfinished"):
        read_facts(folder / "db")
    decoded = []
    preprocess(settings(folder), workers=0, report=decoded.append)
    assert decoded == [], "the second run had nothing left to decode"


def test_silence_at_the_beginning_of_a_sound_is_kept(folder):
    audio = np.concatenate([np.zeros((1, 2 * CHUNK + 100), np.float32), chirp(0.2, channels=1)], axis=1)
    path = write(folder / "sounds" / "late.wav", audio)
    preprocess(settings(folder), workers=0)
    assert np.abs(sound_of(stored(folder / "db"), path) / 32768 - audio).max() <= 2**-15


def test_clipping_and_what_is_no_number_are_noted(folder):
    write(folder / "sounds" / "loud.wav", 4 * chirp(0.2, channels=1), subtype="FLOAT")
    broken = chirp(0.2, channels=1)
    broken[0, 100:200] = np.nan
    write(folder / "sounds" / "nan.wav", broken, subtype="FLOAT")
    summary = preprocess(settings(folder), workers=0)
    notes = {os.path.basename(source.path): source.notes for source in summary.sources}
    assert "clipped" in notes["loud.wav"][0] and "not numbers" in notes["nan.wav"][0]
    loud = [pcm for pcm, metadata in stored(folder / "db") if metadata["path"].endswith("loud.wav")][0]
    assert loud.max() == 32767 and loud.min() == -32768, "clipped, not wrapped around"


def test_channels_are_decoded_once_and_fitted(tmp_path):
    audio = chirp(0.5, channels=32)
    path = write(tmp_path / "sounds" / "many.wav", audio)
    preprocess(settings(tmp_path, channels=32), workers=0)
    rows = stored(tmp_path / "db", 32)
    assert np.abs(sound_of(rows, path) / 32768 - audio).max() <= 2**-15
    stereo = chirp(1.0, channels=2)
    for downmix, expected in (("mean", stereo.mean(axis=0)), ("first", stereo[0])):
        place = tmp_path / downmix
        path = write(place / "sounds" / "two.wav", stereo, subtype="FLOAT")
        preprocess(settings(place, downmix=downmix), workers=0)
        assert np.abs(sound_of(stored(place / "db"), path) / 32768 - expected).max() <= 2**-15


def test_the_random_channel_is_one_of_them_and_changes(tmp_path):
    audio = chirp(16 * CHUNK / RATE, channels=4)
    write(tmp_path / "sounds" / "four.wav", audio, subtype="FLOAT")
    preprocess(settings(tmp_path, downmix="random"), workers=0)
    chosen = set()
    for pcm, metadata in stored(tmp_path / "db"):
        start = int(metadata["start"])
        errors = np.abs(pcm / 32768 - audio[:, start : start + CHUNK]).max(axis=1)
        assert errors.min() <= 2**-15
        chosen.add(int(errors.argmin()))
    assert len(chosen) > 1


def test_missing_channels_repeat_and_surplus_ones_are_left():
    audio = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(fit_channels(audio, 5, "mean"), audio[[0, 1, 2, 0, 1]])
    assert np.array_equal(fit_channels(audio, 2, "mean"), audio[:2])
    assert np.array_equal(fit_channels(audio, 1, "mean"), audio.mean(axis=0, keepdims=True))


def test_rounding_to_16_bits_is_the_nearest_step():
    audio = np.array([[0.0, 0.4 / 32768, 0.6 / 32768, -1.0, 1.5]], np.float32)
    pcm, peak = to_int16(audio, np.empty((1, 5), np.float32))
    assert pcm.tolist() == [[0, 0, 1, -32768, 32767]] and peak == pytest.approx(1.5)


def test_another_rate_keeps_the_seconds(tmp_path):
    time = np.arange(48000) / 48000
    write(tmp_path / "sounds" / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * time)[None].astype(np.float32), rate=48000)
    summary = preprocess(settings(tmp_path), workers=0)
    sound = sound_of(stored(tmp_path / "db"), tmp_path / "sounds" / "a.wav")[0] / 32768
    assert summary.stored_seconds == pytest.approx(1.0, abs=1e-4)
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    assert np.argmax(spectrum) * RATE / len(sound) == pytest.approx(1000, abs=1.5)


def test_the_split_is_by_file_and_is_recorded(tmp_path):
    for number in range(20):
        write(tmp_path / "sounds" / f"{number}.wav", chirp(0.5 + 0.1 * (number % 3), channels=1, seed=number))
    summary = preprocess(settings(tmp_path, validation_share=10), workers=0)
    held = [source for source in summary.sources if source.train_samples == 0]
    assert all(source.train_samples in (0, source.samples) for source in summary.sources)
    train, validation = summary.split_seconds()
    assert 0.06 < validation / (train + validation) < 0.2
    _, book = read_book(tmp_path / "db")
    assert [source.path for source in book if source.train_samples == 0] == [source.path for source in held]
    extra = yaml.safe_load((tmp_path / "db" / "metadata.yaml").read_text())["rave_tools"]
    assert extra["validation_seconds"] == pytest.approx(validation)


def test_division_never_takes_everything_nor_one_huge_file():
    files = [
        Source(f"/{number}.wav", 1, 1, samples=samples, records=1 + samples // 100)
        for number, samples in enumerate([10000, 90, 110, 100])
    ]
    divided = divide(files, 5, chunk=100)
    assert divided[0].train_samples == files[0].samples, "a file of 97 percent is not set aside for 5"
    assert 0 < sum(source.train_samples == 0 for source in divided) < 4
    assert all(source.train_samples == source.samples for source in divide(files, 0, chunk=100))
    assert divide(files[:1], 2, chunk=100)[0].train_samples == 9900, "the end of an only file, in whole records"
    assert divide(files[:1], 2, chunk=None)[0].train_samples == 9800
    assert divide([Source("/a", 1, 1, samples=5, records=1)], 2, chunk=100)[0].train_samples == 5


def test_an_interrupted_run_goes_on_where_it_stopped(folder):
    for number in range(5):
        write(folder / "sounds" / f"more{number}.wav", chirp(0.5, seed=number))
    whole = Settings((str(folder / "sounds"),), str(folder / "whole"), num_signal=SIGNAL, sampling_rate=RATE)
    preprocess(whole, workers=0)

    def interrupt(progress):
        if progress.files_done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(settings(folder), workers=2, report=interrupt)
    with pytest.raises(StoreError, match="unfinished"):
        read_facts(folder / "db")
    reports = []
    summary = preprocess(settings(folder), workers=2, report=reports.append)
    assert reports[0].resumed == 5 and len(summary.used) == 9
    assert (folder / "db" / "sources.jsonl").read_text() == (folder / "whole" / "sources.jsonl").read_text()
    one, two = stored(folder / "db"), stored(folder / "whole")
    assert [metadata for _, metadata in one] == [metadata for _, metadata in two]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(one, two))


def test_a_crash_in_the_middle_of_a_file_leaves_no_half_file(folder, monkeypatch):
    monkeypatch.setattr(recording, "BATCH_BYTES", 1)
    write(folder / "sounds" / "zz.wav", chirp(4.0, channels=1))
    preprocess(settings(folder), workers=0)
    rows = stored(folder / "db")
    (folder / "db" / "metadata.yaml").unlink()
    lines = (folder / "db" / "sources.jsonl").read_text().splitlines(keepends=True)
    (folder / "db" / JOURNAL_FILE).write_text("".join(lines[:4]) + lines[4][:20])
    (folder / "db" / "sources.jsonl").unlink()
    reports = []
    preprocess(settings(folder), workers=0, report=reports.append)
    assert reports[0].resumed == 3
    again = stored(folder / "db")
    assert [metadata for _, metadata in rows] == [metadata for _, metadata in again]


def test_a_changed_file_is_decoded_anew_on_resume(folder):
    def interrupt(progress):
        if progress.files_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(settings(folder), workers=0, report=interrupt)
    write(folder / "sounds" / "b" / "long.wav", chirp(0.7, channels=1, seed=9))
    reports = []
    summary = preprocess(settings(folder), workers=0, report=reports.append)
    assert reports[0].resumed == 1
    assert [source.samples for source in summary.sources][1] == round(0.7 * RATE)


def test_another_command_is_refused_for_a_half_done_and_for_a_finished_database(folder):
    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(settings(folder), workers=0, report=interrupt)
    with pytest.raises(StoreError, match="--channels: 1 there, 2 now"):
        preprocess(settings(folder, channels=2), workers=0)
    preprocess(settings(folder), workers=0)
    with pytest.raises(StoreError, match="--sampling_rate: 22050 there, 44100 now"):
        preprocess(settings(folder, sampling_rate=44100), workers=0)
    assert preprocess(settings(folder), workers=0).already_complete


def test_foreign_folders_are_not_written_into(folder):
    (folder / "db").mkdir()
    (folder / "db" / "thesis.doc").write_text("mine")
    with pytest.raises(PreprocessError, match="not empty"):
        preprocess(settings(folder), workers=0)
    (folder / "db" / "thesis.doc").unlink()
    (folder / "db" / "metadata.yaml").write_text("lazy: false")
    with pytest.raises(PreprocessError, match="another tool"):
        preprocess(settings(folder), workers=0)


def test_a_worker_that_dies_costs_one_file(folder):
    for number in range(3):
        write(folder / "sounds" / f"more{number}.wav", chirp(30.0, seed=number))
    killed = []

    def kill(progress):
        if progress.files_done == 4 and not killed:
            killed.extend(multiprocessing.active_children())
            for child in killed:
                os.kill(child.pid, signal.SIGKILL)

    summary = preprocess(settings(folder), workers=1, report=kill)
    assert killed
    assert len(summary.skipped) <= 1 and all("crashed" in source.skipped for source in summary.skipped)
    rows = stored(folder / "db")
    assert len(rows) == sum(source.records for source in summary.sources)
    assert {metadata["path"] for _, metadata in rows} == {source.path for source in summary.used}


def test_nothing_usable_says_what_was_searched(tmp_path):
    (tmp_path / "sounds").mkdir()
    with pytest.raises(PreprocessError, match="no files at all"):
        preprocess(settings(tmp_path), workers=0)
    (tmp_path / "sounds" / "a.wma").write_bytes(b"x")
    with pytest.raises(PreprocessError, match="only 1 .wma .name others with --ext"):
        preprocess(settings(tmp_path), workers=0)
    with pytest.raises(StoreError, match="no such file or folder"):
        preprocess(Settings((str(tmp_path / "nowhere"),), str(tmp_path / "db")), workers=0)
    (tmp_path / "sounds" / "a.wav").write_bytes(b"")
    with pytest.raises(PreprocessError, match="1 files found, all skipped"):
        preprocess(settings(tmp_path), workers=0)
    with pytest.raises(PreprocessError, match="--downmix is 'left'"):
        settings(tmp_path, downmix="left")


def test_lazy_only_looks(folder):
    encode(folder / "sounds" / "c.ogg", chirp(1.0, rate=44100), encoder="soundfile", rate=44100)
    (folder / "sounds" / "fake.mp3").write_text("no" * 1000)
    summary = preprocess(settings(folder, lazy=True), workers=0)
    assert len(summary.used) == 5 and len(summary.skipped) == 1
    facts = read_facts(folder / "db")
    assert facts.lazy and facts.seconds == pytest.approx(summary.found_seconds, rel=1e-3)
    store = ExampleStore(folder / "db")
    metadata = store.metadata(2)
    assert (
        metadata["path"].endswith("c.ogg")
        and float(metadata["length"]) == pytest.approx(1.0)
        and metadata["channels"] == "2"
    )


def test_a_dry_run_estimates_and_writes_nothing(folder):
    estimate = survey(settings(folder))
    assert not (folder / "db").exists()
    summary = preprocess(settings(folder), workers=0)
    assert [(s.path, s.samples, s.records, s.train_samples) for s in estimate.sources] == [
        (s.path, s.samples, s.records, s.train_samples) for s in summary.sources
    ]


def test_the_search_is_ordered_follows_links_once_and_ignores_mac_forks(tmp_path):
    write(tmp_path / "x" / "b.wav", chirp(0.1))
    write(tmp_path / "x" / "a.wav", chirp(0.1))
    (tmp_path / "x" / "._a.wav").write_bytes(b"fork")
    (tmp_path / "x" / "loop").symlink_to(tmp_path / "x")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    found = search([str(tmp_path / "x"), str(tmp_path / "y")])
    assert [os.path.basename(source.path) for source in found.sources] == ["a.wav", "b.wav"]
    assert found.passed_over == {"wav": 1}


def test_the_book_is_readable_by_a_person(folder):
    preprocess(settings(folder), workers=0)
    lines = [json.loads(line) for line in (folder / "db" / "sources.jsonl").read_text().splitlines()]
    assert lines[0]["settings"]["num_signal"] == SIGNAL
    assert {"path", "samples", "records", "train_samples", "skipped"} <= set(lines[1])


def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(folder, monkeypatch):
    from rave_tools.data.store import ExampleWriter

    monkeypatch.setattr(recording, "BATCH_BYTES", 1)
    append, calls = ExampleWriter.append, []

    def full(self, first, records):
        calls.append(first)
        if len(calls) == 4:
            raise StoreError("the disk is full")
        append(self, first, records)

    with monkeypatch.context() as patch:
        patch.setattr(ExampleWriter, "append", full)
        with pytest.raises(StoreError, match="the disk is full"):
            preprocess(settings(folder), workers=0)
    assert len(calls) == 4, "nothing is written behind a gap"
    preprocess(settings(folder), workers=0)
    preprocess(
        Settings((str(folder / "sounds"),), str(folder / "whole"), num_signal=SIGNAL, sampling_rate=RATE), workers=0
    )
    one, two = stored(folder / "db"), stored(folder / "whole")
    assert [metadata for _, metadata in one] == [metadata for _, metadata in two]


def test_two_runs_at_once_are_refused(folder):
    fcntl = pytest.importorskip("fcntl", reason="the system has no flock")
    (folder / "db").mkdir()
    with open(folder / "db" / "preprocess.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PreprocessError, match="another run is writing here"):
            preprocess(settings(folder), workers=0)
    assert preprocess(settings(folder), workers=0).used


def test_the_lazy_length_of_an_mp3_without_a_table_is_counted(tmp_path):
    path = encode(tmp_path / "x.mp3", chirp(3.0, rate=44100), encoder="libmp3lame", rate=44100)
    content = path.read_bytes()
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "cut.mp3").write_bytes(content[len(content) // 2 :])
    looked = survey(settings(tmp_path, lazy=True)).sources[0].found_seconds
    decoded = preprocess(settings(tmp_path), workers=0).sources[0].found_seconds
    assert looked == pytest.approx(decoded, abs=0.1) and 1.0 < decoded < 2.0
