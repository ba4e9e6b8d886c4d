"""``finetune``: the retain set and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from toy import Toy
from unlearnlab.methods.finetune import FineTune


def test_sees_every_retain_image_once_an_epoch_in_ever_new_order(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(FineTune(epochs=3, batch=10))
    (call,) = calls
    assert len(call.batches) == 3 * 6  # the short last batch included
    epochs = [torch.cat([batch.ids for batch in call.batches[at : at + 6]], 1) for at in (0, 6, 12)]
    for ids in epochs:
        assert torch.equal(ids.sort(1).values, toy.split.retain.ids.sort().values.expand(3, -1))  # so none of the forget set
        assert not torch.equal(ids[0], ids[1])  # each member in its own order
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_lowers_the_retain_loss(toy: Toy) -> None:
    def loss(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), toy.split.retain.labels.repeat(3))

    before, after = (loss(stack.logits(toy.split.retain.pixels)) for stack in (toy.stack, toy.unlearn(FineTune(lr=0.03))))
    assert after < before
