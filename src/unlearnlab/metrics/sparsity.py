"""How many weights are exactly zero."""

from __future__ import annotations

from typing import ClassVar

from unlearnlab.contract import Audit, Better, Metric, Result
from unlearnlab.metrics.cost import fact_of
from unlearnlab.metrics.statistics import Calibration
from unlearnlab.spec import spec


def _share(metric: Metric, audit: Audit, name: str) -> Result:
    values = fact_of(metric, audit, name)
    return values if isinstance(values, Result) else Calibration().result(metric, audit, float(values.mean()), 0, per_model=tuple(values.tolist()))


@spec("metric", "sparsity.prunable", paper="arXiv:2304.04934")
class SparsityPrunable:
    """Share of the prunable weights that are exactly 0: 0 in a dense model, whatever pruning removed in a sparse one.

    #{θ = 0} / total over the weights of convolutions (of linear layers, in a net without any); mean over models (protocols §10).
    A sub-gradient penalty makes weights small, never 0.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "what the originals and oracles have; says nothing about forgetting"
    caution: ClassVar[str] = "a method that trains without the mask fills the zeros again"
    key: ClassVar[str] = "sparsity.prunable"

    def __call__(self, audit: Audit) -> Result:
        return _share(self, audit, "sparsity_prunable")


@spec("metric", "sparsity.all", paper="arXiv:2304.04934")
class SparsityAll:
    """Share of all weights, biases and normalisation included, that are exactly 0.

    #{θ = 0} / total; mean over models (protocols §10). A bias that is 0 counts.
    """

    better: ClassVar[Better] = "match_oracle"
    minimum: ClassVar[int] = 1
    trust: ClassVar[int] = 8
    ideal: ClassVar[str] = "what the originals and oracles have; says nothing about forgetting"
    caution: ClassVar[str] = "biases and normalisation are rarely pruned, so it stays below the sparsity asked for"
    key: ClassVar[str] = "sparsity.all"

    def __call__(self, audit: Audit) -> Result:
        return _share(self, audit, "sparsity_all")
