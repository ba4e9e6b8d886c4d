"""Per forget image, can unlearned models be told from oracles, by a classifier that is scored on models it was not fitted to?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Result
from unlearnlab.metrics.lira import OF_ITS_OWN, Bell, balanced, bells
from unlearnlab.metrics.statistics import Part, calibrated, jackknife, percentiles, sides, unfit
from unlearnlab.spec import Setting, spec

Margins = Float64[Tensor, "models examples"]
Fold = Int64[Tensor, " models"]
Statistic = Callable[[Tensor, Tensor, Fold, Fold], Float64[Tensor, " examples"]]


def dealt(models: int, folds: int) -> Fold:
    """The fold of each model, in the order of the seeds: U_i and O_i share one."""
    return torch.arange(models) % folds


def held_out(u: Margins, o: Margins, fold_u: Fold, fold_o: Fold) -> tuple[Margins, Margins]:
    """log N_U − log N_O of every model on every example, by normal distributions through the models outside its fold."""
    m, fold = torch.cat([u, o]), torch.cat([fold_u, fold_o])
    is_u = torch.arange(len(m)) < len(u)
    outside = fold != torch.arange(int(fold.max()) + 1)[:, None]
    of_u, of_o = (
        Bell(bell.mean[fold], bell.sd[fold])
        for bell in bells(m, (outside & is_u)[..., None], (outside & ~is_u)[..., None], own=min(len(u), len(o)) >= OF_ITS_OWN)
    )
    ratio = of_u.log_density(m) - of_o.log_density(m)
    return ratio[: len(u)], ratio[len(u) :]


def accuracy(of_u: Margins, of_o: Margins, fold_u: Fold, fold_o: Fold) -> Float64[Tensor, " examples"]:
    """Mean of the shares of unlearned models with a ratio above 0 and of oracles below; 0 counts half."""
    return balanced(of_u.T, of_o.T)


def auc(of_u: Margins, of_o: Margins, fold_u: Fold, fold_o: Fold) -> Float64[Tensor, " examples"]:
    """How often an unlearned model has the larger ratio than an oracle of its fold, ties counting half.

    Only within folds: where a fold's models lie high by chance, the fits without them lie low, and pairs across folds would fall below ½.
    """
    wins, pairs = torch.zeros_like(of_u[0]), 0
    for k in set(fold_u.tolist()) & set(fold_o.tolist()):
        x, y = of_u[fold_u == k], of_o[fold_o == k]
        wins += (x[:, None] - y).sign().sum((0, 1))
        pairs += len(x) * len(y)
    return wins / (2 * pairs) + 0.5


def _told(metric: UnlearnedAccuracy | UnlearnedAuc, audit: Audit, statistic: Statistic) -> Result:
    missing = unfit(metric, audit, metric.part)
    if missing:
        return missing
    u, o, p = (side.margin for side in sides(audit, metric.part))

    def per_example(x: Margins, y: Margins, fold_x: Fold, fold_y: Fold) -> Float64[Tensor, " examples"]:
        return statistic(*held_out(x, y, fold_x, fold_y), fold_x, fold_y)

    def afresh(x: Margins, y: Margins) -> Float64[Tensor, " examples"]:
        folds = min(metric.folds, len(x), len(y))
        return per_example(x, y, dealt(len(x), folds), dealt(len(y), folds))

    fold_u, fold_o = (dealt(len(side), min(metric.folds, len(u), len(o))) for side in (u, o))
    each = per_example(u, o, fold_u, fold_o)
    (ci,) = jackknife(lambda i, j: per_example(u[i], o[j], fold_u[i], fold_o[j]).mean()[None], len(u), len(o))  # a model stays in its fold
    found = calibrated(lambda x, y: float(afresh(x, y).mean()), u, o, p, audit.seed)
    # the worst images of a perfect unlearner are not at ½ either, by noise alone: their floor, at its own number of models
    worst = calibrated(lambda x, y: float(afresh(x, y).quantile(0.95)), u, o, p[:0], audit.seed)
    extra = percentiles(each)
    if worst.floor is not None:
        extra |= {"p95_floor": worst.floor.mean, "p95_at_floor_n": worst.extra["value_at_floor_n"]}
    return found.result(metric, audit, float(each.mean()), len(each), perfect=0.5, ci=ci, per_example=tuple(each.tolist()), extra=extra)


@spec("metric", "ulira.accuracy", paper="arXiv:2403.01218")
class UnlearnedAccuracy:
    """Per image, how often a held-out model is rightly called unlearned or oracle; .5 is a coin and means it cannot be told.

    Normal distributions through the margins of unlearned models (A) and of oracles (B) outside each fold of models; a held-out model goes
    to the larger density; (TPR + TNR)/2 per image, averaged over images (Hayes et al.; metrics §4.2). Variances are pooled over images
    below 64 models a side, else shrunk to the pool with weight 10. ``p95``: the 95th percentile over images; the noise of few models lifts
    it above .5: compare ``p95_at_floor_n`` with ``p95_floor``, both at half the number of models.

    Differs from the published code: margins instead of 0/1 correctness; fitted and scored on different models (else identical models
    score .63 at N = 8 and .56 at 32); B are oracles, never unlearned models.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 16
    trust: ClassVar[int] = 4
    ideal: ClassVar[str] = ".5: no image tells an unlearned model from an oracle"
    caution: ClassVar[str] = "one number per image means little below 64 models a side; the mean over images does not say in which direction models differ"
    part: Annotated[Part, Setting("which images")] = "forget"
    folds: Annotated[int, Setting("folds over models; U_i and O_i stay together", symbol="K", ge=2)] = 5

    @property
    def key(self) -> str:
        return f"ulira.accuracy.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        return _told(self, audit, accuracy)


@spec("metric", "ulira.auc", paper="arXiv:2403.01218")
class UnlearnedAuc:
    """Per image, how often the likelihood ratio ranks an unlearned model above an oracle; .5 is a coin and means it cannot be told.

    The held-out ratios of ``ulira.accuracy``, compared between models of one fold, ties counting half; the mean over images (Hayes et
    al.; metrics §4.2). It needs no cut, so that it also sees what leaves both kinds of model on one side of it.

    Differs from the published code: as ``ulira.accuracy``.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 16
    trust: ClassVar[int] = 4
    ideal: ClassVar[str] = ".5: no image tells an unlearned model from an oracle"
    caution: ClassVar[str] = "one number per image means little below 64 models a side; the mean over images does not say in which direction models differ"
    part: Annotated[Part, Setting("which images")] = "forget"
    folds: Annotated[int, Setting("folds over models; U_i and O_i stay together", symbol="K", ge=2)] = 5

    @property
    def key(self) -> str:
        return f"ulira.auc.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        return _told(self, audit, auc)
