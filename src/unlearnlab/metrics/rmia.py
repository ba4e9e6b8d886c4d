"""RMIA: does a model favour the forget images more than it favours random unseen images, compared with models of known training sets?"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Metric, Result, not_computed
from unlearnlab.metrics.lira import strangers
from unlearnlab.metrics.statistics import beside_others, rank_auc_rows, tpr_at, unfit
from unlearnlab.outputs import Outputs
from unlearnlab.spec import Setting, spec

LogP = Float64[Tensor, "models n"]

LEAST_P = 1e-30
ROUNDING = 1e-12  # where models are certain, all ratios are 1 but for their last bits, which must not decide
Population = Literal["test", "validation"]
Variant = Literal["offline", "online"]
OfVariant = Annotated[Variant, Setting("compare with the references without the image only, or with those that saw it too")]
OfOffset = Annotated[float, Setting("stands in for the references that saw the image; 1 = as if they gave the same p", symbol="a", ge=0, le=1)]
OfGamma = Annotated[float, Setting("by what factor an image must beat a population image", symbol="γ", gt=0)]
OfPopulation = Annotated[Population, Setting("which images, new to every model, are the population", symbol="z")]
OFFSET, GAMMA, FPR = 0.3, 1.0, 0.05


def log_p(outputs: Outputs) -> LogP:
    """log p_y, at least log 1e-30."""
    return (-outputs.loss).clamp_min(math.log(LEAST_P))


def log_mean(of: LogP, held: Bool[Tensor, "models n"]) -> Float64[Tensor, " n"]:
    """log of the mean p over the models held, per example: what is not held neither enters as 0 nor counts. −inf where none is held."""
    return of.where(held, -torch.inf).logsumexp(0) - held.sum(0).clamp_min(1).double().log()


def offline(of: LogP, member: Bool[Tensor, "models n"], a: float) -> Float64[Tensor, " n"]:
    """log of ((1 + a) · mean p over the references without x + (1 − a))/2."""
    ends = torch.tensor([(1 + a) / 2, (1 - a) / 2], dtype=torch.float64).log()  # log 0 = −inf, at a = 1, adds nothing
    return torch.logaddexp(ends[0] + log_mean(of, ~member), ends[1])


def online(of: LogP, member: Bool[Tensor, "models n"]) -> Float64[Tensor, " n"]:
    """log of (mean p over the references with x + mean p over those without)/2."""
    return torch.logaddexp(log_mean(of, member), log_mean(of, ~member)) - math.log(2)


def beaten(ratio: LogP, population: LogP, gamma: float) -> Int64[Tensor, "models n"]:
    """How many population images z an image x beats in each model: ρ_x/ρ_z > γ, from logs of ρ; equality, to the rounding, does not count."""
    return torch.searchsorted(population.sort(-1).values, (ratio - math.log(gamma) - ROUNDING).contiguous())


def references_of(metric: Metric, audit: Audit, least: int, population: Population, *parts: str) -> tuple[Outputs, tuple[str, ...]] | Result:
    """The models to compare with, in the order of their seeds, and notes; or the ``not computed`` result.

    A reference with the seed or the logits of an audited model is left out: no model may be compared with itself.
    """
    missing = unfit(metric, audit, *parts, population)
    if missing:
        return missing
    held, sides = audit.references, (audit.unlearned, audit.oracles, audit.originals)
    assert held is not None, "unfit has seen them"
    if len(set(held.models)) < len(held):
        twice = min(seed for seed in held.models if held.models.count(seed) > 1)
        return not_computed(metric.key, metric.better, f"two reference models have the seed {twice}, and none may be compared with itself", audit)
    fresh, same = strangers(audit, *parts)
    if len(fresh) < least:
        return not_computed(metric.key, metric.better, f"{len(fresh)} reference models{' that are not audited' if same else ''}, needs {least}", audit)
    known = int(torch.stack([side.of(population).member.any(0) for side in (held, *sides)]).any(0).sum())
    if known:
        return not_computed(metric.key, metric.better, f"{known} {population} images were trained on; the population must be new to every model", audit)
    notes = (f"{same} references are audited models themselves and are left out",) if same else ()
    return fresh, (f"{len(fresh)} reference models", *notes)


def _attacked(metric: RmiaAuc | RmiaTpr, audit: Audit) -> Result:
    ready = references_of(metric, audit, metric.references, metric.population, "forget", "control")
    if isinstance(ready, Result):
        return ready
    seen, notes = ready
    online_, also = metric.variant == "online", " and known to another" if metric.variant == "online" else ""
    sides, others = [seen.of(part) for part in ("forget", "control")], seen.of(metric.population)
    usable = [(~side.member).any(0) & (side.member.any(0) | (not online_)) for side in sides]
    n, r = (int(of.sum()) for of in usable)
    if not n or not r:
        return not_computed(metric.key, metric.better, f"no {'control' if n else 'forget'} image is new to some reference{also}", audit)
    if isinstance(metric, RmiaTpr) and r * metric.fpr < 1 - 1e-9:
        return not_computed(metric.key, metric.better, f"{r} control images, needs {math.ceil(1 / metric.fpr - 1e-9)} for an FPR of {metric.fpr:g}", audit)
    held = [(log_p(side)[:, keep], side.member[:, keep]) for side, keep in zip(sides, usable, strict=True)]
    of_z, audited = log_p(others), (audit.unlearned, audit.oracles, audit.originals)
    asked = [
        (log_p(outputs.of(metric.population)), *(log_p(outputs.of(part))[:, keep] for part, keep in zip(("forget", "control"), usable, strict=True)))
        for outputs in audited
    ]

    def by_these(rows: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """The scores of all audited models by these references; None where they leave some image without the comparison that it needs."""
        some = [(of[rows], member[rows]) for of, member in held]
        if not all(bool(((~member).any(0) & (member.any(0) | (not online_))).all()) for _, member in some):
            return None
        common = [online(*one) if online_ else offline(*one, metric.a) for one in some]
        # nobody was trained on the population: all references are without it
        z = log_mean(of_z[rows], ~others.member[rows]) if online_ else offline(of_z[rows], others.member[rows], metric.a)
        found = []
        for population, forget, control in asked:
            beats = [beaten(of - own, population - z, metric.gamma).double() for of, own in zip((forget, control), common, strict=True)]
            found.append(tpr_at(metric.fpr, *beats) if isinstance(metric, RmiaTpr) else rank_auc_rows(*beats))
        u, o, p = found
        return u, o, p

    u, found, ci = beside_others(by_these, len(seen), audit.parents)
    gone = [(int((~of).sum()), f"{part} images that no reference is new to{also}") for part, of in zip(("forget", "control"), usable, strict=True)]
    dropped = tuple((count, why) for count, why in gone if count)
    said = (*notes, f"{n} forget against {r} control images, {len(others.labels)} {metric.population} images")
    extra = {"references": float(len(seen))}
    return found.result(metric, audit, float(u.mean()), n, ci=ci, per_model=tuple(u.tolist()), notes=said, dropped=dropped, extra=extra)


def suffix(a: float, gamma: float, population: Population) -> str:
    """What differs from the defaults: another definition has another key."""
    return (f"_a{a:g}" if a != OFFSET else "") + (f"_gamma{gamma:g}" if gamma != GAMMA else "") + (f"_{population}" if population != "test" else "")


def _key(metric: RmiaAuc | RmiaTpr, what: str) -> str:
    online = metric.variant == "online"  # which does not read a
    return f"rmia{'.online' if online else ''}.{what}{suffix(OFFSET if online else metric.a, metric.gamma, metric.population)}"


@spec("metric", "rmia.auc", paper="arXiv:2312.03262")
class RmiaAuc:
    """Chance that a forget image looks more like a trained-on image than a control image does; perfect is the oracles' chance, near .5.

    Of an image x in a model: ρ_x = p_y(x)/P(x) with P(x) = ((1 + a)·mean p + (1 − a))/2 over the references that never saw x
    (``offline``), or (mean p with + mean p without)/2 (``online``; all references for z). Score = share of population images z with
    ρ_x/ρ_z > γ; rank AUC of forget against control, ties counting half, each model by itself (Zarifzadeh et al.; metrics §4.3).
    log p throughout, p at least 1e-30. An image that no reference is new to is dropped and counted. The
    interval is over unlearned models and references; the images are taken as they are.

    Differs from the published code: masked means in place of sorted, zeroed signals; P(z) is made as P(x) is; a is never tuned.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    references: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset({"references"})
    trust: ClassVar[int] = 5
    ideal: ClassVar[str] = "the oracles' chance, near .5"
    caution: ClassVar[str] = (
        "read it only beside the oracles' number: an over-forgotten image also looks unseen, and the attack is only as good as its references"
    )
    variant: OfVariant = "offline"
    a: OfOffset = OFFSET
    gamma: OfGamma = GAMMA
    population: OfPopulation = "test"

    @property
    def key(self) -> str:
        return _key(self, "auc")

    def __call__(self, audit: Audit) -> Result:
        return _attacked(self, audit)


