"""Several finished studies side by side: every method in each, and differences with their intervals. Nothing is trained."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlearnlab.finished import Finished, differing, finished, members, place, plain
from unlearnlab.metrics.statistics import holm, p_of, t_of
from unlearnlab.metrics.trace import Left
from unlearnlab.spec import InputError
from unlearnlab.store import Store

__all__ = ["COMPARED", "Comparison", "compare", "estimate", "place", "pulls"]

COMPARED = ("trace", "acc.retain", "acc.forget", "acc.test", "asr", "sa", "tow", "tow_mia")  # not seconds: they tell of the machine too
CIRCUMSTANCES = ("unlearnlab", "torch", "device")
PAIRED, WELCH = "paired t over models", "Welch over models"


@dataclass(frozen=True)
class Comparison:
    """Several studies side by side, as plain data; ``report.compare`` shows it.

    ``differs``: settings in which they differ, a value for each study. ``along``: the one number that they go along, if there is one. ``rows``: of
    every method what each study has stored (None where it has no such method). ``pairs``: each study against the first, with all differences.
    """

    title: str
    created: str
    family: str
    studies: list[dict[str, Any]]
    differs: list[dict[str, Any]]
    along: dict[str, Any] | None
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    pairs: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(store: Store, names: Sequence[str]) -> Comparison:
    """Compare finished studies of a store; a family, or a study of several requests, stands for all of its members. The first is the reference.

    Differences are paired where model i of both studies starts from the same seed, else Welch's. Raises ``InputError`` for fewer than two
    studies, unknown or unfinished ones, and one that is named twice.
    """
    studies = _alike([finished(store, name) for name in members(store, names)])
    family, labels = _labels([study.name for study in studies])
    settings = [study.document["study"] for study in studies]
    apart = differing(settings) | _circumstances(studies)
    methods = _methods(studies)
    return Comparison(
        title=f"{family or 'Studies'} compared: {', '.join(labels)}",
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        family=family,
        studies=[{"name": study.name, "label": label, **_facts(study)} for study, label in zip(studies, labels, strict=True)],
        differs=[{"setting": path, "values": values} for path, values in apart.items()],
        along=_along(settings, apart),
        metrics={key: held for study in studies for key, held in (study.document.get("metrics") or {}).items()},
        rows=[{"method": name, "calibration": calibration, "in": [study.row(name) for study in studies]} for name, calibration in methods.items()],
        pairs=[_pair((studies[0], other), (labels[0], label), methods) for other, label in zip(studies[1:], labels[1:], strict=True)],
    )


def _alike(studies: Sequence[Finished]) -> list[Finished]:
    """Where each study forgets by a score of its own, groups by that score have one name: RUM by entropy and RUM by confidence are one row."""
    own = [study.document["study"].get("forget", {}).get("score") for study in studies]
    if None in own or len(set(own)) == 1:
        return list(studies)
    return [_renamed(study, f"rum-{score}-", "rum-score-") for study, score in zip(studies, own, strict=True)]


def _renamed(study: Finished, old: str, new: str) -> Finished:
    index = {name.replace(f"/{old}", f"/{new}"): keys for name, keys in study.index.items()}
    rows = [{**row, "method": row["method"].replace(old, new)} for row in study.document["rows"]]
    return replace(study, document={**study.document, "rows": rows}, index=index)


def _labels(names: Sequence[str]) -> tuple[str, list[str]]:
    """The family that all are of, and what each is called in it; else no family, and their names."""
    parts = [name.partition(".") for name in names]
    if len({family for family, _, _ in parts}) == 1 and all(variant for _, _, variant in parts):
        return parts[0][0], [variant for _, _, variant in parts]
    return "", list(names)


def _facts(study: Finished) -> dict[str, Any]:
    return {name: study.document.get(name) for name in ("title", "created", "data", "models", "environment")}


def _methods(studies: Sequence[Finished]) -> dict[str, bool]:
    """All rows, and whether they calibrate: these first, the others in order of first appearance."""
    found = {name: bool(row["calibration"]) for study in studies for name, row in study.rows.items()}
    return dict(sorted(found.items(), key=lambda one: not one[1]))


def _circumstances(studies: Sequence[Finished]) -> dict[str, list[Any]]:
    """Versions and devices, where they differ."""
    held = {f"made with {name}": [plain((study.document.get("environment") or {}).get(name)) for study in studies] for name in CIRCUMSTANCES}
    return {name: values for name, values in held.items() if len(set(values)) > 1}


# ---- one number that the studies differ in


def _along(settings: Sequence[Mapping[str, Any]], apart: Mapping[str, Sequence[Any]]) -> dict[str, Any] | None:
    """The setting that the studies go along: how sparse models are, else the one number that differs. Another for every study, or None."""
    sparse = [_sparsity(one.get("prune")) for one in settings]
    if None not in sparse and len(set(sparse)) == len(sparse):
        return {"setting": "sparsity", "values": sparse}
    numbers = {path: list(values) for path, values in apart.items() if all(isinstance(value, int | float) for value in values)}
    chosen = [path for path in numbers if path.startswith("forget.")] if len(numbers) > 1 else list(numbers)
    if len(chosen) == 1 and chosen[0] != "seed" and len(set(numbers[chosen[0]])) == len(settings):
        return {"setting": chosen[0], "values": numbers[chosen[0]]}
    return None


def _sparsity(prune: Mapping[str, Any] | None) -> float | None:
    """The share of the prunable weights that is removed; 0 for dense models, None where the settings do not say."""
    if prune is None:
        return 0.0
    if "sparsity" in prune:
        return float(prune["sparsity"])
    return round(1 - (1 - prune["share"]) ** prune["rounds"], 4) if {"share", "rounds"} <= set(prune) else None


# ---- differences of two studies


class Sides(NamedTuple):
    """The reference and another study."""

    one: Finished
    other: Finished


def _pair(studies: tuple[Finished, Finished], labels: tuple[str, str], methods: Mapping[str, bool]) -> dict[str, Any]:
    """All differences other − one, in words how they were taken, and what to know of them."""
    sides = Sides(*studies)
    unlike = _unlike(sides)
    held = {name: {key: _difference(sides, labels, name, key, unlike) for key in COMPARED if _measured(sides, key)} for name in methods}
    for key in COMPARED:  # Holm's family: the methods, in this pair and metric
        tested = [one[key] for name, one in held.items() if not methods[name] and key in one and one[key]["p"] is not None]
        for difference, adjusted in zip(tested, holm([one["p"] for one in tested]), strict=True):
            difference["holm_p"] = adjusted
    return {"one": labels[0], "other": labels[1], "notes": _notes(sides, labels, unlike), "differences": held}


def _measured(sides: Sides, key: str) -> bool:
    return any(key in row["results"] for study in sides for row in study.rows.values())


def _difference(sides: Sides, labels: Sequence[str], method: str, key: str, unlike: str) -> dict[str, Any]:
    """One difference: value, interval, p, how it was taken; ``missing``: why a number is not there."""
    nothing: dict[str, Any] = {"value": None, "lo": None, "hi": None, "p": None, "holm_p": None, "how": "", "missing": ""}
    results = [study.result(method, key) for study in sides]
    for study, label, held in zip(sides, labels, results, strict=True):
        if not _is_finite(held.get("value")):
            reason = (held.get("missing") or ("not measured" if held.get("value") is None else "not finite")) if method in study.rows else study.why_not(method)
            return nothing | {"missing": f"{label}: {reason}"}
    if unlike:
        return nothing | {"missing": f"not comparable: {unlike}"}
    found = nothing | {"value": results[1]["value"] - results[0]["value"]}
    if key == "trace" and method == "original":
        return found | {"missing": "no interval: an original's trace is 1 by definition"}
    try:
        parts, paired = _trace_parts(sides, method) if key == "trace" else _mean_parts(sides, method, results)
    except InputError as error:
        return found | {"missing": f"no interval: {error}"}
    if any(len(part) < 2 for part in parts):
        return found | {"missing": "no interval: one model a side"}
    found["how"] = PAIRED if paired else WELCH
    if (ends := estimate(found["value"], parts, paired)) is None:
        return found | {"missing": "no interval: all models differ by the same"}
    return found | dict(zip(("lo", "hi", "p"), ends, strict=True))


def estimate(value: float, parts: Sequence[Tensor], paired: bool) -> tuple[float, float, float] | None:
    """95 % interval and two-sided p of a sum of means of independent sets of models; None where models do not vary and the sum is not 0.

    se² = Σ var(part)/number; Student's t with N − 1 df for N pairs, else Satterthwaite's.
    """
    shares = [float(part.var()) / len(part) for part in parts]
    se = math.sqrt(sum(shares))
    if se == 0:
        return (0.0, 0.0, 1.0) if value == 0 else None
    df = len(parts[0]) - 1 if paired else se**4 / sum(share**2 / (len(part) - 1) for share, part in zip(shares, parts, strict=True))
    ci = t_of(value, se, df)
    return ci.lo, ci.hi, p_of(value, se, df)


def _is_finite(value: Any) -> bool:
    """Is there a number? Stored audits may hold infinity and NaN, which a page of JSON does not."""
    return value is not None and math.isfinite(value)


def _mean_parts(sides: Sides, method: str, results: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], bool]:
    """Of a mean over models: what each model adds to the difference."""
    if any(held.get("per_model") is None or not all(map(_is_finite, held["per_model"])) for held in results):
        raise InputError(f"'{results[0]['key']}' has no value for each model")
    one, other = (torch.tensor(held["per_model"], dtype=torch.float64) for held in results)
    paired = _same_seeds(sides, "original", f"unlearned/{method}") and len(one) == len(other)
    return ([other - one] if paired else [one, other]), paired


def _trace_parts(sides: Sides, method: str) -> tuple[list[Tensor], bool]:
    own = _same_seeds(sides, "original", f"unlearned/{method}")
    return pulls(sides.one.left(method), sides.other.left(method), own, _same_seeds(sides, "oracle")), own


def pulls(one: Left, other: Left, own: bool, oracles: bool) -> list[Tensor]:
    """How far each unlearned model with its original, and each oracle, pulls other − one of two traces.

    ``own``, ``oracles``: do those of both studies start from the same seeds? Then the pulls of model i are subtracted, and what both have in
    common falls out, as it does between groups (metrics.groups.band_differences); shared oracles need no more than that.
    """
    paired = (own, oracles)
    return [part for both, a, b in zip(paired, one.pulls, other.pulls, strict=True) for part in ([b - a] if both else [a, b])]


def _same_seeds(sides: Sides, *roles: str) -> bool:
    return all(sides.one.seeds(role) == sides.other.seeds(role) for role in roles)


# ---- what to know of a pair


def _unlike(sides: Sides) -> str:
    """Why no number of one study can be compared with one of the other; nothing where they can."""
    data = [study.document["study"]["dataset"] for study in sides]
    classes = [study.document["data"]["classes"] for study in sides]
    if data[0] != data[1]:
        return f"different data sets, {plain(data[0])} and {plain(data[1])}"
    return "" if classes[0] == classes[1] else f"{classes[0]} classes and {classes[1]}"


def _notes(sides: Sides, labels: Sequence[str], unlike: str) -> list[str]:
    """In sentences: pairing, what models and images both have, and what follows."""
    if unlike:
        return [f"not comparable: {unlike}"]
    one, other = sides
    counts = [len(study.seeds("unlearned/original")) for study in sides]
    if _same_seeds(sides, "original", "unlearned/original"):
        trained = all(study.document["study"]["original"]["name"] == "trained" for study in sides)
        why = "which start from the same seed" if trained else "by number; originals come from files, so that little may fall out"
        found = [f"paired: model i of one study with model i of the other, {why} ({counts[0]} models)"]
    else:
        found = [f"not paired (Welch): the studies have other seeds or numbers of models ({counts[0]} in {labels[0]}, {counts[1]} in {labels[1]})"]
        if set(one.seeds("original")) & set(other.seeds("original")):
            found.append("some models of both start from the same seeds, which is not used: intervals may be wider than need be")
    found += [f"{what}: {_shared(one.keys(role), other.keys(role))}" for role, what in (("original", "originals"), ("oracle", "oracles"))]
    if set(one.keys("oracle")) & set(other.keys("oracle")):
        found.append("both traces rest on the same oracles and share their noise; the interval counts what does not fall out")
    elif _same_seeds(sides, "oracle"):
        found.append("each trace rests on oracles of its own, paired by their seeds")
    else:
        found.append("each trace rests on oracles of its own; the noise of both is in the interval")
    asked = [study.store.manifest(*study.index["forget"].split("/"))["ids"] for study in sides]
    if asked[0] != asked[1]:
        found.append("different forget sets: trace, ToW, forget and retain accuracy are each of other images; intervals speak of models, not of drawing images")
    if one.index["data"] != other.index["data"]:
        found.append("other images are trained on, held out or tested on, or bear other labels; intervals speak of models, not of drawing images")
    return found


def _shared(one: Sequence[str], other: Sequence[str]) -> str:
    common = set(one) & set(other)
    return "the same models in both studies" if set(one) == set(other) else "some of the models are the same" if common else "different ones in each study"
