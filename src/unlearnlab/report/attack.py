"""What ``unlearnlab attack`` shows of an audit from logits alone: tables in the terminal, CSV files, figures and one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnlab.report.attack_figures import draw
from unlearnlab.report.attack_tables import Sheet, facts, rows, sheets
from unlearnlab.report.canvas import Drawing
from unlearnlab.report.page import explained, fill, write_folder
from unlearnlab.report.tables import ASCII, RESULT_FIELDS, Footnotes, Json, interval, number, result

if TYPE_CHECKING:
    from rich.console import Console

NAME = 16  # letters of an approach in a line of the terminal
EPSILON_FIELDS = (
    *("approach", "unlearned", "oracles", "published", "infinite", "nan", "published_at_half", "published_floor", "crossfit", "lo", "hi"),
    *("crossfit_at_half", "crossfit_floor", "certified", "most_certifiable", "cap", "half", "identical"),
)


# ---- the terminal


def print_attack(document: Json, console: Console) -> None:
    """Print all tables; where one is too wide, whole bands of columns flow into further tables below."""
    from rich.text import Text

    def say(line: str, style: str = "") -> None:
        console.print(Text(line.translate(ASCII) if console.options.ascii_only else line, style=style))

    say(document["title"], "bold")
    say(" · ".join(facts(document)))
    say(f"originals: {document['originals']['words']}")
    for note in document["notes"]:
        say(f"note: {note}")
    for warning in document["warnings"]:
        say(f"warning: {warning}", "yellow")
    for sheet in sheets(document):
        say("")
        say(sheet.title, "bold")
        notes = Footnotes()
        for table in _tables(sheet, notes, console):
            console.print(table)
        for reason, letter in notes.reasons.items():
            say(f"{letter}  {reason}")
        for line in sheet.words:
            say(line, "dim")


def _tables(sheet: Sheet, notes: Footnotes, console: Console) -> Iterator[Any]:
    """The sheet as tables that fit the console."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def plain(text: str) -> str:
        return text.translate(ASCII) if console.options.ascii_only else text

    texts = [[plain(" ".join(filter(None, (cell.text, notes.mark(cell.reason), cell.interval)))) for cell in cells] for _, _, cells in sheet.lines]
    bands: list[list[int]] = []
    for at, heading in enumerate(sheet.headings):
        if not bands or heading.band != sheet.headings[bands[-1][0]].band:
            bands.append([])
        bands[-1].append(at)
    widths = [max([len(heading.text), *(len(line[at]) for line in texts)]) for at, heading in enumerate(sheet.headings)]
    widths = [min(width, 46) for width in widths]  # a verdict's words fold
    room = console.width - 1 - min(NAME, max(len(name) for name, _, _ in sheet.lines))
    groups: list[list[int]] = [[]]
    for band in bands:
        if groups[-1] and sum(widths[at] + 2 for at in (*groups[-1], *band)) > room:
            groups.append([])
        groups[-1] += band
    for group in groups:
        table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
        table.add_column("\n", overflow="fold", max_width=NAME)
        before = ""
        for at in group:
            heading = sheet.headings[at]
            title = plain(heading.band) if heading.band != before else ""
            words = heading.text == "verdict"
            table.add_column(f"{title}\n{plain(heading.text)}", justify="left" if words else "right", no_wrap=not words, overflow="fold")
            before = heading.band
        for (name, apart, _), line in zip(sheet.lines, texts, strict=True):
            table.add_row(Text(plain(name), overflow="fold"), *(Text(line[at]) for at in group), style="dim" if apart else "")
        yield table


# ---- files


def write_attack(document: Json, folder: Path) -> Path:
    """``report.html``, ``attack.json``, ``figures/*.svg``, ``tables/*.csv``: each whole or not at all."""
    drawings = draw(document)
    return write_folder(document, folder, "attack", _csvs(document), drawings, render(document, drawings))


def render(document: Json, drawings: Sequence[Drawing]) -> str:
    """The page as text."""
    tables = []
    for sheet in sheets(document):
        marks = Footnotes()
        lines = [(name, apart, [(cell, marks.mark(cell.reason)) for cell in cells]) for name, apart, cells in sheet.lines]
        tables.append({"title": sheet.title, "headings": sheet.headings, "lines": lines, "notes": marks.reasons, "words": sheet.words})
    measured = {key for row in rows(document) for key in row["results"]}
    words = explained(document, [key for key in document["metrics"] if key in measured])
    return fill("attack.html.j2", drawings, document=document, facts=facts(document), tables=tables, explained=words)


def _csvs(document: Json) -> dict[str, Iterable[Sequence[Any]]]:
    """Tables with all digits. ``nan`` and ``inf`` are written out, what was not computed is empty."""
    keys = document["keys"]
    epsilons: list[list[Any]] = [[*EPSILON_FIELDS]]
    results: list[list[Any]] = [["approach", *RESULT_FIELDS[1:]]]
    for row in rows(document):
        seen = document["per_example"].get(row["method"]) or {}
        published, crossfit = result(row, keys["published"]), result(row, keys["crossfit"])
        halves = [[(held.get("extra") or {}).get("value_at_floor_n"), (held.get("floor") or {}).get("mean")] for held in (published, crossfit)]
        extra, counts = crossfit.get("extra") or {}, [seen.get(name) for name in ("median", "infinite", "undefined")]
        rest = [extra.get(name) for name in ("certified", "most_certifiable", "cap")]
        ends = interval(crossfit) or (None, None)
        epsilons.append([row["method"], *row["models"], *counts, *halves[0], crossfit.get("value"), *ends, *halves[1], *rest, row["half"], row["identical"]])
        for key, one in row["results"].items():
            anchors = [number((one.get(name) or {}).get("mean")) for name in ("floor", "ceiling")]
            numbers = [number(one["value"]), *(interval(one) or (None, None)), *anchors, number(one["rescaled"]), number(one["p"])]
            halved = number((one.get("extra") or {}).get("value_at_floor_n"))
            results.append([row["method"], key, *numbers, *one["n_models"], halved, one["missing"]])
    accuracies: list[list[Any]] = [["approach", "source", "part", "mean", "lo", "hi", "models"]]
    for row in document["accuracies"]:
        for source in ("logged", "logits"):
            accuracies += [[row["method"], source, part, held["mean"], *(interval(held) or (None, None)), held["n"]] for part, held in row[source].items()]
    each = document["per_example"]
    columns = [(f"{name}.{recipe}", held[recipe]) for name, held in each.items() for recipe in ("published", "crossfit") if held[recipe] is not None]
    images = zip(document["ids"], *(values for _, values in columns), strict=True)
    curves = [[name, delta, *((held[recipe] or [None] * len(document["deltas"]))[at] for recipe in ("published", "crossfit"))]
              for name, held in document["curves"].items() for at, delta in enumerate(document["deltas"])]  # fmt: skip
    return {
        "epsilon": epsilons,
        "accuracies": accuracies,
        "results": results,
        "per_example": [["id", *(name for name, _ in columns)], *images],
        "curves": [["approach", "delta", "published", "crossfit"], *curves],
    }
