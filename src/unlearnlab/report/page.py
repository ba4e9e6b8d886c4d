"""One self-contained HTML page: the answer, the table, the figures, and everything needed to doubt them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnlab.report.canvas import Drawing, write_figures
from unlearnlab.report.figures import draw
from unlearnlab.report.tables import (
    BETTER,
    DASH,
    Cell,
    Column,
    Footnotes,
    Json,
    bracket,
    budget_lines,
    columns,
    corrected,
    csv_text,
    difference_columns,
    group_columns,
    interval,
    number,
    ordered,
    ratio,
    result,
    save,
    verdict,
    write_csvs,
)

NAMED = 8  # methods that a sentence of the answer names
PHRASES = {
    "forgotten": tuple(f"forgot: {whose} models cannot be told from models that never saw the images" for whose in ("its", "their")),
    "not forgotten": ("did not forget", "did not forget"),
    "3c": tuple(f"did not forget: little or no trace, yet {whose} models can still be told from oracles" for whose in ("its", "their")),
    "over-forgotten": tuple(f"over-forgot: {who} pushed past the point where the images were never seen" for who in ("it", "they")),
    "unresolved": ("stays unresolved: this many models cannot decide", "stay unresolved: this many models cannot decide"),
    "no verdict": ("got no verdict", "got no verdict"),
}


def write_report(document: Json, folder: Path) -> Path:
    """The page, the tables and the figures of one stored audit: ``report.html``, ``tables/*.csv``, ``figures/*.svg``."""
    drawings = draw(document)
    write_csvs(document, folder / "tables")
    write_figures(drawings, folder / "figures")
    return write_page(document, folder / "report.html", drawings)


def write_folder(document: Json, folder: Path, name: str, tables: Mapping[str, Iterable[Sequence[Any]]], drawings: Sequence[Drawing], page: str) -> Path:
    """``report.html``, ``NAME.json`` with the document, ``figures/*.svg``, ``tables/*.csv``: each whole or not at all; returns the page."""
    save(folder / f"{name}.json", json.dumps(document, ensure_ascii=False, allow_nan=False))
    for table, lines in tables.items():
        save(folder / "tables" / f"{table}.csv", csv_text(lines))
    write_figures(drawings, folder / "figures")
    save(folder / "report.html", page)
    return folder / "report.html"


def write_page(document: Json, path: Path, drawings: Sequence[Drawing] | None = None) -> Path:
    """Write the page whole or not at all; ``drawings`` are made here unless given."""
    save(path, render(document, draw(document) if drawings is None else drawings))
    return path


def render(document: Json, drawings: Sequence[Drawing]) -> str:
    """The page as text. Whatever the document holds is escaped; only our own SVG is not."""
    rows, notes, machine = ordered(document), Footnotes(), document.get("environment") or {}
    degrees, measured = _by_trust(document, rows), dict.fromkeys(key for row in rows for key in row.get("results", {}))
    described = [key for keys in degrees.values() for key in keys]  # not: results of groups, and audits stored before metrics were described
    return fill(
        "page.html.j2",
        drawings,
        document=document,
        facts=_facts(document),
        answer=_answer(rows),
        columns=columns(document),
        rows=[_row(row, document, notes) for row in rows],
        notes=notes.reasons,
        budget=budget_lines(document),
        of_groups=_grouped(rows, group_columns(document)),
        differences=_grouped(rows, difference_columns(document)),
        supporting=_metrics(rows, degrees),
        others=_metrics(rows, {"": [key for key in measured if key not in described]}),
        explained=explained(document, described),
        remarks=_remarks(rows),
        settings=list(_flat(document.get("study") or {})),
        tuned=[(row["method"], row.get("origin", ""), _plain(row.get("settings") or {})[1:-1]) for row in rows],
        environment={key: f"{held:.0f} s" if key == "seconds" and number(held) is not None else held for key, held in machine.items()},
    )


def fill(template: str, drawings: Sequence[Drawing], **held: Any) -> str:
    """One of our templates, filled: the style sheet inside, nothing from elsewhere, and a policy that lets nothing in."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("unlearnlab.report")
    text, style = ((folder / name).read_text(encoding="utf-8") for name in (template, "page.css"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["minus"] = lambda text: str(text).replace("-", "−")
    # The policy names the one style sheet by its hash: nothing else on the page can load, run or restyle anything.
    seal = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{seal}'; base-uri 'none'; form-action 'none'"
    drawn = [{"name": one.name, "title": one.title, "caption": one.caption, "missing": one.missing, "svg": Markup(one.svg)} for one in drawings]
    return environment.from_string(text).render(style=Markup(style), policy=policy, drawings=drawn, **held)


def _row(row: Json, document: Json, notes: Footnotes) -> dict[str, Any]:
    label, damaged, rest = verdict(row)
    cells = [(cell, notes.mark(cell.reason)) for cell in (column.cell(row) for column in columns(document))]
    words = {"label": label, "damaged": damaged, "rest": rest, "kind": _kind(label, row)}
    origin = "" if row.get("calibration") else row.get("origin", "")
    return {"method": row["method"], "origin": origin, "calibration": bool(row.get("calibration")), "cells": cells, **words}


def _grouped(rows: Sequence[Json], chosen: Sequence[Column]) -> dict[str, Any]:
    """A table with a line for every method: cells, Holm's p where a difference has one, and the reasons for what is absent."""
    notes = Footnotes()
    lines = []
    for row in rows:
        cells = [(column, column.cell(row)) for column in chosen]
        held = [(cell, corrected(row, column.key), notes.mark(cell.reason)) for column, cell in cells]
        lines.append({"method": row["method"], "calibration": bool(row.get("calibration")), "cells": held})
    return {"columns": chosen, "lines": lines, "notes": notes.reasons}


def _kind(label: str, row: Json) -> str:
    """The class that colours a verdict; unknown labels stay grey."""
    return label.replace(" ", "-") if label in PHRASES and not row.get("calibration") else "other"


def _facts(document: Json) -> list[str]:
    """The line under the title: sizes of the study, as far as they are stored."""
    data, models = document.get("data") or {}, document.get("models") or {}
    facts = [f"preset {document['preset']}"] if document.get("preset") else []
    if (forget := data.get("forget")) is not None:
        wrong = f", {data['mislabelled_forget']} of them mislabelled" if data.get("mislabelled_forget") else ""
        facts.append(f"{forget} of {forget + data.get('retain', 0)} training images to forget{wrong}")
    if held := [f"{data[name]} {name}" for name in ("control", "validation", "test") if data.get(name) is not None]:
        facts.append(f"{', '.join(held)} images")
    if models:
        facts.append(", ".join(f"{count} {name}" for name, count in models.items()))
    return [*facts, *([str(document["created"])] if document.get("created") else [])]


def _answer(rows: Sequence[Json]) -> list[dict[str, Any]]:
    """Who forgot and who did not, in plain words: a sentence per verdict, best first."""
    judged = [(_sort(row), row) for row in rows if not row.get("calibration")]
    sorts = [*PHRASES, *dict.fromkeys(sort for sort, _ in judged if sort not in PHRASES)]
    sentences: list[dict[str, Any]] = []
    for sort in sorts:
        of_sort = [row for one, row in judged if one == sort]
        words = PHRASES.get(sort, (f"got the verdict “{sort}”",) * 2)[len(of_sort) != 1]
        if sort == "no verdict" and (reasons := list(dict.fromkeys(rest for row in of_sort if (rest := verdict(row)[2])))):
            words += f" ({'; '.join(reasons)})"
        if of_sort or (sort == "forgotten" and judged):
            traces = [DASH if (value := number(result(row, "trace").get("value"))) is None else ratio(value).replace("-", "−") for row in of_sort]
            methods = [{"name": row["method"], "trace": trace, "damaged": verdict(row)[1]} for row, trace in zip(of_sort, traces, strict=True)]
            more = len(methods) - NAMED if len(methods) > NAMED + 2 else 0  # a sentence of twenty names is a table
            sentences.append(
                {
                    "methods": methods[: len(methods) - more],
                    "more": more,
                    "words": words,
                    "kind": _kind("not forgotten" if sort == "3c" else sort, {}),
                    "count": len(judged),
                }
            )
    return sentences


def _sort(row: Json) -> str:
    """The verdict's label; rule 3c apart, since "not forgotten" with a trace near 0 wants its own words."""
    return "3c" if (row.get("verdict") or {}).get("rule") == "3c" else verdict(row)[0]


def _by_trust(document: Json, rows: Sequence[Json]) -> dict[str, list[str]]:
    """The keys of metrics that say of themselves how far to trust them, under the words for each degree, most trusted first."""
    known, measured = document.get("metrics") or {}, {key for row in rows for key in row.get("results", {})}
    degrees = {words: [key for key, held in known.items() if key in measured and held.get("trust") == rank] for rank, words in document.get("trust") or ()}
    return {words: keys for words, keys in degrees.items() if keys}


def explained(document: Json, keys: Iterable[str]) -> list[tuple[str, ...]]:
    """Of these metrics: key, what it asks, what a perfect unlearner scores, when not to trust it."""
    known = document.get("metrics") or {}
    return [(key, *(str(known[key].get(name) or "") for name in ("summary", "ideal", "caution"))) for key in keys]


def _metrics(rows: Sequence[Json], families: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Lines by family, one per result key: floor, ceiling, and a cell per method."""
    lines: list[dict[str, Any]] = []
    for family, keys in families.items():
        for key in keys:
            held = [result(row, key) for row in rows]
            line = {"key": key, "about": family if key == keys[0] else "", "cells": [_metric_cell(one) for one in held]}
            line["better"] = BETTER.get(str(next((one["better"] for one in held if one.get("better")), "")), "")
            lines.append(line | {name: _anchor(held, name) for name in ("floor", "ceiling")})
    return lines


def _metric_cell(held: Json) -> dict[str, Any]:
    value, rescaled, p = (number(held.get(name)) for name in ("value", "rescaled", "p"))
    if value is None:
        return {"cell": Cell(DASH, reason=str(held.get("missing") or "")), "more": []}
    more = ([f"r {ratio(rescaled)}"] if rescaled is not None else []) + ([f"p {_digits(p)}"] if p is not None and p != value else [])
    return {"cell": Cell(_digits(value), bracket(ends, _digits) if (ends := interval(held)) else ""), "more": more}


def _digits(value: float) -> str:
    """About three figures that matter, whatever the size: results of unknown keys come in any unit."""
    size = abs(value)
    if 0 < size < 0.001:
        return f"{value:.1g}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}" if value else "0"


def _anchor(held: Sequence[Json], name: str) -> str:
    """Floor or ceiling over the rows: one number, or the span where rows differ."""
    means = [mean for one in held if (mean := number((one.get(name) or {}).get("mean"))) is not None]
    if not means:
        return DASH
    lo, hi = _digits(min(means)), _digits(max(means))
    return lo if lo == hi else f"{lo} to {hi}"


def _remarks(rows: Sequence[Json]) -> list[tuple[str, str, str]]:
    """Notes and dropped examples of the results: key, what, and for which methods."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for key, held in row.get("results", {}).items():
            drops = [f"{count} examples dropped: {why}" for count, why in held.get("dropped") or ()]
            anchors = [f"{name}: {note}" for name in ("floor", "ceiling") if (note := (held.get(name) or {}).get("note"))]
            for words in (*(held.get("notes") or ()), *drops, *anchors):
                said.setdefault((key, str(words)), []).append(str(row["method"]))
    # The same remark on many keys is one line.
    merged: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (key, words), methods in said.items():
        merged.setdefault((words, tuple(methods)), []).append(key)
    return [(", ".join(keys), words, "all methods" if len(methods) == len(rows) else ", ".join(methods)) for (words, methods), keys in merged.items()]


def _flat(held: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines of dotted path and value; a list of named tables goes by name."""
    for key, value in held.items():
        here = f"{path}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{here}.")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for at, one in enumerate(value):
                yield from _flat({name: held for name, held in one.items() if name != "name"} or {"": "defaults"}, f"{here}.{one.get('name', at)}.")
        else:
            yield here.removesuffix("."), _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_plain(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
