"""``ct``: kernels are transposed, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from toy import Toy, make_toy, same
from unlearnlab.methods.ct import Ct, transposed
from unlearnlab.methods.finetune import FineTune
from unlearnlab.optimizers import Cosine, Sgd
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack, weights_of


def test_the_last_two_axes_of_every_kernel_swap_and_nothing_else(toy: Toy) -> None:
    turned = transposed(toy.stack)
    assert weights_of(toy.stack.net, nn.Conv2d) == ["1.weight", "3.weight", "6.weight"]
    for name, p in toy.stack.params.items():
        expected = p.permute(0, 1, 2, 4, 3) if name in weights_of(toy.stack.net, nn.Conv2d) else p
        assert torch.equal(turned[name], expected)
        assert torch.equal(turned[name], p) == (name not in weights_of(toy.stack.net, nn.Conv2d))
    assert turned["1.weight"][2, 3, 0, 1, 2] == toy.stack.params["1.weight"][2, 3, 0, 2, 1]


def test_twice_is_the_identity(toy: Toy) -> None:
    assert same(transposed(toy.stack.having(transposed(toy.stack))), toy.stack.params)


def test_one_by_one_kernels_stay_and_others_that_are_not_square_are_refused() -> None:
    single = Stack.init(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(128, 10)), (0, 1))
    assert same(transposed(single), single.params)
    wide = Stack.init(nn.Sequential(nn.Conv2d(1, 2, (1, 3)), nn.Flatten(), nn.Linear(96, 10)), (0,))
    with pytest.raises(InputError, match=r"'0.weight' is 1×3; use another method"):
        transposed(wide)


def test_fine_tunes_the_transposed_model_on_the_retain_set(toy: Toy, record: Callable[[], list[Any]]) -> None:
    then = FineTune(lr=0.001, epochs=3, batch=64, schedule=Cosine(), augment="none")
    start, ctx = toy.stack.having(transposed(toy.stack)), toy.context()
    assert same(toy.unlearn(Ct()).params, then(start, toy.split, ctx).params)
    calls = record()
    toy.unlearn(Ct())
    assert len(calls) == 1
    assert calls[0].settings["optimizer"] == Sgd(momentum=0.9, weight_decay=5e-4)
    assert {int(i) for batch in calls[0].batches for i in batch.ids.flatten()} == set(toy.split.retain.ids.tolist())


def test_batch_norm_is_kept_and_a_net_without_kernels_is_fine_tuned(record: Callable[[], list[Any]]) -> None:
    normed, plain = make_toy("batch_norm"), make_toy("mlp")
    calls = record()
    for toy in (normed, plain):
        toy.unlearn(Ct())
    assert same(calls[0].stack.buffers, normed.stack.buffers)
    assert same(calls[1].stack.params, plain.stack.params)
