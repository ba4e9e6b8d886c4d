"""The per-class threshold attack: cuts by hand and by brute force, direction, held-out values only."""

from dataclasses import replace

import pytest
import torch
from simulated import draws, study

from unlearnlab.contract import Audit
from unlearnlab.metrics.statistics import clopper_pearson
from unlearnlab.metrics.threshold_attack import Cuts, ThresholdAttack, ThresholdEfficacy, ThresholdPrivacy, best_cut, oriented
from unlearnlab.outputs import Outputs

FEATURES = ("correctness", "confidence", "entropy", "m_entropy")
PARTS = {"forget": 0, "retain": 1, "control": 3}


def rows(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def balanced(members: torch.Tensor, others: torch.Tensor, cut: float) -> float:
    return float((members >= cut).double().mean() + (others < cut).double().mean()) / 2


def as_forget(audit: Audit, part: str) -> Audit:
    """The audit with the images of another part handed in as forget set."""
    whose = audit.unlearned.part
    old = (whose == PARTS[part]).nonzero()[:, 0]
    twice = torch.cat([(whose != 0).nonzero()[:, 0], old])
    audit = audit.restrict(twice)
    new = torch.cat([audit.unlearned.part[: -len(old)], torch.zeros(len(old), dtype=torch.int64)])
    return replace(audit, **{side: replace(getattr(audit, side), part=new) for side in ("originals", "oracles", "unlearned")})


def test_by_hand() -> None:
    members, others = rows(0.9, 0.8, 0.7), rows(0.6, 0.75, 0.2)
    cut = best_cut(members, others)
    assert cut.tolist() == [0.7]  # .8 is as good, and .7 is smaller
    assert balanced(members, others, 0.7) == balanced(members, others, 0.8) == pytest.approx(0.8333, abs=1e-4)
    labels = torch.zeros(3, dtype=torch.int64)
    forget = Cuts.found(members, others, (labels, labels), 1).called_member(rows(0.85, 0.5), labels[:2])
    assert (~forget).double().mean() == 0.5


def test_ties_are_cut_together_and_equal_optima_give_the_smallest() -> None:
    assert best_cut(rows(0.5, 0.5, 0.5), rows(0.5, 0.5)).tolist() == [0.5]
    assert best_cut(rows(0.9, 0.5), rows(0.5, 0.5)).tolist() == [0.9]
    assert best_cut(rows(0.2), rows(0.7, 0.9)).tolist() == [0.2]  # members lie below: no cut is better than calling everybody a member
    # thirds and sevenths: floating-point sums of the two rates would call one of these optima better
    members, others = rows(*[0.1] * 1, *[0.5] * 2), rows(*[0.0] * 3, *[0.3] * 4)
    assert best_cut(members, others).tolist() == [0.5]


@pytest.mark.parametrize("levels", [4, 1000])
@pytest.mark.parametrize(("m", "k"), [(1, 1), (5, 9), (30, 17)])
def test_one_sort_equals_trying_every_cut(m: int, k: int, levels: int) -> None:
    members = (draws(6, m, seed=m) * levels / 2).round() / levels + 0.3
    others = (draws(6, k, seed=99 + k) * levels / 2).round() / levels
    for cut, ours, theirs in zip(best_cut(members, others).tolist(), members, others, strict=True):
        candidates = torch.cat([ours, theirs]).unique().tolist()
        best = max(balanced(ours, theirs, candidate) for candidate in candidates)
        assert cut == min(candidate for candidate in candidates if balanced(ours, theirs, candidate) > best - 1e-12)


def test_every_class_has_its_own_cut_and_one_missing_on_a_side_has_the_pooled_one() -> None:
    members, others = rows(0.9, 0.8, 0.3, 0.95), rows(0.7, 0.6, 0.1, 0.2)
    labels = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 1])
    cuts = Cuts.found(members, others, labels, 4)
    assert cuts.of_class.tolist() == [[0.8, 0.3, best_cut(members, others).item(), best_cut(members, others).item()]]
    assert cuts.own.tolist() == [True, True, False, False]
    # a class that is missing among the control images: its forget images are judged by the pooled cut, and counted
    audit = study(3)
    seen = audit.unlearned
    found = ThresholdEfficacy()(audit.restrict((seen.part != 3) | (seen.labels != 1)))
    assert found.extra["pooled"] == 10
    assert found.n_examples == 40
    assert any("10 images are judged by the cut of all classes" in note for note in found.notes)
    assert ThresholdEfficacy()(audit).extra["pooled"] == 0


@pytest.mark.parametrize("feature", FEATURES)
def test_members_have_the_larger_values(feature: str) -> None:
    audit = study(3, 1.0)
    seen = audit.originals
    values = oriented(seen, feature).mean(0)
    assert values[seen.part == PARTS["retain"]].mean() > values[seen.part == PARTS["control"]].mean() + 0.05


