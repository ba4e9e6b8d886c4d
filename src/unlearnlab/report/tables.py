"""The headline table: one definition of its columns, for the terminal, the page and the CSV files."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Json = Mapping[str, Any]

DASH = "–"
NO_TRACE = "no trace"
BETTER = {"lower": "lower is better", "higher": "higher is better", "match_oracle": "right: as oracles"}
GROUPS = ("mislabelled", "clean", "low", "mid", "high", "unscored")  # the order in which groups are shown; others follow by name
PLAIN_WIDTH = 140  # where the output is no terminal and nobody chose a width
VERDICT_STYLES = {"forgotten": "bold blue", "not forgotten": "bold yellow", "over-forgotten": "bold magenta"}
RESULT_FIELDS = (
    "method",
    "key",
    "value",
    "lo",
    "hi",
    "floor",
    "ceiling",
    "rescaled",
    "p",
    "n_unlearned",
    "n_oracles",
    "n_originals",
    "value_at_floor_n",
    "missing",
)
ASCII = str.maketrans({"–": "-", "—": "-", "−": "-", "…": "...", "·": "|", "±": "+-", "ε": "eps", "≥": ">=", "≤": "<=", "×": "x"})
LEGEND = {  # by band of columns
    "trace": "trace: share of the forget set's mark that is left: 1 original, 0 oracle, below 0 over-forgotten; [95 % interval]",
    "AUC": "AUC: attack mia_lr, forget against control images; judge it by the retrain row, not by 0.5",
    "vs oracles": "energy: rescaled, 0 as far from the oracles as other oracles, 1 as far as the originals; p: are these models oracles? raw and Holm-adjusted",
    "acc. %": "acc.: right is what the retrain row scores, also on the forget set",
    "cost": "cost: time as a share of training from scratch",
}


# --- reading the document


def number(held: Any) -> float | None:
    """A finite number, or None for anything else: what cannot be shown must not look like 0."""
    return float(held) if isinstance(held, int | float) and not isinstance(held, bool) and math.isfinite(held) else None


def result(row: Json, key: str) -> Json:
    """One stored result of a row; empty where the key is absent."""
    found: Json = row.get("results", {}).get(key) or {}
    return found


def interval(held: Json, name: str = "ci") -> tuple[float, float] | None:
    """Lower and upper limit of a result, None where it has no interval."""
    lo, hi = (number((held.get(name) or {}).get(end)) for end in ("lo", "hi"))
    return None if lo is None or hi is None else (lo, hi)


def verdict(row: Json) -> tuple[str, bool, str]:
    """Label, damaged or not, and what the verdict says beyond these two."""
    held = row.get("verdict") or {}
    label, damaged, text = str(held.get("label") or DASH), bool(held.get("damaged")), str(held.get("text") or "")
    rest = re.sub(r"^damaged\W*(and\s+|but\s+)?", "", text) if damaged else text
    return label, damaged, re.sub(rf"^{re.escape(label)}[\s:;,–]*", "", rest) if rest.startswith(label) else rest


def groups(document: Json) -> list[str]:
    """Names of the groups (scheme.band) that have a trace of their own, in the order of ``GROUPS``."""
    keys = {key for row in document["rows"] for key in row.get("results", {})}
    found = {match[1] for key in keys if (match := re.fullmatch(r"group\.(.+)\.trace", key))}
    return sorted(found, key=_place)


def _place(group: str) -> tuple[int, str]:
    return (GROUPS.index(band(group)) if band(group) in GROUPS else len(GROUPS), group)


def band(group: str) -> str:
    """What a group is called in print: its band without the scheme."""
    return group.rpartition(".")[2]


def ordered(document: Json) -> list[Json]:
    """The rows, calibration first, otherwise as stored."""
    return sorted(document["rows"], key=lambda row: not row.get("calibration"))


# --- how numbers look


def ratio(value: float) -> str:
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def signed(value: float) -> str:
    text = ratio(value)
    return text if text.startswith("-") or text == "0.00" else f"+{text}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def share(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.0995 or value == 0 else f"{100 * value:.1f} %"


def chance(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.4f}" if value >= 0.00005 else "<0.0001"


def bracket(ends: tuple[float, float], form: Callable[[float], str] = ratio) -> str:
    return f"[{form(ends[0])}, {form(ends[1])}]"


class Cell(NamedTuple):
    """What one cell shows: the number, its interval, and the reason where there is no number."""

    text: str
    interval: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Column:
    """One column of the headline table. ``field``: which number of the result; ``row`` reads the row itself."""

    key: str
    band: str  # columns of one band stay together; the band's name stands above them
    heading: str
    form: Callable[[float], str]
    help: str
    field: str = "value"
    with_interval: bool = False
    reason_from: str = ""  # the result that explains an absent number of the row
    oracles: bool = False  # the oracles' mean stands beneath

    def value(self, row: Json) -> float | None:
        return number(row.get(self.key) if self.field == "row" else result(row, self.key).get(self.field))

    def cell(self, row: Json) -> Cell:
        held, value = result(row, self.reason_from or self.key), self.value(row)
        if value is not None:
            ends = interval(held) if self.with_interval else None
            others = number((held.get("floor") or {}).get("mean")) if self.oracles else None
            return Cell(self.form(value), bracket(ends, self.form) if ends else "" if others is None else f"oracles {self.form(others)}")
        reason = str(held.get("missing") or "")
        if self.key.endswith("trace") and "leaves no trace" in reason:
            return Cell(NO_TRACE, reason=reason)
        if not reason and self.field == "rescaled" and number(held.get("value")) is not None:
            reason = "not rescaled: floor and ceiling are absent or too close to resolve"
        return Cell(DASH, reason=reason)


def columns(document: Json) -> tuple[Column, ...]:
    """The columns of the headline table, the verdict apart, without those that nobody asked for."""
    return tuple(
        column
        for column in _columns(document)
        if column.key in ("trace", "p") or any(column.value(row) is not None or column.cell(row).reason for row in document["rows"])
    )


def _columns(document: Json) -> tuple[Column, ...]:
    """All that the table can show; the halves are the groups found in the document."""
    parts = [("", "whole"), *((f"group.{name}.", band(name)) for name in groups(document))]
    of = {"": "the whole forget set", **{at: f"its {name} images" for at, name in parts[1:]}}
    return (
        *(Column(f"{at}trace", "trace", name, ratio, f"share of the mark left, on {of[at]}: 1 original, 0 oracle", with_interval=True) for at, name in parts),
        *(Column(f"{at}mia_lr.auc", "AUC", name, ratio, f"membership attack on {of[at]}; compare with the retrain row") for at, name in parts),
        Column("energy", "vs oracles", "energy", ratio, "distance from the oracles, rescaled: 0 other oracles, 1 originals", "rescaled"),
        Column("p", "vs oracles", "p", chance, "chance that oracles look at least this different", "row", reason_from="perm.omnibus"),
        Column("holm_p", "vs oracles", "Holm p", chance, "p adjusted for the number of methods", "row"),
        Column("acc.retain", "acc. %", "retain", percent, "on the images that stay"),
        Column("acc.forget", "acc. %", "forget", percent, "on the images to forget; right is what oracles score"),
        Column("acc.test", "acc. %", "test", percent, "on images never trained on"),
        *_closeness(document),
        Column("cost.fraction", "cost", "share", share, "time as a share of training from scratch"),
        *_budget(document),
    )


def _budget(document: Json) -> tuple[Column, ...]:
    """Example passes as a share of retraining's, and whether that is within the budget, where there is one."""
    if not (held := document.get("budget")):
        return ()
    most = held["fraction"]
    about = f"example passes as a share of retraining's; the budget is {100 * most:g} %"
    return (Column("budget.share", "cost", "passes", lambda value: f"{share(value)} {'within' if value <= most else 'over'}", about, "row"),)


