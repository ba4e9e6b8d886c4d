"""What unlearning costs, and how far it moved the weights: measured facts, not logits."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from unlearnlab.contract import Audit, Better, Interval, Metric, Result, not_computed
from unlearnlab.metrics.statistics import Calibration, t_interval, unfit
from unlearnlab.spec import spec


def fact_of(metric: Metric, audit: Audit, name: str) -> Tensor | Result:
    """A measured fact, one number per unlearned model, or why there is none."""
    missing = unfit(metric, audit, facts=(name,))
    if missing:
        return missing
    values = torch.as_tensor(audit.facts[name], dtype=torch.float64).reshape(-1)
    return values if bool(torch.isfinite(values).all()) else not_computed(metric.key, metric.better, f"'{name}' holds a NaN or infinite number", audit)


def _over_retraining(metric: Metric, audit: Audit, name: str, retrain: str) -> tuple[Tensor, float] | Result:
    ours, theirs = fact_of(metric, audit, name), fact_of(metric, audit, retrain)
    for fact in (ours, theirs):
        if isinstance(fact, Result):
            return fact
    assert isinstance(ours, Tensor)
    assert isinstance(theirs, Tensor)
    whole = float(theirs.quantile(0.5))
    return (ours, whole) if whole > 0 else not_computed(metric.key, metric.better, f"'{retrain}' is {whole:g}; expected more than 0", audit)


@spec("metric", "cost.fraction", paper="arXiv:2304.04934")
class CostFraction:
    """Time to unlearn as a share of the time to retrain; .05 is twenty times faster.

    fraction = median t_unlearn / median t_retrain over models, of ``seconds`` and ``retrain_seconds`` (metrics §2.3). The
    papers' "RTE" is minutes in one, a speedup in the next: the bare key is not used here.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 1
    key: ClassVar[str] = "cost.fraction"

    def __call__(self, audit: Audit) -> Result:
        found = _over_retraining(self, audit, "seconds", "retrain_seconds")
        if isinstance(found, Result):
            return found
        seconds, whole = found
        middle = float(seconds.quantile(0.5))
        extra = {"seconds": middle, "least": float(seconds.min()), "most": float(seconds.max()), "retrain_seconds": whole}
        if middle > 0:
            extra["speedup"] = whole / middle
        return Calibration().result(self, audit, middle / whole, 0, extra=extra, per_model=tuple((seconds / whole).tolist()))


@spec("metric", "cost.example_passes", paper="arXiv:2304.04934")
class ExamplePasses:
    """Work done, in examples passed through the net: the same on any machine.

    forwards + 2 · backwards, summed over examples (metrics §2.3); the median over models. ``share``: of retraining's.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 1
    key: ClassVar[str] = "cost.example_passes"

    def __call__(self, audit: Audit) -> Result:
        passes = fact_of(self, audit, "example_passes")
        if isinstance(passes, Result):
            return passes
        middle = float(passes.quantile(0.5))
        found = _over_retraining(self, audit, "example_passes", "retrain_example_passes")
        if isinstance(found, Result):
            return Calibration().result(self, audit, middle, 0, notes=("retraining was not measured",), per_model=tuple(passes.tolist()))
        extra = {"share": middle / found[1], "retrain_example_passes": found[1]}
        return Calibration().result(self, audit, middle, 0, extra=extra, per_model=tuple(passes.tolist()))


def _weights(metric: Metric, audit: Audit, name: str, **more: float | None) -> Result:
    values = fact_of(metric, audit, name)
    if isinstance(values, Result):
        return values
    ci: Interval | None = t_interval(values) if len(values) > 2 else None
    extra = {"least": float(values.min()), "most": float(values.max())}
    oracle = audit.facts.get(f"oracle_{name}")
    if oracle is not None and math.isfinite(float(torch.as_tensor(oracle, dtype=torch.float64).mean())):
        extra["oracle"] = float(torch.as_tensor(oracle, dtype=torch.float64).mean())
    return Calibration().result(metric, audit, float(values.mean()), 0, ci=ci, extra=extra, per_model=tuple(values.tolist()), **more)


@spec("metric", "delta.changed", paper="arXiv:1911.04933")
class Changed:
    """Share of the weights that differ at all from the original's; 0 means the method did nothing.

    #{θ_U ≠ θ_P} / total, bit for bit (metrics §2.4). A sanity check, never evidence of forgetting.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    key: ClassVar[str] = "delta.changed"

    def __call__(self, audit: Audit) -> Result:
        return _weights(self, audit, "changed")


@spec("metric", "delta.rel_l2", paper="arXiv:1911.04933")
class RelativeChange:
    """How far the weights moved, relative to their size; says nothing about forgetting.

    ‖θ_U − θ_P‖ / ‖θ_P‖ (metrics §2.4), beside the oracles' own distance as ``oracle`` where it was measured.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    key: ClassVar[str] = "delta.rel_l2"

    def __call__(self, audit: Audit) -> Result:
        return _weights(self, audit, "rel_l2")


@spec("metric", "delta.outside_mask", paper="arXiv:2310.12508")
class OutsideMask:
    """Change of the weights the method was not allowed to touch; anything but 0 is a bug.

    The number of weights outside the mask that differ from the original's, bit for bit; mean over models (metrics §2.4).
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 1
    key: ClassVar[str] = "delta.outside_mask"

    def __call__(self, audit: Audit) -> Result:
        return _weights(self, audit, "outside_mask", perfect=0.0)
