"""Interclass confusion by hand, against true labels."""

from dataclasses import replace

import pytest
import torch
from simulated import predicted, study

from unlearnlab.contract import Audit
from unlearnlab.metrics.confusion import ConfusionError, ConfusionLeft
from unlearnlab.spec import InputError

TRUE = [0] * 50 + [1] * 50
CALLED = [0] * 40 + [1] * 8 + [2] * 2 + [0] * 6 + [1] * 42 + [2] * 2


def swap(true: list[int]) -> list[int]:
    return [1 - label if label < 2 else label for label in true]


def confused(u: list[int], true: list[int], part: str = "forget", models: int = 1) -> Audit:
    """Forget images of the classes 0 and 1 bear one another's label, test images their own; class 2 is there too."""
    labels = [*(swap(true) if part == "forget" else true), *([1, 0] if part == "test" else [])]
    true = [*true, *([0, 1] if part == "test" else [])]
    u = [*u, *([2, 2] if part == "test" else [])]
    where = [part] * (len(u) - 2 * (part == "test")) + ["forget"] * 2 * (part == "test")
    return replace(predicted([u] * models, [true] * models, labels, where), true_labels=torch.tensor(true))


@pytest.mark.parametrize("part", ["forget", "test"])
def test_by_hand(part: str) -> None:
    audit = confused(CALLED, TRUE, part)
    err, left = ConfusionError(part)(audit), ConfusionLeft(part)(audit)
    assert (err.key, err.value, err.n_examples) == (f"ic.err.{part}", pytest.approx(0.18), 100)
    assert (left.key, left.value, left.extra["count"]) == (f"ic.fgt.{part}", pytest.approx(0.14), pytest.approx(14))
    # 18 of 100 by Clopper-Pearson, for one model
    assert (err.extra["examples_only_lo"], err.extra["examples_only_hi"]) == pytest.approx((0.1103, 0.2695), abs=1e-4)
    assert err.ci is None
    assert ConfusionError(part)(confused(CALLED, TRUE, part, models=3)).ci is not None


def test_true_labels_count_not_the_swapped_ones() -> None:
    """A perfect model errs nowhere; one that learned the swapped labels errs everywhere."""
    right, learned = confused(TRUE, TRUE), confused(swap(TRUE), TRUE)
    assert (ConfusionError()(right).value, ConfusionLeft()(right).value) == (0.0, 0.0)
    assert (ConfusionError()(learned).value, ConfusionLeft()(learned).value) == (1.0, 1.0)


def test_equals_the_confusion_matrix_of_any_number_of_classes() -> None:
    audit = study(5, classes=7)
    for part in ("forget", "test"):
        seen = audit.unlearned.part == {"forget": 0, "test": 4}[part]
        true, called = audit.true_labels[seen].tolist(), audit.unlearned.predicted[:, seen].tolist()
        errors, others = [], []
        for row in called:
            matrix = [[0] * 7 for _ in range(7)]
            for t, c in zip(true, row, strict=True):
                matrix[t][c] += 1
            size = sum(matrix[0]) + sum(matrix[1])
            errors.append((size - matrix[0][0] - matrix[1][1]) / size)
            others.append((matrix[0][1] + matrix[1][0]) / size)
        assert ConfusionError(part)(audit).per_model == pytest.approx(errors)
        assert ConfusionLeft(part)(audit).per_model == pytest.approx(others)
        assert ConfusionLeft(part, a=1, b=0)(audit).per_model == pytest.approx(others)


def test_the_share_does_not_grow_with_the_set_and_the_count_does() -> None:
    one, two = ConfusionLeft()(confused(CALLED, TRUE)), ConfusionLeft()(confused(CALLED * 2, TRUE * 2))
    assert one.value == pytest.approx(two.value)
    assert two.extra["count"] == pytest.approx(2 * one.extra["count"])


def test_other_classes_do_not_count() -> None:
    more = confused([*CALLED, 0, 1, 1], [*TRUE, 2, 2, 2])
    assert ConfusionError()(more).value == pytest.approx(0.18)
    assert ConfusionError()(more).n_examples == 100


def test_the_two_classes_are_read_off_the_forget_set_or_named() -> None:
    audit = study(4)
    labels, true = audit.unlearned.labels, audit.true_labels
    same = replace(audit, true_labels=labels)
    words = "not computed: the forget images are not two classes with their labels swapped (none is mislabelled); name two classes by a and b"
    assert ConfusionError()(same).missing == words
    for other in (torch.where(true == 1, 2, true), (labels + 1) % 4):  # one class relabelled only one way; all classes in a ring
        assert "not two classes with their labels swapped (true class -> label: " in ConfusionError()(replace(audit, true_labels=other)).missing
    named = ConfusionError("test", a=3, b=2)
    assert named.key == "ic.err.2_3.test"
    assert named(same).value is not None
    assert ConfusionLeft("test", 2, 3)(same).key == "ic.fgt.2_3.test"
    assert ConfusionError()(replace(audit, true_labels=None)).missing == "not computed: the true labels are not known"
    none = audit.restrict((audit.unlearned.part != 4) | (true > 1))
    assert ConfusionError("test")(none).missing == "not computed: no test image is of class 0 or 1"


def test_wrong_classes_are_refused() -> None:
    for a, b in ((1, 1), (1, None), (None, 1)):
        with pytest.raises(InputError, match="name two different classes, or neither"):
            ConfusionError(a=a, b=b)
    with pytest.raises(InputError, match="a = 1, b = 9, but the classes are 0 to 3"):
        ConfusionLeft(a=1, b=9)(study(4))
