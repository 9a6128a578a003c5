"""``rave_tools encode`` and back with ``generate`` as a person types it, for codecs of every kind."""

import numpy as np
import pytest
import soundfile
import torch

from rave_tools import config
from rave_tools.cli.main import main
from rave_tools.data.tokens import TokenStore
from rave_tools.inference import tokens
from rave_tools.runs import RunDirectory
from tests.loud import make_loud

HEADER = "from __gin__ import dynamic_registration\n"
SMALL = "CAPACITY = 4\nLATENT_SIZE = 6\nNUM_QUANTIZERS = 4\nCODEBOOK_SIZE = 16\nLSTM_LAYERS = 1\n"
CONFIGS = {
    "segments": f"include 'encodec_48khz.gin'\n{SMALL}BANDWIDTHS = [0.6, 1.2, 2.4]\n",
    "plain": f"include 'encodec_24khz.gin'\n{SMALL}BANDWIDTHS = []\n",
    "discrete": "include 'discrete.gin'\nCAPACITY = 4\nRATIOS = [4, 2, 2, 2]\nLATENT_SIZE = 8\nNUM_QUANTIZERS = 3\n",
    "dac": "include 'dac_16khz.gin'\nCAPACITY = 4\nNUM_QUANTIZERS = 3\nLATENT_SIZE = 64\nCODEBOOK_SIZE = 16\n",
    "continuous": "include 'v2.gin'\ninclude 'causal.gin'\nCAPACITY = 4\nRATIOS = [4, 2, 2, 2]\nLATENT_SIZE = 8\n",
}
SOUNDS = (("a.wav", (50001, 1), 44100), ("deep/a.flac", (50021, 2), 48000), ("a.flac", (1, 1), 24000))
KINDS = {"segments": "codes", "plain": "codes", "discrete": "codes", "dac": "codes", "continuous": "latents"}


