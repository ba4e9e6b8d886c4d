"""The published ε: the plain loop, its null medians, its infinities and its NaN, and every quirk that metrics.md §5.1 lists."""

import json
import math
from dataclasses import replace

import pytest
import torch
from simulated import benchmark, draws, study

from unlearnlab.contract import Audit, Result
from unlearnlab.metrics.epsilon import point, wrong
from unlearnlab.metrics.epsilon_published import BLOCK, EpsilonPublished, baseline, curve, largest_finite, median, published
from unlearnlab.outputs import Outputs

LOOP = benchmark().plain_published


def agree(u: torch.Tensor, o: torch.Tensor, delta: float) -> torch.Tensor:
    ours, theirs = published(u, o, delta), torch.from_numpy(LOOP(u.numpy(), o.numpy(), delta))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, equal_nan=True)  # infinities and NaN in the same places
    return ours


@pytest.mark.parametrize("delta", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(("n_u", "n_o"), [(2, 2), (5, 5), (20, 20), (13, 22)])
def test_fast_is_the_plain_loop(n_u: int, n_o: int, delta: float) -> None:
    seen = []
    for shift in (0.0, 1.0, 4.0, 60.0):
        u, o = 1.5 * draws(n_u, 12, seed=1) + shift, draws(n_o, 12)
        for side in (u, (4 * u).round() / 4):  # quarters: many models tie
            seen.append(agree(side, (4 * o).round() / 4 if side is not u else o, delta))
    seen = torch.cat(seen)
    assert seen.isinf().any()
    assert n_u == 2 or seen.isfinite().any()


def test_more_examples_than_a_block_holds() -> None:
    u, o = draws(6, BLOCK + 5, seed=1) + 1, draws(6, BLOCK + 5)
    each = torch.cat([published(u[:, i : i + 1], o[:, i : i + 1]) for i in range(u.shape[1])])
    torch.testing.assert_close(published(u, o), each, equal_nan=True)


def test_by_hand() -> None:
    u, o = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    (found,) = agree(u.double(), o.double(), 0.0).tolist()
    pdf = [torch.distributions.Normal(side.mean(), side.std(correction=0)) for side in (u, o)]
    score = [(pdf[0].log_prob(side) - pdf[1].log_prob(side)).flatten() for side in (u, o)]
    rates = [((score[1] >= cut).double().mean(), (score[0] < cut).double().mean()) for cut in torch.cat(score)]
    if score[0].median() < score[1].median():
        rates = [((score[0] >= cut).double().mean(), (score[1] < cut).double().mean()) for cut in torch.cat(score)]
    bounds = [max(((1 - a) / b).log(), ((1 - b) / a).log()) for a, b in rates if a > 0 and b > 0]
    assert found == pytest.approx(float(max(bounds)), abs=1e-6)
    assert published(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[5.0], [6.0]]).double()).tolist() == [math.inf]


@pytest.mark.parametrize(("n", "wanted"), [(10, 1.25), (20, 1.10), (80, 0.51), (160, 0.21), (320, 0.08)])
def test_null_medians_are_the_published_ones_and_cross_fitted_ones_are_not(n: int, wanted: float) -> None:
    u, o = draws(n, 3000, seed=1), draws(n, 3000)
    assert median(published(u, o, 0.05)) == pytest.approx(wanted, abs=0.03)
    assert float(point(*wrong(u, o, 5), n, n, 0.05).quantile(0.5)) < 0.08


def test_identical_inputs_are_nan_and_the_baseline_splits_one_side() -> None:
    o = draws(80, 30)
    assert published(o, o).isnan().all()
    assert math.isnan(median(published(o, o)))
    assert torch.equal(baseline(o, 0.05), published(o[:40], o[40:], 0.05))
    assert median(baseline(draws(80, 2000))) > median(published(draws(80, 2000), draws(80, 2000, seed=1))) + 0.1  # fewer models, higher floor


@pytest.mark.parametrize(("n", "wanted"), [(40, 3.611), (80, 4.317), (512, 6.185)])
def test_largest_finite_value(n: int, wanted: float) -> None:
    assert largest_finite(n, 0.05) == pytest.approx(wanted, abs=5e-4)
    o = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
    u = o + 100
    u[0], o[0] = 0.0, 100.0  # one of each stands on the other side
    assert published(u, o).tolist() == pytest.approx([wanted], abs=5e-4)


