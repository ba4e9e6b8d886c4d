"""KLoM: the table of exact null means, hand values, and the plain loop."""

import math
from dataclasses import replace

import pytest
import torch
from simulated import benchmark, draws, study

from unlearnlab.metrics.klom import KlomGauss, KlomHist, KlomSmooth, gauss, hist, null_mean, smooth, tied
from unlearnlab.metrics.statistics import extremes


@pytest.mark.parametrize(
    ("n", "null", "cap"),
    [(10, 0.508, 1.07), (16, 0.409, 1.53), (20, 0.355, 1.76), (32, 0.245, 2.27), (64, 0.131, 3.04), (80, 0.106, 3.29), (128, 0.068, 3.81)],
)
def test_exact_null_means_and_caps(n: int, null: float, cap: float) -> None:
    assert null_mean(n, n) == pytest.approx(null, abs=5e-4)
    assert float(smooth(draws(n, 1), draws(n, 1) + 100)) == pytest.approx(cap, abs=6e-3)


@pytest.mark.parametrize(("n_o", "n_u"), [(20, 20), (24, 20), (13, 29)])
def test_null_mean_is_what_simulation_finds(n_o: int, n_u: int) -> None:
    seen = smooth(draws(n_o, 20_000), draws(n_u, 20_000, seed=1))
    assert float(seen.mean()) == pytest.approx(null_mean(n_o, n_u), abs=4 * float(seen.std()) / math.sqrt(20_000))


@pytest.mark.parametrize("shape", [(20, 20, 7), (23, 31, 5)])
def test_fast_is_the_plain_loop(shape: tuple[int, int, int]) -> None:
    n_o, n_u, n = shape
    o, u = draws(n_o, n), draws(n_u, n, seed=1) + 0.5
    assert smooth(o, u).tolist() == pytest.approx(benchmark().plain_klom(u.numpy(), o.numpy()).tolist(), abs=1e-12)


def test_gauss_by_hand() -> None:
    unit = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) / math.sqrt(2)  # mean 0, variance 1 with ddof 1
    assert gauss(unit, 1 + 2 * unit)[:, 0].tolist() == pytest.approx([0.443147, 1 / 2 * (4 + 1 - 1) - math.log(2)], abs=1e-6)
    assert gauss(unit, 1 + unit)[:, 0].tolist() == pytest.approx([0.5, 0.5])
    assert gauss(unit, unit).tolist() == [[0.0], [0.0]]


def test_equal_constant_and_tied_columns() -> None:
    o = draws(20, 4)
    constant = torch.zeros(20, 4, dtype=torch.float64)
    assert smooth(constant, constant).tolist() == gauss(constant, constant)[0].tolist() == [0.0] * 4
    assert smooth(o, o).tolist() == [0.0] * 4
    assert torch.isfinite(gauss(o, constant)).all()
    assert torch.isfinite(smooth(o, constant)).all()
    assert tied(o, draws(20, 4, seed=1)).tolist() == [False] * 4
    assert tied(o, o).tolist() == [True] * 4
    assert torch.equal(o, draws(20, 4)), "sorting must not touch the input"
    single = draws(5, 1)
    smooth(single, single)
    assert torch.equal(single, draws(5, 1)), "one column is its own transpose: it too must be copied before sorting"


def test_one_margin_far_out_moves_little() -> None:
    o, u = draws(32, 1), draws(32, 1, seed=1)
    far = u.clone()
    far[u.argmax()] = 100
    assert abs(float(smooth(o, far) - smooth(o, u))) < 0.1


def test_klom_of_a_study() -> None:
    audit = study(20)
    found = KlomSmooth()(audit)
    assert found.floor is not None
    assert found.floor.mean == null_mean(20, 20)
    assert found.rescaled is not None
    assert found.value == pytest.approx(found.extra["mean"])
    assert len(found.per_example or ()) == 40
    assert found.extra["median"] < found.extra["p95"] <= found.extra["cap"] + 1e-12
    assert KlomSmooth("retain")(audit).key == "klom.smooth.retain"
    retain = KlomSmooth("retain")(audit)
    assert retain.rescaled is None
    assert retain.value == pytest.approx(null_mean(20, 20), abs=0.1)
    assert KlomGauss()(audit).extra.keys() >= {"mean", "median", "p95", "symmetric", "symmetric_median"}
    assert KlomSmooth()(study(19)).missing == "not computed: N=19, needs 20"


def test_a_side_that_hardly_varies_is_flagged() -> None:
    audit = study(20)
    assert not any("hardly varies" in note for note in KlomGauss()(audit).notes)
    logits = audit.unlearned.logits.clone()
    logits[:, (audit.unlearned.part == 0).nonzero()[:3, 0]] = 0.0
    still = KlomGauss()(replace(audit, unlearned=replace(audit.unlearned, logits=logits)))
    assert any(note.startswith("one side hardly varies on 3 of 40 images") for note in still.notes)


