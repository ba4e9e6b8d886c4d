"""Can one number, the loss, tell the forget images from unseen images drawn in the same way?"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from unlearnlab.contract import Audit, Better, Metric, Result, not_computed
from unlearnlab.metrics.statistics import beside, ks_distance, rank_auc_rows, t_interval, unfit
from unlearnlab.outputs import Outputs
from unlearnlab.seeds import generator
from unlearnlab.spec import spec

LEAST = 10  # images a side
SPLITS, HELD_OUT = 10, 0.1
NEWTON_STEPS = 25


def _losses(outputs: Outputs) -> tuple[Float64[Tensor, "models k"], Float64[Tensor, "models r"]]:
    return outputs.of("forget").loss, outputs.of("control").loss


def _auc(outputs: Outputs) -> Float64[Tensor, " models"]:
    forget, control = _losses(outputs)
    return rank_auc_rows(-forget, -control)


def _too_few(metric: Metric, audit: Audit) -> Result | None:
    missing = unfit(metric, audit, "forget", "control")
    sides = {part: len(audit.unlearned.of(part).labels) for part in ("forget", "control")}
    part = min(sides, key=lambda name: sides[name])
    return missing or (not_computed(metric.key, metric.better, f"{sides[part]} {part} examples, needs {LEAST}", audit) if sides[part] < LEAST else None)


@spec("metric", "mia_lr.auc", paper="arXiv:2302.09880")
class LossAuc:
    """Chance that a forget image has a lower loss than a control image: the loss attack; perfect is the oracles' chance, near .5.

    Rank AUC of −loss, forget (members) against control (non-members), ties counting half, one per model (metrics §3.3). No
    fit is involved, so it is the number to trust. ``ks``: largest gap between the two loss distributions, which also sees
    differences that the AUC averages out.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 7
    ideal: ClassVar[str] = "the oracles' chance, near .5"
    caution: ClassVar[str] = (
        "over-forgotten images have a high loss and look unseen or worse; it sees the average of the images, not the few that are remembered"
    )
    key: ClassVar[str] = "mia_lr.auc"

    def __call__(self, audit: Audit) -> Result:
        missing = _too_few(self, audit)
        if missing:
            return missing
        u, o, p = _auc(audit.unlearned), _auc(audit.oracles), _auc(audit.originals)
        forget, control = _losses(audit.unlearned)
        notes = (f"{forget.shape[1]} forget against {control.shape[1]} control images",)
        extra = {"ks": float(ks_distance(forget, control).mean())}
        return beside(u, o, p, audit.parents).result(
            self, audit, float(u.mean()), forget.shape[1], ci=t_interval(u), per_model=tuple(u.tolist()), notes=notes, extra=extra
        )


@spec("metric", "mia_lr.accuracy", paper="arXiv:2302.09880")
class LossAccuracy:
    """How often a logistic regression on the loss tells forget from control images; .5 is a coin, and both sides of it are bad.

    Equally many of each, 10 stratified shuffle splits with 10 % held out, mean accuracy (NeurIPS'23 starting kit;
    metrics §3.3). ``distance``: |accuracy − ½|; ``ks`` as in ``mia_lr.auc``.

    Differs from the published code: losses are standardised, and control images replace plain test images. The regression is
    scikit-learn's (ridge penalty ½ on the slope), solved by Newton's method for all models and splits at once.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 3
    trust: ClassVar[int] = 7
    ideal: ClassVar[str] = "the oracles' accuracy, near .5"
    caution: ClassVar[str] = "with few images its luck is large (sd about .05 at 31); pushing the loss too high raises it as remembering does"
    key: ClassVar[str] = "mia_lr.accuracy"

    def __call__(self, audit: Audit) -> Result:
        missing = _too_few(self, audit)
        if missing:
            return missing
        picks = [_by_id(audit.unlearned.of(part), audit.seed, part) for part in ("forget", "control")]
        k = min(map(len, picks))
        forget_rows, control_rows = (pick[:k] for pick in picks)
        test = max(1, round(k * HELD_OUT))
        shuffles = torch.rand(2, SPLITS, k, generator=generator(audit.seed, "metrics.mia_lr.splits")).argsort(-1)

        def accuracy(outputs: Outputs) -> Tensor:
            if not len(outputs):  # no originals were given
                return torch.zeros(0, dtype=torch.float64)
            forget, control = _losses(outputs)
            x = torch.stack([forget[:, forget_rows][:, shuffles[0]], control[:, control_rows][:, shuffles[1]]], 2)  # models, splits, sides, k
            slope, intercept = logistic(x[..., test:].flatten(2), torch.tensor([1.0, 0.0]).double().repeat_interleave(k - test))
            called = slope[..., None, None] * x[..., :test] + intercept[..., None, None] > 0
            return (called[..., 0, :].double().mean((1, 2)) + (~called[..., 1, :]).double().mean((1, 2))) / 2

        u, o, p = accuracy(audit.unlearned), accuracy(audit.oracles), accuracy(audit.originals)
        value = float(u.mean())
        extra = {"distance": abs(value - 0.5), "ks": float(ks_distance(*_losses(audit.unlearned)).mean())}
        notes = (f"{k} forget and {k} control images",)
        return beside(u, o, p, audit.parents).result(self, audit, value, k, ci=t_interval(u), per_model=tuple(u.tolist()), notes=notes, extra=extra)


def logistic(x: Float64[Tensor, "... n"], y: Float64[Tensor, " n"]) -> tuple[Float64[Tensor, ...], Float64[Tensor, ...]]:
    """Slope and intercept of logistic regressions of y on one standardised variable, a batch at once.

    Minimises Σ log-loss + ½ slope², as scikit-learn's default does. A constant variable gets slope 0.
    """
    mean, sd = x.mean(-1, keepdim=True), x.std(-1, correction=0, keepdim=True)
    # losses that differ in the last bit are equal: standardising would blow rounding up into a feature
    live = sd > 1e-12 * x.abs().amax(-1, keepdim=True)
    z = torch.where(live, (x - mean) / sd.where(live, 1.0), 0.0)
    slope, intercept = torch.zeros_like(mean), torch.zeros_like(mean)
    for _ in range(NEWTON_STEPS):
        chance = torch.sigmoid(slope * z + intercept)
        residual, weight = chance - y, (chance * (1 - chance)).clamp_min(1e-9)
        ga, gb = (residual * z).sum(-1, keepdim=True) + slope, residual.sum(-1, keepdim=True)
        aa, ab, bb = (weight * z * z).sum(-1, keepdim=True) + 1, (weight * z).sum(-1, keepdim=True), weight.sum(-1, keepdim=True)
        det = aa * bb - ab * ab
        slope, intercept = slope - (bb * ga - ab * gb) / det, intercept - (aa * gb - ab * ga) / det
    slope = slope / sd.where(live, 1.0)
    return slope[..., 0], (intercept - slope * mean)[..., 0]


def _by_id(outputs: Outputs, seed: int, part: str) -> Int64[Tensor, " examples"]:
    """Positions in a random order that follows the ids, whatever order the examples come in."""
    order = outputs.ids.argsort()
    return order[torch.randperm(len(order), generator=generator(seed, f"metrics.mia_lr.{part}"))]
