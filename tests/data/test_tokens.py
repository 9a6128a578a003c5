"""Databases of tokens: what is written is read, in parts, in workers, and never as something else."""

from dataclasses import replace

import numpy as np
import pytest
from torch.utils.data import DataLoader

from rave_tools.data.store import StoreError
from rave_tools.data.tokens import PART, TokenFacts, TokenItem, TokenStore, TokenWriter

CODEC = {"sample_rate": 100, "num_codebooks": 3, "latent_dim": 5, "weights": "abc"}
FACTS = TokenFacts("codes", "int16", CODEC, "runs/a")
LENGTHS = (7, 2 * PART + 300)


def contents(item, frames, rows=2):
    return np.random.default_rng(item).integers(0, 32767, (rows, 3, frames)).astype(np.int16)


def fill(folder, facts=FACTS, scales=None):
    writer = TokenWriter(folder, facts)
    for number, frames in enumerate(LENGTHS):
        values = contents(number, frames)
        item = TokenItem(f"{number}.wav", f"/x/{number}.wav", 1, 2, samples=frames * 10, rate=100)
        blocks = np.split(values, range(100, frames, 100), axis=2)
        writer.add(item, blocks, complete=lambda item=item: (item, scales))
    writer.close()


def test_what_is_written_is_read(tmp_path):
    scales = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    fill(tmp_path, scales=scales)
    store = TokenStore(tmp_path)
    assert store.facts == FACTS and store.facts.width == 3 and len(store) == 4
    for index, (number, row) in enumerate(store.entries):
        values = contents(number, LENGTHS[number])[row]
        assert np.array_equal(store[index], values) and store[index].dtype == np.int16
        assert np.array_equal(store.scales(index), scales[row])
        assert store.frames(index) == LENGTHS[number] and store.item(index).path == f"{number}.wav"
    for start, stop in ((0, 0), (PART - 3, PART), (PART, PART + 1), (PART - 1, 2 * PART + 1), (2 * PART + 299, None)):
        assert np.array_equal(store.read(3, start, stop), contents(1, LENGTHS[1])[1][:, start:stop])
    crop = store.crop(3, 2 * PART, generator=np.random.default_rng(0))
    places = [s for s in range(301) if np.array_equal(crop, contents(1, LENGTHS[1])[1][:, s : s + 2 * PART])]
    assert len(places) == 1
    with pytest.raises(ValueError, match=r"frames 3 to 8 of 0\.wav, which has 7"):
        store.read(0, 3, 8)
    with pytest.raises(ValueError, match=r"crop of 8 frames of 0\.wav, which has 7"):
        store.crop(0, 8, generator=np.random.default_rng())


def test_workers_that_are_spawned_read_it(tmp_path):
    fill(tmp_path)
    store = TokenStore(tmp_path)
    assert len(store[0])  # it is open when it is pickled
    loader = DataLoader(store, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    read = list(loader)
    assert len(read) == len(store) == 4
    assert all(np.array_equal(values.numpy(), store[index]) for index, values in enumerate(read))


def test_an_interrupted_sound_leaves_nothing_behind(tmp_path):
    fill(tmp_path)
    writer = TokenWriter(tmp_path, FACTS)

    def breaks():
        yield contents(2, 3 * PART)
        raise KeyboardInterrupt

    item = TokenItem("2.wav", "/x/2.wav", 1, 2)
    with pytest.raises(KeyboardInterrupt):
        writer.add(item, breaks(), complete=lambda: (item, None))
    writer.close()
    assert len(TokenStore(tmp_path).items) == 2
    writer = TokenWriter(tmp_path, FACTS)
    writer.add(item, [contents(3, 4)], complete=lambda: (item, None))
    writer.add(replace(item, path="0.wav"), [contents(4, 9)], complete=lambda: (replace(item, path="0.wav"), None))
    writer.close()
    store = TokenStore(tmp_path)
    assert [item.frames for item in store.items] == [9, LENGTHS[1], 4]
    assert np.array_equal(store[0], contents(4, 9)[0]) and np.array_equal(store[4], contents(3, 4)[0])
    assert len(store._store.below(b"data/00000002/")) == 2


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (replace(FACTS, codec={**CODEC, "weights": "def"}), "weights: abc there, def here"),
        (replace(FACTS, kind="latents"), "kind: codes there, latents here"),
        (replace(FACTS, dtype="int32"), "dtype: int16 there, int32 here"),
    ],
)
def test_another_codec_is_refused(tmp_path, other, reason):
    fill(tmp_path)
    with pytest.raises(StoreError, match=reason) as refusal:
        TokenWriter(tmp_path, other)
    assert FACTS.hash in str(refusal.value) and other.hash in str(refusal.value)
    TokenWriter(tmp_path, replace(FACTS, run="runs/moved")).close()


def test_what_is_no_database_of_tokens_is_said(tmp_path):
    with pytest.raises(StoreError, match="no such database"):
        TokenStore(tmp_path / "missing")
    TokenWriter(tmp_path / "empty", FACTS).close()
    with pytest.raises(StoreError, match="holds no sound yet"):
        TokenStore(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match="no database"):
        TokenWriter(tmp_path / "other", FACTS)
    with pytest.raises(StoreError, match="is a file"):
        TokenWriter(tmp_path / "other" / "letter.txt", FACTS)
