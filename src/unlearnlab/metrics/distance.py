"""How far apart are the probabilities that two models give to one image? Unlearned models against oracles, and against nets that learned nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Metric, Result, not_computed
from unlearnlab.metrics.accuracy import MEANINGFUL
from unlearnlab.metrics.statistics import Part, beside_others, calibrated, sides, t_interval, unfit
from unlearnlab.spec import Setting, spec

LogProbs = Float64[Tensor, "... examples classes"]
Distances = Float64[Tensor, "... examples"]
FRESH = 5  # untrained nets that the mean is taken over, at least: one alone may by chance resemble anything


def l2(p: LogProbs, q: LogProbs) -> Distances:
    """‖p − q‖₂ of probabilities given by their logarithms: from 0 to √2."""
    return (p.exp() - q.exp()).square().sum(-1).sqrt()


def l1(p: LogProbs, q: LogProbs) -> Distances:
    """Σ|p − q|: from 0 to 2."""
    return (p.exp() - q.exp()).abs().sum(-1)


def jensen_shannon(p: LogProbs, q: LogProbs) -> Distances:
    """KL(p ‖ m)/2 + KL(q ‖ m)/2 with m = (p + q)/2, in nats: from 0 to ln 2. Logarithms throughout, so that one-hot rows are finite."""
    middle = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1) / 2).clamp_min(0)


def _of_pairs(metric: Metric, audit: Audit, part: Part, distance: Callable[[Tensor, Tensor], Tensor]) -> Result:
    """Mean distance of U_i and O_i, the i-th by seed of either side: pairs that share no model, hence independent of one another."""
    missing = unfit(metric, audit, part)
    if missing:
        return missing
    u, o, p = (side.log_prob for side in sides(audit, part))
    pairs = min(len(u), len(o))
    each = distance(u[:pairs], o[:pairs])
    of_pair, per_example = each.mean(1), tuple(each.mean(0).tolist())
    same = sorted(audit.unlearned.models)[:pairs] == sorted(audit.oracles.models)[:pairs]
    notes: tuple[str, ...] = () if same else ("no shared seeds: models are paired in the order of their seeds",)
    if len(u) != len(o):
        notes += (f"{pairs} pairs of {len(u)} unlearned models and {len(o)} oracles",)
    rank = torch.tensor(audit.unlearned.models).argsort().argsort()
    per_model = tuple(of_pair[rank].tolist()) if pairs == len(u) else None
    found = calibrated(lambda x, y: float(distance(x, y).mean()), u, o, p, audit.seed)
    return found.result(metric, audit, float(of_pair.mean()), each.shape[1], ci=t_interval(of_pair), per_example=per_example, per_model=per_model, notes=notes)


@spec("metric", "actdist.l2", paper="arXiv:1911.04933")
class ActivationDistance:
    """Straight-line distance between the probabilities of an unlearned model and of an oracle; two oracles differ too.

    Mean ‖p_U − p_O‖₂ over images and pairs (after Golatkar et al.; metrics §6.3); from 0 to √2. Pairs U_i, O_i go by the order of the
    models' seeds. Reads logits [models, examples, classes].

    Differs from the published code: some take `actdist.l1`, some the activations of every layer or the distance to the original.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "the distance of two oracles (the floor), never 0"
    caution: ClassVar[str] = "where models are sure, large changes of the margin hardly move probabilities; and it does not say in which direction they moved"
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"actdist.l2.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        return _of_pairs(self, audit, self.part, l2)


@spec("metric", "actdist.l1", paper="arXiv:2302.09880")
class ActivationDistanceL1:
    """Summed absolute difference between the probabilities of an unlearned model and of an oracle; two oracles differ too.

    Mean Σ_c |p_U(c) − p_O(c)| over images and pairs, as in the notebooks of SCRUB (metrics §6.3); from 0 to 2, twice the total variation.
    Pairs as in `actdist.l2`. Reads logits [models, examples, classes].
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "the distance of two oracles (the floor), never 0"
    caution: ClassVar[str] = "where models are sure, large changes of the margin hardly move probabilities; and it does not say in which direction they moved"
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"actdist.l1.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        return _of_pairs(self, audit, self.part, l1)


@spec("metric", "js", paper="arXiv:2205.08096")
class JensenShannon:
    """How far the probabilities of an unlearned model and of an oracle diverge, in nats; two oracles diverge too.

    JS = KL(p ‖ m)/2 + KL(q ‖ m)/2, m = (p + q)/2, mean over images and pairs (Chundawat et al.; metrics §6.3); from 0 to ln 2 = .6931.
    ``bits``: the same over ln 2, from 0 to 1. Pairs as in `actdist.l2`. Reads logits [models, examples, classes].

    Differs from the published code: a widely copied one computes KL(m ‖ p), takes the mean over classes too, and logarithms of
    probabilities, which are infinite on one-hot rows.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 6
    ideal: ClassVar[str] = "the divergence of two oracles (the floor), never 0"
    caution: ClassVar[str] = "never above .69, so that it tells apart poorly what is far; and it does not say in which direction models moved"
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"js.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        found = _of_pairs(self, audit, self.part, jensen_shannon)
        return found if found.value is None else replace(found, extra={**found.extra, "bits": found.value / math.log(2)})


@spec("metric", "zrf", paper="arXiv:2205.08096")
class ZeroRetrainForgetting:
    """How much like nets that learned nothing an unlearned model answers; oracles have learned something, so 1 is no aim.

    ZRF = 1 − mean JS(U, untrained net) over images and at least 5 fresh nets, the same for every model, per model, then the mean
    (Chundawat et al.; metrics §6.3); JS in nats, so that it lies between 1 − ln 2 and 1. ``bits``: with JS in bits, from 0 to 1.
    Reads logits [models, examples, classes].

    Differs from the published code: the mean of several nets instead of one; a port takes the cosine of logits instead.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"untrained"})
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "what the oracles score, not 1"
    caution: ClassVar[str] = "do not rank by it: answering at random scores highest, and no oracle does so; it grows with unsureness, whatever its reason"
    part: Annotated[Part, Setting("which images")] = "forget"

    @property
    def key(self) -> str:
        return f"zrf.{self.part}"

    def __call__(self, audit: Audit) -> Result:
        missing = unfit(self, audit, self.part)
        if missing:
            return missing
        assert audit.untrained is not None
        nets = audit.untrained.of(self.part).log_prob
        if len(nets) < FRESH:
            return not_computed(self.key, self.better, f"{len(nets)} untrained nets, needs {FRESH}", audit)

        # one net at a time: all at once would hold models × nets × examples × classes numbers
        sides = [outputs.of(self.part).log_prob for outputs in (audit.unlearned, audit.oracles, audit.originals)]
        like = [1 - torch.stack([jensen_shannon(side, net).mean(-1) for net in nets]) for side in sides]

        def by_these(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            u, o, p = (side[rows].mean(0) for side in like)
            return u, o, p

        each, standing, ci = beside_others(by_these, len(nets), audit.parents)
        few = () if ci is not None and len(each) >= MEANINGFUL else (f"no interval: N={len(each)}, needs {MEANINGFUL}",)
        n, per_model = len(audit.unlearned.of(self.part).labels), tuple(each.tolist())
        found = standing.result(self, audit, float(each.mean()), n, ci=None if few else ci, per_model=per_model, notes=few)
        assert found.value is not None
        return replace(found, extra={**found.extra, "bits": 1 - (1 - found.value) / math.log(2), "untrained": float(len(nets))})
