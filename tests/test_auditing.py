"""The verdict table rule by rule, the integrity checks, and the public verb from arrays alone."""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from unlearnlab.auditing import CALIBRATION, GROUPABLE, VERDICTS, AuditReport, Evidence, audit, integrity, judge, judge_family, measure, power, rules
from unlearnlab.contract import Audit, Result
from unlearnlab.data.images import PARTS, Images, Split
from unlearnlab.metrics.omnibus import Omnibus
from unlearnlab.metrics.trace import Trace
from unlearnlab.outputs import Outputs
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, build

SIZES = {"forget": 62, "retain": 100, "validation": 10, "control": 62, "test": 100}
WHERE = torch.repeat_interleave(torch.tensor([SIZES[part] for part in PARTS]))
N, TOTAL = 32, len(WHERE)
FORGET = torch.isin(WHERE, torch.tensor([0]))
GAP = torch.where(FORGET, 4.0, 0.0).double()


def logits(purpose: str, trace: float = 0.0, models: int = N) -> Tensor:
    """Two-class logits: margins around 2 on forget and control images, and far from 0, hence right, on all others."""
    easy = torch.isin(WHERE, torch.tensor([1, 2, 4]))
    margins = torch.randn(models, TOTAL, generator=generator(0, purpose), dtype=torch.float64) + torch.where(easy, 8.0, 2.0) + trace * GAP
    return torch.stack([margins, torch.zeros_like(margins)], -1)


def wrong_on(part: str, count: int, at: Tensor) -> Tensor:
    """The same logits with the first ``count`` images of a part turned into errors."""
    rows = (PARTS.index(part) == WHERE).nonzero().flatten()[:count]
    broken = at.clone()
    broken[:, rows] = broken[:, rows].flip(-1)
    return broken


LABELS, ORIGINALS, ORACLES = torch.zeros(TOTAL, dtype=torch.int64), logits("originals", 1.0), logits("oracles")
METRICS = ("trace", "perm.omnibus")


def report(unlearned: dict[str, Tensor], **more: Any) -> AuditReport:
    given = {"originals": ORIGINALS, "oracles": ORACLES, "labels": LABELS, "part": WHERE, "metrics": METRICS} | more
    return audit(unlearned=unlearned, **given)


def text(unlearned: Tensor, **more: Any) -> str:
    return report({"method": unlearned}, **more).row("method").verdict.text


def outputs(given: Tensor, trained: tuple[str, ...], seeds: tuple[int, ...] | None = None) -> Outputs:
    member = torch.isin(WHERE, torch.tensor([PARTS.index(part) for part in trained])).expand(len(given), -1)
    return Outputs(given, member, LABELS, torch.arange(TOTAL), WHERE, seeds or tuple(range(len(given))))


def whole(unlearned: Tensor) -> Audit:
    both = ("forget", "retain")
    return Audit(outputs(ORIGINALS, both), outputs(ORACLES, ("retain",)), outputs(unlearned, both), torch.arange(len(unlearned)))


# ---- the table, on evidence alone


@pytest.mark.parametrize(
    ("evidence", "rule", "label", "words"),
    [
        (Evidence(4, reason="N=4, needs 16", holm=0.0, lo=0.1), "0", "no verdict", "no verdict: N=4, needs 16"),
        (Evidence(32, mark=False, damaged=True, holm=0.0, lo=0.1), "1", "no verdict", "no verdict: this forget set leaves no trace at N=32"),
        (Evidence(32, damaged=True, holm=0.01, trace=0.3, lo=0.2, hi=0.4), "3a", "not forgotten", "damaged, not forgotten: 30 % of the trace left"),
        (Evidence(32, holm=0.05, trace=0.3, lo=0.01, hi=0.6), "3a", "not forgotten", "not forgotten: 30 % of the trace left"),
        (Evidence(32, holm=0.01, trace=-0.3, lo=-0.4, hi=-0.2), "3b", "over-forgotten", "over-forgotten"),
        (Evidence(32, holm=0.01, lo=-0.1, hi=0.1), "3c", "not forgotten", "not forgotten: distinguishable, not towards the original"),
        (Evidence(32, p=0.06, lo=-0.09, hi=0.09, power="seen"), "4", "forgotten", "forgotten: indistinguishable at N=32; seen"),
        (Evidence(32, p=0.06, lo=-0.09, hi=0.11), "5", "unresolved", "unresolved"),
        (Evidence(32, p=0.04, holm=0.4, lo=-0.01, hi=0.01), "5", "unresolved", "unresolved"),  # Holm may accuse, not acquit
        (Evidence(32, damaged=True, p=0.04, holm=0.4), "5", "unresolved", "damaged, unresolved"),
    ],
)
def test_every_rule(evidence: Evidence, rule: str, label: str, words: str) -> None:
    found = judge(evidence)
    assert (found.rule, found.label, found.text) == (rule, label, words)
    assert found.damaged == words.startswith("damaged")


