"""ε as "Forget with Precision" computed it, to the letter: for comparison with that paper's table, not for a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float64
from torch import Tensor

from unlearnlab.contract import Anchor, Audit, Better, Result, not_computed
from unlearnlab.metrics.statistics import Calibration, Part, calibrated, jackknife, percentiles, sides, unfit
from unlearnlab.outputs import hinge
from unlearnlab.spec import Setting, spec

Hinges = Float64[Tensor, "models examples"]
Array = npt.NDArray[np.float64]

INSIDE = 1e-8  # added inside each logarithm
BLOCK = 256  # examples at a time: what they need stays in the cache


def published(u: Hinges, o: Hinges, delta: float = 0.05) -> Float64[Tensor, " examples"]:
    """The published ε of every example: a number, inf where some cut separates the sides, NaN where no cut is left.

    NaN too where a side is constant: its density is 0/0, and scores that are no numbers have neither a median nor an order.
    """
    return _at(u, o, (delta,))[0]


def curve(u: Hinges, o: Hinges, deltas: Sequence[float]) -> Float64[Tensor, " deltas"]:
    """The median ε at each δ (inf and NaN as ``median`` gives them); what the attack gets right does not depend on δ."""
    return torch.tensor([median(eps) for eps in _at(u, o, deltas)], dtype=torch.float64)


def baseline(o: Hinges, delta: float = 0.05) -> Float64[Tensor, " examples"]:
    """The published baseline: oracles 1 to N/2 audited against the rest. Its floor is that of N/2, while methods stand at N."""
    return published(o[: len(o) // 2], o[len(o) // 2 :], delta)


def median(eps: Float64[Tensor, " examples"]) -> float:
    """Median over examples: NaN left out, infinities counted; NaN where nothing is left."""
    held = eps[~eps.isnan()].sort().values
    if not len(held):
        return math.nan
    low, high = float(held[(len(held) - 1) // 2]), float(held[len(held) // 2])
    return low if low == high else (low + high) / 2  # torch's own quantile makes NaN of two infinities


def largest_finite(n: int, delta: float) -> float:
    """What one error among n models on either side, and none fewer, gives: nothing finite lies above."""
    return math.log(max((1 - delta - 1 / n) * n, INSIDE))


def _at(u: Hinges, o: Hinges, deltas: Sequence[float]) -> Float64[Tensor, "deltas examples"]:
    of_u, of_o = (np.asarray(side.double()) for side in (u, o))
    tables, found = [_table(len(u), len(o), delta) for delta in deltas], np.empty((len(deltas), u.shape[1]))
    for start in range(0, u.shape[1], BLOCK):
        here = slice(start, start + BLOCK)
        where, lost = _cuts(of_u[:, here], of_o[:, here])
        for table, best in zip(tables, found[:, here], strict=True):
            table.take(where, mode="clip").max(1, out=best)  # nothing is clipped: this is the mode that makes no copy
            best[lost | (best == -np.inf)] = np.nan
    return torch.from_numpy(found)


def _cuts(u: Array, o: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For every example and cut, where ``_table`` holds its bound; and which examples have scores that are no numbers."""
    n_u, n_o = len(u), len(o)
    rows = np.empty((u.shape[1], n_u + n_o))
    rows[:, :n_u], rows[:, n_u:] = u.T, o.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        score = _density(rows, slice(n_u))
        score /= _density(rows, slice(n_u, None))
    lost = np.isnan(score.sum(1))
    score[lost] = 0
    of_u, of_o = ((side[:, (n - 1) // 2] + side[:, n // 2]) / 2 for side, n in ((np.sort(score[:, :n_u]), n_u), (np.sort(score[:, n_u:]), n_o)))
    # A score is never negative, so that its bits are ordered as it is and the sign's place is free for the side it is of: one plain sort
    # orders scores and sides together, several times faster than an argsort, and equal scores stay exactly equal.
    bits = score.view(np.uint64)
    bits <<= np.uint64(1)
    bits[:, :n_u] |= np.uint64(1)
    bits.sort(axis=1)
    bits = bits[:, ::-1]
    where = np.cumsum((bits & np.uint64(1)).view(np.int64), axis=1)  # unlearned models at or above the cut; the others there are oracles
    where *= -n_u
    where += np.arange(1, n_u + n_o + 1) * (n_u + 1)
    where[of_u < of_o] += (n_o + 1) * (n_u + 1)
    bits >>= np.uint64(1)
    where[:, :-1] *= bits[:, :-1] != bits[:, 1:]  # models with the same score cannot be cut apart: entry 0, nobody above, is a dropped cut
    return where, lost


def _density(rows: Array, side: slice) -> Array:
    """Gaussian density at each row's mean and sd (ddof 0) over one side, as the recipe has it: no logarithms.

    But for the factor 1/(sd √2π), one number for the whole row, which changes no order. NaN where the side is constant.
    """
    own = rows[:, side]
    mean = own @ np.full(own.shape[1], 1 / own.shape[1])
    z: Array = rows - mean[:, None]
    sd = np.sqrt(np.einsum("ij,ij->i", z[:, side], z[:, side]) / own.shape[1])
    for row in (sd <= 1e-12 * np.abs(mean)).nonzero()[0]:  # the mean of equal numbers need not round to that number
        sd[row] = np.nan if (own[row] == own[row, 0]).all() else sd[row]
    z /= sd[:, None]
    z *= z
    z *= -0.5
    return np.exp(z, out=z)


@cache
def _table(n_u: int, n_o: int, delta: float) -> Array:
    """The larger bound by (which side is positive, oracles at or above the cut, unlearned ones there), flat; −inf: dropped."""
    above_o, above_u = (np.arange(n + 1)[shape] for n, shape in ((n_o, np.s_[:, None]), (n_u, np.s_[None])))
    rates = [(above_o / n_o, (n_u - above_u) / n_u), (above_u / n_u, (n_o - above_o) / n_o)]  # FPR and FNR where U, where O is positive
    bounds = []
    for fpr, fnr in rates:
        with np.errstate(divide="ignore", invalid="ignore"):  # a numerator below 0 has no logarithm: that bound is left out
            larger = np.fmax(np.log((1 - delta - fpr) / fnr + INSIDE), np.log((1 - delta - fnr) / fpr + INSIDE))
        larger[((fpr == 0) != (fnr == 0)) | np.isnan(larger)] = -np.inf
        larger[(fpr == 0) & (fnr == 0)] = np.inf
        bounds.append(larger.ravel())
    return np.concatenate(bounds)


@spec("metric", "eps.published", paper="github.com/vstrozzi/assessing-machine-unlearning-approaches")
class EpsilonPublished:
    """The published epsilon-hat, quirks and all: how well an attacker tells unlearned models from oracles; to compare with the paper's table only.

    Per image: Gaussians (ddof 0) through the hinges z_y − max z_k of N oracles and N unlearned models; score = pdf_U/pdf_O; the side with the larger
    median score is called positive (U where equal); over all distinct cuts max(log((1−δ−FPR)/FNR + 1e-8), log((1−δ−FNR)/FPR + 1e-8)); a cut
    without any error makes the image's ε infinite, one with exactly one kind of error is dropped, no cut left makes it NaN. The value is the
    median over images without the NaN, infinities included, never clipped at 0 (Kraehenmann et al. 2023; metrics §5.1). Identical models
    give NaN, and an infinite median cannot be written down: both are `not computed`, with the counts beside. ``baseline``: oracles 1 to N/2
    against the rest. Reads logits [models, examples, classes].

    Differs from the published code: nothing meant to; a bound whose numerator is below 0 is left out, an image with a constant side is NaN.
    For a number with a floor near 0 see ``eps.crossfit``.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 80
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "the floor, which is far above 0: about .5 with 80 models a side, 1.1 with 20"
    caution: ClassVar[str] = (
        "never a basis for a verdict: the attack is fitted on the models that it is scored on, the floor falls with their number, and what leaks most "
        "is infinite or all alike; compare at equal numbers of models, or read eps.crossfit"
    )
    part: Annotated[Part, Setting("which images")] = "forget"
    delta: Annotated[float, Setting("the probability that differential privacy gives away", symbol="δ", ge=0, lt=1, published="0.05 in the table")] = 0.05

    @property
    def key(self) -> str:
        return f"eps.published{f'_delta{self.delta:g}' if self.delta != 0.05 else ''}.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, self.part)
        if missing:
            return missing
        u, o, p = (hinge(side.logits, side.labels) for side in sides(audit, self.part))
        eps = published(u, o, self.delta)
        value, n = median(eps), len(eps)
        found = _finite(calibrated(lambda x, y: median(published(x, y, self.delta)), u, o, p, audit.seed))
        split, infinite, undefined = median(baseline(o, self.delta)), int(eps.isinf().sum()), int(eps.isnan().sum())
        extra = {"infinite": float(infinite), "undefined": float(undefined), "largest_finite": largest_finite(min(len(u), len(o)), self.delta)}
        extra |= {"baseline": split} if math.isfinite(split) else {}
        notes = ["comparison only: fitted and scored on the same models", _from(audit)]
        if infinite or undefined:
            notes.append(f"no value for each image: {infinite} of {n} are infinite, {undefined} are NaN")
        if not math.isfinite(value):
            why = (
                "the models of both sides are the same on every image"
                if torch.equal(u, o[: len(u)])
                else "on every image no cut is left or one side is constant"
            )
            reason = f"the median is infinite: {infinite} of {n} examples are perfectly separated" if infinite else f"the median is NaN: {why}"
            told = not_computed(self.key, self.better, reason, audit)
            return replace(told, floor=found.floor, n_examples=n, notes=(*found.notes, *notes), extra={**found.extra, **extra})
        (ci,) = jackknife(lambda i, j: torch.tensor([median(published(u[i], o[j], self.delta))], dtype=torch.float64), len(u), len(o))
        whole = not (infinite or undefined)
        if not math.isfinite(ci.lo + ci.hi):
            notes.append("no interval: without some group of models the median is infinite or NaN")
        return found.result(
            self,
            audit,
            value,
            n,
            ci=ci if math.isfinite(ci.lo + ci.hi) else None,
            per_example=tuple(eps.tolist()) if whole else None,
            notes=notes,
            extra={**(percentiles(eps) if whole else {}), **extra},
        )


def _finite(found: Calibration) -> Calibration:
    """Without the anchors that are infinite or NaN, and then without a ratio: a result holds numbers only."""
    standing = found.extra.get("value_at_floor_n", 0.0)

    def held(anchor: Anchor | None) -> Anchor | None:
        return anchor if anchor is not None and math.isfinite(anchor.mean) else None

    lost = [who for who, anchor in (("floor", found.floor), ("ceiling", found.ceiling)) if anchor is not held(anchor)]
    lost += [] if math.isfinite(standing) else ["value at N/2"]
    if not lost:
        return found
    notes = (f"no ratio: the median of some half sample is infinite or NaN ({', '.join(lost)})",)
    return Calibration(held(found.floor), held(found.ceiling), notes=notes, extra={name: x for name, x in found.extra.items() if math.isfinite(x)})


def _from(audit: Audit) -> str:
    if audit.parents is None:
        return "from=unknown: it is not known how many originals the unlearned models were made from"
    count = len(set(audit.parents.tolist()))
    return f"from={count}: the unlearned models were made from {count} original{'s' if count > 1 else ''}"
