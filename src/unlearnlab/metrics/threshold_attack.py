"""Does one cut per class on one feature tell a model's forget or retained images from images it never saw?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Result, not_computed
from unlearnlab.metrics.statistics import beside, clopper_pearson, t_interval, unfit
from unlearnlab.metrics.svc_attack import attack, features
from unlearnlab.outputs import Outputs, lowest_argmax
from unlearnlab.spec import Setting, spec

Feature = Literal["correctness", "confidence", "entropy", "m_entropy"]


def oriented(outputs: Outputs, feature: Feature) -> Float64[Tensor, "models examples"]:
    """The feature with such a sign that members have the larger values."""
    values = features(outputs, feature)[..., 0]
    return -values if feature in ("entropy", "m_entropy") else values


def best_cut(members: Float64[Tensor, "models m"], others: Float64[Tensor, "models k"]) -> Float64[Tensor, " models"]:
    """Per model the value t for which "member if value >= t" has the best (TPR + TNR)/2; of equally good ones the smallest."""
    m, k = members.shape[1], others.shape[1]
    ordered, order = torch.cat([members, others], 1).sort(1)
    is_member = (order < m).long()
    below_members = is_member.cumsum(1) - is_member  # members at earlier places
    below_others = torch.arange(m + k) - below_members
    right = (m - below_members) * k + below_others * m  # (TPR + TNR) · m · k, in whole numbers, so that equal means equal
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] > ordered[:, :-1]  # a cut takes all equal values or none
    return ordered.gather(1, lowest_argmax(right.where(first, -1)).unsqueeze(1))[:, 0]


@dataclass(frozen=True, eq=False)
class Cuts:
    """Where every model's members begin: ``of_class[model, class]``, the pooled cut where ``own`` says that a class has none."""

    of_class: Float64[Tensor, "models classes"]
    own: Bool[Tensor, " classes"]

    @staticmethod
    def found(members: Float64[Tensor, "models m"], others: Float64[Tensor, "models k"], labels: tuple[Tensor, Tensor], classes: int) -> Cuts:
        """From shadow data and the labels of its members and others."""
        of_class, own = best_cut(members, others)[:, None].repeat(1, classes), torch.zeros(classes, dtype=torch.bool)
        of_members, of_others = labels
        for c in range(classes):
            here, there = of_members == c, of_others == c
            if bool(here.any()) and bool(there.any()):
                of_class[:, c], own[c] = best_cut(members[:, here], others[:, there]), True
        return Cuts(of_class, own)

    def called_member(self, values: Float64[Tensor, "models n"], labels: Int64[Tensor, " n"]) -> Bool[Tensor, "models n"]:
        return values >= self.of_class[:, labels]


@dataclass(frozen=True, eq=False)
class ThresholdAttack:
    """Cuts are learnt on the first halves of ``members`` and ``others`` (positions among all examples) and tried on what is left."""

    members: Int64[Tensor, " m"]
    others: Int64[Tensor, " m"]
    feature: Feature

    def cuts(self, outputs: Outputs) -> tuple[Cuts, Bool[Tensor, " models"]]:
        """The cuts, and the models for which the feature is the same for all shadow data."""
        half = len(self.members) // 2
        members, others = (outputs.examples(rows[:half]) for rows in (self.members, self.others))
        of_members, of_others = oriented(members, self.feature), oriented(others, self.feature)
        both = torch.cat([of_members, of_others], 1)
        return Cuts.found(of_members, of_others, (members.labels, others.labels), outputs.logits.shape[-1]), (both == both[:, :1]).all(1)

    def efficacy(self, outputs: Outputs) -> tuple[Float64[Tensor, " models"], int]:
        """Share of the forget set called non-member, NaN where the feature is constant; and how many images fell to the pooled cut."""
        (cuts, blind), forget = self.cuts(outputs), outputs.of("forget")
        called = cuts.called_member(oriented(forget, self.feature), forget.labels)
        return (~called).double().mean(1).where(~blind, torch.nan), int((~cuts.own[forget.labels]).sum())

    def privacy(self, outputs: Outputs) -> tuple[Float64[Tensor, " models"], int]:
        """Mean of the two recalls on the halves that taught no cut; and how many of their images fell to the pooled cut."""
        half, (cuts, _) = len(self.members) // 2, self.cuts(outputs)
        kept = [outputs.examples(rows[half:]) for rows in (self.members, self.others)]
        members, others = (cuts.called_member(oriented(side, self.feature), side.labels).double().mean(1) for side in kept)
        return (1 + members - others) / 2, sum(int((~cuts.own[side.labels]).sum()) for side in kept)


