"""Which settings are searched, and between which bounds."""

from __future__ import annotations

from typing import get_args

import pytest

from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.neggrad_plus import NegGradPlus
from unlearnlab.methods.salun import SalUn
from unlearnlab.searching import COSTS, EXEMPT, GUARANTEES, Range, read_wanted, settled, space, values
from unlearnlab.spec import InputError, build, fields, lookup, names, to_dict

PARTS = {  # methods that hold methods need some
    "localised": {"where": {"name": "grad_param", "budget": 0.3}, "method": {"name": "finetune", "lr": 0.02}},
    "prune_first": {"pruning": "omp", "method": "finetune"},
    "rum": {"refine": {"name": "shuffle", "groups": 2}, "each": ["finetune", "salun"]},
    "sequence": {"steps": ["gradient_ascent", "finetune"]},
}
OURS = [name for name in names("method") if lookup("method", name).__module__.startswith("unlearnlab.")]


def made(name: str):
    return build("method", {"name": name, **PARTS.get(name, {})})


@pytest.mark.parametrize("name", OURS)
def test_every_method_is_searched_or_says_why_not(name: str) -> None:
    method = made(name)
    if name in EXEMPT:
        with pytest.raises(InputError, match=f"method '{name}' is not tuned: {EXEMPT[name]}"):
            space(method)
        return
    found, own = space(method), values(method)
    assert found
    for path, bounds in found.items():
        low, high = bounds.ends()
        assert low < high
        assert bounds.low <= own[path] <= bounds.high  # the first trial has the study's own settings
        assert bounds.value(bounds.there(own[path])) == pytest.approx(own[path], rel=5e-3)
        for end in (low, (low * high) ** 0.5, high):
            assert settled(method, {path: bounds.value(end)}) != method or bounds.value(end) == own[path]  # every value between is allowed
    assert not [path for path in found if path.rpartition(".")[2] in COSTS]


def test_no_exemption_is_stale() -> None:
    assert set(EXEMPT) <= set(OURS)
    for name in ("eu_k", "sisa"):
        assert not [field for field in fields(lookup("method", name)) if float in (field.type, *get_args(field.type))]
    for name, settings in GUARANTEES.items():
        assert set(settings) <= {field.name for field in fields(lookup("method", name))}


def test_the_rules_by_example() -> None:
    assert space(FineTune(lr=0.01)) == {"lr": Range(0.01 / 30, 0.3, "log")}
    assert space(FineTune(lr=0.2))["lr"].high == 1.0  # a learning rate above 1 is none
    assert space(SalUn(budget=0.5))["budget"] == Range(0.05, 0.95, "even")
    near = space(NegGradPlus(retain_weight=0.99))["retain_weight"]
    assert (near.scale, round(near.low, 6), round(near.high, 6)) == ("near one", 0.7, 0.999667)
    assert near.value(0.012345) == 0.9877
    assert "pull" not in space(NegGradPlus())  # 0: off


def test_what_a_method_holds_is_searched_by_its_path() -> None:
    assert list(space(made("localised"))) == ["where.budget", "method.lr"]
    assert [path for path in space(made("rum")) if path.endswith("lr")] == ["each.finetune.lr", "each.salun.lr"]
    changed = settled(made("rum"), {"each.salun.lr": 0.5})
    assert [one.lr for one in changed.each] == [FineTune().lr, 0.5]
    with pytest.raises(InputError, match="'sequence' is not tuned: it holds 'finetune' more than once"):
        space(build("method", {"name": "sequence", "steps": ["finetune", "finetune"]}))


def test_bounds_may_be_given_and_then_nothing_else_is_searched() -> None:
    assert space(SalUn(), read_wanted(["lr=0.001..0.1"])) == {"lr": Range(0.001, 0.1, "log")}
    assert space(SalUn(), read_wanted(["budget=0.2..0.8", "lr=0.1..0.5"])) == {"budget": Range(0.2, 0.8, "even"), "lr": Range(0.1, 0.5, "even")}
    assert space(made("rum"), {"each.salun.lr": (0.01, 1.0)}) == {"each.salun.lr": Range(0.01, 1.0, "log")}
    assert to_dict(settled(SalUn(), {"lr": 0.5}))["lr"] == 0.5


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["lr"], r"cannot read the search 'lr'; expected NAME=LOW\.\.HIGH"),
        (["lr=0.1..0.01"], "cannot read the search"),
        (["lr=a..b"], "cannot read the search"),
        (["lr=-1..1"], "cannot search lr of method 'salun' to -1: expected at least 0"),
        (["budgit=0.1..0.9"], "method 'salun' has no 'budgit' to search; did you mean 'budget'.*budget, retain_weight, lr"),
        (["epochs=1..10"], "method 'salun' has no 'epochs' to search"),
    ],
)
def test_wrong_bounds_are_refused(wanted: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        space(SalUn(), read_wanted(wanted))
