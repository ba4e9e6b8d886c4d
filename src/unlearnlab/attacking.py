"""An audit from logits alone: what a folder of outputs tells of models that nobody hands out. Gives one plain document, which ``report.attack`` shows."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

import torch
from jaxtyping import Float64
from torch import Tensor

from unlearnlab.auditing import CALIBRATION, JUDGING, TRUST, Logged, described, integrity, judge_family, measure
from unlearnlab.contract import Audit, Metric, Result
from unlearnlab.data.images import PARTS
from unlearnlab.layouts import Ensemble, Folder
from unlearnlab.metrics import epsilon, epsilon_published
from unlearnlab.metrics.accuracy import MEANINGFUL
from unlearnlab.metrics.omnibus import Omnibus, origin
from unlearnlab.metrics.statistics import Part, holm, sides, t_interval
from unlearnlab.outputs import hinge
from unlearnlab.spec import InputError, build, lookup, names, suggest
from unlearnlab.spec import fields as settings_of

BASELINE = "oracles, split in half"
DOUBTFUL = 0.005  # of an accuracy: where table and logits differ by more, it is said
DELTAS = tuple(at / 50 for at in range(26))  # where the curves of epsilon are taken
BINS = 40
CAUTION = "where originals differ in a twentieth of the variance, the test would accuse a perfect method in 9 of 10 audits"


def attack(folder: Folder, *, delta: float = 0.05, metrics: Sequence[str] = (), originals: str | None = None) -> dict[str, Any]:
    """Audit every approach of a folder against its oracles, by what both say of the forget set.

    ``delta``: of both recipes of epsilon. ``metrics``: further ones, by name or key. ``originals``: how many independent originals the unlearned models
    come from, "N" for one each; None: what the folder tells. Without one each there is no p; without the originals' logits no trace and no verdict.
    """
    if not 0 <= delta < 1:
        raise InputError(f"delta = {delta:g} is out of range: expected a probability from 0 to below 1, such as 0.05")
    if not folder.approaches:
        raise InputError(f"{folder.path} holds oracles and no approach to compare them with")
    if BASELINE in [one.name for one in folder.approaches]:
        raise InputError(f"{folder.path} holds an approach called '{BASELINE}', the name of the row to compare with; give it another")
    if not len(folder.oracles.outputs.of("forget").labels):
        raise InputError(f"{folder.path} holds no forget images; without them nothing can be said of forgetting")
    asked = [chosen(word.strip()) for words in metrics for word in words.split(",")]
    _check_count(folder, originals)
    asked_for = [_case(folder, one, originals, delta, asked) for one in folder.approaches]
    cases = [*(_case(folder, one, originals, delta, asked) for one in _undone(folder)), *asked_for]
    rows, power = _judged(cases, folder)
    split = _split(folder, delta, asked)
    shown = [case for case in (*cases, split) if case is not None and (case.identical or not case.broken)]
    accuracies = _accuracies(folder, cases)
    doubts = _doubts(accuracies)
    document = {
        "title": f"Audit of {folder.path.resolve().name}, from logits alone",
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "path": str(folder.path),
        "layout": folder.layout,
        "delta": delta,
        "originals": _lineage(folder, asked_for, originals),
        "models": {"oracles": len(folder.oracles.outputs), "originals": len(cases[0].audit.originals)},
        "data": {part: count for part in PARTS if (count := len(folder.oracles.outputs.of(part).labels))},
        "classes": folder.oracles.outputs.logits.shape[-1],
        "keys": {name: metric.key for name, metric in zip(("published", "crossfit"), _epsilons(delta), strict=True)},
        "rows": rows,
        "baseline": None if split is None else _row(split),
        "accuracies": accuracies,
        "warnings": [*doubts, *(f"{case.name}: {case.broken}" for case in cases if case.broken and not case.identical)],
        "notes": list(folder.notes),
        "power": power,
        "deltas": DELTAS,  # apart from what is held by approach: an approach may be called anything
        "ids": folder.oracles.outputs.of("forget").ids.tolist(),
        "curves": {case.name: _curves(case) for case in shown},
        "per_example": {case.name: _per_example(case, delta) for case in shown},
        "margins": {case.name: _margins(case.audit) for case in cases if not case.broken},
        "metrics": described({metric.key: metric for case in cases for metric in case.metrics}.values()),
        "trust": list(TRUST.items()),
    }
    return cast(dict[str, Any], plain(document))


def chosen(word: str) -> Metric:
    """A metric by its name, or by name and part as in ``klom.smooth.retain``."""
    known = names("metric")
    name, _, part = word.rpartition(".")
    if word not in known and name in known and part in get_args(Part) and any(field.name == "part" for field in settings_of(lookup("metric", name))):
        return cast(Metric, build("metric", {"name": name, "part": part}))
    if word not in known:
        raise InputError(f"unknown metric '{word}'{suggest(word, known)}; see: unlearnlab list metrics")
    return cast(Metric, build("metric", word))


def plain(held: Any) -> Any:
    """As JSON holds it: numbers that are none are written out as ``inf``, ``-inf`` and ``nan``."""
    if isinstance(held, Tensor):
        return plain(held.tolist())
    if isinstance(held, float):
        return held if math.isfinite(held) else str(held)
    if isinstance(held, Mapping):
        return {str(name): plain(value) for name, value in held.items()}
    return [plain(value) for value in held] if isinstance(held, list | tuple) else held


# ---- one approach


def _check_count(folder: Folder, said: str | None) -> None:
    """Refuse more originals than there are models: somebody has miscounted, and p would rest on it."""
    most = max(len(one.outputs) for one in folder.approaches)
    if said is not None and said.isdecimal() and int(said) > most:
        raise InputError(f"--originals {said}, but there are {most} unlearned models at most; say N if each was made from an original of its own, or how many")


def _undone(folder: Folder) -> list[Ensemble]:
    """The originals as a row of their own, as in a study: what doing nothing scores. None where they stand among the approaches already."""
    held = folder.originals
    if held is None or len(held.outputs) < 2 or {"original", "originals"} & {one.name for one in folder.approaches}:
        return []
    return [Ensemble("original", held.outputs, held.accuracies, held.source)]


@dataclass(frozen=True, eq=False)
class Case:
    """Models beside oracles. ``broken``: why nothing is to be believed; ``identical``: these are the oracles themselves, number for number."""

    name: str
    audit: Audit
    metrics: Sequence[Metric]
    results: Mapping[str, Result]
    broken: str = ""
    identical: bool = False


def _case(folder: Folder, one: Ensemble, said: str | None, delta: float, asked: Sequence[Metric]) -> Case:
    none = folder.oracles.outputs.rows([])
    audit = Audit(none if folder.originals is None else folder.originals.outputs, folder.oracles.outputs, one.outputs, _parents(folder, one, said))
    if one.outputs.logits.shape == audit.oracles.logits.shape and torch.equal(one.outputs.logits, audit.oracles.logits):
        again = "its logits are the oracles' own, number for number: there is nothing to compare"
        return Case(one.name, audit, _epsilons(delta)[:1], measure(audit, _epsilons(delta)[:1]), again, True)
    broken = "; ".join(integrity(audit, _called(folder, one.name)))
    metrics = [*_usual(audit, delta), *asked]
    metrics += [build("metric", name) for name in JUDGING if folder.originals is not None or (name == "perm.omnibus" and audit.independent)]
    metrics = list({metric.key: metric for metric in metrics}.values())
    return Case(one.name, audit, metrics, {} if broken else measure(audit, metrics), broken)


def _split(folder: Folder, delta: float, asked: Sequence[Metric]) -> Case | None:
    """The oracles' first half audited against the second, as the paper's baseline: what perfect unlearning scores with half as many models."""
    seen = folder.oracles.outputs
    half = len(seen) // 2
    if half < 2:
        return None
    audit = Audit(seen.rows([]), seen.rows(range(half, len(seen))), seen.rows(range(half)), None)
    if integrity(audit, BASELINE):  # some oracles are there twice: every approach says so
        return None
    metrics = [*_usual(audit, delta), *(metric for metric in asked if not isinstance(metric, Omnibus))]
    return Case(BASELINE, audit, metrics, measure(audit, metrics))


def _called(folder: Folder, name: str) -> str:
    """What the audit knows an approach as: originals that stand among the approaches are a row to calibrate by."""
    if folder.originals is None:
        return ""
    return "original" if name == "originals" and "original" not in [one.name for one in folder.approaches] else name


def _epsilons(delta: float) -> tuple[Metric, Metric]:
    return build("metric", {"name": "eps.published", "delta": delta}), build("metric", {"name": "eps.crossfit", "delta": delta})


def _usual(audit: Audit, delta: float) -> list[Metric]:
    """What every audit shows: both epsilons, KLoM, energy, disagreement, and the accuracy on every part that there are images of."""
    many = min(len(audit.unlearned), len(audit.oracles)) >= 100  # below, the published histogram measures its own floor
    found = [*_epsilons(delta), *(build("metric", f"klom.{name}") for name in ("smooth", "gauss", *(["hist"] if many else [])))]
    seen = [part for part in ("retain", "forget", "test") if bool((audit.unlearned.part == PARTS.index(part)).any())]
    return [*found, build("metric", "energy"), build("metric", "disagree"), *(build("metric", {"name": "acc", "part": part}) for part in seen)]


def _parents(folder: Folder, one: Ensemble, said: str | None) -> Tensor | None:
    """Which original each model was made from, by what the user says; else as the folder tells, which only our own does."""
    n, held = len(one.outputs), 0 if folder.originals is None else len(folder.originals.outputs)
    if said is None or said.lower() == "unknown":
        return torch.arange(n) % held if said is None and folder.layout == "study" and held in (1, n) else None
    if said.upper() != "N" and not (said.isdecimal() and int(said) > 0):
        raise InputError(f"--originals {said} is none of N (one original for each model), unknown, or a number of originals such as 1")
    count = n if said.upper() == "N" else int(said)
    if held and count >= n and held != n:
        raise InputError(f"--originals {said}: '{one.name}' has {n} models and the folder holds {held} originals; expected one each")
    return None if held and 1 < count < n else torch.arange(n) % count  # with logits, who comes from whom would have to be known


def _row(case: Case) -> dict[str, Any]:
    u, o = len(case.audit.unlearned), len(case.audit.oracles)
    results = {key: result.to_json() for key, result in case.results.items()}
    return {
        "method": case.name,
        "models": [u, o],
        "half": min(u, o // 2),
        "calibration": case.name in (*CALIBRATION, BASELINE),
        "identical": case.identical,
        "broken": case.broken,
        "results": results,
        "p": None,
        "holm_p": None,
        "verdict": None,
    }


def _judged(cases: Sequence[Case], folder: Folder) -> tuple[list[dict[str, Any]], str]:
    """The rows with p, Holm's p over all but calibration rows, and, where the originals' logits are there, the verdict; and the power sentence."""
    rows = [_row(case) for case in cases]
    if folder.originals is not None:
        logged = {_called(folder, one.name): _logged(folder, one) for one in folder.approaches}
        report = judge_family({_called(folder, case.name): (case.audit, case.results) for case in cases}, logged=logged)
        judged = dict(zip((case.name for case in cases), report.rows, strict=True))
        return [
            row | {name: getattr(judged[row["method"]], name) for name in ("p", "holm_p")} | {"verdict": asdict(judged[row["method"]].verdict)} for row in rows
        ], (f"Power: {report.power}." if report.power else "")
    raw = [case.results["perm.omnibus"].p if "perm.omnibus" in case.results else None for case in cases]
    family = [at for at, row in enumerate(rows) if not row["calibration"]]
    adjusted = dict(zip(family, holm([1.0 if (p := raw[at]) is None else p for at in family]), strict=True))
    return [row | {"p": p, "holm_p": None if p is None else adjusted.get(at)} for at, (row, p) in enumerate(zip(rows, raw, strict=True))], ""


def _logged(folder: Folder, one: Ensemble) -> Logged:
    """Accuracies that a metrics.csv says of this approach, of the oracles and of the originals: what damage is looked for in, without such images."""
    assert folder.originals is not None
    held = [side.accuracies for side in (one, folder.oracles, folder.originals)]
    return {part: (held[0][part], held[1][part], held[2][part]) for part in ("retain", "test") if all(len(side.get(part, ())) for side in held)}


def _lineage(folder: Folder, cases: Sequence[Case], said: str | None) -> dict[str, Any]:
    """From how many originals the models come, who says so, and what follows."""
    whose = f"--originals {said}" if said is not None else "the folder"
    others = [case for case in cases if not case.audit.independent]
    if len(others) < len(cases):
        words = f"every unlearned model comes from an original of its own, as {whose} says, and p rests on that"
        if others:
            words += f"; but not those of {', '.join(case.name for case in others)}, which have no p and no verdict “forgotten”, since {CAUTION}"
        if folder.originals is None:
            words += "; the originals' logits are not here, so there is no trace and no verdict: a large p alone acquits nobody"
    else:
        parents = cases[0].audit.parents
        given = said is not None and said.isdecimal()  # with the originals' logits here, a number does not tell which model comes from which
        head = f"{origin(parents)} ({whose})" if parents is not None else f"{said} ({whose})" if given else "how many is not known"
        words = f"{head}: no p and no verdict “forgotten”, since {CAUTION}"
        words += "; if each model has an independent original, say --originals N" if parents is None and not given else ""
    return {"said": said or "", "independent": len(others) < len(cases), "words": words}


# ---- accuracies, as they were logged and as the logits have them


def _accuracies(folder: Folder, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """For oracles, originals and every approach: mean and t-interval over models, from the table and from the logits, by part."""
    ensembles = [folder.oracles, *([folder.originals] if folder.originals else []), *folder.approaches]
    named = ["oracles", *(["originals"] if folder.originals else []), *(one.name for one in folder.approaches)]
    none = folder.oracles.outputs.rows([])
    rows = []
    for name, one in zip(named, ensembles, strict=True):
        audit = Audit(none, folder.oracles.outputs, one.outputs, None)
        parts = [part for part in ("retain", "forget", "test") if bool((one.outputs.part == PARTS.index(part)).any())]
        seen = {part: build("metric", {"name": "acc", "part": part})(audit) for part in parts}
        logged = {part: _mean(values) for part, values in one.accuracies.items() if len(values)}
        logits = {part: {"mean": found.value, "ci": found.ci and asdict(found.ci), "n": len(one.outputs)} for part, found in seen.items()}
        rows.append({"method": name, "logged": logged, "logits": logits})
    return rows


def _mean(values: Float64[Tensor, " models"]) -> dict[str, Any]:
    ci = t_interval(values) if len(values) >= MEANINGFUL else None
    return {"mean": float(values.double().mean()), "ci": ci and asdict(ci), "n": len(values)}


def _doubts(accuracies: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every part on which table and logits differ by more than half a point."""
    found = []
    for row in accuracies:
        for part in row["logged"].keys() & row["logits"].keys():
            logged, seen = (row[source][part]["mean"] for source in ("logged", "logits"))
            if abs(logged - seen) > DOUBTFUL:
                differ = f"{part} accuracy is {100 * logged:.1f} % in metrics.csv and {100 * seen:.1f} % by the logits"
                found.append(f"{row['method']}: {differ}: these may be of other models, or of augmented images")
    return found


