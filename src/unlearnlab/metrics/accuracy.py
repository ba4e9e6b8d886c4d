"""Does the model still work, and does it still get the forget set right? Accuracies, losses and gaps to the oracles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from unlearnlab.contract import Anchor, Audit, Better, Interval, Metric, Result, not_computed
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.statistics import Part, beside, calibrated, clopper_pearson, in_order, jackknife, t_interval, unfit, welch_interval
from unlearnlab.metrics.svc_attack import SvcEfficacy
from unlearnlab.outputs import Outputs
from unlearnlab.spec import Setting, spec, within

MEANINGFUL = 3  # models; with fewer the value stands without an interval


def correct(outputs: Outputs) -> Float64[Tensor, " models"]:
    """Share of examples whose largest logit is the label's; ties go to the lowest class."""
    return (outputs.predicted == outputs.labels).double().mean(1)


def of_each_model(metric: Metric, audit: Audit, part: str, quantity: Callable[[Outputs], Tensor]) -> Result:
    """The mean over models of a quantity that each model has by itself."""
    missing = unfit(metric, audit, part)
    if missing:
        return missing
    u, o, p = (quantity(outputs.of(part)) for outputs in (audit.unlearned, audit.oracles, audit.originals))
    n = len(audit.unlearned.of(part).labels)
    few = len(u) < MEANINGFUL
    notes = (f"no interval: N={len(u)}, needs {MEANINGFUL}",) if few else ()
    ci = None if few else t_interval(u)
    return beside(u, o, p, audit.parents).result(metric, audit, float(u.mean()), n, ci=ci, per_model=tuple(u.tolist()), notes=notes)


def with_example_interval(result: Result) -> Result:
    """For a single model, the Clopper-Pearson interval over its examples, under a name that says so."""
    if result.value is None or result.n_models[0] != 1:
        return result
    over = clopper_pearson(round(result.value * result.n_examples), result.n_examples)
    return replace(result, extra={**result.extra, "examples_only_lo": over.lo, "examples_only_hi": over.hi})


@spec("metric", "acc", paper="arXiv:1911.04933")
class Accuracy:
    """Share of images the unlearned models classify as labelled; perfect is the oracles' share, on the forget set too.

    acc = mean[argmax z = y] per model, averaged over models (metrics §2.1). Reads logits [models, examples, classes].
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "the oracles' share, on the forget set too: neither 0 nor 1"
    caution: ClassVar[str] = (
        "counts only which class comes first: models with equal accuracy may differ in every margin, and a low forget accuracy may mean damage"
    )
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"acc.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        return with_example_interval(of_each_model(self, audit, self.part, correct))


@spec("metric", "acc.kept", paper="arXiv:1911.04933")
class KeptAccuracy:
    """Share of the held-out images that are classified as labelled, without the classes that were to be forgotten whole.

    `acc` on the images whose class still has retained images; where no class was forgotten whole it is `acc` itself, and says so. After class
    forgetting, accuracy on all classes falls however well the others are kept: a paper's "test accuracy" may be either (metrics §2.1). Classes go
    by the true labels where those are known. Reads logits [models, examples, classes] and labels.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "the oracles' share"
    caution: ClassVar[str] = "is about usefulness, not forgetting; compare it with no table that counts the forgotten class too (that is acc.test)"
    part: Annotated[Literal["validation", "test"], Setting("which held-out images")] = "test"

    @property
    def key(self) -> str:
        return f"acc.kept.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, "forget", "retain", self.part)
        if missing:
            return missing
        seen = audit.unlearned
        classes = seen.labels if audit.true_labels is None else audit.true_labels
        forget, retain, held = (classes[seen.part == PARTS.index(part)] for part in ("forget", "retain", self.part))
        # a class of which nothing was to be forgotten may still lack retained images, where only some are handed in
        gone = forget[~torch.isin(forget, retain)]
        stays = ~torch.isin(held, gone)
        if not stays.any():
            return not_computed(self.key, self.better, f"all classes of the {self.part} images were forgotten whole", audit)
        found = with_example_interval(of_each_model(self, audit.restrict(~torch.isin(classes, gone)), self.part, correct))
        if not len(gone):
            return replace(found, notes=(*found.notes, f"no class was forgotten whole: the same as acc.{self.part}"))
        left_out = int((~stays).sum())
        return replace(found, dropped=((left_out, "their class was forgotten whole"),)) if left_out else found


