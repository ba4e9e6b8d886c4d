"""Do forget images look to a model as they look to models that saw them, or as they look to models that did not?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Metric, Result, not_computed
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.statistics import beside_others, clopper_pearson, in_order, rank_auc_rows, tpr_at, unfit
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError, Setting, spec

Margins = Float64[Tensor, "models n"]

PRIOR_WEIGHT = 10  # models' worth of the pooled variance that enter each example's own
OF_ITS_OWN = 64  # models a side from which on an example has a variance of its own
LEAST_SD = 1e-3  # times the pooled sd
SHARE = 0.75  # of the wanted number of models a side; random halves never hold exactly as many
RATES = {"tpr01": 0.01, "tpr001": 0.001}


@dataclass(frozen=True, eq=False)
class Bell:
    """A normal distribution for each example."""

    mean: Float64[Tensor, "... n"]
    sd: Float64[Tensor, "... n"]

    def z(self, x: Float64[Tensor, "... n"]) -> Float64[Tensor, "... n"]:
        return (x - self.mean) / self.sd

    def log_density(self, x: Float64[Tensor, "... n"]) -> Float64[Tensor, "... n"]:
        """Without the constant −½ log 2π."""
        return -self.z(x).square() / 2 - self.sd.log()

    def log_cdf(self, x: Float64[Tensor, "... n"]) -> Float64[Tensor, "... n"]:
        below: Tensor = torch.special.log_ndtr(self.z(x))
        return below


def bells(m: Margins, *sides: Bool[Tensor, "... models n"], own: bool) -> tuple[Bell, ...]:
    """For each side, the bells through the margins of the models that it marks, at least one for every example.

    Variances (ddof 1) are pooled over examples or, with ``own``, each example's own, shrunk to the pool with weight 10; an sd is at least
    a thousandth of the widest side's pooled one.
    """
    centre = m.mean(0)
    m = m - centre  # the sums of squares below would cancel without it
    means, variances, pools = [], [], []
    for side in sides:
        who = side.double()
        total, square = _summed(m, who), _summed(m * m, who)
        count = who.sum(-2).expand_as(total)
        mean, free = total / count, count - 1
        square = (square - count * mean * mean).clamp_min(0)
        pool = square.sum(-1, keepdim=True) / free.sum(-1, keepdim=True).clamp_min(1)
        means.append(mean + centre)
        variances.append((square + PRIOR_WEIGHT * pool) / (free + PRIOR_WEIGHT) if own else pool.expand_as(mean))
        pools.append(pool)
    least = (LEAST_SD**2 * torch.stack(pools).amax(0)).clamp_min(1e-24)
    return tuple(Bell(mean, torch.maximum(variance, least).sqrt()) for mean, variance in zip(means, variances, strict=True))


def _summed(m: Margins, who: Float64[Tensor, "... models n"]) -> Float64[Tensor, "... n"]:
    return who[..., 0] @ m if who.shape[-1] == 1 else (m * who).sum(-2)  # the same models for all examples: several times faster


@dataclass(frozen=True, eq=False)
class References:
    """Margins of the reference models on the examples ``at`` (positions in the audit), and who saw what.

    ``inside``: are the models that saw an example read, and not only those that did not? Every example has one at least of those that are.
    """

    margin: Margins
    member: Bool[Tensor, "models n"]
    at: Int64[Tensor, " n"]
    inside: bool
    dropped: tuple[tuple[int, str], ...]
    note: str

    def bells(self) -> tuple[Bell, ...]:
        """Of the models that did not see an example and, where they are read, of those that did."""
        found = self.bells_by(torch.arange(len(self.margin)))
        assert found is not None, "every example has some"
        return found

    def bells_by(self, rows: Int64[Tensor, " models"]) -> tuple[Bell, ...] | None:
        """``bells`` of these of the models alone; None where they leave some example without a side that is read."""
        seen, least = (~self.member, self.member)[: 1 + self.inside], OF_ITS_OWN
        own = min(float(side.sum(0).double().mean()) for side in seen) >= least  # by all models: fewer of them are read in the same way
        sides = [side[rows] for side in seen]
        return bells(self.margin[rows], *sides, own=own) if all(bool(side.any(0).all()) for side in sides) else None

    def of(self, audit: Audit, part: str) -> Bool[Tensor, " n"]:
        """Which of the examples belong to this part."""
        return audit.unlearned.part[self.at] == PARTS.index(part)


def strangers(audit: Audit, *parts: str) -> tuple[Outputs, int]:
    """The references, by seed, without those that have the seed or the logits (on these parts) of an audited model; and how many those are."""
    held, sides = audit.references, (audit.originals, audit.oracles, audit.unlearned)
    assert held is not None, "unfit() has looked"
    if not all(torch.equal(getattr(held, name), getattr(audit.unlearned, name)) for name in ("ids", "part", "labels")):
        told = "reference models and unlearned models were observed on different images or in another order, or with other parts or labels"
        raise InputError(f"{told}; observe them on the same ones")
    held, at = in_order(held), torch.isin(held.part, torch.tensor([PARTS.index(part) for part in parts]))
    seeds, logits = {seed for side in sides for seed in side.models}, {_bits(row[at]) for side in sides for row in side.logits}
    keep = [i for i, seed in enumerate(held.models) if seed not in seeds and _bits(held.logits[i, at]) not in logits]
    return held.rows(keep), len(held) - len(keep)


def consulted(metric: Metric, audit: Audit, least: int, *parts: str, inside: bool = True) -> References | Result:
    """The references on these parts: ``least`` of them, half of which saw an image and half did not (``inside``: are the former read?).

    A reference that is itself audited would know its own margins: ``strangers`` alone are asked.
    """
    strange, lost = strangers(audit, *parts)
    also = f" ({lost} more are audited models themselves)" if lost else ""
    if len(strange) < least:
        return not_computed(metric.key, metric.better, f"{len(strange)} reference models{also}, needs {least}", audit)
    at = torch.isin(strange.part, torch.tensor([PARTS.index(part) for part in parts])).nonzero()[:, 0]
    seen = strange.examples(at)
    counts = torch.stack([(~seen.member).sum(0), seen.member.sum(0)])
    known = (counts[: 1 + inside] > 0).all(0)
    for part in parts:
        here = seen.part == PARTS.index(part)
        if not bool(known[here].any()):
            reason = f"every {part} image was seen by all reference models{' or by none' if inside else ''}"
            return not_computed(metric.key, metric.better, reason, audit)
        for number, what in zip(counts[: 1 + inside, here].double().mean(1).tolist(), ("did not see", "saw"), strict=False):
            if number < SHARE * least / 2:
                reason = f"{number:.1f} reference models {what} a {part} image, on average: needs about {least // 2}"
                return not_computed(metric.key, metric.better, reason, audit)
    lost = int((~known).sum())
    dropped = ((lost, f"seen by all reference models{' or by none' if inside else ''}"),) if lost else ()
    without, having = counts[:, known].double().mean(1).tolist()
    note = f"{len(seen)} reference models{also}: {having:.1f} saw an image and {without:.1f} did not, on average"
    return References(seen.margin[:, known], seen.member[:, known], at[known], inside, dropped, note)


def _bits(row: Tensor) -> bytes:
    return hashlib.sha256(row.float().contiguous().numpy().tobytes()).digest()


def balanced(members: Float64[Tensor, "rows k"], others: Float64[Tensor, "rows r"]) -> Float64[Tensor, " rows"]:
    """Per row, the mean of the shares of members above 0 and of others below; a score of 0 counts half."""
    return (members.sign().mean(1) - others.sign().mean(1)) / 4 + 0.5


def _attacked(metric: LiraOnline | LiraOffline, audit: Audit, score: Callable[..., Tensor], inside: bool) -> Result:
    missing = unfit(metric, audit, "forget", "control")
    if missing:
        return missing
    seen = consulted(metric, audit, metric.references, "forget", "control", inside=inside)
    if isinstance(seen, Result):
        return seen
    forget, control = seen.of(audit, "forget"), seen.of(audit, "control")
    rate = RATES.get(metric.statistic)
    if rate is not None and int(control.sum()) < round(1 / rate):
        return not_computed(metric.key, metric.better, f"{int(control.sum())} control examples, needs {round(1 / rate)}", audit)
    margins = [side.margin[:, seen.at] for side in (audit.unlearned, audit.oracles, audit.originals)]

    def of_each(margin: Margins, by: tuple[Bell, ...]) -> Float64[Tensor, " models"]:
        scores = score(margin, *by)
        sides = scores[:, forget], scores[:, control]
        if rate is not None:
            return tpr_at(rate, *sides)
        return rank_auc_rows(*sides) if metric.statistic == "auc" else balanced(*sides)

    def by_these(rows: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        if (by := seen.bells_by(rows)) is None:
            return None
        u, o, p = (of_each(margin, by) for margin in margins)
        return u, o, p

    u, found, ci = beside_others(by_these, len(seen.margin), audit.parents)
    n, extra = int(forget.sum()), {}
    if rate is not None:
        middle = float(u.sort().values[(len(u) - 1) // 2])
        limits = clopper_pearson(round(middle * n), n)
        extra = {"one_model": middle, "one_model_lo": limits.lo, "one_model_hi": limits.hi}
    notes = (f"{n} forget against {int(control.sum())} control images", seen.note)
    return found.result(metric, audit, float(u.mean()), n, ci=ci, per_model=tuple(u.tolist()), dropped=seen.dropped, notes=notes, extra=extra)


@spec("metric", "lira.online", paper="arXiv:2112.03570")
class LiraOnline:
    """How well one model's margins tell forget from unseen images, judged by models known to have seen each or not; perfect is the oracles' value.

    score = log N(m; μ_in, σ_in) − log N(m; μ_out, σ_out), normal distributions through the margins m of the references that had the image
    and of those that had not; forget images (members) against control images (non-members), inside each model by itself (Carlini et al.;
    metrics §4.1). Variances are pooled over images below 64 models a side, else shrunk to the pool with weight 10. ``tpr01``: largest
    share of forget images above a cut that at most 1 % of control images pass; ``one_model_lo``, ``one_model_hi`` are its exact limits
    for the middle model by itself. References that are audited models are left out. Intervals are over unlearned models and references; the
    images are taken as they are. Needs 32 references.

    Differs from the published code: pooled or shrunk variances with a floor, no augmented queries, intervals over models.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    references: ClassVar[int] = 32
    needs: ClassVar[frozenset[str]] = frozenset({"references"})
    trust: ClassVar[int] = 5
    ideal: ClassVar[str] = "what the oracles score: near .5 for auc and accuracy, near the allowed rate for tpr01 and tpr001"
    caution: ClassVar[str] = (
        "reference models are trained on half of the images and were never made to forget, so that a method which shifts all margins moves it: "
        "read it beside the oracles only; accuracy hardly sees a model that was pushed past them"
    )
    statistic: Annotated[
        Literal["auc", "accuracy", "tpr01", "tpr001"], Setting("what is read off the scores: tpr01 and tpr001 allow 1 % and 0.1 % false alarms")
    ] = "auc"

    @property
    def key(self) -> str:
        return f"lira.online.{self.statistic}"

    def __call__(self, audit: Audit) -> Result:
        return _attacked(self, audit, lambda m, out, own: own.log_density(m) - out.log_density(m), inside=True)


