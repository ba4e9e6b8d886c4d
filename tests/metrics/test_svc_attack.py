"""The support vector attack: direction, matched composition, refusals."""

from dataclasses import replace

import pytest
import torch
from simulated import study

from unlearnlab.metrics.svc_attack import SvcEfficacy, SvcPrivacy, called_member, features, matched

PARTS = {"forget": 0, "retain": 1, "control": 3}


def relabelled(audit, **parts: str):
    """The audit with the images of one part handed in as another part."""
    part = audit.unlearned.part
    for new, old in parts.items():
        keep = part != PARTS[new]
        audit, part = audit.restrict(keep), part[keep]
        rows = part == PARTS[old]
        twice = torch.cat([torch.arange(len(part)), rows.nonzero()[:, 0]])
        audit = audit.restrict(twice)
        part = torch.cat([part, torch.full((int(rows.sum()),), PARTS[new])])
        sides = {name: replace(getattr(audit, name), part=part) for name in ("originals", "oracles", "unlearned")}
        audit = replace(audit, **sides)
    return audit


def test_with_correctness_efficacy_is_unlearning_accuracy() -> None:
    members, others = torch.ones(100, 1), torch.cat([torch.ones(94, 1), torch.zeros(6, 1)])
    called = called_member(members.double(), others.double(), others.double())
    assert called is not None
    assert 1 - float(called.mean()) == pytest.approx(0.06)


def test_a_constant_feature_is_not_computed() -> None:
    assert called_member(torch.ones(5, 1).double(), torch.ones(5, 1).double(), torch.ones(2, 1).double()) is None
    audit = study(4)
    sure = replace(audit.unlearned, logits=100 * torch.nn.functional.one_hot(audit.unlearned.labels, 4).expand(4, -1, -1).float())
    found = SvcEfficacy("correctness")(replace(audit, unlearned=sure))
    assert found.missing == "not computed: correctness is constant for 4 of 4 models"
    others = SvcEfficacy("correctness")(replace(audit, oracles=sure))
    assert others.value is not None
    assert others.floor is None
    assert any("4 oracles" in note for note in others.notes)


def test_direction() -> None:
    audit = study(3, 1.0)
    as_unseen, as_seen = (SvcEfficacy()(relabelled(audit, forget=part)).value for part in ("control", "retain"))
    assert as_unseen is not None
    assert as_seen is not None
    assert as_seen < 0.35 < 0.65 < as_unseen
    values = [SvcEfficacy()(study(3, left)).value for left in (1.0, 0.5, 0.0)]
    assert values == sorted(values)
    privacy = SvcPrivacy()(audit)
    assert privacy.value is not None
    assert 0.65 < privacy.value <= 1


def test_members_have_the_control_images_composition() -> None:
    audit = study(3)
    members, others = matched(audit)
    seen, flipped = audit.unlearned, audit.groups["mislabelled"]
    assert set(seen.part[members].tolist()) == {1}
    assert set(seen.part[others].tolist()) == {3}
    assert len(set(members.tolist())) == len(members) == 48
    assert torch.equal(seen.labels[members], seen.labels[others])
    assert torch.equal(flipped[members], flipped[others])
    few = audit.restrict((seen.part != 1) | (seen.labels != 2))
    assert sorted(set(few.unlearned.labels[matched(few)[1]].tolist())) == [0, 1, 3]


def test_order_of_retain_does_not_matter() -> None:
    audit = study(3)
    by_class = audit.unlearned.labels.argsort(stable=True)
    assert SvcEfficacy()(audit.restrict(by_class)).value == SvcEfficacy()(audit).value


def test_a_class_without_control_images_is_dropped_and_counted() -> None:
    audit = study(3)
    seen = audit.unlearned
    found = SvcEfficacy()(audit.restrict((seen.part != 3) | (seen.labels != 1)))
    assert found.dropped == ((10, "no control image has their class"),)
    assert found.n_examples == 30
    alone = SvcEfficacy()(audit.restrict(torch.where(seen.part == 3, seen.labels != 1, (seen.part != 0) | (seen.labels == 1))))
    assert alone.missing == "not computed: no control image has a class of the forget set"
    tiny = SvcEfficacy()(audit.restrict((seen.part != 3) | (torch.arange(len(seen.part)) % 8 == 0)))
    assert tiny.missing == "not computed: 6 retained images match the control images in kind, needs 10"


def test_features_by_hand() -> None:
    from unlearnlab.outputs import Outputs

    logits = torch.tensor([0.7, 0.2, 0.1]).double().log().expand(1, 2, 3)
    seen = Outputs(logits, torch.zeros(1, 2, dtype=torch.bool), torch.tensor([0, 2]), torch.arange(2), torch.zeros(2).long(), (0,))
    wanted = {"correctness": (1, 0), "confidence": (0.7, 0.1), "entropy": (0.801819, 0.801819), "m_entropy": (0.162167, 2.959736)}
    for name, values in wanted.items():
        assert features(seen, name)[0, :, 0].tolist() == pytest.approx(values, abs=1e-6)
    assert features(seen, "prob")[0, 0].tolist() == pytest.approx([0.7, 0.2, 0.1])
