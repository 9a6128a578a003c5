"""A file is played as hosts play it, fresh copies for every question, and what it does is measured."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rave_tools.export.subject import Method, Module, Subject
from rave_tools.findings import Finding, unknown

EXACT_DB = -80.0
"""Streams in blocks that differ less from one whole block, relative to its peak, are the same model."""

AUDIBLE_DB = -50.0
BLOCKS = (1, 2, 4, 1, 8, 2, 1, 4)
"""Blocks per call, in multiples of the largest ratio, as a host changes them by ``bufsize``."""

ROWS = 2
SEED = 11
LONGEST_NAN = 4.0
"""Seconds of clean input after one NaN; a model that is not finite again then will not be."""

MOST_BLOCKS = 400
"""Blocks of one measurement, so that a model with a short hop is not played for ever."""

MEMORY_BLOCKS = 40
ONSET_DB = -60.0
"""A response begins where it comes this close to its peak."""

PROBE_SECONDS = 3.0
"""How long after an impulse its response is looked for, and never for more than twice MOST_BLOCKS."""

BORDERS, SETTLING = 24, 4
"""Blocks whose borders are compared, and blocks played before them."""

ROUNDING = 2e-6
"""Share of the output's peak below which two outputs differ by rounding alone."""

CLICK = 2.0
FALLBACK_RATE = 44100
Player = Callable[[Tensor], Tensor]


def play_it(subject: Subject, *, sample_rate: int | None = None) -> list[Finding]:
    """Everything that only playing shows.

    Args:
        subject: the file.
        sample_rate: in hertz, for files that do not say it.
    """
    with torch.jit.optimized_execution(False):  # every question has its own copy, and compiling each takes longer
        return _play_it(subject, sample_rate)


def _play_it(subject: Subject, sample_rate: int | None) -> list[Finding]:
    rate = subject.number("sr", "sampling_rate") or sample_rate
    findings: list[Finding] = []
    if rate is None:
        rate = FALLBACK_RATE
        findings.append(unknown(
            "sample rate", f"no attribute sr or sampling_rate; times below are for {rate} Hz", where="attributes",
            mend="give it with --sampling_rate",
        ))  # fmt: skip
    broken = False
    for method in subject.methods.values():
        found = list(shapes(subject, method))
        broken = broken or any(finding.severity == "error" for finding in found)
        findings += found
    findings += setters_after_playing(subject)
    if subject.through is None:
        reason = "no way from audio to audio (forward, or encode and decode whose channels and ratios meet)"
        return [*findings, unknown("sound", reason, where="METHOD_params")]
    if broken:
        return [*findings, unknown("sound", "its methods fail on ordinary blocks, see above", where="the methods")]
    for probe in (determinism, streaming, aliasing, stereo):
        findings += probe(subject)
    for timed in (nan_memory, latency):
        findings += timed(subject, rate)
    return findings


def quiet(subject: Subject, module: Module) -> None:
    """Turn off what is random, and the queue, in files that have the attributes of our own exports."""
    for name, value, kind in (("temperature", 0.0, "float"), ("noise", 0.0, "float"), ("buffered", 0, "int")):
        setter = subject.signatures.get(f"set_{name}")
        if setter is not None and [argument.kind for argument in setter.arguments] == [kind]:
            getattr(module, f"set_{name}")(value)


def player(subject: Subject, *, calm: bool = True) -> Player:
    """A fresh copy as a function from a block of audio to a block of audio, inside inference mode."""
    module = subject.fresh()
    way = [getattr(module, method.name) for method in subject.through or ()]
    if calm:
        quiet(subject, module)

    def process(audio: Tensor) -> Tensor:
        with torch.inference_mode():
            for step in way:
                audio = step(audio)
        return audio.clone()

    return process


def noise(channels: int, samples: int, *, rows: int = 1, seed: int = 3) -> Tensor:
    """White noise at -10 dB. Shape (rows, channels, samples)."""
    return 0.3 * torch.randn(rows, channels, samples, generator=torch.Generator().manual_seed(seed))


def in_blocks(process: Player, audio: Tensor, sizes: Sequence[int]) -> Tensor:
    """The output for audio given in blocks of these sizes, over and over; the random numbers are the same each time."""
    torch.manual_seed(SEED)
    outputs, start, turn = [], 0, 0
    while start + sizes[turn % len(sizes)] <= audio.shape[-1]:
        size = sizes[turn % len(sizes)]
        outputs.append(process(audio[..., start : start + size]))
        start, turn = start + size, turn + 1
    return torch.cat(outputs, -1)


