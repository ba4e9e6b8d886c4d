"""Accuracies, losses and gaps by hand."""

import math
from dataclasses import replace

import pytest
import torch
from simulated import predicted, study

from unlearnlab.metrics.accuracy import Accuracy, AverageGap, Gap, KeptAccuracy, Loss, UnlearningAccuracy
from unlearnlab.metrics.cost import CostFraction
from unlearnlab.metrics.loss_attack import LossAuc

FORGET = ["forget"] * 4
LABELS = [0, 1, 2, 2]


def test_hand_example() -> None:
    audit = predicted([[0, 1, 1, 2]], [LABELS], LABELS, FORGET)
    found = Accuracy()(audit)
    assert (found.value, UnlearningAccuracy()(audit).value) == (0.75, 0.25)
    assert found.floor is not None
    assert found.floor.mean == 1.0
    assert found.ci is None
    assert found.notes[-1] == "no interval: N=1, needs 3"
    assert (found.extra["examples_only_lo"], found.extra["examples_only_hi"]) == pytest.approx((0.1941, 0.9937), abs=1e-4)
    assert Loss()(audit).value == pytest.approx((3 * math.log1p(2 * math.exp(-5)) + 5 + math.log1p(2 * math.exp(-5))) / 4)


def test_ties_go_to_the_lowest_class_and_every_row_counts() -> None:
    audit = predicted([LABELS], [LABELS], LABELS, FORGET)
    flat = replace(audit, unlearned=replace(audit.unlearned, logits=torch.zeros_like(audit.unlearned.logits)))
    assert Accuracy()(flat).value == 0.25
    for row in range(4):
        wrong = [label if at != row else 1 - min(label, 1) for at, label in enumerate(LABELS)]
        assert Accuracy()(predicted([wrong], [LABELS], LABELS, FORGET)).value == 0.75


def test_parts_do_not_mix() -> None:
    audit = predicted([[0, 1, 0, 0]], [LABELS], LABELS, ["forget", "forget", "test", "test"])
    assert (Accuracy("forget")(audit).value, Accuracy("test")(audit).value) == (1.0, 0.0)
    assert Accuracy("retain")(audit).missing == "not computed: there are no retain examples"


def class_two_forgotten() -> tuple[list[int], list[str]]:
    """Labels and parts: class 2 is forgotten whole, of class 0 one image is."""
    return [2, 2, 0, 0, 1, 0, 1, 2, 2], ["forget"] * 3 + ["retain"] * 2 + ["test"] * 4


def test_kept_classes_are_counted_without_those_forgotten_whole() -> None:
    labels, parts = class_two_forgotten()
    called = [0, 0, 0, 0, 1, 0, 0, 0, 0]  # of the test images 0 and 1 one is right, of class 2 none
    audit = predicted([called] * 3, [labels] * 3, labels, parts)
    found = KeptAccuracy()(audit)
    assert (found.key, found.value, found.n_examples) == ("acc.kept.test", 0.5, 2)
    assert found.dropped == ((2, "their class was forgotten whole"),)
    assert Accuracy("test")(audit).value == 0.25  # the other number that papers call test accuracy
    one = KeptAccuracy()(predicted([called], [labels], labels, parts))
    assert (one.extra["examples_only_lo"], one.extra["examples_only_hi"]) == pytest.approx((0.0126, 0.9874), abs=1e-4)
    # a class that is neither forgotten nor, among the images handed in, retained is kept
    assert KeptAccuracy()(audit.restrict(torch.arange(9) != 4)).value == 0.5
    # a retained image that is labelled 2 by mistake does not make class 2 a kept one
    noisy = replace(
        audit, **{side: replace(getattr(audit, side), labels=torch.tensor([*labels[:4], 2, *labels[5:]])) for side in ("originals", "oracles", "unlearned")}
    )
    assert KeptAccuracy()(replace(noisy, true_labels=torch.tensor(labels))).value == 0.5
    assert KeptAccuracy()(noisy).value == 0.25


