"""RMIA: by hand, against a plain loop, masked means, ties, and who may be compared with whom."""

import math
from dataclasses import replace

import pytest
import torch
from simulated import draws, outputs_of, study

from unlearnlab.contract import Audit
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.rmia import RmiaAuc, RmiaTpr, beaten, log_mean, log_p, offline, online
from unlearnlab.metrics.statistics import tpr_at
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def with_references(audit: Audit, **changes) -> Audit:
    assert audit.references is not None
    return replace(audit, references=replace(audit.references, **changes))


def test_by_hand() -> None:
    nobody = torch.zeros(2, 1, dtype=torch.bool)
    common = offline(logs(0.4, 0.6)[:, None], nobody, 0.3)
    assert common.exp().tolist() == pytest.approx([0.675])
    ratio = logs(0.9) - common
    assert ratio.exp().tolist() == pytest.approx([1.3333], abs=1e-4)
    assert beaten(ratio[None], logs(0.9195, 1.4074, 0.7453, 0.625)[None], 1.0).tolist() == [[3]]  # of 4: score .75
    one_saw_it = torch.tensor([[True], [False]])
    assert online(logs(0.4, 0.6)[:, None], one_saw_it).exp().tolist() == pytest.approx([0.5])
    assert offline(logs(0.4, 0.6)[:, None], one_saw_it, 0.3).exp().tolist() == pytest.approx([(1.3 * 0.6 + 0.7) / 2])


def test_equality_does_not_count_whatever_the_rounding() -> None:
    population = logs(0.5, 1.0, 1.0, 2.0)[None]
    assert beaten(logs(1.0, 1.0 + 1e-15, 2.5, 0.5)[None], population, 1.0).tolist() == [[1, 1, 4, 0]]
    assert beaten(logs(2.0, 2.1)[None], population, 2.0).tolist() == [[1, 3]]
    # every model is certain of everything: all ratios are 1, however many references an image has
    member = draws(7, 50) > 0
    sure = torch.full((7, 50), -1e-9, dtype=torch.float64)
    ratio, others = sure - offline(sure, member, 0.3), sure - offline(sure, torch.zeros_like(member), 0.3)
    assert beaten(ratio, others, 1.0).max() == 0


@pytest.mark.parametrize(("a", "gamma"), [(0.3, 1.0), (1.0, 1.0), (0.0, 2.0)])
@pytest.mark.parametrize("seed", range(3))
def test_sorted_search_equals_the_table_of_all_pairs(a: float, gamma: float, seed: int) -> None:
    targets, refs, n, n_z = 3, 4, 6, 9
    p, p_z = (draws(targets, k, seed=seed + k).sigmoid() for k in (n, n_z))
    q, q_z = (draws(refs, k, seed=seed + 50 + k).sigmoid() for k in (n, n_z))
    member = draws(refs, n, seed=seed) > 0
    member[0] = False
    found = beaten(p.log() - offline(q.log(), member, a), p_z.log() - offline(q_z.log(), torch.zeros(refs, n_z, dtype=torch.bool), a), gamma)
    for t in range(targets):
        for x in range(n):
            out = [float(q[m, x]) for m in range(refs) if not member[m, x]]
            rho = float(p[t, x]) / (((1 + a) * sum(out) / len(out) + 1 - a) / 2)
            rhos = [float(p_z[t, z]) / (((1 + a) * float(q_z[:, z].mean()) + 1 - a) / 2) for z in range(n_z)]
            assert found[t, x] == sum(rho / other > gamma for other in rhos)


def test_the_mean_over_references_is_masked() -> None:
    """What saw the image enters neither as 0 nor at all; a true 0 counts; one image has three references, another one."""
    p = torch.tensor([[0.9, 0.9], [0.2, 0.8], [0.4, 0.8], [1e-300, 0.8]], dtype=torch.float64)
    member = torch.tensor([[True, False], [False, True], [False, True], [False, True]])
    assert log_mean(p.log(), ~member).exp().tolist() == pytest.approx([0.2, 0.9])
    assert log_mean(p.log(), member).exp().tolist() == pytest.approx([0.9, 0.8])
    assert log_mean(p.log()[:, :1], torch.zeros(4, 1, dtype=torch.bool)).tolist() == [-math.inf]


def test_tiny_probabilities_are_clipped_and_stay_finite() -> None:
    seen = outputs_of(torch.tensor([[[0.0, 5000.0], [0.0, 0.0]]], dtype=torch.float64), [0, 0], ["forget", "test"])
    assert log_p(seen)[0].tolist() == pytest.approx([math.log(1e-30), -math.log(2)])
    none_saw = torch.zeros(1, 2, dtype=torch.bool)
    assert torch.isfinite(log_p(seen) - offline(log_p(seen), none_saw, 1.0)).all()


def test_tpr_at_fpr_takes_the_largest_reachable_without_interpolation() -> None:
    members, others = torch.tensor([[5.0, 4.0, 3.0, 1.0]]).double(), torch.arange(10.0).double()[None] - 5  # -5 … 4
    assert tpr_at(0.0, members, others).tolist() == [0.25]  # above 4
    assert tpr_at(0.1, members, others).tolist() == [0.5]  # above 3
    assert tpr_at(0.19, members, others).tolist() == [0.5]
    assert tpr_at(0.3, members, others).tolist() == [0.75]  # 0.3 · 10 is 3 in spite of rounding
    tied = torch.tensor([[2.0] * 5 + [0.0] * 5]).double()
    assert tpr_at(0.3, torch.tensor([[2.0, 3.0]]).double(), tied).tolist() == [0.5]  # the five at 2 are accused together or not at all


