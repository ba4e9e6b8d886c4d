"""LiRA: scores by hand, masked sums against a plain loop, who may be a reference."""

import math
from dataclasses import replace

import numpy as np
import pytest
import simulated
import torch
from simulated import draws, study

from unlearnlab.contract import Audit
from unlearnlab.metrics.lira import Bell, LiraOffline, LiraOnline, References, balanced, bells
from unlearnlab.metrics.statistics import clopper_pearson, rank_auc, tpr_at
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError


def number(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_scores_by_hand() -> None:
    seen, unseen, s = Bell(number(2), number(1)), Bell(number(0), number(1)), number(1.5)
    score = seen.log_density(s) - unseen.log_density(s)
    assert score.item() == pytest.approx(1.0)
    assert score.sigmoid().item() == pytest.approx(0.731059, abs=5e-7)
    assert unseen.log_cdf(s).exp().item() == pytest.approx(0.933193, abs=5e-7)


def test_sixty_sds_away_is_a_number() -> None:
    """Densities underflow at 39 sd; only their logarithms can be told apart."""
    seen, unseen = Bell(number(1), number(0.5)), Bell(number(0), number(1))
    for s in (60.0, -60.0):
        assert (seen.log_density(number(s)) - unseen.log_density(number(s))).item() == pytest.approx(s * s / 2 - 2 * (s - 1) ** 2 + math.log(2))
    assert unseen.log_cdf(number(-60)).item() == pytest.approx(-1800 - math.log(60 * math.sqrt(2 * math.pi)), abs=1e-3)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("models", "n"), [(8, 5), (70, 31)])
def test_bells_are_the_plain_loop(models: int, n: int, own: bool) -> None:
    m, member = 3 * draws(models, n) + 1e5 * draws(1, n, seed=1), draws(models, n, seed=2) > 0
    member[0], member[1] = True, False
    for found, side in zip(bells(m, member, ~member, own=own), (member, ~member), strict=True):
        held = [m[side[:, x], x].numpy() for x in range(n)]
        pool = sum(((x - x.mean()) ** 2).sum() for x in held) / sum(len(x) - 1 for x in held)
        for x, values in enumerate(held):
            variance = (((values - values.mean()) ** 2).sum() + 10 * pool) / (len(values) - 1 + 10) if own else pool
            assert found.mean[x].item() == pytest.approx(values.mean(), rel=1e-12)
            assert found.sd[x].item() == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_the_same_models_for_all_examples() -> None:
    m, who = draws(12, 7), torch.arange(12) % 3 != torch.arange(3)[:, None]
    (at_once,) = bells(m, who[..., None], own=True)
    for fold in range(3):
        (alone,) = bells(m, who[fold][:, None].expand(-1, 7), own=True)
        assert torch.allclose(at_once.mean[fold], alone.mean, rtol=0, atol=1e-12)
        assert torch.allclose(at_once.sd[fold], alone.sd, rtol=1e-9, atol=0)


def test_no_spread_is_a_thousandth_of_the_other_side() -> None:
    member = torch.arange(20)[:, None].expand(-1, 6) % 2 == 0
    m = draws(20, 6).where(member, 0.3)
    seen, unseen = bells(m, member, ~member, own=False)
    assert unseen.sd.tolist() == pytest.approx((seen.sd / 1000).tolist())
    nothing = bells(torch.full_like(m, 0.3), member, ~member, own=True)
    score = nothing[0].log_density(torch.full((6,), 0.3)) - nothing[1].log_density(torch.full((6,), 0.3))
    assert score.tolist() == [0.0] * 6
    assert nothing[0].log_density(torch.full((6,), 1e4)).isfinite().all()


def test_variances_of_their_own_need_64_models_a_side() -> None:
    wide = torch.cat([draws(200, 10), 5 * draws(200, 10, seed=1)], 1)
    for models, own in ((100, False), (128, True)):
        member = (torch.arange(models)[:, None] + torch.arange(20)) % 2 == 0
        for bell in References(wide[:models], member, torch.arange(20), True, (), "").bells():
            assert (bell.sd.unique().numel() > 1) == own


def test_tpr_at_fpr_by_hand() -> None:
    others = torch.arange(10).double()[None]
    members = torch.tensor([[8.0, 8.5, 9.0, 9.5]], dtype=torch.float64)
    # none of ten may pass: only 9.5 lies above 9; one may: above 8; 19 % is still one
    assert [tpr_at(rate, members, others).item() for rate in (0.05, 0.1, 0.19, 0.2)] == [0.25, 0.75, 0.75, 1.0]
    assert tpr_at(1.0, members, others).item() == 1.0
    assert tpr_at(0.1, members * 0, others * 0).item() == 0.0  # all tied: a cut that lets a member pass lets everyone pass


