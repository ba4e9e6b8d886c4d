"""Relearning by hand: steps until known again, censoring, the anamnesis index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from simulated import draws, predicted, study
from torch import Tensor

from unlearnlab.contract import Audit, Relearning
from unlearnlab.metrics.accuracy import AverageGap, Gap
from unlearnlab.metrics.relearn import AnamnesisIndex, RelearnSteps, steps_until
from unlearnlab.spec import InputError

LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]  # ten forget images, all known to the originals unless a test says otherwise
KEY = RelearnSteps().lesson.key
LAST = 20


def curve(step: int | None, last: int = LAST, start: float = 0.2) -> list[float]:
    """Known from this step on; None: never."""
    return [start if step is None or at < step else 1.0 for at in range(last + 1)]


def taught(unlearned: list[list[int | None]], oracles: list[list[int | None]], originals: list[list[int]] | None = None, **more: Any) -> Audit:
    """Models by the step at which each draw gets there."""
    sides = [[LABELS] * len(unlearned), [LABELS] * len(oracles)]
    audit = predicted(*sides, LABELS, ["forget"] * 10, originals or sides[0])
    curves = [torch.tensor([[curve(step) for step in model] for model in side], dtype=torch.float64) for side in (unlearned, oracles)]
    return replace(audit, parents=torch.arange(len(unlearned)), relearning={KEY: Relearning(curves[1], curves[0])}, **more)


THREE, SIX = [[3], [3], [3]], [[6], [6], [6]]


def naive(curves: Tensor, wanted: Tensor) -> tuple[list[list[float]], list[list[bool]]]:
    steps, there = [], []
    for model, mark in zip(curves.tolist(), wanted.tolist(), strict=True):
        found = [next((at for at, height in enumerate(draw) if height >= mark), None) for draw in model]
        steps.append([float(len(model[0]) - 1 if at is None else at) for at in found])
        there.append([at is not None for at in found])
    return steps, there


@pytest.mark.parametrize("shape", [(1, 1, 2), (5, 3, 17), (8, 1, 40), (3, 4, 2)])
def test_steps_agree_with_a_plain_loop(shape: tuple[int, int, int]) -> None:
    curves = draws(*shape).abs().clamp(max=1)
    wanted = torch.linspace(0.1, 1.2, shape[0], dtype=torch.float64)  # the last is out of reach
    steps, there = steps_until(curves, wanted)
    assert (steps.tolist(), there.tolist()) == naive(curves, wanted)


def test_what_is_never_reached_is_not_reached_at_once() -> None:
    """The place of the largest of nothing but False is 0."""
    steps, there = steps_until(torch.full((1, 1, 8), 0.3, dtype=torch.float64), torch.tensor([0.5]))
    assert (steps.item(), there.item()) == (7, False)
    steps, there = steps_until(torch.full((1, 1, 8), 0.6, dtype=torch.float64), torch.tensor([0.5]))
    assert (steps.item(), there.item()) == (0, True)


def test_reached_once_is_reached() -> None:
    steps, _ = steps_until(torch.tensor([[[0.1, 0.9, 0.2, 0.95]]], dtype=torch.float64), torch.tensor([0.9]))
    assert steps.item() == 1


def test_three_steps_against_six() -> None:
    found, index = RelearnSteps()(taught(THREE, SIX)), AnamnesisIndex()(taught(THREE, SIX))
    assert (found.value, found.extra["steps_oracles"], found.per_model) == (3, 6, (3, 3, 3))
    assert index.value == pytest.approx(3.01 / 6.01)
    assert round(index.value or 0, 4) == 0.5008
    assert (index.perfect, index.extra["steps"], index.extra["steps_oracles"]) == (1, 3, 6)
    assert index.per_model == pytest.approx([3.01 / 6.01] * 3)


def test_between_oracles_and_originals() -> None:
    """Half the oracles' steps is half way to an original, which needs none."""
    audit = taught([[2], [3], [4]], [[5], [6], [7]])
    found = RelearnSteps()(audit)
    assert found.floor is not None
    assert found.ceiling is not None
    assert (found.floor.mean, found.ceiling.mean, found.rescaled) == (6, 0, 0.5)
    assert found.rescaled_ci is not None
    assert found.rescaled_ci.lo < 0.5 < found.rescaled_ci.hi
    assert found.ci is not None
    assert found.ci.lo == pytest.approx(3 - 4.303 / 3**0.5, abs=1e-3)  # t, 2 df, s = 1