def decibels(error: Tensor, reference: Tensor) -> float:
    """Largest absolute value of an error relative to the reference's, in dB; -240 where there is none."""
    worst = float(error.abs().max()) if error.numel() else 0.0
    return 20 * math.log10(max(worst, 1e-12) / max(float(reference.abs().max()), 1e-4))


def shapes(subject: Subject, method: Method) -> Iterator[Finding]:
    """Whether a method answers what its params announce: for blocks of many sizes, for several rows, and as float32."""
    module = subject.fresh()
    ratio = max(subject.ratio, method.ratio)
    for rows in (1, ROWS):
        for factor in BLOCKS:
            samples = ratio * factor
            x = 0.1 * torch.randn(rows, samples // method.ratio_in, method.channels_in).transpose(1, 2)
            problem = _ask(module, method, x, samples)
            if problem is not None:
                yield Finding(
                    "error" if rows == 1 else "warning", method.name,
                    f"{problem} (input {tuple(x.shape)}, block of {samples} samples)",
                    "the host writes nothing and repeats its last block" if rows == 1
                    else "nn~ works; mc.nn~ and mcs.nn~, which play several rows at once, do not",
                    "answer one float32 tensor (batch, channels out, samples / ratio out) for any power-of-two block"
                    + ("" if rows == 1 else " and any number of rows, starting anew when it changes"),
                    f"{method.name}, played",
                )  # fmt: skip
                return
    yield Finding(
        "ok", method.name, f"answers float32 of the announced shape for blocks of {ratio} to {max(BLOCKS) * ratio} "
        f"samples in changing order, 1 and {ROWS} rows", where=f"{method.name}, played",
    )  # fmt: skip


def _ask(module: Module, method: Method, x: Tensor, samples: int) -> str | None:
    """What is wrong with the answer to one block, None when nothing is."""
    try:
        with torch.inference_mode():
            y = getattr(module, method.name)(x)
    except Exception as error:  # TorchScript raises whatever the model raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"fails: {(lines or [type(error).__name__])[-1][:120]}"
    if not isinstance(y, Tensor):
        return f"answers a {type(y).__name__} and not one tensor"
    wanted = (x.shape[0], method.channels_out, samples // method.ratio_out)
    if y.dtype != torch.float32:
        return f"answers {y.dtype} and not float32"
    flat = method.channels_out == 1 and tuple(y.shape) == (wanted[0], wanted[2])
    if tuple(y.shape) != wanted and not flat:
        return f"answers {tuple(y.shape)} and not {wanted}"
    return None


def setters_after_playing(subject: Subject) -> Iterator[Finding]:
    """Hosts play inside inference mode and set outside of it: a setter that writes in place into played state fails."""
    module = subject.fresh()
    methods = list(subject.methods.values())
    for method in methods:
        x = torch.zeros(1, method.channels_in, subject.ratio // method.ratio_in)
        _ask(module, method, x, subject.ratio)
    refused = []
    for name in subject.attributes:
        getter, setter = subject.signatures.get(f"get_{name}"), subject.signatures.get(f"set_{name}")
        if getter is None or setter is None or getter.arguments:
            continue
        try:
            value = getattr(module, f"get_{name}")()
            answer = getattr(module, f"set_{name}")(*(value if isinstance(value, (tuple, list)) else (value,)))
        except Exception as error:  # TorchScript raises whatever the model raises
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            yield Finding(
                "error", f"set_{name}", f"fails with its own present value after playing: "
                f"{(lines or [type(error).__name__])[-1][:120]}",
                "methods are played inside inference mode and setters called outside of it: state that a method "
                "assigned cannot be changed in place there",
                "assign anew: self.state = torch.zeros_like(self.state)", f"set_{name}, called",
            )  # fmt: skip
            continue
        if isinstance(answer, int) and not isinstance(answer, bool) and answer != 0:
            refused.append(f"set_{name} ({answer})")
    if refused:
        yield Finding(
            "note", "attributes", f"answer other than 0 to their own present value: {', '.join(refused)}",
            "hosts report that these were not set: attributes to be read only", where="setters, called",
        )  # fmt: skip


def determinism(subject: Subject) -> Iterator[Finding]:
    """The same input twice, with the same random numbers and with others."""
    ratio, channels = subject.ratio, _channels(subject)
    audio = noise(channels, 8 * ratio)

    def heard(seed: int) -> Tensor:
        process = player(subject, calm=False)
        torch.manual_seed(seed)
        return torch.cat([process(audio[..., i * ratio : (i + 1) * ratio]) for i in range(8)], -1)

    first, again, other = heard(1), heard(1), heard(2)
    if not bool(torch.isfinite(first).all()):
        yield Finding(
            "error", "output", f"{int((~torch.isfinite(first)).sum())} of {first.numel()} samples are not finite for "
            "noise at -10 dB", "a host plays silence, crackle or nothing", "examine the run that it was exported from",
            "8 blocks",
        )  # fmt: skip
        return
    repeat, change = decibels(again - first, first), decibels(other - first, first)
    if repeat > EXACT_DB:
        yield Finding(
            "warning", "determinism", f"two fresh copies differ by {repeat:.0f} dB for the same input and random "
            f"numbers (threshold {EXACT_DB:.0f} dB)", "it plays uninitialised memory, or reads a clock",
            "initialise its state with zeros", "8 blocks, twice",
        )  # fmt: skip
    elif change > EXACT_DB:
        yield Finding(
            "note", "determinism", f"with other random numbers the output changes by {change:.0f} dB",
            "it draws latents or noise, as RAVE does; the same input never sounds twice the same", where="8 blocks",
        )  # fmt: skip
    else:
        seen = f"repeats within {max(repeat, change):.0f} dB"
        yield Finding("ok", "determinism", seen, where="8 blocks, three times")


def streaming(subject: Subject) -> Iterator[Finding]:
    """Blocks of one ratio against one whole block: a model that keeps no state clicks at every border."""
    ratio = subject.ratio
    audio = noise(_channels(subject), 32 * ratio)
    whole = in_blocks(player(subject), audio, [audio.shape[-1]])
    blocks = in_blocks(player(subject), audio, [ratio])
    mixed = in_blocks(player(subject), audio, [size * ratio for size in BLOCKS])
    torch.manual_seed(SEED + 1)
    other = player(subject)(audio)
    random = decibels(other - whole, whole)
    where = f"32 x {ratio} samples against 1 x {32 * ratio}"
    if random > EXACT_DB:
        yield from _borders(subject, random)
        return
    error = max(decibels(blocks - whole, whole), decibels(mixed - whole[..., : mixed.shape[-1]], whole))
    if error <= EXACT_DB:
        silent = f"what it heard before changes its answer by less than {EXACT_DB:.0f} dB"
        memory = "keeps its state" if _remembers(subject) else silent
        seen = f"block by block equals one block within {error:.0f} dB: {memory}"
        yield Finding("ok", "streaming", seen, where=where)
    else:
        yield Finding(
            "error" if error > AUDIBLE_DB else "warning", "streaming",
            f"block by block differs from one block by {error:.0f} dB (thresholds {EXACT_DB:.0f} and "
            f"{AUDIBLE_DB:.0f} dB)", "it keeps no state from block to block, or not all: it clicks at every border",
            "export with --streaming", where,
        )  # fmt: skip


def _borders(subject: Subject, random: float) -> Iterator[Finding]:
    """For a random model, of which no two outputs are equal: are there steps where blocks meet?

    A decoder may have a texture of its own at every multiple of its ratio. So blocks of four ratios are played, and the
    second differences at their borders are compared with those at the multiples of the ratio inside of them.
    """
    ratio = subject.ratio
    audio = noise(_channels(subject), (BORDERS + SETTLING) * 4 * ratio)
    output = in_blocks(player(subject), audio, [4 * ratio])
    bend = output.diff(n=2, dim=-1).abs().mean((0, 1))
    places = torch.arange(SETTLING * 4, (SETTLING + BORDERS) * 4) * ratio
    steps = torch.stack([bend[place - 2 : place].sum() for place in places])
    border = (places // ratio) % 4 == 0
    factor = float(steps[border].median()) / max(float(steps[~border].median()), 1e-12)
    text = f"its output is random (two runs differ by {random:.0f} dB); second differences at the borders of blocks "
    text += f"are {factor:.2f} times those at the same places inside of blocks (medians; threshold {CLICK})"
    where = f"{BORDERS} borders of blocks of {4 * ratio} samples"
    if factor > CLICK:
        yield Finding(
            "error", "streaming", text, "it clicks at every border: state is not kept from block to block",
            "export with --streaming", where,
        )  # fmt: skip
    else:
        yield unknown("streaming", text + ": no clicks, but equality cannot be tested", where=where)


def _remembers(subject: Subject) -> bool:
    """Whether what was heard changes the answer to what comes later, up to MEMORY_BLOCKS later."""
    ratio, channels = subject.ratio, _channels(subject)
    heard = noise(channels, (4 + MEMORY_BLOCKS) * ratio)
    unheard = heard.clone()
    unheard[..., : 4 * ratio] = 0
    answers = [in_blocks(player(subject), audio, [ratio])[..., 4 * ratio :] for audio in (heard, unheard)]
    return decibels(answers[1] - answers[0], answers[0]) > EXACT_DB


def aliasing(subject: Subject) -> Iterator[Finding]:
    """Does it keep a view of its input, which the host will overwrite, or hand out a view of its own state?"""
    ratio = subject.ratio
    first = (subject.through or ())[0]
    audio = noise(first.channels_in, 6 * ratio)

    def heard(*, spoil_input: bool = False, spoil_output: bool = False) -> Tensor:
        module, outputs = subject.fresh(), []
        quiet(subject, module)
        torch.manual_seed(SEED)
        with torch.inference_mode():
            for index in range(6):
                block = audio[..., index * ratio : (index + 1) * ratio].clone()
                answer = getattr(module, first.name)(block)
                outputs.append(answer.clone())
                if spoil_input:
                    block.fill_(0.7)
                if spoil_output:
                    answer.fill_(0.7)
        return torch.cat(outputs, -1)

    plain = heard()
    spoilt, taken = (decibels(heard(**{which: True}) - plain, plain) for which in ("spoil_input", "spoil_output"))
    where = f"{first.name}, 6 blocks whose memory is overwritten afterwards"
    if spoilt > EXACT_DB:
        yield Finding(
            "error", "state", f"overwriting a block after it was played changes later output by {spoilt:.0f} dB "
            f"(threshold {EXACT_DB:.0f} dB)", "it keeps a view of its input; Neutone and others reuse that memory",
            "clone what is kept: self.state = x[..., -n:].clone()", where,
        )  # fmt: skip
    if taken > EXACT_DB:
        yield Finding(
            "error", "state", f"overwriting what {first.name} answered changes later output by {taken:.0f} dB "
            f"(threshold {EXACT_DB:.0f} dB)",
            "it hands out its own state; the RAVE VST scales and biases latents in place", "answer a clone", where,
        )  # fmt: skip
    if max(spoilt, taken) <= EXACT_DB:
        yield Finding("ok", "state", "is neither a view of the input nor of the output", where=where)


def stereo(subject: Subject) -> Iterator[Finding]:
    """The RAVE VST's stereo mode: two rows of all latents become two channels."""
    decode, full = subject.methods.get("decode"), subject.number("full_latent_size")
    if decode is None or full is None or not subject.has("set_stereo_mode"):
        return
    kinds = [argument.kind for argument in subject.signatures["set_stereo_mode"].arguments]
    module = subject.fresh()
    try:
        module.set_stereo_mode(True if kinds == ["bool"] else torch.tensor(True))
        with torch.inference_mode():
            shape = tuple(module.decode(torch.zeros(2, full, 4)).shape)
    except Exception as error:  # TorchScript raises whatever the model raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        shape, problem = (), f"fails: {(lines or [type(error).__name__])[-1][:120]}"
    else:
        problem = f"answers {shape}"
    good = len(shape) == 3 and (shape[1] == 2 or shape[:2] == (2, 1))
    if good:
        yield Finding("ok", "RAVE VST", f"stereo: decode of (2, {full}, 4) {problem}", where="decode, played")
    else:
        yield Finding(
            "warning", "RAVE VST", f"stereo: decode of (2, {full}, 4) {problem}, and not 2 channels or 2 rows",
            "its stereo mode does not work in the RAVE VST; nn~ does not use it", "", "decode, played",
        )  # fmt: skip


def nan_memory(subject: Subject, rate: int) -> Iterator[Finding]:
    """One sample that is not a number comes in: how long is what comes out not finite?"""
    ratio, channels = subject.ratio, _channels(subject)
    process = player(subject)
    limit = max(4, min(MOST_BLOCKS, math.ceil(LONGEST_NAN * rate / ratio)))
    for seed in range(3):
        process(noise(channels, ratio, seed=seed))
    spoilt = noise(channels, ratio, seed=3)
    spoilt[..., ratio // 2] = math.nan
    bad, last = 0, 0
    for block in range(limit):
        y = process(spoilt if block == 0 else noise(channels, ratio, seed=4 + block))
        wrong = int((~torch.isfinite(y)).any(1).sum())
        bad, last = bad + wrong, block + 1 if wrong else last
    where = f"1 NaN, then {limit} blocks of {ratio} clean samples"
    if not bad:
        yield Finding("ok", "NaN", "one NaN at the input leaves the output finite", where=where)
        return
    seconds = bad / rate
    endless = last == limit
    reset = subject.has("set_reset")
    yield Finding(
        "error" if endless else "warning", "NaN",
        f"one NaN at the input makes {bad} samples ({1000 * seconds:.0f} ms) of the output not finite"
        + (f", and it was not finite again after {limit} blocks" if endless else ""),
        "a glitch of another object ends the sound" + ("" if endless else " for that long")
        + (", until somebody sends reset" if endless and reset else ", until it is loaded again" if endless else ""),
        "nan_to_num and clamp at the input of encode and decode", where,
    )  # fmt: skip


def latency(subject: Subject, rate: int) -> Iterator[Finding]:
    """The announced latency, and the response to an impulse upon noise: where it begins and where it is strongest."""
    announced = _announced_latency(subject)
    ratio, channels = subject.ratio, _channels(subject)
    ahead = max(4, math.ceil((announced or 0) / ratio))
    length = ratio * (ahead + max(8, min(2 * MOST_BLOCKS, math.ceil(PROBE_SECONDS * rate / ratio))))
    audio = 0.03 * noise(channels, length)
    struck = audio.clone()
    struck[..., ahead * ratio] += 0.9
    plain = in_blocks(player(subject), audio, [ratio])
    response = in_blocks(player(subject), struck, [ratio]) - plain
    if not bool(torch.isfinite(response).all()):
        yield unknown("latency", "its response to an impulse is not finite", where="an impulse")
        return
    size = response.abs().amax((0, 1))
    peak = float(size.max())
    where = f"an impulse of 0.9 upon noise at -40 dB, {length} samples in blocks of {ratio}"
    faint = max(1e-7, ROUNDING * float(plain.abs().max()))
    if peak < faint:
        reason = f"the response to an impulse is {20 * math.log10(max(peak, 1e-12)):.0f} dB at most"
        yield unknown("latency", f"{_say(announced, rate)}; {reason}", where=where)
        return
    heard = torch.nonzero(size > max(peak * 10 ** (ONSET_DB / 20), faint)).flatten() - ahead * ratio
    begins, ends = int(heard[0]), int(heard[-1])
    strongest = int(size.argmax()) - ahead * ratio
    text = f"{_say(announced, rate)}; an impulse is heard from {begins} to {ends} samples later "
    text += f"({1000 * begins / rate:.1f} to {1000 * ends / rate:.1f} ms), most after {strongest} "
    text += f"({1000 * strongest / rate:.1f} ms)"
    if announced is None:
        yield Finding(
            "note", "latency", text, "a host cannot compensate what is not announced; block and queue of the host come "
            "on top", "store int latency_samples, or an attribute latency", where,
        )  # fmt: skip
    elif begins - ratio <= announced <= ends + ratio:
        yield Finding("ok", "latency", text, "block and queue of the host come on top", where=where)
    else:
        yield Finding(
            "warning", "latency", text + f": the announced number lies outside by more than the ratio of {ratio}",
            "what a host compensates by it is not what is heard", "announce the measured latency", where,
        )  # fmt: skip


def _announced_latency(subject: Subject) -> int | None:
    number = subject.number("latency_samples", "latency")
    if number is not None:
        return number
    if subject.has("get_latency") and not subject.signatures["get_latency"].arguments:
        answer = subject.fresh().get_latency()
        answer = answer[0] if isinstance(answer, (tuple, list)) and answer else answer
        return int(answer) if isinstance(answer, (int, float)) else None
    return None


def _say(announced: int | None, rate: int) -> str:
    if announced is None:
        return "none announced"
    return f"{announced} samples ({1000 * announced / rate:.1f} ms) announced"


def _channels(subject: Subject) -> int:
    return (subject.through or ())[0].channels_in