@spec("metric", "ua", paper="arXiv:2304.04934")
class UnlearningAccuracy:
    """Share of the forget images the unlearned models get wrong; perfect is the oracles' share, not 1.

    UA = 1 − acc on the forget set (Jia et al.; metrics §2.1). Reads logits [models, examples, classes].
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "the oracles' share, not 1"
    caution: ClassVar[str] = "alone it never says forgotten: a model pushed past the oracles, or plainly broken, scores higher than they do"
    key: ClassVar[str] = "ua"

    def __call__(self, audit: Audit) -> Result:
        return with_example_interval(of_each_model(self, audit, "forget", lambda outputs: 1 - correct(outputs)))


@spec("metric", "loss", paper="arXiv:1911.04933")
class Loss:
    """Mean cross-entropy of the unlearned models; perfect is the oracles' loss.

    loss = mean(−log p_y) in nats, by log-softmax in float64 (metrics §2.1). Reads logits [models, examples, classes].
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "the oracles' loss"
    caution: ClassVar[str] = "a few images with a huge loss make the mean; over-forgetting raises it above the oracles'"
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"loss.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        return of_each_model(self, audit, self.part, lambda outputs: outputs.loss.mean(1))


@spec("metric", "gap", paper="arXiv:2310.12508")
class Gap:
    """Signed distance of another metric from its value on the oracles; 0 only in expectation.

    gap = mean over U − mean over O (metrics §2.2); the interval is Student's on U_i − O_i where both were made with the
    same seeds, else Welch's. Signed gaps average and absolute ones do not, so ``mean_abs`` (per pair of models) and
    ``abs_floor`` (between two single oracles) stand beside. The metric must have one value per model.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "0 on average; one study's gap is as far from it as luck takes two sets of oracles apart"
    caution: ClassVar[str] = "a small gap in an average says nothing about single images, on some of which models may be surer and on others less sure"
    metric: Annotated[Metric, Setting("the metric whose gap to the oracles is taken", kind="metric")] = Accuracy()

    @property
    def key(self) -> str:
        return f"gap.{self.metric.key}"

    def __call__(self, audit: Audit) -> Result:
        seen, wanted, undone = self.metric(audit), *(_alone(self.metric, audit, side) for side in (audit.oracles, audit.originals))
        if seen.per_model is None or wanted.per_model is None:
            return not_computed(self.key, self.better, _why(wanted if wanted.missing else seen), audit)
        # pairs go by the models' seeds, so that shuffling the models changes nothing
        u, o = (torch.tensor(side.per_model, dtype=torch.float64)[_by_seed(of)] for side, of in ((seen, audit.unlearned), (wanted, audit.oracles)))
        pairs = min(len(u), len(o))
        few = pairs < MEANINGFUL
        ci = None if few else _gap_interval(u, o, sorted(audit.unlearned.models) == sorted(audit.oracles.models))
        notes = (*seen.notes, f"no interval: N={pairs}, needs {MEANINGFUL}") if few else seen.notes
        extra = {"mean_abs": float((u[:pairs] - o[:pairs]).abs().mean())}
        if len(o) > 1:
            extra["abs_floor"] = float((o[:, None] - o).abs().sum()) / (len(o) * (len(o) - 1))
        ceiling = None if undone.value is None else Anchor(undone.value - float(o.mean()), None, len(undone.per_model or ()), "originals minus oracles")
        return Result(
            self.key,
            float(u.mean() - o.mean()),
            self.better,
            perfect=0.0,
            ci=ci,
            floor=Anchor(0.0, None, len(o), "oracles minus oracles, by definition"),
            ceiling=ceiling,
            rescaled=seen.rescaled,
            rescaled_ci=seen.rescaled_ci,
            n_models=seen.n_models,
            n_examples=seen.n_examples,
            notes=tuple(dict.fromkeys(notes)),
            extra=extra,
            per_model=tuple(value - float(o.mean()) for value in seen.per_model),
        )


def _why(result: Result) -> str:
    return result.missing.removeprefix("not computed: ") if result.missing else f"'{result.key}' has no value per model"


def _alone(metric: Metric, audit: Audit, models: Outputs) -> Result:
    """The metric's values on these models. Its anchors are not wanted and may cost twice as much: a few models stand in."""
    kept = {"triggered", "relearning"} & {need for one in within(metric) for need in getattr(one, "needs", ())}
    if kept:
        return not_computed(metric.key, metric.better, f"'{metric.key}' reads what is known of the unlearned models alone; it shows the oracles itself", audit)
    few = models.rows(range(min(len(models), MEANINGFUL)))
    return metric(replace(audit, originals=few, oracles=few, unlearned=models, parents=None, facts={}))  # the facts are those of the unlearned models


