"""The results of an evaluation as a table, a CSV file, a JSON file and a page."""

import csv
import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from rave_tools.criteria.measures import Measure
from rave_tools.inference import pictures
from rave_tools.inference.evaluate import Contestant, Evaluation, Row, Summary, pace, summarize
from rave_tools.runs import write_text

NONE = "–"
FRECHET_MEANING = (
    "distance between the Gaussians of all embedding vectors of the originals and of the reconstructions; it compares "
    "only with scores of the same embedding, rate and files"
)
REALTIME_MEANING = "seconds of sound per second of encoding and decoding, after a warm-up"


@dataclass
class Example:
    """A file to listen to.

    Attributes:
        file: its name.
        rate: in hertz.
        original: (C, n).
        made: (C, n) by the models' names.
        captions: a few numbers by the models' names.
    """

    file: str
    rate: int
    original: Tensor
    made: dict[str, Tensor] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """An evaluation, complete or not, and how it was made.

    Attributes:
        evaluation: what was measured.
        settings: by name, as they are to be shown.
        interrupted: what was left undone; empty if nothing.
        examples: to listen to.
    """

    evaluation: Evaluation
    settings: dict[str, Any]
    interrupted: str = ""
    examples: list[Example] = field(default_factory=list)

    def rows_of(self, contestant: Contestant) -> list[Row]:
        """The rows of one model."""
        return [row for row in self.evaluation.rows if row.model == contestant.name]

    def problems(self) -> dict[str, list[Row]]:
        """Rows with a problem, by file."""
        found: dict[str, list[Row]] = {}
        for row in self.evaluation.rows:
            if row.problem:
                found.setdefault(row.file, []).append(row)
        return found


class CsvWriter:
    """A row per model and file, in full precision, each on disk as soon as it is measured.

    A measure without a value has an empty cell, and its reason in the column ``undefined``.

    Args:
        file: open for writing, with ``newline=""``.
        measures: columns.
    """

    def __init__(self, file: TextIO, measures: Sequence[Measure]) -> None:
        self._file = file
        self._measures = list(measures)
        self._writer = csv.writer(file)
        names = [measure.name for measure in measures]
        self._writer.writerow(
            ["model", "file", "seconds", "channels", *names, "realtime", "length_difference", "undefined", "notes",
             "problem"]
        )  # fmt: skip

    def write(self, row: Row) -> None:
        """One more row."""
        self._writer.writerow([
            row.model, row.file, repr(row.seconds), row.channels,
            *(repr(row.values[measure.name]) if measure.name in row.values else "" for measure in self._measures),
            "" if row.realtime is None else repr(row.realtime), row.length_difference,
            "; ".join(f"{name}: {reason}" for name, reason in row.undefined.items()), "; ".join(row.notes), row.problem,
        ])  # fmt: skip
        self._file.flush()


def write_json(report: Report, path: Path) -> None:
    """Everything but the rows of single files, which are in the CSV file."""
    models = []
    for contestant in report.evaluation.contestants:
        rows, machine = report.rows_of(contestant), contestant.machine
        entry: dict[str, Any] = {
            "name": contestant.name,
            "path": contestant.path,
            "updates": contestant.step,
            "sample_rate": machine.sample_rate,
            "channels": machine.channels,
            "hop": machine.hop,
            "streaming": machine.streaming,
            "latency_samples": machine.latency if machine.streaming else 0,
            "bitrate_kbps": contestant.bitrate,
            "notes": contestant.notes,
            "realtime": pace(rows),
            "files": len(rows),
            "problems": sum(bool(row.problem) for row in rows),
            "measures": {m.name: asdict(summarize(rows, m)) for m in report.evaluation.measures},
        }
        if report.evaluation.embedding is not None:
            entry["frechet"] = asdict(report.evaluation.frechet(contestant.name))
        models.append(entry)
    embedding = report.evaluation.embedding
    content = {
        "settings": report.settings,
        "embedding": embedding.name if embedding else None,
        "interrupted": report.interrupted,
        "files": len(report.evaluation.files),
        "problems": {file: rows[0].problem for file, rows in report.problems().items()},
        "models": models,
    }
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def number(value: float | None) -> str:
    """Four digits, without an exponent where that is readable."""
    if value is None:
        return NONE
    size = abs(value)
    if not size:
        return "0"
    if size >= 1000:
        return f"{value:.0f}"
    if size < 1e-4:
        return f"{value:.1e}"
    digits = 2 if size >= 10 else 3 if size >= 1 else 4
    return f"{value:.{digits}f}"


