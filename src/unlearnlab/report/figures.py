"""The report's figures, as SVG that takes its ink from the page and is the same bytes every time."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from unlearnlab.report.tables import Json, groups, interval, number, ordered, ratio, result, save, share, verdict

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Array = np.ndarray[Any, np.dtype[Any]]

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


class NothingToDraw(Exception):
    """The document lacks what the figure shows; the message says what."""


def draw(document: Json) -> list[Drawing]:
    """All figures of the report, in reading order."""
    import matplotlib

    drawings = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the report
        matplotlib.rcParams.update(STYLE)
        for name, title, painter in PAINTERS:
            try:
                figure, caption = painter(document)
                drawings.append(Drawing(name, title, caption, svg=_svg(figure, name)))
            except NothingToDraw as reason:
                drawings.append(Drawing(name, title, "", missing=f"not drawn: {reason}"))
    return drawings


def write_figures(drawings: Sequence[Drawing], folder: Path) -> list[Path]:
    """One ``.svg`` file per figure, on white paper."""
    paths = [folder / f"{drawing.name}.svg" for drawing in drawings if drawing.svg]
    for path, drawing in zip(paths, (drawing for drawing in drawings if drawing.svg), strict=True):
        save(path, re.sub(r"(<svg[^>]*)>", r'\1 color="#1c2026"><rect width="100%" height="100%" fill="#ffffff" />', drawing.svg, count=1))
    return paths


def _svg(figure: Figure, name: str) -> str:
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


def _canvas(height: float, rows: int = 1, cols: int = 1, **more: Any) -> tuple[Figure, Array]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, cols, squeeze=False, **more)


def _lines(axes: Axes, along: str) -> None:
    """The two marks every trace is read against."""
    rule = axes.axvline if along == "x" else axes.axhline
    rule(0, color=BLUE, lw=1.2, zorder=0)
    rule(1, color=ORANGE, lw=1.2, zorder=0)
    for at, word, colour in ((0, "oracle", BLUE), (1, "original", ORANGE)):
        place, shift = ((at, 1), (0, 5)) if along == "x" else ((1, at), (4, 0))
        axes.annotate(word, place, shift, textcoords="offset points", xycoords=("data", "axes fraction") if along == "x" else ("axes fraction", "data"), color=colour,
                      ha="center" if along == "x" else "left", va="bottom" if along == "x" else "center")  # fmt: skip


def _reach(values: Sequence[float], lowest: float = -0.75, highest: float = 1.5) -> tuple[float, float]:
    """Axis limits that hold the trace's marks and all but the wildest values, which are drawn at the edge with their number."""
    kept = [-0.1, 1.1, *(value for value in values if lowest <= value <= highest)]
    return min(kept) - 0.05, max(kept) + 0.05


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:29]}…"


def _colour(row: Json) -> str:
    return VERDICT_COLOURS.get(verdict(row)[0], GREY)


def _per_model(row: Json, key: str) -> list[float]:
    return [value for held in result(row, key).get("per_model") or () if (value := number(held)) is not None]


def _traces(document: Json) -> list[tuple[Json, float]]:
    found = [(row, value) for row in ordered(document) if (value := number(result(row, "trace").get("value"))) is not None]
    if not found:
        raise NothingToDraw("no method has a trace")
    return found


def _annotate(axes: Axes, points: Sequence[tuple[float, float, str]], others: Sequence[tuple[float, float]] = ()) -> None:
    """Write a label beside each point where it covers the fewest other labels and marks, with a thin line where it had to move away."""
    import numpy as np

    box = axes.get_window_extent()
    spots = axes.transData.transform(np.array([(x, y) for x, y, _ in points]))
    marks = np.vstack([spots, axes.transData.transform(np.array(others))]) if len(others) else spots
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
                hidden = ((marks[:, 0] > left - 4) & (marks[:, 0] < right + 4) & (marks[:, 1] > low - 3) & (marks[:, 1] < low + height + 3)).sum()
                outside = max(0.0, box.x0 - left) + max(0.0, right - box.x1) + max(0.0, box.y0 - low) + max(0.0, low + height - box.y1)
                cost = 2 * covers + 14 * hidden + 20 * outside + radius + (0 if dx > 1 else 2)
                if best is None or cost < best[0]:
                    best = (cost, left, low, radius > 20)
        assert best is not None
        _, left, low, far = best
        placed.append((left, low, left + width, low + height))
        text_x = left + width / 2
        axes.annotate(label, (x, y), (text_x - px, low + height / 2 - py), textcoords="offset points", ha="center", va="center", fontsize=9,
                      arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.35, "lw": 0.6, "shrinkA": 0, "shrinkB": 4} if far else None)  # fmt: skip


