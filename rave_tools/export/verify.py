"""Is the file what it claims to be? It is loaded anew, fed as hosts feed it, and compared with the plain model."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rave_tools.export.nn_tilde import LABELS, NUMBERS
from rave_tools.export.plain import PlainModel
from rave_tools.export.prepare import Measured, Prepared
from rave_tools.export.speed import Speed

TOLERANCE_DB = -80.0
"""A stream that differs more than this from the plain model, relative to its peak, is another model."""

TOLERANCES_DB = {"fp32": TOLERANCE_DB, "fp16": -45.0, "bf16": -25.0}
"""The same by precision: rounded matrices err by some -60 dB (fp16) and -40 dB (bf16); the table says by how much."""

SAME_CODES = {"fp32": 0.99, "fp16": 0.9, "bf16": 0.75}
"""Share of the first codes of all frames that a stream of a discrete model must have in common with the plain model."""

QUIET = 1e-4
"""A peak of -80 dB: an untrained model may answer with less, and its rounding errors are nobody's concern."""

BLOCKS = (1, 2, 1, 8, 4, 16, 1, 3, 2, 4, 1, 8)
"""Hops per block, in an order that no host would choose; repeated until the signal ends."""

SHORT_BLOCKS = (37, 64, 64, 128, 64, 64, 512)
"""Samples per block for the queue, which the first one sets going: before it nothing would be a hop late."""


@dataclass(frozen=True)
class Check:
    """One question about a file.

    Attributes:
        name: the question.
        passed: whether the file may be kept.
        answer: in numbers.
    """

    name: str
    passed: bool
    answer: str


@dataclass
class Verification:
    """Every question that was asked about a file, and how fast it runs."""

    checks: list[Check] = field(default_factory=list)
    speed: Speed | None = None

    @property
    def passed(self) -> bool:
        """Whether the file may be kept."""
        return all(check.passed for check in self.checks)

    def failures(self) -> list[str]:
        """What went wrong, in words."""
        return [f"{check.name}: {check.answer}" for check in self.checks if not check.passed]

    def add(self, name: str, passed: bool, answer: str) -> None:
        """Note the answer to a question."""
        self.checks.append(Check(name, passed, answer))


def cut(length: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, end) of blocks that cycle through sizes, as long as whole blocks fit."""
    start = i = 0
    while start + sizes[i % len(sizes)] <= length:
        yield start, start + sizes[i % len(sizes)]
        start += sizes[i % len(sizes)]
        i += 1


def play(
    module: torch.jit.ScriptModule, audio: Tensor, sizes: Sequence[int], methods: Sequence[str] = ("forward",)
) -> Tensor:
    """Feed audio block by block as hosts do, in inference mode and from one buffer that is written over.

    Args:
        module: as loaded.
        audio: shape (B, C, T).
        sizes: of blocks, in samples, repeated.
        methods: applied one after the other to each block.

    Returns:
        Shape (B, C', T'), T' the sum of the blocks that fit.
    """
    outputs = []
    buffer = torch.zeros(audio.shape[0], audio.shape[1], max(sizes))
    with torch.inference_mode():
        for start, end in cut(audio.shape[-1], sizes):
            block = buffer[..., : end - start]
            block.copy_(audio[..., start:end])
            for method in methods:
                block = getattr(module, method)(block)
            outputs.append(block.clone())
            buffer.fill_(1e3)
    return torch.cat(outputs, -1)


def make_quiet(module: torch.jit.ScriptModule) -> None:
    """Turn everything random off and forget everything heard."""
    module.set_temperature(0.0)
    module.set_noise(0.0)
    module.set_buffered(0)
    module.set_reset(1)


def difference(estimate: Tensor, target: Tensor) -> tuple[float, float]:
    """Largest absolute difference, and the same in dB relative to the target's peak (at least QUIET)."""
    error = float((estimate - target).abs().max())
    peak = float(target.abs().max())
    return error, 20 * math.log10(max(error, 1e-12) / max(peak, QUIET))


