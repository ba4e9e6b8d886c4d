"""``poison`` and ``poison_full``: wrong labels that stay what they are and stay where they belong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from toy import Toy, make_toy, same
from unlearnlab.contract import Undeclared, only_declared
from unlearnlab.data.images import Images, Split
from unlearnlab.methods.poison import Poison, PoisonFull
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.optimizers import Constant, Cosine, Sgd

Record = Callable[[], list[Any]]


def test_defaults_are_those_published(toy: Toy, record: Record) -> None:
    calls = record()
    toy.unlearn(Poison())
    toy.unlearn(PoisonFull())
    usual = {"optimizer": Sgd(momentum=0.9, weight_decay=5e-4, nesterov=True), "bn": "train"}
    for call, lr, schedule, steps in zip(calls, (0.0007, 0.002), (Constant(), Cosine()), (1, 5), strict=True):
        assert {name: call.settings[name] for name in usual} == usual
        assert (call.settings["lr"], call.settings["schedule"], call.settings["steps"]) == (lr, schedule, steps)


@pytest.mark.parametrize("method", [Poison(epochs=3, batch=3), PoisonFull(epochs=3, batch=16)])
def test_forget_labels_are_drawn_once_and_no_others_are(toy: Toy, record: Record, method: Any) -> None:
    calls = record()
    toy.unlearn(method)
    ids, labels = (torch.cat([getattr(batch, name) for batch in calls[0].batches], 1) for name in ("ids", "labels"))
    given = dict(zip(toy.split.train.ids.tolist(), toy.split.train.labels.tolist(), strict=True))
    forget = set(toy.split.forget.ids.tolist())
    drawn = [{(i, label) for i, label in zip(*rows, strict=True) if i in forget} for rows in zip(ids.tolist(), labels.tolist(), strict=True)]
    assert all(len(pairs) == 4 for pairs in drawn)  # one label an image, in all three epochs
    assert len({frozenset(pairs) for pairs in drawn}) == 3  # each member's own
    assert any(label != given[i] for i, label in drawn[0])
    assert all(given[i] == label for i, label in zip(ids.flatten().tolist(), labels.flatten().tolist(), strict=True) if i not in forget)
    assert len(set(ids.flatten().tolist())) == (60 if isinstance(method, PoisonFull) else 4)


def test_labels_of_a_shared_release_are_not_written_to() -> None:
    """S and R as views of one data set, which keeps its labels."""
    base = make_toy().split.train
    before = base.labels.clone()
    forget, retain = (Images(base.pixels[part], base.labels[part], base.ids[part], 10) for part in (slice(0, 10), slice(10, 60)))
    split = replace(make_toy().split, forget=forget, retain=retain)
    for method in (Poison(), PoisonFull(epochs=1)):
        replace(make_toy(), split=split).unlearn(method)
    assert torch.equal(base.labels, before)


def test_only_the_methods_own_seeds_matter(toy: Toy) -> None:
    """Python's and torch's global generators decide nothing."""
    results = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        results.append([toy.unlearn(method).params for method in (Poison(), PoisonFull(epochs=1))])
    assert all(same(a, b) for a, b in zip(*results, strict=True))
    assert not same(toy.unlearn(Poison(), toy.context(shift=7)).params, results[0][0])


def test_labels_cover_all_classes_and_can_leave_out_the_true_one(toy: Toy, record: Record) -> None:
    many = Images(torch.zeros(500, 1, 8, 8), torch.arange(500) % 10, torch.arange(1000, 1500), 10)
    calls = record()
    for exclude in (False, True):
        replace(toy, split=replace(toy.split, forget=many)).unlearn(Poison(exclude_true=exclude))
    for call, right in zip(calls, (True, False), strict=True):
        ids, labels = (torch.cat([getattr(batch, name) for batch in call.batches], 1) for name in ("ids", "labels"))
        hits = (labels == ids % 10).float().mean(1)
        assert bool(((hits > 0.05) & (hits < 0.15)).all()) if right else not hits.any()
        assert all(set(row.tolist()) == set(range(10)) for row in labels)


def test_first_batches_hold_their_share_of_the_forget_set(toy: Toy, record: Record) -> None:
    """Not at the end of every epoch, as where S is appended to R and nothing is shuffled."""
    images = Images(torch.zeros(1000, 1, 8, 8), torch.arange(1000) % 10, torch.arange(1000), 10)
    split = replace(toy.split, forget=images.rows(torch.arange(20)), retain=images.rows(torch.arange(20, 1000)))
    calls = record()
    replace(toy, split=split).unlearn(PoisonFull(batch=50))
    for epoch in (0, 1):
        first = torch.cat([batch.ids for batch in calls[0].batches[20 * epoch : 20 * epoch + 10]], 1)
        found = (first < 20).sum(1)
        assert bool(((found >= 4) & (found <= 16)).all())  # ten expected of 500, standard deviation 2.2


def test_poison_full_is_random_label_with_labels_drawn_once(toy: Toy) -> None:
    full = PoisonFull(epochs=2, batch=16)
    other = RandomLabel(passes="concat", redraw="once", lr=full.lr, epochs=2, batch=16, optimizer=full.optimizer, schedule=full.schedule)
    assert same(toy.unlearn(full).params, toy.unlearn(other).params)


@pytest.mark.parametrize("net", ["batch_norm", "mlp"])
@pytest.mark.parametrize("method", [Poison(lr=0, class_weights="inverse"), PoisonFull(lr=0, epochs=1)])
def test_rate_zero_leaves_every_weight_and_the_head_alone(net: str, method: Any) -> None:
    toy = make_toy(net)
    assert same(toy.unlearn(method).params, toy.stack.params)


def test_retain_set_is_read_for_class_weights_alone(toy: Toy) -> None:
    assert Poison().reads == {"forget"}
    method = Poison(class_weights="inverse")
    assert method.reads == {"forget", "retain"}
    hidden = only_declared(Poison(), toy.split, toy.context())[0].retain
    with pytest.raises(Undeclared, match="retain"):
        method(toy.stack, Split(toy.split.forget, hidden, *(toy.split.test,) * 3), toy.context())
