"""Reading audio: every format, to the sample, and clear words for what is no audio."""

import numpy as np
import pytest
import soundfile

from rave_tools.data import audio_io
from rave_tools.data.readers import ContainerReader, PlainReader

from .sounds import COMPRESSED, PLAIN, RATE, chirp, encode, write


@pytest.mark.parametrize("name", PLAIN)
def test_plain_formats_are_read_to_the_bit(name, tmp_path):
    audio = chirp(0.5)
    file_format, subtype = PLAIN[name]
    path = write(tmp_path / name, audio, file_format=file_format, subtype=subtype)
    facts = audio_io.probe(path)
    assert (facts.sampling_rate, facts.channels, facts.frames) == (RATE, 2, audio.shape[1])
    resolution = 2.0**-15 if subtype == "PCM_16" else 2.0**-22
    assert np.abs(audio_io.read(path) - audio).max() <= resolution


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_formats_sound_as_what_was_encoded(name, tmp_path):
    encoder, rate = COMPRESSED[name]
    audio = chirp(2.0, rate=rate, noise=0)
    path = encode(tmp_path / name, audio, encoder=encoder, rate=rate)
    assert (audio_io.probe(path).sampling_rate, audio_io.probe(path).channels) == (rate, 2)
    decoded = audio_io.read(path)
    surplus = decoded.shape[1] - audio.shape[1]
    assert 0 <= surplus <= 3 * 1152, "nothing is lost; at most some packets are added at the ends"
    excerpt = audio[:, rate // 2 : rate]
    places = [decoded[:, rate // 2 + lag : rate + lag] for lag in range(surplus + 1)]
    assert min(np.mean((place - excerpt) ** 2) for place in places) < 0.02 * np.mean(excerpt**2)


@pytest.mark.parametrize("name", [*PLAIN, *COMPRESSED])
def test_a_seek_is_to_the_sample(name, tmp_path):
    if name in PLAIN:
        path = write(tmp_path / name, chirp(3.0), file_format=PLAIN[name][0], subtype=PLAIN[name][1])
    else:
        encoder, rate = COMPRESSED[name]
        path = encode(tmp_path / name, chirp(3.0, rate=rate, noise=0), encoder=encoder, rate=rate)
    whole = audio_io.read(path)
    # AAC fills bands with noise of its own at each decoding; a sample's shift would be ten times louder.
    tolerance = 2e-2 if name.endswith("m4a") else 1e-3
    with audio_io.open_audio(path) as reader:
        for start in [40000, 0, 1, 17, 33333, 12345, 60001, 5000]:
            reader.seek(start)
            part = reader.read(2000)
            assert part.shape == (2, 2000)
            assert np.abs(part - whole[:, start : start + 2000]).max() < tolerance


def test_blocks_make_the_whole_and_resampling_in_blocks_is_resampling_the_whole(tmp_path):
    audio = chirp(3.0)
    path = write(tmp_path / "a.wav", audio, subtype="FLOAT")
    blocks = list(audio_io.stream(path, sampling_rate=16000, block=1000))
    whole = audio_io.resample(audio, RATE, 16000)
    joined = np.concatenate(blocks, axis=1)
    assert abs(joined.shape[1] - 3 * 16000) <= 1
    length = min(joined.shape[1], whole.shape[1])
    assert np.abs(joined[:, :length] - whole[:, :length]).max() < 1e-3


def test_resampling_removes_what_the_new_rate_cannot_hold():
    time = np.arange(44100) / 44100
    tones = np.stack([np.sin(2 * np.pi * 1000 * time), np.sin(2 * np.pi * 15000 * time)]).astype(np.float32)
    low, high = audio_io.resample(tones, 44100, 22050)[:, 1000:-1000]
    assert np.abs(low).max() == pytest.approx(1, abs=1e-2)
    assert np.abs(high).max() < 1e-3


def test_an_mp3_with_the_name_of_a_wav_is_read(tmp_path):
    path = encode(tmp_path / "a.mp3", chirp(1.0, rate=44100), encoder="libmp3lame", rate=44100)
    path = path.rename(tmp_path / "really.wav")
    assert audio_io.read(path).shape[0] == 2


def test_both_libraries_agree_on_vorbis(tmp_path):
    path = encode(tmp_path / "a.ogg", chirp(2.0, rate=44100), encoder="soundfile", rate=44100)
    with PlainReader(str(path)) as one, ContainerReader(str(path)) as other:
        assert np.abs(one.read(80000) - other.read(80000)).max() < 1e-5


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("empty.wav", b"", "empty (0 bytes)"),
        ("text.wav", b"this is not a sound at all, it is a line of text\n" * 50, "is not audio"),
        ("text.mp3", b"<html>404 not found</html>" * 50, "is not audio"),
        ("header.wav", b"RIFF\x24\x00\x00\x00WAVE", "is not audio"),
    ],
)
def test_what_is_no_audio_is_named_with_the_reason(name, content, reason, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(audio_io.AudioError) as caught:
        audio_io.read(path)
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(audio_io.AudioError, match="No such file"):
        audio_io.probe(tmp_path / "nothing.wav")


def test_damage_in_the_middle_costs_packets_and_is_said(tmp_path):
    path = encode(tmp_path / "a.mp3", chirp(4.0, rate=44100), encoder="libmp3lame", rate=44100)
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    middle = len(content) // 2
    content[middle : middle + 3000] = generator.integers(0, 256, 3000, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(content))
    with audio_io.open_audio(path) as reader:
        samples = 0
        while (block := reader.read(10000)).shape[1]:
            samples += block.shape[1]
    assert samples > 3 * 44100
    assert samples < 4 * 44100 or "damaged" in reader.damage


def test_written_audio_comes_back(tmp_path):
    audio = chirp(0.2, channels=5)
    audio_io.write_wav(tmp_path / "a.wav", audio, 48000, subtype="FLOAT")
    assert np.array_equal(audio_io.read(tmp_path / "a.wav"), audio)
    with pytest.raises(audio_io.AudioError, match="cannot be written"):
        audio_io.write_wav(tmp_path / "no" / "a.wav", audio, 48000)


@pytest.mark.parametrize(
    ("name", "container"), [("a.wav", "WAV"), ("b.aiff", "AIFF"), ("c.wav", "RF64"), ("d.w64", "W64")]
)
def test_a_file_that_ends_before_its_header_does_is_damaged(tmp_path, name, container):
    """Half a download: libsndfile reads what is there and says nothing."""
    path = tmp_path / name
    soundfile.write(path, np.full((8000, 2), 0.1), 8000, format=container)
    with audio_io.open_audio(str(path)) as whole:
        assert whole.damage == ""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with audio_io.open_audio(str(path)) as cut:
        assert cut.damage.startswith("damaged: its header announces ")


def test_a_wav_from_a_pipe_is_whole(tmp_path):
    """Programs that write to a pipe leave a size of all ones."""
    path = tmp_path / "piped.wav"
    soundfile.write(path, np.full((8000, 2), 0.1), 8000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with audio_io.open_audio(str(path)) as piped:
        assert piped.damage == ""
        assert piped.read(10**6).shape[1] == 8000