def _closeness(document: Json) -> tuple[Column, ...]:
    """ToW and ToW-MIA, where the latter was asked for or the trace was not measured."""
    measured = {key for row in document["rows"] for key in row.get("results", {})}
    if "tow_mia" not in measured and ("trace" in measured or "tow" not in measured):
        return ()
    about = {
        "tow": "closeness to the oracles in forget, retain and test accuracy: 1 the same",
        "tow_mia": "the same with an attack in place of forget accuracy",
    }
    return tuple(Column(key, "ToW", {"tow": "acc.", "tow_mia": "MIA"}[key], ratio, words) for key, words in about.items() if key in measured)


def group_columns(document: Json) -> tuple[Column, ...]:
    """The columns of the table of groups: trace of every group and, where it was measured, accuracy beside the oracles'."""
    pairs = (
        (
            Column(f"group.{name}.trace", band(name), "trace", ratio, f"share of the mark left on its {band(name)} images", with_interval=True),
            Column(f"group.{name}.acc.forget", band(name), "acc. %", percent, f"accuracy on its {band(name)} images, beneath it the oracles'", oracles=True),
        )
        for name in groups(document)
    )
    return tuple(column for pair in pairs for column in pair if any(result(row, column.key) for row in document["rows"]))


def difference_columns(document: Json) -> tuple[Column, ...]:
    """One column for every two groups whose traces were compared."""
    keys = dict.fromkeys(key for row in document["rows"] for key in row.get("results", {}) if key.startswith("difference."))
    named = [(key, *key.removeprefix("difference.").removesuffix(".trace").rsplit(".", 2)) for key in keys]
    named.sort(key=lambda one: (one[1], _place(one[3]), _place(one[2])))
    about = "how much more of the trace is left in the first group than in the second, from the same models"
    return tuple(Column(key, scheme, f"{one} − {other}", signed, about, with_interval=True) for key, scheme, one, other in named)