def test_the_table_is_data_for_the_docs() -> None:
    assert [rule.number for rule in VERDICTS] == ["0", "1", "2", "3a", "3b", "3c", "4", "5"]
    assert all(rule.condition and rule.verdict for rule in VERDICTS)


# ---- the table, on planted logits


def test_planted_verdicts() -> None:
    spread = ORACLES.mean(0) + 2 * (logits("spread") - ORACLES.mean(0))
    found = report(
        {
            "original": ORIGINALS,
            "retrain": logits("retrain"),
            "half": logits("half", 0.5),
            "past": logits("past", -0.5),
            "spread": torch.where(FORGET[:, None], spread, ORACLES),
            "perfect": logits("perfect"),
            "damaged": wrong_on("test", 5, logits("damaged", 0.5)),
        }
    )
    verdicts = {row.name: row.verdict for row in found.rows}
    assert {name: verdict.rule for name, verdict in verdicts.items()} == {
        "original": "", "retrain": "", "half": "3a", "past": "3b", "spread": "3c", "perfect": "4", "damaged": "3a",
    }  # fmt: skip
    assert verdicts["half"].text == f"not forgotten: {100 * (found.row('half').results['trace'].value or 0):.0f} % of the trace left"
    assert verdicts["perfect"].text.endswith("would have been seen with probability 0.8")
    assert verdicts["damaged"].text.startswith("damaged, not forgotten: ")
    assert [row.name for row in found.rows if row.calibration] == list(CALIBRATION)
    assert found.row("original").verdict.text == "calibration"
    assert found.row("original").p is not None
    assert found.row("original").holm_p is None
    # five methods in the family: the smallest p times five, whatever the calibration rows say
    assert found.row("half").holm_p == pytest.approx(5 * (found.row("half").p or 0))
    assert "half" in str(found)
    assert "not forgotten" in str(found)
    assert "Note: who was trained on what is taken from the parts" in str(found)


def test_damage_is_measured_against_the_worse_of_oracle_and_original() -> None:
    assert "damaged" not in text(wrong_on("retain", 2, logits("u")))  # 2 points exactly
    assert text(wrong_on("retain", 3, logits("u"))).startswith("damaged, forgotten")
    assert "damaged" not in text(wrong_on("retain", 3, logits("u")), originals=wrong_on("retain", 3, ORIGINALS))
    assert "damaged" not in text(wrong_on("validation", 9, logits("u")))


def test_damage_is_looked_for_in_logged_accuracies_and_where_there_are_none_it_is_said() -> None:
    held = whole(logits("u")).restrict(FORGET)
    rows = {"method": (held, measure(held, [Trace(), Omnibus(1_999)]))}
    blind = judge_family(rows).row("method").verdict
    assert (blind.label, blind.damaged) == ("forgotten", False)
    assert blind.text.endswith("; damage not looked for: neither retain nor test accuracy is known")

    def judged(mean: float) -> str:
        u, o, p = (at + 0.005 * torch.randn(N, generator=generator(0, who), dtype=torch.float64) for who, at in (("u", mean), ("o", 0.9), ("p", 0.91)))
        return judge_family(rows, logged={"method": {"test": (u, o, p)}}).row("method").verdict.text

    assert judged(0.6).startswith("damaged, forgotten: ")
    assert judged(0.9).startswith("forgotten: ")
    assert "not looked for" not in judged(0.6) + judged(0.9)


def test_rules_are_told_in_words() -> None:
    assert [number for number, _, _ in rules()] == [rule.number for rule in VERDICTS]
    assert not [words for _, _, words in rules() if "{" in words]
    assert rules()[3][2] == "not forgotten: x % of the trace left"


