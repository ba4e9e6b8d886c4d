"""The contest's score: bins by hand, bounds by hand, all intervals tried, null values, and what the ratios of accuracies do."""

import math
from dataclasses import replace

import pytest
import torch
from simulated import benchmark, draws, study

from unlearnlab.contract import Audit
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.contest import CUTS, MOST, ContestForgetting, ContestScore, epsilon, forgetting, proven, reward


def test_rewards_by_hand() -> None:
    eps = torch.tensor([0.2, 0.7, 1.2, MOST], dtype=torch.float64)
    assert reward(eps, 512).tolist() == [1, 0.5, 0.25, 0]
    assert float(reward(eps, 512).mean()) == 0.4375
    assert reward(torch.tensor([0.0, 0.5, 6.99, 7.0]), 512).tolist() == [1, 0.5, 2.0**-13, 0]  # N = 512: fourteen bins, 0 from 7 on
    assert reward(torch.tensor([2.9, 3.0]), 16).tolist() == [2.0**-5, 0]


def test_the_larger_of_two_bounds_counts_neither_the_smaller_nor_the_sum() -> None:
    fpr, fnr = torch.tensor([0.1, 0.4, 0, 0, 0.3], dtype=torch.float64), torch.tensor([0.4, 0.1, 0, 0.3, 0], dtype=torch.float64)
    assert proven(fpr, fnr, 0.05).tolist() == pytest.approx([1.7047, 1.7047, math.inf, -math.inf, -math.inf], abs=5e-5)
    assert proven(fpr, fnr)[:2].tolist() == pytest.approx([math.log(9 * (1 - 1e-5 - 0.4) / 0.9)] * 2, abs=1e-4)  # log((1−δ−.4)/.1)


