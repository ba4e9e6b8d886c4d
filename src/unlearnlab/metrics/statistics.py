"""Intervals, ranks and the two anchors (floor and ceiling) that every metric is read against.

The unit of randomness is the model, never the example: examples share models. scipy is imported where
it is used, since it costs seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.contract import NEEDS, Anchor, Audit, Interval, Metric, Result, not_computed
from unlearnlab.outputs import Outputs
from unlearnlab.seeds import generator

Part = Literal["forget", "retain", "validation", "control", "test"]
Values = Sequence[float] | Float64[Tensor, " models"]
NO_CEILING = "no ceiling: no originals"
SPLITS = 20  # random half splits behind a floor, a ceiling and the interval of their ratio
PAIRS = 10  # pairs from which on a rank correlation has an interval


# ---- intervals over models


def t_of(mean: float, se: float, df: float, level: float = 0.95, method: str = "t over models") -> Interval:
    """mean ± t_{(1+level)/2, df} · se."""
    half = _t(0.5 + level / 2, df) * se
    return Interval(mean - half, mean + half, level, method)


def t_interval(values: Values, level: float = 0.95) -> Interval | None:
    """Student's interval of the mean over models; None for one model, which has no interval."""
    x = _float64(values)
    return None if len(x) < 2 else t_of(float(x.mean()), float(x.std()) / math.sqrt(len(x)), len(x) - 1, level)


def welch_lower(a: Values, b: Values, level: float) -> float:
    """One-sided lower limit of mean(a) − mean(b) at error ``level``; −inf where a side has one model only."""
    difference, se, df = _welch(_float64(a), _float64(b))
    return difference if se == 0 else difference - _t(1 - level, df) * se


def welch_interval(a: Values, b: Values, level: float = 0.95) -> Interval | None:
    """Two-sided interval of mean(a) − mean(b) for unpaired models; None where a side has one model only."""
    difference, se, df = _welch(_float64(a), _float64(b))
    return None if math.isinf(se) else t_of(difference, se, df, level, "Welch over models")


def _welch(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    difference = float(a.mean() - b.mean())
    if len(a) < 2 or len(b) < 2:
        return difference, math.inf, 1.0
    va, vb = float(a.var()) / len(a), float(b.var()) / len(b)
    spread = va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)
    return difference, math.sqrt(va + vb), (va + vb) ** 2 / spread if spread > 0 else math.inf


def p_of(mean: float, se: float, df: float) -> float:
    """Two-sided p of the hypothesis that a quantity with this mean and standard error is 0; 1 where both are 0."""
    from scipy.special import stdtr

    return float(2 * stdtr(df, -abs(mean) / se)) if se > 0 else float(mean == 0)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """Exact two-sided interval of a share k/n."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    lo = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    hi = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(lo, hi, level, "Clopper-Pearson")


def clopper_pearson_upper(n: int, level: float) -> Float64[Tensor, " counts"]:
    """One-sided upper limits, of confidence ``level``, of the shares k/n for k = 0 … n at once."""
    from scipy.special import betaincinv

    k = torch.arange(n, dtype=torch.float64)
    return torch.cat([torch.from_numpy(betaincinv((k + 1).numpy(), (n - k).numpy(), level)), torch.ones(1, dtype=torch.float64)])


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    adjusted, running = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, (len(p) - rank) * p[at])
        adjusted[at] = min(1.0, running)
    return adjusted


# ---- ranks


def rank_auc(member_scores: Tensor, non_member_scores: Tensor) -> float | None:
    """Chance that a member scores above a non-member, ties counting half; None where a side is empty."""
    if not member_scores.numel() or not non_member_scores.numel():
        return None
    return float(rank_auc_rows(member_scores[None], non_member_scores[None]))


def rank_auc_rows(members: Float64[Tensor, "models k"], non_members: Float64[Tensor, "models r"]) -> Float64[Tensor, " models"]:
    """``rank_auc`` of every row at once."""
    below = non_members.sort(-1).values
    members = members.contiguous()
    count = torch.searchsorted(below, members) + torch.searchsorted(below, members, right=True)
    return count.double().mean(-1) / (2 * below.shape[-1])


def tpr_at(fpr: float, members: Float64[Tensor, "models k"], non_members: Float64[Tensor, "models r"]) -> Float64[Tensor, " models"]:
    """Largest share of members above a cut that at most a share ``fpr`` of non-members pass, per row; nothing is interpolated."""
    allowed = math.floor(fpr * non_members.shape[1] + 1e-9)
    if allowed >= non_members.shape[1]:
        return torch.ones(len(members), dtype=torch.float64)
    first_refused = non_members.sort(-1, descending=True).values[:, allowed]  # a cut at or below it would call one non-member too many
    return (members > first_refused[:, None]).double().mean(1)


def ks_distance(a: Float64[Tensor, "... k"], b: Float64[Tensor, "... r"]) -> Float64[Tensor, ...]:
    """Largest gap between the two empirical distribution functions, per row."""
    at = torch.cat([a, b], -1)
    below = [torch.searchsorted(x.sort(-1).values, at, right=True) / x.shape[-1] for x in (a.double(), b.double())]
    return (below[0] - below[1]).abs().amax(-1).double()


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ of ``n`` pairs. Where it has no value or no interval, ``missing`` or ``note`` says why; ``dropped``: pairs with a NaN."""

    rho: float | None
    ci: Interval | None
    n: int
    dropped: int = 0
    missing: str = ""
    note: str = ""


