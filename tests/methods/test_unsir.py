"""``unsir``: a class forgotten without its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from facts_teachers import forgetting_a_class
from toy import NETS, Toy, make_toy, same
from unlearnlab.contract import Context, Forbidden
from unlearnlab.data.augment import RandomResizedCrop
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images, Split
from unlearnlab.methods.unsir import Unsir
from unlearnlab.optimizers import Adam
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

EVERY = ["small_cnn", "batch_norm", "mlp", "vit"]
SHAPE = torch.Size((1, 8, 8))


@pytest.fixture
def task(toy: Toy) -> Toy:
    made: Toy = forgetting_a_class(toy)
    return made


def label_of(task: Toy) -> int:
    (label,) = set(task.split.forget.labels.tolist())
    return int(label)


# ---------------------------------------------------------------- the forgotten class


def test_the_forgotten_class_is_read_off_the_retain_set(task: Toy) -> None:
    assert Unsir().forgotten(task.split.retain) == [label_of(task)]
    hidden: Any = Forbidden("unsir", "forget")
    seen = replace(task.split, forget=hidden)  # a sentinel that raises when touched
    after = Unsir(noise_images=8, noise_steps=2)(task.stack, seen, task.context())
    assert not same(after.params, task.stack.params)


def test_without_a_class_forgotten_wholly_it_says_so(toy: Toy) -> None:
    with pytest.raises(InputError, match="forgets whole classes only, and every one of the 10 classes still has images"):
        toy.unlearn(Unsir())


def test_a_class_that_is_named_is_forgotten_though_some_of_it_stays(toy: Toy) -> None:
    method = Unsir(labels=(3, 1, 3), noise_images=8, noise_steps=2)
    assert method.forgotten(toy.split.retain) == [1, 3]
    assert not same(toy.unlearn(method).params, toy.stack.params)
    with pytest.raises(InputError, match=r"labels = \[10\], but the classes are 0 to 9"):
        toy.unlearn(Unsir(labels=(10,)))


def test_one_noise_set_for_each_of_several_classes(task: Toy, record: Callable[[], list[Any]]) -> None:
    gone = [label_of(task), (label_of(task) + 1) % 10]
    several = replace(task, split=replace(task.split, retain=task.split.retain.rows(task.split.retain.labels != gone[1])))
    calls = record()
    several.unlearn(Unsir(noise_images=7, noise_steps=2))
    labels = torch.cat([batch.labels for batch in calls[0].batches], 1)
    noise = torch.cat([batch.ids for batch in calls[0].batches], 1) == -1
    for k in range(3):
        counts = torch.bincount(labels[k][noise[k]], minlength=10)
        assert counts.tolist() == [7 if label in gone else 0 for label in range(10)]


# ---------------------------------------------------------------- noise


def test_noise_set_is_eighty_batches_of_thirty_two_and_all_different(task: Toy) -> None:
    one = task.only(0)
    made = Unsir(noise_steps=1).noise(one.stack, [3], SHAPE, one.context())
    assert made.shape == (1, 80 * 32, 1, 8, 8)
    assert float(made.flatten(2).norm(dim=2).min()) > 0
    assert len(torch.unique(made[0].flatten(1), dim=0)) == 2560


@pytest.mark.parametrize("net", EVERY)
def test_noise_of_a_stack_is_made_by_descent_on_each_image(net: str) -> None:
    """Every image of every member against a plain loop: −CE + λ‖N‖² by Adam, one image at a time."""
    toy, method = make_toy(net), Unsir(noise_images=3, noise_steps=4, noise_lr=0.05)
    ctx = toy.context()
    made = method.noise(toy.stack, [3, 5], SHAPE, ctx)
    for k in range(3):
        module = toy.stack.member(k).requires_grad_(False)
        for at, label in enumerate((3, 5)):
            start = torch.randn(3, *SHAPE, generator=generator(ctx.seeds[k], "noise", label))
            for i in range(3):
                image = start[i : i + 1].clone().requires_grad_()
                adam = torch.optim.Adam([image], lr=0.05)
                for _ in range(4):
                    loss = 0.1 * image.square().sum() - nn.functional.cross_entropy(module(image), torch.tensor([label]))
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
                assert torch.allclose(made[k, 3 * at + i], image[0].detach(), atol=1e-4)


def test_noise_is_unlike_its_class(task: Toy) -> None:
    label, ctx = label_of(task), task.context()
    before, after = (
        Unsir(noise_images=64, noise_steps=steps, noise_lr=lr, penalty=0).noise(task.stack, [label], SHAPE, ctx) for steps, lr in ((1, 0.0), (25, 0.1))
    )

    def loss(noise: torch.Tensor) -> float:
        return sum(float(nn.functional.cross_entropy(task.stack.rows([k]).logits(noise[k])[0], torch.full((64,), label))) for k in range(3)) / 3

    assert loss(after) > loss(before) + 1


@pytest.mark.parametrize("net", EVERY)
def test_the_model_is_unchanged_after_the_first_step(net: str) -> None:
    toy = forgetting_a_class(make_toy(net))
    before = {name: t.clone() for name, t in (toy.stack.params | toy.stack.buffers).items()}
    ctx = toy.context()
    Unsir(noise_images=5, noise_steps=3).noise(toy.stack, [1], SHAPE, ctx)
    assert same(toy.stack.params | toy.stack.buffers, before)
    assert all(p.grad is None and not p.requires_grad for p in toy.stack.params.values())
    assert (ctx.progress.forward, ctx.progress.backward) == (15, 15)


def test_large_noise_sets_are_made_in_parts_that_agree_with_the_whole(task: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearnlab.methods import unsir

    def made() -> torch.Tensor:
        return Unsir(noise_images=10, noise_steps=3).noise(task.stack, [1, 2], SHAPE, task.context())

    whole = made()
    monkeypatch.setattr(unsir, "AT_ONCE", 6)  # across the border between the classes
    assert torch.allclose(made(), whole, atol=1e-5)


# ---------------------------------------------------------------- impair and repair


@pytest.mark.parametrize("limit", [2, 500])
def test_up_to_so_many_images_of_each_retained_class(task: Toy, limit: int) -> None:
    retain = task.split.retain
    rows = Unsir(retain_per_class=limit).rows(retain, task.context())
    wanted = torch.bincount(retain.labels, minlength=10).clamp(max=limit)
    for k in range(3):
        assert len(set(rows[k].tolist())) == rows.shape[1]
        assert torch.equal(torch.bincount(retain.labels[rows[k]], minlength=10), wanted)
    if limit == 2:
        assert set(rows[0].tolist()) != set(rows[1].tolist())


def test_impair_sees_every_noise_and_retain_image_once_and_repair_the_latter(task: Toy, record: Callable[[], list[Any]]) -> None:
    calls, label = record(), label_of(task)
    method = Unsir(noise_images=20, noise_steps=2, retain_per_class=3, batch=16, repair_lr=3e-4)
    ctx = task.context()
    noise = method.noise(task.stack, [label], SHAPE, task.context())
    task.unlearn(method, ctx)
    impair, repair = calls
    rows = method.rows(task.split.retain, ctx)
    given = {int(i): (int(y), pixels) for i, y, pixels in zip(task.split.retain.ids, task.split.retain.labels, task.split.retain.pixels, strict=True)}
    for k in range(3):
        drawn = sorted(task.split.retain.ids[rows[k]].tolist())
        shown = [(int(i), int(y), x) for b in impair.batches for i, y, x in zip(b.ids[k], b.labels[k], b.images[k], strict=True)]
        assert sorted(i for i, _, _ in shown if i >= 0) == drawn
        assert sorted(int(i) for b in repair.batches for i in b.ids[k]) == drawn
        for i, y, x in shown:
            if i >= 0:
                assert y == given[i][0]
                assert torch.equal(x, given[i][1].float() / 255)  # what the net makes of uint8
            else:
                assert y == label
        mine = torch.stack([x for i, _, x in shown if i < 0]).flatten(1)
        assert torch.equal(mine[mine[:, 0].argsort()], noise[k].flatten(1)[noise[k].flatten(1)[:, 0].argsort()])
        assert {i >= 0 for i, _, _ in shown[:16]} == {True, False}  # shuffled together
    assert (impair.settings["lr"], repair.settings["lr"]) == (1e-4, 3e-4)
    assert impair.settings["optimizer"] == repair.settings["optimizer"] == Adam()
    assert all(batch.images.dtype == torch.uint8 for batch in repair.batches)


def test_noise_has_the_size_of_augmented_images(task: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    smaller = replace(task, recipe=replace(task.recipe, augment=(RandomResizedCrop(size=6),)))
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    floats = [replace(part, pixels=part.pixels.float() / 255) for part in (smaller.split.forget, smaller.split.retain)]
    any_size = replace(smaller, stack=Stack.init(net, (0, 1, 2)), split=replace(smaller.split, forget=floats[0], retain=floats[1]))
    any_size.unlearn(Unsir(noise_images=4, noise_steps=1))
    assert {batch.images.shape[2:] for call in calls for batch in call.batches} == {(1, 6, 6)}


def test_float_images_go_in_as_they_are(task: Toy, record: Callable[[], list[Any]]) -> None:
    parts = {part: replace(getattr(task.split, part), pixels=getattr(task.split, part).pixels.float() / 51 - 2) for part in ("forget", "retain")}
    calls = record()
    replace(task, split=replace(task.split, **parts)).unlearn(Unsir(noise_images=4, noise_steps=1))
    batch = calls[0].batches[0]
    given = dict(zip(parts["retain"].ids.tolist(), parts["retain"].pixels, strict=True))
    assert all(torch.equal(x, given[int(i)]) for i, x in zip(batch.ids[0], batch.images[0], strict=True) if i >= 0)


def test_forgets_a_class_of_digits_and_keeps_the_others() -> None:
    """600 images, since the toy's 48 are too few for the repair; with rates large enough for so few steps."""
    release = Digits()()
    train, none = release.rows(torch.arange(600)), release.rows(torch.arange(0))
    recipe = Recipe(epochs=8, batch=20)
    original = recipe(Stack.init(NETS["mlp"]((1, 8, 8), 10), (0, 1, 2)), train)
    split = Split(train.rows(train.labels == 3), train.rows(train.labels != 3), none, none, none)
    after = Unsir(noise_images=600, lr=0.01, repair_lr=0.01, batch=16)(original, split, Context((5, 6, 7), recipe))

    def accuracy(stack: Stack, images: Images) -> float:
        return float((stack.logits(images.pixels).argmax(2) == images.labels).float().mean())

    assert accuracy(original, split.forget) > 0.95
    assert accuracy(after, split.forget) < 0.2
    assert accuracy(after, split.retain) > 0.95
