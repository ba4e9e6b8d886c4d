"""The report's figures, as SVG that takes its ink from the page and is the same bytes every time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unlearnlab.report.canvas import (
    BLUE,
    GREY,
    INK,
    OCHRE,
    ORANGE,
    TEAL,
    Drawing,
    NothingToDrawError,
    annotate,
    canvas,
    colour_of,
    legend,
    paint,
    per_model,
    reach,
    room,
    short,
    trace_lines,
    traces_of,
    verdict_legend,
)
from unlearnlab.report.tables import Json, band, groups, interval, number, ordered, ratio, result, share, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from unlearnlab.report.canvas import Array, Painters


def _trace(document: Json) -> tuple[Figure, str]:
    found = traces_of(document)
    looks = [("trace", "whole forget set", "o", INK, 6.0)]
    half = " half" if len(groups(document)) == 2 else ""
    looks += [(f"group.{name}.trace", f"{band(name)}{half}", "sDv^"[i % 4], (TEAL, OCHRE, GREY)[i % 3], 4.4) for i, name in enumerate(groups(document))]
    ends = [end for row, value in found for key, *_ in looks for end in (interval(result(row, key)) or (value,))]
    figure, grid = canvas(1.05 + 0.43 * len(found))
    axes = grid[0, 0]
    axes.set_xlim(lo_hi := reach(ends))
    trace_lines(axes, "x")
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
                arrow = {"arrowstyle": "->", "color": colour, "lw": 1.1, "shrinkA": 2, "shrinkB": 0}
                look: dict[str, Any] = {"color": colour, "fontsize": 8.5, "va": "center", "ha": "left" if side > 0 else "right", "arrowprops": arrow}
                axes.annotate(ratio(value).replace("-", "−"), (edge, y), (side * 30, 0), textcoords="offset points", **look)
        label, damaged, _ = verdict(row)
        words, look = f"{label}{', damaged' if damaged else ''}", {"alpha": 0.6} if row.get("calibration") else {"color": colour_of(row)}
        axes.annotate(words, (1, at), (10, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", **look)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks(range(len(found)), [short(str(row["method"])) for row, _ in found])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("trace left")
    entries = [(word, {"marker": marker, "color": colour, "ms": size, "ls": "-", "lw": 1.6}) for _, word, marker, colour, size in looks]
    legend(figure, entries, loc="upper left", ncol=4)
    figure.subplots_adjust(
        left=room(str(row["method"]) for row, _ in found), right=0.78, top=1 - 0.58 / figure.get_figheight(), bottom=0.45 / figure.get_figheight()
    )
    return figure, (
        "Each mark is the share of the forget set’s mark that a method left behind, with its 95 % interval over models. "
        "On the orange line nothing was forgotten; on the blue line the models behave as if they had never seen the images; "
        "left of it they were pushed past that point, which betrays the images in the other direction. "
        "Values beyond the edge are drawn there as an arrow with their number."
    )


def _accuracy(document: Json) -> tuple[Figure, str]:
    import numpy as np

    found = [(row, trace, value) for row, trace in traces_of(document) if (value := number(result(row, "acc.test").get("value"))) is not None]
    if not found:
        raise NothingToDrawError("no method has a test accuracy")
    clouds = {str(row["method"]): (per_model(row, "trace"), per_model(row, "acc.test")) for row, *_ in found if row.get("calibration")}
    anchors = [value for row, _, value in found if row.get("calibration")] or [value for *_, value in found]
    cloud_values = [value for _, values in clouds.values() for value in values]
    figure, grid = canvas(4.9)
    axes = grid[0, 0]
    figure.subplots_adjust(left=0.08, right=0.985, top=0.925, bottom=0.105)
    spreads = [[float(np.std(held, ddof=1)) if len(held := per_model(row, key)) > 1 else 0.0 for key in ("trace", "acc.test")] for row, *_ in found]
    axes.set_xlim(xs := reach([trace + side * spread for (_, trace, _), (spread, _) in zip(found, spreads, strict=True) for side in (-1, 0, 1)]))
    kept = [value for value in (*cloud_values, *(value for *_, value in found)) if value >= min(anchors) - 0.12]
    lo, hi = min(kept), max(kept)
    axes.set_ylim(ys := (100 * (lo - 0.08 * (hi - lo) - 0.002), 100 * (hi + 0.08 * (hi - lo) + 0.002)))
    others: list[tuple[float, float]] = []
    for name, (traces, values) in clouds.items():
        if len(traces) == len(values) and traces:
            colour = BLUE if name == "retrain" else ORANGE
            axes.plot(traces, 100 * np.array(values), "o", color=colour, ms=4, alpha=0.45, mew=0)
            others += list(zip(traces, (100 * np.array(values)).tolist(), strict=True))
    points = []
    for (row, trace, value), spread in zip(found, spreads, strict=True):
        colour = {"retrain": BLUE, "original": ORANGE}.get(str(row["method"]), colour_of(row)) if row.get("calibration") else colour_of(row)
        x, y = float(np.clip(trace, *xs)), float(np.clip(100 * value, *ys))
        beyond = [words for words, off in ((f"trace {ratio(trace)}".replace("-", "−"), x != trace), (f"{100 * value:.0f} %", y != 100 * value)) if off]
        axes.plot(x, y, "D" if row.get("calibration") else "o", color=colour, ms=7, clip_on=False, zorder=3)
        if not beyond:
            axes.errorbar(x, y, xerr=spread[0], yerr=100 * spread[1], color=colour, lw=1, alpha=0.75)
            others += [end for step in np.linspace(-1, 1, 9).tolist() for end in ((x + step * spread[0], y), (x, y + 100 * step * spread[1]))]
        points.append((x, y, short(str(row["method"])) + (f" ({', '.join(beyond)})" if beyond else "")))
    axes.axvline(0, color=BLUE, lw=0.8, alpha=0.5, zorder=0)
    axes.axvline(1, color=ORANGE, lw=0.8, alpha=0.5, zorder=0)
    axes.set_xlabel("trace left (0 oracle, 1 original)")
    axes.set_ylabel("test accuracy, %")
    annotate(axes, points, others)
    verdict_legend(axes, [row for row, *_ in found], ("oracles, one dot per retrained model", {"color": BLUE, "alpha": 0.45, "ms": 4}))
    return figure, (
        "What forgetting cost in usefulness. The blue cloud is where models trained without the forget set lie, one dot per model: "
        "a method that forgets and keeps its skill lands in it. Right of the cloud something is remembered, below it the model is worse than retraining. "
        "Bars show one standard deviation over models; a label that gives its numbers belongs to a mark beyond the edge."
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
        raise NothingToDrawError("the margins of originals, oracles or methods are absent")
    wrong = np.array(forget.get("labels") or []) != np.array(forget.get("true_labels") or [])
    split = wrong.shape == held["oracle"].shape[1:] and 0 < wrong.sum() < wrong.size
    columns = [("mislabelled images", wrong), ("clean images", ~wrong)] if split else [("forget images", np.ones(held["oracle"].shape[1], bool))]
    figure, grid = canvas(0.95 + 0.52 * len(names), 1, len(columns))
    for col, (title, mask) in enumerate(columns):
        axes: Axes = grid[0, col]
        flat = {name: values[:, mask][np.isfinite(values[:, mask])] for name, values in held.items()}
        anchors = np.concatenate([flat["original"], flat["oracle"]])
        lo, hi = float(anchors.min()), float(anchors.max())
        xs = np.linspace(lo - 0.35 * (hi - lo), hi + 0.2 * (hi - lo), 120)
        curves = {name: _density(values, xs) for name, values in flat.items() if len(values)}
        top = 1.4 * max(curves["original"].max(), curves["oracle"].max())
        for at, name in enumerate(names):  # rows of one axes, shifted: eighteen axes would take a second to draw
            for which, colour in (("original", ORANGE), ("oracle", BLUE)):
                axes.fill_between(xs, at - curves[which] / top, at, color=colour, alpha=0.22, lw=0)
                axes.plot(xs, at - curves[which] / top, color=colour, lw=0.9)
            if name not in curves:
                continue
            axes.plot(xs, at - np.minimum(curves[name] / top, 0.95), color=INK, lw=1.5)
            for beyond, x, words, side in ((flat[name] < xs[0], xs[0], " ← {} below", "left"), (flat[name] > xs[-1], xs[-1], "{} above → ", "right")):
                if beyond.mean() > 0.02:
                    axes.text(x, at - 0.62, words.format(share(float(beyond.mean()))), fontsize=8, ha=side, va="center")
        axes.set_ylim(len(names) - 0.95, -1)
        axes.set_xlim(xs[0], xs[-1])
        axes.set_yticks([at - 0.3 for at in range(len(names))], [short(name) if col == 0 else "" for name in names])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_title(title, fontsize=9.5, loc="left", pad=2)
        axes.set_xlabel("logit margin, nats")
    entries = (("original", ORANGE), ("oracle", BLUE), ("unlearned", INK))
    legend(figure, [(word, {"ls": "-", "marker": "", "color": colour, "lw": 2}) for word, colour in entries], loc="upper right", ncol=3)
    figure.subplots_adjust(left=room(names), right=0.99, top=1 - 0.55 / figure.get_figheight(), bottom=0.48 / figure.get_figheight(), wspace=0.06)
    return figure, (
        "How sure the models are of the forget images’ stored labels, the log-odds log p/(1 − p) of that label "
        "(0: as likely as all other classes together), over all models and images. "
        "Orange is before unlearning, blue is models that never saw the images; "
        "the line of the unlearned models should lie on the blue hill, wherever that is. "
        "A narrower or wider line is a difference too, even where its middle fits."
    )


def _cost(document: Json) -> tuple[Figure, str]:
    import numpy as np

    measured = [(row, trace, number(result(row, "cost.fraction").get("value"))) for row, trace in traces_of(document)]
    found = [(row, trace, cost) for row, trace, cost in measured if cost is not None and (cost > 0 or not row.get("calibration"))]  # original costs nothing
    costs = [cost for *_, cost in found if cost > 0]
    if not costs:
        raise NothingToDrawError("no method has a measured cost")
    figure, grid = canvas(4.6)
    axes = grid[0, 0]
    figure.subplots_adjust(left=0.08, right=0.92, top=0.92, bottom=0.115)
    if log := max(costs) > 10 * min(costs):
        axes.set_xscale("log")
        axes.set_xlim(100 * min(costs) / 1.5, 100 * max(costs) * 1.5)
    else:
        axes.set_xlim(0, 108 * max(costs))
    axes.set_ylim(ys := reach([end for row, trace, _ in found for end in (interval(result(row, "trace")) or (trace,))]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    trace_lines(axes, "y")
    points = []
    for row, trace, cost in found:
        colour = BLUE if row.get("calibration") else colour_of(row)
        x, y = 100 * (max(cost, min(costs)) if log else cost), float(np.clip(trace, *ys))
        ends = interval(result(row, "trace"))
        if ends and y == trace:
            axes.plot((x, x), ends, color=colour, lw=1.4)
        axes.plot(x, y, "D" if row.get("calibration") else "o", color=colour, ms=7, clip_on=False, zorder=3)
        points.append((x, y, short(str(row["method"])) + ("" if y == trace else f" ({ratio(trace)})".replace("-", "−"))))
    axes.set_xlabel(f"cost, share of the time to train from scratch{' (logarithmic)' if log else ''}")
    axes.set_ylabel("trace left")
    annotate(axes, points)
    verdict_legend(axes, [row for row, *_ in found])
    return figure, (
        "What forgetting cost in time. Lower left is better only down to the blue line. "
        "A method near 100 % buys nothing: training from scratch without the images costs the same and forgets for certain. "
        "Bars are the 95 % interval of the trace."
    )


def _images(document: Json) -> tuple[Figure, str]:
    import numpy as np

    forget = document.get("forget") or {}
    held = {name: np.array(values, float) for name, values in (forget.get("margins") or {}).items()}
    pixels, ids = np.array(forget.get("pixels") or []), forget.get("ids") or []
    methods = sorted(((abs(trace), trace, str(row["method"])) for row, trace in traces_of(document) if not row.get("calibration") and row["method"] in held))
    if not {"original", "oracle"} <= held.keys() or not methods or len(pixels) != len(ids) or not len(ids):
        raise NothingToDrawError("the forget images or their margins are absent")
    gap = held["original"].mean(0) - held["oracle"].mean(0)
    error = np.sqrt(sum(held[name].var(0, ddof=1) / len(held[name]) if len(held[name]) > 1 else 0 * gap for name in ("original", "oracle")))
    clear = np.flatnonzero((gap > 4 * error) & (gap > 0))  # elsewhere the share would be noise over noise
    if not len(clear):
        raise NothingToDrawError("no image has a clear gap between originals and oracles")
    left = {name: (values.mean(0) - held["oracle"].mean(0))[clear] / gap[clear] for name, values in held.items()}
    chosen = list(dict.fromkeys([methods[0][2], max(methods, key=lambda one: one[1])[2]]))
    figure, grid = canvas(1.78 * len(chosen))
    axes: Axes = grid[0, 0]
    axes.set_axis_off()
    labels, true = forget.get("labels") or [], forget.get("true_labels") or []
    for at, name in enumerate(chosen):
        best = np.argsort(-left[name], kind="stable")[:8]
        which = "closest to the oracles" if at == 0 else "most left"
        trace = ratio(next(trace for _, trace, method in methods if method == name)).replace("-", "−")
        axes.text(0, 1.9 * at + 0.16, f"{short(name)}: {which}, trace {trace}")
        for col, found in enumerate(best.tolist()):
            one, x, y = int(clear[found]), 1.25 * col, 1.9 * at + 0.3
            image = pixels[one].astype(np.uint8)
            image = image if image.ndim == 2 else image.transpose(1, 2, 0)
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="none", extent=(x, x + 1, y + 1, y), aspect="auto")
            words = f"id {ids[one]}: {100 * left[name][found]:.0f} % left".replace("-", "−")
            words += f"\nlabelled {labels[one]}" if len(labels) else ""
            words += f", is {true[one]}" if len(true) else ""
            axes.text(x + 0.5, y + 1.06, words, ha="center", va="top", fontsize=8, linespacing=1.35)
    axes.set_xlim(-0.12, 9.87)
    axes.set_ylim(1.9 * len(chosen), 0)
    figure.subplots_adjust(left=0, right=1, top=1, bottom=0)
    drawn = f" {len(ids)} of the {forget['of']} forget images, drawn at random, are looked at." if forget.get("of", len(ids)) > len(ids) else ""
    noise = f" Even among retrained models, by chance, the largest is {100 * left['retrain'].max():.0f} %." if "retrain" in left else ""
    return figure, (
        "The images each of these methods forgot least: how much of the gap between original and oracle margin is left, averaged over models, "
        f"for the {len(clear)} of {len(ids)} images whose gap is at least four standard errors.{drawn}{noise}"
    )


PAINTERS: Painters = (
    ("trace", "How much of the trace is left", _trace),
    ("accuracy", "Forgetting against usefulness", _accuracy),
    ("margins", "How sure the models are of the forget images", _margins),
    ("cost", "Forgetting against cost", _cost),
    ("least-forgotten", "The images least forgotten", _images),
)


def draw(document: Json) -> list[Drawing]:
    """All figures of the report, in reading order."""
    return paint(document, PAINTERS)
