"""Recursive filters and level followers on float32 arrays, fast enough to run on every crop."""

import numpy as np
import scipy.signal

PIECE = 16384
"""Samples worked on at a time where a pass over everything would leave the cache."""


def allpass(audio: np.ndarray, angle: float, radius: float, *, block: int = 32) -> np.ndarray:
    """Second-order all-pass filter, started at rest; the result takes the place of the input.

    A recursive filter is bound by the latency of its recursion, one sample after the other. Here the signal is cut into
    blocks: what a block's own samples contribute is one matrix product with the lower triangle of the impulse response,
    what went before enters through the filter's two states, and only these, once per block, are recursive. With 1/A(z)
    having the impulse response q, the powers of the state matrix [[-a1, 1], [-a2, 0]] are made of q alone. Twice as
    fast as scipy.signal.lfilter in float32, and 25 dB more exact, as the recursion runs in float64.

    Args:
        audio: float32, shape (C, T).
        angle: of the poles, in radians per sample, strictly between 0 and pi.
        radius: of the poles, below 1.
        block: samples per block.

    Returns:
        The filtered audio, shape (C, T); `audio` itself unless it had to be padded to whole blocks.
    """
    channels, samples = audio.shape
    blocks = -(-samples // block)
    if blocks * block != samples:
        audio = np.concatenate([audio, np.zeros((channels, blocks * block - samples), np.float32)], axis=1)
    audio = np.ascontiguousarray(audio)
    a1, a2 = -2 * radius * np.cos(angle), radius * radius
    index = np.arange(block + 1)
    q = radius**index * (np.sin((index + 1) * angle) / np.sin(angle))
    response = a2 * q
    response[1:] += a1 * q[:-1]
    response[2:] += q[:-2]
    to_state = np.empty((block, 2), np.float32)
    to_state[:, 0] = response[block:0:-1]
    to_state[:, 1] = -a2 * response[block - 1 :: -1]
    to_state[-1, 1] += 1
    from_state = np.zeros((2, block), np.float32)
    from_state[0] = q[:block]
    from_state[1, 1:] = q[: block - 1]
    rows = audio.reshape(channels * blocks, block)
    states = _states((rows @ to_state).reshape(channels, blocks, 2), q[block - 2 :], a2, a2**block).reshape(-1, 2)
    triangle = _toeplitz(response[:block])
    # Piece by piece, so that what is in between stays in the cache and needs no fresh memory.
    for first in range(0, len(rows), PIECE // block):
        piece = slice(first, first + PIECE // block)
        result = rows[piece] @ triangle
        result += states[piece] @ from_state
        rows[piece] = result
    return audio[:, :samples]


def _toeplitz(response: np.ndarray) -> np.ndarray:
    """The matrix whose row i is the impulse response delayed by i; shape (n, n)."""
    size = len(response)
    padded = np.zeros(2 * size - 1, np.float32)
    padded[size - 1 :] = response
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::-1].copy()


def _states(pushed: np.ndarray, q: np.ndarray, a2: float, determinant: float) -> np.ndarray:
    """The state in front of every block, from what each block pushes into it.

    s[k+1] = M s[k] + v[k] with a 2 x 2 matrix M; by Cayley-Hamilton each component obeys the second-order recursion
    with the trace and the determinant of M, which lfilter runs for both.

    Args:
        pushed: v, shape (C, K, 2).
        q: the last three values of the impulse response of 1/A(z), at block - 2, block - 1 and block.
        a2: squared radius of the poles.
        determinant: of M.

    Returns:
        Shape (C, K, 2), float32.
    """
    m00, m01, m10, m11 = q[2], q[1], -a2 * q[1], -a2 * q[0]
    first, second = pushed[..., 0].astype(np.float64), pushed[..., 1].astype(np.float64)
    drive = np.zeros((2, *first.shape))
    drive[0, :, 1:] = first[:, :-1]
    drive[0, :, 2:] += m01 * second[:, :-2] - m11 * first[:, :-2]
    drive[1, :, 1:] = second[:, :-1]
    drive[1, :, 2:] += m10 * first[:, :-2] - m00 * second[:, :-2]
    states = scipy.signal.lfilter(np.ones(1), np.array([1, -(m00 + m11), determinant]), drive)
    return np.ascontiguousarray(states.transpose(1, 2, 0), np.float32)


def follow(
    magnitude: np.ndarray, *, attack: float, release: float, sampling_rate: int, initial: float = 0.0
) -> np.ndarray:
    """Smoothed level: a one-pole filter with one coefficient for rising and one for falling.

    Args:
        magnitude: absolute values, shape (T,).
        attack: time constant in seconds while rising.
        release: time constant in seconds while falling.
        sampling_rate: in hertz.
        initial: level before the first sample.

    Returns:
        Shape (T,), float64.
    """
    up, down = (
        1.0 if seconds * sampling_rate <= 1 else 1 - np.exp(-1 / (seconds * sampling_rate))
        for seconds in (attack, release)
    )
    if up == down:
        return scipy.signal.lfilter([up], [1, up - 1], magnitude, zi=[(1 - up) * initial])[0]
    level, result = initial, []
    for value in magnitude.tolist():
        difference = value - level
        level += difference * (up if difference > 0 else down)
        result.append(level)
    return np.array(result)
