"""KLoM: per example, how far apart are the margins of the unlearned models and of the oracles?"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from unlearnlab.contract import Anchor, Audit, Better, Interval, Result
from unlearnlab.metrics.statistics import NO_CEILING, Calibration, Part, calibrated, extremes, jackknife, percentiles, sides, unfit
from unlearnlab.spec import Setting, spec

Margins = Float64[Tensor, "models examples"]

BINS = 10
MOST_TIED = 0.01  # share of examples with tied margins up to which the exact floor, which assumes none, is used
LEAST_SD = 1e-3  # times the pooled sd
EQUAL_BINS, CLIP, LEAST_SHARE = 20, 100.0, 1e-5  # of the published histogram


def smooth(o: Margins, u: Margins) -> Float64[Tensor, " examples"]:
    """KL(oracles ‖ unlearned) over 10 bins between joint quantiles, ½ added to every count."""
    ordered = _ordered(o, u)
    edges = ordered[:, [math.ceil(len(ordered[0]) * k / BINS) for k in range(1, BINS)]]
    # counts below each edge; equal margins share a bin because an edge is itself a margin
    of_o, of_both = torch.searchsorted(_ordered(o), edges), torch.searchsorted(ordered, edges)
    p, q = (_in_bins(below, len(side)) for below, side in ((of_o, o), (of_both - of_o, u)))
    return (p * (p / q).log()).sum(-1)


def _ordered(*sides: Margins) -> Float64[Tensor, "examples models"]:
    rows = torch.cat([side.T for side in sides], 1)  # a copy, also of one side
    rows.numpy().sort(axis=1)  # several times faster here than torch's stable sort
    return rows


def _in_bins(below: Tensor, n: int) -> Float64[Tensor, "examples bins"]:
    ends = torch.full((len(below), 1), n)
    counts = torch.cat([below, ends], 1) - torch.cat([torch.zeros_like(ends), below], 1)
    return (counts.double() + 0.5) / (n + BINS / 2)


def tied(o: Margins, u: Margins) -> Bool[Tensor, " examples"]:
    """Examples on which two of the pooled models have the same margin."""
    return (_ordered(o, u).diff(dim=1) == 0).any(1)


@cache
def null_mean(n_o: int, n_u: int) -> float:
    """What ``smooth`` is on average when all models come from one distribution without ties: exact.

    Of the b pooled models in a bin, the number that are oracles is hypergeometric.
    """
    total, mean = n_o + n_u, 0.0
    edges = [math.ceil(total * k / BINS) for k in range(BINS + 1)]
    for b in (hi - lo for lo, hi in pairwise(edges)):
        for a in range(max(0, b - n_u), min(b, n_o) + 1):
            chance = math.comb(b, a) * math.comb(total - b, n_o - a) / math.comb(total, n_o)
            p, q = (a + 0.5) / (n_o + BINS / 2), (b - a + 0.5) / (n_u + BINS / 2)
            mean += chance * p * math.log(p / q)
    return mean


def least_variance(o: Margins, u: Margins) -> Float64[Tensor, ""]:
    """What a variance below it is raised to."""
    return (LEAST_SD**2 * (o.var(0).mean() + u.var(0).mean()) / 2).clamp_min(1e-24)


def gauss(o: Margins, u: Margins) -> Float64[Tensor, "directions examples"]:
    """KL(oracles ‖ unlearned) and KL(unlearned ‖ oracles) of the Gaussians with their means and variances (ddof 1)."""
    (mo, vo), (mu, vu) = ((side.mean(0), side.var(0)) for side in (o, u))
    least = least_variance(o, u)
    vo, vu = vo.clamp_min(least), vu.clamp_min(least)
    gap = (mo - mu).square()
    return torch.stack([((vu / vo).log() + (vo + gap) / vu - 1) / 2, ((vo / vu).log() + (vu + gap) / vo - 1) / 2])


def hist(o: Margins, u: Margins) -> Float64[Tensor, " examples"]:
    """KL(oracles ‖ unlearned) over 20 equal bins of the joint range; where p > 0, q is at least 1e-5."""
    o, u = o.clamp(-CLIP, CLIP), u.clamp(-CLIP, CLIP)
    low = torch.minimum(o.amin(0), u.amin(0))
    span = torch.maximum(o.amax(0), u.amax(0)) - low
    width = torch.where(span > 0, span, 1.0) / EQUAL_BINS

    def shares(side: Margins) -> Float64[Tensor, "examples bins"]:
        # the joint maximum belongs into the last bin, not behind it
        bins = ((side - low) / width).long().clamp_max(EQUAL_BINS - 1) + EQUAL_BINS * torch.arange(side.shape[1])
        return torch.bincount(bins.flatten(), minlength=EQUAL_BINS * side.shape[1]).reshape(-1, EQUAL_BINS).double() / len(side)

    p, q = shares(o), shares(u)
    q = torch.where(p > 0, q.clamp_min(LEAST_SHARE), q)
    q /= q.sum(1, keepdim=True)
    return torch.xlogy(p, p / q.where(p > 0, 1.0)).sum(1)


@spec("metric", "klom.smooth", paper="arXiv:2410.23232")
class KlomSmooth:
    """Per image, how differently unlearned models and oracles spread their margins; 0 when rescaled is as close as other oracles.

    Margins of both sides in 10 bins between joint quantiles, counts + ½; Σ p_O log(p_O/p_U), averaged over images (Georgiev et
    al., appendix E.1; metrics §5.3). The floor is the exact mean under one common distribution at this N, so nothing is
    halved; with ties it is measured on halves of the oracles. ``cap``: the value of complete separation. Supporting number:
    blind to a few percent of the trace, flat above 60 %. Reads margins [models, examples].

    Differs from the published code: quantile bins and smoothing instead of 20 equal bins (that is ``klom.hist``).
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 20
    trust: ClassVar[int] = 3
    ideal: ClassVar[str] = "the floor, the exact mean of other oracles at this number of models: .245 with 32 a side, .106 with 80"
    caution: ClassVar[str] = "sees nothing below a twentieth of the trace and is flat above three fifths: it supports other numbers, it does not decide"
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"klom.smooth.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, self.part)
        if missing:
            return missing
        u, o, p = (side.margin for side in sides(audit, self.part))
        each = smooth(o, u)
        share = max(float(tied(o, side).double().mean()) for side in (u, p))
        if share > MOST_TIED:
            (ci,) = jackknife(lambda i, j: smooth(o[j], u[i]).mean()[None], len(u), len(o))
            found = calibrated(lambda x, y: float(smooth(y, x).mean()), u, o, p, audit.seed)
            found = replace(found, notes=(*found.notes, f"{share:.0%} of the examples have tied margins: the exact floor does not hold"))
        else:
            ci, found = _exactly(u, o, p)
        extra = {**percentiles(each), "cap": _cap(len(o), len(u)), **extremes(lambda x, y: smooth(y, x), u, o, audit.seed)}
        return found.result(self, audit, float(each.mean()), len(each), ci=ci, per_example=tuple(each.tolist()), extra=extra)


