"""A .ts file of anybody is read, played and timed: what a host will make of it, in words and numbers."""

from pathlib import Path

from rave_tools.export.contract import read_contract
from rave_tools.export.pace import measure_pace
from rave_tools.export.probes import FALLBACK_RATE, play_it
from rave_tools.export.subject import Subject
from rave_tools.findings import Finding


def examine(
    path: Path, *, time_it: bool = True, sample_rate: int | None = None, seconds: float = 1.0
) -> list[Finding]:
    """Everything that can be found out about a TorchScript file without knowing what it was made of.

    Args:
        path: of the file, which need not be ours.
        time_it: measure its speed in a process of its own.
        sample_rate: in hertz, for files that do not say it.
        seconds: of measuring per block size.

    Raises:
        NotTorchScript: it cannot be loaded at all.
    """
    subject = Subject(path)
    findings = read_contract(subject)
    if not subject.methods:
        return findings
    findings += play_it(subject, sample_rate=sample_rate)
    if time_it:
        rate = subject.number("sr", "sampling_rate") or sample_rate or FALLBACK_RATE
        findings += measure_pace(subject, rate, seconds=seconds)
    return findings