def _gap_interval(u: Tensor, o: Tensor, paired: bool) -> Interval | None:
    if not paired:
        return welch_interval(u, o)
    ci = t_interval(u - o)
    return ci and replace(ci, method="t over pairs of models")


def _by_seed(outputs: Outputs) -> list[int]:
    return sorted(range(len(outputs)), key=lambda i: outputs.models[i])


@spec("metric", "avg_gap", paper="arXiv:2310.12508")
class AverageGap:
    """Mean distance to the oracles over the usual columns, in points (percent); lower is better, but never 0.

    avg_gap = mean over columns of |mean over U − mean over O| · 100 (SalUn, Fan et al.; metrics §2.2): seeds are averaged
    first, then the absolute value is taken. ``mean_abs``: the same with the absolute value taken per pair of models.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "what another set of oracles scores (the floor), above 0"
    caution: ClassVar[str] = "good columns hide a bad one, and accuracies agree long before margins do: close to the floor is not forgotten"
    key: ClassVar[str] = "avg_gap"
    metrics: Annotated[tuple[Metric, ...], Setting("the columns, each a metric with one value per model", kind="metric")] = (
        UnlearningAccuracy(),
        Accuracy("retain"),
        Accuracy("test"),
        SvcEfficacy("confidence"),
    )

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit)
        if missing:
            return missing
        sides = []
        for outputs in (audit.unlearned, audit.oracles, audit.originals):
            if not len(outputs):  # no originals were given
                sides.append(torch.zeros(0, len(self.metrics), dtype=torch.float64))
                continue
            columns = [_alone(metric, audit, in_order(outputs)) for metric in self.metrics]
            lacking = next((result for result in columns if result.per_model is None), None)
            if lacking:
                return not_computed(self.key, self.better, f"{lacking.key}: {_why(lacking)}", audit)
            sides.append(torch.tensor([result.per_model for result in columns], dtype=torch.float64).T)
        u, o, p = sides
        found = calibrated(lambda x, y: float(_gaps(x, y).mean()), u, o, p, audit.seed)
        (ci,) = jackknife(lambda i, j: _gaps(u[i], o[j]).mean()[None], len(u), len(o))
        pairs = min(len(u), len(o))
        extra = {metric.key: float(gap) for metric, gap in zip(self.metrics, _gaps(u, o), strict=True)}
        extra["mean_abs"] = float((u[:pairs] - o[:pairs]).abs().mean()) * 100
        return found.result(self, audit, float(_gaps(u, o).mean()), len(audit.unlearned.labels), ci=ci, extra=extra)


def _gaps(u: Float64[Tensor, "models columns"], o: Float64[Tensor, "oracles columns"]) -> Float64[Tensor, " columns"]:
    return (u.mean(0) - o.mean(0)).abs() * 100