def _exactly(u: Margins, o: Margins, p: Margins) -> tuple[Interval, Calibration]:
    """The value's interval, and where it stands between the exact floor and the originals."""

    def standing(i: Tensor, j: Tensor) -> Tensor:
        value, top, floor = smooth(o[j], u[i]).mean(), smooth(o[j], p[i] if len(p) == len(u) else p).mean(), null_mean(len(j), len(i))
        return torch.stack([value, top, (value - floor) / (top - floor)])

    floor = null_mean(len(o), len(u))
    low = Anchor(floor, None, 1, "exact mean under one distribution")
    if len(p) != len(u):
        (ci,) = jackknife(lambda i, j: smooth(o[j], u[i]).mean()[None], len(u), len(o))
        return ci, Calibration(low, notes=(f"no ceiling: {len(p)} originals, {len(u)} unlearned models" if len(p) else NO_CEILING,))
    ci, top, ratio = jackknife(standing, len(u), len(o))
    mean = float(smooth(o, p).mean())
    high = Anchor(mean, None, 1, "originals against oracles")
    if not (top.lo > floor or top.hi < floor):
        return ci, Calibration(low, high, notes=("not resolvable: the ceiling's interval covers the floor",))
    value = float(smooth(o, u).mean())
    return ci, Calibration(low, high, (value - floor) / (mean - floor), ratio)


