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
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "well below 1; says nothing about forgetting"
    caution: ClassVar[str] = "on a shared machine times wander: compare example passes too, which do not"
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


def _measured(metric: Metric, audit: Audit, name: str) -> Result:
    """The median over models of a measured fact, with its range."""
    values = fact_of(metric, audit, name)
    if isinstance(values, Result):
        return values
    extra = {"least": float(values.min()), "most": float(values.max())}
    return Calibration().result(metric, audit, float(values.quantile(0.5)), 0, extra=extra, per_model=tuple(values.tolist()))


@spec("metric", "cost.seconds", paper="arXiv:2304.04934")
class CostSeconds:
    """Seconds that unlearning took, a model, with whatever it had to compute first.

    Processor time on a CPU, else wall-clock time with the device synchronised; without loading, saving and evaluation; median over models
    (metrics §2.3). Models of a chunk are made together and share its time alike.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "far below the time to retrain; says nothing about forgetting"
    caution: ClassVar[str] = "of one machine and its load: compare within a study, or read cost.example_passes"
    key: ClassVar[str] = "cost.seconds"

    def __call__(self, audit: Audit) -> Result:
        return _measured(self, audit, "seconds")


@spec("metric", "cost.speedup", paper="arXiv:2410.01276")
class CostSpeedup:
    """How many times faster than retraining; 20 is a twentieth of the time.

    speedup = median t_retrain / median t_unlearn, the inverse of ``cost.fraction`` (metrics §2.3).
    """

    better: ClassVar[Better] = "higher"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "well above 1; says nothing about forgetting"
    caution: ClassVar[str] = "on a shared machine times wander: compare example passes too, which do not"
    key: ClassVar[str] = "cost.speedup"

    def __call__(self, audit: Audit) -> Result:
        found = _over_retraining(self, audit, "seconds", "retrain_seconds")
        if isinstance(found, Result):
            return found
        seconds, whole = found
        middle = float(seconds.quantile(0.5))
        if not middle > 0:
            return not_computed(self.key, self.better, "no time was measured", audit)
        per_model = tuple((whole / seconds).tolist()) if bool((seconds > 0).all()) else None
        return Calibration().result(self, audit, whole / middle, 0, per_model=per_model)


@spec("metric", "cost.peak_bytes")
class CostPeakBytes:
    """Most memory that unlearning held at a time, in bytes, for the chunk of models that were made together.

    The accelerator's peak, or on a CPU what the process grew by; median over models (metrics §2.3).
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "no more than training takes; says nothing about forgetting"
    caution: ClassVar[str] = "on a CPU small nets hide in what the process keeps at hand: believe megabytes, not kilobytes"
    key: ClassVar[str] = "cost.peak_bytes"

    def __call__(self, audit: Audit) -> Result:
        return _measured(self, audit, "peak_bytes")


@spec("metric", "cost.example_passes", paper="arXiv:2304.04934")
class ExamplePasses:
    """Work done, in examples passed through the net: the same on any machine.

    forwards + 2 · backwards, summed over examples (metrics §2.3); the median over models. ``share``: of retraining's.
    """

    better: ClassVar[Better] = "lower"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "as few as possible; says nothing about forgetting"
    caution: ClassVar[str] = "passes of nets of different size, or of batches too small to fill the machine, do not cost the same time"
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
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "more than 0; says nothing about forgetting"
    caution: ClassVar[str] = "weights may change much while the model behaves as before, and the other way round"
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
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "nobody knows; the oracles' own distance stands beside"
    caution: ClassVar[str] = "weights may move far while the model behaves as before, and the other way round"
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
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "0"
    caution: ClassVar[str] = "a check of the implementation, not of forgetting"
    key: ClassVar[str] = "delta.outside_mask"

    def __call__(self, audit: Audit) -> Result:
        return _weights(self, audit, "outside_mask", perfect=0.0)
