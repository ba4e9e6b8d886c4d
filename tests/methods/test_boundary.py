"""``boundary_shrink`` and ``boundary_expand``: the class nearest behind the boundary, and a class that comes and goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from toy import NETS, Toy, make_toy, same
from unlearnlab.data.images import Images
from unlearnlab.methods.boundary import BoundaryExpand, BoundaryShrink
from unlearnlab.optimizers import Sgd
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError
from unlearnlab.stack import Mask, Stack, head_names

Record = Callable[[], list[Any]]
EVERY = ["small_cnn", "batch_norm", "mlp", "vit"]


def linear(weights: list[list[float]]) -> Stack:
    """A model whose logits are W·pixels."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(weights[0]), len(weights), bias=False))
    net.requires_grad_(False)
    net[1].weight.copy_(torch.tensor(weights))
    return Stack.of([net], [0])


def floats(pixels: list[list[float]], labels: list[int], classes: int) -> Images:
    return Images(torch.tensor(pixels)[:, None, None], torch.tensor(labels), torch.arange(len(labels)), classes)


# ---------------------------------------------------------------- shrink


def test_one_step_of_the_attack_by_hand() -> None:
    """With logits (x₁, 0) and label 0 the loss grows as x₁ falls, and x₂ has no say."""
    images = floats([[0.5, 0.5], [0.05, 0.5], [0.95, 1.0]], [0, 0, 1], 2)
    moved = BoundaryShrink(perturbation=0.1).attacked(linear([[1.0, 0.0], [0.0, 0.0]]), images.pixels, images.labels, Progress())
    assert torch.allclose(moved[0, :, 0, 0], torch.tensor([[0.4, 0.5], [0.0, 0.5], [1.0, 1.0]]))


@pytest.mark.parametrize(("steps", "expected"), [(1, 0.3), (5, 0.3), (10, 0.3)])
def test_pgd_stays_within_its_reach(steps: int, expected: float) -> None:
    images = floats([[0.5, 0.5]], [0], 2)
    method = BoundaryShrink(perturbation=0.2, attack="pgd", attack_steps=steps)
    moved = method.attacked(linear([[1.0, 0.0], [0.0, 0.0]]), images.pixels, images.labels, Progress())
    assert torch.allclose(moved[0, 0, 0, 0], torch.tensor([expected, 0.5]))


def test_pgd_finds_its_way_round_a_bend(toy: Toy) -> None:
    """It gets the loss at least as high as one step does, and higher on average."""
    pixels, labels = toy.split.retain.pixels, toy.split.retain.labels

    def loss(method: BoundaryShrink) -> torch.Tensor:
        stack = toy.only(0).stack
        moved = method.attacked(stack, pixels, labels, Progress())
        return nn.functional.cross_entropy(stack.logits(moved[0])[0], labels)

    assert loss(BoundaryShrink(perturbation=0.2, attack="pgd")) > loss(BoundaryShrink(perturbation=0.2)) > loss(BoundaryShrink(perturbation=0.0))


@pytest.mark.parametrize("net", EVERY)
def test_attacked_uint8_images_are_8_bit_images_near_the_given_ones(net: str) -> None:
    toy = make_toy(net)
    pixels = toy.split.forget.pixels
    moved = BoundaryShrink(perturbation=0.1).attacked(toy.stack, pixels, toy.split.forget.labels, Progress())
    assert moved.shape == (3, *pixels.shape)
    assert torch.equal(moved * 255, (moved * 255).round())
    assert 0 <= float(moved.min()) < float(moved.max()) <= 1
    away = (moved * 255 - pixels.float()).abs()
    assert float(away.max()) <= 26  # 25.5 rounded
    assert len({moved[k].sum().item() for k in range(3)}) == 3  # each member is attacked by its own gradient


