"""KLoM: the table of exact null means, hand values, and the plain loop."""

import math
from dataclasses import replace

import pytest
import torch
from simulated import benchmark, draws, study

from unlearnlab.metrics.klom import KlomGauss, KlomSmooth, gauss, null_mean, smooth, tied


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
