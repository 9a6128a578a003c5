"""From a trained codec to the parts of a host module, and to the plain model that the file is measured against."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rave_tools.codec.autoencoder import Autoencoder
from rave_tools.codec.bottlenecks.latent import Unquantized
from rave_tools.errors import UserError
from rave_tools.export.engine import Engine, Stage
from rave_tools.export.lowering import Builder, lower
from rave_tools.export.nn_tilde import HostModel
from rave_tools.export.parts import NoiseSynthesis, Parts, codec_parts
from rave_tools.export.plain import PlainModel
from rave_tools.export.player import LARGEST_CONTROL, LOUDEST, HostFacts
from rave_tools.export.prior import HostModelWithPrior
from rave_tools.export.products import PackedProducts, PlainProducts
from rave_tools.export.resampler import ZERO_CROSSINGS, Resampled, rate_ratio
from rave_tools.export.step import make_step, run_chain, still_knobs
from rave_tools.generative.latent_prior import LatentPrior, PriorSampler
from rave_tools.nn.conv import fold_weight_norm
from rave_tools.nn.normalization import AdaptiveInstanceNormalization
from rave_tools.nn.streaming import NotStreamable, streaming

STORAGE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What ``--precision`` means for the matrices of convolutions."""

PROCESSORS = ("any", "x86")

FIDELITY = 0.95
"""Share of the latents' variance that a host sees unless told otherwise."""


@dataclass(frozen=True)
class ExportOptions:
    """What a person may choose about a file.

    Attributes:
        streaming: keep state from block to block; without it a host hears a click at each block.
        fidelity: share of the latents' variance that the controls carry; the others are drawn at random. By default
            0.95, and all latents of a codec whose latents follow no distribution that they could be drawn from.
        latent_size: exact number of controls instead.
        sample_rate: of the host, in hertz; None is the model's own.
        channels: of the output; None is the model's own. Fewer are the first ones, more are further decodings of the
            same latents.
        buffered: start with the queue that lets ``forward`` accept blocks of any length, one hop later.
        precision: of the matrices: ``fp32``; ``bf16``, half the size, faster on processors that know it; ``fp16``, half
            the size with an eighth of bf16's error, for the processor ``x86`` only.
        processor: ``any``, or ``x86``: with FBGEMM's kernels, which official builds of torch for x86 with AVX2 have.
    """

    streaming: bool = True
    fidelity: float | None = None
    latent_size: int | None = None
    sample_rate: int | None = None
    channels: int | None = None
    buffered: bool = False
    precision: str = "fp32"
    processor: str = "any"


@dataclass
class Measured:
    """Numbers of a model for hosts, and the plain model that a file is measured against.

    Attributes:
        facts: its numbers.
        reference: the plain model with the host's controls, without anything random: (B, C, T) -> (B, C', T), T a
            multiple of the hop.
        receptive_field: samples to the left and to the right of an output sample that the reference looks at.
        warnings: what a person should know before using the file.
    """

    facts: HostFacts
    reference: Callable[[Tensor], Tensor]
    receptive_field: tuple[int, int]
    warnings: list[str]


@dataclass
class Assembled(Measured):
    """What every format is made of.

    Attributes:
        parts: the two halves of the codec, streaming unless the options say otherwise.
        controls: its latents as a host sees them.
    """

    parts: Parts
    controls: nn.Module


@dataclass
class Prepared(Measured):
    """A host module of nn~ and the measure of it.

    Attributes:
        host: to be scripted.
        sampler: of the prior in the file, or None.
    """

    host: HostModel
    sampler: PriorSampler | None = None


def _controls(codec: Autoencoder, options: ExportOptions) -> nn.Module:
    """The latents that a host sees."""
    size = options.latent_size
    if size is None and options.fidelity is None and isinstance(codec.bottleneck, Unquantized):
        size = codec.latent_dim
    return codec.controls(fidelity=FIDELITY if options.fidelity is None else options.fidelity, size=size)