@pytest.mark.parametrize("net", EVERY)
def test_eps_zero_gives_the_runner_up(net: str) -> None:
    toy = make_toy(net)
    images = toy.split.retain
    found = BoundaryShrink(perturbation=0).nearest(toy.stack, images, Progress())
    logits = toy.stack.logits(images.pixels)
    for k in range(3):
        for i, label in enumerate(images.labels.tolist()):
            others = [c for c in range(10) if c != label]
            assert int(found[k, i]) == max(others, key=lambda c, k=k, i=i: float(logits[k, i, c]))


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_the_new_label_is_never_the_true_one_unless_allowed(attack: Any, classes: int) -> None:
    toy = make_toy("small_cnn", classes)
    images = toy.split.retain
    excluded, free = (BoundaryShrink(perturbation=0.02, attack=attack, exclude_true=on).nearest(toy.stack, images, Progress()) for on in (True, False))
    assert not bool((excluded == images.labels).any())
    assert bool((free == images.labels).any())
    assert torch.equal(free[free != images.labels], excluded[free != images.labels])


def test_labels_come_from_the_original_and_go_with_their_images(toy: Toy, record: Record) -> None:
    wanted = BoundaryShrink().nearest(toy.stack, toy.split.forget, Progress())
    for method, seen in ((BoundaryShrink(epochs=3, batch=3), toy.split.forget), (BoundaryShrink(epochs=3, batch=3, with_retain=True), toy.split.train)):
        calls = record()
        turned = toy.forgetting(toy.split.forget.rows(torch.tensor([2, 0, 3, 1])))  # not in order of id
        turned.unlearn(method)
        given = dict(zip(toy.split.train.ids.tolist(), toy.split.train.labels.tolist(), strict=True))
        for k in range(3):
            new = given | dict(zip(toy.split.forget.ids.tolist(), wanted[k].tolist(), strict=True))
            pairs = [(int(i), int(y)) for batch in calls[0].batches for i, y in zip(batch.ids[k], batch.labels[k], strict=True)]
            assert len(pairs) == 3 * len(seen)
            assert all(new[i] == y for i, y in pairs)
        assert all(batch.images.dtype == torch.uint8 for batch in calls[0].batches)  # it trains on the images, not on the attacked ones


def test_with_retain_reads_more() -> None:
    assert BoundaryShrink().reads == {"forget"}
    assert BoundaryShrink(with_retain=True).reads == {"forget", "retain"}


@pytest.mark.parametrize("bad", [-0.1, 1.1])
def test_normalised_pixels_are_refused(bad: float) -> None:
    images = floats([[bad, 0.5]], [0], 2)
    with pytest.raises(InputError, match=r"attacks pixels in \[0, 1\]"):
        BoundaryShrink().nearest(linear([[1.0, 0.0], [0.0, 0.0]]), images, Progress())


