"""Does forgetting stick out? Where the margins of unlearned models stand among the oracles', image by image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from unlearnlab.contract import Anchor, Audit, Better, Metric, Result, not_computed
from unlearnlab.metrics.klom import MOST_TIED, tied
from unlearnlab.metrics.statistics import NO_CEILING, Calibration, jackknife, sides, unfit
from unlearnlab.spec import Setting, spec

Margins = Float64[Tensor, "models examples"]
Places = Int64[Tensor, "models examples"]
ALPHA = 0.05
Alpha = Annotated[float, Setting("share of the oracles that stands for abnormally low, or high", symbol="α", gt=0, le=0.25)]


def places(u: Margins, o: Margins) -> Places:
    """Twice the place of each margin among the N oracles' on the same image, 2(1 + below) + equal: from 2 to 2(N + 1), so that half ties stay whole."""
    ordered, at = o.T.contiguous().sort(1).values, u.T.contiguous()
    return (2 + torch.searchsorted(ordered, at) + torch.searchsorted(ordered, at, right=True)).T


def places_left_out(o: Margins) -> Places:
    """``places`` of every oracle among the N − 1 others."""
    return places(o, o) - 1  # it equals itself


def tail(alpha: float, oracles: int) -> int:
    """k = max(1, floor(α(N + 1))): how many of the N + 1 places are abnormal at one end."""
    return max(1, math.floor(alpha * (oracles + 1) + 1e-9))


def over(at: Places, oracles: int, alpha: float) -> Float64[Tensor, "models examples"]:
    """1 where a margin is abnormally low."""
    return (at <= 2 * tail(alpha, oracles)).double()


def under(at: Places, oracles: int, alpha: float) -> Float64[Tensor, "models examples"]:
    """1 where a margin is abnormally high."""
    return (at > 2 * (oracles + 1 - tail(alpha, oracles))).double()


def uniform_distance(at: Places, oracles: int) -> Float64[Tensor, " models"]:
    """Kolmogorov-Smirnov distance of each model's places, over the examples, from all N + 1 places being equally likely."""
    counts = torch.zeros(len(at), 2 * oracles + 3, dtype=torch.float64).scatter_add_(1, at, torch.ones(at.shape, dtype=torch.float64))
    seen = counts.cumsum(1) / at.shape[1]
    uniform = torch.arange(2 * oracles + 3).div(2, rounding_mode="floor").double() / (oracles + 1)
    return (seen - uniform).abs().amax(1)


def _standing(
    metric: Metric,
    audit: Audit,
    alone: Callable[[Places, int], Tensor],
    exact: Callable[[int], float] | None,
    ratio: bool = True,
) -> Result:
    """The mean over models of ``alone(places, N)`` [models], between what oracles and what originals score.

    ``exact(N)``: what an oracle scores on average among N others, if that is known; else it is measured by leaving out each oracle in turn.
    Unlearned models share the oracles, so groups of both leave the jackknife together.
    """
    u, o, p = (side.margin for side in sides(audit, "forget"))
    paired = len(p) == len(u)

    def floors(o: Margins) -> Tensor:
        return alone(places_left_out(o), len(o) - 1)

    def floor_of(o: Margins) -> float:
        return exact(len(o)) if exact else float(floors(o).mean())

    def standing(i: Tensor, j: Tensor) -> Tensor:
        some = o[j]
        value, low = alone(places(u[i], some), len(some)).mean(), floor_of(some)
        top = alone(places(p[i] if paired else p, some), len(some)).mean() if len(p) else torch.tensor(torch.nan, dtype=torch.float64)
        # k/(N + 1) jumps with N: it is taken at the whole N before groups are compared
        jump = exact(len(o)) - low if exact else 0.0
        return torch.stack([value + jump, top + jump, (value - low) / (top - low)])

    each, spread, low = alone(places(u, o), len(o)), float(floors(o).std()), floor_of(o)
    how = "exact mean" if exact else f"mean of {len(o)} oracles"
    floor = Anchor(low, spread, 1 if exact else len(o), f"{how}; sd over single oracles, each among the {len(o) - 1} others")
    ci, top, score = jackknife(standing, len(u), len(o))
    found = Calibration(floor, notes=(NO_CEILING,))
    if len(p):
        of_p = alone(places(p, o), len(o))
        ceiling = Anchor(float(of_p.mean()), float(of_p.std()) if len(p) > 1 else None, len(p), f"mean of {len(p)} originals")
        tie = max(float(tied(o, side).double().mean()) for side in (u, p))
        if not ratio:
            found = Calibration(floor, ceiling, notes=(f"no ratio: no original can fall short of the floor by more than {low:.3f}",))
        elif tie > MOST_TIED:
            found = Calibration(floor, ceiling, notes=(f"no ratio: {tie:.0%} of the examples have tied margins, which are nowhere near the ends",))
        elif not (top.lo > low or top.hi < low) or not math.isfinite(score.lo):
            found = Calibration(floor, ceiling, notes=("not resolvable: the ceiling's interval covers the floor",))
        else:
            found = Calibration(floor, ceiling, (float(each.mean()) - low) / (ceiling.mean - low), score)
    rank = torch.tensor(audit.unlearned.models).argsort(stable=True).argsort()
    return found.result(metric, audit, float(each.mean()), u.shape[1], perfect=low if exact else None, ci=ci, per_model=tuple(each[rank].tolist()))


