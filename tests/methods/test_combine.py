"""``localised``: any localiser with any method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from toy import Toy, same
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.localise.random import Random
from unlearnlab.localise.weight_magnitude import WeightMagnitude
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.del_ import Del
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.gradient_ascent import GradientAscent
from unlearnlab.methods.ssd import Ssd
from unlearnlab.spec import ALIASES, InputError, build, names

INNER = [FineTune(epochs=2, batch=16), GradientAscent(lr=0.01), Ssd(selection=1.0)]


@pytest.mark.parametrize("where", [GradParam(budget=0.1), Random(budget=0.3, granularity="channel"), WeightMagnitude()])
@pytest.mark.parametrize("method", INNER)
def test_closed_weights_stay_and_open_ones_move(where: Any, method: Any, toy: Toy) -> None:
    after, mask = toy.unlearn(Localised(where, method)), toy.locate(where)
    assert all(torch.equal(after.params[n][~bits], toy.stack.params[n][~bits]) for n, bits in mask.open.items())
    assert not same(after.params, toy.stack.params)


def test_a_one_shot_method_does_inside_the_mask_what_it_does_without(toy: Toy) -> None:
    where = Random(budget=0.5)
    expected = toy.locate(where).choose(toy.unlearn(Ssd(selection=1)).params, toy.stack.params)
    assert same(toy.unlearn(Localised(where, Ssd(selection=1))).params, expected)


def test_null_where_the_method_is(toy: Toy) -> None:
    assert same(toy.unlearn(Localised(GradParam(), FineTune(lr=0))).params, toy.stack.params)


def test_everything_open_is_the_method_itself(toy: Toy) -> None:
    assert same(toy.unlearn(Localised(Random(budget=1), INNER[0])).params, toy.unlearn(INNER[0]).params)


def test_reads_what_its_parts_read() -> None:
    assert Localised(GradParam(), FineTune()).reads == {"forget", "retain"}
    assert Localised(Random(), FineTune()).reads == {"retain"}
    assert Localised(Random(), Del()).reads == {"forget", "retain", "original_init"}


def test_two_masks_leave_open_what_both_open(toy: Toy) -> None:
    outer, inner = Random(budget=0.5), GradParam(budget=0.5)
    after = toy.unlearn(Localised(outer, Localised(inner, FineTune(epochs=2))))
    both = {n: bits & toy.locate(inner).open[n] for n, bits in toy.locate(outer).open.items()}
    for n, bits in both.items():
        assert torch.equal(after.params[n][~bits], toy.stack.params[n][~bits])
        assert bool((after.params[n][bits] != toy.stack.params[n][bits]).any())


def test_the_mask_comes_from_the_model_at_hand(toy: Toy) -> None:
    later = replace(toy, stack=toy.unlearn(FineTune(epochs=2, lr=0.1)))
    where = GradParam(budget=0.1)
    after = later.unlearn(Localised(where, FineTune(epochs=1)))
    moved = {n: after.params[n] != p for n, p in later.stack.params.items()}
    assert all(not bool((moved[n] & ~bits).any()) for n, bits in later.locate(where).open.items())
    assert any(bool((moved[n] & ~bits).any()) for n, bits in toy.locate(where).open.items())


def test_names_from_papers_lead_to_ours() -> None:
    assert set(ALIASES["method"].values()) <= set(names("method"))
    for theirs, ours in ALIASES["method"].items():
        with pytest.raises(InputError, match=f"'{ours}'"):
            build("method", theirs)


def test_what_gives_no_models_back_is_refused() -> None:
    with pytest.raises(InputError, match="'localised' cannot hold 'sisa'"):
        build("method", {"name": "localised", "where": "random", "method": "sisa"})
