"""Audits of somebody else's logits often lack the originals: every metric then has a value without a ceiling, or says plainly why not."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from simulated import study

from unlearnlab import spec
from unlearnlab.contract import Audit, Triggered

NAMES = [name for name in spec.names("metric") if not name.startswith(("cost.", "delta.", "sparsity."))]
MODELS = 20
PARENTS = {"unknown": None, "one": torch.zeros(MODELS, dtype=torch.int64), "own": torch.arange(MODELS)}


@cache
def audit() -> Audit:
    return study(MODELS)


def without(of: Audit, parents: torch.Tensor | None) -> Audit:
    seen = of.triggered
    triggered = None if seen is None else Triggered(seen.originals.rows([]), seen.oracles, seen.unlearned, seen.target)
    return replace(of, originals=of.originals.rows([]), parents=parents, triggered=triggered)


def numbers(found: Any) -> Iterator[float]:
    if isinstance(found, float):
        yield found
    elif isinstance(found, dict):
        yield from (number for value in found.values() for number in numbers(value))
    elif isinstance(found, list | tuple):
        yield from (number for value in found for number in numbers(value))


@pytest.mark.parametrize("whose", PARENTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_metric_does_without_originals(name: str, whose: str) -> None:
    found = spec.build("metric", name)(without(audit(), PARENTS[whose]))
    assert found.ceiling is None
    assert found.rescaled is None
    assert (found.value is None) == (found.missing is not None)
    assert (found.missing or "not computed: x").startswith("not computed: ")
    assert all(math.isfinite(number) for number in numbers(found.to_json()))
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", ["acc", "avg_gap", "disagree", "energy", "eps.crossfit", "klom.gauss", "klom.smooth", "loss", "mia_lr.auc", "tow"])
def test_value_and_floor_are_those_of_the_whole_audit(name: str) -> None:
    metric = spec.build("metric", name)
    whole, found = metric(audit()), metric(without(audit(), PARENTS["own"]))
    assert found.value == pytest.approx(whole.value, abs=1e-12)
    assert found.floor == whole.floor
    assert (found.ci is None) == (whole.ci is None)
    assert whole.rescaled is not None


def test_the_trace_says_what_it_lacks() -> None:
    assert spec.build("metric", "trace")(without(audit(), PARENTS["own"])).missing == "not computed: no originals were given"


def test_energy_says_that_it_has_no_ceiling() -> None:
    found = spec.build("metric", "energy")(without(audit(), None))
    assert found.notes == ("no ceiling: no originals",)
    assert found.ci is not None
    assert found.value is not None
    assert found.ci.lo < found.value < found.ci.hi
