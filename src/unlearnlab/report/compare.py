"""What ``unlearnlab compare`` shows of several studies: tables in the terminal, CSV files, figures and one page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnlab.report.canvas import Drawing
from unlearnlab.report.compare_figures import draw
from unlearnlab.report.page import explained, fill, write_folder
from unlearnlab.report.tables import (
    ASCII,
    DASH,
    VERDICT_STYLES,
    Cell,
    Column,
    Footnotes,
    Json,
    band,
    bracket,
    groups,
    interval,
    number,
    percent,
    ratio,
    share,
    signed,
    verdict,
)

if TYPE_CHECKING:
    from rich.console import Console

LONG = 64  # letters of a setting's value on the page
SIGNIFICANT = 0.05
READING = (
    "trace: share of the forget set’s mark that is left: 1 original, 0 oracle, below 0 over-forgotten; [95 % interval]",
    "acc.: right is what the retrain row of the same study scores, also on the forget set",
    "ToW: closeness to the oracles of the same study in forget, retain and test accuracy: 1 the same",
    "cost: time as a share of training from scratch, on the machine of that study",
)


class Line(NamedTuple):
    """A method in one study, or in one pair of studies; ``apart``: a row that calibrates."""

    method: str
    study: str
    apart: bool
    cells: tuple[Cell, ...]
    words: tuple[str, bool, str] = ("", False, "")  # verdict: label, damaged, the rest


class Sheet(NamedTuple):
    """A table: ``columns`` after method and study, ``verdicts`` in the last one."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    verdicts: bool = False


def columns(document: Json) -> tuple[Column, ...]:
    """The headline columns that some study has."""
    held = [one for row in document["rows"] for one in row["in"] if one]
    parts = [("", "whole"), *((f"group.{name}.", band(name)) for name in groups({"rows": held}))]
    every = (
        *(Column(f"{at}trace", "trace", name, ratio, "share of the mark left: 1 original, 0 oracle", with_interval=True) for at, name in parts),
        Column("asr", "backdoor %", "ASR", percent, "images with the trigger that are taken for its class", with_interval=True),
        Column("sa", "backdoor %", "SA", percent, "test images without the trigger that are classified rightly", with_interval=True),
        Column("acc.retain", "acc. %", "retain", percent, "on the images that stay"),
        Column("acc.forget", "acc. %", "forget", percent, "on the images to forget; right is what oracles score"),
        Column("acc.test", "acc. %", "test", percent, "on images never trained on"),
        Column("tow", "ToW", "acc.", ratio, "closeness to the oracles in forget, retain and test accuracy: 1 the same"),
        Column("tow_mia", "ToW", "MIA", ratio, "the same with an attack in place of forget accuracy"),
        Column("cost.fraction", "cost", "share", share, "time as a share of training from scratch"),
    )
    return tuple(column for column in every if column.key == "trace" or any(column.value(one) is not None for one in held))


def results(document: Json) -> Sheet:
    """Every method in each study."""
    chosen, lines = columns(document), []
    for row in document["rows"]:
        for study, held in zip(document["studies"], row["in"], strict=True):
            cells = (Cell(DASH),) * len(chosen) if held is None else tuple(column.cell(held) for column in chosen)
            words = (DASH, False, "") if held is None or row["calibration"] else verdict(held)
            lines.append(Line(row["method"], study["label"], row["calibration"], cells, words))
    return Sheet(chosen, tuple(lines), verdicts=True)


def differences(document: Json) -> Sheet:
    """Every method in each study, minus the same in the first study."""
    keys = {key for pair in document["pairs"] for held in pair["differences"].values() for key in held}
    chosen = tuple(replace(column, form=_points if column.form is percent else signed) for column in columns(document) if column.key in keys)
    lines = []
    for row in document["rows"]:
        for pair in document["pairs"]:
            held = pair["differences"][row["method"]]
            cells = tuple(_difference(held.get(column.key), column.form) for column in chosen)
            lines.append(Line(row["method"], f"{pair['other']} − {pair['one']}", row["calibration"], cells))
    return Sheet(chosen, tuple(lines))


def _points(value: float) -> str:
    return "0.0" if (text := f"{100 * value:+.1f}") in ("+0.0", "-0.0") else text


