"""Does the forget set look like unseen data to a classifier trained on the same model's retained and unseen images?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Metric, Result, not_computed
from unlearnlab.metrics.statistics import beside, t_interval, unfit
from unlearnlab.outputs import Outputs, entropy, modified_entropy
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting, spec

if TYPE_CHECKING:
    from sklearn.svm import SVC

MOST = 2000  # images a side: the fit costs the square of it or more
LEAST = 10

Feature = Literal["correctness", "confidence", "entropy", "m_entropy", "prob"]


def features(outputs: Outputs, feature: Feature) -> Float64[Tensor, "models examples inputs"]:
    """What the classifier sees of each example."""
    if feature == "prob":
        return outputs.log_prob.exp()
    if feature == "correctness":
        return (outputs.predicted == outputs.labels).double()[..., None]
    if feature == "confidence":
        return (-outputs.loss).exp()[..., None]
    return (entropy(outputs.logits) if feature == "entropy" else modified_entropy(outputs.logits, outputs.labels))[..., None]


def matched(audit: Audit) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """Positions of members (from retain) and non-members (control): equally many of every class and, where known, label noise.

    Where retain has too few of a kind, both sides shrink. Drawn by id, so that the order of the examples is no matter.
    """
    seen = audit.unlearned
    flipped = audit.groups.get("mislabelled", torch.zeros(len(seen.labels), dtype=torch.bool))
    kind = (2 * seen.labels + flipped.long()).tolist()
    draws = generator(audit.seed, "metrics.mia_svc.members")
    pools: list[dict[int, list[int]]] = []
    for part in ("retain", "control"):
        rows = seen.part == seen.of(part).part[0]
        pool: dict[int, list[int]] = {}
        order = rows.nonzero()[:, 0][seen.ids[rows].argsort()]
        for at in order[torch.randperm(len(order), generator=draws)].tolist():
            pool.setdefault(kind[at], []).append(at)
        pools.append(pool)
    members, others = pools
    pairs = [pair for k in others for pair in zip(members.get(k, []), others[k], strict=False)]
    keep = torch.randperm(len(pairs), generator=draws)[: min(MOST, len(pairs) // 2 * 2)]  # even, so that halves are equal
    both = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)[keep]
    return both[:, 0], both[:, 1]


def called_member(members: Tensor, non_members: Tensor, target: Tensor) -> Float64[Tensor, " examples"] | None:
    """Which target rows an RBF support vector classifier (C = 3, γ = 1/inputs) takes for members; None where the inputs are constant."""
    from sklearn import config_context

    x = torch.cat([members, non_members])
    if bool((x == x[0]).all()):
        return None
    fit = _fitted if x.shape[1] == 1 else _fitted.__wrapped__  # with many inputs, remembering takes more room than it saves time
    machine = fit(x.numpy().tobytes(), x.shape[1], len(members))
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return torch.from_numpy(machine.predict(target.numpy())).double()


@lru_cache(maxsize=512)
def _fitted(inputs: bytes, columns: int, members: int) -> SVC:
    """The classifier of these rows, members first. Remembered: the whole forget set, its groups and several metrics ask for the same one."""
    import numpy as np
    from sklearn import config_context
    from sklearn.svm import SVC

    x = np.frombuffer(inputs).reshape(-1, columns)
    with config_context(assume_finite=True, skip_parameter_validation=True):  # the checks take longer than the fit
        return SVC(kernel="rbf", C=3.0, gamma=1 / columns).fit(x, (np.arange(len(x)) < members).astype(float))


@dataclass(frozen=True, eq=False)
class Attack:
    """Whom the classifier is trained on and whom it is asked about: positions among all examples, and a mask over the forget set."""

    members: Int64[Tensor, " m"]
    others: Int64[Tensor, " m"]
    fair: Bool[Tensor, " forget"]

    def efficacy(self, outputs: Outputs, feature: Feature = "confidence") -> Float64[Tensor, " models"]:
        """Share of the forget set called non-member, for each model by itself; NaN where the feature is constant."""

        def one(of_members: Tensor, of_others: Tensor, of_forget: Tensor) -> float:
            called = called_member(of_members, of_others, of_forget)
            return float("nan") if called is None else 1 - float(called.mean())

        sides = (outputs.examples(self.members), outputs.examples(self.others), outputs.of("forget").examples(self.fair))
        return _each(one, sides, feature)

    def privacy(self, outputs: Outputs, feature: Feature = "confidence") -> Float64[Tensor, " models"]:
        """Mean of the two recalls on the halves that the classifier was not trained on, for each model by itself."""
        half = len(self.members) // 2

        def one(of_members: Tensor, of_others: Tensor) -> float:
            called = called_member(of_members[:half], of_others[:half], torch.cat([of_members[half:], of_others[half:]]))
            return float("nan") if called is None else (1 + float(called[:-half].mean() - called[-half:].mean())) / 2

        return _each(one, (outputs.examples(self.members), outputs.examples(self.others)), feature)

    @property
    def dropped(self) -> tuple[tuple[int, str], ...]:
        return () if bool(self.fair.all()) else ((int((~self.fair).sum()), "no control image has their class"),)

    @property
    def note(self) -> str:
        return f"{len(self.members)} members and as many non-members, matched in class and label noise"


def _each(one: Callable[..., float], sides: Sequence[Outputs], feature: Feature) -> Float64[Tensor, " models"]:
    return torch.tensor([one(*rows) for rows in zip(*(features(side, feature) for side in sides), strict=True)], dtype=torch.float64)


def attack(metric: Metric, audit: Audit, privacy: bool = False) -> Attack | Result:
    """The attack that this audit allows, or the ``not computed`` result where it allows none."""
    missing = unfit(metric, audit, *(("retain", "control") if privacy else ("forget", "retain", "control")))
    if missing:
        return missing
    members, others = matched(audit)
    if len(members) < LEAST:
        return not_computed(metric.key, metric.better, f"{len(members)} retained images match the control images in kind, needs {LEAST}", audit)
    # a class that no non-member bears would be called forgotten, or not, whatever the model did
    fair = torch.isin(audit.unlearned.of("forget").labels, audit.unlearned.labels[others])
    if not privacy and not bool(fair.any()):
        return not_computed(metric.key, metric.better, "no control image has a class of the forget set", audit)
    return Attack(members, others, fair)


def _attacked(metric: SvcEfficacy | SvcPrivacy, audit: Audit, privacy: bool) -> Result:
    by = attack(metric, audit, privacy)
    if isinstance(by, Result):
        return by
    feature, of_each = metric.feature, by.privacy if privacy else by.efficacy
    u, o, p = (of_each(outputs, feature) for outputs in (audit.unlearned, audit.oracles, audit.originals))
    bad = int(u.isnan().sum())
    if bad:
        return not_computed(metric.key, metric.better, f"{feature} is constant for {bad} of {len(u)} models", audit)
    notes = [by.note]
    if bool(o.isnan().any()) or bool(p.isnan().any()):
        notes.append(f"{feature} is constant for {int(o.isnan().sum())} oracles and {int(p.isnan().sum())} originals, which are left out")
    o, p = o[~o.isnan()], p[~p.isnan()]
    n = 2 * (len(by.members) // 2) if privacy else int(by.fair.sum())
    found = beside(u, o, p, audit.parents if len(p) == len(audit.originals) else None)
    dropped = () if privacy else by.dropped
    return found.result(metric, audit, float(u.mean()), n, ci=t_interval(u), per_model=tuple(u.tolist()), notes=notes, dropped=dropped)


@spec("metric", "mia_svc.efficacy", paper="arXiv:2304.04934")
class SvcEfficacy:
    """Share of the forget set that a classifier trained on the same model takes for unseen images; perfect is the oracles' share.

    An SVC (RBF, C = 3, γ = 1/inputs, unscaled) is trained on retained (members) against control images (non-members), equally
    many of every class and label noise; efficacy = share of forget called non-member (Jia et al.; metrics §3.1). ``confidence``
    (p_y) is the number papers print. At most 2000 images a side.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 7
    ideal: ClassVar[str] = "the oracles' share, not 1 and not .5: oracles take some unseen images for seen ones too"
    caution: ClassVar[str] = (
        "a model that is unsure of everything, or over-forgets, passes; the number depends on the control images, so compare within a study only"
    )
    feature: Annotated[Feature, Setting("what the classifier sees of an image")] = "confidence"

    @property
    def key(self) -> str:
        return f"mia_svc.{self.feature}.efficacy"

    def __call__(self, audit: Audit) -> Result:
        return _attacked(self, audit, privacy=False)


@spec("metric", "mia_svc.privacy", paper="arXiv:2304.04934")
class SvcPrivacy:
    """How well a classifier tells retained from unseen images: about the whole model, not the forget set; .5 is perfect privacy.

    The SVC of ``mia_svc.efficacy`` is trained on half of the members and non-members and scored on the other halves: mean of
    the two recalls (Jia et al.; metrics §3.1).
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 7
    ideal: ClassVar[str] = "the oracles' score: .5 where nothing of the training set shows"
    caution: ClassVar[str] = "is about all training images; it does not speak of the forget set"
    feature: Annotated[Feature, Setting("what the classifier sees of an image")] = "confidence"

    @property
    def key(self) -> str:
        return f"mia_svc.{self.feature}.privacy"

    def __call__(self, audit: Audit) -> Result:
        return _attacked(self, audit, privacy=True)