@dataclass(frozen=True)
class Choices:
    """Codes of the plain model. Where two are equally near, rounding decides, and a stream may choose the other one.

    Attributes:
        model: decodes them.
        codes: shape (2, K, N).
        hop: samples per frame.
        reach: samples to the right of an output sample that it looks at.
    """

    model: PlainModel
    codes: Tensor
    hop: int
    reach: int

    def follow(self, codes: Tensor, settled: int) -> tuple[Tensor, float]:
        """What the plain model makes of a stream's codes, and how often the first of a frame is the plain model's own.

        Args:
            codes: of the stream, late by some frames. Shape (2, K, N).
            settled: samples until its state holds nothing but signal.
        """
        start = settled // self.hop + 1

        def agreement(late: int) -> float:
            mine = codes[:, 0, start + late :]
            own = self.codes[: codes.shape[0], 0, start : start + mine.shape[-1]]
            return float((mine[..., : own.shape[-1]] == own).float().mean())

        late = max(range(start), key=agreement)
        audio = self.model.heard(codes[..., late:])
        return audio[..., : audio.shape[-1] - self.reach], agreement(late)


@dataclass(frozen=True)
class Measure:
    """A test signal and what a stream without delay would make of it.

    Attributes:
        audio: shape (2, C, T).
        expected: the plain model's answer to the audio shifted by the offset. Shape (2, C', >= T).
        settled: from that sample of the stream on, its state holds nothing but signal.
        choices: of a discrete model.
    """

    audio: Tensor
    expected: Tensor
    settled: int
    choices: Choices | None = None

    def compare(self, output: Tensor, delay: int) -> tuple[float, float]:
        """Stream against plain model, late by ``delay`` samples; see difference."""
        end = min(output.shape[-1], self.expected.shape[-1] + delay)
        start = self.settled + max(BLOCKS)
        return difference(output[..., start:end], self.expected[: output.shape[0], :, start - delay : end - delay])


def verdict(
    measure: Measure, output: Tensor, delay: int, *, precision: str, encode: Callable[[], Tensor]
) -> tuple[bool, str]:
    """Whether a stream equals the plain model, and by how much.

    A discrete model whose codes differ where two are equally near is measured against what the plain model makes of
    the stream's own codes; most of them must be the plain model's all the same.

    Args:
        measure: the test signal.
        output: of the stream. Shape (B, C', T).
        delay: of it, in samples.
        precision: of the matrices, which sets the tolerance.
        encode: plays the same signal to codes.
    """
    error, decibels = measure.compare(output, delay)
    answer = f"max error {error:.1e} ({decibels:.0f} dB)"
    if decibels <= TOLERANCES_DB[precision] or measure.choices is None:
        return decibels <= TOLERANCES_DB[precision], answer
    expected, share = measure.choices.follow(encode(), measure.settled)
    error, decibels = replace(measure, expected=expected).compare(output, delay)
    answer = f"with its own codes max error {error:.1e} ({decibels:.0f} dB); {share:.1%} of the first are the same"
    return decibels <= TOLERANCES_DB[precision] and share >= SAME_CODES[precision], answer