def test_few_models() -> None:
    few = report({"method": logits("u", models=4)}, originals=ORIGINALS[:4], oracles=ORACLES[:4])
    assert few.row("method").verdict.text == "no verdict: N=4, needs 16"
    assert few.row("method").results["trace"].missing == "not computed: N=4, needs 16"
    assert text(logits("u", models=15), originals=ORIGINALS[:15]) == "no verdict: N=15, needs 16"


def test_models_of_one_original_get_no_verdict() -> None:
    assert text(logits("u"), parents="one") == "no verdict: the unlearned models do not come from independent originals: one original"
    assert text(logits("u"), parents=None) == "no verdict: it is not known whether every unlearned model comes from an original of its own"
    with pytest.raises(InputError, match="'method' has 31 models and there are 32 originals"):
        text(logits("u", models=31))


def test_no_trace_to_look_for() -> None:
    assert text(logits("u"), originals=logits("originals")) == "no verdict: this forget set leaves no trace at N=32"


def test_unresolved_where_the_trace_is_too_wide() -> None:
    found = text(logits("u", models=16), originals=logits("originals", 0.1, 16), oracles=ORACLES[:16])
    assert found == "unresolved"


def test_a_method_without_p_stays_in_the_family() -> None:
    found = report({"half": logits("half", 0.5), "broken": ORIGINALS, "other": logits("other")})
    assert found.row("half").holm_p == pytest.approx(3 * (found.row("half").p or 0))
    assert found.row("broken").holm_p is None


# ---- integrity


def test_unchanged_models_and_oracles_in_disguise() -> None:
    assert text(ORIGINALS) == "no verdict: 32 of 32 unlearned models did not change at all"
    assert report({"method": ORIGINALS}).row("method").results == {}
    assert text(torch.cat([ORACLES[:1], logits("u")[1:]])) == "no verdict: some unlearned models are oracles"
    assert text(logits("u"), originals=ORIGINALS[torch.zeros(N, dtype=torch.int64)]).startswith("no verdict: two of the originals are the same model")
    facts = {"changed": torch.tensor([0.0] + [1.0] * (N - 1))}
    some = replace(whole(logits("u")), facts=facts)
    assert integrity(some, "method") == (), "a method may find nothing to change in one model"
    found = judge_family({"method": (some, measure(some, [Trace(), Omnibus()]))}).row("method")
    assert found.verdict.text.startswith("forgotten: ")
    assert found.verdict.text.endswith("; 1 of 32 models did not change at all")
    assert found.results["trace"].value is not None
    assert "did not change" not in text(logits("u"))
    assert integrity(replace(whole(ORIGINALS), facts={"changed": torch.zeros(N)}), "original") == ()


def test_membership() -> None:
    everyone = torch.isin(WHERE, torch.tensor([0, 1]))
    assert text(logits("u"), member={"originals": everyone, "oracles": everyone}).startswith("no verdict: image id 0 is to be forgotten, but some oracle")
    assert text(logits("u"), member={"originals": everyone & ~FORGET}).startswith("no verdict: image id 0 is to be forgotten, but some original was never")
    assert text(logits("u"), member={"originals": torch.ones(TOTAL, dtype=torch.bool)}).startswith("no verdict: some validation images were trained on")


def test_repeated_ids_and_infinite_logits() -> None:
    ids = torch.arange(TOTAL)
    ids[SIZES["forget"]] = 7
    assert text(logits("u"), ids=ids) == "no verdict: image id 7 is in both the forget and the retain set (1 such image(s))"
    broken = logits("u")
    broken[3, 7, 0] = torch.inf
    assert text(broken).startswith("no verdict: model 3 has a NaN or infinite logit on example id 7")


def test_other_images() -> None:
    held = whole(logits("u"))
    moved = replace(held, oracles=held.oracles.examples(torch.arange(TOTAL).flip(0)))
    assert integrity(moved, "method") == ("originals and oracles were not observed on the same images: their ids differ",)


# ---- measuring


@dataclass(frozen=True)
class Broken:
    error: Exception
    better: ClassVar = "lower"
    minimum: ClassVar[int] = 1
    key: ClassVar[str] = "broken.metric"

    def __call__(self, audit: Audit) -> Result:
        raise self.error


def test_a_broken_metric_is_loud_and_bad_input_passes_through() -> None:
    with pytest.raises(RuntimeError, match=r"metric 'broken\.metric' failed: ZeroDivisionError: by nought"):
        measure(whole(logits("u")), [Broken(ZeroDivisionError("by nought"))])
    with pytest.raises(InputError, match=r"^no such thing$"):
        measure(whole(logits("u")), [Broken(InputError("no such thing"))])


