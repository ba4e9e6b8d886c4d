"""The onion check: shares by hand, all pairs of originals, what counts as newly exposed."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from simulated import draws, study

from unlearnlab.contract import Audit
from unlearnlab.metrics import onion
from unlearnlab.metrics.onion import NewlyExposed, exposed, intervals, usual
from unlearnlab.metrics.statistics import t_interval
from unlearnlab.outputs import Outputs


def test_shares_by_hand() -> None:
    z, zero = torch.tensor([[0.1, 2.5, -1.0, 3.0]]).double(), torch.zeros(1, 4).double()
    assert exposed(z, zero, 2.0).tolist() == [0.5]
    assert exposed(z, zero, 3.0).tolist() == [0.0]  # equal is not above
    assert exposed(z, torch.cat([zero, zero + 2]), 0.6, torch.tensor([1])).tolist() == [0.5]  # not from its own original


@pytest.mark.parametrize("models", [2, 5, 8])
def test_the_threshold_is_of_all_ordered_pairs(models: int) -> None:
    z = draws(models, 60)
    every = np.concatenate([(z[i] - z[j]).numpy() for i, j in permutations(range(models), 2)])
    assert usual(z) == pytest.approx(np.quantile(every, 0.99), abs=0.1)
    assert (every > usual(z)).mean() == pytest.approx(0.01, abs=2 / len(every) + 1e-9)


def test_many_models_take_the_near_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    z = draws(9, 500)
    every = usual(z)
    monkeypatch.setattr(onion, "MOST", 9 * 500 * 2)
    assert usual(z) != every
    assert usual(z) == pytest.approx(every, abs=0.15)
    monkeypatch.setattr(onion, "MOST", 1)
    assert usual(z) == pytest.approx(every, abs=0.3)


def test_shares_are_the_plain_loop() -> None:
    u, p, own = draws(6, 30) + 0.5, draws(4, 30, seed=1), torch.tensor([0, 1, 2, 3, 3, 0])
    for parents in (None, own):
        plain = [np.mean([((u[i] - p[j]) > 1).double().mean() for j in range(4) if parents is None or j != own[i]]) for i in range(6)]
        assert exposed(u, p, 1.0, parents).tolist() == pytest.approx(plain)


def test_an_own_original_that_is_not_there_is_not_left_out() -> None:
    u, p = draws(3, 30) + 0.5, draws(4, 30, seed=1)
    found = exposed(u, p, 1.0, torch.tensor([-1, 2, -1]))
    assert found[[0, 2]].tolist() == exposed(u, p, 1.0)[[0, 2]].tolist()
    assert float(found[1]) == float(exposed(u, p, 1.0, torch.tensor([0, 2, 1]))[1])


def test_the_interval_knows_that_all_models_share_the_originals() -> None:
    """Forty unlearned models against five originals: another five would move all forty at once."""
    held = wide = 0
    for seed in range(20):
        u, o, p = (draws(count, 60, seed=3 * seed + at) for at, count in enumerate((40, 40, 5)))
        found = intervals(u, o, p, None)
        alone = t_interval(exposed(u, p, usual(p)))
        assert found is not None
        assert alone is not None
        held += found[1].lo <= 0 <= found[1].hi
        wide += found[0].hi - found[0].lo > 1.3 * (alone.hi - alone.lo)
    assert held >= 17
    assert wide >= 15
    assert intervals(draws(4, 60), draws(4, 60), draws(2, 60), None) is None


def raised(audit: Audit, side: str, ids: torch.Tensor, by: float) -> Audit:
    outputs: Outputs = getattr(audit, side)
    more = by * torch.isin(outputs.ids, ids).float()[:, None] * torch.nn.functional.one_hot(outputs.labels, 4)
    return replace(audit, **{side: replace(outputs, logits=outputs.logits + more)})


def test_newly_exposed_images_are_found() -> None:
    audit = study(16, 0.0)
    before = NewlyExposed()(audit)
    assert before.value == pytest.approx(0.01, abs=0.01)
    assert before.extra["excess_lo"] < 0 < before.extra["excess_hi"]
    assert before.extra["separation"] > 1
    laid_bare = audit.unlearned.of("retain").ids[:4]
    found = NewlyExposed()(raised(audit, "unlearned", laid_bare, 12.0))
    assert found.value == pytest.approx(0.05 + 0.95 * (before.value or 0), abs=0.005)  # 4 of 80
    assert found.extra["excess_lo"] > 0.03
    assert {found.extra[f"top_{rank}"] for rank in range(1, 5)} == {float(i) for i in laid_bare}
    with_oracles = NewlyExposed()(raised(raised(audit, "unlearned", laid_bare, 12.0), "oracles", laid_bare, 12.0))
    assert with_oracles.extra["excess"] == pytest.approx(before.extra["excess"], abs=0.005)  # the oracles have an onion too
    hidden = NewlyExposed()(raised(audit, "unlearned", audit.unlearned.of("retain").ids, -12.0))
    assert hidden.value == 0.0


def test_originals_expose_one_percent_and_their_own_children_nothing() -> None:
    """Why U is not compared with its own original: what nothing was done to would look better than an oracle."""
    audit = study(16)
    same = NewlyExposed()(replace(audit, unlearned=audit.originals))
    assert same.value == pytest.approx(0.01, abs=1e-3)
    assert same.extra["against_own"] == 0
    assert same.ceiling is not None
    assert same.ceiling.mean == pytest.approx(same.value)
    assert (same.rescaled, same.floor is not None) == (None, True)


def test_what_it_needs() -> None:
    audit = study(4)
    refs = audit.references
    assert refs is not None
    assert NewlyExposed()(replace(audit, references=refs.rows(range(15)))).missing == "not computed: 15 reference models, needs 16"
    assert "no reference models" in (NewlyExposed()(replace(audit, references=None)).missing or "")
    one = replace(audit, originals=audit.originals.rows([0]), parents=torch.zeros(4, dtype=torch.int64))
    assert NewlyExposed()(one).missing == "not computed: 1 original, needs 2"
    shared = NewlyExposed()(replace(audit, references=replace(refs, models=(*audit.unlearned.models, *refs.models[4:]))))
    assert "36 reference models (4 more are audited models themselves)" in shared.notes[0]
    two = NewlyExposed()(replace(audit, originals=audit.originals.rows([0, 1]), parents=torch.tensor([0, 1, 0, 1])))
    assert two.ci is None
    assert "no interval: 2 originals, needs 3" in two.notes
    assert "excess_lo" not in two.extra
    unknown = NewlyExposed()(replace(audit, parents=None))
    assert unknown.missing is None
    assert "against_own" not in unknown.extra
