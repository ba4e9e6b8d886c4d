"""Attack success and standard accuracy by hand."""

from dataclasses import replace

import pytest
import torch
from simulated import TARGET, outputs_of, predicted, study

from unlearnlab.contract import Audit, Triggered
from unlearnlab.metrics.accuracy import Accuracy, Gap
from unlearnlab.metrics.backdoor import AttackSuccess, StandardAccuracy
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError

TRUE = [1, 1, 0, 0, 0, 0, 2, 2, 2, 2]  # two of the target class
CALLED = [1, 1, 1, 1, 1, 0, 2, 2, 2, 0]  # they are hit anyway, and three others


def saying(called: list[int], true: list[int], models: int, start: int) -> Outputs:
    return outputs_of(5.0 * torch.nn.functional.one_hot(torch.tensor([called] * models), 3), true, ["test"] * len(true), start)


def triggered(called: list[int], true: list[int], models: int = 1) -> Audit:
    """Clean test images are called 0, 1, 1, 2 where 0, 0, 1, 2 are there."""
    audit = predicted([[0, 1, 1, 2]] * models, [[0, 0, 1, 2]] * models, [0, 0, 1, 2], ["test"] * 4)
    seen = Triggered(saying(called, true, models, 0), saying(true, true, models, 100_000), saying(called, true, models, 0), target=1)
    return replace(audit, triggered=seen)


def test_by_hand() -> None:
    found = AttackSuccess()(triggered(CALLED, TRUE))
    assert (found.key, found.value, found.n_examples) == ("asr", 0.375, 8)
    assert found.dropped == ((2, "their true class is the target"),)
    assert found.floor.mean == 0.0
    # 3 of 8 by Clopper-Pearson, for one model
    assert (found.extra["examples_only_lo"], found.extra["examples_only_hi"]) == pytest.approx((0.0852, 0.7551), abs=1e-4)
    # of the clean images of classes 0, 0 and 2 one is called 1; the oracles are right
    assert (found.extra["base_rate"], found.extra["base_rate_oracles"]) == (pytest.approx(1 / 3), 0.0)
    assert StandardAccuracy()(triggered(CALLED, TRUE)).value == 0.75


def test_the_published_rate_counts_images_of_the_target_class_and_has_its_own_key() -> None:
    found = AttackSuccess(exclude_target=False)(triggered(CALLED, TRUE))
    assert (found.key, found.value, found.n_examples, found.dropped) == ("asr.all_classes", 0.5, 10, ())
    assert found.floor.mean == 0.2  # a clean model is charged with the images that are of that class
    assert found.extra["base_rate"] == 0.5


def test_interval_over_models() -> None:
    assert AttackSuccess()(triggered(CALLED, TRUE, 2)).ci is None
    audit = study(12)
    held = audit.triggered
    found = AttackSuccess()(audit)
    of = held.unlearned.labels != TARGET
    each = [float((row[of] == TARGET).double().mean()) for row in held.unlearned.logits.argmax(-1)]
    assert found.per_model == pytest.approx(each)
    assert found.ci.lo < found.value < found.ci.hi
    assert found.ci.method == "t over models"
    assert found.ceiling.mean > found.value > found.floor.mean > 0


def test_without_images_there_is_no_rate() -> None:
    only = AttackSuccess()(triggered([1, 1], [1, 1]))
    assert only.missing == "not computed: no triggered image is of another class than the target, 1"
    assert AttackSuccess(False)(triggered([1, 1], [1, 1])).value == 1.0
    plain = replace(study(4), triggered=None)
    for metric in (AttackSuccess(), StandardAccuracy()):
        assert metric(plain).missing == "not computed: these models were not shown images that bear a trigger"
    audit = study(4)
    untested = audit.restrict(audit.unlearned.part != 4)
    assert AttackSuccess()(untested).value == AttackSuccess()(audit).value
    assert "no base rate: there are no test images without the trigger" in AttackSuccess()(untested).notes
    assert StandardAccuracy()(untested).missing == "not computed: there are no test examples"


def test_standard_accuracy_is_the_test_accuracy() -> None:
    audit = study(6)
    assert StandardAccuracy()(audit) == replace(Accuracy("test")(audit), key="sa")


def test_other_models_on_triggered_images_are_refused() -> None:
    audit = study(4)
    other = replace(audit, unlearned=audit.oracles)
    with pytest.raises(InputError, match="the unlearned seen on triggered images are not those of the audit"):
        AttackSuccess()(other)
    with pytest.raises(InputError, match="asks for class 9, but the classes are 0 to 3"):
        AttackSuccess()(replace(audit, triggered=replace(audit.triggered, target=9)))
    assert "asr" in Gap(AttackSuccess())(audit).missing  # never a gap of the unlearned models to themselves


def test_a_bad_logit_on_a_triggered_image_is_named() -> None:
    audit = study(4)
    for side in ("originals", "oracles", "unlearned"):
        logits = getattr(audit.triggered, side).logits.clone()
        logits[2, 3] = torch.nan
        bad = replace(audit.triggered, **{side: replace(getattr(audit.triggered, side), logits=logits)})
        with pytest.raises(InputError, match=r"has a NaN or infinite logit on example id 3\b"):
            AttackSuccess()(replace(audit, triggered=bad))