@cache
def _cap(n_o: int, n_u: int) -> float:
    """The value of an example whose unlearned margins all lie on one side of the oracles'."""
    apart = smooth(torch.arange(n_o).double()[:, None], torch.arange(n_o, n_o + n_u).double()[:, None])
    return float(apart)


@spec("metric", "klom.gauss", paper="arXiv:2410.23232")
class KlomGauss:
    """Per image, the divergence between two bell curves, one through the oracles' margins, one through the unlearned models'.

    log(s_U/s_O) + (s_O² + (m_O − m_U)²)/(2 s_U²) − ½ per image, averaged over images; ddof 1, variances floored (metrics §5.3).
    It explodes where U is narrow, so ``median`` and the symmetrised form (the mean of both directions: ``symmetric``,
    ``symmetric_median``) stand beside it. Its null is about 2/N. Reads margins [models, examples].

    Differs from the published code: Gaussians instead of a histogram (that is ``klom.hist``); KL(oracle ‖ unlearned) as saved there.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 20
    trust: ClassVar[int] = 3
    ideal: ClassVar[str] = "the floor, about 2 divided by the number of models a side"
    caution: ClassVar[str] = (
        "assumes bell curves, and explodes where unlearned margins are narrow: a few images then make the mean; read its median and the symmetrised form"
    )
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"klom.gauss.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, self.part)
        if missing:
            return missing
        u, o, p = (side.margin for side in sides(audit, self.part))
        both = gauss(o, u)
        each, symmetric = both[0], both.mean(0)
        (ci,) = jackknife(lambda i, j: gauss(o[j], u[i])[0].mean()[None], len(u), len(o))
        found = calibrated(lambda x, y: float(gauss(y, x)[0].mean()), u, o, p, audit.seed)
        extra = {**percentiles(each), **extremes(lambda x, y: gauss(y, x)[0], u, o, audit.seed)}
        extra |= {"symmetric": float(symmetric.mean()), "symmetric_median": float(symmetric.quantile(0.5))}
        still = int((torch.minimum(o.var(0), u.var(0)) < least_variance(o, u)).sum())
        notes = (f"one side hardly varies on {still} of {len(each)} images: its variance is raised to a floor, which sets the value there",) if still else ()
        return found.result(self, audit, float(each.mean()), len(each), ci=ci, per_example=tuple(each.tolist()), notes=notes, extra=extra)


@spec("metric", "klom.hist", paper="arXiv:2410.23232")
class KlomHist:
    """Per image, how differently unlearned models and oracles spread their margins, as published: a histogram that needs 100 models a side.

    Margins clipped to ±100, 20 equal bins over the joint range of both sides (width 1/20 where all are equal); where p_O > 0, p_U is raised to
    1e-5 and renormalised; Σ p_O log(p_O/p_U), between 0 and 11.51, averaged over images (Georgiev et al., appendix E.1; metrics §5.3).
    Below N = 100 it measures its own floor (.9 at 50, .36 at 100, .15 at 200). Reads margins [models, examples].

    Differs from the published code: the joint maximum falls into the last bin instead of none.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 100
    trust: ClassVar[int] = 3
    ideal: ClassVar[str] = "the floor, never 0: about .36 with 100 models a side, .15 with 200"
    caution: ClassVar[str] = "an empty bin counts as much as a real difference, and one margin far out stretches all bins: prefer klom.smooth"
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"klom.hist.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, self.part)
        if missing:
            return missing
        u, o, p = (side.margin for side in sides(audit, self.part))
        each = hist(o, u)
        (ci,) = jackknife(lambda i, j: hist(o[j], u[i]).mean()[None], len(u), len(o))
        found = calibrated(lambda x, y: float(hist(y, x).mean()), u, o, p, audit.seed)
        extra = {**percentiles(each), **extremes(lambda x, y: hist(y, x), u, o, audit.seed)}
        return found.result(self, audit, float(each.mean()), len(each), ci=ci, per_example=tuple(each.tolist()), extra=extra)