@spec("metric", "lira.offline", paper="arXiv:2112.03570")
class LiraOffline:
    """How far one model's margins on forget images lie above those of models that never saw them; perfect is the oracles' value.

    score = log Φ((m − μ_out)/σ_out), by the references without the image alone (Carlini et al.; metrics §4.1); all else as in
    ``lira.online``. Needs 16 references. There is no accuracy, since the score has no natural cut.

    Differs from the published code: as ``lira.online``.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    references: ClassVar[int] = 16
    needs: ClassVar[frozenset[str]] = frozenset({"references"})
    trust: ClassVar[int] = 5
    ideal: ClassVar[str] = "what the oracles score: near .5 for auc, near the allowed rate for tpr01 and tpr001"
    caution: ClassVar[str] = "weaker than the online attack: it knows how an unseen image looks and not how a seen one does; read it beside the oracles only"
    statistic: Annotated[Literal["auc", "tpr01", "tpr001"], Setting("what is read off the scores: tpr01 and tpr001 allow 1 % and 0.1 % false alarms")] = "auc"

    @property
    def key(self) -> str:
        return f"lira.offline.{self.statistic}"

    def __call__(self, audit: Audit) -> Result:
        return _attacked(self, audit, lambda m, out: out.log_cdf(m), inside=False)