def test_kept_accuracy_is_accuracy_where_no_class_was_forgotten_whole() -> None:
    audit = study(4)
    for part in ("test", "validation"):
        found = KeptAccuracy(part)(audit)
        assert found.notes[-1] == f"no class was forgotten whole: the same as acc.{part}"
        assert replace(found, key=f"acc.{part}", notes=found.notes[:-1]) == Accuracy(part)(audit)
    labels, parts = class_two_forgotten()
    seen = predicted([labels], [labels], labels, parts).restrict(torch.tensor([True] * 5 + [False] * 2 + [True] * 2))
    assert KeptAccuracy()(seen).missing == "not computed: all classes of the test images were forgotten whole"
    assert KeptAccuracy("validation")(seen).missing == "not computed: there are no validation examples"


def test_anchors_and_interval_over_models() -> None:
    right, half, none = LABELS, [0, 1, 0, 0], [1, 0, 0, 0]
    found = Accuracy()(predicted([half, half, half], [none, half, none], LABELS, FORGET, [right, right, right]))
    assert found.per_model == (0.5, 0.5, 0.5)
    assert found.ci is not None
    assert found.ci.hi - found.ci.lo == 0
    assert found.floor is not None
    assert found.ceiling is not None
    assert (found.floor.mean, found.ceiling.mean) == (pytest.approx(1 / 6), 1.0)
    assert found.rescaled == pytest.approx((0.5 - 1 / 6) / (5 / 6))


def test_gap_is_signed_and_paired_by_seed_where_seeds_are_shared() -> None:
    one, two = [0, 1, 0, 0], LABELS  # .5 and 1
    apart = predicted([one, two, two, two], [two, one, two, two], LABELS, FORGET)
    found = Gap()(apart)
    assert (found.key, found.value, found.extra["mean_abs"], found.extra["abs_floor"]) == ("gap.acc.forget", 0.0, 0.25, 0.25)
    assert found.ci is not None
    assert found.ci.method == "Welch over models"
    paired = Gap()(replace(apart, oracles=replace(apart.oracles, models=apart.unlearned.models)))
    assert paired.ci is not None
    assert paired.ci.method == "t over pairs of models"
    # (−½, ½, 0, 0): sd √(1/6), t 3.182
    assert paired.ci.hi == pytest.approx(3.1824 * math.sqrt(1 / 6) / 2, abs=1e-4)


def test_gap_of_any_metric_with_a_value_per_model() -> None:
    audit = study(8)
    inner, found = LossAuc()(audit), Gap(LossAuc())(audit)
    assert inner.floor is not None
    assert inner.ceiling is not None
    assert found.value == pytest.approx(inner.value - inner.floor.mean)
    assert found.ceiling is not None
    assert found.ceiling.mean == pytest.approx(inner.ceiling.mean - inner.floor.mean)
    assert found.rescaled == inner.rescaled
    few = study(2)
    assert Gap(LossAuc())(few).missing == "not computed: N=2, needs 3"
    assert Gap(AverageGap())(audit).missing == "not computed: 'avg_gap' has no value per model"


def test_a_measured_fact_has_no_gap_to_the_oracles() -> None:
    """The oracles' cost is not among the facts: handing them over with the unlearned models' would give 0."""
    assert Gap(CostFraction())(study(4)).missing == "not computed: 'seconds' was not measured"


def test_average_gap_by_hand() -> None:
    # of 100 images each: 8 v 6 wrong, 99 v 100 right, 93 v 94 right -> (2 + 1 + 1)/3 points
    def rows(wrong: int, retain: int, test: int) -> list[int]:
        return [1] * wrong + [0] * (100 - wrong) + [0] * retain + [1] * (100 - retain) + [0] * test + [1] * (100 - test)

    parts = ["forget"] * 100 + ["retain"] * 100 + ["test"] * 100
    audit = predicted([rows(8, 99, 93)] * 3, [rows(6, 100, 94)] * 3, [0] * 300, parts)
    metric = AverageGap((UnlearningAccuracy(), Accuracy("retain"), Accuracy("test")))
    found = metric(audit)
    assert found.value == pytest.approx(4 / 3)
    assert found.extra["ua"] == pytest.approx(2)
    assert AverageGap()(audit).missing == "not computed: mia_svc.confidence.efficacy: there are no control examples"
    assert metric(replace(audit, oracles=audit.oracles.rows(torch.arange(0)))).missing == "not computed: N=0, needs 3"