def _legend(axes: Axes | Figure, entries: Sequence[tuple[str, dict[str, Any]]], **place: Any) -> None:
    from matplotlib.lines import Line2D

    axes.legend(handles=[Line2D([], [], label=label, **{"ls": "", "marker": "o", "ms": 6, **look}) for label, look in entries], handletextpad=0.4, columnspacing=1.4, **place)


def _verdict_legend(axes: Axes, rows: Sequence[Json], *more: tuple[str, dict[str, Any]]) -> None:
    labels = list(dict.fromkeys(verdict(row)[0] for row in rows if not row.get("calibration")))
    entries = [(label, {"color": VERDICT_COLOURS.get(label, GREY)}) for label in sorted(labels, key=lambda one: (one not in VERDICT_COLOURS, one))]
    _legend(axes, [*entries, *more], loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncol=6, borderaxespad=0.2)


# --- the figures


def _trace(document: Json) -> tuple[Figure, str]:
    found = _traces(document)
    looks = [("trace", "whole forget set", "o", INK, 6.0)]
    looks += [(f"group.{name}.trace", f"{name} half" if len(groups(document)) == 2 else name, "sDv^"[i % 4], (TEAL, OCHRE, GREY)[i % 3], 4.4) for i, name in enumerate(groups(document))]
    ends = [end for row, value in found for key, *_ in looks for end in (interval(result(row, key)) or (value,))]
    figure, grid = _canvas(1.05 + 0.43 * len(found))
    axes = grid[0, 0]
    axes.set_xlim(lo_hi := _reach(ends))
    _lines(axes, "x")
    step, calibrations = 0.56 / max(1, len(looks) - 1), sum(bool(row.get("calibration")) for row, _ in found)
    for at, (row, _) in enumerate(found):
        if at == calibrations:
            axes.axhline(at - 0.5, color=INK, lw=0.6, alpha=0.4)
        elif at % 2:
            axes.axhspan(at - 0.5, at + 0.5, color=INK, alpha=0.035, lw=0)
        for i, (key, _, marker, colour, size) in enumerate(looks):
            value, y = number(result(row, key).get("value")), at + step * (i - (len(looks) - 1) / 2)
            if value is None:
                continue
            inside = lo_hi[0] < value < lo_hi[1]
            if inside:
                axes.plot(interval(result(row, key)) or (value, value), (y, y), color=colour, lw=1.6, solid_capstyle="butt")
                axes.plot(value, y, marker, color=colour, ms=size)
            else:
                edge, side = (lo_hi[0], 1) if value < 0 else (lo_hi[1], -1)
                axes.annotate(ratio(value).replace("-", "−"), (edge, y), (side * 30, 0), textcoords="offset points", color=colour, fontsize=8.5, va="center",
                              ha="left" if side > 0 else "right", arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.1, "shrinkA": 2, "shrinkB": 0})  # fmt: skip
        label, damaged, _ = verdict(row)
        axes.annotate(f"{label}{', damaged' if damaged else ''}", (1, at), (10, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", color=_colour(row) if not row.get("calibration") else INK, alpha=1 if not row.get("calibration") else 0.6)  # fmt: skip
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks(range(len(found)), [_short(str(row["method"])) for row, _ in found])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("trace left")
    _legend(figure, [(word, {"marker": marker, "color": colour, "ms": size, "ls": "-", "lw": 1.6}) for _, word, marker, colour, size in looks], loc="upper left", ncol=4)
    figure.subplots_adjust(left=0.16, right=0.78, top=1 - 0.58 / figure.get_figheight(), bottom=0.45 / figure.get_figheight())
    return figure, (
        "Each mark is the share of the forget set's mark that a method left behind, with its 95 % interval over models. On the orange line nothing was forgotten; "
        "on the blue line the models behave as if they had never seen the images; left of it they were pushed past that point, which betrays the images in the other direction. "
        "Values beyond the edge are drawn there as an arrow with their number."
    )


def _accuracy(document: Json) -> tuple[Figure, str]:
    import numpy as np

    found = [(row, trace, value) for row, trace in _traces(document) if (value := number(result(row, "acc.test").get("value"))) is not None]
    if not found:
        raise NothingToDraw("no method has a test accuracy")
    clouds = {str(row["method"]): (_per_model(row, "trace"), _per_model(row, "acc.test")) for row, *_ in found if row.get("calibration")}
    anchors = [value for row, _, value in found if row.get("calibration")] or [value for *_, value in found]
    cloud_values = [value for _, values in clouds.values() for value in values]
    figure, grid = _canvas(5.0)
    axes = grid[0, 0]
    figure.subplots_adjust(left=0.08, right=0.985, top=0.88, bottom=0.11)
    axes.set_xlim(xs := _reach([trace for _, trace, _ in found]))
    kept = [value for value in (*cloud_values, *(value for *_, value in found)) if value >= min(anchors) - 0.12]
    lo, hi = min(kept), max(kept)
    axes.set_ylim(ys := (100 * (lo - 0.08 * (hi - lo) - 0.002), 100 * (hi + 0.08 * (hi - lo) + 0.002)))
    others: list[tuple[float, float]] = []
    for name, (traces, values) in clouds.items():
        if len(traces) == len(values) and traces:
            colour = BLUE if name == "retrain" else ORANGE
            axes.plot(traces, 100 * np.array(values), "o", color=colour, ms=4, alpha=0.35, mew=0)
            others += list(zip(traces, (100 * np.array(values)).tolist(), strict=True))
    points = []
    for row, trace, value in found:
        colour = {"retrain": BLUE, "original": ORANGE}.get(str(row["method"]), _colour(row)) if row.get("calibration") else _colour(row)
        x, y = float(np.clip(trace, *xs)), float(np.clip(100 * value, *ys))
        spread = [np.std(_per_model(row, key), ddof=1) if len(_per_model(row, key)) > 1 else 0.0 for key in ("trace", "acc.test")]
        beyond = [words for words, off in ((f"trace {ratio(trace)}".replace("-", "−"), x != trace), (f"{100 * value:.0f} %", y != 100 * value)) if off]
        axes.plot(x, y, "D" if row.get("calibration") else "o", color=colour, ms=7, clip_on=False, zorder=3)
        if not beyond:
            axes.errorbar(x, y, xerr=spread[0], yerr=100 * spread[1], color=colour, lw=1, alpha=0.75)
        points.append((x, y, _short(str(row["method"])) + (f" ({', '.join(beyond)})" if beyond else "")))
    axes.axvline(0, color=BLUE, lw=0.8, alpha=0.5, zorder=0)
    axes.axvline(1, color=ORANGE, lw=0.8, alpha=0.5, zorder=0)
    axes.set_xlabel("trace left (0 oracle, 1 original)")
    axes.set_ylabel("test accuracy, %")
    _annotate(axes, points, others)
    _verdict_legend(axes, [row for row, *_ in found], ("oracles, one dot per retrained model", {"color": BLUE, "alpha": 0.35, "ms": 4}))
    return figure, (
        "What forgetting cost in usefulness. The blue cloud is where models trained without the forget set lie, one dot per model: a method that forgets and keeps its skill lands in it. "
        "Right of the cloud something is remembered, below it the model is worse than retraining. Bars show one standard deviation over models; "
        "a label that gives its numbers belongs to a mark beyond the edge."
    )


def _density(values: Array, grid: Array) -> Array:
    """Gaussian kernel density with Silverman's bandwidth, never narrower than the picture can show."""
    import numpy as np

    width = max(0.9 * float(np.std(values)) * len(values) ** -0.2, float(grid[-1] - grid[0]) / 80)
    smooth: Array = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))
    return smooth


