"""The score of the NeurIPS 2023 unlearning contest: how little many simple attacks learn of each forgotten image, times what is left of accuracy."""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Result, not_computed
from unlearnlab.metrics.accuracy import correct
from unlearnlab.metrics.statistics import Calibration, calibrated, jackknife, percentiles, sides, unfit
from unlearnlab.spec import Setting, spec

Margins = Float64[Tensor, "models examples"]

DELTA = 1e-5
MOST = 50.0  # ε is clipped to [0, MOST]
WIDTH = 0.5  # of a bin of ε
NARROW = 0.01  # one side's range as a share of the other's below which ε is MOST
CUTS = 64  # joint quantiles between which double thresholds lie


def epsilon(u: Margins, o: Margins, intervals: bool = True) -> Float64[Tensor, " examples"]:
    """The most that any threshold, or any interval between two, proves about ε; 0 where nothing does.

    Without ``intervals`` the side with the larger median is the one called unlearned or not (U where equal), as in ``eps.published``:
    this is the variant whose null mean metrics.md gives. An interval that reaches an end is a threshold of either direction.
    """
    of_u, of_o = (side.T.clone(memory_format=torch.contiguous_format) for side in (u, o))  # a copy also of one example: rows are sorted in place
    cuts = torch.cat([of_u, of_o], 1)
    for rows in (of_u, of_o, cuts):
        rows.numpy().sort(axis=1)  # several times faster here than torch's stable sort
    below_u, below_o = (torch.searchsorted(rows, cuts) for rows in (of_u, of_o))
    code = below_o * (len(u) + 1) + below_u  # the difference of two codes is the code of what lies between
    these, others = _tables(len(u), len(o))
    if intervals:
        either = torch.maximum(these, others)
        at = [math.ceil(cuts.shape[1] * k / CUTS) for k in range(CUTS)] if cuts.shape[1] > CUTS else list(range(cuts.shape[1]))
        ends = code[:, at]
        best = either[code].amax(1)
        for k in range(1, len(at)):
            best = torch.maximum(best, either[ends[:, k:] - ends[:, :-k]].amax(1))
    else:
        upwards = of_u.quantile(0.5, dim=1) >= of_o.quantile(0.5, dim=1)
        best = these[torch.where(upwards[:, None], len(these) - 1 - code, code)].amax(1)
    span = torch.stack([rows[:, -1] - rows[:, 0] for rows in (of_u, of_o)])
    best[span.amin(0) < NARROW * span.amax(0)] = MOST
    return best.clamp(0, MOST)


@cache
def _tables(n_u: int, n_o: int) -> tuple[Float64[Tensor, " counts"], Float64[Tensor, " counts"]]:
    """What an attack proves that calls so many oracles and unlearned models unlearned, and what calling all the others unlearned does."""
    fpr, tpr = torch.arange(n_o + 1).double()[:, None] / n_o, torch.arange(n_u + 1).double()[None] / n_u
    return proven(fpr, 1 - tpr).flatten(), proven(1 - fpr, tpr).flatten()


def proven(fpr: Tensor, fnr: Tensor, delta: float = DELTA) -> Tensor:
    """The larger of log((1−δ−FPR)/FNR) and log((1−δ−FNR)/FPR): inf without any error, −inf (no attack) with one kind only."""
    larger = torch.maximum(((1 - delta - fpr).clamp_min(0) / fnr).log(), ((1 - delta - fnr).clamp_min(0) / fpr).log())
    return larger.where((fpr == 0) == (fnr == 0), -torch.inf).where((fpr > 0) | (fnr > 0), torch.inf)


def reward(eps: Float64[Tensor, " examples"], n: int) -> Float64[Tensor, " examples"]:
    """H: 1, ½, ¼ … for ε in [0, .5), [.5, 1) …; 0 from ⌈log(n−1)⌉ on, which no finite ε reaches with n models on each side."""
    return torch.where(eps < math.ceil(math.log(n - 1)), 0.5 ** (eps / WIDTH).floor(), 0.0)


def forgetting(u: Margins, o: Margins, intervals: bool = True) -> float:
    """F: the mean reward over examples."""
    return float(reward(epsilon(u, o, intervals), min(len(u), len(o))).mean())