def test_tied_margins_have_a_measured_floor() -> None:
    audit = study(20)
    coarse = {name: replace(getattr(audit, name), logits=getattr(audit, name).logits.round()) for name in ("originals", "oracles", "unlearned")}
    found = KlomSmooth()(replace(audit, **coarse))
    assert any("tied margins" in note for note in found.notes)
    assert found.floor is not None
    assert found.floor.splits >= 10
    one = KlomSmooth()(replace(audit, originals=audit.originals.rows([0]), parents=torch.zeros(20, dtype=torch.int64)))
    assert one.ceiling is None
    assert one.value == KlomSmooth()(audit).value


@pytest.mark.parametrize(("n", "mean", "p95"), [(10, 5.6, 8.5), (20, 3.0, 5.0), (50, 0.9, 1.7), (100, 0.36, 0.70), (200, 0.15, 0.28)])
def test_null_of_the_histogram(n: int, mean: float, p95: float) -> None:
    seen = hist(draws(n, 8000), draws(n, 8000, seed=1))
    assert float(seen.mean()) == pytest.approx(mean, rel=0.04)
    assert float(seen.quantile(0.95)) == pytest.approx(p95, rel=0.06)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_histogram_by_hand() -> None:
    halves, left = column(0, 0, 1, 1), column(0, 0)
    assert hist(halves, left).tolist() == pytest.approx([5.0633], abs=5e-5)  # p (.5, .5), q (1, 0): the number of models may differ
    assert hist(left, halves).tolist() == pytest.approx([math.log(2)], abs=5e-5)  # and the other direction is another number
    assert hist(column(0, 0), column(9, 9)).tolist() == pytest.approx([math.log(1 + 1e5)], abs=1e-9)  # 11.51: as far as it goes
    assert hist(column(3, 3), column(3, 3)).tolist() == [0.0]


def test_the_joint_maximum_is_in_the_last_bin() -> None:
    p, q = torch.zeros(100, 1, dtype=torch.float64), torch.zeros(100, 1, dtype=torch.float64)
    p[-1] = 1
    assert hist(p, q).tolist() == pytest.approx([0.01 * math.log(0.01 / 1e-5) + 0.99 * math.log(0.99)], abs=1e-4)


def test_one_margin_far_out_stretches_all_bins_and_margins_are_clipped() -> None:
    o, u = draws(100, 40), draws(100, 40, seed=1) + 1
    far = u.clone()
    far[0] = 100
    assert float(hist(o, far).mean()) < float(hist(o, u).mean()) / 4  # the pitfall of the definition; klom.smooth hardly moves
    assert abs(float((smooth(o, far) - smooth(o, u)).mean())) < 0.1
    further = far.clone()
    further[0] = 1e6
    assert torch.equal(hist(o, further), hist(o, far))


@pytest.mark.parametrize("shape", [(100, 100, 7), (23, 31, 5)])
def test_the_histogram_is_the_plain_loop(shape: tuple[int, int, int]) -> None:
    n_o, n_u, n = shape
    o, u = 3 * draws(n_o, n), draws(n_u, n, seed=1) + 0.5
    assert hist(o, u).tolist() == pytest.approx(benchmark().plain_hist(u.numpy(), o.numpy()).tolist(), abs=1e-12)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hist(o[:, order], u[:, order]), hist(o, u)[order])


def test_histogram_of_a_study() -> None:
    found = KlomHist("retain")(study(100))
    assert found.key == "klom.hist.retain"
    assert found.floor is not None
    assert found.floor.mean == pytest.approx(0.9, abs=0.15)  # at N/2 = 50
    assert found.value == pytest.approx(0.36, abs=0.1)  # nothing was done to these images
    assert KlomHist()(study(99)).missing == "not computed: N=99, needs 100"


def test_extremes_by_hand_and_beside_oracles() -> None:
    each = torch.arange(40, dtype=torch.float64)  # 5 % of 40: the two largest
    none = torch.zeros(1, 1)
    assert extremes(lambda x, y: each, none, none, 0) == {"worst5": 38.5, "max": 39.0}
    assert extremes(lambda x, y: each[:3], none, none, 0) == {"worst5": 2.0, "max": 2.0}
    o, u = draws(32, 1000), draws(32, 1000, seed=1)
    found = extremes(lambda x, y: smooth(y, x), u, o, 0)
    assert found["max_floor"] > found["worst5_floor"] > 1.6 * null_mean(16, 16)  # extremes of noise are large
    assert found["worst5_at_floor_n"] == pytest.approx(found["worst5_floor"], rel=0.05)
    assert found["max_at_floor_n"] > found["max"]  # at fewer models there is more noise
    u[:, 0] += 6
    left = extremes(lambda x, y: gauss(y, x)[0], u, o, 0)
    assert left["max_at_floor_n"] > 3 * left["max_floor"]
    assert left["worst5_at_floor_n"] > left["worst5_floor"]
    assert KlomGauss()(study(20)).extra.keys() >= {"worst5", "max", "worst5_floor", "max_floor", "worst5_at_floor_n", "max_at_floor_n"}