def test_the_index_multiplies_models_and_its_interval_is_of_logarithms() -> None:
    audit = taught([[1], [4], [16]], [[4], [4], [4]])
    found = AnamnesisIndex()(audit)
    ratios = torch.tensor([1.01, 4.01, 16.01], dtype=torch.float64) / 4.01
    assert found.value == pytest.approx(float(ratios.log().mean().exp()))
    assert found.ci is not None
    half = 4.30265 * float(ratios.log().std()) / 3**0.5  # oracles do not vary: 2 df
    assert (found.ci.lo, found.ci.hi) == pytest.approx((found.value / 2.718281828**half, found.value * 2.718281828**half), rel=1e-4)


def test_draws_are_averaged_within_a_model() -> None:
    found = RelearnSteps()(taught([[2, 4], [3, 5], [6, 4]], [[6, 8]] * 3))
    assert found.per_model == (3, 4, 5)
    assert found.extra["steps_oracles"] == 7


def test_censored_runs_count_as_the_last_step_and_are_told() -> None:
    found = RelearnSteps()(taught([[None, 3], [3, 3], [3, 3]], [[6, None]] * 3))
    assert found.per_model == (11.5, 3, 3)
    assert (found.extra["censored"], found.extra["censored_oracles"]) == (1, 3)
    assert any("1 of 6 unlearned runs censored: not there after 20 steps" in note for note in found.notes)
    assert any("3 of 6 oracle runs censored" in note for note in found.notes)


@pytest.mark.parametrize("metric", [RelearnSteps(), AnamnesisIndex()])
def test_where_both_sides_are_mostly_censored_nothing_is_computed(metric: Any) -> None:
    never: list[list[int | None]] = [[None], [None], [5]]
    found = metric(taught(never, never))
    assert found.value is None
    assert found.key == metric.key
    assert "after 20 steps; give more steps" in (found.missing or "")
    assert metric(taught(never, SIX)).value is not None  # pushed far away
    assert metric(taught(THREE, never)).value is not None


def test_the_area_is_not_censored() -> None:
    found = RelearnSteps()(taught([[None]] * 3, SIX))
    assert found.extra["area"] == pytest.approx(0.2)
    assert found.extra["area_oracles"] == pytest.approx((5 * 0.2 + 0.6 + 14) / 20)  # five low trapezia, one slope, fourteen high ones


def test_the_mark_is_set_by_the_own_original_and_oracles_are_held_to_the_same_ones() -> None:
    """Originals that know 10, 10 and 4 of 10 images: marks .95, .95 and .38; their mean is .76, which is just reached at .76.

    Oracles held to the mean would be there after 3 steps, and who learns just as they do would seem slower, after 11/3.
    """
    worse = [(label + 1) % 3 for label in LABELS[:6]] + LABELS[6:]
    audit = taught(THREE, SIX, originals=[LABELS, LABELS, worse])
    stairs = torch.tensor([[[0.1, 0.38, 0.5, 0.76, 0.8, 0.95, 1.0]]], dtype=torch.float64).expand(3, 1, 7)
    found = RelearnSteps()(replace(audit, relearning={KEY: Relearning(stairs, stairs)}))
    assert found.per_model == (5, 5, 1)
    assert found.extra["steps_oracles"] == pytest.approx(11 / 3)
    assert AnamnesisIndex()(replace(audit, relearning={KEY: Relearning(stairs, stairs)})).value == pytest.approx(1)
    faster = torch.cat([stairs[:2], torch.full((1, 1, 7), 0.5, dtype=torch.float64)])  # the oracle of the highest seed
    order = [2, 0, 1]
    for rows in ([0, 1, 2], order):
        oracles = replace(audit.oracles.rows(rows))
        some = RelearnSteps()(replace(audit, oracles=oracles, relearning={KEY: Relearning(faster[rows], stairs)}))
        assert some.extra["steps_oracles"] == pytest.approx(10 / 3)  # 5, 5 and 0, whatever order they are handed in
    unknown = RelearnSteps()(replace(audit, relearning={KEY: Relearning(stairs, stairs)}, parents=None))
    assert unknown.per_model == (3, 3, 3)
    one = RelearnSteps()(replace(audit, originals=audit.originals.rows([2]), relearning={KEY: Relearning(stairs, stairs)}, parents=torch.zeros(3).long()))
    assert (one.per_model, one.extra["steps_oracles"]) == ((1, 1, 1), 1)


