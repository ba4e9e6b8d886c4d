"""What every registered metric must do, whoever wrote it."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from simulated import study

from unlearnlab import spec
from unlearnlab.auditing import TRUST
from unlearnlab.contract import Audit, Metric, Relearning, Result, Triggered
from unlearnlab.data.images import PARTS
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError

MODELS = 20
NAMES = spec.names("metric")
READ_NO_LOGITS = tuple(name for name in NAMES if name.startswith(("cost.", "delta.", "sparsity.")))
READ_LOGITS = [name for name in NAMES if name not in READ_NO_LOGITS]
# Rescaled in the simulated study; the others have no floor (facts, p-values, trace) or nothing to resolve there.
CALIBRATED = sorted([
    "actdist.l1", "actdist.l2", "asr", "ic.err", "ic.fgt", "js", "pit.ks", "streisand.under", "zrf",
    "ain", "relearn.steps", "contest.F", "contest.score", "eps.published", "klom.hist",
    "acc", "avg_gap", "disagree", "energy", "eps.crossfit", "gap", "klom.gauss", "klom.smooth", "loss", "mia_lr.accuracy", "mia_lr.auc",
    "duci", "mia_thr.efficacy", "rmia.auc", "rmia.tpr_at_fpr",
    "lira.offline", "lira.online", "ulira.accuracy", "ulira.auc",
    "mia_svc.efficacy", "tow", "tow_mia", "ua",
])  # fmt: skip
SIDES = ("originals", "oracles", "unlearned")


@cache
def metric(name: str) -> Metric:
    return spec.build("metric", name)


def models(name: str) -> int:
    """As many models a side as the metric needs."""
    return max(MODELS, metric(name).minimum)


@cache
def simulated(count: int, left: float) -> Audit:
    return study(count, left)


def audit(name: str, left: float = 0.5) -> Audit:
    return simulated(models(name), left)


@cache
def result(name: str, left: float = 0.5) -> Result:
    return metric(name)(audit(name, left))


def mapped(of: Audit, change: Any, *, sides: tuple[str, ...] = SIDES) -> Audit:
    return replace(of, **{side: change(getattr(of, side)) for side in sides})


def everywhere(of: Audit, change: Any) -> Audit:
    """The change made to all that any model says: references, untrained nets and triggered images too."""
    beside = tuple(name for name in ("references", "untrained") if getattr(of, name) is not None)
    seen = of.triggered and replace(of.triggered, **{side: change(getattr(of.triggered, side)) for side in SIDES})
    return replace(mapped(of, change, sides=(*SIDES, *beside)), triggered=seen)


def renamed(of: Audit, order: torch.Tensor) -> Audit:
    """Class ``order[k]`` is called k."""
    new = order.argsort()
    of = everywhere(of, lambda seen: replace(seen, logits=seen.logits[..., order], labels=new[seen.labels]))
    target = of.triggered and replace(of.triggered, target=int(new[of.triggered.target]))
    return replace(of, triggered=target, true_labels=None if of.true_labels is None else new[of.true_labels])


def fewer(of: Audit, rows: torch.Tensor, sides: tuple[str, ...] = SIDES) -> Audit:
    """These models only, on some sides, in all that is known of them."""
    seen = of.triggered and replace(of.triggered, **{side: getattr(of.triggered, side).rows(rows) for side in sides})
    taught = {key: replace(held, **{side: getattr(held, side)[rows] for side in sides if side != "originals"}) for key, held in of.relearning.items()}
    return replace(mapped(of, lambda seen: seen.rows(rows), sides=sides), triggered=seen, relearning=taught)


def undone(of: Audit) -> Audit:
    """The originals in the place of unlearned models; they know the forget set before they are taught it."""
    seen = of.triggered and replace(of.triggered, unlearned=of.triggered.originals)
    taught = {key: replace(held, unlearned=torch.ones_like(held.unlearned)) for key, held in of.relearning.items()}
    return replace(of, unlearned=of.originals, triggered=seen, relearning=taught)


def numbers(found: Any) -> Iterator[float]:
    """Every float in a result, wherever it stands."""
    if isinstance(found, float):
        yield found
    elif isinstance(found, dict):
        yield from (number for value in found.values() for number in numbers(value))
    elif isinstance(found, list | tuple):
        yield from (number for value in found for number in numbers(value))


def same(found: Result, wanted: Result, tolerance: float = 1e-9) -> None:
    assert found.missing == wanted.missing
    assert found.value == pytest.approx(wanted.value, abs=tolerance)
    assert found.rescaled == pytest.approx(wanted.rescaled, abs=tolerance)


def permuted(count: int, purpose: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(purpose))


@pytest.mark.parametrize("name", NAMES)
def test_a_result_says_what_it_is_and_survives_json(name: str) -> None:
    found = result(name)
    assert found.missing is None
    assert isinstance(metric(name), Metric)
    assert (found.key, found.better) == (metric(name).key, metric(name).better)
    assert found.n_models == (models(name),) * 3
    assert found.n_examples > 0 or name in READ_NO_LOGITS
    assert Result.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert spec.build("metric", spec.to_dict(metric(name))) == metric(name)
    for ci in (found.ci, found.rescaled_ci):
        assert ci is None or ci.lo <= ci.hi
    if found.ci is not None:
        assert found.value is not None
        assert found.ci.lo <= found.value <= found.ci.hi
    if found.per_model is not None:
        assert len(found.per_model) == models(name)


@pytest.mark.parametrize("name", NAMES)
def test_says_how_far_to_trust_it(name: str) -> None:
    cls: Any = spec.lookup("metric", name)
    assert cls.trust in TRUST
    for words in (cls.ideal, cls.caution):  # both are completed to sentences elsewhere
        assert len(words) > 0
        assert not words.endswith((".", " "))
        assert words[0] == words[0].lower()


def test_two_definitions_have_two_keys() -> None:
    keys = [metric(name).key for name in NAMES]
    assert len(set(keys)) == len(keys)
    for name in NAMES:
        for field in spec.fields(type(metric(name))):
            if field.name == "part":
                assert spec.build("metric", {"name": name, "part": "test"}).key == metric(name).key.replace("forget", "test")


@pytest.mark.parametrize("name", NAMES)
def test_evaluating_twice_gives_equal_bits_and_touches_nothing(name: str) -> None:
    given = study(models(name))
    before = {side: getattr(given, side).logits.clone() for side in SIDES}
    held = {fact: value.clone() for fact, value in given.facts.items()}
    assert metric(name)(given) == metric(name)(given) == result(name)
    assert all(torch.equal(getattr(given, side).logits, logits) for side, logits in before.items())
    assert all(torch.equal(given.facts[fact], value) for fact, value in held.items())


@pytest.mark.parametrize("name", NAMES)
def test_order_of_models_does_not_matter(name: str) -> None:
    a = audit(name)
    u, o, p = (permuted(models(name), purpose) for purpose in (1, 2, 3))
    assert a.parents is not None
    assert a.triggered is not None
    assert a.references is not None
    assert a.untrained is not None
    mixed = replace(
        a,
        originals=a.originals.rows(p),
        oracles=a.oracles.rows(o),
        unlearned=a.unlearned.rows(u),
        parents=p.argsort()[a.parents[u]],
        facts={fact: value[u] for fact, value in a.facts.items()},
        triggered=Triggered(a.triggered.originals.rows(p), a.triggered.oracles.rows(o), a.triggered.unlearned.rows(u), a.triggered.target),
        relearning={name: Relearning(held.oracles[o], held.unlearned[u]) for name, held in a.relearning.items()},
        references=a.references.rows(permuted(len(a.references), 5)),
        untrained=a.untrained.rows(permuted(len(a.untrained), 6)),
    )
    found, wanted = metric(name)(mixed), result(name)
    same(found, wanted)
    assert found.per_example == pytest.approx(wanted.per_example)
    if wanted.per_model is not None:
        assert found.per_model == pytest.approx([wanted.per_model[i] for i in u])


@pytest.mark.parametrize("name", NAMES)
def test_order_of_examples_does_not_matter(name: str) -> None:
    a = audit(name)
    order = permuted(len(a.unlearned.labels), 4)
    found, wanted = metric(name)(a.restrict(order)), result(name)
    same(found, wanted)
    if wanted.per_example is not None:
        part = getattr(metric(name), "part", "forget")
        before, after = a.unlearned.of(part).ids.tolist(), a.unlearned.examples(order).of(part).ids.tolist()
        at = dict(zip(before, wanted.per_example, strict=True))
        assert found.per_example == pytest.approx([at[i] for i in after])


@pytest.mark.parametrize("name", READ_LOGITS)
def test_names_of_classes_do_not_matter(name: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    same(metric(name)(renamed(audit(name), order)), result(name))


@pytest.mark.parametrize("name", READ_LOGITS)
def test_a_constant_added_to_all_logits_of_a_row_does_not_matter(name: str) -> None:
    draws = torch.Generator().manual_seed(0)

    def shifted(seen: Outputs) -> Outputs:
        return replace(seen, logits=seen.logits.double() + 40 * torch.randn(*seen.logits.shape[:2], 1, generator=draws, dtype=torch.float64))

    same(metric(name)(everywhere(audit(name), shifted)), result(name), 1e-8)


@pytest.mark.parametrize("name", [name for name in NAMES if spec.lookup("metric", name).minimum > 1])  # type: ignore[attr-defined]
def test_too_few_models_are_not_computed(name: str) -> None:
    least = metric(name).minimum
    few = torch.arange(least - 1)
    a = audit(name)
    for sides in (("unlearned",), ("oracles",), SIDES):
        small = fewer(a, few, sides)
        small = replace(small, parents=few if "unlearned" in sides else a.parents)
        found = metric(name)(small)
        assert (found.value, found.missing) == (None, f"not computed: N={least - 1}, needs {least}")
    assert metric(name)(replace(fewer(a, torch.arange(least)), parents=torch.arange(least))).missing is None


@pytest.mark.parametrize("name", READ_LOGITS)
def test_no_examples_are_not_computed(name: str) -> None:
    a = audit(name)
    for part in ("forget", "control", "retain"):
        found = metric(name)(a.restrict(a.unlearned.part != PARTS.index(part)))
        assert found.value is not None or f"there are no {part} examples" in (found.missing or "")
    if not name.endswith(".privacy") and name not in ("asr", "sa"):  # about the whole model, and about other images
        assert metric(name)(a.restrict(a.unlearned.part != PARTS.index("forget"))).value is None


def certain(seen: Outputs) -> Outputs:
    """One-hot rows: probabilities that round to 0 and 1."""
    return replace(seen, logits=1e4 * torch.nn.functional.one_hot(seen.predicted, 4).float())


def alike(seen: Outputs) -> Outputs:
    """All models agree to the last bit: ties and zero variance everywhere."""
    return replace(seen, logits=seen.logits[:1].expand_as(seen.logits))


def flat(seen: Outputs) -> Outputs:
    """All classes tie."""
    return replace(seen, logits=torch.zeros_like(seen.logits))


@pytest.mark.parametrize("degenerate", [certain, alike, flat])
@pytest.mark.parametrize("sides", [("unlearned",), ("oracles",), SIDES])
@pytest.mark.parametrize("name", READ_LOGITS)
def test_certain_and_tied_rows_make_no_nan(name: str, sides: tuple[str, ...], degenerate: Any) -> None:
    found = metric(name)(everywhere(audit(name), degenerate) if sides == SIDES else mapped(audit(name), degenerate, sides=sides))
    assert (found.value is None) == (found.missing is not None)
    assert all(math.isfinite(number) for number in numbers(found.to_json())), found


@pytest.mark.parametrize("name", READ_LOGITS)
def test_logits_that_are_not_finite_are_refused_by_name(name: str) -> None:
    a = audit(name)
    for side, model in (("unlearned", "3"), ("oracles", "100003")):
        for bad in (torch.nan, torch.inf):
            logits = getattr(a, side).logits.clone()
            logits[3] = bad
            with pytest.raises(InputError, match=rf"model {model} has a NaN or infinite logit on example id \d+"):
                metric(name)(replace(a, **{side: replace(getattr(a, side), logits=logits)}))


def test_all_that_stand_between_floor_and_ceiling_are_known() -> None:
    assert [name for name in NAMES if result(name).rescaled is not None] == CALIBRATED


@pytest.mark.parametrize("name", CALIBRATED)
def test_oracles_stand_at_the_floor(name: str) -> None:
    found = result(name, 0.0)
    assert found.rescaled is not None
    assert found.rescaled_ci is not None
    assert found.rescaled_ci.lo <= 0 <= found.rescaled_ci.hi
    assert abs(found.rescaled) < 0.15


@pytest.mark.parametrize("name", CALIBRATED)
def test_originals_stand_at_the_ceiling_and_the_way_between_is_monotone(name: str) -> None:
    """By construction: the plumbing is right, not the metric."""
    a = audit(name)
    done_nothing = metric(name)(undone(a))
    assert done_nothing.rescaled == pytest.approx(1, abs=1e-9)
    assert 0.05 < (result(name, 0.4).rescaled or 0) < (result(name, 0.8).rescaled or 0)
    floor, ceiling = done_nothing.floor, done_nothing.ceiling
    assert floor is not None
    assert ceiling is not None
    if name != "gap":
        assert metric(name).better != "lower" or floor.mean < ceiling.mean
        assert metric(name).better != "higher" or floor.mean > ceiling.mean
