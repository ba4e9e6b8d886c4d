"""A made-up audit.json of the shape and size the digits study stores; numbers from a fixed seed."""

from __future__ import annotations

from typing import Any

import numpy as np

Number = float | None

MODELS, HALF = 32, 31
GLYPHS = ("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71122", "75757", "75717")  # digits of 3 × 5 dots, a row of dots per octal digit
# method: trace on mislabelled and clean images, test accuracy, cost, verdict
METHODS: dict[str, tuple[float, float, float, float, tuple[str, str, bool, str]]] = {
    "original": (1.0, 1.0, 0.852, 0.0, ("calibration", "", False, "the original itself: trace 1 by construction")),
    "retrain": (-0.006, 0.02, 0.881, 1.0, ("calibration", "", False, "a perfect unlearner: p = 0.41, 1 in 20 falls below .05 by chance")),
    "finetune": (0.44, 0.30, 0.868, 0.11, ("not forgotten", "3a", False, "not forgotten: 42 % of the trace left")),
    "gradient_ascent": (-3.1, -2.2, 0.61, 0.012, ("over-forgotten", "3b", True, "damaged, over-forgotten: pushed 295 % of the trace past the oracle")),
    "neggrad_plus": (0.03, 0.05, 0.877, 0.14, ("forgotten", "4", False, "forgotten: indistinguishable at N=32; 4 % would have been seen")),
    "l1_sparse": (0.21, 0.11, 0.871, 0.17, ("not forgotten", "3a", False, "not forgotten: 20 % of the trace left")),
    "random_label": (-0.12, -0.31, 0.859, 0.09, ("over-forgotten", "3b", False, "over-forgotten: pushed 14 % of the trace past the oracle")),
    "salun": (-0.02, 0.22, 0.869, 0.13, ("not forgotten", "3c", False, "not forgotten: distinguishable, not towards the original")),
    "ssd": (0.93, 0.91, 0.846, 0.031, ("not forgotten", "3a", True, "damaged, not forgotten: 93 % of the trace left")),
    "del": (0.07, 0.12, 0.872, 0.052, ("unresolved", "5", False, "unresolved")),
}


def result(key: str, value: Number, *, half: Number = None, floor: Number = None, ceiling: Number = None, **more: Any) -> dict[str, Any]:
    ci = None if half is None or value is None else {"lo": value - half, "hi": value + half, "level": 0.95, "method": "t over models"}
    spread = {"sd": 0.01, "splits": 10, "note": "at N/2 = 16 models a side"}
    anchors = {name: None if mean is None else {"mean": mean, **spread} for name, mean in (("floor", floor), ("ceiling", ceiling))}
    rescaled = None if value is None or floor is None or ceiling is None else (value - floor) / (ceiling - floor)
    empty: dict[str, Any] = {
        "perfect": None,
        "p": None,
        "rescaled_ci": None,
        "n_models": [MODELS] * 3,
        "n_examples": 62,
        "dropped": [],
        "notes": [],
        "extra": {},
    }
    empty |= {"per_example": None, "per_model": None, "missing": None}
    return {"key": key, "value": value, "better": "match_oracle", "ci": ci, **anchors, "rescaled": rescaled, **empty, **more}


def absent(key: str, reason: str) -> dict[str, Any]:
    return result(key, None, missing=f"not computed: {reason}")


