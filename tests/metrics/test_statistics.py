"""Intervals, ranks and anchors against hand values, scipy and plain loops."""

import itertools
import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from simulated import draws, study

from unlearnlab.metrics.statistics import (
    beside,
    beside_others,
    bootstrap_models,
    calibrated,
    clopper_pearson,
    clopper_pearson_upper,
    halves,
    holm,
    in_order,
    jackknife,
    ks_distance,
    rank_auc,
    rank_auc_rows,
    relabellings,
    sides,
    t_interval,
    t_of,
    welch_interval,
    welch_lower,
)


def test_t_interval_by_hand() -> None:
    ci = t_interval([0.90, 0.92, 0.94])
    assert ci is not None
    assert (ci.lo, ci.hi) == pytest.approx((0.92 - 0.0497, 0.92 + 0.0497), abs=5e-5)
    assert t_interval([0.9]) is None
    assert [t_of(0, 1, n - 1).hi for n in (3, 5, 10)] == pytest.approx([4.303, 2.776, 2.262], abs=5e-4)


def test_welch_is_scipys() -> None:
    a, b = draws(7) + 1, 3 * draws(12, seed=1)
    scipys = scipy.stats.ttest_ind(a.numpy(), b.numpy(), equal_var=False)
    two_sided = welch_interval(a, b)
    assert two_sided is not None
    assert (two_sided.lo, two_sided.hi) == pytest.approx(tuple(scipys.confidence_interval(0.95)))
    one_sided = scipy.stats.ttest_ind(a.numpy(), b.numpy(), equal_var=False, alternative="greater").confidence_interval(0.99)
    assert welch_lower(a, b, 0.01) == pytest.approx(one_sided.low)
    assert welch_lower([0.5, 0.5], [0.25, 0.25], 0.05) == 0.25
    assert welch_lower([0.5], [0.25, 0.25], 0.05) == -math.inf
    assert welch_interval([0.5], [0.25, 0.25]) is None


def test_clopper_pearson_table() -> None:
    for (k, n), (lo, hi) in {(0, 20): (0, 0.1684), (5, 20): (0.0866, 0.4910), (0, 80): (0, 0.0451), (0, 512): (0, 0.00718), (20, 20): (0.8316, 1)}.items():
        ci = clopper_pearson(k, n)
        assert (ci.lo, ci.hi) == pytest.approx((lo, hi), abs=5e-5)
    assert clopper_pearson_upper(20, 0.975).tolist() == pytest.approx([clopper_pearson(k, 20).hi for k in range(21)])


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert holm([0.5, 0.6, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


def test_rank_auc_counts_ties_half() -> None:
    assert rank_auc(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0])) == 0.875
    assert rank_auc(torch.tensor([3.0]), torch.tensor([])) is None
    members, others = draws(4, 9).round(decimals=1), draws(4, 13, seed=1).round(decimals=1)
    naive = [sum((a > b) + 0.5 * (a == b) for a, b in itertools.product(x.tolist(), y.tolist())) / (9 * 13) for x, y in zip(members, others, strict=True)]
    assert rank_auc_rows(members, others).tolist() == pytest.approx(naive)


def test_ks_is_scipys() -> None:
    a, b = draws(3, 9).round(decimals=1), draws(3, 14, seed=1).round(decimals=1)
    assert ks_distance(a, b).tolist() == pytest.approx([scipy.stats.ks_2samp(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)])


def test_draws_of_models() -> None:
    for a, b in halves(9, 50, 0):
        assert len({*a.tolist(), *b.tolist()}) == 8
    assert len({tuple(sorted(a.tolist())) for a, _ in halves(9, 50, 0)}) > 20
    assert torch.equal(halves(9, 5, 0), halves(9, 5, 0))
    assert not torch.equal(halves(9, 5, 0), halves(9, 5, 1))
    labels = relabellings(3, 5, 200, 0)
    assert labels.sum(1).tolist() == [3] * 200
    assert len({tuple(row) for row in labels.tolist()}) > 45  # of 56
    weights = bootstrap_models(6, 100, 0)
    assert weights.sum(1).tolist() == pytest.approx([1.0] * 100)
    assert (weights * 6).unique().tolist() == pytest.approx(sorted(set((weights * 6).round().flatten().tolist())))


def test_jackknife_of_a_difference_of_means_is_the_paired_t_interval() -> None:
    u, o = draws(8), draws(8, seed=1)
    twice = jackknife(lambda i, j: torch.stack([u[i].mean() - o[j].mean(), u[i].mean()]), 8, 8)
    for ci, wanted in zip(twice, (t_interval(u - o), t_interval(u)), strict=True):
        assert wanted is not None
        assert (ci.lo, ci.hi) == pytest.approx((wanted.lo, wanted.hi))


def test_models_go_by_their_seeds_and_originals_by_their_children() -> None:
    audit = study(6)
    shuffled = audit.unlearned.rows([3, 1, 5, 0, 2, 4])
    assert torch.equal(in_order(shuffled).logits, audit.unlearned.logits)
    apart = replace(audit, unlearned=shuffled, parents=torch.tensor([5, 2, 0, 1, 3, 4]))
    u, _, p = sides(apart, "forget")
    assert u.models == (0, 1, 2, 3, 4, 5)
    assert p.models == (1, 2, 3, 5, 4, 0)
    assert sides(replace(apart, parents=None), "forget")[2].models == u.models