@spec("metric", "rmia.tpr_at_fpr", paper="arXiv:2312.03262")
class RmiaTpr:
    """Share of the forget set that is caught while at most a few control images are accused; perfect is the oracles' share.

    The scores of ``rmia.auc``; largest TPR with FPR <= ``fpr`` over all cuts, without interpolation, each model by itself
    (Zarifzadeh et al.; metrics §4.3, §1.5). Needs 1/fpr control images. .05 is what some dozens of control images allow; papers print .01
    and .001.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    references: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset({"references"})
    trust: ClassVar[int] = 5
    ideal: ClassVar[str] = "the oracles' share, near the share of control images that may be accused"
    caution: ClassVar[str] = "with few control images it hangs on the two or three that look most seen; read it only beside the oracles' number"
    variant: OfVariant = "offline"
    a: OfOffset = OFFSET
    gamma: OfGamma = GAMMA
    population: OfPopulation = "test"
    fpr: Annotated[float, Setting("the share of control images that may be accused", symbol="α", gt=0, lt=1, published="0.01, 0.001")] = FPR

    @property
    def key(self) -> str:
        return _key(self, f"tpr_at_fpr{f'{self.fpr:g}' if self.fpr != FPR else ''}")

    def __call__(self, audit: Audit) -> Result:
        return _attacked(self, audit)
