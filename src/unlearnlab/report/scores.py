"""What ``unlearnlab score`` shows of scores of the training images: a table, the images at both ends, a picture of each, and a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unlearnlab.report.canvas import BLUE, ORANGE, STYLE, Drawing, canvas, legend, short, to_svg, write_figures
from unlearnlab.report.tables import DASH, Json, bracket, number, ratio, save, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

ENDS = ("most", "least")
COLUMNS = 6  # images side by side in a picture
BINS = 40


WIDE = 114  # columns of a terminal that hold all columns of the table
HEADINGS = ("models", "images", "unscored", "Spearman", "n", "seconds", "of full", "least", "median", "most")


def score_tables(held: Json, width: int) -> list[Table]:
    """A row per score: how many images have it, how well it agrees with true memorisation, what it cost, and its range; in halves where it is too wide."""
    from rich.table import Table
    from rich.text import Text

    level = next((ci["level"] for row in held["scores"] if (ci := (row["agreement"] or {}).get("ci"))), 0.95)
    headings = [f"Spearman [{100 * level:g} %]" if heading == "Spearman" else heading for heading in HEADINGS]
    parts = [slice(0, 10)] if width >= WIDE else [slice(0, 5), slice(5, 10)]
    tables = [Table(box=None) for _ in parts]
    for table, part in zip(tables, parts, strict=True):
        table.add_column("score", no_wrap=True)
        for heading in headings[part]:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in held["scores"]:
        agreement = row["agreement"] or {}
        rho = _number(agreement.get("rho"))
        if ci := agreement.get("ci"):
            rho += f" {bracket((ci['lo'], ci['hi']))}"
        if row["name"] == held["reference"]:
            rho = "true"
        cells = [str(row["models"] or DASH), str(row["scored"]), str(row["unscored"]), rho, str(agreement.get("n", DASH)), _number(row["seconds"])]
        spread = [_digits(row[name]) for name in ("least", "median", "most")]
        cells += [DASH if row["share"] is None else share(row["share"]), *spread]
        for table, part in zip(tables, parts, strict=True):
            table.add_row(*map(Text, [row["name"], *cells[part]]))
    return tables


def score_words(held: Json) -> list[str]:
    """What the table cannot say: what the numbers are read against, and why some are absent."""
    reference, rows = held["reference"], held["scores"]
    lines = []
    if reference:
        filed = next(row for row in rows if row["name"] == reference)["seconds"] is None
        lines.append(f"Spearman: rank correlation with '{reference}' over the n images that have both, its interval over images; scores of few models lower it")
        full = "'{}' was read from a file, so there is no full cost to compare with" if filed else "of full: as a share of what '{}' took"
        lines.append(f"seconds: of computing, training included; {full.format(reference)}")
    else:
        lines.append("Spearman needs true memorisation: list the score memorisation too, or a file of it, such as --set 'scores=[{name=\"memorisation\"}, …]'")
    together: dict[frozenset[str], None] = {frozenset({row["name"], *row["with"]}): None for row in rows if row["with"]}
    order = [row["name"] for row in rows]
    lines += [f"{', '.join(sorted(one, key=order.index))} come from one run: the cost of each is that of the run" for one in together]
    for row in rows:
        agreement = row["agreement"] or {}
        lines += [f"{row['name']}: {agreement[name]}" for name in ("missing", "note") if agreement.get(name)]
        if row.get("right"):
            seen, unseen = (share(value) for value in row["right"])
            lines.append(
                f"{row['name']}: its models are right on {seen} of the images they were trained on and on {unseen} of the others; unlearnt is not memorised"
            )
        if row["unscored"]:
            lines.append(f"{row['name']}: {row['unscored']} of {row['scored'] + row['unscored']} images have no score (NaN)")
    return lines


def end_words(row: Json) -> list[str]:
    """The most and the least memorised images by one score: ids, labels, and the score of each."""
    found = []
    for end in ENDS:
        held = row["ends"][end]
        each = [f"{i} ({name}) {_digits(value)}" for i, name, value in zip(held["ids"], _labels(held), held["values"], strict=True)]
        tied = f" (the last as {held['tied']} more)" if held["tied"] else ""
        found.append(f"{row['name']}, {end} memorised: {', '.join(each) or 'no image has a score'}{tied}")
    return found


def group_words(held: Json) -> list[str]:
    """The groups in which a forget set was chosen by a score: how many images, from which score to which, and how entangled where that was measured."""
    found = []
    for name, one in held["groups"].items():
        spread = "without a score" if one["least"] is None else f"scores {_digits(one['least'])} to {_digits(one['most'])}"
        line = f"group {name}: {one['count']} images, {spread}"
        if "entanglement" in one:
            line += f"; entanglement {one['entanglement']:.3g} (about the midpoint {one['entanglement_midpoint']:.3g})"
            line += f", cross-distance {one['cross_distance']:.3g}, MMD² {one['mmd']:.2g}"
        found.append(line)
    return found


def write_scores_csv(held: Json, folder: Path) -> Path:
    """``scores.csv``: an image a row, with all digits: id, label, true_label, every score, and its standard error where it has one."""
    images, values, stderr = held["images"], held["values"], held["stderr"]
    names = [*values, *(f"{name}_stderr" for name in stderr)]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["id", "label", "true_label", *names])
    own = (images["ids"], images["labels"], images["true_labels"])
    for row in zip(*own, *values.values(), *stderr.values(), strict=True):
        lines.writerow(["" if isinstance(value, float) and number(value) is None else value for value in row])
    path = folder / "scores.csv"
    save(path, text.getvalue())
    return path


def write_score_figures(held: Json, folder: Path) -> list[Path]:
    """``score-<name>.svg`` for every score that some image has: its images at both ends, and beside them how it goes with true memorisation."""
    import matplotlib

    drawings = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the picture
        matplotlib.rcParams.update(cast(Any, STYLE))
        for row in held["scores"]:
            if row["scored"]:
                name = f"score-{row['name']}"
                drawings.append(Drawing(name, row["name"], "", svg=_drawn(name, row, held)))
    return write_figures(drawings, folder)


def _drawn(name: str, row: Json, held: Json) -> str:
    lines = [-(-len(row["ends"][end]["ids"]) // COLUMNS) for end in ENDS]
    height = 0.5 + 0.98 * sum(lines) + 0.3 * len(ENDS)
    figure, grid = canvas(height, 1, 2, width_ratios=(1.0, 1.75))
    if held["reference"] in ("", row["name"]):
        _histogram(grid[0, 0], row, held)
    else:
        _scatter(grid[0, 0], row, held)
    _gallery(grid[0, 1], row, lines)
    figure.subplots_adjust(left=0.075, right=0.995, top=1 - 0.38 / height, bottom=0.5 / height, wspace=0.05)
    return to_svg(figure, name)


def _histogram(axes: Axes, row: Json, held: Json) -> None:
    values = [value for value in held["values"][row["name"]] if number(value) is not None]
    axes.hist(values, bins=BINS, color=BLUE, lw=0)
    axes.set_xlabel(short(row["name"]))
    axes.set_ylabel("images")
    axes.set_title(f"{len(values)} images", loc="left", fontsize=9.5, pad=6)


def _scatter(axes: Axes, row: Json, held: Json) -> None:
    images = held["images"]
    pairs = zip(held["values"][held["reference"]], held["values"][row["name"]], images["labels"], images["true_labels"], strict=True)
    seen = [(x, y, label != true) for x, y, label, true in pairs if number(x) is not None and number(y) is not None]
    for wrong, colour in ((False, BLUE), (True, ORANGE)):
        some = [(x, y) for x, y, flipped in seen if flipped == wrong]
        # one picture however many images: a million marks would be a hundred megabytes of SVG
        axes.plot([x for x, _ in some], [y for _, y in some], "o", color=colour, ms=3, mew=0, alpha=0.5, rasterized=len(seen) > 2000)
    axes.set_xlabel(short(held["reference"]))
    axes.set_ylabel(short(row["name"]))
    agreement = row["agreement"]
    found = f"Spearman {ratio(agreement['rho'])}".replace("-", "−") if agreement["rho"] is not None else "no Spearman"
    axes.set_title(f"{found}, n = {agreement['n']}", loc="left", fontsize=9.5, pad=6)
    if any(flipped for *_, flipped in seen):
        legend(axes, [("clean", {"color": BLUE, "ms": 4}), ("mislabelled", {"color": ORANGE, "ms": 4})], loc="best")


def _gallery(axes: Axes, row: Json, lines: Sequence[int]) -> None:
    """Images in rows, the most memorised above: id, label, true label where that is another, and score."""
    import numpy as np

    axes.set_axis_off()
    top = 0.0
    for end, count in zip(ENDS, lines, strict=True):
        held = row["ends"][end]
        tied = f" (the last as {held['tied']} more)" if held["tied"] else ""
        axes.text(0, top + 0.14, f"{short(row['name'])}: {end} memorised{tied}", va="center")
        labels = _labels(held)
        for at, (i, value) in enumerate(zip(held["ids"], held["values"], strict=True)):
            x, y = 1.12 * (at % COLUMNS), top + 0.28 + 0.98 * (at // COLUMNS)
            if held["pixels"]:
                image = np.array(held["pixels"][at], np.uint8)
                image = image if image.ndim == 2 else image.transpose(1, 2, 0)
                axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="none", extent=(x + 0.2, x + 0.8, y + 0.6, y), aspect="auto")
            words = f"{i}: {_digits(value)}\n{labels[at]}".replace("-", "−")
            axes.text(x + 0.5, y + 0.63, words, ha="center", va="top", fontsize=7.5, linespacing=1.2)
        top += 0.3 + 0.98 * count
    axes.set_xlim(-0.1, 1.12 * COLUMNS)
    axes.set_ylim(top, 0)


def _labels(held: Json) -> list[str]:
    return [f"{label}" if label == true else f"{label}, is {true}" for label, true in zip(held["labels"], held["true_labels"], strict=True)]


def _number(value: float | None) -> str:
    return DASH if value is None else ratio(value)


def _digits(value: float | None) -> str:
    """Three figures, whatever the size: scores come on scales of their own."""
    return DASH if value is None else f"{0.0 if abs(value) < 1e-12 else value:.3g}"
