"""``trace``: exact at the original, unbiased at the oracles, right in between."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unlearnlab.contract import Audit
from unlearnlab.metrics.trace import Trace, hold_out, share_left
from unlearnlab.outputs import Outputs
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError

N, IMAGES = 32, 62


def outputs(margins: Tensor, seeds: tuple[int, ...] | None = None) -> Outputs:
    m, n = margins.shape
    zeros = torch.zeros(n, dtype=torch.int64)
    logits = torch.stack([margins, torch.zeros_like(margins)], -1)
    return Outputs(logits, torch.zeros(m, n, dtype=torch.bool), zeros, torch.arange(n), zeros, seeds or tuple(range(m)))


def normal(purpose: str, n: int = N, images: int = IMAGES, seed: int = 0) -> Tensor:
    return torch.randn(n, images, generator=generator(seed, purpose), dtype=torch.float64)


GAP = torch.cat([torch.linspace(2, 4, IMAGES // 2), torch.full((IMAGES - IMAGES // 2,), 0.3)]).double()


def audited(unlearned: Tensor, parents: Tensor | None = torch.arange(N), n: int = N, seed: int = 0) -> Audit:  # noqa: B008
    originals, oracles = normal("originals", n, seed=seed) + GAP, normal("oracles", n, seed=seed)
    return Audit(outputs(originals), outputs(oracles), outputs(unlearned), parents)


def test_hand_example() -> None:
    p, o, u = (torch.full((2, 1), value, dtype=torch.float64) for value in (4.0, 0.0, 1.0))
    held = torch.eye(2, dtype=torch.bool)
    left = share_left(p, o, u, torch.arange(2), held, held, held)
    assert left.value == pytest.approx(0.25, abs=1e-15)
    assert left.per_model.tolist() == left.per_example.tolist() * 2 == [0.25, 0.25]


@pytest.mark.parametrize("n", [16, 17, 31, 32])
def test_the_original_has_all_of_its_trace(n: int) -> None:
    audit = audited(normal("originals", n) + GAP, torch.arange(n), n)
    found = Trace()(audit)
    assert found.value == 1.0
    assert found.ci is not None
    assert (found.ci.lo, found.ci.hi) == (1.0, 1.0)
    shuffled = torch.randperm(n, generator=generator(0, "shuffle"))
    assert Trace()(replace(audit, unlearned=audit.originals.rows(shuffled), parents=shuffled)).value == 1.0


def test_other_oracles_have_none_of_it() -> None:
    found = Trace()(audited(normal("others")))
    assert found.ci is not None
    assert found.ci.lo <= 0 <= found.ci.hi
    assert found.perfect == 0
    assert found.n_models == (N, N, N)
    assert found.n_examples == IMAGES


@pytest.mark.parametrize("share", [-0.2, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.5])
def test_planted_shares_are_recovered(share: float) -> None:
    values = [Trace()(audited(normal("others", seed=seed) + share * GAP, seed=seed)).value for seed in range(20)]
    assert torch.tensor(values).mean() == pytest.approx(share, abs=0.012)
    assert torch.tensor(values).std() < 0.03


def test_a_mixture_model_by_model_is_recovered_too() -> None:
    # a quarter of the models did not forget at all
    stay = torch.arange(N) % 4 == 0
    original = normal("originals") + GAP
    found = Trace()(audited(torch.where(stay[:, None], original, normal("others"))))
    assert found.value == pytest.approx(0.25, abs=0.04)
    assert found.per_model is not None
    each = torch.tensor(found.per_model)
    assert each[stay].min() > 0.6 > 0.4 > each[~stay].max()


def test_order_of_models_and_examples_does_not_matter() -> None:
    audit = audited(normal("others") + 0.3 * GAP)
    before = Trace()(audit)
    p, o, u = (torch.randperm(N, generator=generator(0, who)) for who in "pou")
    after = Trace()(Audit(audit.originals.rows(p), audit.oracles.rows(o), audit.unlearned.rows(u), p.argsort()[u]))
    assert after.value == pytest.approx(before.value, abs=1e-12)
    assert before.per_model is not None
    assert after.per_model == pytest.approx([before.per_model[i] for i in u], abs=1e-12)
    images = torch.randperm(IMAGES, generator=generator(0, "images"))
    moved = Trace()(replace(audit, **{who: getattr(audit, who).examples(images) for who in ("originals", "oracles", "unlearned")}))
    assert moved.value == pytest.approx(before.value, abs=1e-12)
    assert before.per_example is not None
    assert moved.per_example == pytest.approx([before.per_example[i] for i in images], abs=1e-12)


def test_a_constant_per_image_changes_nothing() -> None:
    shift = 3 * normal("shift", 1)
    before = Trace()(audited(normal("others") + 0.3 * GAP))
    moved = (outputs(m + shift) for m in (normal("originals") + GAP, normal("oracles"), normal("others") + 0.3 * GAP))
    after = Trace()(Audit(*moved, parents=torch.arange(N)))
    assert after.value == pytest.approx(before.value, abs=1e-10)


def test_one_gap_wide_image_carries_its_own_share() -> None:
    u = normal("others")
    u[:, 3] += GAP[3]
    found = Trace()(audited(u))
    assert found.per_example is not None
    assert found.per_example[3] == pytest.approx(1, abs=0.3)
    assert abs(found.per_example[4]) < 0.3


def test_no_trace_and_too_few_models_are_said() -> None:
    same = Audit(outputs(normal("originals")), outputs(normal("oracles")), outputs(normal("others")), torch.arange(N))
    assert Trace()(same).missing == f"not computed: this forget set leaves no trace at N={N}"
    few = audited(normal("others", 4), torch.arange(4), 4)
    assert Trace()(few).missing == "not computed: N=4, needs 16"
    constant = outputs(torch.zeros(N, 3, dtype=torch.float64))
    assert Trace()(Audit(constant, constant, constant, torch.arange(N))).missing == f"not computed: this forget set leaves no trace at N={N}"


def test_one_original_for_all_is_held_out_throughout() -> None:
    parents = torch.full((N,), 5)
    original = normal("originals") + GAP
    audit = audited(original[5].expand(N, -1).contiguous(), parents)
    out_p, out_o, out_u = hold_out(audit.originals, audit.oracles, audit.unlearned, parents, 4)
    assert out_p.sum(1).tolist() == [1] * 4
    assert out_p[:, 5].all()
    assert out_u.all()
    assert out_o.sum(0).tolist() == [1] * N
    found = Trace()(audit)
    assert found.value == 1.0
    assert "one original" in found.notes[0]
    assert Trace()(audited(normal("others"), parents)).value == pytest.approx(0, abs=0.05)


def test_unknown_parents_are_said_and_still_right_on_average() -> None:
    found = Trace()(audited(normal("others") + 0.5 * GAP, None))
    assert found.value == pytest.approx(0.5, abs=0.05)
    assert "unknown" in found.notes[0]


def test_groups_are_audited_like_the_whole() -> None:
    low = GAP > 1
    audit = replace(audited(normal("others") + torch.where(low, 0.5, 0.0) * GAP), groups={"wrong": low, "clean": ~low})
    assert Trace()(audit.group("wrong")).value == pytest.approx(0.5, abs=0.05)
    clean = Trace()(audit.group("clean"))
    assert clean.value == pytest.approx(0, abs=0.15)


def test_infinite_logits_are_refused() -> None:
    u = normal("others")
    u[3, 7] = torch.nan
    with pytest.raises(InputError, match=r"model 3 .* id 7"):
        Trace()(audited(u))