def spearman(a: Float64[Tensor, " n"], b: Float64[Tensor, " n"], level: float = 0.95) -> RankCorrelation:
    """Do two numbers of the same examples rise together? Pearson's correlation of their ranks, ties sharing the mean rank.

    Interval: tanh(artanh ρ ± z_{(1+level)/2} · √((1 + ρ²/2)/(n − 3))), Bonett & Wright (2000). Its unit is the example: it says how ρ would vary
    among as many other examples, not among other models.
    """
    held = ~(a.isnan() | b.isnan())
    x, y, n, dropped = _ranks(a[held].double()), _ranks(b[held].double()), int(held.sum()), int((~held).sum())
    if n < 3:
        return RankCorrelation(None, None, n, dropped, f"not computed: {n} pair(s) of numbers, needs 3")
    x, y = x - x.mean(), y - y.mean()
    if not (x.any() and y.any()):
        return RankCorrelation(None, None, n, dropped, f"not computed: {'both are' if not (x.any() or y.any()) else 'one is'} the same for all {n} examples")
    rho = min(1.0, max(-1.0, float((x @ y) / (x.square().sum() * y.square().sum()).sqrt())))
    if n < PAIRS:
        return RankCorrelation(rho, None, n, dropped, note=f"no interval: n = {n}, needs {PAIRS}")
    if 1 - abs(rho) < 1e-12:
        return RankCorrelation(rho, None, n, dropped, note="no interval: the orders agree to the last example")
    half = float(torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64))) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    ends = math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)
    return RankCorrelation(rho, Interval(*ends, level, "Bonett-Wright over examples"), n, dropped)