def test_a_rate_finer_than_the_control_images_allow_is_not_computed() -> None:
    found = RmiaTpr(fpr=0.01)(study(4))
    assert found.missing == "not computed: 48 control images, needs 100 for an FPR of 0.01"
    assert RmiaTpr(fpr=1 / 48)(study(4)).value is not None


@pytest.mark.parametrize("variant", ["offline", "online"])
def test_members_score_higher_and_fewer_where_less_is_left(variant: str) -> None:
    values = [RmiaAuc(variant)(study(4, left)).value for left in (1.0, 0.5, 0.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.8
    assert abs(values[2] - 0.5) < 0.15


def test_it_never_looks_at_what_the_audited_models_were_trained_on() -> None:
    audit = study(4)
    seen = audit.unlearned
    told = replace(audit, unlearned=replace(seen, member=seen.member ^ (seen.part == PARTS.index("forget"))))
    assert RmiaAuc()(told) == RmiaAuc()(audit)


def test_two_audits_of_one_size_do_not_share_signals() -> None:
    a, b = study(4), study(4)
    assert b.references is not None
    RmiaAuc()(a)
    other = with_references(b, logits=b.references.logits.flip(0))
    assert RmiaAuc()(other).value != RmiaAuc()(a).value


def test_images_without_a_reference_are_dropped_and_counted() -> None:
    audit = study(4)
    held = audit.references
    assert held is not None
    forget, control = ((held.part == PARTS.index(part)).nonzero()[:, 0] for part in ("forget", "control"))
    member = held.member.clone()
    member[:, forget[:3]] = True
    member[:, control[:2]] = False
    found = RmiaAuc()(with_references(audit, member=member))
    assert found.dropped == ((3, "forget images that no reference is new to"),)
    assert found.n_examples == 37
    without = audit.restrict(~torch.isin(torch.arange(len(held.labels)), forget[:3]))
    assert found.value == pytest.approx(RmiaAuc()(with_references(without, member=member[:, ~torch.isin(torch.arange(len(held.labels)), forget[:3])])).value)
    both = RmiaAuc("online")(with_references(audit, member=member))
    assert [count for count, _ in both.dropped] == [3, 2]
    member[:, forget] = True
    assert RmiaAuc()(with_references(audit, member=member)).missing == "not computed: no forget image is new to some reference"


def test_no_model_is_compared_with_itself() -> None:
    audit = study(4)
    held = audit.references
    assert held is not None
    four_audited = with_references(audit, models=(0, 1, 100_000, 100_001, *held.models[4:]))
    found = RmiaAuc()(four_audited)
    assert "4 references are audited models themselves and are left out" in found.notes
    assert found.value == RmiaAuc()(replace(audit, references=held.rows(range(4, 40)))).value
    alone = replace(audit, references=held.rows([0, 1, 2]))
    assert RmiaAuc()(with_references(alone, models=(0, 1, 500_002))).missing == "not computed: 1 reference models that are not audited, needs 2"
    # the same under other seeds
    copies = replace(audit.unlearned, models=tuple(range(700_000, 700_004)))
    assert RmiaAuc()(replace(audit, references=Outputs.join([held.rows(range(4, 40)), copies]))).value == found.value
    twice = with_references(alone, models=(500_000, 500_000, 500_002))
    assert RmiaAuc()(twice).missing == "not computed: two reference models have the seed 500000, and none may be compared with itself"


def test_two_references_do_and_one_does_not() -> None:
    audit = study(4)
    held = audit.references
    assert held is not None
    # complementary halves: every image has one reference that is new to it
    held = replace(held.rows([0, 1]), member=torch.stack([held.member[0], (held.part != 2) & (held.part != 4) & ~held.member[0]]))
    found = RmiaAuc()(replace(audit, references=held))
    assert found.value is not None
    assert found.dropped == ()
    assert RmiaAuc()(replace(audit, references=held.rows([0]))).missing == "not computed: 1 reference models, needs 2"
    assert RmiaAuc()(replace(audit, references=None)).missing == "not computed: there are no reference models, trained on known random halves of the images"


def test_the_population_must_be_new_to_everybody() -> None:
    audit = study(4)
    held = audit.references
    assert held is not None
    member = held.member.clone()
    member[3, (held.part == PARTS.index("test")).nonzero()[:5, 0]] = True
    found = RmiaAuc()(with_references(audit, member=member))
    assert found.missing == "not computed: 5 test images were trained on; the population must be new to every model"
    assert RmiaAuc(population="validation")(with_references(audit, member=member)).value is not None


def test_references_seen_on_other_images_are_refused() -> None:
    audit = study(4)
    assert audit.references is not None
    with pytest.raises(InputError, match="observed on different images or in another order"):
        RmiaAuc()(with_references(audit, ids=audit.references.ids.flip(0)))
    for field in ("part", "labels"):
        with pytest.raises(InputError, match="other parts or labels"):
            RmiaAuc()(with_references(audit, **{field: getattr(audit.references, field).roll(1)}))
    bad = audit.references.logits.clone()
    bad[2] = torch.nan
    with pytest.raises(InputError, match="model 500002 has a NaN or infinite logit"):
        RmiaAuc()(with_references(audit, logits=bad))


def test_another_definition_has_another_key() -> None:
    keys = [RmiaAuc().key, RmiaAuc("online").key, RmiaAuc(a=0.5).key, RmiaAuc(gamma=2).key, RmiaAuc(population="validation").key]
    assert keys == ["rmia.auc", "rmia.online.auc", "rmia.auc_a0.5", "rmia.auc_gamma2", "rmia.auc_validation"]
    assert RmiaAuc("online", a=0.5).key == "rmia.online.auc"  # which does not read a
    assert [RmiaTpr().key, RmiaTpr(fpr=0.01).key] == ["rmia.tpr_at_fpr", "rmia.tpr_at_fpr0.01"]