def make_document(seed: int = 0) -> dict[str, Any]:
    """Ten rows; ``l1_sparse`` lacks its halves, ``del`` some results, ``gradient_ascent`` and ``ssd`` are damaged."""
    rng = np.random.default_rng(seed)
    true = np.arange(2 * HALF) % 10
    flipped = np.arange(2 * HALF) < HALF
    labels = np.where(flipped, (true + rng.integers(1, 10, 2 * HALF)) % 10, true)
    gap = np.where(flipped, rng.normal(9, 1.5, 2 * HALF), rng.gamma(2, 0.9, 2 * HALF))
    oracle = np.where(flipped, rng.normal(-5, 2, 2 * HALF), rng.normal(5, 2.5, 2 * HALF))

    def margins(left: np.ndarray | float, spread: float = 1.8) -> list[list[float]]:
        return np.round(oracle + left * gap + rng.normal(0, spread, (MODELS, 2 * HALF)), 4).tolist()

    held = {"original": margins(1.0), "oracle": margins(0.0)}
    rows = []
    for name, (wrong, clean, test, cost, (label, rule, damaged, text)) in METHODS.items():
        calibration = name in ("original", "retrain")
        if name != "original":
            held[name] = margins(np.where(flipped, wrong, clean) * rng.uniform(0.6, 1.4, 2 * HALF), 1.8 if test > 0.8 else 6.0)
        whole = 0.94 * wrong + 0.06 * clean
        per_model = [round(float(v), 4) for v in whole + rng.normal(0, 0.06, MODELS)]
        spread = {"trace": 0.021, "group.mislabelled.trace": 0.022, "group.clean.trace": 0.09}
        results = [
            result(key, round(value, 4), half=0.0 if name == "original" else half, per_model=per_model if key == "trace" else None)
            for (key, half), value in zip(spread.items(), (whole, wrong, clean), strict=True)
        ]
        auc = {"": 0.51 + 0.29 * whole, "group.mislabelled.": 0.5 + 0.48 * wrong, "group.clean.": 0.52 + 0.1 * clean}
        results += [result(f"{at}mia_lr.auc", min(max(value, 0.02), 1), half=0.02, floor=0.51, ceiling=0.8) for at, value in auc.items()]
        results += [result("energy", 0.02 + 2.9 * whole**2, half=0.05, floor=0.02, ceiling=2.92)]
        p = 0.0001 if rule.startswith("3") else 0.31
        results += [result("perm.omnibus", p, p=p)]
        for part, value in {"retain": min(1, test + 0.13), "forget": 0.38 + 0.6 * min(max(whole, -0.6), 1), "test": test, "validation": test - 0.004}.items():
            results += [result(f"acc.{part}", value, half=0.004, per_model=[round(float(v), 4) for v in value + rng.normal(0, 0.008, MODELS)])]
        plain = {"cost.fraction": cost, "cost.example_passes": 180000 * cost, "delta.changed": float(name != "original"), "delta.rel_l2": 0.3 * cost}
        results += [result(key, value) for key, value in plain.items()]
        for part in ("forget", "retain", "test"):
            results += [result(f"klom.smooth.{part}", 0.41 + 1.3 * min(abs(whole), 1), half=0.04, floor=0.409, ceiling=1.70, extra={"median": 0.40})]
            results += [result(f"klom.gauss.{part}", 0.13 + 9 * min(abs(whole), 1), half=0.5, floor=0.14, ceiling=9.3, notes=["led by few images"])]
            results += [result(f"disagree.{part}", 0.1 + 0.3 * min(abs(whole), 1), half=0.01, floor=0.1, ceiling=0.4)]
        results += [result("eps.crossfit.forget", 3 * abs(whole), half=0.4, floor=0.05, ceiling=3.1)]
        results += [result("tow", 0.93 - 0.4 * min(abs(whole), 1), half=0.02, floor=0.92, ceiling=0.5)]
        results += [result("mia_svc.confidence.efficacy", 0.57 - 0.3 * min(whole, 1), half=0.03, floor=0.57, ceiling=0.27)]
        by_key = {one["key"]: one for one in results}
        if name == "l1_sparse":
            by_key = {key: one for key, one in by_key.items() if not key.startswith("group.")}
        if name == "del":
            by_key["group.clean.trace"] = absent("group.clean.trace", "this forget set leaves no trace at N=32")
            by_key["eps.crossfit.forget"] = absent("eps.crossfit.forget", "N=8, needs 16")
            by_key["tow"] |= {"value": None, "rescaled": None, "ci": None, "missing": "not computed: unpaired seeds"}
            by_key["energy"] |= {"rescaled": None}
            by_key["streisand.over"] = result("streisand.over", 0.0625, floor=0.05, ceiling=0.11)
        settings = {"epochs": 5, "learning_rate": 0.02} if not calibration else {}
        rows.append(
            {
                "method": name,
                "settings": settings,
                "calibration": calibration,
                "p": None if name == "original" else p,
                "holm_p": None if calibration else min(1.0, 8 * p),
                "verdict": {"label": label, "rule": rule, "text": text, "damaged": damaged},
                "results": by_key,
            }
        )
    dots = np.array([[[int(row) >> 2 - col & 1 for col in range(3)] for row in glyph] for glyph in GLYPHS])
    pixels = np.zeros((2 * HALF, 8, 8), int)
    pixels[:, 1:6, 2:5] = 230 * dots[true]
    pixels = np.clip(pixels + rng.integers(0, 26, pixels.shape), 0, 255)
    return {
        "title": "Which methods forget 62 digits?",
        "preset": "digits",
        "created": "2025-03-01T12:00:00Z",
        "study": {
            "name": "digits",
            "dataset": {"name": "digits", "train": 500, "flip": 0.2, "seed": 0},
            "net": {"name": "small_cnn", "widths": [16, 16, 32]},
            "recipe": {"epochs": 40, "batch": 50, "learning_rate": 0.1, "schedule": "one_cycle"},
            "methods": [{"name": "finetune", "epochs": 5}, {"name": "ssd", "alpha": 10.0}],
        },
        "environment": {
            "python": "3.11.9",
            "torch": "2.13.0",
            "unlearnlab": "0.1.0",
            "cpu": "two cores of something",
            "cores": 2,
            "commit": "f12437b",
            "seconds": 94.2,
        },
        "models": {"originals": 32, "oracles": 32, "retrained": 32},
        "data": {"forget": 62, "retain": 438, "control": 180, "validation": 117, "test": 1000, "classes": 10, "mislabelled_forget": 31},
        "rows": rows,
        "power": "A uniform shift of 0.93 sd, or 4 % of the trace, would have been seen with probability .8.",
        "verdict_rules": [
            ["0", "an integrity check fails, or N < 16, or the models do not come from N independent originals", "no verdict: reason"],
            ["1", "p(originals v oracles) > .01, or the trace's denominator is not above 0", "no verdict: this forget set leaves no trace at N"],
            ["2", "retain or test accuracy more than 2 points below oracle and original", "damaged, followed by the wording of 3-5"],
            ["3a", "Holm p <= .05 and the trace interval is above 0", "not forgotten: x % of the trace left"],
            ["3b", "Holm p <= .05 and the trace interval is below 0", "over-forgotten"],
            ["3c", "Holm p <= .05 and the trace interval covers 0", "not forgotten: distinguishable, not towards the original"],
            ["4", "raw p > .05 and the trace interval lies inside (-.10, +.10)", "forgotten: indistinguishable at N"],
            ["5", "otherwise", "unresolved"],
        ],
        "notes": ["The methods' settings were tuned on other forget sets, never on this one."],
        "forget": {
            "ids": (np.arange(2 * HALF) * 17 + 3).tolist(),
            "labels": labels.tolist(),
            "true_labels": true.tolist(),
            "pixels": pixels.tolist(),
            "margins": held,
        },
    }


def banded_document() -> dict[str, Any]:
    """The same audit with bands of memorisation for groups; the lowest band leaves no trace."""
    document = make_document()
    for row in document["rows"]:
        held = {key: one for key, one in row["results"].items() if not key.startswith("group.")}
        for at, name in enumerate(("low", "mid", "high")):
            key = f"group.memorisation.{name}"
            share = row["results"]["trace"]["value"] + 0.21 * (at - 1)
            held[f"{key}.trace"] = result(f"{key}.trace", share, half=0.06)
            held[f"{key}.acc.forget"] = result(f"{key}.acc.forget", 0.9 - 0.2 * at, half=0.02, floor=0.88 - 0.25 * at, ceiling=1.0)
        held["group.memorisation.low.trace"] = absent("group.memorisation.low.trace", "this group leaves no trace at N=32")
        for one, other in (("high", "mid"), ("mid", "low"), ("high", "low")):
            key = f"difference.memorisation.{one}.{other}.trace"
            held[key] = absent(key, "'low' leaves no trace at N=32") if other == "low" else result(key, 0.21, half=0.06, p=0.003, extra={"holm_p": 0.003})
        row["results"] = held
    return document