def distance(u: torch.Tensor, o: torch.Tensor) -> float:
    return float((u.mean(0) - o.mean(0)).abs().mean())


def test_calibration_halves_n_oracles_and_spares_2n() -> None:
    p, u, o = draws(20, 5) + 3, draws(20, 5, seed=1) + 1, draws(40, 5, seed=2)
    sizes = []
    found = calibrated(lambda a, b: sizes.append((len(a), len(b))) or distance(a, b), u, o[:20], p, 0)
    assert set(sizes) == {(10, 10)}
    assert found.floor is not None
    assert "at N/2 = 10 models a side" in found.floor.note
    assert found.floor.splits >= 10
    assert found.rescaled == pytest.approx(1 / 3, abs=0.15)
    sizes.clear()
    whole = calibrated(lambda a, b: sizes.append((len(a), len(b))) or distance(a, b), u, o, p, 0)
    assert set(sizes) == {(20, 20)}
    assert whole.floor is not None
    assert whole.floor.mean < found.floor.mean


def test_originals_stand_at_one_and_no_gap_is_no_ratio() -> None:
    p, o = draws(20, 5) + 3, draws(20, 5, seed=2)
    found = calibrated(distance, p, o, p, 0)
    assert found.rescaled == 1.0
    none = calibrated(distance, draws(20, 5, seed=3), o, draws(20, 5, seed=4), 0)
    assert none.rescaled is None
    assert any("not resolvable" in note for note in none.notes)
    assert calibrated(distance, p, o[:3], p, 0).floor is None
    assert calibrated(distance, p, o, p[:1], 0).ceiling is None
    own = beside(p[:, 0], o[:, 0], p[:, 0], torch.arange(20))
    assert (own.rescaled, own.rescaled_ci and own.rescaled_ci.hi) == (1.0, 1.0)
    assert beside(o[:, 1], o[:, 0], o[:, 0] + 1e-9).rescaled is None


def test_intervals_of_the_ratio_cover_a_perfect_unlearner() -> None:
    """Share of 200 null studies whose interval covers 0."""
    covered = {"calibrated": 0, "beside": 0}
    for seed in range(200):
        p, u, o = draws(3, 16, 8, seed=seed)
        ratio = calibrated(distance, u, o, p + 3, seed).rescaled_ci
        mean = beside(u.mean(1), o.mean(1), p.mean(1) + 3, torch.arange(16)).rescaled_ci
        for name, ci in (("calibrated", ratio), ("beside", mean)):
            assert ci is not None
            covered[name] += ci.lo <= 0 <= ci.hi
    assert all(count >= 0.92 * 200 for count in covered.values()), covered


def test_other_models_that_all_scores_share_widen_the_interval() -> None:
    """Scores are a model's own number plus the mean of the others': both variances add up."""
    own, others = draws(12), draws(8, seed=1)

    def values(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shared = others[rows].mean()
        return own + shared, own.flip(0) + shared, own + 5 + shared

    u, found, ci = beside_others(values, 8)
    assert torch.equal(u, own + others.mean())
    # with as many groups as others, the jackknife of a mean gives var/8
    parts = float(own.var()) / 12, float(others.var()) / 8
    df = sum(parts) ** 2 / (parts[0] ** 2 / 11 + parts[1] ** 2 / 7)
    wanted = t_of(float(u.mean()), math.sqrt(sum(parts)), df)
    assert ci is not None
    assert (ci.lo, ci.hi) == pytest.approx((wanted.lo, wanted.hi))
    # what all sides share falls out of the ratio
    alone = beside(*values(torch.arange(8))).rescaled_ci
    assert alone is not None
    assert found.rescaled_ci is not None
    assert (found.rescaled_ci.lo, found.rescaled_ci.hi) == pytest.approx((alone.lo, alone.hi), rel=1e-6)


def test_other_models_too_few_to_leave_out_are_taken_as_they_are() -> None:
    def values(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        return (draws(12), draws(12, seed=1), draws(12, seed=2) + 5) if len(rows) == others else None

    for others in (3, 40):
        u, found, ci = beside_others(values, others)
        assert ci == t_interval(u)
        assert f"the interval takes the {others} other models as they are" in found.notes


def test_the_interval_holds_a_mean_read_off_with_other_models() -> None:
    """Student's interval over models alone holds it in half of the studies."""
    held = [0, 0]
    for seed in range(200):
        own, others = draws(3, 40, seed=seed), draws(24, seed=1_000 + seed)

        def values(rows: torch.Tensor, own: torch.Tensor = own, others: torch.Tensor = others) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return own[0] + others[rows].mean(), own[1] + others[rows].mean(), own[2] + 5

        u, _, ci = beside_others(values, 24)
        for which, one in enumerate((ci, t_interval(u))):
            assert one is not None
            held[which] += one.lo <= 0 <= one.hi
    assert held[0] >= 0.92 * 200 > 180 > held[1]
