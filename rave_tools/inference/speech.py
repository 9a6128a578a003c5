"""PESQ and STOI, measures of speech, from packages that are loaded when they are asked for."""

import importlib
import warnings
from types import ModuleType

import numpy as np
from torch import Tensor

from rave_tools.criteria.measures import SILENCE, Measure, Undefined
from rave_tools.data.audio_io import resample
from rave_tools.errors import UserError

PESQ_RATE, STOI_RATE = 16000, 10000


def pesq(reference: Tensor, estimate: Tensor, rate: int) -> float:
    """Wide-band PESQ at 16 kHz of each channel that has speech, then the mean.

    Args:
        reference: shape (C, n).
        estimate: same shape.
        rate: in hertz.

    Returns:
        MOS-LQO, about 1 to 4.64.

    Raises:
        Undefined: silent, too short, or no utterances in it.
        UserError: the package is missing.

    Source: ITU-T P.862.2, 2007.
    """
    package = _load("pesq")
    values, reasons = [], []
    for x, y in zip(_at(reference, rate, PESQ_RATE), _at(estimate, rate, PESQ_RATE), strict=True):
        if np.square(x, dtype=np.float64).mean() < SILENCE:
            reasons.append("silent")
            continue
        try:
            values.append(float(package.pesq(PESQ_RATE, x, y, "wb")))
        except package.NoUtterancesError:
            reasons.append("no utterances")
        except package.BufferTooShortError:
            reasons.append("too short (under 0.25 s)")
        except package.PesqError as error:
            reasons.append(f"PESQ failed: {_text(error)}")
    return _mean(values, reasons)


def stoi(reference: Tensor, estimate: Tensor, rate: int) -> float:
    """Short-time objective intelligibility at 10 kHz of each channel that has speech, then the mean.

    Args:
        reference: shape (C, n).
        estimate: same shape.
        rate: in hertz.

    Returns:
        Mean correlation of envelopes, about 0 to 1.

    Raises:
        Undefined: silent, or less than some 0.4 s without its pauses.
        UserError: the package is missing.

    Source: Taal et al., "An Algorithm for Intelligibility Prediction of Time-Frequency Weighted Noisy Speech", 2011.
    """
    package = _load("pystoi")
    values, reasons = [], []
    for x, y in zip(_at(reference, rate, STOI_RATE), _at(estimate, rate, STOI_RATE), strict=True):
        if np.square(x, dtype=np.float64).mean() < SILENCE:
            reasons.append("silent")
            continue
        with warnings.catch_warnings():
            # pystoi warns and answers 1e-5 where it has too few frames; that is no measurement.
            warnings.simplefilter("error", RuntimeWarning)
            try:
                values.append(float(package.stoi(x, y, STOI_RATE, extended=False)))
            except (RuntimeWarning, ValueError):
                reasons.append("too short (under 0.4 s of sound)")
    return _mean(values, reasons)


PESQ = Measure(
    "pesq", "PESQ", "MOS", True, True,
    "predicted opinion of telephone listeners, about 1 to 4.64, wide band, at 16 kHz", pesq,
)  # fmt: skip
STOI = Measure("stoi", "STOI", "", True, True, "predicted intelligibility of speech, about 0 to 1, at 10 kHz", stoi)
SPEECH = (PESQ, STOI)
PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}


def need(names: list[str]) -> None:
    """See that the packages of these measures are there, before hours are spent.

    Raises:
        UserError: one is missing; names the extra.
    """
    for name in names:
        if name in PACKAGES:
            _load(PACKAGES[name])


def _load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        asked = {package: measure for measure, package in PACKAGES.items()}[name]
        raise UserError(
            f"--measures {asked} needs the package {name}, which cannot be loaded ({error}); "
            "install it with pip install 'rave_tools[metrics]'"
        ) from error


def _at(sound: Tensor, rate: int, wanted: int) -> np.ndarray:
    return resample(sound.float().cpu().numpy(), rate, wanted)


def _mean(values: list[float], reasons: list[str]) -> float:
    if not values:
        raise Undefined(", ".join(dict.fromkeys(reasons)))
    return sum(values) / len(values)


def _text(error: Exception) -> str:
    value = error.args[0] if error.args else type(error).__name__
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