def _share(metric: Metric, audit: Audit, alpha: float, marked: Callable[[Places, int, float], Tensor], ratio: bool) -> Result:
    """The share of (model, image) pairs that ``marked`` calls abnormal."""
    missing = unfit(metric, audit, "forget")
    if missing:
        return missing
    needed = math.ceil(1 / alpha - 1e-9) - 1
    if len(audit.oracles) < needed:
        return not_computed(metric.key, metric.better, f"N={len(audit.oracles)}, needs {needed} for alpha = {alpha:g}", audit)
    found = _standing(metric, audit, lambda at, n: marked(at, n, alpha).mean(1), lambda n: tail(alpha, n) / (n + 1), ratio)
    u, o, _ = sides(audit, "forget")
    each = marked(places(u.margin, o.margin), len(o), alpha).mean(0)
    return replace(found, per_example=tuple(each.tolist()))


def _name(name: str, alpha: float) -> str:
    return name if alpha == ALPHA else f"{name}_alpha{alpha:g}"  # another α is another quantity


@spec("metric", "streisand.over", paper="arXiv:1911.04933")
class StreisandOver:
    """Share of the forget images on which an unlearned model is abnormally unsure, more so than all but a few oracles: forgetting that sticks out.

    PIT place of each U among N oracles, u = (1 + #{m_O < m_U} + half the ties)/(N + 1); the share of images with u ≤ k/(N + 1),
    k = max(1, floor(α(N + 1))), averaged over U (after Golatkar et al.; metrics §5.4). An oracle scores k/(N + 1) on average whatever the
    margins look like: an exact floor. The images of a model go together, so judge by the interval over models. Reads margins [models, examples].
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 19
    trust: ClassVar[int] = 4
    ideal: ClassVar[str] = "alpha, up to the rounding of N: of any image, one oracle in twenty stands among the lowest twentieth too"
    caution: ClassVar[str] = (
        "sees margins at the ends only: a method may shift all of them by half a spread and score little; and too low is not forgotten but noticed"
    )
    alpha: Alpha = ALPHA

    @property
    def key(self) -> str:
        return _name("streisand.over", self.alpha)

    def __call__(self, audit: Audit) -> Result:
        # originals are surer than oracles and fall short of the floor, by so little that dividing by it would only blow up noise
        return _share(self, audit, self.alpha, over, ratio=False)


@spec("metric", "streisand.under", paper="arXiv:1911.04933")
class StreisandUnder:
    """Share of the forget images on which an unlearned model is still abnormally sure, more so than all but a few oracles.

    As `streisand.over`, at the other end: the share of images with u > 1 − k/(N + 1) (metrics §5.4). Reads margins [models, examples].
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 19
    trust: ClassVar[int] = 4
    ideal: ClassVar[str] = "alpha, up to the rounding of N: of any image, one oracle in twenty stands among the highest twentieth too"
    caution: ClassVar[str] = "with few oracles the highest of them is easily passed by luck, and a memory that does not lift margins that far stays unseen"
    alpha: Alpha = ALPHA

    @property
    def key(self) -> str:
        return _name("streisand.under", self.alpha)

    def __call__(self, audit: Audit) -> Result:
        return _share(self, audit, self.alpha, under, ratio=True)


@spec("metric", "pit.ks")
class PitKs:
    """How unevenly an unlearned model's forget margins stand among the oracles'; an oracle's are spread evenly over all places.

    Largest gap between the share of images at or below a PIT place and that of the discrete uniform on 1/(N + 1) … 1, per
    unlearned model, then the mean (metrics §5.4). Two oracles differ too, hence a floor above 0: each oracle among the others.
    Reads margins [models, examples].
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 19
    trust: ClassVar[int] = 4
    ideal: ClassVar[str] = "what an oracle scores among the other oracles (the floor), never 0"
    caution: ClassVar[str] = "with fewer images it is higher for everybody: read its distance from the floor; in which direction margins moved it does not say"
    key: ClassVar[str] = "pit.ks"

    def __call__(self, audit: Audit) -> Result:
        return unfit(self, audit, "forget") or _standing(self, audit, uniform_distance, None)
