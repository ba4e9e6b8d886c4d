"""What the figures share: palette, SVG fit for the page, the marks of the trace, labels that do not collide."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree

from unlearnlab.report.tables import Json, number, ordered, result, save, verdict

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Array = np.ndarray[Any, np.dtype[Any]]
    Painters = Sequence[tuple[str, str, Callable[[Json], tuple[Figure, str]]]]  # name, title, and what gives figure and caption

# Blue is like an oracle, orange like the original, purple past the oracle: everywhere, pills in the page included.
# Mid-tones that can be told apart by colour-blind readers and keep a contrast of 3 on white and on black.
BLUE, ORANGE, PURPLE, GREY, TEAL, OCHRE = "#2f86d1", "#d9660b", "#a65fc9", "#858b94", "#17977a", "#b0870f"
VERDICT_COLOURS = {"forgotten": BLUE, "not forgotten": ORANGE, "over-forgotten": PURPLE}
INK = "#010203"  # drawn in place of currentColor, which matplotlib cannot draw
WIDTH = 9.4  # inches; the page shows figures at most this wide
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "legend.frameon": False, "legend.fontsize": 9, "text.parse_math": False, "axes.formatter.use_mathtext": False,
    "image.composite_image": False,
    "svg.fonttype": "none", "svg.hashsalt": "unlearnlab", "figure.dpi": 72,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """One figure: what it is called, how to read it, and the SVG, or why there is none."""

    name: str
    title: str
    caption: str
    svg: str = ""
    missing: str = ""


class NothingToDrawError(Exception):
    """The document lacks what the figure shows; the message says what."""


def write_figures(drawings: Sequence[Drawing], folder: Path) -> list[Path]:
    """One ``.svg`` file per figure, on white paper."""
    paths = [folder / f"{drawing.name}.svg" for drawing in drawings if drawing.svg]
    for path, drawing in zip(paths, (drawing for drawing in drawings if drawing.svg), strict=True):
        save(path, re.sub(r"(<svg[^>]*)>", r'\1 color="#1c2026"><rect width="100%" height="100%" fill="#ffffff" />', drawing.svg, count=1))
    return paths


def to_svg(figure: Figure, name: str) -> str:
    """Matplotlib's SVG without style attributes, metadata, outside addresses and foreign ids: fit to stand in a page under a strict policy."""
    held = io.StringIO()
    figure.savefig(held, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = held.getvalue().replace(INK, "currentColor")
    root = ElementTree.fromstring(text[text.index("<svg") :])
    space, link = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{space}metadata", f"{space}style"):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    for node in root.iter():
        node.tag, node.tail = node.tag.removeprefix(space), None
        node.text = node.text if node.tag == "text" else None
        if link in node.attrib:
            node.set("href", re.sub(r"\s", "", node.attrib.pop(link)))
        if held_id := node.attrib.pop("id", None):
            node.attrib |= {"id": f"{name}-{held_id}"} if held_id in used else {}
        for part in filter(None, node.attrib.pop("style", "").split(";")):
            key, _, value = (word.strip() for word in part.partition(":"))
            node.attrib |= {} if key == "font-family" else {key: value}
        if "d" in node.attrib:  # a hundredth of a point is finer than any screen, and half the bytes
            node.set("d", re.sub(r"(\.\d\d)\d+", r"\1", " ".join(node.attrib["d"].split())))
        for key, value in node.attrib.items():
            node.set(key, re.sub(r"^#(?=\w+$)", f"#{name}-", value) if key == "href" else value.replace("url(#", f"url(#{name}-"))
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "font-family": "system-ui, sans-serif", "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


# --- what all figures share


def canvas(height: float, rows: int = 1, cols: int = 1, **more: Any) -> tuple[Figure, Array]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, cols, squeeze=False, **more)


def trace_lines(axes: Axes, along: str) -> None:
    """The two marks every trace is read against."""
    rule = axes.axvline if along == "x" else axes.axhline
    rule(0, color=BLUE, lw=1.2, zorder=0)
    rule(1, color=ORANGE, lw=1.2, zorder=0)
    for at, word, colour in ((0, "oracle", BLUE), (1, "original", ORANGE)):
        if along == "x":
            axes.annotate(word, (at, 1), (0, 5), textcoords="offset points", xycoords=("data", "axes fraction"), color=colour, ha="center", va="bottom")
        else:
            axes.annotate(word, (1, at), (4, 0), textcoords="offset points", xycoords=("axes fraction", "data"), color=colour, ha="left", va="center")