def test_the_tolerance_is_a_share_of_the_originals_accuracy() -> None:
    stairs = torch.tensor([[[0.1, 0.5, 0.9, 1.0]]], dtype=torch.float64).expand(3, 1, 4)
    held = {KEY: Relearning(stairs, stairs)}
    audit = replace(taught(THREE, SIX), relearning=held)
    assert [RelearnSteps(tolerance=tolerance)(audit).value for tolerance in (0.0, 0.05, 0.1, 0.5)] == [3, 3, 2, 1]


def test_oracles_that_know_it_from_the_start_are_noted() -> None:
    found = AnamnesisIndex()(taught(THREE, [[0], [0], [0]]))
    assert found.value == pytest.approx(301)
    assert any("3 of 3 oracles know the forget set from the start" in note for note in found.notes)
    assert found.rescaled is None  # originals and oracles are alike


@pytest.mark.parametrize("metric", [RelearnSteps(), AnamnesisIndex()])
def test_hidden_knowledge_needs_fewer_steps_and_damage_more(metric: Any) -> None:
    """The sign: the more is left, the sooner."""
    hidden, equal, pushed = (metric(taught([[step]] * 3, SIX)).value for step in (1, 6, 12))
    assert hidden < equal < pushed
    assert metric(study(20, 0.9)).value < metric(study(20, 0.1)).value


def test_curves_that_do_not_belong_to_the_audit_are_refused() -> None:
    audit = taught(THREE, SIX)
    other = RelearnSteps(lr=0.5)
    assert "with other settings" in (other(audit).missing or "")
    assert "with other settings" in (AnamnesisIndex(other)(audit).missing or "")
    assert RelearnSteps(tolerance=0.2)(audit).value == 3  # the curves do not depend on it
    assert RelearnSteps()(replace(audit, relearning={})).missing == "not computed: the models were not taught the forget set again"
    more = taught(THREE, [*SIX, [6]])
    fewer = replace(more, oracles=more.oracles.rows([0, 1, 2]))
    assert RelearnSteps()(fewer).missing == "not computed: 4 oracles were taught the forget set again, and this audit has 3"
    assert "there are no originals" in (RelearnSteps()(replace(audit, originals=audit.originals.rows([]))).missing or "")


@pytest.mark.parametrize(("bad", "says"), [(torch.full((3, 1, 5), torch.nan), "NaN or infinities"), (torch.ones(3, 5), r"\[models, draws, 1 \+ steps\]")])
def test_curves_that_are_no_shares_are_refused(bad: Tensor, says: str) -> None:
    audit = taught(THREE, SIX)
    with pytest.raises(InputError, match=says):
        RelearnSteps()(replace(audit, relearning={KEY: replace(audit.relearning[KEY], unlearned=bad)}))


def test_a_gap_cannot_be_taken_of_what_is_known_of_unlearned_models_alone() -> None:
    """With the oracles put in their place, the curves would still be the unlearned models': a gap of exactly 0, whatever happened."""
    audit = study(20)
    assert "it shows the oracles itself" in (Gap(RelearnSteps())(audit).missing or "")
    assert "it shows the oracles itself" in (AverageGap((RelearnSteps(),))(audit).missing or "")
