"""A segment of a file at the model's rate: where it may begin, and how it is read.

A segment is resampled together with the sound around it, and its first sample falls on a sample of the file: so it is
what one would cut out of the whole file resampled, without edges and without a shift of a fraction of a sample.
"""

from dataclasses import dataclass
from math import gcd

import numpy as np

from rave_tools.data.audio_io import resample
from rave_tools.data.columns import Layout, OpenFiles

MARGIN = 512
"""Samples at the lower of both rates that are resampled on either side; soxr's filter (HQ) reaches less than 200."""

LONGEST_STEP = 0.02
"""Seconds. Where the samples common to both rates are rarer than this, a segment may begin at any sample."""


@dataclass(frozen=True)
class Segment:
    """A place in a file.

    Attributes:
        layout: of the file.
        start: first sample, at the file's rate.
        channel: which one; None for all.
    """

    layout: Layout
    start: int
    channel: int | None


@dataclass(frozen=True)
class Geometry:
    """Lengths at two rates.

    Attributes:
        length: samples of a segment at the model's rate.
        sampling_rate: of the model, in hertz.
    """

    length: int
    sampling_rate: int

    def ratio(self, rate: int) -> tuple[int, int]:
        """(out, in): so many samples of the model last as long as so many of a file of this rate."""
        common = gcd(rate, self.sampling_rate)
        return self.sampling_rate // common, rate // common

    def needed(self, rate: int) -> int:
        """Samples at a file's rate that make one segment."""
        out, into = self.ratio(rate)
        return -(-self.length * into // out)

    def step(self, rate: int) -> int:
        """Segments begin at multiples of this: the samples of a file where the resampled file has one too.

        At 24 kHz these are all 2 samples of 48 kHz and all 147 (3 ms) of 44.1 kHz. Between rates that hardly share
        any, every sample may begin a segment, which then is the file resampled from that sample on.
        """
        into = self.ratio(rate)[1]
        return into if into <= rate * LONGEST_STEP else 1

    def margin(self, rate: int) -> int:
        """Samples at a file's rate to read on either side; a whole number of samples at both rates."""
        if rate == self.sampling_rate:
            return 0
        into = self.ratio(rate)[1]
        least = MARGIN * rate / min(rate, self.sampling_rate)
        return int(-(-least // into) * into)

    def draw(self, place: Layout, generator: np.random.Generator, begin: int = 0) -> int:
        """A random start, every possible one as likely; `begin` where the file is shorter than a segment."""
        step = self.step(place.rate)
        first = -(-begin // step)
        last = (place.frames - self.needed(place.rate)) // step
        return begin if last < first else int(generator.integers(first, last + 1)) * step

    def read(self, segment: Segment, files: OpenFiles) -> tuple[np.ndarray, int]:
        """Read and resample a segment.

        Args:
            segment: where.
            files: that are open.

        Returns:
            float32, shape (1 or C, length), followed by silence where the file ends; and how many samples are sound.

        Raises:
            AudioError: the file cannot be read.
        """
        place, start = segment.layout, segment.start
        out, into = self.ratio(place.rate)
        margin = self.margin(place.rate)
        first, last = start - margin, start + self.needed(place.rate) + margin
        begin, end = max(first, 0), min(last, place.frames)
        audio = files.read(place, begin, end - begin, segment.channel)
        if begin > first:
            audio = np.pad(audio, ((0, 0), (begin - first, 0)))
        audio = resample(audio, place.rate, self.sampling_rate)
        offset = margin // into * out
        audio = audio[:, offset : offset + self.length]
        valid = max(0, min(self.length, -(-(place.frames - start) * out // into), audio.shape[1]))
        if valid == self.length:
            return audio, valid
        whole = np.zeros((audio.shape[0], self.length), np.float32)
        whole[:, :valid] = audio[:, :valid]
        return whole, valid
