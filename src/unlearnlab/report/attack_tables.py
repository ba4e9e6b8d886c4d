"""The tables of an audit from logits alone, as they stand in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unlearnlab.report.tables import BETTER, DASH, Cell, Json, bracket, chance, interval, number, percent, ratio, result, share, verdict

EQUAL = (
    "the published recipe fits and scores its attack on the same models, so that even oracles score above 0, and the more the fewer they are: "
    "a median at {n} models a side must not be compared with a baseline at {half}; compare “at {half}” with “floor”"
)
READING = (
    "floor: oracles against oracles, mean of 20 random halves; what a perfect unlearner scores with that many models",
    "certified: share of the images of which ε > 0 is proven at confidence .95; none is no evidence, not proof of forgetting",
)


@dataclass(frozen=True)
class Heading:
    """One column. ``band``: columns of one band stay together, its name above them."""

    band: str
    text: str
    help: str = ""


@dataclass(frozen=True)
class Sheet:
    """One table as it stands in the terminal and on the page, and the lines beneath it."""

    title: str
    headings: tuple[Heading, ...]
    lines: tuple[tuple[str, bool, tuple[Cell, ...]], ...]  # name, set apart from the approaches?, cells
    words: tuple[str, ...] = ()


def sheets(document: Json) -> list[Sheet]:
    """All tables in reading order."""
    found = [_verdicts(document), _epsilon(document), _klom(document), _accuracy(document), *_others(document)]
    return [sheet for sheet in found if sheet is not None]


def rows(document: Json) -> list[Json]:
    return [*document["rows"], *([document["baseline"]] if document["baseline"] else [])]


def _cell(held: Json, form: Callable[[float], str] = ratio) -> Cell:
    """A value with its interval, or the reason why there is none."""
    value, ends = number(held.get("value")), interval(held)
    return Cell(DASH, reason=str(held.get("missing") or "")) if value is None else Cell(form(value), bracket(ends, form) if ends else "")


def _number(held: Any, form: Callable[[float], str] = ratio) -> Cell:
    value = number(held)
    return Cell(DASH if value is None else form(value))


def _at_half(held: Json) -> tuple[Cell, Cell]:
    """Value and floor with half as many models."""
    return _number((held.get("extra") or {}).get("value_at_floor_n")), _number((held.get("floor") or {}).get("mean"))


def _half(document: Json) -> str:
    """How many models a side the floors stand at, in words."""
    halves = {row["half"] for row in document["rows"]}
    return str(next(iter(halves))) if len(halves) == 1 else "N/2"


def _epsilon(document: Json) -> Sheet:
    keys, half = document["keys"], _half(document)
    headings = (
        Heading("published recipe", "median", "median over images, infinities included"),
        Heading("published recipe", "∞", "images on which some cut separates both sides without error"),
        Heading("published recipe", "NaN", "images without any cut that the recipe keeps"),
        Heading("published recipe", f"at {half}", f"the median with {half} models a side, mean of 20 random halves"),
        Heading("published recipe", "floor", f"oracles against oracles, {half} a side"),
        Heading("cross-fitted", "median", "median over images, scored on models that the attack was not fitted on"),
        Heading("cross-fitted", f"at {half}", f"the median with {half} models a side"),
        Heading("cross-fitted", "floor", f"oracles against oracles, {half} a side"),
        Heading("cross-fitted", "certified", "share of the images of which ε > 0 is proven at confidence .95"),
    )
    lines, capped, most = [], [], []
    for row in rows(document):
        seen, own = document["per_example"].get(row["method"]) or {}, row["method"] != (document["baseline"] or {}).get("method")
        published, crossfit = result(row, keys["published"]), result(row, keys["crossfit"])
        extra = crossfit.get("extra") or {}
        cell = _cell(crossfit)
        if number(extra.get("cap")) is not None and cell.text != DASH:
            most.append((row["models"], extra["most_certifiable"]))
            if extra["cap"] * 0.95 <= crossfit["value"]:
                capped.append((row["method"], extra["cap"]))
                cell = Cell(f"{cell.text}*", cell.interval)
        counts = [Cell(DASH if seen.get(name) is None else str(seen[name])) for name in ("infinite", "undefined")]
        certified = _number(extra.get("certified"), share)
        halves = (*_at_half(published), *_at_half(crossfit)) if own and not row["broken"] else (Cell(DASH),) * 4
        cells = (_published(row, seen, published), *counts, *halves[:2], cell, *halves[2:], certified)
        lines.append((row["method"], not own or bool(row["calibration"]), cells))
    floors = any(seen.get("median") is not None for seen in document["per_example"].values())
    words = [_sizes(document), *([EQUAL.format(n=document["models"]["oracles"], half=half)] if floors else []), *READING]
    for models in dict.fromkeys(tuple(sizes) for sizes, _ in most):
        value = next(value for sizes, value in most if tuple(sizes) == models)
        words.append(f"the most that can be certified of an image with {_side(*models)}: ε = {ratio(value)}")
    words += [f"* {name} is at its cap of {ratio(cap)}, the most that this many models can show: do not rank it" for name, cap in capped]
    return Sheet(
        f"Epsilon at δ = {document['delta']:g}: how well an attacker tells unlearned models from oracles, image by image", headings, tuple(lines), tuple(words)
    )


def _published(row: Json, seen: Json, published: Json) -> Cell:
    """The published median, also where it is infinite or no number."""
    if row["identical"]:
        return Cell("identical", reason=row["broken"])
    if seen.get("median") in ("inf", "nan"):
        return Cell({"inf": "∞", "nan": "NaN"}[seen["median"]])
    value = number(seen.get("median"))
    return Cell(DASH, reason=str(row["broken"] or published.get("missing") or "")) if value is None else Cell(ratio(value))


def _sizes(document: Json) -> str:
    """How many models there are a side."""
    sizes: dict[str, list[str]] = {}
    for row in rows(document):
        u, o = row["models"]
        sizes.setdefault(_side(u, o), []).append(row["method"])
    most = max(sizes, key=lambda size: len(sizes[size]))
    return "; ".join([most, *(f"{', '.join(names)}: {size}" for size, names in sizes.items() if size != most)])


def _side(u: int, o: int) -> str:
    return f"{u} models a side" if u == o else f"{u} unlearned models beside {o} oracles"


def _klom(document: Json) -> Sheet | None:
    half, kinds = _half(document), [name for name in ("smooth", "gauss", "hist") if any(result(row, f"klom.{name}.forget") for row in document["rows"])]
    if not kinds:  # no approach was measured
        return None
    headings = [Heading(f"klom.{kind}", text) for kind in kinds for text in ("value", *(() if kind == "smooth" else (f"at {half}",)), "floor")]
    lines = []
    for row in rows(document):
        cells: list[Cell] = []
        for kind in kinds:
            held = result(row, f"klom.{kind}.forget")
            standing = _at_half(held) if kind == "smooth" or row is not document["baseline"] else (Cell(DASH), Cell(DASH))
            cells += [_cell(held), *(standing[1:] if kind == "smooth" else standing)]
        lines.append((row["method"], bool(row["calibration"]), tuple(cells)))
    words = (
        "divergence of the margins of oracles and unlearned models, image by image; lower is better, and perfect is the floor, not 0",
        "smooth has an exact floor at all models",
    )
    return Sheet("KLoM on the forget images", tuple(headings), tuple(lines), words)


def _accuracy(document: Json) -> Sheet:
    parts = ("retain", "forget", "test")
    held = [(source, part) for source in ("logged", "logits") for part in parts if any(part in row[source] for row in document["accuracies"])]
    bands = {"logged": "metrics.csv, % [95 %]", "logits": "from the logits, % [95 %]"}
    lines = []
    for row in document["accuracies"]:
        cells = []
        for source, part in held:
            seen = row[source].get(part) or {}
            ends = interval(seen)
            cells.append(Cell(percent(seen["mean"]), bracket(ends, percent) if ends else "") if seen else Cell(DASH))
        lines.append((row["method"], row["method"] in ("oracles", "originals"), tuple(cells)))
    words = ("mean over models with Student's interval; right is what the oracles score, on the forget images too",)
    return Sheet("Accuracy", tuple(Heading(bands[source], part) for source, part in held), tuple(lines), words)


def _others(document: Json) -> list[Sheet]:
    """Energy, disagreement and whatever else was asked for: a table each, with how to read it."""
    shown = {*document["keys"].values(), "perm.omnibus", "trace", *(f"klom.{kind}.forget" for kind in ("smooth", "gauss", "hist"))}
    keys = [key for key in dict.fromkeys(key for row in rows(document) for key in row["results"]) if key not in shown and not key.startswith("acc.")]
    return [_metric(document, key) for key in keys]


def _metric(document: Json, key: str) -> Sheet:
    """One metric: its value and, as far as there are any, value and floor with fewer models, ceiling, place between them, p."""
    held = [result(row, key) for row in rows(document)]
    known, lines = document["metrics"].get(key) or {}, []
    halved = any((one.get("extra") or {}).get("value_at_floor_n") is not None for one in held)
    fields: list[tuple[str, Callable[[Json], Any], Callable[[float], str]]] = [
        (f"at {_half(document)}", lambda one: (one.get("extra") or {}).get("value_at_floor_n"), _digits),
        ("floor", lambda one: (one.get("floor") or {}).get("mean"), _digits),
        ("ceiling", lambda one: (one.get("ceiling") or {}).get("mean"), _digits),
        ("rescaled", lambda one: one.get("rescaled"), ratio),
        ("p", lambda one: one.get("p"), chance),
    ]
    fields = [field for at, field in enumerate(fields) if (at > 0 or halved) and any(number(field[1](one)) is not None for one in held)]
    for row, one in zip(rows(document), held, strict=True):
        own = row is not document["baseline"]
        cells = (_cell(one, _digits), *(_number(of(one), form) if own else Cell(DASH) for _, of, form in fields))
        lines.append((row["method"], not own or bool(row["calibration"]), cells))
    words = [
        BETTER.get(str(next((one["better"] for one in held if one.get("better")), "")), ""),
        *(f"{name}: {known[of]}" for name, of in (("perfect", "ideal"), ("caution", "caution")) if known.get(of)),
        *dict.fromkeys(note for row, one in zip(rows(document), held, strict=True) if row is not document["baseline"] for note in one.get("notes") or ()),
    ]
    headings = (Heading(key, "value"), *(Heading(key, text) for text, _, _ in fields))
    return Sheet(f"{key}: {known.get('summary') or ''}".rstrip(": "), headings, tuple(lines), tuple(filter(None, words)))


def _verdicts(document: Json) -> Sheet | None:
    """p and Holm's p, where they are valid, and the verdict where one is possible."""
    judged = any(row["verdict"] for row in document["rows"])
    if not judged and not document["originals"]["independent"]:
        return None
    headings = [Heading("perm.omnibus", "p"), Heading("perm.omnibus", "Holm p"), *([Heading("", "trace"), Heading("", "verdict")] if judged else [])]
    lines = []
    for row in document["rows"]:
        cells = [_number(row["p"], chance), _number(row["holm_p"], chance)]
        if judged:
            label, damaged, rest = verdict(row)
            cells += [_cell(result(row, "trace")), Cell(f"{'damaged, ' if damaged else ''}{label}{': ' if rest else ''}{rest}")]
        lines.append((row["method"], bool(row["calibration"]), tuple(cells)))
    words = [
        "p: chance that further oracles look at least this different; Holm p allows for the number of approaches",
        "a small Holm p accuses, a large p acquits nobody",
        *([document["power"]] if document["power"] else []),
    ]
    return Sheet("Can the models be told from oracles at all?", tuple(headings), tuple(lines), tuple(words))


def _digits(value: float) -> str:
    """About three figures, whatever the unit."""
    size = abs(value)
    return f"{value:.1g}" if 0 < size < 0.001 else ratio(value) if size >= 1 else f"{value:.3f}" if value else "0"


def facts(document: Json) -> list[str]:
    """What was audited, in short."""
    counts = ", ".join(f"{count} {part}" for part, count in document["data"].items())
    return [
        f"layout {document['layout']}",
        f"{counts} images",
        f"{document['classes']} classes",
        f"{document['models']['oracles']} oracles",
        document["created"],
    ]