def test_groups_have_keys_of_their_own() -> None:
    wrong = torch.arange(TOTAL) % 2 == 0
    held = replace(whole(logits("u", 0.5)), groups={"mislabelled": wrong, "clean": ~wrong, "few": torch.arange(TOTAL) < 12})
    found = measure(held, [Trace(), Omnibus(1_999)], ("mislabelled", "clean", "few"))
    apart = "difference.label.mislabelled.clean.trace"
    assert list(found) == ["trace", *(f"group.label.{name}.trace" for name in ("mislabelled", "clean", "few")), apart, "perm.omnibus"]
    assert all(result.key == key for key, result in found.items())
    assert found["group.label.clean.trace"].value == pytest.approx(0.5, abs=0.05)
    assert found["group.label.few.trace"].missing == "not computed: 12 forget images, needs 30"
    assert found[apart].value == pytest.approx(found["group.label.mislabelled.trace"].value - found["group.label.clean.trace"].value)
    scored = replace(held, groups={"score.high": wrong, "score.low": ~wrong})
    assert list(measure(scored, [Trace()], ("score.low",))) == ["trace", "group.score.low.trace"]
    assert "difference.score.high.low.trace" in measure(scored, [Trace()], ("score.low", "score.high"))


def test_what_is_measured_on_every_group() -> None:
    held = replace(whole(logits("u", 0.5)), groups={"score.high": torch.arange(TOTAL) % 2 == 0})
    chosen = ("acc", {"name": "acc", "part": "retain"}, "tow", "tow_mia", "mia_lr.auc", "disagree", "eps.crossfit", "klom.smooth", "klom.gauss", "trace")
    found = measure(held, [build("metric", one) for one in chosen], ("score.high",))
    assert {key for key in found if key.startswith("group.")} == {f"group.score.high.{key}" for key in GROUPABLE}
    assert all(result.missing is None for result in found.values())


def test_the_family_needs_its_judging_metrics() -> None:
    held = whole(logits("u"))
    assert judge_family({"method": (held, measure(held, [Trace()]))}).row("method").verdict.text == "no verdict: 'perm.omnibus' was not measured"
    # what fails a check is shown without results, whoever measured them
    same = whole(ORIGINALS)
    assert judge_family({"method": (same, measure(same, [Trace(), Omnibus(1_999)]))}).row("method").results == {}
    # the verb adds them
    assert set(report({"method": logits("u")}, metrics=["energy"]).row("method").results) == {"trace", "perm.omnibus", "energy"}


# ---- the power sentence and the report


def test_power_by_hand() -> None:
    held = whole(logits("u"))
    found = power(held.originals, held.oracles, 10, N)
    # t_.9975 with 62 degrees of freedom = 2.9110; s_a is about 1/sqrt(62) where images are independent
    assert found.shift == pytest.approx(1.15 * 2**0.5 * (2.9110 + 0.84) * 62**-0.5 / N**0.5, rel=0.3)
    assert power(held.originals, held.oracles, 10, 16).shift / found.shift == pytest.approx((3.0298 + 0.84) / (2.9110 + 0.84) * 2**0.5, rel=1e-3)
    assert found.share == pytest.approx(found.shift / 4, rel=0.1)
    assert str(found).startswith(f"a uniform shift of {found.shift:.2f} sd, or {100 * (found.share or 0):.0f} % of the trace, would")
    nothing = power(outputs(logits("p"), ("forget",)), held.oracles, 10, N)
    assert nothing.share is None
    assert "%" not in str(nothing)


def test_report_survives_json() -> None:
    found = report({"perfect": logits("perfect"), "original": ORIGINALS}, metrics=None)
    again = AuditReport.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert set(found.to_json()) == {"rows", "power", "notes"}
    assert set(found.to_json()["rows"][0]) == {"name", "results", "verdict", "p", "holm_p", "calibration"}
    assert {"trace", "perm.omnibus", "energy", "mia_lr.auc", "acc.forget", "acc.retain", "acc.test"} == set(found.row("perfect").results)
    with pytest.raises(InputError, match="no row 'nobody'"):
        found.row("nobody")


# ---- what may be handed in


