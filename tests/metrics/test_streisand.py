"""Where unlearned margins stand among the oracles', by hand and against plain loops."""

from dataclasses import replace

import pytest
import torch
from simulated import draws, outputs_of, study

from unlearnlab.contract import Audit, Metric
from unlearnlab.metrics.streisand import PitKs, StreisandOver, StreisandUnder, over, places, places_left_out, tail, under, uniform_distance


def of_margins(u: torch.Tensor, o: torch.Tensor, p: torch.Tensor | None = None) -> Audit:
    """Two classes, label 0: the margin is the first logit."""

    def side(m: torch.Tensor, start: int) -> object:
        return outputs_of(torch.stack([m, torch.zeros_like(m)], -1), [0] * m.shape[1], ["forget"] * m.shape[1], start)

    return Audit(side(u if p is None else p, 0), side(o, 100_000), side(u, 0))


def test_by_hand() -> None:
    o = torch.arange(19.0).double()[:, None]
    u = torch.tensor([[-1.0], [0.5], [3.0], [17.5], [18.5]]).double()
    at = places(u, o)
    # u = (1 + below + half the ties)/20
    assert (at / 40).flatten().tolist() == pytest.approx([0.05, 0.1, (1 + 3 + 0.5) / 20, 0.95, 1.0])
    assert over(at, 19, 0.05).flatten().tolist() == [1, 0, 0, 0, 0]
    assert under(at, 19, 0.05).flatten().tolist() == [0, 0, 0, 0, 1]
    assert places_left_out(o).flatten().tolist() == [2 * k for k in range(1, 20)]  # an oracle is not compared with itself


def test_the_tail_is_alpha_of_the_places_but_at_least_one() -> None:
    assert [tail(0.05, n) for n in (5, 19, 38, 39, 59, 99)] == [1, 1, 1, 2, 3, 5]
    assert tail(0.29 / 2, 199) == 29  # 28.999… to the computer


@pytest.mark.parametrize("rounded", [False, True])
def test_fast_equals_a_plain_loop(rounded: bool) -> None:
    u, o = 2 * draws(7, 5) + 0.5, draws(23, 5, seed=1)
    if rounded:
        u, o = u.round(), o.round()  # ties
    at, k = places(u, o), tail(0.1, 23)
    for i in range(7):
        standing = []
        for j in range(5):
            place = 1 + sum(float(o[m, j] < u[i, j]) + 0.5 * float(o[m, j] == u[i, j]) for m in range(23))
            standing.append(place / 24)
            assert at[i, j] / 48 == pytest.approx(place / 24)
            assert bool(over(at, 23, 0.1)[i, j]) == (place <= k)
            assert bool(under(at, 23, 0.1)[i, j]) == (place > 24 - k)
        gaps = [abs(sum(v <= c / 24 + 1e-9 for v in standing) / 5 - (c // 1) / 24) for c in (h / 2 for h in range(49))]
        assert float(uniform_distance(at, 23)[i]) == pytest.approx(max(gaps))
    left_out = places_left_out(o)
    for i in range(23):
        others = torch.cat([o[:i], o[i + 1 :]])
        assert torch.equal(left_out[i : i + 1], places(o[i : i + 1], others))


def test_an_oracle_scores_its_share_whatever_the_margins_look_like() -> None:
    """Left out in turn, without ties, N oracles take each of the N places once: the share is exact, not merely expected."""
    o = draws(39, 11).exp()
    for marked in (over, under):
        assert float(marked(places_left_out(o), 38, 0.05).mean()) == pytest.approx(1 / 39)
    audit = study(40, 0.0)
    for metric in (StreisandOver(), StreisandUnder()):
        found = metric(audit)
        assert found.perfect == found.floor.mean == 2 / 41
        assert found.ci.lo <= 2 / 41 <= found.ci.hi
        assert found.value == pytest.approx(2 / 41, abs=0.03)
    assert PitKs()(audit).perfect is None


def test_too_low_sticks_out_and_still_high_is_seen_at_the_other_end() -> None:
    o = draws(40, 30)
    for shift, shares in ((-10.0, (1.0, 0.0)), (10.0, (0.0, 1.0))):
        audit = of_margins(draws(20, 30, seed=1) + shift, o, draws(20, 30, seed=2) + 10)
        assert (StreisandOver()(audit).value, StreisandUnder()(audit).value) == shares
        assert PitKs()(audit).value == pytest.approx(1 - 1 / 41)  # no image but in the first place, or in the last
    assert StreisandUnder()(audit).rescaled == pytest.approx(1)
    # what the originals do is not on this side: there is nothing to divide by
    found = StreisandOver()(study(20, -1.0))
    assert found.value > 0.3 > found.floor.mean > found.ceiling.mean
    assert found.rescaled is None
    assert any("no ratio" in note for note in found.notes)


def test_per_model_and_per_example_belong_to_the_models_and_images_given() -> None:
    audit = study(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    audit = replace(audit, unlearned=audit.unlearned.rows(order), parents=order)
    u, o = audit.unlearned.of("forget").margin, audit.oracles.of("forget").margin
    marks = (u[:, None] > o).sum(1) == 20
    found = StreisandUnder()(audit)
    assert found.per_model == pytest.approx(marks.double().mean(1).tolist())
    assert found.per_example == pytest.approx(marks.double().mean(0).tolist())
    assert PitKs()(audit).per_model == pytest.approx(uniform_distance(places(u, o), 20).tolist())


def test_a_small_alpha_needs_many_oracles_and_has_a_key_of_its_own() -> None:
    metric = StreisandOver(alpha=0.02)
    assert metric.key == "streisand.over_alpha0.02"
    assert metric(study(48)).missing == "not computed: N=48, needs 49 for alpha = 0.02"
    assert metric(study(20, oracles=49)).floor.mean == 1 / 50
    assert StreisandUnder()(study(18)).missing == "not computed: N=18, needs 19"


def test_the_interval_knows_that_all_models_share_the_oracles() -> None:
    """One oracle far below the others makes every unlearned model fall short of it: a t over unlearned models would see almost no doubt."""
    o = draws(20, 40)
    o[0] -= 2
    u = draws(200, 40, seed=1)
    found = StreisandOver()(of_margins(u, o, u + 3))
    assert found.value < 0.02
    by_models = 2 * torch.tensor(found.per_model).std() / 200**0.5
    assert found.ci.hi - found.ci.lo > 4 * by_models
    assert found.ci.hi > 1 / 21


@pytest.mark.parametrize("metric", [StreisandOver(), StreisandUnder(), PitKs()])
def test_without_originals_there_is_a_value_and_no_ceiling(metric: Metric) -> None:
    audit = study(20)
    alone = metric(replace(audit, originals=audit.originals.rows([]), parents=None))
    assert alone.value == metric(audit).value
    assert alone.ci == metric(audit).ci
    assert alone.ceiling is alone.rescaled is None
    assert any("no originals" in note for note in alone.notes)


def test_ties_take_the_exact_floor_away() -> None:
    audit = study(20)
    flat = replace(audit, **{side: replace(getattr(audit, side), logits=getattr(audit, side).logits.round()) for side in ("originals", "oracles", "unlearned")})
    found = StreisandUnder()(flat)
    assert found.rescaled is None
    assert any("tied margins" in note for note in found.notes)
