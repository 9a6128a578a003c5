"""Neutone FX: the host module of nn~ inside of the SDK's wrapper, as a ``.nm`` file.

The SDK writes the queue for blocks of any length, the change of sample rates and of channels, and the metadata that the
plug-in reads; what it wraps is the same streaming module that ``.ts`` files hold. The file itself needs no SDK.
"""

import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List  # noqa: UP035 (the SDK's signatures, which TorchScript compares)

import torch
from torch import Tensor
from torch.nn import functional as F

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.errors import UserError
from rave_tools.export.deliver import Delivered, ExportFailed
from rave_tools.export.player import HostFacts
from rave_tools.export.prepare import ExportOptions, Measured, Prepared, prepare
from rave_tools.export.stateless import MODEL_OPTIONS, Run, measure_run, refuse_options
from rave_tools.export.verify import TOLERANCE_DB, Verification, cut, make_measure

LARGEST_BUFFER = 8192
"""Buffer sizes that the file declares as its own go up to there, in samples."""

REACH = 4.0
"""How far a latent's slider shifts it either way, in units of the latents (standard deviations of the prior)."""

SLIDERS = 4
"""The plug-in has no more."""


@dataclass(frozen=True)
class Card:
    """What the plug-in shows about a model.

    Attributes:
        name: at most 30 characters.
        authors: at most 5.
        description: one sentence for players, at most 150 characters.
        tags: at most 7 of at most 15 characters.
        version: of the model.
        experimental: marked so.
    """

    name: str
    authors: Sequence[str] = ("unknown",)
    description: str = "A neural audio model that plays what it hears in its own voice."
    tags: Sequence[str] = ("rave", "timbre transfer")
    version: str = "1"
    experimental: bool = True

    def check(self) -> None:
        """Refuse what the plug-in would cut.

        Raises:
            UserError: names the flag and both numbers.
        """
        limits = [
            ("--name", "characters", len(self.name), 30),
            ("--author", "authors", len(self.authors), 5),
            ("--description", "characters", len(self.description), 150),
            ("--tag", "tags", len(self.tags), 7),
            ("--tag", "characters", max(map(len, self.tags), default=0), 15),
        ]
        for flag, unit, number, limit in limits:
            if number > limit:
                raise UserError(f"{flag}: {number} {unit}, and Neutone shows at most {limit}")
        if not self.name or not self.authors:
            raise UserError("Neutone wants a name and an author: give --name and --author")


def sliders(facts: HostFacts) -> list[str]:
    """Names of the sliders: the first latents, temperature, and the noise branch's gain where there is one."""
    fixed = ["temperature", "noise"] if facts.has_noise else ["temperature"]
    shifted = min(SLIDERS - len(fixed), facts.latent_size)
    return [*(f"latent {i + 1}" for i in range(shifted)), *fixed]


def buffer_sizes(facts: HostFacts) -> list[int]:
    """Whole hops, doubled up to LARGEST_BUFFER."""
    sizes = [facts.hop]
    while 2 * sizes[-1] <= LARGEST_BUFFER:
        sizes.append(2 * sizes[-1])
    return sizes


def require_sdk() -> Any:
    """The SDK.

    Raises:
        UserError: names what is missing and how to get it.
    """
    try:
        import neutone_sdk
    except (ImportError, OSError) as error:
        # torchaudio, which the SDK imports, fails with OSError when it was built for another torch.
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"--format neutone needs the Neutone SDK, and it does not load ({reason}): pip install "
            "'rave_tools[neutone]' with a torchaudio made for the installed torch"
        ) from error
    return neutone_sdk