def test_direction() -> None:
    audit = study(3, 1.0)
    as_unseen, as_seen = (ThresholdEfficacy()(as_forget(audit, part)).value for part in ("control", "retain"))
    assert as_unseen is not None
    assert as_seen is not None
    assert as_seen < 0.4 < 0.6 < as_unseen
    values = [ThresholdEfficacy()(study(3, left)).value for left in (1.0, 0.5, 0.0)]
    assert values == sorted(values)
    assert ThresholdPrivacy()(audit).value > 0.6


def test_with_correctness_efficacy_is_unlearning_accuracy() -> None:
    """Right -> member, wrong -> non-member, where members are right more often than non-members."""
    members, others, labels = torch.ones(1, 100).double(), torch.cat([torch.ones(1, 94), torch.zeros(1, 6)], 1).double(), torch.zeros(100).long()
    cuts = Cuts.found(members, others, (labels, labels), 1)
    assert (~cuts.called_member(others, labels)).double().mean() == pytest.approx(0.06)


def shuffled(models: int, a_side: int, classes: int = 4) -> tuple[ThresholdAttack, Outputs]:
    """Retained and control images alike: who is called a member was drawn at random."""
    n = 2 * a_side
    logits = 2 * draws(models, n, classes, seed=3)
    labels = torch.arange(a_side).repeat(2) % classes
    part = torch.cat([torch.full((a_side,), 1), torch.full((a_side,), 3)])
    seen = Outputs(logits, torch.zeros(models, n, dtype=torch.bool), labels, torch.arange(n), part, tuple(range(models)))
    return ThresholdAttack(torch.arange(a_side), torch.arange(a_side, n), "confidence"), seen


def test_shuffled_membership_gives_one_half_and_only_held_out_values_do() -> None:
    attack, seen = shuffled(200, 40)
    held_out, _ = attack.privacy(seen)
    assert abs(float(held_out.mean()) - 0.5) < 4 * float(held_out.std()) / 200**0.5 < 0.03
    cuts, _ = attack.cuts(seen)
    taught = [seen.examples(side[:20]) for side in (attack.members, attack.others)]
    members, others = (cuts.called_member(oriented(side, "confidence"), side.labels).double().mean(1) for side in taught)
    assert float(((1 + members - others) / 2).mean()) > 0.65  # what is not shown


def test_a_constant_feature() -> None:
    audit = study(4)
    sure = replace(audit.unlearned, logits=100 * torch.nn.functional.one_hot(audit.unlearned.labels, 4).expand(4, -1, -1).float())
    found = ThresholdEfficacy("correctness")(replace(audit, unlearned=sure))
    assert found.missing == "not computed: correctness is constant for 4 of 4 models"
    others = ThresholdEfficacy("correctness")(replace(audit, oracles=sure))
    assert others.value is not None
    assert others.floor is None
    assert any("4 oracles" in note for note in others.notes)
    assert ThresholdPrivacy("correctness")(replace(audit, unlearned=sure)).value == 0.5


def test_class_count_comes_from_the_logits() -> None:
    audit = study(3, classes=13)
    found = ThresholdEfficacy()(audit)
    assert found.value is not None
    assert 0 < found.value < 1


def test_order_of_retain_does_not_matter() -> None:
    audit = study(3)
    by_class = audit.unlearned.labels.argsort(stable=True)
    for metric in (ThresholdEfficacy(), ThresholdPrivacy()):
        assert metric(audit.restrict(by_class)).value == metric(audit).value


def test_the_median_models_interval_over_images() -> None:
    audit = study(3)
    found = ThresholdEfficacy()(audit)
    assert found.per_model is not None
    exact = clopper_pearson(round(sorted(found.per_model)[1] * 40), 40)
    assert (found.extra["median_model_lo"], found.extra["median_model_hi"]) == (exact.lo, exact.hi)


def test_keys_and_refusals() -> None:
    keys = [kind(feature).key for kind in (ThresholdEfficacy, ThresholdPrivacy) for feature in FEATURES]
    assert keys[:2] == ["mia_thr.correctness.efficacy", "mia_thr.confidence.efficacy"]
    assert len(set(keys)) == 8
    audit = study(3)
    seen = audit.unlearned
    tiny = audit.restrict((seen.part != 3) | (torch.arange(len(seen.part)) % 8 == 0))
    assert ThresholdEfficacy()(tiny).missing == "not computed: 6 retained images match the control images in kind, needs 10"
    assert ThresholdEfficacy()(replace(audit, originals=audit.originals.rows([]))).ceiling is None
