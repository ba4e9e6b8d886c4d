"""``del`` and ``reset_finetune``: reset the critical channels, train them and the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from toy import Toy, make_toy, same
from unlearnlab.localise.weighted_grad_channel import WeightedGradChannel
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.del_ import Del
from unlearnlab.methods.reset_finetune import ResetFineTune
from unlearnlab.optimizers import Cosine, Sgd
from unlearnlab.spec import InputError, fields
from unlearnlab.stack import head_names

NETS = ["small_cnn", "batch_norm", "mlp"]


@pytest.mark.parametrize("net", NETS)
def test_budget_one_resets_to_the_original_initial_weights(net: str) -> None:
    toy = make_toy(net)
    assert same(toy.unlearn(Del(budget=1, lr=0)).params, toy.init.params)
    assert same(toy.unlearn(ResetFineTune(lr=0)).params, toy.init.params)
    ctx = toy.context()
    assert same(toy.unlearn(Del(budget=1, lr=0, reset_to="fresh_init")).params, toy.stack.fresh(ctx.seeds).params)


@pytest.mark.parametrize("net", NETS)
def test_closed_channels_are_bit_exact_after_training_with_weight_decay(net: str) -> None:
    toy = make_toy(net)
    mask = toy.locate(WeightedGradChannel(budget=0.3))
    head = head_names(toy.stack)
    after = toy.unlearn(Del(epochs=3, batch=16, optimizer=Sgd(weight_decay=5e-4)))
    for name, bits in mask.open.items():
        stayed = after.params[name] == toy.stack.params[name]
        assert not bool(stayed[bits].any()), name
        if name in head:  # trains although the mask closes part of it
            assert float(stayed.float().mean()) < 0.05
        else:
            assert bool(stayed[~bits].all()), name
    assert not bool(mask.open[head[0]].all())


def test_the_head_is_reset_only_where_the_mask_says_so(toy: Toy) -> None:
    mask = toy.locate(WeightedGradChannel(budget=0.3))
    start = toy.unlearn(Del(lr=0))
    assert same(start.params, mask.choose(toy.init.params, toy.stack.params))


def test_fine_tunes_on_retained_ids_only_from_the_reset_state_with_cosine_to_a_hundredth(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Del(epochs=2))
    (call,) = calls
    assert {int(i) for batch in call.batches for i in batch.ids.flatten()} == set(toy.split.retain.ids.tolist())
    assert same(call.stack.params, toy.locate(WeightedGradChannel()).choose(toy.init.params, toy.stack.params))
    assert call.settings["schedule"] == Cosine(final=0.01)
    assert call.settings["optimizer"] == Sgd(momentum=0.9, weight_decay=0.0)


def test_is_the_marriage_of_its_parts_with_the_same_defaults(toy: Toy) -> None:
    parts = {field.name: field.default for cls in (WeightedGradChannel, ResetFineTune) for field in fields(cls)}
    mine = {field.name: field.default for field in fields(Del)}
    assert mine.items() <= parts.items()
    assert set(parts) - set(mine) == {"normalise", "ranking", "always_open", "min_keep"}  # for other marriages: `localised`
    assert same(toy.unlearn(Del(budget=0.2)).params, toy.unlearn(Localised(WeightedGradChannel(budget=0.2), ResetFineTune())).params)


@pytest.mark.parametrize("method", [Del(), ResetFineTune()])
def test_without_initial_weights_it_says_what_to_do(method: Any, toy: Toy) -> None:
    with pytest.raises(InputError, match="set reset_to = 'fresh_init'"):
        toy.unlearn(method, replace(toy.context(), original_init=None))
    fresh = replace(method, reset_to="fresh_init", epochs=1)
    assert "original_init" not in fresh.reads
    assert all(bool(torch.isfinite(p).all()) for p in toy.unlearn(fresh, replace(toy.context(), original_init=None)).params.values())


def test_binary_classifier() -> None:
    toy = make_toy("small_cnn", 2)
    assert toy.unlearn(Del(epochs=2)).logits(toy.split.test.pixels).shape == (3, 20, 2)
