"""DUCI: by hand, ties, references that never attack themselves, and intervals that know how few references there are."""

import math
from dataclasses import replace

import pytest
import torch
from simulated import draws, study

from unlearnlab.contract import Audit
from unlearnlab.data.images import PARTS
from unlearnlab.metrics import duci
from unlearnlab.metrics.duci import Duci, Rates, Used, at_least, leave_one_out
from unlearnlab.metrics.rmia import beaten, offline
from unlearnlab.metrics.statistics import bootstrap_models


def with_references(audit: Audit, **changes) -> Audit:
    assert audit.references is not None
    return replace(audit, references=replace(audit.references, **changes))


def rates_of(members: list[int], others: list[int], most: int = 10) -> Rates:
    """One reference with these scores of what it saw and did not see."""
    counts = torch.tensor([[*members, *others]])
    member = torch.tensor([[True] * len(members) + [False] * len(others)])
    return Rates.of(counts, torch.ones_like(member), member, most)


def test_by_hand() -> None:
    used = Used.by(rates_of([9, 9, 9, 9, 1], [9, 1, 1, 1, 1]))
    assert (used.cut, used.tpr, used.fpr) == (9, 0.8, 0.2)
    assert used.of(torch.tensor([[9, 9, 1, 1, 1], [1, 1, 1, 1, 1], [9, 9, 9, 9, 9]])).tolist() == pytest.approx([0.3333, -0.3333, 1.3333], abs=1e-4)


def test_a_score_on_the_cut_is_used_here_as_it_was_there() -> None:
    """Scores are discrete: with ">" in one of the two places, oracles or originals would be off by all that is tied at the cut."""
    used = Used.by(rates_of([7] * 8 + [2] * 2, [7] * 3 + [2] * 7))
    assert used.cut == 7
    seen, unseen = torch.tensor([[7] * 8 + [2] * 2]), torch.tensor([[7] * 3 + [2] * 7])
    assert used.of(torch.cat([seen, unseen])).tolist() == pytest.approx([1.0, 0.0])


def test_the_cut_is_the_best_that_occurs_and_of_equals_the_smallest() -> None:
    assert Used.by(rates_of([8, 5], [5, 2])).cut == 5  # 8 is as good: one of two caught and nobody accused
    assert Used.by(rates_of([4, 4], [4, 4])).cut == 4  # not 0, which nobody scored
    # thirds and sevenths, whose floating-point differences need not tie
    assert Used.by(rates_of([1, 5, 5], [0, 0, 0, 3, 3, 3, 3])).cut == 5


def test_counts_equal_a_plain_loop() -> None:
    counts, held = torch.randint(0, 6, (4, 9), generator=torch.Generator().manual_seed(0)), draws(4, 9) > 0
    table = at_least(counts, held, 5)
    for model in range(4):
        for cut in range(6):
            assert table[model, cut] == sum(int(counts[model, x]) >= cut for x in range(9) if held[model, x])


def test_no_reference_attacks_itself() -> None:
    forget, population = draws(5, 8, seed=1).sigmoid().log(), draws(5, 20, seed=2).sigmoid().log()
    member = draws(5, 8, seed=3) > 0
    member[:, 0], member[:, 1] = torch.tensor([True, True, True, True, False]), True
    counts, known = leave_one_out(forget, member, population, 0.3, 1.0)
    for j in range(5):
        rest = [i for i in range(5) if i != j]
        x, z = offline(forget[rest], member[rest], 0.3), offline(population[rest], torch.zeros(4, 20, dtype=torch.bool), 0.3)
        assert torch.equal(counts[j], beaten(forget[j][None] - x, population[j][None] - z, 1.0)[0])
        # what a reference says of its own images never enters what it is compared with
        lied = forget.clone()
        lied[j] = draws(8, seed=9).sigmoid().log()
        again, _ = leave_one_out(lied, member, population, 0.3, 1.0)
        own = beaten(lied[j][None] - x, population[j][None] - z, 1.0)[0]
        assert torch.equal(again[j], own)
    assert known[:4, 0].all()
    assert not known[4, 0]  # the only one that never saw image 0 has nobody to be compared with
    assert not known[:, 1].any()


def test_audited_models_and_doubles_among_the_references() -> None:
    audit = study(4)
    held = audit.references
    assert held is not None
    found = Duci()(with_references(audit, models=(0, 100_001, *held.models[2:])))
    assert "2 references are audited models themselves and are left out" in found.notes
    assert found.value == Duci()(replace(audit, references=held.rows(range(2, 40)))).value
    four = replace(audit, references=held.rows(range(4)))
    assert Duci()(four).value is not None
    assert Duci()(with_references(four, models=(3, *four.references.models[1:]))).missing == "not computed: 3 reference models that are not audited, needs 4"
    assert Duci()(replace(audit, references=held.rows(range(3)))).missing == "not computed: 3 reference models, needs 4"
    twice = with_references(four, models=(500_000, 500_000, 500_002, 500_003))
    assert "two reference models have the seed 500000" in (Duci()(twice).missing or "")


def test_oracles_use_nothing_and_originals_all() -> None:
    found = Duci()(study(20, 0.0))
    assert found.value is not None
    assert found.ci is not None
    assert found.floor is not None
    assert found.ceiling is not None
    assert found.ci.lo < 0 < found.ci.hi
    assert abs(found.floor.mean) < 0.05
    assert abs(found.ceiling.mean - 1) < 0.1
    assert not [note for note in found.notes if "rescaled" in note]
    a = study(20, 0.0)  # as if the references were unlike the oracles
    assert any(note.startswith("oracles come out at 0.") and "read the rescaled value" in note for note in Duci()(replace(a, oracles=a.originals)).notes)
    values = [Duci()(study(4, left)).value for left in (1.0, 0.5, 0.0)]
    assert values == sorted(values, reverse=True)


