"""The table of a model's components, and what its valid crop discards."""

from collections.abc import Iterable, Sequence

from torch import nn

from rave_tools.errors import UserError
from rave_tools.nn.streaming import NotStreamable
from rave_tools.training.wrapper import TrainingWrapper

BYTES_PER_PARAMETER = 4


def readable_count(count: int) -> str:
    """16656 -> '16.7K', 3945904 -> '3.9M', 0 -> '0'."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def readable_time(seconds: float) -> str:
    """90061 -> '1 d 1 h', 125 -> '2 min 5 s': the two largest units."""
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if (count := int(seconds // size)) or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
            seconds -= count * size
        elif parts:
            break
    return " ".join(parts[:2])


def components(wrapper: TrainingWrapper) -> list[tuple[str, nn.Module]]:
    """(title, module) of each part that a person would name, in the order in which audio meets them."""
    return [(_title(name), module) for name, module in wrapper.parts()]


def _title(name: str) -> str:
    return name.upper() if name == "pqmf" else name.replace("_", " ").title()


def count_parameters(modules: Iterable[nn.Module], *, trainable: bool | None = None) -> int:
    """Number of parameters, each counted once; only those that learn, or only those that do not, when asked."""
    seen = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in seen.values() if trainable is None or p.requires_grad == trainable)


def table(wrapper: TrainingWrapper) -> str:
    """Components with their architecture and size, then the totals."""
    rows = [
        (title, type(module).__name__, readable_count(count_parameters([module])))
        for title, module in components(wrapper)
    ]
    total = count_parameters([wrapper])
    learning = count_parameters([wrapper], trainable=True)
    lines = grid(("Component", "Architecture", "Parameters"), rows)
    facts = (
        ("Trainable", readable_count(learning)),
        ("Non-trainable", readable_count(total - learning)),
        ("Total", readable_count(total)),
        ("Size", f"{total * BYTES_PER_PARAMETER / 1e6:.3f} MB"),
    )
    return "\n".join([*lines, *(f"{name:<14} {value:>12}" for name, value in facts)])


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns with a rule under the head; the last column is aligned to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        return " | ".join([*cells, row[-1].rjust(widths[-1])])

    return [line(head), "-+-".join("-" * width for width in widths), *(line(row) for row in rows)]


def latency_report(codec: nn.Module) -> str:
    """How late the codec's streaming form is against the sound that goes in, or why it does not stream."""
    try:
        _, info = codec.streaming()
    except (ValueError, UserError, AttributeError, NotStreamable) as error:
        return f"Latency: unknown, it does not stream: {' '.join(str(error).split())}"
    milliseconds = 1000 / codec.sample_rate
    return (
        f"Latency: {info.latency * milliseconds:.1f} ms ({info.latency} samples) when streaming; the host's block "
        f"comes on top, of at least {codec.hop} samples = {codec.hop * milliseconds:.1f} ms"
    )


def receptive_field_report(wrapper: TrainingWrapper, n_signal: int) -> str:
    """How far the model looks, and how much of each training window the judges with a valid crop leave out.

    Args:
        wrapper: with its receptive field measured.
        n_signal: samples of a training window.
    """
    left, right = wrapper.receptive_field
    rate = wrapper.codec.sample_rate
    text = f"Receptive field: {1000 * left / rate:.1f} ms <-- x --> {1000 * right / rate:.1f} ms"
    for judge in wrapper.judges:
        if not getattr(judge.view, "valid_crop", False):
            continue
        frames = n_signal // wrapper.codec.bands
        start, stop = judge.view.crop(frames, wrapper.codec.bands, (left, right))
        share = 100 * (1 - (stop - start) / frames)
        text += f"; the {judge.name} judge leaves out {share:.0f} % of each window of {n_signal} samples"
    return text
