"""Cross-fitted ε: bounds by hand, the plain loop, behaviour under null and shift."""

import math
from dataclasses import replace

import pytest
import torch
from simulated import benchmark, draws, study

from unlearnlab.metrics.epsilon import EpsilonCrossfit, bound, called_unlearned, certified, curve, p_value, point, wrong
from unlearnlab.metrics.statistics import orders


def test_bounds_by_hand() -> None:
    fpr, fnr = torch.tensor([0.25, 0.1, 0.4, 0.5, 0.99]), torch.tensor([0.25, 0.4, 0.1, 0.5, 0.99])
    assert bound(fpr, fnr, 0.05).tolist() == pytest.approx([1.0296, 1.7047, 1.7047, 0, 0], abs=5e-5)


def test_the_most_that_can_be_certified() -> None:
    none = torch.zeros(1, dtype=torch.int64)
    wanted = {8: 0.53, 16: 1.35, 20: 1.60, 32: 2.10, 40: 2.34, 64: 2.82, 80: 3.05, 128: 3.53, 256: 4.23, 512: 4.93}
    for n, most in wanted.items():
        assert float(certified(none, none, n, n, 0.0, 0.05)) == pytest.approx(most, abs=6e-3)
        assert float(point(none, none, n, n, 0.0)) == pytest.approx(math.log(2 * n + 1))


@pytest.mark.parametrize(("n_u", "n_o"), [(16, 16), (19, 23)])
def test_fast_is_the_plain_loop(n_u: int, n_o: int) -> None:
    plain = benchmark()
    o, u = 2 * draws(n_o, 90) + 3, draws(n_u, 90, seed=1) + 2
    if n_u == n_o:
        assert plain.fast_epsilon(u, o).flatten().tolist() == pytest.approx(plain.plain_epsilon(u.numpy(), o.numpy()).flatten().tolist(), abs=1e-9)
    of_u, of_o = called_unlearned(u, o, 5)
    naive = []
    for i in range(n_u):
        fits = []
        for side in (u, o):
            train = side[torch.arange(len(side)) % 5 != i % 5]
            pool, free = train.var(0).mean(), len(train) - 1
            fits.append(torch.distributions.Normal(train.mean(0), ((train.var(0) * free + 10 * pool) / (free + 10)).sqrt()))
        naive.append(fits[0].log_prob(u[i]) > fits[1].log_prob(u[i]))
    assert torch.equal(of_u, torch.stack(naive))
    fp, fn = wrong(u, o, 5)
    assert torch.equal(fp, of_o.sum(0))
    assert torch.equal(fn, (~of_u).sum(0))


@pytest.mark.parametrize("n", [16, 32, 80])
def test_null_floor_is_near_zero_and_shifts_are_seen(n: int) -> None:
    o, u = draws(n, 600), draws(n, 600, seed=1)
    fp, fn = wrong(u, o, 5)
    assert float(point(fp, fn, n, n, 0.0).median()) <= 0.06
    assert float((certified(fp, fn, n, n, 0.0, 0.05) > 0).double().mean()) < 0.015
    fp, fn = wrong(u + 2, o, 5)
    assert float(point(fp, fn, n, n, 0.0).median()) == pytest.approx(1.667, abs=0.2)
    assert float((certified(fp, fn, n, n, 0.0, 0.05) > 0).double().mean()) > 0.8


def test_far_apart_and_constant_columns() -> None:
    o, u = draws(20, 3), draws(20, 3, seed=1)
    fp, fn = wrong(torch.cat([u + 60, o[:, :1] * 0], 1), torch.cat([o, o[:, :1] * 0], 1), 5)
    assert (fp + fn).tolist() == [0, 0, 0, 20]  # a column without any spread: every model of a fold is called the same
    assert point(fp, fn, 20, 20, 0.0).tolist() == pytest.approx([math.log(41)] * 3 + [0.0])
    fp, fn = wrong(torch.full_like(o, 0.3), o, 5)  # no spread on one side: its sd is a thousandth of the other's
    assert (fp.max() <= 1, fn.tolist()) == (True, [0, 0, 0])
    still = torch.zeros(20, 1, dtype=torch.float64)
    assert [count.tolist() for count in wrong(still + 1, still, 5)] == [[0], [0]]