# ---- what the figures show


def _hinges(audit: Audit) -> tuple[Tensor, Tensor, Tensor]:
    u, o, p = (hinge(side.logits, side.labels) for side in sides(audit, "forget"))
    return u, o, p


def _curves(case: Case) -> dict[str, list[float] | None]:
    """The median epsilon of both recipes at every one of ``DELTAS``; None below the least N of a recipe."""
    u, o, _ = (side.margin for side in sides(case.audit, "forget"))
    crossfit = None
    if min(len(u), len(o)) >= epsilon.EpsilonCrossfit.minimum:
        fp, fn = epsilon.wrong(u, o, epsilon.EpsilonCrossfit().folds)
        crossfit = [float(epsilon.point(fp, fn, len(o), len(u), delta).quantile(0.5)) for delta in DELTAS]
    published = epsilon_published.curve(*_hinges(case.audit)[:2], DELTAS).tolist() if _publishable(case) else None
    return {"published": published, "crossfit": crossfit}


def _publishable(case: Case) -> bool:
    """Are there as many models as the published recipe needs? Its baseline has half as many by definition."""
    n = min(len(case.audit.unlearned), len(case.audit.oracles))
    return (2 * n if case.name == BASELINE else n) >= epsilon_published.EpsilonPublished.minimum


