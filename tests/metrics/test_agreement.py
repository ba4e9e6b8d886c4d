"""Tug of war and disagreement by hand and against plain loops."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from simulated import predicted, study

from unlearnlab.metrics.agreement import Disagreement, TugOfWar, tug_of_war
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