def make_wrapper(sdk: Any, prepared: Prepared, card: Card) -> Any:
    """The SDK's model around a host module.

    Args:
        sdk: the module neutone_sdk.
        prepared: the host module.
        card: what the plug-in shows.
    """
    facts = prepared.facts
    names = sliders(facts)
    texts = {
        "temperature": "How much is left to chance: 0 plays the same every time",
        "noise": "Level of the breath that the model adds",
    }

    class Wrapper(sdk.WaveformToWaveformBase):  # type: ignore[name-defined]
        """Sliders around encode and decode."""

        def __init__(self) -> None:
            self.shown_name = card.name
            self.shown_authors = list(card.authors)
            self.shown_description = card.description
            self.shown_technical = (
                f"rave_tools: {facts.sample_rate} Hz, {facts.hop} samples per latent, {facts.latent_size} latents, "
                f"{facts.latency} samples late"
            )
            self.shown_tags = list(card.tags)
            self.shown_version = card.version
            self.experimental = card.experimental
            self.mono_input = facts.channels == 1
            self.mono_output = facts.target_channels == 1
            self.rates = [facts.sample_rate]
            self.sizes = buffer_sizes(facts)
            self.latent_names = [name for name in names if name.startswith("latent")]
            self.unmoved = facts.latent_size - len(self.latent_names)
            self.turns_noise = facts.has_noise
            self.latency = facts.latency
            self.reach = REACH
            super().__init__(prepared.host)

        def get_model_name(self) -> str:
            return self.shown_name

        def get_model_authors(self) -> List[str]:  # noqa: UP006
            return self.shown_authors

        def get_model_short_description(self) -> str:
            return self.shown_description

        def get_model_long_description(self) -> str:
            return self.shown_description

        def get_technical_description(self) -> str:
            return self.shown_technical

        def get_tags(self) -> List[str]:  # noqa: UP006
            return self.shown_tags

        def get_model_version(self) -> str:
            return self.shown_version

        def is_experimental(self) -> bool:
            return self.experimental

        def get_neutone_parameters(self) -> List[Any]:  # noqa: UP006
            return [
                sdk.ContinuousNeutoneParameter(
                    name,
                    texts.get(name, f"Shifts {name} by up to {REACH:g}; the middle leaves it alone"),
                    default_value=1.0 if name in texts else 0.5,
                )
                for name in names
            ]

        @torch.jit.export
        def is_input_mono(self) -> bool:
            return self.mono_input

        @torch.jit.export
        def is_output_mono(self) -> bool:
            return self.mono_output

        @torch.jit.export
        def get_native_sample_rates(self) -> List[int]:  # noqa: UP006
            return self.rates

        @torch.jit.export
        def get_native_buffer_sizes(self) -> List[int]:  # noqa: UP006
            return self.sizes

        @torch.jit.export
        def calc_model_delay_samples(self) -> int:
            return self.latency

        def set_model_sample_rate_and_buffer_size(self, sample_rate: int, n_samples: int) -> bool:
            # Called before sound depends on it: the time to let TorchScript compile.
            self.model.get_methods()
            return True

        def reset_model(self) -> bool:
            self.model.set_reset(1)
            return True

        def do_forward_pass(self, x: Tensor, params: Dict[str, Tensor]) -> Tensor:  # noqa: UP006
            self.model.set_temperature(float(params["temperature"].item()))
            if self.turns_noise:
                self.model.set_noise(float(params["noise"].item()))
            z = self.model.encode(x.unsqueeze(0))
            shifts: List[Tensor] = []  # noqa: UP006
            for name in self.latent_names:
                shifts.append((params[name] * 2 - 1) * self.reach)
            shift = F.pad(torch.cat(shifts), [0, self.unmoved])
            return self.model.decode(z + shift.view(1, -1, 1))[0]

    return Wrapper()