def _margins(document: Json) -> tuple[Figure, str]:
    import numpy as np

    forget = document.get("forget") or {}
    held = {name: np.array(values, float) for name, values in (forget.get("margins") or {}).items()}
    names = [str(row["method"]) for row in ordered(document) if row["method"] in held and row["method"] != "original"]
    if not {"original", "oracle"} <= held.keys() or not names:
        raise NothingToDraw("the margins of originals, oracles or methods are absent")
    wrong = np.array(forget.get("labels") or []) != np.array(forget.get("true_labels") or [])
    split = wrong.shape == held["oracle"].shape[1:] and 0 < wrong.sum() < wrong.size
    columns = [("mislabelled images", wrong), ("clean images", ~wrong)] if split else [("forget images", np.ones(held["oracle"].shape[1], bool))]
    figure, grid = _canvas(0.95 + 0.52 * len(names), len(names), len(columns), sharex="col")
    for col, (title, mask) in enumerate(columns):
        flat = {name: values[:, mask][np.isfinite(values[:, mask])] for name, values in held.items()}
        lo, hi = (float(f(flat["original"].min(), flat["oracle"].min()) if f is min else f(flat["original"].max(), flat["oracle"].max())) for f in (min, max))
        xs = np.linspace(lo - 0.35 * (hi - lo), hi + 0.2 * (hi - lo), 140)
        curves = {name: _density(values, xs) for name, values in flat.items() if len(values)}
        top = 1.25 * max(curves["original"].max(), curves["oracle"].max())
        for at, name in enumerate(names):
            axes: Axes = grid[at, col]
            for which, colour in (("original", ORANGE), ("oracle", BLUE)):
                axes.fill_between(xs, curves[which], color=colour, alpha=0.22, lw=0)
                axes.plot(xs, curves[which], color=colour, lw=0.9)
            if name in curves:
                axes.plot(xs, np.minimum(curves[name], top), color=INK, lw=1.5)
                for beyond, x, words, side in ((flat[name] < xs[0], 0.01, "← {} below", "left"), (flat[name] > xs[-1], 0.99, "{} above →", "right")):
                    if beyond.mean() > 0.02:
                        axes.text(x, 0.78, words.format(share(float(beyond.mean()))), transform=axes.transAxes, fontsize=8, ha=side, va="center")
            axes.set_ylim(0, top)
            axes.set_xlim(xs[0], xs[-1])
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="x", length=3 if at == len(names) - 1 else 0)
            if col == 0:
                axes.set_ylabel(_short(name), rotation=0, ha="right", va="center", labelpad=8)
        grid[0, col].set_title(title, fontsize=9.5, loc="left", pad=6)
        grid[-1, col].set_xlabel("logit margin, nats (above 0: the label is the likeliest by far)" if len(columns) == 1 else "logit margin, nats")
    _legend(figure, [(word, {"ls": "-", "marker": "", "color": colour, "lw": 2}) for word, colour in (("original", ORANGE), ("oracle", BLUE), ("unlearned", INK))],
            loc="upper right", ncol=3)  # fmt: skip
    figure.subplots_adjust(left=0.16, right=0.99, top=1 - 0.55 / figure.get_figheight(), bottom=0.48 / figure.get_figheight(), wspace=0.06, hspace=0.18)
    return figure, (
        "How sure the models are of the forget images' stored labels: the log-odds log p/(1 − p) of that label, over all models and images. "
        "Orange is before unlearning, blue is models that never saw the images; the black line should lie on the blue hill, wherever that is. "
        "A narrower or wider line is a difference too, even where its middle fits."
    )


