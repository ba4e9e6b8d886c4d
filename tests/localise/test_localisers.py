"""What every localiser must hold to (methods.md §5.1, protocols.md §16), run over the registry."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from toy import SHORT, Toy, furthest, make_toy, same
from unlearnlab.contract import Forbidden, Localiser, Undeclared
from unlearnlab.localise.crit_mem import CritMem
from unlearnlab.localise.deepest import Deepest
from unlearnlab.localise.fisher_ratio import FisherRatio
from unlearnlab.localise.grad_channel import GradChannel
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.localise.random import Random
from unlearnlab.localise.shallowest import Shallowest
from unlearnlab.localise.small_gradient import SmallGradient
from unlearnlab.localise.weight_magnitude import WeightMagnitude
from unlearnlab.localise.weighted_grad_all_data import WeightedGradAllData
from unlearnlab.localise.weighted_grad_channel import WeightedGradChannel
from unlearnlab.localise.weighted_grad_param import WeightedGradParam
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.reset_finetune import ResetFineTune
from unlearnlab.spec import build, fields, names, to_dict
from unlearnlab.stack import Mask, Stack, flat, head_names

LOCALISERS: dict[str, Localiser] = {
    "grad_param": GradParam(),
    "grad_channel": GradChannel(),
    "weighted_grad_param": WeightedGradParam(),
    "weighted_grad_channel": WeightedGradChannel(),
    "weighted_grad_all_data": WeightedGradAllData(),
    "weight_magnitude": WeightMagnitude(),
    "weight_magnitude channels": WeightMagnitude(granularity="channel"),
    "random": Random(),
    "random channels": Random(granularity="channel"),
    "shallowest": Shallowest(),
    "deepest": Deepest(),
    "fisher_ratio": FisherRatio(),
    "fisher_ratio channels": FisherRatio(granularity="channel"),
    "small_gradient": SmallGradient(),
    "small_gradient channels": SmallGradient(granularity="channel"),
    "crit_mem": CritMem(others=4, max_units=3),
}
CHANNELS = {name for name, one in LOCALISERS.items() if getattr(one, "granularity", "parameter") == "channel"}
BLIND = {name for name, one in LOCALISERS.items() if "forget" not in one.reads}  # to the data
OTHER: dict[str, Any] = {
    "budget": 0.17, "top_share": 1.0, "min_keep": 3, "draw": 1, "threshold": 1.0, "examples": 1, "others": 3, "max_units": 1, "noise": 0.5,
    "noisy": 1, "gradient_batch": 1,
}  # fmt: skip
WITH: dict[str, dict[str, Any]] = {  # settings that mean nothing alone
    "noisy": {"noise": 0.5}, "accumulate": {"gradient_batch": 1}, "gradient_batch": {"accumulate": "abs_per_batch"},
}  # fmt: skip
NETS = ["small_cnn", "batch_norm", "mlp", "vit"]
BUDGETS = (0.02, 0.1, 0.29, 0.3, 0.77, 1.0)


def at(name: str, budget: float) -> Localiser:
    return replace(LOCALISERS[name], budget=budget)


def largest_unit(stack: Stack) -> int:
    """Weights of the largest output channel."""
    return max(int(count) for count in [(p[0, 0] if p.dim() > 2 else p[0]).numel() for p in stack.params.values()])


def test_all_are_tested() -> None:
    assert {name.split()[0] for name in LOCALISERS} | {"stored", "legacy_file"} == set(names("localiser"))


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
    for net in ("batch_norm", "vit"):
        for tensor, bits in make_toy(net).locate(at(name, 0.3)).open.items():
            held = bits[:, 0] if tensor.startswith("positions") else bits  # a place is a unit there
            units = held.flatten(2) if held.dim() > 2 else held.unsqueeze(1)
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
    assert torch.equal(together[0], together[1]) == (name in ("shallowest", "deepest"))  # else each member has a selection of its own


@pytest.mark.parametrize("name", LOCALISERS)
def test_two_classes_and_one_image(name: str) -> None:
    toy = make_toy("mlp", 2)
    mask = toy.forgetting(toy.split.forget.rows(torch.tensor([2]))).locate(LOCALISERS[name])
    assert bool(((mask.share() <= LOCALISERS[name].budget) & (mask.share() > LOCALISERS[name].budget - 0.1)).all())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", LOCALISERS)
def test_pruned_weights_never_open_and_use_no_budget(name: str, toy: Toy) -> None:
    live = {n: torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) < 0.25 for n, p in toy.stack.params.items() if p.dim() > 2}
    live["1.weight"][:, 2:4] = False  # whole channels
    sparse = replace(toy, stack=toy.stack.pruned(live))
    mask, left = sparse.locate(LOCALISERS[name]), flat(Mask.everything(sparse.stack).open)
    assert not bool((flat(mask.open) & ~left).any())
    slack = largest_unit(toy.stack) if name in CHANNELS else 1
    wanted = LOCALISERS[name].budget * left.sum(1)  # type: ignore[attr-defined]
    assert bool(((flat(mask.open).sum(1) <= wanted) & (flat(mask.open).sum(1) > wanted - slack)).all())
    assert torch.equal(flat(sparse.locate(at(name, 1.0)).open), left)


@pytest.mark.parametrize("name", LOCALISERS)
def test_serves_methods_that_train_and_that_reset(name: str, toy: Toy) -> None:
    mask = toy.locate(LOCALISERS[name])
    tuned = toy.unlearn(Localised(LOCALISERS[name], FineTune(epochs=1)))
    again = toy.unlearn(Localised(LOCALISERS[name], ResetFineTune(epochs=1)))
    for after, opened in ((tuned, mask), (again, mask.opening(head_names(toy.stack)))):
        assert all(torch.equal(after.params[n][~bits], toy.stack.params[n][~bits]) for n, bits in opened.open.items())
        assert furthest(after.params, toy.stack.params) > 0


@pytest.mark.parametrize("name", [name for name, one in LOCALISERS.items() if hasattr(one, "always_open")])
def test_the_head_opens_beyond_the_budget_where_asked_to(name: str, toy: Toy) -> None:
    plain, headed = toy.locate(LOCALISERS[name]), toy.locate(replace(LOCALISERS[name], always_open="head"))
    assert same(headed.open, plain.opening(head_names(toy.stack)).open)


@pytest.mark.parametrize("name", [name for name, one in LOCALISERS.items() if hasattr(one, "rank")])
def test_one_ranking_gives_the_masks_of_all_budgets(name: str, toy: Toy) -> None:
    localiser: Any = LOCALISERS[name]
    ranking = localiser.rank(toy.stack, toy.split, toy.context())
    for budget in (0.05, 0.3, 1.0):
        assert same(ranking.mask(budget).open, toy.locate(at(name, budget)).open)
    assert ranking.mask(0.3).parent == toy.stack.fingerprint


@pytest.mark.parametrize("name", sorted(set(LOCALISERS) - {"random", "random channels", "shallowest", "deepest"}))
def test_follows_the_model_at_hand(name: str, toy: Toy) -> None:
    later = replace(toy, stack=SHORT(toy.stack, toy.split.retain))
    assert not same(toy.locate(LOCALISERS[name]).open, later.locate(LOCALISERS[name]).open)


@pytest.mark.parametrize("name", LOCALISERS)
def test_no_dead_settings_and_settings_survive(name: str) -> None:
    toy = make_toy("batch_norm")
    for field in fields(type(LOCALISERS[name])):
        localiser = replace(LOCALISERS[name], **WITH.get(field.name, {}))
        before, now = toy.locate(localiser), getattr(localiser, field.name)
        others = [choice for choice in get_args(field.type) if choice != now] if get_origin(field.type) is Literal else [OTHER[field.name]]
        for value in others:
            if field.name == "granularity" and value == "layer":
                continue  # its share of the toy may be nothing: test_ranking has it
            other = replace(localiser, **{field.name: value})
            assert not same(toy.locate(other).open, before.open), field.name
            assert build("localiser", json.loads(json.dumps(to_dict(other)))) == other


@pytest.mark.parametrize("name", sorted(set(LOCALISERS) - {"crit_mem"}))
def test_cost_is_one_pass_over_what_it_reads(name: str, toy: Toy) -> None:
    ctx = toy.context()
    toy.locate(LOCALISERS[name], ctx)
    passes = sum(len(getattr(toy.split, part)) for part in LOCALISERS[name].reads)
    assert (ctx.progress.forward, ctx.progress.backward) == (passes, passes)


def test_mask_share_is_counted_per_member(toy: Toy) -> None:
    mask = toy.locate(Random(budget=0.25))
    assert torch.allclose(mask.share(), torch.full((3,), 0.25), atol=1e-3)
    assert torch.equal(Mask.everything(toy.stack).share(), torch.ones(3))
