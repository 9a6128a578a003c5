"""Sounds for tests, synthesised, and written in every format with the libraries that the package has anyway."""

from pathlib import Path

import av
import numpy as np
import soundfile

RATE = 22050

PLAIN = {
    "pcm16.wav": ("WAV", "PCM_16"),
    "pcm24.wav": ("WAV", "PCM_24"),
    "pcm32.wav": ("WAV", "PCM_32"),
    "float.wav": ("WAV", "FLOAT"),
    "extensible.wav": ("WAVEX", "PCM_24"),
    "large.wav": ("RF64", "PCM_16"),
    "sony.w64": ("W64", "PCM_16"),
    "apple.aiff": ("AIFF", "PCM_24"),
    "free.flac": ("FLAC", "PCM_16"),
}
"""File name -> format and subtype, as libsndfile calls them."""

COMPRESSED = {
    "vorbis.ogg": ("soundfile", 44100),
    "opus.opus": ("libopus", 48000),
    "layer3.mp3": ("libmp3lame", 44100),
    "advanced.m4a": ("aac", 44100),
}
"""File name -> FFmpeg's encoder, or libsndfile where that has none, and a rate that it takes."""


def chirp(seconds: float, *, channels: int = 2, rate: int = RATE, seed: int = 0, noise: float = 0.02) -> np.ndarray:
    """A rising tone with a little noise, different in every channel; float32 (C, T), peak below 0.6."""
    time = np.arange(round(seconds * rate)) / rate
    generator = np.random.default_rng(seed)
    tones = [
        np.sin(2 * np.pi * (200 + 50 * (seed % 7) + 90 * channel + 150 * time) * time) for channel in range(channels)
    ]
    return (0.5 * np.stack(tones) + noise * generator.standard_normal((channels, len(time)))).astype(np.float32)


def write(
    path: Path, audio: np.ndarray, *, rate: int = RATE, file_format: str = "WAV", subtype: str = "PCM_16"
) -> Path:
    """Write plain audio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.T, rate, format=file_format, subtype=subtype)
    return path


def encode(path: Path, audio: np.ndarray, *, encoder: str, rate: int) -> Path:
    """Write compressed audio (C, T) of one or two channels."""
    if encoder == "soundfile":
        with soundfile.SoundFile(path, "w", rate, audio.shape[0], format="OGG", subtype="VORBIS") as file:
            for begin in range(0, audio.shape[1], 4096):  # libsndfile overflows its stack on long Vorbis writes
                file.write(audio[:, begin : begin + 4096].T)
        return path
    layout = {1: "mono", 2: "stereo"}[audio.shape[0]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio, np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=stream.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path