def test_sides_swapped_give_the_same() -> None:
    audit = study(20)
    swapped = replace(audit, unlearned=audit.oracles, oracles=audit.unlearned)
    assert EpsilonCrossfit()(audit).value == pytest.approx(EpsilonCrossfit()(swapped).value)


def test_epsilon_of_a_study() -> None:
    audit = study(20, 0.6)
    found = EpsilonCrossfit()(audit)
    assert found.value is not None
    assert found.floor is not None
    assert found.ceiling is not None
    assert found.floor.mean < 0.1 < found.value < found.ceiling.mean + 0.5
    assert found.extra["median_delta05"] <= found.value
    assert found.extra["pooled_lo"] <= found.extra["pooled"] <= found.extra["pooled_hi"]
    assert 0 < found.extra["certified"] <= 1
    assert "at most 1.60 can be certified at N=20" in found.notes
    assert EpsilonCrossfit(delta=0.05)(audit).value == pytest.approx(found.extra["median_delta05"])
    assert EpsilonCrossfit(delta=0.05).key == "eps.crossfit_delta0.05.forget"
    strict = EpsilonCrossfit(alpha=0.001)(audit)
    assert strict.extra["certified"] < found.extra["certified"]
    far = replace(audit, unlearned=replace(audit.unlearned, logits=audit.unlearned.logits + 50 * torch.nn.functional.one_hot(audit.unlearned.labels, 4)))
    assert any(note.startswith("at its cap") for note in EpsilonCrossfit()(far).notes)
    assert EpsilonCrossfit()(study(4)).missing == "not computed: N=4, needs 16"


def test_curve_is_the_medians_at_every_delta() -> None:
    o, u, deltas = draws(20, 60), draws(20, 60, seed=1) + 2, [0.0, 0.01, 0.05, 0.2]
    found = curve(u, o, 5, deltas)
    fp, fn = wrong(u, o, 5)
    for k, delta in enumerate(deltas):
        assert float(found[0, k]) == float(point(fp, fn, 20, 20, delta).quantile(0.5))
        assert float(found[1, k]) == float(certified(fp, fn, 20, 20, delta, 0.05).quantile(0.5))
    assert (found.diff(dim=1) < 0).any()
    assert (found.diff(dim=1) <= 0).all()
    assert (found[1] < found[0]).all()
    assert curve(u, o, 5, []).shape == (2, 0)


def test_the_worst_images_stand_beside_the_worst_of_oracles() -> None:
    found = EpsilonCrossfit()(study(20, 0.0)).extra
    assert found["max_floor"] >= found["worst5_floor"] > 0.3  # oracles against oracles, while their median is near 0
    assert EpsilonCrossfit()(study(20, 0.9)).extra["worst5_at_floor_n"] > found["worst5_at_floor_n"]


def test_p_counts_relabellings_fitted_and_scored_anew() -> None:
    o, u = draws(10, 12), draws(9, 12, seed=1) + 0.4

    def right(x: torch.Tensor, y: torch.Tensor) -> float:
        of_x, of_y = called_unlearned(x, y, 5)
        return float(of_x.double().mean() + (~of_y).double().mean())

    both, seen = torch.cat([u, o]), right(u, o)
    shuffled = [both[order] for order in orders(19, 300, 7, "eps.crossfit")]
    hits = sum(right(one[:9], one[9:]) >= seen - 1e-12 for one in shuffled)
    assert 0 < hits < 300
    assert p_value(u, o, 5, 300, 7) == (1 + hits) / 301


def test_p_is_even_where_nothing_differs_small_where_something_does_and_absent_without_independent_originals() -> None:
    null = [p_value(draws(16, 30, seed=2 * at), draws(16, 30, seed=2 * at + 1), 5, 199, 0) for at in range(60)]
    assert 0.3 < sum(null) / 60 < 0.7
    assert 0 <= sum(p <= 0.05 for p in null) <= 8  # 3 on average
    audit = study(16, 0.5)
    assert EpsilonCrossfit()(audit).p == 1 / 2000
    assert (EpsilonCrossfit()(study(16, 0.0)).p or 0) > 0.01
    for parents in (None, torch.zeros(16, dtype=torch.int64)):
        assert EpsilonCrossfit()(replace(audit, parents=parents)).p is None
