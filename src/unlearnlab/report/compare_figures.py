"""The figures of a comparison: every method's trace in each study, and what becomes of methods along one setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unlearnlab.report.canvas import BLUE, GREY, INK, OCHRE, ORANGE, PURPLE, TEAL, Drawing, NothingToDrawError, canvas, legend, paint, reach, short, trace_lines
from unlearnlab.report.tables import Json, interval, number, ratio, result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from unlearnlab.report.canvas import Painters

# One look for each study, in the order in which they were named; markers go on where colours come again.
COLOURS, MARKERS = (INK, TEAL, PURPLE, OCHRE, GREY), "osD^vPX"
ABREAST = 4  # panels
BACKDOOR = {"sa": ("SA", TEAL, "o"), "asr": ("ASR", OCHRE, "s")}


def looks(document: Json) -> list[dict[str, Any]]:
    """Colour and marker of every study."""
    return [{"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)]} for at in range(len(document["studies"]))]


def _held(row: Json, at: int, key: str) -> tuple[float, tuple[float, float]] | None:
    """Value and interval of a method in one study; a value without an interval is a point."""
    found = result(row["in"][at] or {}, key)
    value = number(found.get("value"))
    return None if value is None else (value, interval(found) or (value, value))


def _traces(document: Json) -> tuple[Figure, str]:
    count, styles = len(document["studies"]), looks(document)
    found = [(row, [_held(row, at, "trace") for at in range(count)]) for row in document["rows"]]
    found = [(row, held) for row, held in found if any(held) and row["method"] != "original"]  # which is the orange line, by definition
    if not found:
        raise NothingToDrawError("no method has a trace in any of the studies")
    abreast = max(1, min(count, 110 // (6 + max(len(short(one["label"])) for one in document["studies"]))))
    lines = -(-count // abreast)
    figure, grid = canvas(0.9 + 0.2 * lines + len(found) * (0.2 + 0.135 * count))
    axes = grid[0, 0]
    axes.set_xlim(ends := reach([end for _, held in found for one in held if one for end in one[1]]))
    trace_lines(axes, "x")
    calibrations = sum(bool(row["calibration"]) for row, _ in found)
    for at, (_, held) in enumerate(found):
        if at == calibrations:
            axes.axhline(at - 0.5, color=INK, lw=0.6, alpha=0.4)
        elif at % 2:
            axes.axhspan(at - 0.5, at + 0.5, color=INK, alpha=0.035, lw=0)
        for i, one in enumerate(held):
            if one is not None:
                _dot(axes, one, at + 0.7 / count * (i - (count - 1) / 2), ends, styles[i])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks(range(len(found)), [short(row["method"]) for row, _ in found])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("trace left")
    entries = [(short(one["label"]), {"ls": "-", "lw": 1.6, **look}) for one, look in zip(document["studies"], styles, strict=True)]
    legend(figure, entries, loc="upper left", ncol=abreast)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.24, right=0.97, top=1 - (0.36 + 0.2 * lines) / height, bottom=0.45 / height)
    lost = [row["method"] for row in document["rows"] if not any(_held(row, at, "trace") for at in range(count))]
    return figure, (
        "The share of the forget set’s mark that a method left behind, with its 95 % interval over models: a mark for each study. On the orange line nothing "
        "was forgotten, on the blue line models behave as if they had never seen the images. Whether two studies differ is not to be read off overlapping "
        "intervals, where models are paired: see the table of differences." + (f" Without a trace: {', '.join(lost)}." if lost else "")
    )


def _dot(axes: Axes, held: tuple[float, tuple[float, float]], y: float, ends: tuple[float, float], look: Json) -> None:
    """A mark with its interval; beyond the edge an arrow with the number."""
    value, bar = held
    if ends[0] < value < ends[1]:
        axes.plot(bar, (y, y), color=look["color"], lw=1.4, solid_capstyle="butt")
        axes.plot(value, y, look["marker"], color=look["color"], ms=4.8)
        return
    edge, side = (ends[0], 1) if value < 0 else (ends[1], -1)
    arrow = {"arrowstyle": "->", "color": look["color"], "lw": 1.1, "shrinkA": 2, "shrinkB": 0}
    where = {"va": "center", "ha": "left" if side > 0 else "right", "fontsize": 8.5, "color": look["color"], "arrowprops": arrow}
    axes.annotate(ratio(value).replace("-", "−"), (edge, y), (side * 30, 0), textcoords="offset points", **where)


# --- along one setting


def _panels(document: Json, keys: Sequence[str], height: float) -> tuple[Figure, list[tuple[Json, Axes]]]:
    """A panel for every method that was measured, the studies in order of the setting."""
    along, order = document["along"], _order(document)
    chosen = [row for row in document["rows"] if not row["calibration"] and any(_held(row, at, key) for at in order for key in keys)]
    if not chosen:
        raise NothingToDrawError(f"no method has {' or '.join(keys)}")
    rows, cols = -(-len(chosen) // ABREAST), min(ABREAST, len(chosen))
    figure, grid = canvas(0.75 + height * rows, rows, cols, sharey=True)
    names = [f"{100 * along['values'][at]:g}" if along["setting"] == "sparsity" else f"{along['values'][at]:g}" for at in order]
    for axes, row in zip(grid.flat, chosen, strict=False):
        axes.set_title(short(row["method"]), loc="left", fontsize=9.5, pad=5)
        axes.set_xticks(range(len(order)), names)
        axes.set_xlim(-0.4, len(order) - 0.6)
    for axes in grid.flat[len(chosen) :]:
        axes.set_axis_off()
    for at in range(max(0, len(chosen) - cols), len(chosen)):
        grid.flat[at].set_xlabel("sparsity, %" if along["setting"] == "sparsity" else along["setting"])
    whole = figure.get_figheight()
    left = 0.075 if cols > 1 else 0.09
    figure.subplots_adjust(left=left, right=max(0.985 * cols / ABREAST, 0.5), top=1 - 0.62 / whole, bottom=0.48 / whole, wspace=0.1, hspace=0.55)
    return figure, [(row, axes) for axes, row in zip(grid.flat, chosen, strict=False)]


def _order(document: Json) -> list[int]:
    values = document["along"]["values"]
    return sorted(range(len(values)), key=lambda at: float(values[at]))


def _line(axes: Axes, document: Json, row: Json | None, key: str, shift: float, scale: float, **look: Any) -> None:
    """A metric of one row along the setting, with interval bars."""
    points = [(x + shift, held) for x, at in enumerate(_order(document)) if row is not None and (held := _held(row, at, key)) is not None]
    for x, (_, (lo, hi)) in points:
        axes.plot((x, x), (scale * lo, scale * hi), color=look["color"], lw=1.1, alpha=0.8, solid_capstyle="butt")
    axes.plot([x for x, _ in points], [scale * value for _, (value, _) in points], **look)


def _backdoor(document: Json) -> tuple[Figure, str]:
    rows = {row["method"]: row for row in document["rows"]}
    figure, panels = _panels(document, list(BACKDOOR), 2.4)
    for method, axes in panels:
        for key, (_, colour, marker) in BACKDOOR.items():
            _line(axes, document, rows.get("original"), key, -0.09, 100, color=colour, ls="--", lw=1.1, alpha=0.9)
            _line(axes, document, rows.get("retrain"), key, 0.09, 100, color=colour, ls=":", lw=1.4, alpha=0.9)
            _line(axes, document, method, key, 0.0, 100, color=colour, lw=1.9, marker=marker, ms=4.6)
        axes.set_ylim(-3, 103)
        axes.set_yticks((0, 50, 100))
    panels[0][1].set_ylabel("% of test images")
    styles = (("after the method", {"lw": 1.9, "ls": "-"}), ("before: original", {"lw": 1.1, "ls": "--"}), ("retrained", {"lw": 1.4, "ls": ":"}))
    entries: list[tuple[str, dict[str, Any]]] = [(word, {"color": colour, "marker": marker}) for word, colour, marker in BACKDOOR.values()]
    legend(figure, [*entries, *((word, {"marker": "", "color": INK, **look}) for word, look in styles)], loc="upper left", ncol=5)
    return figure, (
        "ASR is the share of images with the trigger that are taken for its class, SA the share of images without it that are classified rightly. A method "
        "has cleansed models where its ASR (squares) falls from the dashed line to the dotted one, retraining without the poison, and its SA stays up. "
        "Bars are 95 % intervals over models. The values of the setting stand at equal distances." + _besides(document)
    )


def _along_traces(document: Json) -> tuple[Figure, str]:
    figure, panels = _panels(document, ["trace"], 2.2)
    order = _order(document)
    ends = [end for row, _ in panels for at in order if (held := _held(row, at, "trace")) for end in held[1]]
    for at, (row, axes) in enumerate(panels):
        axes.axhline(0, color=BLUE, lw=1.2, zorder=0)
        axes.axhline(1, color=ORANGE, lw=1.2, zorder=0)
        _line(axes, document, row, "trace", 0.0, 1, color=INK, lw=1.6, marker="o", ms=4.6)
        axes.set_ylim(reach(ends))
        if at % ABREAST == 0:
            axes.set_ylabel("trace left")
    legend(figure, [("original", {"marker": "", "ls": "-", "color": ORANGE}), ("oracle", {"marker": "", "ls": "-", "color": BLUE})], loc="upper left", ncol=2)
    return figure, (
        f"The share of the trace that each method leaves, against {document['along']['setting']}, with 95 % intervals over models. The values of the setting "
        "stand at equal distances." + _besides(document)
    )


def _besides(document: Json) -> str:
    """What else differs, which a picture against one setting would hide."""
    along = document["along"]["setting"]
    own = ("prune",) if along == "sparsity" else (along,)
    others = [one["setting"] for one in document["differs"] if not one["setting"].startswith(own)]
    return f" The studies also differ in {', '.join(others)}." if others else ""


def draw(document: Json) -> list[Drawing]:
    """All figures, in reading order."""
    painters: list[Any] = [("compare-trace", "The trace left, method by method", _traces)]
    if document["along"]:
        setting, measured = document["along"]["setting"], {key for row in document["rows"] for one in row["in"] if one for key in one["results"]}
        if set(BACKDOOR) <= measured:
            painters.insert(0, ("compare-backdoor", f"ASR and SA against {setting}", _backdoor))
        else:
            painters.append(("compare-along", f"The trace left against {setting}", _along_traces))
    chosen: Painters = tuple(painters)
    return paint(document, chosen)