@spec("metric", "contest.F", paper="arXiv:2406.09073")
class ContestForgetting:
    """How little simple attacks on each forgotten image tell unlearned models from oracles: 1 nothing at all, 0 everything.

    Per image every single threshold on the margin, and every interval between 64 joint quantiles (outside as well as inside), calls models
    unlearned; ε = max over attacks of the larger bound log((1−δ−FPR)/FNR), log((1−δ−FNR)/FPR), δ = 1e-5: infinite without any error,
    an attack with one kind of error only counts for nothing, clipped to [0, 50]. H = 2/2^n for ε in the n-th bin of width ½, 0 beyond
    ⌈log(N−1)⌉; F = mean H (Triantafillou et al. 2024; metrics §5.2). ``regained`` = (F − F_original)/(F_oracle − F_original) = 1 − rescaled.
    Reads margins [models, examples].

    Differs from the published code (constants unverified): all cuts instead of 100 to a unit; where one side's range is under 1 % of the
    other's, ε = 50 here as there. ``intervals=False``, single thresholds alone, has the key ``contest.F_single``.
    """

    better: ClassVar[Better] = "higher"
    minimum: ClassVar[int] = 16
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "the floor, near .1 (.35 with single thresholds alone), never 1: attacks are chosen on the models that they are scored on"
    caution: ClassVar[str] = "ranks methods from 128 models a side on, 512 in the contest; below that most of it is luck, and a raw F compares with no other N"
    intervals: Annotated[bool, Setting("attacks with two thresholds as well")] = True

    @property
    def key(self) -> str:
        return f"contest.F{'' if self.intervals else '_single'}"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, "forget")
        if missing:
            return missing
        u, o, p = (side.margin for side in sides(audit, "forget"))
        eps = epsilon(u, o, self.intervals)
        each = reward(eps, min(len(u), len(o)))
        (ci,) = jackknife(lambda i, j: torch.tensor([forgetting(u[i], o[j], self.intervals)], dtype=torch.float64), len(u), len(o))
        found = calibrated(lambda x, y: forgetting(x, y, self.intervals), u, o, p, audit.seed)
        extra = {**percentiles(each), "separated": float((eps == MOST).double().mean()), **_regained(found)}
        return found.result(self, audit, float(each.mean()), len(each), ci=ci, per_example=tuple(each.tolist()), notes=_rank(audit), extra=extra)


@spec("metric", "contest.score", paper="arXiv:2406.09073")
class ContestScore:
    """The contest's final score: forgetting F times the shares of the oracles' accuracy that are left on retained and on test images.

    score = F · RA_U/RA_O · TA_U/TA_O, means over models; F is ``contest.F`` (Triantafillou et al. 2024; metrics §5.2). The ratios are not
    clipped, as in the contest (unverified): a method may gain by being better than the oracles on retained images. ``clipped`` ends them
    at 1 and has the key ``contest.score_clipped``. Reads margins, and predictions on retain and test.

    Differs from the published code: as ``contest.F``; N as given instead of 512.
    """

    better: ClassVar[Better] = "higher"
    minimum: ClassVar[int] = 16
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "the floor, what another set of oracles scores: their F, as both ratios are near 1"
    caution: ClassVar[str] = "one number for forgetting and accuracy: a poor method with good accuracy can equal a good one that lost some"
    clipped: Annotated[bool, Setting("end both ratios of accuracies at 1")] = False
    intervals: Annotated[bool, Setting("attacks with two thresholds as well")] = True

    @property
    def key(self) -> str:
        return f"contest.score{'_clipped' if self.clipped else ''}{'' if self.intervals else '_single'}"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, "forget", "retain", "test")
        if missing:
            return missing
        margins = [side.margin for side in sides(audit, "forget")]
        right = [torch.stack([correct(side) for side in group]) for group in zip(*(sides(audit, part) for part in ("retain", "test")), strict=True)]
        if not bool((right[1] > 0).all()):
            return not_computed(self.key, self.better, "an oracle is never right on retain or test, so that there is nothing to divide by", audit)
        u, o, p = (torch.cat([margin, kept.T], 1) for margin, kept in zip(margins, right, strict=True))  # one row a model; accuracies in the last two columns
        (ci,) = jackknife(lambda i, j: torch.tensor([self._score(u[i], o[j])], dtype=torch.float64), len(u), len(o))
        found = calibrated(self._score, u, o, p, audit.seed)
        shares = u[:, -2:].mean(0) / o[:, -2:].mean(0)
        extra = {"F": forgetting(margins[0], margins[1], self.intervals), "retain_ratio": float(shares[0]), "test_ratio": float(shares[1]), **_regained(found)}
        return found.result(self, audit, self._score(u, o), margins[0].shape[1], ci=ci, notes=_rank(audit), extra=extra)

    def _score(self, u: Tensor, o: Tensor) -> float:
        shares = u[:, -2:].mean(0) / o[:, -2:].mean(0)
        return forgetting(u[:, :-2], o[:, :-2], self.intervals) * float((shares.clamp_max(1) if self.clipped else shares).prod())


def _regained(found: Calibration) -> dict[str, float]:
    return {} if found.rescaled is None else {"regained": 1 - found.rescaled}


def _rank(audit: Audit) -> tuple[str, ...]:
    n = min(len(audit.unlearned), len(audit.oracles))
    return (f"do not rank: N={n}, needs 128",) if n < 128 else ()
