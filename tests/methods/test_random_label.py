"""``random_label``: the labels of the forget set are random, all others are as given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats

from toy import Toy, make_toy
from unlearnlab.data.images import Images
from unlearnlab.methods.random_label import RandomLabel

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