def test_tpr_at_fpr_is_the_plain_loop() -> None:
    members, others = (draws(5, 60) + 0.5).round(decimals=1), draws(5, 100, seed=1).round(decimals=1)
    for rate in (0.01, 0.07, 0.29):
        plain = []
        for m, r in zip(members.numpy(), others.numpy(), strict=True):
            cuts = np.concatenate([m, r, [np.inf]])
            plain.append(max((m >= cut).mean() for cut in cuts if (r >= cut).mean() <= rate))
        assert tpr_at(rate, members, others).tolist() == pytest.approx(plain)


def test_balanced_accuracy_by_hand() -> None:
    members, others = torch.tensor([[1.0, 2.0, -1.0, 0.0]]), torch.tensor([[-1.0, 3.0]])
    assert balanced(members, others).item() == pytest.approx((2.5 / 4 + 1 / 2) / 2)


def test_a_study_is_the_plain_loop() -> None:
    audit = study(4, 0.6)
    seen, target = audit.references, audit.unlearned
    assert seen is not None
    scored = [x for x in range(len(seen.labels)) if seen.part[x] in (0, 3)]
    saw = {x: seen.margin[seen.member[:, x], x].numpy() for x in scored}
    not_saw = {x: seen.margin[~seen.member[:, x], x].numpy() for x in scored}
    sd = [math.sqrt(sum(((v - v.mean()) ** 2).sum() for v in side.values()) / sum(len(v) - 1 for v in side.values())) for side in (saw, not_saw)]
    for metric, statistic in ((LiraOnline, "auc"), (LiraOnline, "accuracy"), (LiraOffline, "auc")):
        wanted = []
        for m in target.margin.numpy():
            score = {}
            for x in scored:
                inside, outside = (m[x] - saw[x].mean()) / sd[0], (m[x] - not_saw[x].mean()) / sd[1]
                online = (outside**2 - inside**2) / 2 + math.log(sd[1] / sd[0])
                score[x] = online if metric is LiraOnline else math.log(0.5 * math.erfc(-outside / math.sqrt(2)))
            members, others = (torch.tensor([score[x] for x in scored if seen.part[x] == part]) for part in (0, 3))
            right = ((members > 0).double().mean() + (others < 0).double().mean()) / 2
            wanted.append(rank_auc(members, others) if statistic == "auc" else float(right))
        found = metric(statistic=statistic)(audit)  # type: ignore[arg-type]
        assert found.per_model == pytest.approx(wanted, abs=1e-9)
        assert found.value == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize("metric", [LiraOnline(), LiraOffline(), LiraOnline(statistic="accuracy")])