def _check_options(codec: Autoencoder, options: ExportOptions) -> None:
    if options.fidelity is not None and not 0 < options.fidelity < 1:
        raise UserError(f"--fidelity {options.fidelity}: a share of variance lies between 0 and 1, for example 0.95")
    if options.channels is not None and options.channels < 1:
        raise UserError(f"--channels {options.channels}: a model needs at least one output")
    if options.precision not in STORAGE:
        raise UserError(f"--precision {options.precision}: choose one of {', '.join(STORAGE)}")
    if options.processor not in PROCESSORS:
        raise UserError(f"--processor {options.processor}: choose one of {', '.join(PROCESSORS)}")
    if (options.precision, options.processor) != ("fp32", "any") and not options.streaming:
        raise UserError("--precision and --processor are for streaming exports: leave --nostreaming out")
    if options.precision == "fp16" and options.processor != "x86":
        raise UserError("--precision fp16 needs kernels of x86 processors: add --processor x86, or take bf16")
    if options.sample_rate is not None and options.sample_rate != codec.sample_rate and not options.streaming:
        raise UserError("--sr resamples in a stream: leave --nostreaming out, or resample the files (generate does)")
    if options.sample_rate is not None and options.sample_rate < codec.sample_rate:
        ratio = rate_ratio(codec.sample_rate, options.sample_rate)
        if codec.hop % ratio:
            raise UserError(
                f"--sr {options.sample_rate}: the hop of {codec.hop} samples at {codec.sample_rate} Hz is no "
                f"whole number of samples there"
            )


def _gather_warnings(controls: nn.Module, options: ExportOptions) -> list[str]:
    found = []
    if not options.streaming:
        found.append(
            "this export does not stream: it forgets everything between blocks and WILL CLICK at every block in a "
            "host; leave --nostreaming out for live use"
        )
    if controls.caution:
        found.append(controls.caution)
    return found


