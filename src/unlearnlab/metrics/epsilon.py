"""How well an attacker who knows both ensembles tells unlearned models from oracles, in units of differential privacy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Result
from unlearnlab.metrics.statistics import Part, bootstrap_models, calibrated, clopper_pearson_upper, extremes, jackknife, orders, percentiles, sides, unfit
from unlearnlab.spec import Setting, spec

Margins = Float64[Tensor, "models examples"]

PRIOR_WEIGHT = 10  # models' worth of the variance pooled over examples that enter each example's own
LEAST_SD = 1e-3  # times the pooled sd
DRAWS = 1000


def bound(fpr: Tensor, fnr: Tensor, delta: float) -> Tensor:
    """max(log((1−δ−FPR)/FNR), log((1−δ−FNR)/FPR)), never below 0: what an attack with these errors proves about ε."""
    left = ((1 - delta - fpr).clamp_min(0) / fnr).log()
    return torch.maximum(left, ((1 - delta - fnr).clamp_min(0) / fpr).log()).clamp_min(0)


def _training_moments(x: Margins, folds: int) -> tuple[Tensor, Tensor]:
    """Mean and shrunk variance (ddof 1) of the models outside each fold: [folds, examples] each, beneath whatever leads."""
    models = x.shape[-2]
    inside = torch.nn.functional.one_hot(torch.arange(models) % folds, folds).double().T
    count = models - inside.sum(1, keepdim=True)
    mean = (x.sum(-2, keepdim=True) - inside @ x) / count
    square = x * x
    variance = ((square.sum(-2, keepdim=True) - inside @ square - count * mean * mean) / (count - 1).clamp_min(1)).clamp_min(0)
    pooled = variance.mean(-1, keepdim=True)
    return mean, (variance * (count - 1) + PRIOR_WEIGHT * pooled) / (count - 1 + PRIOR_WEIGHT)


def called_unlearned(u: Margins, o: Margins, folds: int) -> tuple[Bool[Tensor, "unlearned n"], Bool[Tensor, "oracles n"]]:
    """For every model and example: do Gaussians fitted on the other folds find "unlearned" likelier than "oracle"? Dimensions may lead."""
    folds = min(folds, u.shape[-2], o.shape[-2])
    centre = (u.mean(-2, keepdim=True) + o.mean(-2, keepdim=True)) / 2  # the sums of squares below would cancel without it
    u, o = u - centre, o - centre
    (mu, vu), (mo, vo) = _training_moments(u, folds), _training_moments(o, folds)
    least = (LEAST_SD**2 * torch.maximum(vu.mean(-1, keepdim=True), vo.mean(-1, keepdim=True))).clamp_min(1e-24)
    vu, vo = torch.maximum(vu, least), torch.maximum(vo, least)
    # log N(x; mu, vu) − log N(x; mo, vo) > 0 as a polynomial in x, one per fold and example
    wu, wo = 1 / vu, 1 / vo
    two, one = (wo - wu) / 2, mu * wu - mo * wo
    zero = (mo * mo * wo - mu * mu * wu + (wu / wo).log()) / 2
    own = (torch.arange(x.shape[-2]) % folds for x in (u, o))
    of_u, of_o = (torch.addcmul(zero[..., f, :], torch.addcmul(one[..., f, :], x, two[..., f, :]), x) > 0 for f, x in zip(own, (u, o), strict=True))
    return of_u, of_o


def p_value(u: Margins, o: Margins, folds: int, permutations: int, seed: int) -> float:
    """Share of relabellings of the models, fitted and scored anew, in which as many calls are right: (1 + #)/(1 + B)."""
    both, n_u, hits = torch.cat([u, o]), len(u), 0

    def right(x: Tensor, y: Tensor) -> Tensor:
        of_x, of_y = called_unlearned(x, y, folds)
        return of_x.sum((-2, -1)).double() / of_x[0, :].numel() - of_y.sum((-2, -1)).double() / of_y[0, :].numel()

    seen = float(right(u[None], o[None])) - 1e-12  # equal counts divide alike, but for rounding
    size = max(1, 2**18 // both.numel())
    shuffled = orders(len(both), permutations, seed, "eps.crossfit")
    for some in (shuffled[at : at + size] for at in range(0, permutations, size)):
        hits += int((right(both[some[:, :n_u]], both[some[:, n_u:]]) >= seen).sum())
    return (1 + hits) / (1 + permutations)


def wrong(u: Margins, o: Margins, folds: int) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Per example: oracles called unlearned (FP) and unlearned models called oracles (FN)."""
    of_u, of_o = called_unlearned(u, o, folds)
    return of_o.sum(0), len(u) - of_u.sum(0)


def point(fp: Tensor, fn: Tensor, n_o: int, n_u: int, delta: float) -> Float64[Tensor, " n"]:
    """ε with half a count added to both errors, which caps it at log(2N+1)."""
    return bound((fp.double() + 0.5) / (n_o + 1), (fn.double() + 0.5) / (n_u + 1), delta)


def certified(fp: Tensor, fn: Tensor, n_o: int, n_u: int, delta: float, alpha: float) -> Float64[Tensor, " n"]:
    """Lower confidence bound of ε: both errors at their Clopper-Pearson upper limits."""
    return bound(_upper(n_o, alpha)[fp], _upper(n_u, alpha)[fn], delta)


def curve(u: Margins, o: Margins, folds: int, deltas: Sequence[float], alpha: float = 0.05) -> Float64[Tensor, "kinds deltas"]:
    """The median point (row 0) and the median certified bound (row 1) at each δ; the counts behind them do not depend on δ."""
    fp, fn = wrong(u, o, folds)
    n = len(o), len(u)
    found = [[float(kind.quantile(0.5)) for kind in (point(fp, fn, *n, delta), certified(fp, fn, *n, delta, alpha))] for delta in deltas]
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2).T


@cache
def _upper(n: int, alpha: float) -> Tensor:
    return clopper_pearson_upper(n, 1 - alpha / 2)


@spec("metric", "eps.crossfit", paper="github.com/vstrozzi/assessing-machine-unlearning-approaches")
class EpsilonCrossfit:
    """Per image, how surely an attacker tells unlearned models from oracles; 0 is not at all, and small values need many models.

    Gaussians are fitted to the margins of U and O outside each fold of models; held-out models with likelihood ratio above 1
    are called unlearned. ε = max(log((1−δ−FPR)/FNR), log((1−δ−FNR)/FPR)) with H0 = oracle; the value is the median over
    images (after Kraehenmann et al. 2023; metrics §5.1). ``certified``: share of images whose ε is above 0 at confidence
    1 − α, by Clopper-Pearson limits; a bound of 0 is no evidence, not proof of forgetting. ``p``: relabelling the models, share of
    calls that are right, where every U_i has an original of its own. Reads margins [models, examples].

    Differs from the published code: fitted and scored on different models (theirs has a floor far above 0), log-densities of the logit
    margin, one fixed cut, no infinities, intervals over models.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 16
    trust: ClassVar[int] = 2
    ideal: ClassVar[str] = "0, or very near it (below .06 in the median), whatever the number of models"
    caution: ClassVar[str] = "a lower bound of 0 is no evidence, not proof of forgetting: with 16 models a side it sees shifts of two sd, with 80 of one"
    part: Annotated[Part, Setting("which images")] = "forget"
    folds: Annotated[int, Setting("folds over models; U_i and O_i stay together", symbol="K", ge=2)] = 5
    delta: Annotated[float, Setting("the probability that differential privacy gives away", symbol="δ", ge=0, lt=1)] = 0.0
    alpha: Annotated[float, Setting("error level of the certified bound", symbol="α", gt=0, lt=1)] = 0.05
    permutations: Annotated[int, Setting("random relabellings of the models", symbol="B", ge=1_999)] = 1_999

    @property
    def key(self) -> str:
        return f"eps.crossfit{f'_delta{self.delta:g}' if self.delta else ''}.{self.part}"  # another δ is another quantity

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, self.part)
        if missing:
            return missing
        u, o, p = (side.margin for side in sides(audit, self.part))
        n_u, n_o = len(u), len(o)
        of_u, of_o = called_unlearned(u, o, self.folds)
        fp, fn = of_o.sum(0), n_u - of_u.sum(0)
        each, lower = point(fp, fn, n_o, n_u, self.delta), certified(fp, fn, n_o, n_u, self.delta, self.alpha)
        value, none = float(each.quantile(0.5)), torch.zeros(1, dtype=torch.int64)
        cap, most = float(point(none, none, n_o, n_u, self.delta)), float(certified(none, none, n_o, n_u, self.delta, self.alpha))
        (ci,) = jackknife(lambda i, j: self._median(u[i], o[j])[None], n_u, n_o)
        found = calibrated(lambda x, y: float(self._median(x, y)), u, o, p, audit.seed)
        notes = [f"at most {most:.2f} can be certified at N={min(n_u, n_o)}"]
        if value >= 0.95 * cap:
            notes.append(f"at its cap of {cap:.2f}: do not rank")
        extra = {
            **percentiles(each),
            "certified": float((lower > 0).double().mean()),
            "certified_median": float(lower.quantile(0.5)),
            "most_certifiable": most,
            "cap": cap,
            "median_delta05": float(point(fp, fn, n_o, n_u, 0.05).quantile(0.5)),
            **self._pooled(of_u, of_o, audit.seed),
            **extremes(self._each, u, o, audit.seed),
        }
        p_of = p_value(u, o, self.folds, self.permutations, audit.seed) if audit.independent else None
        return found.result(self, audit, value, len(each), ci=ci, p=p_of, per_example=tuple(each.tolist()), notes=notes, extra=extra)

    def _median(self, u: Margins, o: Margins) -> Tensor:
        return self._each(u, o).quantile(0.5)

    def _each(self, u: Margins, o: Margins) -> Tensor:
        return point(*wrong(u, o, self.folds), len(o), len(u), self.delta)

    def _pooled(self, of_u: Tensor, of_o: Tensor, seed: int) -> dict[str, float]:
        """ε of the counts summed over examples, with a bootstrap over models that keeps the fits (a model stays in its fold)."""
        rates = [of_o.double().mean(1), 1 - of_u.double().mean(1)]
        least = [0.5 / (called.numel() + 1) for called in (of_o, of_u)]
        drawn = [bootstrap_models(len(rate), DRAWS, seed, f"eps.{side}") @ rate for rate, side in zip(rates, ("oracles", "unlearned"), strict=True)]
        pooled = bound(rates[0].mean().clamp_min(least[0]), rates[1].mean().clamp_min(least[1]), self.delta)
        again = bound(drawn[0].clamp_min(least[0]), drawn[1].clamp_min(least[1]), self.delta)
        return {"pooled": float(pooled), "pooled_lo": float(again.quantile(0.025)), "pooled_hi": float(again.quantile(0.975))}