def make_measure(prepared: Measured) -> Measure:
    """Noise long enough to fill every state and to hear every block size."""
    facts, reference = prepared.facts, prepared.reference
    left, right = prepared.receptive_field
    settled = -(-(facts.latency + facts.hop + left) // facts.hop) * facts.hop
    length = settled + facts.hop * (sum(BLOCKS) + max(BLOCKS))
    generator = torch.Generator().manual_seed(3)
    whole = -(-(length + right + facts.offset) // facts.hop) * facts.hop
    audio = 0.3 * torch.randn(2, facts.channels, whole, generator=generator)
    moved = F.pad(audio, (facts.offset, 0))[..., :whole]
    choices = None
    if isinstance(reference, PlainModel) and reference.discrete:
        choices = Choices(reference, reference.shown(moved), facts.hop, right)
    return Measure(audio[..., :length], reference(moved)[..., : whole - right], settled, choices)


def check_sound(module: torch.jit.ScriptModule, prepared: Prepared, result: Verification) -> None:
    """Streams of odd block sizes against the plain model at the announced latency and offset."""
    facts = prepared.facts
    measure = make_measure(prepared)
    rest = facts.latency - facts.offset
    hops = [hops * facts.hop for hops in BLOCKS]

    def ask(name: str, output: Tensor, delay: int, sizes: Sequence[int]) -> None:
        def encode() -> Tensor:
            make_quiet(module)
            return play(module, measure.audio[: output.shape[0]], sizes, ("encode",))

        result.add(name, *verdict(measure, output, delay, precision=facts.precision, encode=encode))

    make_quiet(module)
    odd = play(module, measure.audio, hops)
    ask("blocks of 1 to 16 hops in any order, 2 rows, equal the plain model", odd, rest, hops)
    make_quiet(module)
    single = play(module, measure.audio[:1], [facts.hop])
    ask("blocks of 1 hop equal the plain model", single, rest, [facts.hop])
    two = [facts.hop * 2]
    make_quiet(module)
    halves = play(module, measure.audio[:1], two, ("encode", "decode"))
    make_quiet(module)
    error, decibels = difference(halves, play(module, measure.audio[:1], two))
    answer = f"max error {error:.1e} ({decibels:.0f} dB)"
    result.add("encode, then decode, equals forward", decibels <= TOLERANCES_DB[facts.precision], answer)
    make_quiet(module)
    short = play(module, measure.audio[:1], SHORT_BLOCKS)
    late = module.get_latency()[0] - facts.offset
    ask("blocks of 64 samples (and others) through the queue equal the plain model", short, late, [facts.hop])
    make_quiet(module)
    again = play(module, measure.audio[:1, :, : 8 * facts.hop], [facts.hop])
    same = torch.equal(again, single[..., : again.shape[-1]])
    answer = "bit-equal to the first run" if same else "the first blocks differ after a reset"
    result.add("reset forgets everything", same, answer)


def check_plain_sound(module: torch.jit.ScriptModule, prepared: Prepared, result: Verification) -> None:
    """A file without streaming, on one whole block."""
    measure = make_measure(prepared)
    make_quiet(module)
    whole = measure.expected.shape[-1] // prepared.facts.hop * prepared.facts.hop
    audio = measure.audio[..., :whole]
    error, decibels = difference(play(module, audio, [audio.shape[-1]]), prepared.reference(audio))
    answer = f"max error {error:.1e} ({decibels:.0f} dB)"
    result.add("one whole block equals the plain model", decibels <= TOLERANCES_DB[prepared.facts.precision], answer)


def check_garbage(module: torch.jit.ScriptModule, prepared: Prepared, result: Verification) -> None:
    """Not-a-numbers and uninitialised memory come in; what comes out must be finite, at once and later."""
    facts = prepared.facts
    make_quiet(module)
    audio = torch.zeros(1, facts.channels, 4 * facts.hop)
    audio[..., 0], audio[..., 1], audio[..., 2], audio[..., 3] = math.nan, math.inf, -math.inf, 4e21
    bad = int((~torch.isfinite(play(module, audio, [facts.hop]))).sum())
    controls = torch.full((1, facts.latent_size, 1), math.nan)
    with torch.inference_mode():
        bad += int((~torch.isfinite(module.decode(controls))).sum())
    module.set_reset(1)
    module.set_temperature(1.0)
    module.set_noise(1.0)
    bad += int((~torch.isfinite(play(module, torch.randn(2, facts.channels, 8 * facts.hop), [facts.hop]))).sum())
    result.add("NaN, inf and garbage at the input leave the output finite", bad == 0, f"{bad} samples are not finite")


def check_methods(module: torch.jit.ScriptModule, prepared: Prepared, result: Verification) -> None:
    """What nn~ reads before it plays: methods, their ratios, shapes and labels."""
    facts = prepared.facts
    make_quiet(module)
    wrong = []
    for method in module.get_methods():
        params = getattr(module, f"{method}_params", None)
        if not isinstance(params, Tensor) or params.numel() != 4:
            wrong.append(f"{method}_params is not a tensor of 4 numbers")
            continue
        c_in, r_in, c_out, r_out = (int(number) for number in params)
        for rows, hops in ((1, 1), (2, 4)):
            x = torch.zeros(rows, hops * facts.hop // r_in, c_in).transpose(1, 2)
            with torch.inference_mode():
                y = getattr(module, method)(x)
            if y.dtype != torch.float32 or tuple(y.shape) != (rows, c_out, hops * facts.hop // r_out):
                wrong.append(f"{method} answered {tuple(y.shape)} {y.dtype} to {tuple(x.shape)}")
    wrong += [f"{labels} is missing" for labels in LABELS if not hasattr(module, labels)]
    if "forward" not in module.get_methods():
        wrong.append("no method forward")
    answer = "; ".join(wrong) or ", ".join(module.get_methods())
    result.add("methods, ratios and labels as nn~ 1.5 and 1.6 want them", not wrong, answer)


def check_attributes(module: torch.jit.ScriptModule, prepared: Prepared, result: Verification) -> None:
    """Setters are called outside inference mode after playing inside; getters answer tuples."""
    examples = {0: True, 1: 1, 2: 0.5}
    facts = prepared.facts
    make_quiet(module)
    play(module, torch.zeros(1, facts.channels, facts.hop), [facts.hop])
    wrong = []
    for name in module.get_attributes():
        params = getattr(module, f"{name}_params")
        before = getattr(module, f"get_{name}")()
        if params.ndim != 1 or not isinstance(before, tuple) or len(before) != params.numel():
            wrong.append(f"get_{name} answers {before!r}, which nn~ 1.6 cannot read")
        answer = getattr(module, f"set_{name}")(*[examples[int(code)] for code in params])
        if (answer == 0) == (name == "latency"):
            wrong.append(f"set_{name} answers {answer}")
        if name != "latency":
            getattr(module, f"set_{name}")(*before)
    for fact in NUMBERS[:9]:
        if not isinstance(getattr(module, fact, None), int):
            wrong.append(f"{fact} is missing")
    result.add("attributes can be set and read", not wrong, "; ".join(wrong) or ", ".join(module.get_attributes()))


def check_stereo(module: torch.jit.ScriptModule, prepared: Prepared, result: Verification) -> None:
    """The RAVE VST: in stereo mode two rows of all latents become two channels; it writes into what encode answers."""
    facts = prepared.facts
    make_quiet(module)
    if facts.channels > 2:
        result.add("stereo mode of the RAVE VST", True, f"does not apply to {facts.channels} channels")
        return
    with torch.inference_mode():
        z = module.encode(torch.zeros(1, facts.channels, facts.hop))
        twice = module.encode(torch.zeros(1, facts.channels, facts.hop))
    module.set_stereo_mode(True)
    with torch.inference_mode():
        y = module.decode(torch.zeros(2, facts.full_latent_size, 4))
    module.set_stereo_mode(False)
    fresh = z.data_ptr() != twice.data_ptr()
    passed = fresh and tuple(y.shape) == (1, 2, 4 * facts.hop)
    answer = f"decode answers {tuple(y.shape)}" + ("" if fresh else "; encode answers its own state")
    result.add("stereo mode of the RAVE VST", passed, answer)


def check_prior(module: torch.jit.ScriptModule, prepared: Prepared, result: Verification) -> None:
    """The prior at temperature 0, where it is deterministic, in odd blocks and beside a row that is not."""
    facts, sampler = prepared.facts, prepared.sampler
    make_quiet(module)
    cold = torch.zeros(1, 1, sum(BLOCKS))
    with torch.no_grad():
        noise = torch.rand(1, facts.latent_size, cold.shape[2])
        expected, _ = sampler(cold, noise, sampler.silence(1))
    whole = play(module, cold, [cold.shape[2]], ("prior",))
    module.set_reset(1)
    odd = play(module, cold, BLOCKS, ("prior",))
    error = max(difference(whole, expected)[0], difference(odd, expected)[0])
    good = difference(whole, expected)[1] <= TOLERANCE_DB and difference(odd, expected)[1] <= TOLERANCE_DB
    result.add("prior: blocks of 1 to 16 frames in any order equal the plain prior", good, f"max error {error:.1e}")
    warm = torch.cat([cold, torch.ones_like(cold)])
    beside = play(module, warm, BLOCKS, ("prior",))
    error, decibels = difference(beside[:1], expected)
    result.add("prior: rows are independent", decibels <= TOLERANCE_DB, f"max error {error:.1e} ({decibels:.0f} dB)")
    wild = torch.tensor([math.nan, math.inf, -math.inf, 4e21, -1.0, 1.0]).repeat(1, 1, 4)
    bad = int((~torch.isfinite(play(module, wild, [3], ("prior",)))).sum()) + int((~torch.isfinite(beside)).sum())
    result.add("prior: temperatures that are none leave the latents finite", bad == 0, f"{bad} numbers are not finite")
    with torch.inference_mode():
        module.decode(module.prior(torch.ones(1, 1, 2)))
    module.set_reset(1)


def verify(path: Path, prepared: Prepared, speed: Speed | None = None) -> Verification:
    """Load a file and ask it everything.

    Args:
        path: the file.
        prepared: what it was made of.
        speed: measured apart, in a process of its own.

    Returns:
        All answers; ``passed`` says whether the file may be kept.
    """
    module = torch.jit.load(str(path), map_location="cpu").eval()
    result = Verification(speed=speed)
    check_methods(module, prepared, result)
    check_attributes(module, prepared, result)
    check_stereo(module, prepared, result)
    check_garbage(module, prepared, result)
    if prepared.sampler is not None:
        check_prior(module, prepared, result)
    (check_sound if prepared.facts.streaming else check_plain_sound)(module, prepared, result)
    return result