def _cost(document: Json) -> tuple[Figure, str]:
    import numpy as np

    found = [(row, trace, cost) for row, trace in _traces(document) if (cost := number(result(row, "cost.fraction").get("value"))) is not None and (cost > 0 or not row.get("calibration"))]
    costs = [cost for *_, cost in found if cost > 0]
    if not costs:
        raise NothingToDraw("no method has a measured cost")
    figure, grid = _canvas(4.6)
    axes = grid[0, 0]
    figure.subplots_adjust(left=0.08, right=0.92, top=0.88, bottom=0.12)
    if log := max(costs) > 10 * min(costs):
        axes.set_xscale("log")
        axes.set_xlim(100 * min(costs) / 1.5, 100 * max(costs) * 1.5)
    else:
        axes.set_xlim(0, 108 * max(costs))
    axes.set_ylim(ys := _reach([end for row, trace, _ in found for end in (interval(result(row, "trace")) or (trace,))]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    _lines(axes, "y")
    points = []
    for row, trace, cost in found:
        colour = BLUE if row.get("calibration") else _colour(row)
        x, y = 100 * (max(cost, min(costs)) if log else cost), float(np.clip(trace, *ys))
        ends = interval(result(row, "trace"))
        if ends and y == trace:
            axes.plot((x, x), ends, color=colour, lw=1.4)
        axes.plot(x, y, "D" if row.get("calibration") else "o", color=colour, ms=7, clip_on=False, zorder=3)
        points.append((x, y, _short(str(row["method"])) + ("" if y == trace else f" ({ratio(trace)})".replace("-", "−"))))
    axes.set_xlabel(f"cost, share of the time to train from scratch{' (logarithmic)' if log else ''}")
    axes.set_ylabel("trace left")
    _annotate(axes, points)
    _verdict_legend(axes, [row for row, *_ in found])
    return figure, (
        "What forgetting cost in time. Lower left is better only down to the blue line. A method near 100 % buys nothing: training from scratch without the images costs the same and forgets for certain. "
        "Bars are the 95 % interval of the trace."
    )


def _images(document: Json) -> tuple[Figure, str]:
    import numpy as np

    forget = document.get("forget") or {}
    held = {name: np.array(values, float) for name, values in (forget.get("margins") or {}).items()}
    pixels, ids = np.array(forget.get("pixels") or []), forget.get("ids") or []
    methods = sorted(((abs(trace), trace, str(row["method"])) for row, trace in _traces(document) if not row.get("calibration") and row["method"] in held))
    if not {"original", "oracle"} <= held.keys() or not methods or len(pixels) != len(ids) or not len(ids):
        raise NothingToDraw("the forget images or their margins are absent")
    gap = held["original"].mean(0) - held["oracle"].mean(0)
    error = np.sqrt(held["original"].var(0, ddof=1) / len(held["original"]) + held["oracle"].var(0, ddof=1) / len(held["oracle"])) if len(held["oracle"]) > 1 < len(held["original"]) else 0 * gap
    clear = np.flatnonzero((gap > 4 * error) & (gap > 0))  # elsewhere the share would be noise over noise
    if not len(clear):
        raise NothingToDraw("no image has a clear gap between originals and oracles")
    left = {name: (values.mean(0) - held["oracle"].mean(0))[clear] / gap[clear] for name, values in held.items()}
    chosen = list(dict.fromkeys([methods[0][2], max(methods, key=lambda one: one[1])[2]]))
    shown = min(8, len(clear))
    figure, grid = _canvas(1.85 * len(chosen) + 0.1, len(chosen), 8)
    labels, true = forget.get("labels") or [], forget.get("true_labels") or []
    for at, name in enumerate(chosen):
        best = clear[np.argsort(-left[name], kind="stable")[:shown]]
        which = "the least trace left or taken too much" if at == 0 else "the most trace left"
        grid[at, 0].set_title(f"{_short(name)} ({which}, {ratio(dict((m, t) for _, t, m in methods)[name])})".replace("-", "−"), loc="left", fontsize=9.5, pad=8)
        for col in range(8):
            axes: Axes = grid[at, col]
            axes.set_axis_off()
            if col >= shown:
                continue
            one = int(best[col])
            image = pixels[one].astype(np.uint8)
            axes.imshow(image if image.ndim == 2 else image.transpose(1, 2, 0), cmap="gray", interpolation="none", **({"vmin": 0, "vmax": 255} if image.ndim == 2 else {}))
            words = f"id {ids[one]}: {100 * float(left[name][clear == one][0]):.0f} % left".replace("-", "−")
            words += f"\nlabelled {labels[one]}" if len(labels) else ""
            words += f", is {true[one]}" if len(true) else ""
            axes.text(0.5, -0.06, words, transform=axes.transAxes, ha="center", va="top", fontsize=8, linespacing=1.35)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.34 / figure.get_figheight(), bottom=0.42 / figure.get_figheight(), wspace=0.25, hspace=0.72)
    noise = f" Even among retrained models, by chance, the largest is {100 * left['retrain'].max():.0f} %." if "retrain" in left else ""
    return figure, (
        f"The images each of these methods forgot least: how much of the gap between original and oracle margin is left, averaged over models, for the {len(clear)} of {len(ids)} images "
        f"whose gap is at least four standard errors.{noise}"
    )


PAINTERS: tuple[tuple[str, str, Callable[[Json], tuple[Figure, str]]], ...] = (
    ("trace", "How much of the trace is left", _trace),
    ("accuracy", "Forgetting against usefulness", _accuracy),
    ("margins", "How sure the models are of the forget images", _margins),
    ("cost", "Forgetting against cost", _cost),
    ("least-forgotten", "The images least forgotten", _images),
)