def test_forty_per_cent_of_the_images_are_forty_per_cent() -> None:
    all_used, none_used = study(20, 1.0), study(20, 0.0)
    seen = all_used.unlearned
    forget = (seen.part == PARTS.index("forget")).nonzero()[:, 0]
    kept = draws(20, len(forget), seed=5).argsort(1).argsort(1) < 16
    logits = none_used.unlearned.logits.clone()
    logits[:, forget] = torch.where(kept[..., None], seen.logits[:, forget], logits[:, forget])
    found = Duci()(replace(none_used, unlearned=replace(none_used.unlearned, logits=logits)))
    assert found.value == pytest.approx(0.4, abs=0.06)


def test_what_was_pushed_past_the_oracles_is_below_nothing() -> None:
    audit = study(8, 0.0)
    seen = audit.unlearned
    worse = seen.logits - 4 * torch.nn.functional.one_hot(seen.labels, 4) * (seen.part == PARTS.index("forget"))[:, None]
    found = Duci()(replace(audit, unlearned=replace(seen, logits=worse)))
    assert found.value is not None
    assert found.value < -0.05


def test_an_attack_that_hardly_works_is_not_computed() -> None:
    audit = study(4)
    held = audit.references
    assert held is not None
    found = Duci()(with_references(audit, logits=torch.zeros_like(held.logits)))
    assert found.value is None
    assert "the attack hardly works on the references: TPR − FPR = 0.000, needs 0.05" in (found.missing or "")


def test_images_without_a_reference_are_dropped_and_counted() -> None:
    audit = study(4)
    held = audit.references
    assert held is not None
    forget = (held.part == PARTS.index("forget")).nonzero()[:, 0]
    member = held.member.clone()
    member[:, forget[:3]] = True
    found = Duci()(with_references(audit, member=member))
    assert found.dropped == ((3, "forget images that no reference is new to"),)
    assert found.n_examples == 37
    rest = ~torch.isin(torch.arange(len(held.labels)), forget[:3])
    assert found.value == pytest.approx(Duci()(with_references(audit.restrict(rest), member=member[:, rest])).value)
    member[:, forget] = True
    assert Duci()(with_references(audit, member=member)).missing == "not computed: no reference saw a forget image that some other reference is new to"
    member[:, forget] = False
    assert Duci()(with_references(audit, member=member)).missing == "not computed: no reference saw a forget image that some other reference is new to"


def test_the_interval_knows_how_few_references_there_are() -> None:
    audit = study(20, 0.4)
    held = audit.references
    assert held is not None
    widths = []
    for count in (4, 40):
        found = Duci()(replace(audit, references=held.rows(range(count))))
        assert found.ci is not None
        assert found.per_model is not None
        over_models = float(torch.tensor(found.per_model).std()) / math.sqrt(20)
        widths.append((found.ci.hi - found.ci.lo) / 2 / over_models)
    assert widths[0] > 2 * widths[1] > 2 * 2.2  # 2.09 would be Student's interval of the models alone


def test_the_interval_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duci, "DRAWS", 100)
    audit = study(5, 0.4)
    counts = torch.randint(0, 9, (5, 12), generator=torch.Generator().manual_seed(1))
    scores, member = torch.randint(0, 9, (6, 12), generator=torch.Generator().manual_seed(2)), draws(6, 12) > 0
    scores = (scores + 4 * member).clamp_max(8)
    rates = Rates.of(scores, torch.ones_like(member), member, 8)
    used, seed = Used.by(rates), audit.seed
    w, v = bootstrap_models(6, 100, seed, "duci.references"), bootstrap_models(5, 100, seed, "duci.models")
    drawn = []
    for b in range(100):
        best, at, tpr, fpr = -1.0, 0, 0.0, 0.0
        for cut in sorted(set(scores.flatten().tolist())):
            yes = (scores >= cut).double() * w[b][:, None]
            t, f = float((yes * member).sum() / (w[b] @ member.sum(1).double())), float((yes * ~member).sum() / (w[b] @ (~member).sum(1).double()))
            if t - f > best + 1e-12:
                best, at, tpr, fpr = t - f, cut, t, f
        drawn.append((float(v[b] @ (counts >= at).double().mean(1)) - fpr) / max(tpr - fpr, 0.05))
    ci = used.interval(counts, seed)
    assert (ci.lo + ci.hi) / 2 == pytest.approx(float(used.of(counts).mean()))
    half = 2.776445 * float(torch.tensor(drawn, dtype=torch.float64).std())  # t_.975 with 4 df
    assert (ci.hi - ci.lo) / 2 == pytest.approx(half, rel=0.02)  # rounding may choose another of two equal cuts


def test_references_without_usable_images_make_no_nan() -> None:
    scores, member = torch.tensor([[8, 8, 1, 8]] + 3 * [[1, 2, 1, 3]]), torch.tensor([[True, True, False, True]] + 3 * [[False] * 4])
    ci = Used.by(Rates.of(scores, torch.ones_like(member), member, 8)).interval(torch.tensor([[8, 1, 2, 3], [8, 8, 2, 3], [1, 1, 2, 8]]), 0)
    assert math.isfinite(ci.lo)
    assert ci.lo < ci.hi < math.inf


def test_keys() -> None:
    keys = [Duci().key, Duci(a=0.5).key, Duci(gamma=2).key, Duci(population="validation").key]
    assert keys == ["duci", "duci_a0.5", "duci_gamma2", "duci_validation"]