@contextmanager
def quiet_sdk() -> Iterator[None]:
    """Silence what the SDK logs; errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@dataclass
class Played:
    """What a plug-in would hear and read.

    Attributes:
        output: shape (C', T').
        delay: announced, of the model and of its queue, in samples.
    """

    output: Tensor
    delay: int


@dataclass(frozen=True)
class Visit:
    """One visit of a plug-in.

    Attributes:
        buffer: samples per block.
        values: positions of the sliders, 0 to 1; SLIDERS of them.
        audio: shape (C, T).
    """

    buffer: int
    values: list[float]
    audio: Tensor = field(repr=False)


def play_as_plugin(path: str, sample_rate: int, visits: Sequence[Visit]) -> list[Played]:
    """Load a file without the SDK and do what the plug-in does."""
    torch.set_num_threads(1)
    module = torch.jit.load(path).eval()
    played = []
    with torch.no_grad():
        for visit in visits:
            module.set_daw_sample_rate_and_buffer_size(sample_rate, visit.buffer)
            module.reset()
            delay = module.calc_buffering_delay_samples() + module.calc_model_delay_samples()
            params = torch.tensor(visit.values)[:, None].repeat(1, visit.buffer)
            outputs = [
                module.forward(visit.audio[:, start:end].clone(), params).clone()
                for start, end in cut(visit.audio.shape[1], [visit.buffer])
            ]
            if module.is_resampling():
                raise ValueError(f"resampling at the model's own rate of {sample_rate} Hz")
            played.append(Played(torch.cat(outputs, 1), int(delay)))
    return played


def load_plugin(path: Path) -> Run:
    """A file as a function of blocks at its own rate, with sliders in the middle; its state is its own."""
    module = torch.jit.load(str(path)).eval()
    (sample_rate,) = module.get_native_sample_rates()
    params: list[Tensor] = []

    @torch.no_grad()
    def run(x: Tensor, knobs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if not params or params[0].shape[1] != x.shape[2]:
            module.set_daw_sample_rate_and_buffer_size(sample_rate, x.shape[2])
            params[:] = [torch.full((SLIDERS, x.shape[2]), 0.5)]
        return module.forward(x[0], params[0])[None], state

    return run


def verify_neutone(path: Path, measured: Measured) -> Verification:
    """Play a file in a process that has never seen the model or the SDK."""
    facts = measured.facts
    measure = make_measure(measured)
    audio = measure.audio[0]
    names = sliders(facts)
    still = [0.0 if name in ("temperature", "noise") else 0.5 for name in names]
    still += [0.0] * (SLIDERS - len(names))
    buffers = [*buffer_sizes(facts)[:3], max(1, facts.hop // 4), facts.hop + 1 + facts.hop // 3]
    visits = [Visit(buffer, still, audio) for buffer in buffers]
    first = buffers[0]
    garbage = audio[:, : 4 * first].clone()
    garbage[:, :3] = torch.tensor([float("nan"), float("inf"), 4e21])
    moved = [1.0, *still[1:]]
    visits += [Visit(first, moved, audio), Visit(first, still, audio), Visit(first, [1.0] * SLIDERS, garbage)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        played = pool.submit(play_as_plugin, str(path), facts.sample_rate, visits).result()
    result = Verification()
    for visit, heard in zip(visits[: len(buffers)], played, strict=False):
        error, decibels = measure.compare(heard.output[None], heard.delay - facts.offset)
        answer = f"max error {error:.1e} ({decibels:.0f} dB), {heard.delay} samples late as announced"
        name = f"buffers of {visit.buffer} samples equal the plain model"
        result.add(name, decibels <= TOLERANCE_DB, answer)
    shifted, again, dirty = (heard.output for heard in played[len(buffers) :])
    change = float((shifted - again).abs().max())
    result.add("the first latent's slider is heard", change > 0, f"changes the output by {change:.1e}")
    same = torch.equal(again, played[0].output)
    answer = "bit-equal to the first run" if same else "the output differs after a reset"
    result.add("reset forgets everything", same, answer)
    bad = int((~torch.isfinite(dirty)).sum())
    answer = f"{bad} samples are not finite"
    result.add("NaN, inf and garbage at the input leave the output finite", bad == 0, answer)
    return result


def export_neutone(
    codec: Autoencoder,
    path: Path,
    *,
    options: ExportOptions,
    card: Card,
    time_it: bool = True,
    report: Callable[[str], None] | None = None,
) -> Delivered:
    """Write a codec as a model of Neutone FX.

    Args:
        codec: trained; it stays as it is.
        path: ending in ``.nm``.
        options: what the file should be.
        card: what the plug-in shows.
        time_it: measure the speed of the file in a process of its own.
        report: told what happens.

    Raises:
        UserError: options that the format or the codec cannot meet; a missing extra.
        ExportFailed: the file is not what it claims; nothing is left behind.
    """
    tell = report or (lambda line: None)
    card.check()
    refuse_options("neutone", options, honoured=(*MODEL_OPTIONS, "processor"))
    for side, channels in (("takes", codec.channels), ("gives", options.channels or codec.channels)):
        if channels > 2:
            raise UserError(f"Neutone plays one or two channels, this model {side} {channels}: take another --format")
    sdk = require_sdk()
    tell("preparing: folding weights, finding the grid with the least latency")
    prepared = prepare(codec, options)
    passing = path.with_name(f".{path.stem}.{os.getpid()}.part.nm")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".neutone") as folder:
            tell("compiling with the Neutone SDK")
            with quiet_sdk():
                sdk.utils.save_neutone_model(
                    make_wrapper(sdk, prepared, card), Path(folder), speed_benchmark=False, test_offline_mode=False
                )
            (Path(folder) / "model.nm").replace(passing)
        tell("verifying the saved file against the plain model")
        verification = verify_neutone(passing, prepared)
        if not verification.passed:
            reasons = "\n  ".join(verification.failures())
            raise ExportFailed(f"the file failed its verification and was not kept ({path}):\n  {reasons}")
        if time_it:
            verification.speed = measure_run(load_plugin, passing, prepared.facts)
        passing.replace(path)
    finally:
        passing.unlink(missing_ok=True)
    return Delivered(path, prepared.facts, verification, path.stat().st_size, prepared.warnings)