def make_run(folder, text, seed=0, placed=True):
    torch.manual_seed(seed)
    codec = config.load([], text=HEADER + text).build("CODEC")
    if placed:
        make_loud(codec)
    weights = {f"codec.{name}": value for name, value in codec.state_dict().items()}
    run = RunDirectory(folder).create()
    run.save("last", {"state_dict": weights, "config": HEADER + text, "rave_tools": {"generator_updates": 7}})
    return str(run.path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {name: make_run(root / name, text) for name, text in CONFIGS.items()}


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "sounds"
    rng = np.random.default_rng(0)
    for name, shape, rate in SOUNDS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        swell = np.linspace(0.05, 1, shape[0])[:, None]
        soundfile.write(folder / name, 0.4 * swell * rng.uniform(-1, 1, shape), rate)
    return folder


def encode(run, sounds, out, *words):
    return main(["encode", "--model", run, "--input", str(sounds), "--output", str(out), "--noprogress", *words])


def generate(run, source, out, *words):
    words = ["--out_path", str(out), "--bits", "float", "--noprogress", *words]
    return main(["generate", "--model", run, "--input", str(source), *words])


def tree(folder):
    return {path.relative_to(folder).as_posix(): soundfile.read(path) for path in sorted(folder.rglob("*.wav"))}


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_equals_generate(name, runs, sounds, tmp_path, capsys):
    assert encode(runs[name], sounds, tmp_path / "db") == 0
    assert "files encoded  3" in capsys.readouterr().out
    store = TokenStore(tmp_path / "db")
    assert store.facts.kind == KINDS[name]
    assert sorted(item.path for item in store.items) == ["a.flac", "a.wav", "deep/a.flac"]
    assert (store.scales(0) is not None) == (name == "segments")
    assert len(np.unique(store[1])) > 5
    store.close()
    assert generate(runs[name], tmp_path / "db", tmp_path / "back") == 0
    assert generate(runs[name], sounds, tmp_path / "direct") == 0
    back, direct = tree(tmp_path / "back"), tree(tmp_path / "direct")
    assert list(back) == list(direct) == ["a.flac.wav", "a.wav.wav", "deep/a.wav"]
    for path, (audio, rate) in direct.items():
        assert back[path][1] == rate and back[path][0].shape == audio.shape
        np.testing.assert_allclose(back[path][0], audio, atol=1e-5, rtol=0)
    assert np.abs(direct["deep/a.wav"][0]).max() > 1e-2


def test_the_same_command_goes_on_and_changed_files_are_encoded_anew(runs, sounds, tmp_path, capsys, monkeypatch):
    def break_off(*args, **kwargs):
        raise KeyboardInterrupt

    real, calls = tokens._encode_file, []

    def second_breaks(*args):
        calls.append(args)
        if len(calls) == 2:
            monkeypatch.setattr(tokens.Tokenizer, "frames", break_off)  # after the parts, before the item
        real(*args)

    monkeypatch.setattr(tokens, "_encode_file", second_breaks)
    assert encode(runs["plain"], sounds, tmp_path / "db") == 130
    monkeypatch.undo()
    assert len(TokenStore(tmp_path / "db").items) == 1
    assert encode(runs["plain"], sounds, tmp_path / "db") == 0
    out = capsys.readouterr().out
    assert "files encoded  2" in out and "already there  1" in out and "in the database 3" in out
    assert encode(runs["plain"], sounds, tmp_path / "whole") == 0
    first, whole = TokenStore(tmp_path / "db"), TokenStore(tmp_path / "whole")
    assert [item.path for item in first.items] == [item.path for item in whole.items]
    assert all(np.array_equal(first[index], whole[index]) for index in range(len(whole)))
    first.close(), whole.close()
    soundfile.write(sounds / "a.wav", np.zeros(4000), 24000)
    assert encode(runs["plain"], sounds, tmp_path / "db") == 0
    assert "changed since it was encoded" in capsys.readouterr().out
    again = TokenStore(tmp_path / "db")
    assert {item.path: item.samples for item in again.items}["a.wav"] == 4000 and len(again.items) == 3


def test_a_bad_file_is_counted_and_named_and_the_others_are_done(runs, sounds, tmp_path, capsys):
    (sounds / "bad.wav").write_bytes(b"RIFF nothing of the kind")
    for encoded in (3, 0):
        assert encode(runs["plain"], sounds, tmp_path / "db") == 1
        out = capsys.readouterr().out
        assert f"files encoded  {encoded}" in out and "problems       1" in out
        assert "bad.wav" in out and "[not encoded]" in out
    assert len(TokenStore(tmp_path / "db").items) == 3


def test_a_damaged_file_is_encoded_as_far_as_it_goes_and_named_every_time(runs, sounds, tmp_path, capsys):
    whole = (sounds / "deep/a.flac").read_bytes()
    (sounds / "deep/a.flac").write_bytes(whole[: len(whole) // 2])
    for encoded in (3, 0):
        assert encode(runs["plain"], sounds, tmp_path / "db") == 1
        out = capsys.readouterr().out
        assert f"files encoded  {encoded}" in out and "problems       1" in out and "[incomplete]" in out
    store = TokenStore(tmp_path / "db")
    (item,) = [item for item in store.items if item.damage]
    assert item.path == "deep/a.flac" and 1000 < item.source_frames < 50021
    store.close()
    assert generate(runs["plain"], tmp_path / "db", tmp_path / "back") == 1
    assert item.damage in capsys.readouterr().out and len(tree(tmp_path / "back")) == 3


def test_another_file_of_the_same_place_does_not_replace_the_first(runs, sounds, tmp_path, capsys):
    (tmp_path / "others").mkdir()
    soundfile.write(tmp_path / "others" / "a.wav", np.zeros(4000), 24000)
    assert encode(runs["plain"], sounds, tmp_path / "db") == 0
    assert encode(runs["plain"], tmp_path / "others", tmp_path / "db") == 1
    assert "a.wav is there already" in capsys.readouterr().err
    assert encode(runs["plain"], sounds, tmp_path / "both", "--input", str(tmp_path / "others")) == 0
    assert {item.path for item in TokenStore(tmp_path / "both").items} > {"sounds/a.wav", "others/a.wav"}
    sounds.rename(tmp_path / "moved")
    assert encode(runs["plain"], tmp_path / "moved", tmp_path / "db") == 0
    assert "already there  3" in capsys.readouterr().out


def test_fewer_codebooks_are_remembered(runs, sounds, tmp_path, capsys):
    assert encode(runs["segments"], sounds, tmp_path / "db", "--bandwidth", "1.2") == 0
    assert TokenStore(tmp_path / "db")[0].shape[0] == 2
    assert generate(runs["segments"], tmp_path / "db", tmp_path / "back") == 0
    assert encode(runs["segments"], sounds, tmp_path / "db") == 1
    assert "num_codebooks: 2 there, 4 here" in capsys.readouterr().err
    assert encode(runs["segments"], sounds, tmp_path / "other", "--bandwidth", "5") == 1
    assert "--bandwidth 5" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(runs, sounds, tmp_path, capsys):
    database = tmp_path / "db"
    other = make_run(tmp_path / "other", CONFIGS["plain"], seed=1)
    assert encode(runs["plain"], sounds, database) == 0
    hashed = TokenStore(database).facts.hash
    young = make_run(tmp_path / "young", CONFIGS["plain"], placed=False)
    capsys.readouterr()
    for command, words, reasons in (
        (encode, (other, sounds, database), [hashed, "weights: "]),
        (encode, (runs["segments"], sounds, database), [hashed, "sample_rate: 24000 there, 48000 here"]),
        (encode, (runs["plain"], sounds, database, "--latents"), ["kind: codes there, latents here"]),
        (encode, (runs["plain"], sounds, tmp_path / "x", "--dtype", "float16"), ["--dtype is for latents"]),
        (encode, (runs["continuous"], sounds, tmp_path / "x", "--bandwidth", "1"), ["--bandwidth is for"]),
        (encode, (runs["plain"], sounds, sounds), ["no database"]),
        (encode, (young, sounds, tmp_path / "x"), ["never placed", "--latents"]),
        (generate, (runs["continuous"], sounds, tmp_path / "out", "--bandwidth", "1"), ["--bandwidth is for codecs"]),
        (generate, (runs["segments"], sounds, tmp_path / "out", "--bandwidth", "7"), ["--bandwidth 7", "0.6, 1.2"]),
        (generate, (runs["plain"], database, tmp_path / "out", "--bandwidth", "1"), ["--bandwidth has no meaning"]),
        (generate, (other, database, tmp_path / "out"), [hashed, "weights: ", "Give the run"]),
        (generate, (runs["plain"], database, tmp_path / "out", "--stream"), ["--stream has no meaning"]),
    ):
        assert command(*words) == 1
        error = capsys.readouterr().err
        assert all(reason in error for reason in reasons), error
    assert not (tmp_path / "out").exists() and not (tmp_path / "x").exists()


def test_generate_with_fewer_codebooks_equals_the_way_by_tokens(runs, sounds, tmp_path):
    assert encode(runs["segments"], sounds, tmp_path / "db", "--bandwidth", "0.6") == 0
    assert generate(runs["segments"], tmp_path / "db", tmp_path / "back") == 0
    assert generate(runs["segments"], sounds, tmp_path / "direct", "--bandwidth", "0.6") == 0
    assert generate(runs["segments"], sounds, tmp_path / "whole") == 0
    back, direct, whole = (tree(tmp_path / name) for name in ("back", "direct", "whole"))
    for path, (audio, _) in direct.items():
        np.testing.assert_allclose(audio, back[path][0], atol=1e-5)
        assert audio.shape == whole[path][0].shape
    assert len(direct) == 3 and max(np.abs(direct[path][0] - whole[path][0]).max() for path in direct) > 1e-3


def test_latents_of_half_the_size(runs, sounds, tmp_path):
    assert encode(runs["plain"], sounds, tmp_path / "db", "--latents", "--dtype", "float16") == 0
    store = TokenStore(tmp_path / "db")
    assert store[0].dtype == np.float16 and store[0].shape[0] == 6
    store.close()
    assert generate(runs["plain"], tmp_path / "db", tmp_path / "back", "--keep_rate") == 0
    sources = {"a.flac.wav": "a.flac", "a.wav.wav": "a.wav", "deep/a.wav": "deep/a.flac"}
    for path, (audio, rate) in tree(tmp_path / "back").items():
        expected = soundfile.info(sounds / sources[path])
        assert (audio.shape[0], rate) == (expected.frames, expected.samplerate)