def test_arrays_of_any_kind_and_outputs_agree() -> None:
    names = [PARTS[int(i)] for i in WHERE]
    unlearned = logits("u", 0.2)
    first = report({"method": unlearned})
    arrays = audit(
        originals=ORIGINALS.numpy(), oracles=ORACLES.numpy(), unlearned={"method": unlearned.numpy()}, labels=LABELS.tolist(), part=names, metrics=METRICS
    )
    held = whole(unlearned)
    ready = audit(originals=held.originals, oracles=held.oracles, unlearned={"method": held.unlearned}, metrics=METRICS)
    assert first == arrays
    assert first.rows == ready.rows


def test_stacks_are_observed_on_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def some(part: str) -> Images:
        ids = (PARTS.index(part) == WHERE).nonzero().flatten()
        true = torch.where((ids % 2 == 0) & (ids < SIZES["forget"]), 1, 0)
        return Images(torch.zeros(len(ids), 1, 2, 2, dtype=torch.uint8), torch.zeros(len(ids), dtype=torch.int64), ids, 2, true)

    def observe(stack: SimpleNamespace, images: Images, *, member: Tensor, part: Tensor) -> Outputs:
        return Outputs(stack.logits, member, images.labels, images.ids, part, stack.seeds)

    monkeypatch.setattr("unlearnlab.auditing.observe", observe)
    split = Split(*map(some, PARTS))
    stacks = [SimpleNamespace(logits=given, seeds=tuple(range(N))) for given in (ORIGINALS, ORACLES, logits("u", 0.2))]
    found = audit(originals=stacks[0], oracles=stacks[1], unlearned={"method": stacks[2]}, split=split, metrics=METRICS)
    row = found.row("method")
    assert row.verdict == report({"method": logits("u", 0.2)}).row("method").verdict
    assert list(row.results) == [
        "trace",
        "group.label.mislabelled.trace",
        "group.label.clean.trace",
        "difference.label.mislabelled.clean.trace",
        "perm.omnibus",
    ]
    assert found.notes == ()
    with pytest.raises(InputError, match="give the split"):
        audit(originals=stacks[0], oracles=stacks[1], unlearned={"method": stacks[2]})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": None}, "give labels=… and part=…"),
        ({"part": ["forgotten"] * TOTAL}, "unknown part 'forgotten'"),
        ({"oracles": ORACLES[0]}, "'oracles' must be Outputs, a Stack or logits"),
        ({"oracles": ORACLES[:, :9]}, "outputs of 32 models on 9 examples do not fit"),
        ({"parents": "two"}, "parents = 'two' must be"),
        ({"groups": {"few": [True]}}, "group 'few' has shape"),
        ({"unlearned": {}}, "nothing to audit"),
        ({"metrics": ["trce"]}, "unknown metric 'trce'; did you mean 'trace'"),
    ],
)
def test_wrong_input_is_told_in_one_line(more: dict[str, Any], message: str) -> None:
    given = {"unlearned": {"method": logits("u")}} | more
    with pytest.raises(InputError, match=message.replace(".", r"\.")) as caught:
        report(given.pop("unlearned"), **given)
    assert "\n" not in str(caught.value)


def test_the_name_original_is_kept_for_the_originals() -> None:
    assert integrity(whole(logits("u", 0.5)), "original") == ("the row 'original' does not hold the originals; that name is kept for them",)


def test_groups_are_known_wherever_a_label_is_wrong() -> None:
    """A clean forget set in noisy data: attacks still need to know which retained labels are wrong."""
    from unlearnlab.auditing import _Gather

    def images(first: int, wrong: bool) -> Images:
        labels = torch.zeros(4, dtype=torch.int64)
        return Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels, torch.arange(first, first + 4), 3, labels + wrong)

    split = Split(*(images(10 * at, part == "retain") for at, part in enumerate(PARTS)))
    ids = torch.cat([getattr(split, part).ids for part in PARTS])
    assert _Gather(None, None, None, {}, split).groups(ids)["mislabelled"].sum() == 4


def test_part_indices_are_checked() -> None:
    with pytest.raises(InputError, match="part indices run from 0 to 4"):
        report({"u": logits("u")}, part=[5] * TOTAL)


def test_bare_modules_are_told_to_be_stacked() -> None:
    with pytest.raises(InputError, match=r"got Linear: stack modules with ul\.Stack\.of"):
        audit(originals=torch.nn.Linear(2, 2), oracles=ORACLES, unlearned={"u": logits("u")}, labels=[0], part=[0])