def assemble(codec: Autoencoder, options: ExportOptions, prior: LatentPrior | None = None) -> Assembled:
    """Make the halves of a codec, which stays as it is, and the measure of them.

    Args:
        codec: trained.
        options: what the file should be.
        prior: of the codec, for the method ``prior``; it decides how many controls there are.

    Returns:
        The halves in eager torch, their facts, and the plain model to compare a file with.

    Raises:
        UserError: options that the codec cannot meet.
    """
    _check_options(codec, options)
    if codec.renormalize:
        raise UserError(
            "this model divides each sound by its loudness and multiplies it back after decoding; a host has no place "
            "to keep it. For hosts train with --override 'RENORMALIZE = False' (and NORM = 'weight_norm', if NORM is "
            "'time_group_norm'); files play with `rave_tools generate`"
        )
    padded = {getattr(module, "pad_mode", "constant") for module in codec.modules()} - {"constant"}
    if padded and not options.streaming:
        raise UserError(
            f"padded by {' and '.join(sorted(padded))}, this model depends on where a sound ends, which a file without "
            "streams cannot know; leave --nostreaming out, or train with PAD_MODE = 'constant'"
        )
    if prior is not None:
        options = with_size_of(options, prior)
    codec = fold_weight_norm(copy.deepcopy(codec).eval().cpu().float()).requires_grad_(False)
    try:
        controls = _controls(codec, options)
    except ValueError as error:
        raise UserError(f"--latent_size {options.latent_size}: {error}") from error
    channels, target = options.channels or codec.channels, options.sample_rate or codec.sample_rate
    reference = PlainModel(codec, controls, sample_rate=target, channels=channels)
    try:
        left, right = codec.receptive_field()
    except ValueError as error:
        raise UserError(f"{error}; `rave_tools doctor RUN` looks for the reason in its curves") from error
    offset = latency = 0
    live = codec
    if options.streaming:
        try:
            live, info = streaming(codec, codec.hop)
        except NotStreamable as error:
            raise UserError(f"this model cannot be exported for streaming: {error}") from error
        offset, latency = info.offset, info.latency
    parts = codec_parts(live, controls)
    has_noise = any(isinstance(module, NoiseSynthesis) for module in parts.modules())
    adaptive = any(isinstance(module, AdaptiveInstanceNormalization) for module in parts.modules())
    hop = codec.hop
    if target != codec.sample_rate:
        parts = Resampled(parts, codec.sample_rate, target, offset=offset, latency=latency, hop=codec.hop)
        offset, latency = parts.offset, parts.latency
        reach = 2 * ZERO_CROSSINGS * max(1, target // codec.sample_rate)
        hop, left, right = (math.ceil(samples * target / codec.sample_rate) for samples in (hop, left, right))
        left, right = left + reach, right + reach
    facts = HostFacts(
        sample_rate=target,
        channels=codec.channels,
        target_channels=channels,
        hop=hop,
        latent_size=controls.size,
        full_latent_size=controls.full_size,
        labels=tuple(controls.labels()),
        latency=latency,
        offset=offset,
        streaming=options.streaming,
        buffered=options.buffered,
        has_noise=has_noise,
        adaptive=adaptive,
        precision=options.precision,
        processor=options.processor,
        has_prior=prior is not None,
    )
    warnings = _gather_warnings(controls, options)
    return Assembled(facts, reference, (left, right), warnings, parts=parts, controls=controls)


def prepare(codec: Autoencoder, options: ExportOptions, prior: LatentPrior | None = None) -> Prepared:
    """Make a host module of a codec, which stays as it is.

    Args:
        codec: trained.
        options: what the file should be.
        prior: of the codec, for the method ``prior``; it decides how many controls there are.

    Returns:
        The module, its facts, and the plain model to compare it with.

    Raises:
        UserError: options that the codec cannot meet.
    """
    assembled = assemble(codec, options, prior)
    facts, parts, controls = assembled.facts, assembled.parts, assembled.controls
    encode = _half(parts.encoding, facts.hop, facts.channels, facts, loudest=LOUDEST)
    decode = _half(parts.decoding, 1, controls.decoder_size, facts, loudest=LARGEST_CONTROL)
    sampler = None
    if prior is None:
        host = HostModel(encode, decode, controls=controls, facts=facts)
    else:
        sampler = copy.deepcopy(prior).cpu().float().sampler()
        host = HostModelWithPrior(encode, decode, controls=controls, facts=facts, sampler=sampler)
    measured = (facts, assembled.reference, assembled.receptive_field, assembled.warnings)
    return Prepared(*measured, host=host.eval(), sampler=sampler)


def _products(facts: HostFacts) -> nn.Module:
    """How the engine multiplies."""
    if facts.processor == "x86":
        return PackedProducts(split=facts.precision == "fp32")
    return PlainProducts()


def with_size_of(options: ExportOptions, prior: LatentPrior) -> ExportOptions:
    """Options with as many controls as a prior draws.

    Raises:
        UserError: another number was asked for.
    """
    if options.latent_size not in (None, prior.latent_size):
        raise UserError(
            f"--latent_size {options.latent_size}: the prior draws {prior.latent_size} latents; leave --latent_size "
            f"out, or train a prior with --override 'CONTROLS = {options.latent_size}'"
        )
    return replace(options, latent_size=prior.latent_size)


def _half(chain: nn.ModuleList, rate: int, width: int, facts: HostFacts, *, loudest: float) -> nn.Module:
    """A chain of modules as one module that hosts can run.

    Args:
        chain: streaming or plain.
        rate: frames of its input per hop.
        width: channels of its input.
        facts: of the file.
        loudest: input is cut there.
    """
    knobs = still_knobs(facts.adaptive)
    if facts.streaming:
        half = facts.precision == "bf16" and facts.processor == "any"
        storage = STORAGE[facts.precision]
        builder = Builder(rate, width, loudest=loudest, storage=storage, half=half, knobs=knobs)
        wire = builder.input
        for module in chain:
            wire = lower(module, wire, builder)
        return Engine(builder.finish(wire), _products(facts))
    example = torch.zeros(1, width, 2 * rate)
    return Stage(make_step(chain, lambda x, knobs: run_chain(chain, x, knobs), x=example, knobs=knobs), loudest)
