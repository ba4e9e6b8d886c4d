"""U-LiRA: shares by hand, held out against the plain loop, the bias of scoring the models that were fitted."""

from dataclasses import replace

import pytest
import torch
from simulated import draws, study

from unlearnlab.metrics.ulira import UnlearnedAccuracy, UnlearnedAuc, accuracy, auc, dealt, held_out


def told(u: torch.Tensor, o: torch.Tensor, folds: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Accuracy and AUC per image."""
    fold_u, fold_o = dealt(len(u), folds), dealt(len(o), folds)
    of_u, of_o = held_out(u, o, fold_u, fold_o)
    return accuracy(of_u, of_o, fold_u, fold_o), auc(of_u, of_o, fold_u, fold_o)


def test_shares_by_hand() -> None:
    of_u, of_o = torch.tensor([[1.0], [2.0], [-1.0], [0.0]]).double(), torch.tensor([[-1.0], [3.0], [-2.0], [-3.0]]).double()
    fold = torch.tensor([0, 1, 0, 1])
    assert accuracy(of_u, of_o, fold, fold).tolist() == pytest.approx([(2.5 / 4 + 3 / 4) / 2])
    # fold 0: (1, -1) against (-1, -2); fold 1: (2, 0) against (3, -3)
    assert auc(of_u, of_o, fold, fold).tolist() == pytest.approx([(2 + 1.5 + 1 + 1) / 8])


@pytest.mark.parametrize(("n_u", "n_o"), [(16, 16), (19, 23), (80, 70)])
def test_fast_is_the_plain_loop(n_u: int, n_o: int) -> None:
    u, o = draws(n_u, 12) + 1, 2 * draws(n_o, 12, seed=1) + 3
    found_u, found_o = held_out(u, o, dealt(n_u, 5), dealt(n_o, 5))
    for k in range(5):
        fits = []
        for side in (u, o):
            train = torch.stack([m for i, m in enumerate(side) if i % 5 != k])
            pool, free = train.var(0).mean(), len(train) - 1
            # pooled below 64 models a side, then shrunk with the weight of ten models
            variance = (train.var(0) * free + 10 * pool) / (free + 10) if min(n_u, n_o) >= 64 else pool
            fits.append(torch.distributions.Normal(train.mean(0), variance.sqrt()))
        for side, found in ((u, found_u), (o, found_o)):
            for i in range(k, len(side), 5):
                assert found[i].tolist() == pytest.approx((fits[0].log_prob(side[i]) - fits[1].log_prob(side[i])).tolist(), abs=1e-9)


@pytest.mark.parametrize("separation", [1.0, 2.0])
def test_a_separation_of_d_sd_is_found_in_phi_of_half_d(separation: float) -> None:
    right, ranked = told(draws(100, 1500) + separation, draws(100, 1500, seed=1))
    wanted = torch.special.ndtr(torch.tensor([separation / 2, separation / 2**0.5], dtype=torch.float64))  # .8413 and .9214 for 2
    # a little is lost to means of 80 models
    assert right.mean().item() == pytest.approx(wanted[0].item(), abs=0.006)
    assert ranked.mean().item() == pytest.approx(wanted[1].item(), abs=0.006)


@pytest.mark.parametrize("n", [8, 16, 32, 64, 80])
def test_nothing_to_find_is_a_coin_at_every_n(n: int) -> None:
    for each in told(draws(n, 3000), draws(n, 3000, seed=1)):
        assert each.mean().item() == pytest.approx(0.5, abs=3 * each.std().item() / 3000**0.5)
        assert 3 * each.std().item() / 3000**0.5 < 0.012


def naive(u: torch.Tensor, o: torch.Tensor) -> float:
    """As often published: fitted and scored on the same models."""
    fits = [torch.distributions.Normal(side.mean(0), side.std(0)) for side in (u, o)]
    called = [fits[0].log_prob(side) > fits[1].log_prob(side) for side in (u, o)]
    return float((called[0].double().mean() + 1 - called[1].double().mean()) / 2)


@pytest.mark.parametrize(("n", "biased"), [(8, 0.627), (16, 0.580), (32, 0.559), (64, 0.540), (128, 0.528)])
def test_scoring_the_fitted_models_is_biased(n: int, biased: float) -> None:
    u, o = draws(n, 4000), draws(n, 4000, seed=1)
    assert naive(u, o) == pytest.approx(biased, abs=0.012)
    assert told(u, o)[0].mean().item() < 0.508


def test_pairs_across_folds_would_fall_below_a_coin() -> None:
    u, o = draws(16, 3000), draws(16, 3000, seed=1)
    of_u, of_o = held_out(u, o, dealt(16, 5), dealt(16, 5))
    across = (of_u[:, None] > of_o).double().mean()
    assert across < 0.49 < told(u, o)[1].mean() < 0.51


def test_far_apart_and_constant_columns() -> None:
    u, o = draws(20, 3), draws(20, 3, seed=1)
    still = torch.zeros(20, 1, dtype=torch.float64)
    for each in told(torch.cat([u + 60, still], 1), torch.cat([o, still], 1)):
        assert each.tolist() == [1.0, 1.0, 1.0, 0.5]
    for each in told(still + 1, still):
        assert each.tolist() == [1.0]
    for each in told(still, still):
        assert each.tolist() == [0.5]


def test_a_study() -> None:
    for metric in (UnlearnedAccuracy(), UnlearnedAuc()):
        found = metric(study(20, 0.5))
        assert found.value is not None
        assert found.floor is not None
        assert found.ceiling is not None
        assert found.ci is not None
        assert found.perfect == 0.5
        assert found.ci.lo > 0.5
        assert found.floor.mean == pytest.approx(0.5, abs=0.03)
        assert found.floor.mean < found.value < found.ceiling.mean
        assert metric(study(15)).missing == "not computed: N=15, needs 16"
        nothing = metric(study(20, 0.0))
        assert nothing.ci is not None
        assert nothing.ci.lo < 0.5 < nothing.ci.hi
        # noise alone lifts the worst images of a perfect unlearner
        assert nothing.extra["p95"] > 0.6
        assert nothing.extra["p95_at_floor_n"] == pytest.approx(nothing.extra["p95_floor"], abs=0.06)
        assert found.extra["p95_at_floor_n"] > found.extra["p95_floor"] + 0.1


def test_sides_swapped_give_the_same() -> None:
    audit = study(20)
    swapped = replace(audit, unlearned=audit.oracles, oracles=audit.unlearned)
    for metric in (UnlearnedAccuracy(), UnlearnedAuc()):
        assert metric(audit).value == pytest.approx(metric(swapped).value)