def corrected(row: Json, key: str) -> str:
    """Holm's p of a difference between two groups, in words; nothing where there is none."""
    p = number((result(row, key).get("extra") or {}).get("holm_p"))
    return "" if p is None else f"Holm p {chance(p)}"


def budget_lines(document: Json) -> list[str]:
    """What a method may cost, and what became of each row that costs more; empty for a study without a budget."""
    held = document.get("budget")
    if not held:
        return []
    whole = f"{100 * held['fraction']:g} % of retraining's example passes"
    fate = "left out" if held["over"] == "stop" else "marked"
    lines = [f"budget: {whole}, {held['limit']:,} of {held['retrain']:,} a model (forward 1, backward 2); what takes more is {fate}"]
    for name, row in held["rows"].items():
        if row.get("request"):
            lines.append(f"{name}: left out: it was over the budget at request {row['request']}, so there are no models to go on from")
        elif row["stopped"]:
            lines.append(f"{name}: stopped at {whole} (needs more)")
        elif not row["within"] and held["over"] == "stop":
            lines.append(f"{name}: left out: takes {share(row['share'])} of retraining's example passes")
    return lines


class Footnotes:
    """Letters for reasons: the same reason bears the same letter."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def mark(self, reason: str) -> str:
        if not reason:
            return ""
        at = len(self.reasons)
        return self.reasons.setdefault(reason, chr(ord("a") + at) if at < 26 else str(at))


# --- the terminal


def print_table(document: Json, console: Console | None = None) -> None:
    """Print the headline table; where it does not fit, whole bands of columns flow into further tables below."""
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(width=PLAIN_WIDTH)

    def plain(text: str) -> str:
        return text.translate(ASCII) if console.options.ascii_only else text

    rows, notes = ordered(document), Footnotes()
    bands: dict[str, list[Column]] = {}
    headline = columns(document)
    for column in headline:
        bands.setdefault(column.band, []).append(column)

    def shown(column: Column, row: Json, wide: bool) -> str:
        cell = column.cell(row)
        text = f"{cell.text} {notes.mark(cell.reason)}".rstrip()
        return plain(f"{text} {cell.interval}" if cell.interval and (wide or column.heading == "whole") else text)

    first = max([6, *(len(str(row["method"])) for row in rows)])
    room, texts, widths = console.width - first - 2, dict[str, list[str]](), dict[str, int]()
    for band in bands.values():
        for wide in ([True] if console.width >= 110 else []) + [False]:  # intervals of all groups, where a whole band has room for them
            texts |= {column.key: [shown(column, row, wide) for row in rows] for column in band}
            widths |= {column.key: max([len(column.heading), len(column.band), *map(len, texts[column.key])]) for column in band}
            if sum(widths[column.key] + 2 for column in band) <= room:
                break
    words = [_wording(row) for row in rows]
    last = min(max(map(len, words), default=0), 28)

    tables: list[list[Column]] = [[]]
    left = room
    for band in bands.values():
        need = sum(widths[column.key] + 2 for column in band)
        if need > left and tables[-1]:
            tables.append([])
            left = room
        tables[-1].extend(band)
        left -= need
    if left < last + 2:
        tables.append([])

    console.print(Text(plain(str(document.get("title", ""))), style="bold"))
    for at, chosen in enumerate(tables):
        table = _frame(chosen, verdicts=at == len(tables) - 1)
        for i, row in enumerate(rows):
            cells: list[Text | str] = [Text(plain(str(row["method"])), overflow="fold"), *(Text(texts[column.key][i]) for column in chosen)]
            if at == len(tables) - 1:
                cells.append(_styled(plain(words[i]), row))
            closes = bool(row.get("calibration")) and i + 1 < len(rows) and not rows[i + 1].get("calibration")
            table.add_row(*cells, style="dim" if row.get("calibration") else "", end_section=closes)
        console.print(table)
        console.print()
    for reason, letter in notes.reasons.items():
        console.print(Text(plain(f"{letter}  {reason}")))
    for line in budget_lines(document):
        console.print(Text(plain(line)))
    if origins := origin_words(document):
        console.print(Text(plain(origins)))
    further = [key for key in document.get("metrics") or () if key not in {column.key for column in headline}]
    more = f"{len(further)} further metrics are in the report: {', '.join(further)}" if further else ""
    for line in (*(LEGEND[band] for band in bands if band in LEGEND), str(document.get("power") or ""), more):
        if line:
            console.print(Text(plain(line), style="dim"))


def origin_words(document: Json) -> str:
    """Where the settings of the methods come from, in a line; nothing where all are defaults."""
    found: dict[str, list[str]] = {}
    for row in ordered(document):
        if not row.get("calibration") and row.get("origin"):
            found.setdefault(row["origin"], []).append(str(row["method"]))
    told = [f"{words}: {', '.join(names)}" for words, names in found.items()]
    return f"settings: {'; '.join(told)}" if set(found) - {"default"} else ""


def _frame(chosen: Sequence[Column], verdicts: bool) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    above = "\n" if chosen else ""  # bands stand on a line of their own above the headings
    table.add_column(f"{above}method", overflow="fold")
    before = ""
    for column in chosen:
        table.add_column(f"{column.band if column.band != before else ''}\n{column.heading}", justify="right", no_wrap=True)
        before = column.band
    if verdicts:
        table.add_column(f"{above}verdict", overflow="fold")
    return table


def _wording(row: Json) -> str:
    label, damaged, rest = verdict(row)
    return f"{'damaged, ' if damaged else ''}{label}{': ' if rest else ''}{rest}"


def _styled(words: str, row: Json) -> Text:
    from rich.text import Text

    label, damaged, _ = verdict(row)
    text = Text(words)
    if damaged:
        text.stylize("bold red", 0, len("damaged"))
    start = words.find(label)
    if start >= 0:
        text.stylize(VERDICT_STYLES.get(label, "bold"), start, start + len(label))
    return text


# --- files


def save(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_csvs(document: Json, folder: Path) -> list[Path]:
    """``headline.csv`` (a row per method) and ``results.csv`` (a row per method and result), with all digits."""
    chosen = columns(document)
    names = [name for column in chosen for name in _names(column)]
    headline: list[list[Any]] = [["method", "calibration", *names, "verdict", "damaged", "rule", "text", "missing"]]
    long: list[list[Any]] = [[*RESULT_FIELDS]]
    for row in ordered(document):
        held = row.get("verdict") or {}
        reasons = "; ".join(f"{column.key}: {cell.reason}" for column in chosen if (cell := column.cell(row)).reason)
        numbers = [value for column in chosen for value in (column.value(row), *(_ends(result(row, column.key)) if column.with_interval else ()))]
        words = [held.get("label"), bool(held.get("damaged")), held.get("rule"), held.get("text"), reasons]
        headline.append([row["method"], bool(row.get("calibration")), *numbers, *words])
        for key, one in row.get("results", {}).items():
            anchors = [number((one.get(name) or {}).get("mean")) for name in ("floor", "ceiling")]
            counts = [*(one.get("n_models") or ()), None, None, None][:3]
            rest = [number(one.get("rescaled")), number(one.get("p")), *counts, number((one.get("extra") or {}).get("value_at_floor_n")), one.get("missing")]
            long.append([row["method"], key, number(one.get("value")), *_ends(one), *anchors, *rest])
    paths = [folder / "headline.csv", folder / "results.csv"]
    for path, lines in zip(paths, (headline, long), strict=True):
        save(path, csv_text(lines))
    return paths


def _ends(held: Json) -> tuple[float | None, float | None]:
    return interval(held) or (None, None)


def _names(column: Column) -> list[str]:
    name = f"{column.key}.rescaled" if column.field == "rescaled" else column.key
    return [name, f"{name}.lo", f"{name}.hi"] if column.with_interval else [name]


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Lines as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if value is None else value for value in line] for line in lines)
    return text.getvalue()
