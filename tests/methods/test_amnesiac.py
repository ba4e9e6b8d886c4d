"""``amnesiac``: one wrong label for each forget image, or training steps taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from toy import ORIGINAL, Toy, furthest, make_toy, same
from unlearnlab.data.augment import Crop
from unlearnlab.data.images import Images
from unlearnlab.methods.amnesiac import Amnesiac
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.optimizers import Adam, Sgd
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError
from unlearnlab.stack import Mask
from unlearnlab.train import Recipe

PLAIN = Sgd(momentum=0, weight_decay=0)
STILL: dict[str, Any] = {"variant": "subtract", "lr": 0.0, "epochs": 1, "bn": "frozen"}  # the repair changes nothing


# ---------------------------------------------------------------- relabel


def labels_of(calls: list[Any], k: int) -> list[tuple[int, int]]:
    return [(int(i), int(y)) for batch in calls[0].batches for i, y in zip(batch.ids[k], batch.labels[k], strict=True)]


def test_one_fixed_wrong_label_for_each_forget_image(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Amnesiac(epochs=5, batch=7))
    given = dict(zip(toy.split.train.ids.tolist(), toy.split.train.labels.tolist(), strict=True))
    forget = set(toy.split.forget.ids.tolist())
    drawn = []
    for k in range(3):
        pairs = labels_of(calls, k)
        assert len(pairs) == 5 * 60
        assert all((label != given[i]) == (i in forget) for i, label in pairs)
        assert len(set(pairs)) == 60  # the same label in every epoch
        drawn.append({pair for pair in pairs if pair[0] in forget})
    assert drawn[0] != drawn[1]  # each member its own


def test_published_settings() -> None:
    assert (Amnesiac().epochs, Amnesiac().batch, Amnesiac().lr, Amnesiac().optimizer, Amnesiac().bn) == (3, 128, 1e-4, Adam(), "train")


def test_is_random_label_once_without_the_true_one(toy: Toy) -> None:
    """While every class is retained."""
    same_as = RandomLabel(redraw="once", exclude_true=True, lr=1e-4, epochs=3, batch=128, optimizer=Adam())
    assert same(toy.unlearn(Amnesiac()).params, toy.unlearn(same_as).params)


@pytest.mark.parametrize("classes", [3, 10])
def test_wrong_labels_are_uniform_over_the_other_classes(classes: int) -> None:
    n = 6000
    images = Images(torch.zeros(n, 1, 1, 1), torch.arange(n) % classes, torch.arange(n), classes)
    chosen = torch.arange(n) < 5000
    (drawn,) = Amnesiac().labels(images, chosen, (5,))
    shift = (drawn - images.labels)[chosen] % classes
    assert torch.equal(drawn[~chosen], images.labels[~chosen])
    counts = torch.bincount(shift, minlength=classes)
    assert int(counts[0]) == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3


def test_images_of_a_class_forgotten_wholly_are_labelled_as_the_classes_that_remain() -> None:
    """Classes 1 and 3 of 5 go; 4 was never there. Also where one image of a class that stays goes with them."""
    n = 3000
    labels = torch.tensor([0, 1, 2, 3])[torch.arange(n) % 4]
    images = Images(torch.zeros(n, 1, 1, 1), labels, torch.arange(n), 5)
    chosen = (labels == 1) | (labels == 3) | (torch.arange(n) < 1000)
    (drawn,) = Amnesiac().labels(images, chosen, (7,))
    for own, left in ((0, [2]), (2, [0]), (1, [0, 2]), (3, [0, 2])):
        counts = torch.bincount(drawn[chosen & (labels == own)], minlength=5)
        assert counts.nonzero()[:, 0].tolist() == left
        assert len(left) == 1 or stats.chisquare(counts[left].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("own", [0, 1])
def test_of_two_classes_one_remains(own: int) -> None:
    images = Images(torch.zeros(4, 1, 1, 1), torch.tensor([own, own, 1 - own, 1 - own]), torch.arange(4), 2)
    (drawn,) = Amnesiac().labels(images, images.labels == own, (0,))
    assert drawn.tolist() == [1 - own] * 4
    with pytest.raises(InputError, match="finds no wrong label"):
        Amnesiac().labels(images, torch.tensor([True, True, True, False]), (0,))


def test_relabel_needs_no_initial_weights(toy: Toy) -> None:
    assert Amnesiac().reads == {"forget", "retain"}
    assert Amnesiac(variant="subtract").reads == {"forget", "retain", "original_init"}


# ---------------------------------------------------------------- subtract


@cache
def trained(net: str, recipe: Recipe) -> tuple[Toy, tuple[dict[str, Tensor], ...]]:
    """A toy whose originals come from this recipe, and their weights before the first and after every step."""
    toy, path = make_toy(net), []
    stack = recipe(toy.init, toy.split.train, watch=[lambda seen: path.append(dict(seen.params))])
    return replace(toy, stack=stack, recipe=recipe), (dict(toy.init.params), *path)


def seen_at(toy: Toy, recipe: Recipe, k: int) -> list[set[int]]:
    """The ids in each batch of member k, from the definition of the order: a permutation for each epoch, cut into batches."""
    ids, found = toy.split.train.ids, []
    for epoch in range(recipe.epochs):
        order = torch.randperm(60, generator=generator(toy.stack.seeds[k], "order", epoch))
        found += [set(ids[part].tolist()) for part in order.split(recipe.batch)]
    return found


def forgetting(toy: Toy, ids: set[int]) -> Toy:
    train = toy.split.train
    return replace(toy, split=replace(toy.split, forget=train.take(sorted(ids)), retain=train.without(ids)))


def difference(toy: Toy, path: tuple[dict[str, Tensor], ...], taken: list[list[int]]) -> dict[str, Tensor]:
    """θ_o − Σ Δ_t with each member's own steps."""
    found = {}
    for name, p in toy.stack.params.items():
        found[name] = torch.stack([p[k] - sum((path[t + 1][name][k] - path[t][name][k] for t in steps), torch.zeros(())) for k, steps in enumerate(taken)])
    return found


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp", "vit"])
def test_taking_back_the_last_step_gives_the_weights_before_it(net: str) -> None:
    """One epoch of plain descent: a forget image of the last batch was in that step alone."""
    recipe = Recipe(epochs=1, batch=10, optimizer=PLAIN)
    toy, path = trained(net, recipe)
    for k in range(3):
        last = seen_at(toy, recipe, k)[-1]
        one = forgetting(toy, {min(last)})
        after = one.unlearn(Amnesiac(**STILL))
        assert furthest({n: p[k] for n, p in after.params.items()}, {n: p[k] for n, p in path[-2].items()}) < 1e-6