def _per_example(case: Case, delta: float) -> dict[str, Any]:
    """Both epsilons of every image, and the published median, be it a number or not."""
    crossfit = next((held.per_example for key, held in case.results.items() if key.startswith("eps.crossfit")), None)
    if not _publishable(case):
        return {"published": None, "median": None, "infinite": None, "undefined": None, "crossfit": crossfit}
    each = epsilon_published.published(*_hinges(case.audit)[:2], delta)
    counts = {"infinite": int(each.isinf().sum()), "undefined": int(each.isnan().sum())}
    return {"published": each, "median": epsilon_published.median(each), **counts, "crossfit": crossfit}


def _margins(audit: Audit) -> dict[str, Any]:
    """How margins lie, in sd of the oracles' margins of the same image: shares by bin, pooled over images and models; and three images by themselves."""
    u, o, _ = (side.margin for side in sides(audit, "forget"))
    middle, sd = o.mean(0), o.std(0)
    sd = sd.clamp_min(1e-3 * float(sd.median())).clamp_min(1e-12)
    z_u, z_o = (u - middle) / sd, (o - middle) / sd
    some = z_u.flatten()[:: max(1, z_u.numel() // 100_000)]  # torch finds no quantile of very many
    lo, hi = max(min(float(some.quantile(0.005)), -4.0), -30.0), min(max(float(some.quantile(0.995)), 4.0), 30.0)
    edges = torch.linspace(lo, hi, BINS + 1, dtype=torch.float64)
    counts = {name: _shares(z, edges) for name, z in (("unlearned", z_u), ("oracles", z_o))}
    gap = ((u.mean(0) - o.mean(0)) / ((u.var(0) + o.var(0)) / 2).clamp_min(1e-24).sqrt()).abs()
    order, ids = gap.argsort(), audit.unlearned.of("forget").ids
    picked = {"furthest from the oracles": int(order[-1]), "in the middle": int(order[len(order) // 2]), "closest": int(order[0])}
    examples = [{"which": which, "id": int(ids[at]), "unlearned": u[:, at], "oracles": o[:, at]} for which, at in picked.items()]
    return {"edges": edges, **counts, "examples": examples}


def _shares(values: Tensor, edges: Tensor) -> Tensor:
    """Share of the values in every bin; what lies beyond the ends counts in the last bins."""
    counts = torch.histogram(values.clamp(float(edges[0]), float(edges[-1])).flatten(), edges).hist
    return counts / values.numel()