def _attacked(metric: ThresholdEfficacy | ThresholdPrivacy, audit: Audit, privacy: bool) -> Result:
    missing = None if privacy else unfit(metric, audit, "forget", "retain", "control")
    matched = missing or attack(metric, audit, privacy=True)  # a forget class without control images has the pooled cut here: no reason to refuse
    if isinstance(matched, Result):
        return matched
    by = ThresholdAttack(matched.members, matched.others, metric.feature)
    of_each = by.privacy if privacy else by.efficacy
    (u, pooled), (o, _), (p, _) = (of_each(outputs) for outputs in (audit.unlearned, audit.oracles, audit.originals))
    if bad := int(u.isnan().sum()):
        return not_computed(metric.key, metric.better, f"{metric.feature} is constant for {bad} of {len(u)} models", audit)
    half = len(by.members) // 2
    notes = [f"cuts learnt on {half} members and as many non-members, matched in class and label noise"]
    if bool(o.isnan().any()) or bool(p.isnan().any()):
        notes.append(f"{metric.feature} is constant for {int(o.isnan().sum())} oracles and {int(p.isnan().sum())} originals, which are left out")
    if pooled:
        notes.append(f"{pooled} images are judged by the cut of all classes: no member or no non-member has their class")
    o, p = o[~o.isnan()], p[~p.isnan()]
    n = 2 * (len(by.members) - half) if privacy else len(audit.unlearned.of("forget").labels)
    extra = {"pooled": float(pooled)}
    if not privacy:
        one = clopper_pearson(round(float(u.sort().values[(len(u) - 1) // 2]) * n), n)
        extra |= {"median_model_lo": one.lo, "median_model_hi": one.hi}
    found = beside(u, o, p, audit.parents if len(p) == len(audit.originals) else None)
    return found.result(metric, audit, float(u.mean()), n, ci=t_interval(u), per_model=tuple(u.tolist()), notes=notes, extra=extra)


@spec("metric", "mia_thr.efficacy", paper="arXiv:2003.10595")
class ThresholdEfficacy:
    """Share of the forget set that the best cut per class takes for unseen images; perfect is the oracles' share.

    Per model and class c: t_c maximises (TPR + TNR)/2 on half of the retained (members) and control images, matched in class and
    label noise; an image is called a member if its value is at least t_c. Efficacy = share of forget below it. Values rise with
    membership: correctness, p_y, −entropy, −modified entropy (Song & Mittal; metrics §3.2). A class without members or
    non-members among the shadow data has the cut of all classes (``pooled``: how many forget images). ``median_model_lo`` and
    ``_hi``: Clopper-Pearson over the forget images of the median model.

    Differs from the published code: control images replace plain test images, one sort instead of a loop over cuts.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 7
    ideal: ClassVar[str] = "the oracles' share, not 1 and not .5: oracles take some unseen images for seen ones too"
    caution: ClassVar[str] = "a model that hides its certainty, or over-forgets, passes; with few images of a class the cuts are rough"
    feature: Annotated[Feature, Setting("what of an image is cut")] = "confidence"

    @property
    def key(self) -> str:
        return f"mia_thr.{self.feature}.efficacy"

    def __call__(self, audit: Audit) -> Result:
        return _attacked(self, audit, privacy=False)


@spec("metric", "mia_thr.privacy", paper="arXiv:2003.10595")
class ThresholdPrivacy:
    """How well the best cut per class tells retained from unseen images: about the whole model, not the forget set; .5 is perfect privacy.

    The cuts of ``mia_thr.efficacy``, learnt on half of the matched members and non-members, scored on the other halves: (TPR + TNR)/2
    (Song & Mittal; metrics §3.2). The optimum on the halves that taught the cuts would be above .5 without any leak; it is not shown.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 7
    ideal: ClassVar[str] = "the oracles' score: .5 where nothing of the training set shows"
    caution: ClassVar[str] = "is about all training images; it does not speak of the forget set"
    feature: Annotated[Feature, Setting("what of an image is cut")] = "confidence"

    @property
    def key(self) -> str:
        return f"mia_thr.{self.feature}.privacy"

    def __call__(self, audit: Audit) -> Result:
        return _attacked(self, audit, privacy=True)
