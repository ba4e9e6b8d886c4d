"""``hybrid_two_stage``: two stages that are other methods, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from toy import Toy, make_toy, same
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.hybrid_two_stage import HybridTwoStage
from unlearnlab.methods.poison import Poison
from unlearnlab.optimizers import Cosine, Sgd


def test_is_poison_then_finetune_bit_for_bit() -> None:
    toy = make_toy("batch_norm")
    after = toy.unlearn(HybridTwoStage(batch=16, epochs=2))
    nesterov = Sgd(nesterov=True)
    first = Poison(lr=0.01, batch=16)(toy.stack, toy.split, toy.context())
    second = FineTune(lr=0.001, epochs=2, batch=16, optimizer=nesterov)(first, toy.split, toy.context())
    assert same(after.params | after.buffers, second.params | second.buffers)


def test_without_one_stage_it_is_the_other(toy: Toy) -> None:
    plain = FineTune(lr=0.001, epochs=2, batch=16, optimizer=Sgd(nesterov=True))
    assert same(toy.unlearn(HybridTwoStage(forget_lr=0, batch=16, epochs=2)).params, toy.unlearn(plain).params)
    assert same(toy.unlearn(HybridTwoStage(lr=0, batch=16, epochs=2)).params, toy.unlearn(Poison(lr=0.01, batch=16)).params)


def test_without_one_stage_it_is_the_other_in_running_averages_too_where_these_are_frozen() -> None:
    toy, nesterov = make_toy("batch_norm"), Sgd(nesterov=True)
    pairs = (
        (HybridTwoStage(forget_lr=0, batch=16, epochs=1, bn="frozen"), FineTune(lr=0.001, epochs=1, batch=16, optimizer=nesterov, bn="frozen")),
        (HybridTwoStage(lr=0, batch=16, epochs=1, bn="frozen"), Poison(lr=0.01, batch=16, bn="frozen")),
    )
    for both, one in pairs:
        found, expected = toy.unlearn(both), toy.unlearn(one)
        assert same(found.params | found.buffers, expected.params | expected.buffers)


def test_stages_see_their_own_images_at_their_own_rates(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(HybridTwoStage(forget_epochs=2, schedule=Cosine()))
    assert [call.settings["lr"] for call in calls] == [0.01, 0.001]
    assert [call.settings["steps"] for call in calls] == [2, 5]
    assert [call.settings["schedule"] == Cosine() for call in calls] == [False, True]
    for call, images in zip(calls, (toy.split.forget, toy.split.retain), strict=True):
        assert set(torch.cat([batch.ids for batch in call.batches], 1).flatten().tolist()) == set(images.ids.tolist())
    first, second = (batch.ids[0].tolist() for batch in calls[1].batches[:2])
    assert first != sorted(first)
    assert first != second  # the retain set is shuffled, anew each epoch


@pytest.mark.parametrize("net", ["batch_norm", "mlp"])
def test_rate_zero_leaves_the_head_alone(net: str) -> None:
    """No stage puts a new head in the place of the trained one."""
    toy = make_toy(net)
    assert same(toy.unlearn(HybridTwoStage(forget_lr=0, lr=0)).params, toy.stack.params)
