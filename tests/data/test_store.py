"""The database: what is written is what acids-rave reads, and an unfinished one is never taken for whole."""

import pickle
import resource

import lmdb
import numpy as np
import pytest
import yaml

from rave_tools.data.store import (
    DatabaseFacts,
    ExampleCodec,
    ExampleStore,
    ExampleWriter,
    StoreError,
    key_of,
    read_facts,
    write_facts,
)


def records(count, *, channels=2, samples=1000, seed=0):
    pcm = np.random.default_rng(seed).integers(-32768, 32767, (count, channels, samples), dtype=np.int16)
    codec = ExampleCodec()
    return pcm, [
        codec.audio(item.tobytes(), channels=channels, sampling_rate=22050, metadata={"path": "a.wav"}) for item in pcm
    ]


def make(folder, count, **shape):
    pcm, protobufs = records(count, **shape)
    writer = ExampleWriter(folder)
    writer.append(0, protobufs)
    writer.close()
    write_facts(folder, DatabaseFacts(pcm.shape[1], 22050, 1.0, False, {"chunk": pcm.shape[2]}))
    return pcm


def test_the_reader_of_acids_rave_understands_it(tmp_path):
    from udls.generated import AudioExample

    pcm = make(tmp_path, 5)
    metadata = yaml.safe_load((tmp_path / "metadata.yaml").read_text())
    assert set(metadata) == {"channels", "lazy", "n_seconds", "sr", "rave_tools"}
    with lmdb.open(str(tmp_path), lock=False) as environment, environment.begin() as transaction:
        keys = list(transaction.cursor().iternext(values=False))
        assert keys == [b"%08d" % index for index in range(5)]
        for index, key in enumerate(keys):
            example = AudioExample.FromString(transaction.get(key))
            buffer = example.buffers["waveform"]
            assert buffer.precision == AudioExample.Precision.INT16
            assert list(buffer.shape) == [2, 1000] and buffer.sampling_rate == 22050
            audio = np.frombuffer(buffer.data, dtype=np.int16).reshape(metadata["channels"], -1)
            assert np.array_equal(audio, pcm[index])


def test_parts_of_records_are_read(tmp_path):
    pcm = make(tmp_path, 3)
    store = ExampleStore(tmp_path)
    assert len(store) == 3 and store.samples(1) == 1000
    assert np.array_equal(store.read(2, 10, 20), pcm[2][:, 10:20] / np.float32(32768))
    assert store.metadata(1) == {"path": "a.wav"}


def test_two_stores_of_one_process_share_what_is_open_and_survive_pickling(tmp_path):
    make(tmp_path, 2)
    one, other = ExampleStore(tmp_path), ExampleStore(tmp_path)
    copy = pickle.loads(pickle.dumps(one))
    assert np.array_equal(one.read(0, 0, 5), other.read(0, 0, 5))
    one.close()
    other.close()
    assert copy.read(1, 0, 5).shape == (2, 5)


def test_the_map_grows_by_itself(tmp_path):
    pcm, protobufs = records(40, channels=8, samples=131072)
    writer = ExampleWriter(tmp_path)
    for first in range(0, 80, 40):
        writer.append(first, protobufs)
    assert len(writer) == 80
    writer.truncate(60)
    assert len(writer) == 60
    writer.close()
    write_facts(tmp_path, DatabaseFacts(8, 22050, 1.0, False))
    store = ExampleStore(tmp_path)
    assert np.array_equal(store.read(59, 131000, 131072), pcm[19][:, 131000:] / np.float32(32768))


def test_a_full_disk_is_said_and_what_was_stored_stays(tmp_path):
    _, protobufs = records(8, samples=131072)
    writer = ExampleWriter(tmp_path)
    writer.append(0, protobufs[:2])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "data.mdb").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, hard))
    try:
        with pytest.raises(StoreError, match="free some space and run the same command again"):
            writer.append(2, protobufs[2:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(writer) == 2
    writer.append(2, protobufs[2:])
    assert len(writer) == 8
    writer.close()


def test_unfinished_missing_and_empty_databases_are_told_apart(tmp_path):
    with pytest.raises(StoreError, match="no such database folder"):
        read_facts(tmp_path / "nothing")
    with pytest.raises(StoreError, match="not a database"):
        read_facts(tmp_path)
    writer = ExampleWriter(tmp_path)
    with pytest.raises(StoreError, match="unfinished"):
        read_facts(tmp_path)
    writer.close()
    write_facts(tmp_path, DatabaseFacts(1, 44100, 0.0, False))
    with pytest.raises(StoreError, match="no records"):
        ExampleStore(tmp_path)
    (tmp_path / "metadata.yaml").write_text("just a word")
    with pytest.raises(StoreError, match="is not the metadata of a database"):
        read_facts(tmp_path)


def test_keys_sort_as_their_numbers():
    assert sorted(key_of(index) for index in (10, 9, 100, 0)) == [key_of(index) for index in (0, 9, 10, 100)]


def test_records_are_removed_from_a_database_that_was_opened_again_and_has_no_room(tmp_path):
    _, protobufs = records(60, channels=8, samples=131072)
    writer = ExampleWriter(tmp_path)
    writer.append(0, protobufs)
    writer.close()
    writer = ExampleWriter(tmp_path)
    writer.truncate(7)
    writer.append(7, protobufs[:20])
    assert len(writer) == 27
    writer.close()
