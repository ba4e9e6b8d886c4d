"""Class weights of methods: the retain set's own, also for labels that it lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log
from typing import Any, cast

import pytest
import torch

from toy import Toy, make_toy, same
from unlearnlab.contract import Method
from unlearnlab.data.images import Images
from unlearnlab.fit import Batch, cross_entropy
from unlearnlab.methods.activation_reset import ActivationReset
from unlearnlab.methods.class_weights import class_weighted
from unlearnlab.methods.finetune import FineTune, finetuned
from unlearnlab.methods.hybrid_two_stage import HybridTwoStage
from unlearnlab.methods.poison import Poison, PoisonFull
from unlearnlab.methods.selective_pruning import SelectivePruning, SelectivePruningComplex, SelectivePruningLast
from unlearnlab.stack import Net
from unlearnlab.train import class_weights

FAMILY: list[Any] = [Poison, PoisonFull, HybridTwoStage, SelectivePruning, SelectivePruningLast, SelectivePruningComplex, ActivationReset]


def images(labels: list[int], classes: int) -> Images:
    n = len(labels)
    return Images(torch.zeros(n, 1, 8, 8), torch.tensor(labels), torch.arange(n), classes)


def test_weights_by_hand() -> None:
    assert class_weights(images([0, 0, 0, 1], 3), 3).tolist() == pytest.approx([4 / 3, 4, 0])


def test_weighted_mean_by_hand(toy: Toy) -> None:
    """Labels 0, 0, 0, 1 to retain: a 0 counts 4/3, a 1 counts 4, and a 2 (nowhere) as much as the rarest, 4."""
    head = make_toy(classes=2).stack
    split = replace(toy.split, retain=images([0, 0, 0, 1], 2))
    loss = class_weighted("inverse", head, split)
    logits = torch.tensor([[0.0, 0.0], [log(3), 0.0]])
    net = cast(Net, lambda pixels: logits)
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 1]), torch.arange(2))
    assert float(loss(net, batch, {})) == pytest.approx((4 / 3 * log(2) + 4 * log(4)) / (4 / 3 + 4))
    assert class_weighted("none", head, split) is cross_entropy
    absent = class_weighted("inverse", head, replace(toy.split, retain=images([0, 0], 2)))
    assert float(absent(net, batch, {})) == pytest.approx((log(2) + log(4)) / 2)


@pytest.mark.parametrize("family", FAMILY)
def test_forgetting_a_whole_class_stays_finite(toy: Toy, family: Any) -> None:
    """With weight 0 for the class that R lacks, a batch of S alone would be 0/0."""
    both = toy.split.train
    gone = both.labels == int(both.labels[0])
    split = replace(toy.split, forget=both.rows(gone.nonzero().flatten()), retain=both.rows((~gone).nonzero().flatten()))
    short = {"overfit_epochs": 2} if hasattr(family, "overfit_epochs") else {}
    method = family(class_weights="inverse", epochs=1, batch=16, **short)
    after = replace(toy.only(0), split=split).unlearn(method)
    assert not after.diverged
    assert all(bool(p.isfinite().all()) for p in after.params.values())


@pytest.mark.parametrize("family", FAMILY)
def test_every_phase_is_weighted(toy: Toy, record: Callable[[], list[Any]], family: Any) -> None:
    calls = record()
    for kind in ("none", "inverse"):
        toy.unlearn(cast(Method, family(class_weights=kind, epochs=1)))
    plain, weighted = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    assert all(call.settings["loss"] is cross_entropy for call in plain)
    assert all(call.settings["loss"] is not cross_entropy for call in weighted)


def test_the_last_stage_is_finetune(toy: Toy) -> None:
    method = HybridTwoStage(epochs=2, batch=16)
    alone = FineTune(lr=method.lr, epochs=2, batch=16, optimizer=method.optimizer)
    assert same(finetuned(toy.stack, toy.split, method, toy.context()).params, toy.unlearn(alone).params)
