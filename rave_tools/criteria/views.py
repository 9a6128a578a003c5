"""Which pair of signals a judge should see."""

from torch import Tensor

from rave_tools.contracts import Reconstruction


class Waveform:
    """The waveforms as they are."""

    def __call__(self, reconstruction: Reconstruction) -> tuple[Tensor, Tensor]:
        """-> target and estimate, (B, C, T)."""
        return reconstruction.target, reconstruction.estimate


class Bands:
    """The codec's bands, without the frames whose receptive field reaches beyond the excerpt.

    At the borders of an excerpt the codec sees silence where the sound went on, and would be blamed for what it could
    not know. A crop that left too little to judge is shortened on both sides in proportion.

    Args:
        valid_crop: leave these frames out.
        minimum_frames: frames that the judge needs at least, as many as its largest window.
    """

    def __init__(self, *, valid_crop: bool = True, minimum_frames: int = 2048) -> None:
        self.valid_crop = valid_crop
        self.minimum_frames = minimum_frames

    def crop(self, frames: int, ratio: int, receptive_field: tuple[int, int]) -> tuple[int, int]:
        """The frames that are kept.

        Args:
            frames: of the excerpt.
            ratio: samples per frame.
            receptive_field: samples to the left and right that the codec looks at.

        Returns:
            First frame and the one after the last; ``1 - (stop - start) / frames`` is the share that is thrown away.
        """
        if not self.valid_crop:
            return 0, frames
        left, right = receptive_field
        return valid_crop(frames, left // ratio, -(-right // ratio), self.minimum_frames)

    def __call__(self, reconstruction: Reconstruction) -> tuple[Tensor, Tensor]:
        """-> target and estimate, (B, C*M, frames kept)."""
        target, estimate = reconstruction.target_bands, reconstruction.estimate_bands
        frames = target.shape[-1]
        start, stop = self.crop(frames, reconstruction.target.shape[-1] // frames, reconstruction.receptive_field)
        return target[..., start:stop], estimate[..., start:stop]


def valid_crop(length: int, left: int, right: int, minimum: int) -> tuple[int, int]:
    """Cut from both ends, but never below a minimum: then both cuts shrink in proportion.

    Args:
        length: before cutting.
        left: wanted cut at the start.
        right: wanted cut at the end.
        minimum: what must be left, where the length itself allows it.

    Returns:
        First index kept and the one after the last.
    """
    if min(length, left, right, minimum) < 0:
        raise ValueError(
            f"lengths are not negative, got length {length}, left {left}, right {right}, minimum {minimum}"
        )
    affordable = max(0, length - minimum)
    wanted = left + right
    if wanted > affordable:
        left = affordable * left // wanted
        right = affordable - left
    return left, length - right