class Scaling(nn.Module):
    """Scales floats, too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.float().flatten(1) / 255)
        return logits


def test_a_net_that_scales_floats_is_refused(toy: Toy) -> None:
    with pytest.raises(InputError, match="answers them otherwise"):
        BoundaryShrink().nearest(Stack.of([Scaling()], [0]), toy.split.forget, Progress())


def test_forget_images_come_to_bear_their_new_labels(toy: Toy) -> None:
    after = toy.unlearn(BoundaryShrink(lr=0.01, epochs=40))
    wanted = BoundaryShrink().nearest(toy.stack, toy.split.forget, Progress())
    before, now = ((stack.logits(toy.split.forget.pixels).argmax(2) == wanted).float().mean() for stack in (toy.stack, after))
    assert float(before) < 0.2
    assert float(now) > 0.9


# ---------------------------------------------------------------- expand


@pytest.mark.parametrize("net", EVERY)
def test_widened_keeps_the_old_rows_and_begins_the_new_one_as_torch_does(net: str) -> None:
    toy = make_toy(net)
    ctx = toy.context()
    wide = BoundaryExpand().widened(toy.stack, ctx)
    head = head_names(toy.stack)
    bound = 1 / math.sqrt(toy.stack.params[head[0]].shape[2])
    for name, held in toy.stack.params.items():
        if name in head:
            new = wide.params[name][:, 10]
            assert torch.equal(wide.params[name][:, :10], held)
            assert wide.params[name].shape[1] == 11
            assert 0 < float(new.abs().max()) <= bound
            assert not torch.equal(new[0], new[1])  # each member its own
        else:
            assert torch.equal(wide.params[name], held)
    assert wide.logits(toy.split.forget.pixels).shape[-1] == 11
    assert torch.allclose(wide.logits(toy.split.forget.pixels)[:, :, :10], toy.stack.logits(toy.split.forget.pixels), atol=1e-5)
    assert toy.stack.net.get_submodule(head[0].rpartition(".")[0]).out_features == 10


def test_the_new_row_is_drawn_from_all_of_its_range(toy: Toy) -> None:
    stack = replace(toy.stack.rows([0] * 3), seeds=(1, 2, 3))
    rows = BoundaryExpand().widened(stack, toy.context()).params[head_names(stack)[0]][:, 10]
    bound = 1 / math.sqrt(rows.shape[1])
    assert float(rows.min()) < -0.8 * bound < 0.8 * bound < float(rows.max())


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("net", ["small_cnn", "vit"])
def test_returned_models_load_strictly_into_the_original_architecture(net: str, classes: int) -> None:
    toy = make_toy(net, classes)
    after = toy.unlearn(BoundaryExpand(epochs=2, lr=0.01))
    fresh = NETS[net]((1, 8, 8), classes)
    fresh.load_state_dict(after.member(1).state_dict(), strict=True)
    assert fresh.eval()(toy.split.test.pixels).shape == (20, classes)
    assert torch.allclose(fresh(toy.split.test.pixels), after.logits(toy.split.test.pixels)[1], atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_trains_forget_images_towards_class_number_c(classes: int, record: Record) -> None:
    toy, calls = make_toy("small_cnn", classes), record()
    toy.unlearn(BoundaryExpand(epochs=2, batch=3))
    (call,) = calls
    assert {int(y) for batch in call.batches for y in batch.labels.flatten()} == {classes}
    assert {int(i) for batch in call.batches for i in batch.ids.flatten()} == set(toy.split.forget.ids.tolist())


def test_one_step_by_hand(toy: Toy) -> None:
    """A step of plain descent on the widened net, and then without its last row."""
    method = BoundaryExpand(lr=0.1, epochs=1, optimizer=Sgd(momentum=0, weight_decay=0))
    one = toy.only(1)
    wide = method.widened(one.stack, one.context())
    module = wide.member(0)
    nn.functional.cross_entropy(module(one.split.forget.pixels), torch.full((4,), 10)).backward()
    after = one.unlearn(method)
    for name, p in module.named_parameters():
        assert p.grad is not None
        expected = (p - 0.1 * p.grad).detach()
        assert torch.allclose(after.params[name][0], expected[:10] if name in head_names(one.stack) else expected, atol=1e-6)


def test_masks_and_pruned_heads_grow_with_the_head(toy: Toy) -> None:
    head = head_names(toy.stack)[0]
    live = {head: torch.rand(toy.stack.params[head].shape, generator=torch.Generator().manual_seed(3)) < 0.5}
    pruned = replace(toy, stack=toy.stack.pruned(live))
    closed = Mask({name: torch.zeros_like(p, dtype=torch.bool) for name, p in toy.stack.params.items()}, pruned.stack.fingerprint)
    assert same(pruned.unlearn(BoundaryExpand(lr=0.1), toy.context(mask=closed)).params, pruned.stack.params)
    after = pruned.unlearn(BoundaryExpand(lr=0.1))
    assert same(after.live, pruned.stack.live)
    assert not bool(after.params[head][~live[head]].any())
    assert not same(after.params, pruned.stack.params)


def test_forgets_by_a_class_of_its_own(toy: Toy) -> None:
    """Before the row is dropped, forget images belong to the shadow class; the cross-entropy of their labels has grown."""
    after = toy.unlearn(BoundaryExpand(lr=0.01, epochs=40))
    pixels, labels = toy.split.forget.pixels, toy.split.forget.labels.repeat(3)
    losses = [nn.functional.cross_entropy(stack.logits(pixels).flatten(0, 1), labels) for stack in (toy.stack, after)]
    assert losses[1] > losses[0]
