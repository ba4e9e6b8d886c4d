"""The figures of an audit from logits alone: epsilon against delta, epsilon image by image, and margins beside the oracles'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unlearnlab.report.canvas import BLUE, GREY, INK, OCHRE, ORANGE, PURPLE, TEAL, Drawing, NothingToDrawError, canvas, legend, paint, short
from unlearnlab.report.tables import Json, number, result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from unlearnlab.report.canvas import Painters

# One look for each approach, in the order of the folder: colours first, then dashes.
COLOURS, DASHES = (ORANGE, PURPLE, TEAL, OCHRE, INK), ("-", "--", ":", "-.")
NAMES = 16  # letters of a name beside a figure's rows


def _baseline(document: Json) -> str:
    return str((document["baseline"] or {}).get("method", ""))


def _looks(document: Json) -> dict[str, dict[str, Any]]:
    approaches = [row["method"] for row in document["rows"]]
    looks = {name: {"color": COLOURS[at % len(COLOURS)], "ls": DASHES[at // len(COLOURS) % len(DASHES)]} for at, name in enumerate(approaches)}
    return looks | {_baseline(document): {"color": BLUE, "ls": "-"}}


def _epsilon_delta(document: Json) -> tuple[Figure, str]:
    deltas, curves, looks = document["deltas"], document["curves"], _looks(document)
    lines = -(-len(curves) // 4)
    figure, grid = canvas(3.3 + 0.22 * lines, 1, 2)
    gone: list[str] = []
    for axes, recipe, title in zip(grid[0], ("published", "crossfit"), ("published recipe", "cross-fitted"), strict=True):
        for name, held in curves.items():
            points = [(delta, value) for delta, value in zip(deltas, held[recipe] or (), strict=False) if number(value) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), lw=1.6, **looks[name])
            if len(points) < len(held[recipe] or ()):
                gone.append(f"{name} ({'infinite' if 'inf' in held[recipe] else 'no number'})")
        if not axes.lines:
            axes.text(0.5, 0.5, "not computed", transform=axes.transAxes, ha="center", color=GREY)
        axes.axvline(document["delta"], color=INK, lw=0.6, alpha=0.5, zorder=0)
        axes.annotate(
            f"δ = {document['delta']:g}",
            (document["delta"], 1),
            (3, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8.5,
            va="top",
        )
        axes.set_title(title, loc="left", fontsize=9.5, pad=4)
        axes.set_xlabel("δ")
        axes.set_xlim(0, max(deltas))
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    grid[0, 0].set_ylabel("ε, median over images")
    drawn = [name for name, held in curves.items() if any(number(value) is not None for recipe in held.values() for value in recipe or ())]
    legend(figure, [(short(name), {"marker": "", "lw": 2, **looks[name]}) for name in drawn], loc="upper left", ncol=4)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.07, right=0.985, top=1 - (0.35 + 0.22 * lines) / height, bottom=0.48 / height, wspace=0.14)
    lost = f" No line where the median is not a number: {', '.join(dict.fromkeys(gone))}." if gone else ""
    return figure, (
        "How epsilon falls as differential privacy allows more to go wrong: δ is the probability with which its promise may fail. Left the published recipe, "
        "right the cross-fitted one; their axes differ. "
        f"Blue is one half of the oracles against the other, the least that can be expected with half as many models.{lost}"
    )


def _epsilon_images(document: Json) -> tuple[Figure, str]:
    import numpy as np

    key, blue = document["keys"]["crossfit"], _baseline(document)
    held = {name: each["crossfit"] for name, each in document["per_example"].items() if each["crossfit"]}
    names = [row["method"] for row in document["rows"] if row["method"] in held]
    if not names:
        raise NothingToDrawError("no approach has a cross-fitted epsilon")
    cap = {row["method"]: number((result(row, key).get("extra") or {}).get("cap")) for row in document["rows"]}
    top = max([*(value for value in cap.values() if value), *(max(held[name]) for name in names)])
    edges = np.linspace(0, top * 1.0001, 41)
    figure, grid = canvas(0.9 + 0.62 * len(names), len(names), 1, sharex=True)
    for axes, name in zip(grid[:, 0], names, strict=True):
        shares = [100 * np.histogram(held[which], edges)[0] / len(held[which]) for which in (name, blue) if which in held]
        if len(shares) > 1:
            axes.stairs(shares[1], edges, fill=True, color=BLUE, alpha=0.28, lw=0)
        axes.stairs(shares[0], edges, color=INK, lw=1.3)
        axes.axvline(float(np.median(held[name])), color=ORANGE, lw=1.6)
        if cap.get(name):
            axes.axvline(cap[name], color=GREY, lw=0.9, ls=":")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylabel(short(name) if len(name) <= NAMES else f"{name[: NAMES - 1]}…", rotation=0, ha="right", va="center")
    grid[-1, 0].set_xlabel("cross-fitted ε of an image")
    entries = [("approach", {"color": INK, "lw": 1.3}), ("its median", {"color": ORANGE, "lw": 1.6}), ("cap", {"color": GREY, "ls": ":", "lw": 1.2})]
    entries = [(word, {"ls": "-", "marker": "", **look}) for word, look in entries]
    if blue in held:
        entries.insert(1, (blue, {"marker": "s", "color": BLUE, "alpha": 0.4}))
    legend(figure, entries, loc="upper left", ncol=4)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.16, right=0.985, top=1 - 0.36 / height, bottom=0.48 / height, hspace=0.18)
    return figure, (
        f"Whom each approach gives away: the share of images by their cross-fitted ε at δ = {document['delta']:g}. Heaped at 0, an attacker learns "
        "nothing of most images; a tail to the right are images that are remembered, or forgotten too hard. At the dotted cap both kinds of models were told "
        "apart without error, and more models would be needed to say how far. The oracles in halves have half as many models, so chance spreads theirs wider."
    )


def _margins(document: Json) -> tuple[Figure, str]:
    import numpy as np

    held = {name: document["margins"][name] for name in (row["method"] for row in document["rows"]) if name in document["margins"]}
    if not held:
        raise NothingToDrawError("there are no margins to compare")
    which = [one["which"] for one in next(iter(held.values()))["examples"]]
    figure, grid = canvas(1.05 + 0.85 * len(held), len(held), 1 + len(which), width_ratios=(1.7, *(1 for _ in which)))
    for row, (name, seen) in enumerate(held.items()):
        axes: Axes = grid[row, 0]
        axes.stairs(seen["oracles"], seen["edges"], fill=True, color=BLUE, alpha=0.28, lw=0)
        axes.stairs(seen["unlearned"], seen["edges"], color=INK, lw=1.3)
        axes.set_ylabel(name if len(name) <= NAMES else f"{name[: NAMES - 1]}…", rotation=0, ha="right", va="center")
        for col, one in enumerate(seen["examples"], 1):
            axes = grid[row, col]
            both = np.concatenate([one["unlearned"], one["oracles"]])
            edges = np.linspace(both.min() - 1e-9, both.max() + 1e-9, 17).tolist()
            axes.hist(one["oracles"], edges, color=BLUE, alpha=0.28, lw=0, density=True)
            axes.hist(one["unlearned"], edges, color=INK, lw=1.3, histtype="step", density=True)
            axes.text(0.98, 0.96, f"id {one['id']}", transform=axes.transAxes, fontsize=8, ha="right", va="top")
        for axes in grid[row]:
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.tick_params(labelsize=8)
    for col, title in enumerate(("all images and models, pooled", *which)):
        grid[0, col].set_title(title, loc="left", fontsize=9, pad=4)
        grid[-1, col].set_xlabel("margin, in sd of the image’s oracles" if col == 0 else "margin, nats", fontsize=9)
    entries: list[tuple[str, dict[str, Any]]] = [
        ("oracles", {"marker": "s", "color": BLUE, "alpha": 0.4}),
        ("unlearned", {"ls": "-", "marker": "", "color": INK, "lw": 1.3}),
    ]
    legend(figure, entries, loc="upper left", ncol=2)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.16, right=0.985, top=1 - 0.55 / height, bottom=0.5 / height, wspace=0.1, hspace=0.42)
    return figure, (
        "How sure the models are of the labels of the forget images. Left, every margin is measured from the oracles’ mean on the same image, in their "
        "standard deviations, and all are pooled (what lies beyond the ends is counted in the last bins): the line of the unlearned models should lie on the "
        "blue hill. Right, three images by themselves, chosen by how far the two means lie apart."
    )


PAINTERS: Painters = (
    ("epsilon-delta", "Epsilon against delta", _epsilon_delta),
    ("epsilon-images", "Epsilon, image by image", _epsilon_images),
    ("margins", "Margins beside the oracles’", _margins),
)


def draw(document: Json) -> list[Drawing]:
    """All figures, in reading order."""
    return paint(document, PAINTERS)