def reach(values: Sequence[float], lowest: float = -0.75, highest: float = 1.5) -> tuple[float, float]:
    """Axis limits that hold the trace's marks and all but the wildest values, which are drawn at the edge with their number."""
    kept = [-0.1, 1.1, *(value for value in values if lowest <= value <= highest)]
    return min(kept) - 0.05, max(kept) + 0.05


def short(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:29]}…"


def room(names: Iterable[str]) -> float:
    """Share of a figure's width that row labels of these names take on the left."""
    return max(0.16, 0.018 + 0.0075 * max(len(short(name)) for name in names))


def colour_of(row: Json) -> str:
    return VERDICT_COLOURS.get(verdict(row)[0], GREY)


def per_model(row: Json, key: str) -> list[float]:
    return [value for held in result(row, key).get("per_model") or () if (value := number(held)) is not None]


def traces_of(document: Json) -> list[tuple[Json, float]]:
    found = [(row, value) for row in ordered(document) if (value := number(result(row, "trace").get("value"))) is not None]
    if not found:
        raise NothingToDrawError("no method has a trace")
    return found


def annotate(axes: Axes, points: Sequence[tuple[float, float, str]], others: Sequence[tuple[float, float]] = ()) -> None:
    """Write a label beside each point where it covers the fewest other labels and marks, with a thin line where it had to move away."""
    import numpy as np

    box = axes.get_window_extent()
    spots = axes.transData.transform(np.array([(x, y) for x, y, _ in points]))
    marks = np.vstack([spots, axes.transData.transform(np.array(others))]) if len(others) else spots
    weights = np.where(np.arange(len(marks)) < len(spots), 30.0, 5.0)
    placed: list[tuple[float, float, float, float]] = []
    for (x, y, label), (px, py) in zip(points, spots, strict=True):
        width, height = 5.6 * len(label) + 2, 12.0
        best: tuple[float, float, float, bool] | None = None
        for radius in (9, 16, 26, 38, 52, 68):
            for turn in range(16):
                dx, dy = radius * np.cos(turn * np.pi / 8), radius * np.sin(turn * np.pi / 8)
                left = px + dx - (0 if dx > 1 else width if dx < -1 else width / 2)
                low, right = py + dy - height / 2, left + width
                covers = sum(max(0.0, min(right, r) - max(left, q)) * max(0.0, min(low + height, t) - max(low, s)) for q, s, r, t in placed)
                hidden = ((marks[:, 0] > left - 4) & (marks[:, 0] < right + 4) & (marks[:, 1] > low - 3) & (marks[:, 1] < low + height + 3)) @ weights
                outside = max(0.0, box.x0 - left) + max(0.0, right - box.x1) + max(0.0, box.y0 - low) + max(0.0, low + height - box.y1)
                cost = 2 * covers + hidden + 20 * outside + radius + (0 if dx > 1 else 2)
                if best is None or cost < best[0]:
                    best = (cost, left, low, radius > 20)
        assert best is not None
        _, left, low, far = best
        placed.append((left, low, left + width, low + height))
        text_x = left + width / 2
        line = {"arrowstyle": "-", "color": INK, "alpha": 0.35, "lw": 0.6, "shrinkA": 0, "shrinkB": 4} if far else None
        away = (text_x - px, low + height / 2 - py)
        axes.annotate(label, (x, y), away, textcoords="offset points", ha="center", va="center", fontsize=9, arrowprops=line)


def legend(axes: Axes | Figure, entries: Sequence[tuple[str, dict[str, Any]]], **place: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **{"ls": "", "marker": "o", "ms": 6, **look}) for label, look in entries]
    axes.legend(handles=handles, handletextpad=0.4, columnspacing=1.4, **place)


def verdict_legend(axes: Axes, rows: Sequence[Json], *more: tuple[str, dict[str, Any]]) -> None:
    labels = list(dict.fromkeys(verdict(row)[0] for row in rows if not row.get("calibration")))
    entries = [(label, {"color": VERDICT_COLOURS.get(label, GREY)}) for label in sorted(labels, key=lambda one: (one not in VERDICT_COLOURS, one))]
    legend(axes, [*entries, *more], loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncol=6, borderaxespad=0.2)


def paint(document: Json, painters: Painters) -> list[Drawing]:
    """The figures, in this order; one that has nothing to draw says why."""
    import matplotlib

    drawings = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the report
        matplotlib.rcParams.update(cast(Any, STYLE))
        for name, title, painter in painters:
            try:
                figure, caption = painter(document)
                drawings.append(Drawing(name, title, caption, svg=to_svg(figure, name)))
            except NothingToDrawError as reason:
                drawings.append(Drawing(name, title, "", missing=f"not drawn: {reason}"))
    return drawings