def bitrate(contestant: Contestant) -> str:
    """Kilobits per second, if there are codes."""
    return NONE if contestant.bitrate is None else f"{contestant.bitrate:.4g}"


def reasons(counts: dict[str, int]) -> str:
    """``3 silent, 1 too short``."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def terminal_table(report: Report) -> list[str]:
    """A line per model: mean (median) [worst] of each measure."""
    evaluation = report.evaluation
    header = ["model", *(_title(measure) for measure in evaluation.measures)]
    if evaluation.embedding is not None:
        header.append("Frechet ↓")
    header += ["x realtime ↑", "kb/s"]
    table = [header]
    cautions = []
    for contestant in evaluation.contestants:
        rows = report.rows_of(contestant)
        cells, undefined = [contestant.name], []
        for measure in evaluation.measures:
            summary = summarize(rows, measure)
            cells.append(_three(summary))
            if summary.undefined:
                undefined.append(f"{measure.title} {reasons(summary.undefined)}")
        if undefined:
            cautions.append(f"  {contestant.name}, files without a value: {'; '.join(undefined)}")
        if evaluation.embedding is not None:
            frechet = evaluation.frechet(contestant.name)
            cells.append(number(frechet.value))
            if frechet.caution:
                cautions.append(f"  {contestant.name}, Frechet: {frechet.caution}")
            if frechet.left_out:
                cautions.append(f"  {contestant.name}, Frechet, files left out: {reasons(frechet.left_out)}")
        cells += [number(pace(rows)), bitrate(contestant)]
        table.append(cells)
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append("each measure: mean (median) [worst] over the files; ↑ more is better, ↓ less is")
    if any(measure.speech for measure in evaluation.measures):
        lines.append("PESQ and STOI are measures of speech; of music they say little")
    if evaluation.embedding is not None:
        counts = ", ".join(
            f"{c.name} {evaluation.frechet(c.name).count} vectors of {evaluation.frechet(c.name).dimension}"
            for c in evaluation.contestants
        )
        lines.append(f"Frechet distance on {evaluation.embedding.name}: {counts}")
    return lines + cautions + conversions(report)


def conversions(report: Report) -> list[str]:
    """What was done to files before and after they were played, and to how many."""
    lines = []
    for contestant in report.evaluation.contestants:
        counts = Counter(note for row in report.rows_of(contestant) for note in row.notes)
        lines += [f"  {contestant.name}: {note} ({_files(count)})" for note, count in counts.most_common()]
    return lines


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _title(measure: Measure) -> str:
    unit = f" {measure.unit}" if measure.unit else ""
    return f"{measure.title}{unit} {'↑' if measure.higher else '↓'}"


def _three(summary: Summary) -> str:
    if summary.mean is None:
        return NONE
    return f"{number(summary.mean)} ({number(summary.median)}) [{number(summary.worst)}]"


def write_page(report: Report, path: Path) -> None:
    """One page that needs no network and no other file."""
    parts = [_head(report), _summary_table(report), _cautions(report), _examples(report), _file_table(report),
             _meanings(report)]  # fmt: skip
    body = "\n".join(part for part in parts if part)
    page = (
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
        f"<title>rave_tools evaluate</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
    write_text(path, page)


def _e(text: object) -> str:
    return html.escape(str(text))


def _head(report: Report) -> str:
    evaluation = report.evaluation
    names = ", ".join(f"<b>{_e(c.name)}</b>" for c in evaluation.contestants)
    lines = [f"<h1>Reconstructions compared</h1><p class=\"lead\">{names} on {_files(len(evaluation.files))}</p>"]
    if report.interrupted:
        lines.append(f"<p class=\"warning\">Interrupted: {_e(report.interrupted)}</p>")
    facts = "".join(
        f"<div><dt>{_e(key)}</dt><dd>{_e(value)}</dd></div>" for key, value in report.settings.items()
    )
    lines.append(f"<dl class=\"facts\">{facts}</dl>")
    return "\n".join(lines)


def _th(text: str, *, numeric: bool = True, hint: str = "") -> str:
    title = f" title=\"{_e(hint)}\"" if hint else ""
    kind = " class=\"n\"" if numeric else ""
    return f"<th{kind}{title} scope=\"col\" aria-sort=\"none\"><button type=\"button\">{text}</button></th>"


def _measure_th(measure: Measure) -> str:
    speech = " <small>speech</small>" if measure.speech else ""
    return _th(_e(_title(measure)) + speech, hint=measure.meaning)


def _td(value: float | None, text: str, *, best: bool = False, hint: str = "") -> str:
    order = "" if value is None else f" data-v=\"{value!r}\""
    title = f" title=\"{_e(hint)}\"" if hint else ""
    return f"<td class=\"n{' best' if best else ''}\"{order}{title}>{text}</td>"


def _best(values: Sequence[float | None], *, higher: bool) -> float | None:
    known = [value for value in values if value is not None]
    return (max if higher else min)(known) if len(values) > 1 and known else None


def _summary_table(report: Report) -> str:
    evaluation = report.evaluation
    contestants = evaluation.contestants
    head = _th("model", numeric=False) + "".join(_measure_th(measure) for measure in evaluation.measures)
    if evaluation.embedding is not None:
        head += _th("Fréchet ↓", hint=FRECHET_MEANING)
    head += _th("× realtime ↑", hint=REALTIME_MEANING) + _th("kb/s", hint="of the codes; continuous models have none")
    head += _th("Hz") + _th("latency", hint="of streaming models; taken out of the comparison")
    summaries = {m.name: [summarize(report.rows_of(c), m) for c in contestants] for m in evaluation.measures}
    best = {m.name: _best([s.mean for s in summaries[m.name]], higher=m.higher) for m in evaluation.measures}
    scores = [evaluation.frechet(c.name) if evaluation.embedding else None for c in contestants]
    best_score = _best([score.value if score else None for score in scores], higher=False)
    lines = []
    for index, contestant in enumerate(contestants):
        rows, machine = report.rows_of(contestant), contestant.machine
        step = "" if contestant.step is None else f"<small>{contestant.step:,} updates</small>"
        notes = "".join(f"<small class=\"caution\">{_e(note)}</small>" for note in contestant.notes)
        cells = f"<td class=\"name\" data-v=\"{_e(contestant.name)}\">{_e(contestant.name)}{step}{notes}</td>"
        for measure in evaluation.measures:
            summary = summaries[measure.name][index]
            if summary.mean is None:
                text = f"{NONE}<small>{_e(reasons(summary.undefined))}</small>"
            else:
                text = f"{number(summary.mean)}<small>median {number(summary.median)}</small>"
                text += f"<small>worst {number(summary.worst)}</small>"
                if summary.undefined:
                    text += f"<small class=\"caution\">undefined: {_e(reasons(summary.undefined))}</small>"
            hint = f"worst: {summary.worst_file}" if summary.worst_file else ""
            is_best = summary.mean is not None and summary.mean == best[measure.name]
            cells += _td(summary.mean, text, best=is_best, hint=hint)
        score = scores[index]
        if score is not None:
            text = f"{number(score.value)}<small>{score.count:,} × {score.dimension}</small>"
            if score.caution:
                text += "<small class=\"caution\">too few</small>"
            cells += _td(
                score.value, text, best=score.value is not None and score.value == best_score, hint=score.caution
            )
        cells += _td(pace(rows), number(pace(rows))) + _td(contestant.bitrate, bitrate(contestant))
        cells += _td(machine.sample_rate, str(machine.sample_rate))
        if not machine.streaming:
            cells += _td(0.0, "offline")
        elif machine.latency is None:
            cells += _td(None, "not told")
        else:
            milliseconds = 1000 * machine.latency / machine.sample_rate
            cells += _td(milliseconds, f"{milliseconds:.1f} ms<small>taken out</small>")
        lines.append(f"<tr>{cells}</tr>")
    embedding = f"<p class=\"hint\">Fréchet distance on {_e(evaluation.embedding.name)}.</p>" if evaluation.embedding \
        else ""
    return (
        "<h2>Models</h2><div class=\"scroll\"><table class=\"sortable\" id=\"models\">"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"<p class=\"hint\">Large: mean over the files. ↑ more is better, ↓ less is. Bold: the best mean. "
        f"Click a heading to sort.</p>{embedding}"
    )


def _cautions(report: Report) -> str:
    items = [
        f"{_e(file)}: {_e(row.problem)}" + ("" if len(rows) == len(report.evaluation.contestants) else
                                            f" <small>({_e(', '.join(r.model for r in rows))})</small>")
        for file, rows in report.problems().items() for row in rows[:1]
    ]  # fmt: skip
    if report.evaluation.embedding is not None:
        for contestant in report.evaluation.contestants:
            score = report.evaluation.frechet(contestant.name)
            if score.caution:
                items.append(f"{_e(contestant.name)}, Fréchet: {_e(score.caution)}")
            if score.left_out:
                items.append(f"{_e(contestant.name)}, Fréchet, files left out: {_e(reasons(score.left_out))}")
    if not items:
        return ""
    return f"<h2>Problems</h2><ul class=\"warning\">{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _examples(report: Report) -> str:
    if not report.examples:
        return ""
    blocks = []
    for example in report.examples:
        sounds = [("original", example.original), *example.made.items()]
        levels = {name: pictures.mel_decibels(sound, example.rate) for name, sound in sounds}
        loudest = max(float(levels["original"].max()), pictures.FAINTEST)
        marks = "".join(
            f"<i style=\"bottom:{100 * height:.1f}%\">{_e(label)}</i>"
            for label, height in pictures.frequency_marks(example.rate)
        )
        cards = []
        for name, sound in sounds:
            caption = example.captions.get(name, "")
            if float(sound.abs().max()) > 1:
                caption = f"{caption}{', ' * bool(caption)}clipped here"
            cards.append(
                f"<figure><figcaption><b>{_e(name)}</b><span>{_e(caption)}</span></figcaption>"
                f"<div class=\"picture\"><img alt=\"spectrogram of {_e(name)}\" "
                f"src=\"{pictures.picture(levels[name], loudest)}\">{marks}</div>"
                f"<audio controls preload=\"metadata\" src=\"{pictures.player(sound, example.rate)}\"></audio></figure>"
            )
        seconds = example.original.shape[-1] / example.rate
        blocks.append(
            f"<section class=\"example\"><h3>{_e(example.file)} <small>{seconds:.1f} s</small></h3>"
            f"<div class=\"grid\">{''.join(cards)}</div></section>"
        )
    bar = (
        f"<p class=\"hint\">Mel spectrograms; within a file one scale of colours for all: "
        f"−{pictures.RANGE:.0f} dB <img class=\"bar\" alt=\"\" src=\"{pictures.scale_bar()}\"> the original's loudest. "
        "The middle of each file; a player that is started goes on where the last one of its file was.</p>"
    )
    return f"<h2>Listen</h2>{bar}{''.join(blocks)}"


def _file_table(report: Report) -> str:
    measures = report.evaluation.measures
    head = _th("file", numeric=False) + _th("model", numeric=False) + _th("s") + "".join(map(_measure_th, measures))
    head += _th("× realtime ↑") + _th("notes", numeric=False)
    lines = []
    for row in report.evaluation.rows:
        cells = f"<td class=\"name\" data-v=\"{_e(row.file)}\">{_e(row.file)}</td>"
        cells += f"<td data-v=\"{_e(row.model)}\">{_e(row.model)}</td>" + _td(row.seconds, f"{row.seconds:.2f}")
        for measure in measures:
            value = row.values.get(measure.name)
            missing = row.undefined.get(measure.name, NONE)
            cells += _td(value, number(value) if value is not None else f"<small>{_e(missing)}</small>")
        notes = "; ".join(row.notes)
        problem = f"<span class=\"caution\">{_e(row.problem)}</span> " if row.problem else ""
        cells += _td(row.realtime, number(row.realtime)) + f"<td class=\"notes\">{problem}{_e(notes)}</td>"
        lines.append(f"<tr>{cells}</tr>")
    return (
        "<h2>Files</h2><div class=\"scroll\"><table class=\"sortable\" id=\"files\">"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _meanings(report: Report) -> str:
    items = [
        (_title(measure) + (" (a measure of speech)" if measure.speech else ""), measure.meaning)
        for measure in report.evaluation.measures
    ]
    if report.evaluation.embedding is not None:
        items.append(("Fréchet ↓", FRECHET_MEANING))
    items.append(("× realtime ↑", REALTIME_MEANING))
    text = "".join(f"<dt>{_e(name)}</dt><dd>{_e(meaning)}</dd>" for name, meaning in items)
    return f"<h2>What the numbers mean</h2><dl class=\"meanings\">{text}</dl>"


STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfa; --card: #fff; --ink: #1c1d21; --soft: #63666f; --line: #e2e3e6;
  --accent: #6b3fa0; --mark: #f1eafa; --warn: #9a3412; --warnbg: #fff4ec; }
@media (prefers-color-scheme: dark) { :root { --bg: #131417; --card: #1b1d21; --ink: #e8e9ec; --soft: #9a9da6;
  --line: #2e3138; --accent: #c6a4f5; --mark: #2a2336; --warn: #fdba8c; --warnbg: #2e2018; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1400px; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; }
h3 { font-size: 1rem; margin: 0 0 .7rem; font-weight: 600; overflow-wrap: anywhere; }
small { color: var(--soft); font-size: .8em; font-weight: 400; }
.lead { margin: .2rem 0 1rem; color: var(--soft); } .lead b { color: var(--ink); }
.hint { color: var(--soft); font-size: .85rem; margin: .5rem 0; }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: 0; font-size: .85rem; }
.facts div { display: flex; gap: .4rem; } .facts dt { color: var(--soft); white-space: nowrap; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .55rem .65rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
tbody tr:hover { background: color-mix(in srgb, var(--mark) 45%, transparent); }
th { padding: 0; font-size: .82rem; white-space: nowrap; }
th button { all: unset; cursor: pointer; padding: .6rem .65rem; width: 100%; box-sizing: border-box;
  color: var(--soft); font-weight: 600; }
th button:hover, th button:focus-visible { color: var(--accent); }
th.n button, td.n { text-align: right; white-space: nowrap; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
td small { display: block; line-height: 1.35; } td.name { font-weight: 500; overflow-wrap: anywhere; min-width: 9rem; }
td.best { background: var(--mark); font-weight: 700; } td.notes { font-size: .82rem; color: var(--soft); }
.caution { color: var(--warn); } td.name small.caution { max-width: 22rem; }
.warning { color: var(--warn); background: var(--warnbg); border-radius: 10px; padding: .7rem 1rem; }
ul.warning { padding-left: 2rem; margin: 0; overflow-wrap: anywhere; } .warning small { color: inherit; }
.example { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem;
  margin: 0 0 1rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { display: flex; justify-content: space-between; gap: .5rem;
  font-size: .85rem; margin-bottom: .3rem; } figcaption span { color: var(--soft); }
.picture { position: relative; border-radius: 6px; overflow: hidden; background: #000; height: 190px; }
.picture img { width: 100%; height: 100%; display: block; }
.picture i { position: absolute; left: 4px; transform: translateY(50%); font: 10px/1 system-ui, sans-serif;
  color: #fff; background: #0009; border-radius: 3px; padding: 2px 4px; pointer-events: none; }
audio { width: 100%; height: 36px; margin-top: .5rem; display: block; }
.bar { height: .7em; width: 8rem; border-radius: 3px; vertical-align: baseline; }
.meanings { font-size: .9rem; display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0; }
.meanings dt { font-weight: 600; } .meanings dd { margin: 0; color: var(--soft); }
@media (max-width: 700px) { body { padding: 1rem .8rem 3rem; } .meanings { grid-template-columns: 1fr; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => { const cell = row.cells[column]; return cell.dataset.v ?? (head.classList.contains("n") ? null
      : cell.textContent); };
    const sorted = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null);
      const order = head.classList.contains("n") ? x - y : x.localeCompare(y, undefined, {numeric: true});
      return up ? order : -order;
    });
    body.append(...sorted);
  }));
}
for (const group of document.querySelectorAll(".example")) {
  let last = null;
  for (const player of group.querySelectorAll("audio")) player.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== player) other.pause();
    if (last && last !== player && !last.ended && last.currentTime < player.duration)
      player.currentTime = last.currentTime;
    last = player;
  });
}
"""
