"""``random_label``: the labels of the forget set are random, all others are as given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

from toy import Toy, furthest, make_toy, same
from unlearnlab.data.images import Images
from unlearnlab.gradients import summed_gradient
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.optimizers import Sgd
from unlearnlab.progress import Progress
from unlearnlab.stack import head_names

Record = Callable[[], list[Any]]


def seen(call: Any, k: int = 0) -> list[tuple[int, int]]:
    """(id, label) in the order member k sees them."""
    return [(int(i), int(y)) for batch in call.batches for i, y in zip(batch.ids[k], batch.labels[k], strict=True)]


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("exclude_true", [False, True])
def test_labels_are_uniform_over_the_classes(classes: int, exclude_true: bool) -> None:
    """4 000 draws against what uniform labels would give (χ²), and 1 − 1/C of them differ from the truth."""
    n = 4000
    images = Images(torch.zeros(n, 1, 1, 1), torch.arange(n) % classes, torch.arange(n), classes)
    (drawn,) = RandomLabel(exclude_true=exclude_true).labels(images, torch.ones(n, dtype=torch.bool), (5,), classes, 0)
    assert stats.chisquare(torch.bincount(drawn, minlength=classes).numpy()).pvalue > 1e-3
    assert len(torch.bincount(drawn)) == classes
    differ = int((drawn != images.labels).sum())
    assert differ == n if exclude_true else stats.binomtest(differ, n, 1 - 1 / classes).pvalue > 1e-3


@pytest.mark.parametrize("passes", ["concat", "sequential"])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_retain_labels_are_as_given_and_forget_labels_are_not(passes: Any, classes: int, record: Record) -> None:
    toy, calls = make_toy("small_cnn", classes), record()
    toy.unlearn(RandomLabel(passes=passes, epochs=25, batch=7))
    given = dict(zip(toy.split.train.ids.tolist(), toy.split.train.labels.tolist(), strict=True))
    forget = set(toy.split.forget.ids.tolist())
    for k in range(3):
        pairs = seen(calls[0], k)
        assert len(pairs) == 25 * 60
        assert all(label == given[i] for i, label in pairs if i not in forget)
        drawn = [(i, label) for i, label in pairs if i in forget]
        assert len(drawn) == 25 * 4
        assert all(0 <= label < classes for _, label in drawn)
        assert stats.binomtest(sum(label != given[i] for i, label in drawn), len(drawn), 1 - 1 / classes).pvalue > 1e-3
    drawn_by = [sorted(pair for pair in seen(calls[0], k) if pair[0] in forget) for k in range(3)]  # whatever the order
    assert drawn_by[0] != drawn_by[1] != drawn_by[2]  # each member its own labels


def test_classes_are_counted_at_the_head(record: Record) -> None:
    """Data that name only ten of a hundred classes still get labels of all hundred."""
    toy, calls = make_toy("small_cnn", 100), record()
    few = {part: Images(held.pixels, held.labels % 10, held.ids, 10) for part, held in (("forget", toy.split.forget), ("retain", toy.split.retain))}
    replace(toy, split=replace(toy.split, **few)).unlearn(RandomLabel(epochs=25))
    assert max(label for _, label in seen(calls[0])) > 50


def test_sequential_shows_forget_images_first_in_each_epoch_and_concat_mixes(toy: Toy, record: Record) -> None:
    calls, forget = record(), set(toy.split.forget.ids.tolist())
    for passes in ("sequential", "concat"):
        toy.unlearn(RandomLabel(passes=passes, epochs=2, batch=3))
    sequential, concat = ([[int(i) in forget for i, _ in seen(call)[at : at + 60]] for at in (0, 60)] for call in calls)
    assert all(epoch == [True] * 4 + [False] * 56 for epoch in sequential)
    assert all(epoch != [True] * 4 + [False] * 56 for epoch in concat)


@pytest.mark.parametrize("passes", ["concat", "sequential"])
def test_labels_are_drawn_once_or_each_epoch(passes: Any, toy: Toy, record: Record) -> None:
    calls, forget = record(), set(toy.split.forget.ids.tolist())
    for redraw in ("once", "epoch"):
        toy.unlearn(RandomLabel(passes=passes, redraw=redraw, epochs=6))
    once, epoch = ([{i: y for i, y in seen(call)[at : at + 60] if i in forget} for at in range(0, 360, 60)] for call in calls)
    assert all(labels == once[0] for labels in once)
    assert len({tuple(sorted(labels.items())) for labels in epoch}) == 6


def test_training_images_keep_their_labels(toy: Toy) -> None:
    before = toy.split.train.labels.clone()
    toy.unlearn(RandomLabel(epochs=1))
    assert torch.equal(toy.split.train.labels, before)


def test_one_step_weighs_retain_images(toy: Toy) -> None:
    """Everything in one batch: the step is that of the weighted mean, whatever the labels drawn."""
    plain = Sgd(momentum=0, weight_decay=0)
    method = RandomLabel(lr=0.1, epochs=1, batch=60, optimizer=plain, retain_weight=3.0, bn="frozen")
    one = toy.only(0)
    split, ctx = one.split, one.context()
    classes = one.stack.params[head_names(one.stack)[0]].shape[1]
    drawn = RandomLabel().labels(split.forget, torch.ones(4, dtype=torch.bool), ctx.seeds, classes, 0)[0]
    forget = replace(split.forget, labels=drawn, true_labels=drawn)
    of_forget, of_retain = (summed_gradient(one.stack, images, Progress()) for images in (forget, split.retain))
    expected = {n: p - 0.1 * (of_forget[n] + 3.0 * of_retain[n]) / 60 for n, p in one.stack.params.items()}
    assert furthest(one.unlearn(method).params, expected) < 1e-5
    assert same(
        one.unlearn(replace(method, retain_weight=1.0)).params, one.unlearn(RandomLabel(lr=0.1, epochs=1, batch=60, optimizer=plain, bn="frozen")).params
    )