def _ranks(values: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """1 for the least; equal values share the mean of their ranks."""
    order = values.sort().values
    return (torch.searchsorted(order, values) + torch.searchsorted(order, values, right=True) + 1).double() / 2


# ---- drawing models


def in_order(outputs: Outputs) -> Outputs:
    """Models sorted by seed, so that folds, groups and random halves follow the models, not their positions."""
    order = sorted(range(len(outputs)), key=lambda i: outputs.models[i])
    return outputs if order == list(range(len(outputs))) else outputs.rows(order)


def by_seed(audit: Audit) -> tuple[list[int], list[int], list[int]]:
    """Rows of unlearned models, oracles and originals in the order of their seeds; P_i is the original of U_i where each has its own."""
    u, o, p = (sorted(range(len(side)), key=side.models.__getitem__) for side in (audit.unlearned, audit.oracles, audit.originals))
    # parents may be known without their logits
    return u, o, audit.parents[u].tolist() if p and audit.independent and audit.parents is not None else p


def sides(audit: Audit, part: str) -> tuple[Outputs, Outputs, Outputs]:
    """Unlearned models, oracles and originals on one part, ``by_seed``."""
    u, o, p = (side.of(part).rows(order) for side, order in zip((audit.unlearned, audit.oracles, audit.originals), by_seed(audit), strict=True))
    return u, o, p


def halves(n: int, count: int, seed: int, purpose: str = "halves") -> Int64[Tensor, "count 2 half"]:
    """Random disjoint halves of n models; with odd n a random model sits out."""
    half = n // 2
    return orders(n, count, seed, purpose)[:, : 2 * half].reshape(count, 2, half)


def relabellings(n_u: int, n_o: int, count: int, seed: int) -> Bool[Tensor, "count models"]:
    """Random ways of calling n_u of the n_u + n_o pooled models unlearned."""
    return torch.zeros(count, n_u + n_o, dtype=torch.bool).scatter_(1, orders(n_u + n_o, count, seed, "relabellings")[:, :n_u], True)


def bootstrap_models(n: int, count: int, seed: int, purpose: str = "bootstrap") -> Float64[Tensor, "count models"]:
    """Weights 1/n × (times drawn) of ``count`` bootstrap samples: a resampled mean is ``weights @ values``."""
    drawn = torch.randint(n, (count, n), generator=generator(seed, f"metrics.{purpose}"))
    ones = torch.ones(count, n, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones) / n


def jackknife(compute: Callable[[Tensor, Tensor], Tensor], n_u: int, n_o: int, level: float = 0.95, groups: int = 8) -> tuple[Interval, ...]:
    """Delete-one-group jackknife over unlearned models and oracles together; for statistics a bootstrap's duplicates would spoil.

    ``compute(u_index, o_index) -> [k]`` gives k statistics; one interval comes back for each. Needs 2 models a side.
    """
    groups = min(groups, n_u, n_o)
    u, o = torch.arange(n_u), torch.arange(n_o)
    without = torch.stack([compute(u[u % groups != g], o[o % groups != g]) for g in range(groups)])
    se = ((groups - 1) / groups * (without - without.mean(0)).square().sum(0)).sqrt()
    centre, method = compute(u, o).tolist(), f"jackknife over {groups} groups of models"
    return tuple(t_of(c, s, groups - 1, level, method) for c, s in zip(centre, se.tolist(), strict=True))


# ---- floor, ceiling and the rescaled score


@dataclass(frozen=True)
class Calibration:
    """Where a value stands between the oracles (0) and the originals (1)."""

    floor: Anchor | None = None
    ceiling: Anchor | None = None
    rescaled: float | None = None
    rescaled_ci: Interval | None = None
    notes: tuple[str, ...] = ()
    extra: Mapping[str, float] = field(default_factory=dict)

    def result(self, metric: Metric, audit: Audit, value: float, n_examples: int, **more: Any) -> Result:
        """The ``Result`` of a metric that could be computed."""
        notes, extra = self.notes + tuple(more.pop("notes", ())), {**self.extra, **more.pop("extra", {})}
        anchors = {"floor": self.floor, "ceiling": self.ceiling, "rescaled": self.rescaled, "rescaled_ci": self.rescaled_ci}
        sizes = (len(audit.unlearned), len(audit.oracles), len(audit.originals))
        return Result(metric.key, value, metric.better, n_models=sizes, n_examples=n_examples, notes=notes, extra=extra, **{**anchors, **more})


def calibrated(distance: Callable[[Tensor, Tensor], float], u: Tensor, o: Tensor, p: Tensor, seed: int, splits: int = SPLITS) -> Calibration:
    """Floor, ceiling and rescaled score of ``distance(models, oracles)``, all at the same number of models.

    ``u``, ``o``, ``p``: rows of unlearned models, oracles and originals (whatever ``distance`` reads, one row a model,
    in the order of their seeds). With N oracles the floor is half against half, so score and ceiling are taken at N/2 too.
    Half samples vary among themselves as whole samples vary among studies: their sd is the standard error.
    """
    half = min(len(u), len(o) // 2)
    if half < 2:
        return Calibration(notes=(f"no floor: {len(o)} oracles and {len(u)} unlearned models cannot be halved",))
    size = f"at N/2 = {half} models a side" if half < len(u) else f"at N = {half} models a side"
    oracle = halves(len(o), splits, seed, "halves.oracles")[:, :, :half]
    # one draw for originals and unlearned models: U_i is made from P_i, and originals audited as U give exactly 1
    picked = orders(len(u), splits, seed, "halves.unlearned")[:, :half]
    floor = _float64([distance(o[b], o[a]) for a, b in oracle])
    score = _float64([distance(u[j], o[a]) for j, (a, _) in zip(picked, oracle, strict=True)])
    low = Anchor(float(floor.mean()), float(floor.std()), splits, f"oracles against oracles {size}")
    extra = {"value_at_floor_n": float(score.mean())}
    if len(p) < half:
        return Calibration(low, notes=(f"no ceiling: {len(p)} originals, needs {half}" if len(p) else NO_CEILING,), extra=extra)
    if len(p) != len(u):
        picked = orders(len(p), splits, seed, "halves.unlearned")[:, :half]
    ceiling = _float64([distance(p[j], o[a]) for j, (a, _) in zip(picked, oracle, strict=True)])
    high = Anchor(float(ceiling.mean()), float(ceiling.std()), splits, f"originals against oracles {size}")
    notes = (f"floor, ceiling and ratio {size}",)
    gap, se = high.mean - low.mean, float((ceiling - floor).std())  # of the difference: both share a half of the oracles
    if not abs(gap) > 2 * se:
        return Calibration(low, high, notes=(*notes, "not resolvable: floor and ceiling lie within 2 standard errors"), extra=extra)
    ratio = (extra["value_at_floor_n"] - low.mean) / gap
    residual = float(((score - floor) - ratio * (ceiling - floor)).std()) / abs(gap)
    interval = t_of(ratio, residual * math.sqrt(1 + 1 / splits), splits - 1, method="half samples of models") if half < len(u) else None
    return Calibration(low, high, ratio, interval, notes, extra)


def beside(u: Values, o: Values, p: Values, parents: Int64[Tensor, " unlearned"] | None = None) -> Calibration:
    """Floor and ceiling of a quantity each model has by itself: the oracles' and the originals' means.

    A mean does not drift with N, so nothing is halved. The interval is the delta method's, with U_i paired to its own
    original where ``parents`` names one for each.
    """
    u, o, p = _float64(u), _float64(o), _float64(p)
    low, high = _mean_of(o, "oracles"), _mean_of(p, "originals")
    if low is None or high is None or len(o) < 2 or len(p) < 2:
        return Calibration(low, high, notes=("no ratio: it needs 2 oracles and 2 originals",))
    gap, se_o, se_p = high.mean - low.mean, float(o.std()) / math.sqrt(len(o)), float(p.std()) / math.sqrt(len(p))
    if not abs(gap) > 2 * math.hypot(se_o, se_p):
        return Calibration(low, high, notes=("not resolvable: floor and ceiling lie within 2 standard errors",))
    ratio = (float(u.mean()) - low.mean) / gap
    if len(u) < 3:
        return Calibration(low, high, ratio)
    paired = parents is not None and len(set(parents.tolist())) == len(u)
    own = (u - ratio * p[parents]).var() / len(u) if paired and parents is not None else u.var() / len(u) + (ratio * se_p) ** 2
    se = math.sqrt(float(own) + ((1 - ratio) * se_o) ** 2) / abs(gap)
    return Calibration(low, high, ratio, t_of(ratio, se, len(u) - 1, method="delta method over models"))


def beside_others(
    values: Callable[[Tensor], tuple[Tensor, Tensor, Tensor] | None], others: int, parents: Int64[Tensor, " unlearned"] | None = None, groups: int = 8
) -> tuple[Tensor, Calibration, Interval | None]:
    """Scores of the unlearned models, ``beside``, and the interval of their mean, where references or untrained nets help to read them off.

    ``values(rows)``: the scores of unlearned models, oracles and originals by these of the ``others`` models; None where they are too few.
    All scores share the others, so that their part of the variance is the same however many models are scored (simulated at N = 128,
    Student's interval over models covered .44 to .84). It is found by a delete-one-group jackknife and added to that over models, with
    Satterthwaite's degrees of freedom.
    """
    rows = torch.arange(others)
    full = values(rows)
    assert full is not None, "all the others are enough"
    found, ci, df = beside(*full, parents), t_interval(full[0]), len(full[0]) - 1
    groups = min(groups, others)
    parts = [values(rows[rows % groups != g]) for g in range(groups)] if groups >= 4 else [None]
    without = [part for part in parts if part is not None]
    if len(without) < len(parts) or ci is None:
        return full[0], found if ci is None else replace(found, notes=(*found.notes, f"the interval takes the {others} other models as they are")), ci
    u, o, p = torch.stack([torch.stack([side.mean() for side in part]) for part in without]).T
    ratio = found.rescaled_ci and _widened(found.rescaled_ci, df, (u - o) / (p - o))
    return full[0], replace(found, rescaled_ci=ratio), _widened(ci, df, u)


def _widened(ci: Interval, df: float, without: Float64[Tensor, " groups"]) -> Interval:
    """The interval with the variance of a jackknife added; ``without``: the quantity without each group."""
    groups, own = len(without), ((ci.hi - ci.lo) / 2 / _t(0.5 + ci.level / 2, df)) ** 2
    shared = (groups - 1) / groups * float((without - without.mean()).square().sum())
    if not own + shared > 0:
        return ci
    df = (own + shared) ** 2 / (own**2 / df + shared**2 / (groups - 1))
    return t_of((ci.lo + ci.hi) / 2, math.sqrt(own + shared), df, ci.level, f"{ci.method}, jackknife over {groups} groups of the others")


def unfit(metric: Metric, audit: Audit, *parts: str, facts: Sequence[str] = ()) -> Result | None:
    """The ``not computed`` result where models, examples or facts are missing; None where the metric may go on.

    Raises ``InputError`` naming model and example where a logit that the metric reads is not finite.
    """
    n = min(len(audit.unlearned), len(audit.oracles))
    if n < metric.minimum:
        return not_computed(metric.key, metric.better, f"N={n}, needs {metric.minimum}", audit)
    for part in parts:
        sides = [outputs.of(part) for outputs in (audit.unlearned, audit.oracles, audit.originals)]
        if not len(sides[0].labels):
            return not_computed(metric.key, metric.better, f"there are no {part} examples", audit)
        for side in sides:
            side.require_finite()
    for name in sorted(getattr(metric, "needs", ())):
        held = getattr(audit, name)
        if held is None or held == {}:
            return not_computed(metric.key, metric.better, NEEDS[name], audit)
        for part in parts if isinstance(held, Outputs) else ():
            held.of(part).require_finite()
    absent = [name for name in facts if name not in audit.facts]
    return not_computed(metric.key, metric.better, f"'{absent[0]}' was not measured", audit) if absent else None


def percentiles(per_example: Float64[Tensor, " n"]) -> dict[str, float]:
    """Mean, median and 95th percentile over examples, as every per-example metric shows them."""
    return {"mean": float(per_example.mean()), "median": float(per_example.quantile(0.5)), "p95": float(per_example.quantile(0.95))}


def extremes(each: Callable[[Tensor, Tensor], Tensor], u: Tensor, o: Tensor, seed: int, splits: int = 10) -> dict[str, float]:
    """``worst5``, the mean of the largest 5 % of a per-example distance ``each(models, oracles)``, and ``max``; noise has large ones too.

    Hence beside each ``_floor``, oracles against oracles at N/2, and ``_at_floor_n``, the same models at N/2; means over half splits.
    """

    def of(values: Tensor) -> Tensor:
        top = values.sort(descending=True).values[: math.ceil(0.05 * len(values))]
        return torch.stack([top.mean(), top[0]])

    found, half = {"": of(each(u, o))}, min(len(u), len(o) // 2)
    if half >= 2:
        oracle = halves(len(o), splits, seed, "halves.oracles")[:, :, :half]
        picked = orders(len(u), splits, seed, "halves.unlearned")[:, :half]
        found["_floor"] = torch.stack([of(each(o[b], o[a])) for a, b in oracle]).mean(0)
        found["_at_floor_n"] = torch.stack([of(each(u[j], o[a])) for j, (a, _) in zip(picked, oracle, strict=True)]).mean(0)
    return {f"{name}{where}": value for where, pair in found.items() for name, value in zip(("worst5", "max"), pair.tolist(), strict=True)}


def _mean_of(x: Tensor, who: str) -> Anchor | None:
    return Anchor(float(x.mean()), float(x.std()) if len(x) > 1 else None, len(x), f"mean of {len(x)} {who}") if len(x) else None


def orders(n: int, count: int, seed: int, purpose: str) -> Int64[Tensor, "count n"]:
    """Random orders of n models."""
    return torch.rand(count, n, generator=generator(seed, f"metrics.{purpose}"), dtype=torch.float64).argsort(1)


def _float64(values: Values) -> Float64[Tensor, " models"]:
    return torch.as_tensor(values, dtype=torch.float64)


def _t(share: float, df: float) -> float:
    from scipy.special import ndtri, stdtrit

    return float(ndtri(share) if math.isinf(df) else stdtrit(df, share))
