"""Design of pseudo-quadrature mirror filter banks (PQMF): one prototype, cosine-modulated into bands.

Source: Nguyen, "Near-perfect-reconstruction pseudo-QMF banks", IEEE TSP 1994; the prototype's cutoff follows Lin and
Vaidyanathan, "A Kaiser window approach for the design of prototype filters of cosine modulated filterbanks", IEEE SPL
1998.
"""

import math

import numpy as np
import torch
from scipy.optimize import fmin
from scipy.signal import firwin, kaiserord
from torch import Tensor


def kaiser_lowpass(cutoff: float, attenuation: float) -> np.ndarray:
    """Odd-length Kaiser low-pass whose transition is as wide as its pass band.

    Args:
        cutoff: in radians per sample.
        attenuation: of the stop band, in dB (positive).

    Returns:
        The impulse response. Shape (length,), length odd.
    """
    length, beta = kaiserord(attenuation, cutoff / math.pi)
    return firwin(2 * (length // 2) + 1, cutoff, window=("kaiser", beta), scale=False, fs=2 * math.pi)


def reconstruction_error(prototype: np.ndarray, bands: int) -> float:
    """Largest violation of the power-complementary condition: the autocorrelation must vanish at multiples of 2M."""
    autocorrelation = np.correlate(prototype, prototype, "full")[len(prototype) - 1 :]
    return float(np.abs(autocorrelation[:: 2 * bands][1:]).max())


def design_prototype(attenuation: float, bands: int) -> np.ndarray:
    """Kaiser prototype with the cutoff that reconstructs best, found by simplex search from 1/M.

    Args:
        attenuation: of rejected bands, in dB (positive; 40 is short and leaky, 100 long and clean).
        bands: M.

    Returns:
        The prototype. Shape (length,), length odd.
    """

    def objective(cutoff: np.ndarray) -> float:
        return reconstruction_error(kaiser_lowpass(cutoff[0], attenuation), bands)

    return kaiser_lowpass(fmin(objective, 1 / bands, disp=0)[0], attenuation)


def modulate(prototype: Tensor, bands: int) -> Tensor:
    """Shift the prototype to M bands: h_k[n] = 2 h[n] cos((2k + 1) pi n / 2M + (-1)^k pi / 4), n centred on zero.

    Args:
        prototype: shape (length,), length odd.
        bands: M.

    Returns:
        The bank. Shape (M, length).
    """
    band = torch.arange(bands).reshape(-1, 1)
    half = prototype.shape[-1] // 2
    time = torch.arange(-half, half + 1)
    sign = torch.where(band % 2 == 0, 1.0, -1.0)
    phase = (2 * band + 1) * math.pi / (2 * bands) * time + sign * math.pi / 4
    return 2 * prototype * torch.cos(phase)


def pad_to_power_of_two(bank: Tensor) -> Tensor:
    """Centre the filters in the next power of two, so that a polyphase split by M always divides them."""
    missing = 2 ** math.ceil(math.log2(bank.shape[-1])) - bank.shape[-1]
    return torch.nn.functional.pad(bank, (missing // 2, missing - missing // 2))


def pqmf_bank(attenuation: float, bands: int) -> tuple[Tensor, Tensor]:
    """Prototype and analysis bank of an M-band PQMF.

    Args:
        attenuation: of rejected bands, in dB.
        bands: M, a power of two.

    Returns:
        prototype of shape (length,) and bank of shape (M, 2^p), both float32.

    Raises:
        ValueError: bands is not a power of two.
    """
    if bands < 1 or bands & (bands - 1):
        raise ValueError(f"a PQMF needs a power of two as number of bands, got {bands}; change CachedPQMF.n_band")
    prototype = torch.from_numpy(design_prototype(attenuation, bands)).float()
    return prototype, pad_to_power_of_two(modulate(prototype, bands))