def _difference(held: Json | None, form: Callable[[float], str]) -> Cell:
    if held is None:
        return Cell(DASH)
    value, lo, hi, p = (number(held[name]) for name in ("value", "lo", "hi", "holm_p"))
    if value is None:
        return Cell(DASH, reason=held["missing"])
    mark = "*" if p is not None and p <= SIGNIFICANT else ""
    return Cell(f"{form(value)}{mark}", "" if lo is None or hi is None else bracket((lo, hi), form), held["missing"])


def reading(document: Json) -> list[str]:
    """How to read the tables, as far as they have such columns."""
    bands = {column.band for column in columns(document)}
    return [line for line in READING if line.split(":")[0] in {"acc." if one == "acc. %" else one for one in bands}]


def comparing_words(document: Json) -> list[str]:
    """How to read the differences."""
    first = document["studies"][0]["label"]
    return [
        f"other study minus {first}; accuracies in points; [95 % interval over models]",
        f"* Holm p ≤ {SIGNIFICANT}, over the methods of one pair and metric; calibration rows are not tested",
        "an interval that covers 0 does not show that studies are alike",
    ]


# ---- the terminal


def print_comparison(document: Json, console: Console) -> None:
    """Print what differs, and both tables; where one is too wide, whole bands of columns flow into further tables below."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def plain(text: str) -> str:
        return text.translate(ASCII) if console.options.ascii_only else text

    def say(line: str, style: str = "") -> None:
        console.print(Text(plain(line), style=style))

    say(document["title"], "bold")
    for note in _said(document):
        say(f"note: {note}", "yellow")
    for title, sheet, words in (("Results", results(document), reading(document)), ("Differences", differences(document), comparing_words(document))):
        say("")
        say(title, "bold")
        notes = Footnotes()
        for chosen, last in _fitting(sheet, console.width):
            table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
            table.add_column("\nmethod", overflow="fold", max_width=24)
            table.add_column("\nstudy", overflow="fold", max_width=28)
            for at in chosen:
                above = sheet.columns[at].band if at == chosen[0] or sheet.columns[at].band != sheet.columns[at - 1].band else ""
                table.add_column(f"{above}\n{sheet.columns[at].heading}", justify="right", overflow="fold")
            if last and sheet.verdicts:
                table.add_column("\nverdict", overflow="fold")
            for i, line in enumerate(sheet.lines):
                first, ends = i == 0 or sheet.lines[i - 1].method != line.method, i + 1 == len(sheet.lines) or sheet.lines[i + 1].method != line.method
                cells = [Text(plain(_text(line.cells[at], notes))) for at in chosen]
                label, damaged, _ = line.words
                if last and sheet.verdicts:
                    cells.append(Text(plain(f"{'damaged, ' if damaged else ''}{label}"), style=VERDICT_STYLES.get(label, "")))
                names = (Text(plain(line.method if first else "")), Text(plain(line.study)))
                table.add_row(*names, *cells, style="dim" if line.apart else "", end_section=ends)
            console.print(table)
        for reason, letter in notes.reasons.items():
            say(f"{letter}  {reason}")
        for word in words:
            say(word, "dim")


def _text(cell: Cell, notes: Footnotes) -> str:
    return " ".join(filter(None, (cell.text, notes.mark(cell.reason), cell.interval)))


def _said(document: Json) -> list[str]:
    """Notes for the terminal: what differs, and how each pair was compared."""
    labels = [study["label"] for study in document["studies"]]
    found = []
    for one in document["differs"]:
        values = dict[str, list[str]]()
        for label, value in zip(labels, one["values"], strict=True):
            values.setdefault(_cut(value), []).append(label)
        told = "; ".join(f"{value} in {', '.join(held)}" for value, held in values.items())
        found.append(f"{one['setting']} differs: {told}")
    return [*found, *_pair_notes(document)]


def _pair_notes(document: Json) -> list[str]:
    """The notes of all pairs; what holds for every pair once."""
    said: dict[str, list[str]] = {}
    for pair in document["pairs"]:
        for note in pair["notes"]:
            said.setdefault(note, []).append(pair["other"])
    everywhere = [note for note, others in said.items() if len(others) == len(document["pairs"])]
    return everywhere + [f"{', '.join(others)}: {note}" for note, others in said.items() if note not in everywhere]


def _fitting(sheet: Sheet, width: int) -> Iterator[tuple[list[int], bool]]:
    """Columns that fit beside method and study, whole bands together, and whether they are the last ones."""
    names = min(24, max(6, *(len(line.method) for line in sheet.lines))) + min(28, max(5, *(len(line.study) for line in sheet.lines))) + 4
    bands: dict[str, list[int]] = {}
    for at, column in enumerate(sheet.columns):
        bands.setdefault(column.band, []).append(at)
    widths = [
        max(len(column.heading), len(column.band), *(len(_text(line.cells[at], Footnotes())) for line in sheet.lines)) + 2
        for at, column in enumerate(sheet.columns)
    ]
    verdicts = 1 + max(len(line.words[0]) + 9 * line.words[1] for line in sheet.lines) if sheet.verdicts else 0
    found: list[list[int]] = [[]]
    for name, held in bands.items():
        need = sum(widths[at] for at in (*found[-1], *held)) + (verdicts if name == [*bands][-1] else 0)
        if found[-1] and names + need > width - 1:
            found.append([])
        found[-1] += held
    for at, held in enumerate(found):
        yield held, at == len(found) - 1


# ---- files


def write_compare(document: Json, folder: Path) -> Path:
    """``report.html``, ``compare.json``, ``figures/compare-*.svg``, ``tables/compare.csv`` and ``differences.csv``: each whole or not at all."""
    drawings, tables = draw(document), {"compare": _long(document), "differences": _pairs(document)}
    return write_folder(document, folder, "compare", tables, drawings, render(document, drawings))


def render(document: Json, drawings: Sequence[Drawing]) -> str:
    """The page as text."""
    tables = []
    for title, sheet, words in (
        ("Every method in each study", results(document), reading(document)),
        (f"What changes from {document['studies'][0]['label']}", differences(document), comparing_words(document)),
    ):
        notes, methods = Footnotes(), dict[str, list[Any]]()
        for line in sheet.lines:
            methods.setdefault(line.method, []).append((line, [(cell, notes.mark(cell.reason)) for cell in line.cells]))
        tables.append({"title": title, "sheet": sheet, "methods": methods, "notes": notes.reasons, "words": words})
    shown = {column.key for column in columns(document)}
    keys = [key for key in document["metrics"] if key in shown]
    settings = [(one["setting"], [(_cut(value), str(value)) for value in one["values"]]) for one in document["differs"]]
    held = {"facts": _facts(document), "tables": tables, "settings": settings, "notes": _pair_notes(document), "explained": explained(document, keys)}
    return fill("compare.html.j2", drawings, document=document, **held)


def _cut(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONG else f"{text[: LONG - 1]}…"


def _facts(document: Json) -> list[str]:
    held = [f"{len(document['studies'])} studies", f"{sum(not row['calibration'] for row in document['rows'])} methods"]
    sizes = list(dict.fromkeys((study["models"] or {}).get("originals") for study in document["studies"]))
    return [*held, f"{' / '.join(map(str, sizes))} models of each kind", document["created"]]


def _long(document: Json) -> Iterable[Sequence[Any]]:
    yield "study", "method", "metric", "value", "lo", "hi", "floor", "ceiling", "rescaled", "missing"
    for row in document["rows"]:
        for study, held in zip(document["studies"], row["in"], strict=True):
            for key, one in (held or {"results": {}})["results"].items():
                anchors = [number((one.get(name) or {}).get("mean")) for name in ("floor", "ceiling")]
                ends = interval(one) or (None, None)
                yield study["name"], row["method"], key, number(one["value"]), *ends, *anchors, number(one.get("rescaled")), one.get("missing")


def _pairs(document: Json) -> Iterable[Sequence[Any]]:
    names = ("value", "lo", "hi", "p", "holm_p", "how", "missing")
    yield "reference", "study", "method", "metric", "difference", *names[1:]
    for pair in document["pairs"]:
        for method, held in pair["differences"].items():
            for key, one in held.items():
                yield pair["one"], pair["other"], method, key, *(one[name] for name in names)