@pytest.mark.parametrize("n", [16, 32, 80, 128, 512])
def test_a_perfect_unlearner_does_not_score_one(n: int) -> None:
    u, o = draws(n, 64_000 // n, seed=1), draws(n, 64_000 // n)
    assert 0.31 < forgetting(u, o, intervals=False) < 0.39
    assert forgetting(u, o) < forgetting(u, o, intervals=False) - 0.1  # more attacks, more luck
    assert forgetting(u + 2, o) < 0.05


@pytest.mark.parametrize(("n_u", "n_o"), [(16, 16), (17, 21)])
def test_all_intervals_are_tried(n_u: int, n_o: int) -> None:
    assert n_u + n_o <= CUTS
    u, o = 2 * draws(n_u, 10, seed=1) + torch.linspace(0, 8, 10), draws(n_o, 10)
    for side in (u, (2 * u).round()):
        other = o if side is u else (2 * o).round()
        assert epsilon(side, other).tolist() == pytest.approx(benchmark().plain_contest(side.numpy(), other.numpy()).tolist(), abs=1e-12)


def test_single_thresholds_are_the_published_score_of_the_margin_itself() -> None:
    u, o = draws(19, 40, seed=1) + torch.linspace(-2, 2, 40), draws(23, 40)
    naive = []
    for i in range(40):
        sides = (u[:, i], o[:, i]) if u[:, i].quantile(0.5) >= o[:, i].quantile(0.5) else (o[:, i], u[:, i])
        rates = [((sides[1] >= cut).double().mean(), (sides[0] < cut).double().mean()) for cut in torch.cat(sides)]
        naive.append(max(0.0, min(MOST, max(float(proven(*rate)) for rate in rates))))
    assert epsilon(u, o, intervals=False).tolist() == pytest.approx(naive, abs=1e-12)


def test_a_spread_that_no_threshold_sees() -> None:
    """Unlearned margins amidst the oracles': an interval cuts them out, a threshold calls half the oracles unlearned too."""
    o = torch.cat([-3 - draws(40, 50).abs(), 3 + draws(40, 50).abs()])
    u = draws(80, 50, seed=1).clamp(-2, 2)
    assert epsilon(u, o).tolist() == [MOST] * 50
    assert float(epsilon(u, o, intervals=False).max()) <= math.log(0.5 * 80) + 1e-9


def test_ranges_and_constants() -> None:
    o = draws(20, 3)
    still = torch.zeros_like(o)
    assert epsilon(still, still).tolist() == [0] * 3
    assert epsilon(still + 0.1, o).tolist() == epsilon(o, still + 0.1).tolist() == [MOST] * 3  # one side's range is under 1 % of the other's
    assert epsilon(still + 1, still).tolist() == [MOST] * 3
    assert epsilon(o + 100, o).tolist() == [MOST] * 3
    swapped = epsilon(o, draws(20, 3, seed=1) + 1), epsilon(draws(20, 3, seed=1) + 1, o)
    assert swapped[0].tolist() == pytest.approx(swapped[1].tolist())


def test_margins_are_left_as_they_are() -> None:
    for n in (1, 3):
        u, o = draws(20, n, seed=1), draws(20, n)
        kept = u.clone(), o.clone()
        epsilon(u, o)
        assert torch.equal(u, kept[0])
        assert torch.equal(o, kept[1])


def spoilt(audit: Audit, part: str, share: float) -> Audit:
    """Unlearned models that are wrong on the first images of a part."""
    u = audit.unlearned
    where = (u.part == PARTS.index(part)).nonzero().flatten()
    logits = u.logits.clone()
    logits[:, where[: round(share * len(where))]] = 30 * torch.nn.functional.one_hot((u.labels[where[: round(share * len(where))]] + 1) % 4, 4).float()
    return replace(audit, unlearned=replace(u, logits=logits))


def test_score_of_a_study() -> None:
    audit = study(20, 0.5)
    found, score = ContestForgetting()(audit), ContestScore()(audit)
    assert found.value is not None
    assert found.floor is not None
    assert found.ceiling is not None
    assert found.rescaled is not None
    assert found.ceiling.mean < found.value < found.floor.mean + 0.05
    assert found.extra["regained"] == pytest.approx(1 - found.rescaled)
    assert found.extra["regained"] == pytest.approx((found.extra["value_at_floor_n"] - found.ceiling.mean) / (found.floor.mean - found.ceiling.mean))
    assert "do not rank: N=20, needs 128" in found.notes
    right = {
        (side, part): float((seen.of(part).predicted == seen.of(part).labels).double().mean())
        for side, seen in (("u", audit.unlearned), ("o", audit.oracles))
        for part in ("retain", "test")
    }
    ratios = [right["u", part] / right["o", part] for part in ("retain", "test")]
    assert score.value == pytest.approx(found.value * ratios[0] * ratios[1])
    assert [score.extra[name] for name in ("F", "retain_ratio", "test_ratio")] == pytest.approx([found.value, *ratios])
    worse = ContestScore()(spoilt(spoilt(audit, "test", 0.5), "retain", 0.3))
    assert worse.value is not None
    assert worse.value < 0.8 * score.value
    assert worse.extra["F"] == found.value
    assert ContestForgetting()(study(15)).missing == "not computed: N=15, needs 16"


def test_ratios_above_one_are_kept_unless_clipped() -> None:
    audit = study(20, 0.5)
    better = replace(audit, oracles=spoilt(replace(audit, unlearned=audit.oracles), "retain", 0.4).unlearned)
    plain, clipped = ContestScore()(better), ContestScore(clipped=True)(better)
    assert clipped.key == "contest.score_clipped"
    assert plain.extra["retain_ratio"] > 1.2
    assert plain.value == pytest.approx(plain.extra["F"] * plain.extra["retain_ratio"] * plain.extra["test_ratio"])
    assert clipped.value == pytest.approx(plain.extra["F"] * min(1.0, plain.extra["test_ratio"]))
    assert ContestForgetting(intervals=False).key == "contest.F_single"
    assert ContestScore(intervals=False).key == "contest.score_single"
    blind = ContestScore()(replace(audit, oracles=spoilt(replace(audit, unlearned=audit.oracles), "test", 1.0).unlearned))
    assert (blind.missing or "").startswith("not computed: an oracle is never right on retain or test")