def test_permuting_examples_permutes_eps() -> None:
    u, o, order = draws(20, 300, seed=1) + 1, draws(20, 300), torch.randperm(300, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(published(u[:, order], o[:, order]), published(u, o)[order], equal_nan=True, atol=0, rtol=0)


def test_sixty_sd_away_is_infinite_and_a_constant_side_is_nan() -> None:
    o = draws(80, 4)
    assert agree(o + 60, draws(80, 4, seed=1), 0.05).tolist() == [math.inf] * 4  # pdf_O is 0 at every unlearned model, not 0/0
    for still in (0.0, 0.3):  # the mean of eighty times .3 is not .3
        constant = torch.full_like(o, still)
        for pair in ((constant, o), (o, constant), (constant, constant + 1)):
            assert agree(*pair, 0.05).isnan().all()


def test_cuts_with_one_kind_of_error_are_dropped() -> None:
    """79 of 80 unlearned models stand apart from every oracle, and that counts for nothing: only the cuts among the oracles do."""
    o = torch.linspace(-1, 1, 80, dtype=torch.float64)[:, None]
    u = o + 3
    u[0] = 0.01
    (found,) = agree(u, o, 0.0).tolist()
    assert math.isfinite(found)
    assert found <= largest_finite(80, 0.0) + 1e-9


def test_values_below_zero_are_kept_and_numerators_below_zero_left_out() -> None:
    u, o = draws(5, 400, seed=1), draws(5, 400)
    low = agree(u, o, 0.7)
    assert float(low[~low.isnan()].min()) < 0


def test_median_counts_infinities_and_leaves_nan_out() -> None:
    inf, nan = math.inf, math.nan
    for values, wanted in (([1.0, nan, 3.0], 2.0), ([1.0, inf, inf], inf), ([1.0, 2.0, inf], 2.0), ([1.0, inf], inf), ([inf, inf], inf), ([-1.0], -1.0)):
        assert median(torch.tensor(values, dtype=torch.float64)) == wanted
    assert math.isnan(median(torch.tensor([nan, nan])))


def test_curve_is_the_median_at_every_delta() -> None:
    u, o, deltas = draws(30, 50, seed=1) + 1, draws(30, 50), [0.0, 0.01, 0.05, 0.2]
    assert curve(u, o, deltas).tolist() == [median(published(u, o, delta)) for delta in deltas]
    assert curve(u + 60, o, [0.05]).tolist() == [math.inf]
    assert curve(o, o, [0.05]).isnan().all()


def shifted(audit: Audit, by: float) -> Audit:
    """The unlearned margins moved."""
    u: Outputs = audit.unlearned
    return replace(audit, unlearned=replace(u, logits=u.logits.double() + by * torch.nn.functional.one_hot(u.labels, u.logits.shape[-1])))


def survives(found: Result) -> None:
    assert Result.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_epsilon_of_a_study() -> None:
    audit = study(80, 0.3)
    found = EpsilonPublished()(audit)
    assert found.value is not None
    assert found.floor is not None
    assert found.rescaled is not None
    assert found.ci is not None
    assert found.ci.lo < found.value < found.ci.hi
    assert found.floor.mean == pytest.approx(0.8, abs=0.35)
    assert found.floor.note == "oracles against oracles at N/2 = 40 models a side"
    assert found.extra["baseline"] == pytest.approx(found.floor.mean, abs=0.3)
    assert "from=80: the unlearned models were made from 80 originals" in found.notes
    assert (found.extra["infinite"], found.extra["undefined"]) == (0, 0)
    assert len(found.per_example or ()) == 40
    one = EpsilonPublished()(replace(audit, parents=torch.zeros(80, dtype=torch.int64)))
    assert "from=1: the unlearned models were made from 1 original" in one.notes
    assert any(note.startswith("from=unknown") for note in EpsilonPublished()(replace(audit, parents=None)).notes)
    assert EpsilonPublished(delta=0.0).key == "eps.published_delta0.forget"
    assert EpsilonPublished()(study(79)).missing == "not computed: N=79, needs 80"


def test_what_is_no_number_is_told_in_words() -> None:
    audit = study(80, 0.3)
    same = EpsilonPublished()(replace(audit, unlearned=replace(audit.oracles, models=audit.unlearned.models)))
    assert same.missing == "not computed: the median is NaN: the models of both sides are the same on every image"
    assert same.extra["undefined"] == 40
    still = EpsilonPublished()(replace(audit, unlearned=replace(audit.unlearned, logits=torch.zeros_like(audit.unlearned.logits))))
    assert still.missing == "not computed: the median is NaN: on every image no cut is left or one side is constant"
    far = EpsilonPublished()(shifted(audit, 60.0))
    assert (far.value, far.missing) == (None, "not computed: the median is infinite: 40 of 40 examples are perfectly separated")
    assert far.floor is not None
    assert any("value at N/2" in note for note in far.notes)
    some = shifted(audit, 60.0)
    hard = torch.arange(len(some.unlearned.labels)) % 4 == 0
    mixed = replace(some, unlearned=replace(some.unlearned, logits=torch.where(hard[:, None], some.unlearned.logits, audit.unlearned.logits.double())))
    part = EpsilonPublished()(mixed)
    assert part.value is not None
    assert part.per_example is None
    assert part.extra["infinite"] == 10
    assert "no value for each image: 10 of 40 are infinite, 0 are NaN" in part.notes
    assert part.value > (EpsilonPublished()(audit).value or 0)
    gone = replace(audit, originals=shifted(audit, 60.0).unlearned)
    high = EpsilonPublished()(gone)
    assert (high.ceiling, high.rescaled) == (None, None)
    assert high.value is not None
    for found in (same, far, part, high):
        survives(found)