def test_sign_and_order(metric: LiraOnline | LiraOffline) -> None:
    values = [metric(study(6, left)).value for left in (1.0, 0.5, 0.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.8
    assert values[2] == pytest.approx(0.5, abs=0.08)
    pushed_past = metric(study(6, -1.0)).value
    assert pushed_past is not None
    assert pushed_past < (0.49 if metric.statistic == "accuracy" else 0.3)  # a fixed cut hardly sees it: all lie below it already


def with_control(monkeypatch: pytest.MonkeyPatch, images: int, left: float = 0.5) -> Audit:
    monkeypatch.setitem(simulated.SIZES, "control", images)
    return study(6, left)


def test_tpr_needs_as_many_control_images_as_it_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LiraOnline(statistic="tpr01")(study(4)).missing == "not computed: 48 control examples, needs 100"
    enough = with_control(monkeypatch, 120, 1.0)
    assert LiraOffline(statistic="tpr001")(enough).missing == "not computed: 120 control examples, needs 1000"
    found = LiraOnline(statistic="tpr01")(enough)
    assert found.key == "lira.online.tpr01"
    assert found.value is not None
    assert found.floor is not None
    assert found.value > 0.2 > found.floor.mean
    middle = sorted(found.per_model or ())[2]
    limits = clopper_pearson(round(40 * middle), 40)
    assert (found.extra["one_model"], found.extra["one_model_lo"], found.extra["one_model_hi"]) == (middle, limits.lo, limits.hi)


def knowing(audit: Audit, target: Outputs) -> Outputs:
    """Twenty copies of an audited model that claim to have seen the forget set, among references that saw nothing of it."""
    refs = audit.references
    assert refs is not None
    none_saw = replace(refs, logits=audit.oracles.logits[torch.arange(len(refs)) % 20] + draws(*refs.logits.shape, seed=3).float())
    claims = (audit.unlearned.part == 0).expand(20, -1)
    copies = replace(target.rows([0] * 20), member=claims, models=tuple(range(700_000, 700_020)))
    return Outputs.join([none_saw, copies])


def test_a_target_among_the_references_does_not_help() -> None:
    """Its own margins would say which images it claims to have seen."""
    audit = study(20, 0.0)
    joined = knowing(audit, audit.unlearned)
    alone = LiraOnline()(replace(audit, references=joined.rows(range(40))))
    found = LiraOnline()(replace(audit, references=joined))
    assert found.per_model == alone.per_model
    assert "40 reference models (20 more are audited models themselves)" in found.notes[1]
    assert found.per_model is not None
    assert found.per_model[0] == pytest.approx(0.5, abs=0.2)
    inside, outside = bells(joined.margin, joined.member, ~joined.member, own=False)
    score = inside.log_density(audit.unlearned.margin[0]) - outside.log_density(audit.unlearned.margin[0])
    assert (rank_auc(score[joined.part == 0], score[joined.part == 3]) or 0) > found.per_model[0] + 0.1  # what leaving it in would give


def test_references_with_an_audited_seed_are_left_out() -> None:
    audit = study(20, 0.5)
    refs = audit.references
    assert refs is not None
    same_seeds = replace(refs, models=(*refs.models[:30], *audit.oracles.models[:10]))
    assert LiraOnline()(replace(audit, references=same_seeds)).missing == "not computed: 30 reference models (10 more are audited models themselves), needs 32"
    offline = LiraOffline()(replace(audit, references=same_seeds))
    assert offline.per_model == LiraOffline()(replace(audit, references=refs.rows(range(30)))).per_model


def test_too_few_references() -> None:
    audit = study(4)
    refs = audit.references
    assert refs is not None
    few = replace(audit, references=refs.rows(range(31)))
    assert LiraOnline()(few).missing == "not computed: 31 reference models, needs 32"
    assert LiraOffline()(few).missing is None
    assert LiraOffline()(replace(audit, references=refs.rows(range(15)))).missing == "not computed: 15 reference models, needs 16"
    assert LiraOnline()(replace(audit, references=None)).missing == "not computed: there are no reference models, trained on known random halves of the images"
    rarely = replace(refs, member=refs.member & (torch.arange(40) < 12)[:, None])
    missing = LiraOnline()(replace(audit, references=rarely)).missing or ""
    assert "reference models saw a forget image, on average: needs about 16" in missing
    assert LiraOffline()(replace(audit, references=rarely)).missing is None
    unseen = replace(refs, member=torch.zeros_like(refs.member))
    assert LiraOffline()(replace(audit, references=unseen)).dropped == ()  # it never asks who saw an image
    assert LiraOffline()(replace(audit, references=replace(refs, member=~unseen.member))).missing == (
        "not computed: every forget image was seen by all reference models"
    )
    often = replace(refs, member=refs.member | (torch.arange(40) < 34)[:, None])
    assert "reference models did not see a forget image, on average: needs about 8" in (LiraOffline()(replace(audit, references=often)).missing or "")


def test_references_on_other_images_are_refused() -> None:
    audit = study(4)
    assert audit.references is not None
    with pytest.raises(InputError, match="another order"):
        LiraOnline()(replace(audit, references=audit.references.examples(torch.arange(len(audit.references.labels)).flip(0))))


def test_images_that_all_references_saw_are_dropped_and_counted() -> None:
    audit = study(6)
    refs = audit.references
    assert refs is not None
    forget, control = ((refs.part == part).nonzero()[:, 0] for part in (0, 3))
    member = refs.member.clone()
    member[:, forget[:2]], member[:, control[5]] = True, False
    found = LiraOnline()(replace(audit, references=replace(refs, member=member)))
    assert found.dropped == ((3, "seen by all reference models or by none"),)
    assert found.n_examples == 38
    keep = torch.ones(len(refs.labels), dtype=torch.bool)
    keep[torch.stack([*forget[:2], control[5]])] = False
    assert found.per_model == pytest.approx(LiraOnline()(audit.restrict(keep)).per_model)
    member[:, forget] = True
    missing = LiraOnline()(replace(audit, references=replace(refs, member=member))).missing
    assert missing == "not computed: every forget image was seen by all reference models or by none"


def test_the_order_of_references_does_not_matter() -> None:
    audit = study(4)
    refs = audit.references
    assert refs is not None
    mixed = replace(audit, references=refs.rows(torch.randperm(40, generator=torch.Generator().manual_seed(0))))
    assert LiraOnline()(mixed) == LiraOnline()(audit)
