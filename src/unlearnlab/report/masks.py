"""What ``unlearnlab mask`` shows of a localiser: a table of its layers, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unlearnlab.report.canvas import BLUE, GREY, STYLE, Drawing, canvas, legend, short, to_svg, write_figures
from unlearnlab.report.tables import Json, ratio, share

if TYPE_CHECKING:
    from rich.table import Table


def mask_words(held: Json) -> list[str]:
    """How much is open, and whether that is another choice than chance's, in words."""
    opened, overlap = held["share"], held["jaccard"]
    spread = f", {share(opened['least'])} to {share(opened['most'])}" if share(opened["least"]) != share(opened["most"]) else ""
    found = f"{ratio(overlap['mean'])}, {ratio(overlap['least'])} to {ratio(overlap['most'])}"
    return [
        f"open: {share(opened['mean'])} of all weights{spread} ({held['models']} models)",
        f"overlap with random (Jaccard): {found}; by chance {ratio(held['chance'])}; 1 for equal masks",
    ]


def mask_table(held: Json) -> Table:
    """Open share of every layer, beside that of the random control."""
    from rich.table import Table
    from rich.text import Text

    table = Table("layer", box=None)
    for heading in ("weights", "open", "random"):
        table.add_column(heading, justify="right")
    for row in held["layers"]:
        table.add_row(Text(row["layer"]), f"{row['weights']:,}", share(row["share"]), share(row["random"]))
    return table


def write_mask_figure(name: str, held: Json, folder: Path) -> Path:
    """``mask-<method>.svg``: the open share of each layer in the order of the forward pass, with the random control as a mark."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the picture
        matplotlib.rcParams.update(cast(Any, STYLE))
        svg = _drawn(f"mask-{name}", f"{short(name)}: share of each layer that may change", held)
    return write_figures([Drawing(f"mask-{name}", name, "", svg=svg)], folder)[0]


def _drawn(name: str, title: str, held: Json) -> str:
    rows = held["layers"]
    height = 1.1 + 0.24 * len(rows)
    figure, grid = canvas(height)
    axes, places = grid[0, 0], range(len(rows))
    axes.barh(places, [100 * row["share"] for row in rows], height=0.62, color=BLUE)
    axes.plot([100 * row["random"] for row in rows], places, "|", color=GREY, ms=11, mew=2.2)
    for at, row in zip(places, rows, strict=True):
        axes.annotate(f"{row['weights']:,} weights", (1, at), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(places, [short(row["layer"]) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_xlabel("open, mean over models")
    axes.set_title(title, loc="left", fontsize=9.5, pad=20)
    square = {"marker": "s", "color": BLUE}
    legend(axes, [("localiser", square), ("random, same budget", {"marker": "|", "color": GREY, "ms": 10, "mew": 2.2})], loc="lower left",
           bbox_to_anchor=(-0.01, 1.0), ncol=2, borderaxespad=0.2)  # fmt: skip
    figure.subplots_adjust(left=0.24, right=0.86, top=1 - 0.55 / height, bottom=0.45 / height)
    return to_svg(figure, name)