@pytest.mark.parametrize(
    "recipe", [Recipe(epochs=1, batch=10, optimizer=PLAIN), Recipe(epochs=3, batch=16, augment=(Crop(padding=1),)), Recipe(epochs=2, optimizer=Adam())]
)
def test_members_take_back_the_steps_in_which_their_own_batches_held_a_forget_image(recipe: Recipe) -> None:
    toy, path = trained("small_cnn", recipe)
    forget = set(toy.split.train.ids[:2].tolist())
    taken = [[t for t, ids in enumerate(seen_at(toy, recipe, k)) if ids & forget] for k in range(3)]
    assert len({tuple(steps) for steps in taken}) > 1
    assert any(len(steps) < recipe.epochs * -(-60 // recipe.batch) for steps in taken)
    after = forgetting(toy, forget).unlearn(Amnesiac(**STILL))
    assert furthest(after.params, difference(toy, path, taken)) < 1e-5
    assert same(after.buffers, toy.stack.buffers)


def test_with_images_in_every_batch_the_initial_weights_come_back() -> None:
    recipe = Recipe(epochs=2, batch=60)
    toy, path = trained("mlp", recipe)
    after = toy.unlearn(Amnesiac(**STILL))
    assert furthest(after.params, path[0]) < 1e-5


def test_repair_trains_on_retain_images_only_from_there(record: Callable[[], list[Any]]) -> None:
    recipe = Recipe(epochs=1, batch=10, optimizer=PLAIN)
    toy, path = trained("small_cnn", recipe)
    forget = set(toy.split.forget.ids.tolist())
    calls = record()
    toy.unlearn(Amnesiac(variant="subtract", epochs=2))
    (call,) = calls
    taken = [[t for t, ids in enumerate(seen_at(toy, recipe, k)) if ids & forget] for k in range(3)]
    assert furthest(call.stack.params, difference(toy, path, taken)) < 1e-6
    assert {int(i) for batch in call.batches for i in batch.ids.flatten()} == set(toy.split.retain.ids.tolist())
    assert sum(batch.ids.shape[1] for batch in call.batches) == 2 * 56


def test_the_replay_is_not_counted_and_the_repair_is() -> None:
    toy, _ = trained("small_cnn", Recipe(epochs=1, batch=10, optimizer=PLAIN))
    ctx = toy.context()
    toy.unlearn(Amnesiac(variant="subtract", epochs=2), ctx)
    assert (ctx.progress.forward, ctx.progress.backward) == (2 * 56, 2 * 56)


def test_a_mask_holds() -> None:
    toy, _ = trained("small_cnn", Recipe(epochs=1, batch=10, optimizer=PLAIN))
    lots = torch.Generator().manual_seed(2)
    bits = {name: torch.rand(p.shape, generator=lots) < 0.5 for name, p in toy.stack.params.items()}
    after = toy.unlearn(Amnesiac(variant="subtract"), toy.context(mask=Mask(bits, toy.stack.fingerprint)))
    assert all(torch.equal(after.params[n][~is_open], toy.stack.params[n][~is_open]) for n, is_open in bits.items())
    assert not same(after.params, toy.stack.params)


def test_works_on_the_toy_s_own_originals() -> None:
    """180 steps with momentum, weight decay and one-cycle rates, repeated bit for bit; most are taken back, and the repair mends."""
    toy = replace(make_toy("mlp"), recipe=ORIGINAL)
    after = toy.unlearn(Amnesiac(variant="subtract", lr=0.01, epochs=20, batch=10))
    assert not same(after.params, toy.stack.params)
    assert float((after.logits(toy.split.retain.pixels).argmax(2) == toy.split.retain.labels).float().mean()) > 0.8


def wrong(toy: Toy, what: str) -> Toy:
    """The same toy with one thing that is not as it was when the originals were trained."""
    if what == "recipe":
        return replace(toy, recipe=replace(toy.recipe, lr=0.05))
    if what == "initial weights":
        return replace(toy, init=toy.init.fresh((8, 9, 10)))
    if what == "images":
        return replace(toy, split=replace(toy.split, retain=toy.split.retain.rows(torch.arange(50))))
    if what == "labels":
        return replace(toy, split=replace(toy.split, retain=replace(toy.split.retain, labels=(toy.split.retain.labels + 1) % 10)))
    return replace(toy, stack=replace(toy.stack, seeds=(5, 6, 7)))


@pytest.mark.parametrize("what", ["recipe", "initial weights", "images", "labels", "seeds"])
def test_an_original_that_was_not_trained_so_is_refused(what: str) -> None:
    toy, _ = trained("small_cnn", Recipe(epochs=2, batch=10, optimizer=PLAIN))
    toy.unlearn(Amnesiac(**STILL))
    with pytest.raises(InputError, match="trained again, the original ends elsewhere"):
        wrong(toy, what).unlearn(Amnesiac(**STILL))


def test_without_initial_weights_it_says_what_to_do(toy: Toy) -> None:
    with pytest.raises(InputError, match="set variant = 'relabel'"):
        toy.unlearn(Amnesiac(variant="subtract"), replace(toy.context(), original_init=None))
