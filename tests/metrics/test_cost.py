"""Costs and weight changes, read from measured facts."""

from dataclasses import replace

import pytest
import torch
from simulated import study

from unlearnlab.metrics.cost import Changed, CostFraction, CostPeakBytes, CostSeconds, CostSpeedup, ExamplePasses, OutsideMask, RelativeChange


def test_thirty_seconds_against_ten_minutes() -> None:
    audit = replace(study(3), facts={"seconds": torch.tensor([30.0, 10.0, 90.0]), "retrain_seconds": torch.tensor([600.0])})
    found = CostFraction()(audit)
    assert (found.value, found.extra["speedup"], found.extra["least"], found.extra["most"]) == (0.05, 20.0, 10.0, 90.0)
    assert found.per_model == pytest.approx((0.05, 1 / 60, 0.15))


def test_example_passes_stand_without_retraining() -> None:
    audit = replace(study(3), facts={"example_passes": torch.tensor([300, 300, 300])})
    assert ExamplePasses()(audit).value == 300
    assert ExamplePasses()(audit).notes == ("retraining was not measured",)
    both = replace(audit, facts={**audit.facts, "retrain_example_passes": torch.tensor([6000])})
    assert ExamplePasses()(both).extra["share"] == 0.05


@pytest.mark.parametrize(("metric", "fact"), [(CostFraction(), "seconds"), (ExamplePasses(), "example_passes"), (Changed(), "changed")])
def test_what_was_not_measured_is_not_computed(metric, fact) -> None:
    audit = study(3)
    absent = replace(audit, facts={name: value for name, value in audit.facts.items() if name != fact})
    assert metric(absent).missing == f"not computed: '{fact}' was not measured"
    broken = replace(audit, facts={**audit.facts, fact: torch.tensor([1.0, torch.nan, 1.0])})
    assert metric(broken).missing == f"not computed: '{fact}' holds a NaN or infinite number"


def test_nothing_to_compare_with_is_not_free() -> None:
    audit = study(3)
    assert CostFraction()(replace(audit, facts={**audit.facts, "retrain_seconds": torch.zeros(3)})).missing is not None


def test_weight_changes() -> None:
    audit = replace(study(3), facts={"changed": torch.full((3,), 1 / 3), "rel_l2": torch.tensor([0.2, 0.3, 0.4]), "outside_mask": torch.zeros(3)})
    assert Changed()(audit).value == pytest.approx(1 / 3)
    found = RelativeChange()(audit)
    assert found.value == pytest.approx(0.3)
    assert found.ci is not None
    assert found.ci.lo < 0.2
    assert "oracle" not in found.extra
    assert (OutsideMask()(audit).value, OutsideMask()(audit).perfect) == (0.0, 0.0)


def test_seconds_speedup_and_memory() -> None:
    facts = {"seconds": torch.tensor([20.0, 30.0, 40.0]), "retrain_seconds": torch.tensor([500.0, 600.0, 700.0]), "peak_bytes": torch.tensor([5.0, 5.0, 9.0])}
    audit = replace(study(3), facts=facts)
    assert (CostSeconds()(audit).value, CostSpeedup()(audit).value, CostPeakBytes()(audit).value) == (30.0, 20.0, 5.0)
    assert CostSpeedup()(audit).value == pytest.approx(1 / (CostFraction()(audit).value or 0))
    assert CostSpeedup()(audit).per_model == pytest.approx((30, 20, 15))
    nothing = CostSpeedup()(replace(audit, facts={**facts, "seconds": torch.zeros(3)}))
    assert nothing.missing == "not computed: no time was measured"
