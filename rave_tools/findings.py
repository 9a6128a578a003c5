"""What an examination found: typed values that the command line prints and machines read."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["ok", "note", "warning", "error"]

SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")
"""From harmless to harmful."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what became of it.

    A finding never guesses: where something could not be measured, it is a ``note`` that begins with "cannot tell" and
    says why.

    Attributes:
        severity: ``ok`` (as it should be), ``note`` (good to know), ``warning`` (works, with a cost), ``error``.
        subject: what was looked at, such as ``latents`` or ``forward_params``.
        seen: the measurement, with its numbers and the threshold that it was held against.
        means: what follows from it; may be empty for ``ok``.
        mend: what to do about it; empty when there is nothing to do.
        where: where it was read: a file, a curve, a method.
    """

    severity: Severity
    subject: str
    seen: str
    means: str = ""
    mend: str = ""
    where: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain strings, for JSON."""
        return asdict(self)


def unknown(subject: str, reason: str, *, where: str = "", mend: str = "") -> Finding:
    """The finding that nothing can be said.

    Args:
        subject: what was asked.
        reason: why there is no answer.
        where: where an answer was looked for.
        mend: what would give one.
    """
    return Finding("note", subject, f"cannot tell: {reason}", mend=mend, where=where)


def count(findings: Iterable[Finding]) -> dict[Severity, int]:
    """How many findings there are of each severity."""
    numbers: dict[Severity, int] = dict.fromkeys(SEVERITIES, 0)
    for finding in findings:
        numbers[finding.severity] += 1
    return numbers
