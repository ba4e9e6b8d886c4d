"""Spearman's rank correlation: against scipy, by hand, and its interval against what it promises."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr

from unlearnlab.metrics.statistics import spearman
from unlearnlab.seeds import generator

NAN = math.nan


def drawn(n: int, *counters: int, correlation: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    x, noise = torch.randn(2, n, generator=generator(3, "test.spearman", *counters), dtype=torch.float64)
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def test_by_hand() -> None:
    # ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 (1 + 1 + 1 + 1)/(5 · 24)
    assert spearman(torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([0.2, 0.1, 8, 7, 9])).rho == pytest.approx(0.8)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_is_scipys_with_and_without_ties(levels: int) -> None:
    a, b = ((x * levels / 4).round() for x in drawn(300, levels))
    assert spearman(a, b).rho == pytest.approx(float(spearmanr(a, b).statistic), abs=1e-12)


def test_the_order_of_examples_and_rising_transformations_do_not_count_and_a_falling_one_turns_the_sign() -> None:
    a, b = drawn(80)
    found, order = spearman(a, b), torch.randperm(80, generator=generator(0, "test.order"))
    assert spearman(a[order], b[order]).rho == pytest.approx(found.rho)
    assert spearman(a.exp(), b**3).rho == pytest.approx(found.rho)
    turned = spearman(a, -b)
    assert turned.rho == pytest.approx(-found.rho)
    assert found.ci is not None
    assert turned.ci is not None
    assert (turned.ci.lo, turned.ci.hi) == pytest.approx((-found.ci.hi, -found.ci.lo))
    assert spearman(b, a) == found


def test_pairs_with_a_nan_are_left_out_and_counted() -> None:
    a, b = drawn(40)
    with_gaps_a, with_gaps_b = a.clone(), b.clone()
    with_gaps_a[[3, 5]], with_gaps_b[[5, 7]] = NAN, NAN
    kept = [i for i in range(40) if i not in (3, 5, 7)]
    found, expected = spearman(with_gaps_a, with_gaps_b), spearman(a[kept], b[kept])
    assert (found.rho, found.ci, found.n, found.dropped) == (expected.rho, expected.ci, 37, 3)


def test_the_interval_by_hand() -> None:
    a, b = drawn(103)
    found = spearman(a, b)
    assert found.rho is not None
    assert found.ci is not None
    half = 1.959963985 * math.sqrt((1 + found.rho**2 / 2) / 100)
    assert math.atanh(found.ci.hi) - math.atanh(found.rho) == pytest.approx(half)
    assert math.atanh(found.rho) - math.atanh(found.ci.lo) == pytest.approx(half)
    assert found.ci.level == 0.95


@pytest.mark.parametrize(("n", "correlation"), [(25, 0.0), (60, 0.5), (200, -0.8)])
def test_the_interval_covers_as_often_as_it_says(n: int, correlation: float) -> None:
    true = 6 / math.pi * math.asin(correlation / 2)  # Spearman's of two normal variables
    found = [spearman(*drawn(n, n, at, correlation=correlation)).ci for at in range(1500)]
    share = sum(ci.lo <= true <= ci.hi for ci in found if ci is not None) / 1500
    assert 0.935 <= share <= 0.97  # its standard error is 0.006


@pytest.mark.parametrize(
    ("a", "b", "missing"),
    [
        ([1.0, 1, 1, 1], [1.0, 2, 3, 4], "not computed: one is the same for all 4 examples"),
        ([1.0, 1, 1], [2.0, 2, 2], "not computed: both are the same for all 3 examples"),
        ([1.0, NAN, 2, 3], [1.0, 2, 3, NAN], "not computed: 2 pair(s) of numbers, needs 3"),
        ([], [], "not computed: 0 pair(s) of numbers, needs 3"),
    ],
)
def test_what_cannot_be_computed_says_why(a: list[float], b: list[float], missing: str) -> None:
    found = spearman(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    assert (found.rho, found.ci, found.missing) == (None, None, missing)


def test_few_pairs_and_perfect_agreement_have_no_interval() -> None:
    few, perfect = spearman(*drawn(9)), spearman(torch.arange(20.0), torch.arange(20.0))
    assert few.rho is not None
    assert (few.ci, few.note) == (None, "no interval: n = 9, needs 10")
    assert (perfect.rho, perfect.ci, perfect.note) == (pytest.approx(1), None, "no interval: the orders agree to the last example")
