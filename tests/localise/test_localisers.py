"""What every localiser must hold to (methods.md §5.1, protocols.md §16), run over the registry."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from toy import SHORT, Toy, make_toy, same
from unlearnlab.contract import Forbidden, Localiser, Undeclared
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.localise.random import Random
from unlearnlab.localise.weight_magnitude import WeightMagnitude
from unlearnlab.localise.weighted_grad_channel import WeightedGradChannel
from unlearnlab.spec import build, fields, names, to_dict
from unlearnlab.stack import Mask, Stack, flat

LOCALISERS: dict[str, Localiser] = {
    "grad_param": GradParam(),
    "weighted_grad_channel": WeightedGradChannel(),
    "weight_magnitude": WeightMagnitude(),
    "random": Random(),
    "random channels": Random(granularity="channel"),
}
CHANNELS = {"weighted_grad_channel", "random channels"}
OTHER = {"budget": 0.17, "top_share": 1.0}
NETS = ["small_cnn", "batch_norm", "mlp"]
BUDGETS = (0.02, 0.1, 0.29, 0.3, 0.77, 1.0)


def at(name: str, budget: float) -> Localiser:
    return replace(LOCALISERS[name], budget=budget)


def largest_unit(stack: Stack) -> int:
    """Weights of the largest output channel."""
    return max(int(count) for count in [(p[0, 0] if p.dim() > 2 else p[0]).numel() for p in stack.params.values()])


def test_all_are_tested() -> None:
    assert {name.split()[0] for name in LOCALISERS} | {"stored"} == set(names("localiser"))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", LOCALISERS)
def test_share_is_the_budget_and_smaller_budgets_are_subsets(name: str, net: str) -> None:
    toy = make_toy(net)
    weights, last = flat(toy.stack.params).shape[1], None
    for budget in BUDGETS:
        mask = toy.locate(at(name, budget))
        assert [(n, bits.shape, bits.dtype) for n, bits in mask.open.items()] == [(n, p.shape, torch.bool) for n, p in toy.stack.params.items()]
        opened, wanted = flat(mask.open).sum(1), int(round(budget * 100) * weights / 100)
        slack = largest_unit(toy.stack) if name in CHANNELS else 1
        assert bool((opened <= wanted).all())
        assert bool((opened > wanted - slack).all())
        assert last is None or bool((flat(mask.open) | ~last).all())
        last = flat(mask.open)
    assert last is not None
    assert bool(last.all())  # budget 1 opens everything


@pytest.mark.parametrize("name", sorted(CHANNELS))
def test_a_channel_is_open_or_closed_whole(name: str) -> None:
    toy = make_toy("batch_norm")
    for bits in toy.locate(at(name, 0.3)).open.values():
        units = bits.flatten(2) if bits.dim() > 2 else bits.unsqueeze(1)
        assert torch.equal(units.all(2), units.any(2))


@pytest.mark.parametrize("name", LOCALISERS)
def test_reads_exactly_what_it_declares(name: str, toy: Toy) -> None:
    localiser = LOCALISERS[name]
    hidden: dict[str, Any] = {part: Forbidden(name, part) for part in ("forget", "retain", "validation", "control", "test")}
    ctx = replace(toy.context(), original_init=Forbidden(name, "original_init"))
    localiser(toy.stack, replace(toy.split, **{part: gate for part, gate in hidden.items() if part not in localiser.reads}), ctx)
    for part in localiser.reads:
        with pytest.raises(Undeclared, match=part):
            localiser(toy.stack, replace(toy.split, **{part: hidden[part]}), ctx)


@pytest.mark.parametrize("name", LOCALISERS)
def test_changes_nothing_and_repeats_itself(name: str, toy: Toy) -> None:
    before = {n: p.clone() for n, p in toy.stack.params.items()}
    lot = torch.get_rng_state()
    first, again = toy.locate(LOCALISERS[name]), toy.locate(LOCALISERS[name])
    assert same(toy.stack.params, before)
    assert torch.equal(torch.get_rng_state(), lot)
    assert same(first.open, again.open)
    assert first.parent == toy.stack.fingerprint


@pytest.mark.parametrize("name", LOCALISERS)
def test_order_of_forget_images_does_not_matter(name: str, toy: Toy) -> None:
    """Up to entries within rounding of the cut: none on the toy."""
    turned = toy.forgetting(toy.split.forget.rows(torch.tensor([3, 1, 0, 2])))
    assert same(toy.locate(LOCALISERS[name]).open, turned.locate(LOCALISERS[name]).open)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", LOCALISERS)
def test_stacked_equals_separate(name: str, net: str) -> None:
    toy = make_toy(net)
    together, ctx = flat(toy.locate(LOCALISERS[name]).open), toy.context()
    for k in range(len(toy.stack)):
        alone = toy.only(k).locate(LOCALISERS[name], replace(ctx, seeds=ctx.seeds[k : k + 1]))
        assert torch.equal(flat(alone.open)[0], together[k])
    assert not torch.equal(together[0], together[1])  # each member has a selection of its own


@pytest.mark.parametrize("name", sorted(set(LOCALISERS) - {"random", "random channels"}))
def test_follows_the_model_at_hand(name: str, toy: Toy) -> None:
    later = replace(toy, stack=SHORT(toy.stack, toy.split.retain))
    assert not same(toy.locate(LOCALISERS[name]).open, later.locate(LOCALISERS[name]).open)


@pytest.mark.parametrize("name", LOCALISERS)
def test_no_dead_settings_and_settings_survive(name: str) -> None:
    toy, localiser = make_toy("batch_norm"), LOCALISERS[name]
    before = toy.locate(localiser)
    for field in fields(type(localiser)):
        now = getattr(localiser, field.name)
        others = [choice for choice in get_args(field.type) if choice != now] if get_origin(field.type) is Literal else [OTHER[field.name]]
        for value in others:
            other = replace(localiser, **{field.name: value})
            assert not same(toy.locate(other).open, before.open), field.name
            assert build("localiser", json.loads(json.dumps(to_dict(other)))) == other


@pytest.mark.parametrize("name", sorted({"grad_param", "weighted_grad_channel"}))
def test_cost_is_one_pass_over_the_forget_set(name: str, toy: Toy) -> None:
    ctx = toy.context()
    toy.locate(LOCALISERS[name], ctx)
    assert (ctx.progress.forward, ctx.progress.backward) == (len(toy.split.forget), len(toy.split.forget))


def test_mask_share_is_counted_per_member(toy: Toy) -> None:
    mask = toy.locate(Random(budget=0.25))
    assert torch.allclose(mask.share(), torch.full((3,), 0.25), atol=1e-3)
    assert torch.equal(Mask.everything(toy.stack).share(), torch.ones(3))
