"""Tug of war and disagreement by hand and against plain loops."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from simulated import predicted, study

from unlearnlab.contract import Audit
from unlearnlab.metrics import svc_attack
from unlearnlab.metrics.agreement import Disagreement, TugOfWar, TugOfWarMia, tug_of_war
from unlearnlab.metrics.svc_attack import SvcEfficacy
from unlearnlab.spec import InputError


def test_tow_by_hand() -> None:
    u, o = torch.tensor([[0.58, 0.99, 0.92], [0.5, 1.0, 0.9]]).double(), torch.tensor([[0.5, 1.0, 0.9], [0.5, 1.0, 0.9]]).double()
    assert tug_of_war(u, o).tolist() == pytest.approx([0.892584, 1.0])
    with pytest.raises(InputError, match="not percent"):
        tug_of_war(100 * u, 100 * o)


def test_tow_is_the_mean_of_products_over_pairs() -> None:
    audit = study(6)
    found = TugOfWar()(audit)
    each = []
    for i in range(6):
        product_ = 1.0
        for part in ("forget", "retain", "test"):
            u, o = audit.unlearned.of(part), audit.oracles.of(part)
            product_ *= 1 - abs(float((u.predicted[i] == u.labels).double().mean() - (o.predicted[i] == o.labels).double().mean()))
        each.append(product_)
    assert found.per_model == pytest.approx(each)
    assert found.value == pytest.approx(sum(each) / 6)
    assert found.floor is not None
    assert found.ceiling is not None
    assert found.ceiling.mean < found.floor.mean < 1
    assert any("no shared seeds" in note for note in found.notes)
    assert not any("seeds" in note for note in TugOfWar()(replace(audit, oracles=replace(audit.oracles, models=audit.unlearned.models))).notes)
    assert TugOfWar()(replace(audit, unlearned=audit.oracles)).value == 1.0
    more = TugOfWar()(study(6, oracles=9))
    assert "6 pairs of 6 unlearned models and 9 oracles" in more.notes
    assert more.per_model is not None


def test_disagreement_by_hand() -> None:
    parts = ["forget"] * 4
    one = Disagreement()(predicted([[0, 1, 2, 2]] * 3, [[0, 1, 1, 2]] * 3, [0, 1, 2, 2], parts))
    assert (one.value, one.per_example) == (0.25, (0.0, 0.0, 1.0, 0.0))
    # both wrong, and differently
    assert Disagreement()(predicted([[1]] * 3, [[2]] * 3, [0], ["forget"])).value == 1.0


def test_disagreement_is_the_mean_over_all_pairs() -> None:
    audit = study(5, oracles=7)
    u, o = audit.unlearned.of("forget").predicted, audit.oracles.of("forget").predicted
    found = Disagreement()(audit)
    assert found.value == pytest.approx(sum(float((a != b).double().mean()) for a, b in product(u, o)) / 35)
    assert found.per_model == pytest.approx([sum(float((a != b).double().mean()) for b in o) / 7 for a in u])
    assert found.per_example == pytest.approx([sum(float(a[i] != b[i]) for a, b in product(u, o)) / 35 for i in range(40)])
    assert found.floor is not None
    assert 0 < found.floor.mean < found.value


def half_sure(audit: Audit, side: str, called: float) -> Audit:
    """The models of a side made sure of retained images and unsure of controls, and sure of all but a share ``called`` of the forget images."""
    seen = getattr(audit, side)
    sure = seen.part != 3
    forget = (seen.part == 0).nonzero()[:, 0]
    sure[forget[: round(called * len(forget))]] = False
    noise = 0.1 * torch.randn(len(seen), len(seen.labels), generator=torch.Generator().manual_seed(len(side)))
    logits = torch.nn.functional.one_hot(seen.labels, 4) * (torch.where(sure, 6.0, 0.5) + noise)[..., None]
    return replace(audit, **{side: replace(seen, logits=logits)})


def test_tow_mia_by_hand() -> None:
    audit = half_sure(half_sure(study(4), "unlearned", 0.5), "oracles", 0.75)
    assert SvcEfficacy()(audit).per_model == (0.5,) * 4
    found = TugOfWarMia()(audit)
    # all are right on every retained and test image: only the attack tells them apart
    assert found.per_model == pytest.approx([1 - 0.25] * 4)
    assert found.key == "tow_mia" != TugOfWar()(audit).key
    assert TugOfWar()(audit).value == 1.0
    assert found.ci is not None
    assert found.ci.lo == found.ci.hi == pytest.approx(0.75)


def test_tow_mia_is_the_mean_of_products_over_pairs_by_seed() -> None:
    audit = study(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = replace(audit, unlearned=audit.unlearned.rows(order), oracles=audit.oracles.rows(order.flip(0)), parents=order)
    efficacy = {side: SvcEfficacy()(replace(audit, unlearned=getattr(audit, side))).per_model for side in ("unlearned", "oracles")}
    each = []
    for i in range(6):
        product_ = 1 - abs(efficacy["unlearned"][i] - efficacy["oracles"][i])
        for part in ("retain", "test"):
            u, o = audit.unlearned.of(part), audit.oracles.of(part)
            product_ *= 1 - abs(float((u.predicted[i] == u.labels).double().mean() - (o.predicted[i] == o.labels).double().mean()))
        each.append(product_)
    found = TugOfWarMia()(mixed)
    assert found.value == pytest.approx(sum(each) / 6)
    assert found.per_model == pytest.approx([each[i] for i in order])
    assert abs(found.value - TugOfWar()(mixed).value) > 0.01  # not tow under another name
    assert found.floor is not None
    assert found.ceiling is not None
    assert found.ceiling.mean < found.floor.mean < 1
    assert TugOfWarMia()(replace(audit, unlearned=audit.oracles)).value == 1.0


def test_the_mean_of_products_is_not_the_product_of_means() -> None:
    u, o = torch.tensor([[0.9, 0.5, 1.0], [0.5, 0.9, 1.0]]).double(), torch.tensor([[0.5, 0.5, 1.0]] * 2).double()
    assert float(tug_of_war(u, o).mean()) == pytest.approx(0.6)
    assert float((1 - (u - o).abs().mean(0)).prod()) == pytest.approx(0.64)


@pytest.mark.parametrize(("side", "words"), [("unlearned", "unlearned models"), ("oracles", "oracles")])
def test_without_an_attack_there_is_no_tow_mia(side: str, words: str) -> None:
    audit = study(4)
    seen = getattr(audit, side)
    logits = seen.logits.clone()
    logits[1] = 0  # as unsure of everything
    found = TugOfWarMia()(replace(audit, **{side: replace(seen, logits=logits)}))
    assert (found.value, found.missing) == (None, f"not computed: confidence is constant for 1 of 4 {words}")
    without = TugOfWarMia()(audit.restrict(audit.unlearned.part != 3))
    assert without.missing == "not computed: there are no control examples"


def test_originals_without_an_attack_are_left_out_of_the_ceiling() -> None:
    audit = study(8)
    logits = audit.originals.logits.clone()
    logits[2] = 0
    found = TugOfWarMia()(replace(audit, originals=replace(audit.originals, logits=logits)))
    assert found.value == TugOfWarMia()(audit).value
    assert found.ceiling is not None
    assert "confidence is constant for 1 originals, which are left out" in found.notes


def test_each_model_is_attacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.svm import SVC

    fits, fit = [], SVC.fit
    monkeypatch.setattr(SVC, "fit", lambda self, *given: fits.append(1) or fit(self, *given))
    svc_attack._fitted.cache_clear()
    audit = study(5, seed=7)
    SvcEfficacy()(audit)
    assert len(fits) == 15
    TugOfWarMia()(audit)
    TugOfWarMia()(audit.restrict((audit.unlearned.part != 0) | (audit.unlearned.ids % 2 == 0)))  # a group is another target of the same attack
    assert len(fits) == 15
