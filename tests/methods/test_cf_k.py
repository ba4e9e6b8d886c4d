"""``cf_k`` and ``eu_k``: the last blocks and the head, and nothing before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from toy import ORIGINAL, Toy, furthest, make_toy, same
from unlearnlab.data.augment import Crop
from unlearnlab.data.images import Images
from unlearnlab.methods.cf_k import CfK, EuK, grouped, last_blocks
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.retrain import Retrain
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Mask, Stack, head_names
from unlearnlab.train import Recipe

BEFORE_THE_HEAD = {"small_cnn": 3, "batch_norm": 3, "mlp": 1, "vit": 5}  # the vit: norm, embedding, positions, two layers (and the last norm)


def units(name: str, **settings: Any) -> list[list[str]]:
    """The modules of each block, of a net for 32×32 images."""
    net = build("net", {"name": name, **settings})((3, 32, 32), 10)
    return [sorted({one.rpartition(".")[0] for one in names}) for names in grouped(net)]


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("net", list(BEFORE_THE_HEAD))
def test_blocks_cover_every_weight_once_and_end_with_the_head(net: str) -> None:
    stack = make_toy(net).stack
    found = grouped(stack.net)
    assert sorted(name for names in found for name in names) == sorted(stack.params)
    assert list(found[-1]) == head_names(stack)
    assert len(found) == BEFORE_THE_HEAD[net] + 1


def test_a_convolution_has_its_norm_with_it() -> None:
    assert units("small_cnn", norm="batch") == [["1", "2"], ["4", "5"], ["8", "9"], ["13"]]


def test_a_residual_block_is_one_block() -> None:
    found = units("resnet18")
    assert len(found) == 10  # the stem with its norm, eight blocks, the head
    assert found[0] == ["bn1", "conv1"]
    assert found[1] == [f"layer1.0.{part}" for part in ("bn1", "bn2", "conv1", "conv2")]
    assert found[-2][0].startswith("layer4.1.")


def test_a_transformer_layer_is_one_block() -> None:
    found = units("vit_small_data", dim=16, depth=3, heads=2, head_dim=8, mlp=16)
    assert [names[0].split(".")[:2] for names in found] == [["norm"], ["embedding"], ["positions"], *(["blocks", str(at)] for at in range(3)), ["head"]]
    assert "last_norm" in found[-2]


class Own(nn.Module):
    """A user's net: a stem, two layers in a list, one BatchNorm without weights, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.still = nn.BatchNorm2d(2, affine=False)
        self.layers = nn.ModuleList([Twice(), Twice()])
        self.head = nn.Linear(2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.still(self.stem(x.float() / 255 if x.dtype == torch.uint8 else x))
        for layer in self.layers:
            x = layer(x)
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False), nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x + self.two(torch.relu(self.norm(self.one(x))))
        return found


def test_batch_norm_without_weights_belongs_to_what_stands_before_it(toy: Toy) -> None:
    own = replace(toy, stack=Stack.init(Own(), (0, 1, 2)))
    assert [sorted({one.rpartition(".")[0] for one in names}) for names in grouped(Own())] == [
        ["stem"],
        ["layers.0.one", "layers.0.two"],
        ["layers.1.one", "layers.1.two"],
        ["head"],
    ]
    after = own.unlearn(CfK(epochs=2, batch=16))
    moved = {name for name, b in after.buffers.items() if not torch.equal(b, own.stack.buffers[name])}
    assert moved == {f"layers.1.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


@pytest.mark.parametrize("method", [CfK(k=4), EuK(k=4)])
def test_more_blocks_than_there_are_is_refused(method: Any, toy: Toy) -> None:
    with pytest.raises(InputError, match="this net has 3 blocks before its head; choose k from 0 to 3"):
        toy.unlearn(method)


# ---------------------------------------------------------------- what moves


@pytest.mark.parametrize("net", list(BEFORE_THE_HEAD))
@pytest.mark.parametrize("method", [CfK(epochs=3, batch=16), CfK(k=0, epochs=3, batch=16), EuK(), EuK(k=0)])
def test_weights_and_buffers_outside_the_last_blocks_are_bit_identical(net: str, method: Any) -> None:
    toy = make_toy(net)
    after, inside = toy.unlearn(method), last_blocks(toy.stack, method)
    modules = {name.rpartition(".")[0] for name in inside}
    for name, p in toy.stack.params.items():
        assert torch.equal(after.params[name], p) == (name not in inside), name
    for name, b in toy.stack.buffers.items():
        assert torch.equal(after.buffers[name], b) == (name.rpartition(".")[0] not in modules), name
    assert after.net is toy.stack.net


@pytest.mark.parametrize("k", [0, 1, 2])
def test_frozen_blocks_do_not_use_batch_statistics(k: int) -> None:
    """The head alone sees the same features whatever ``bn`` says; one batch is as good as another for a frozen block."""
    toy = make_toy("batch_norm")
    train, frozen = (toy.unlearn(CfK(k=k, epochs=2, batch=16, bn=bn)) for bn in ("train", "frozen"))  # type: ignore[arg-type]
    assert same(train.params | train.buffers, frozen.params | frozen.buffers) == (k == 0)


def test_the_trained_blocks_follow_bn_on_features_from_running_averages() -> None:
    """One step on one batch, against the net by hand: everything up to the last block in eval mode, the last block in train mode."""
    toy = make_toy("batch_norm").only(1)
    after = toy.unlearn(CfK(lr=0.1, epochs=1, batch=56, schedule=Constant(), optimizer=Sgd(momentum=0, weight_decay=0)))
    module = toy.stack.member(0)
    for at in range(8, 14):  # the last convolution, its norm, pooling, ReLU, flattening, head
        module.get_submodule(str(at)).train()
    nn.functional.cross_entropy(module(toy.split.retain.pixels), toy.split.retain.labels).backward()
    held = dict(module.named_parameters())
    for name in last_blocks(toy.stack, CfK()):
        slope = held[name].grad
        assert slope is not None
        assert torch.allclose(after.params[name][0], (held[name] - 0.1 * slope).detach(), atol=1e-5), name
    assert torch.allclose(after.buffers["9.running_mean"][0], dict(module.named_buffers())["9.running_mean"], atol=1e-6)


@pytest.mark.parametrize("net", list(BEFORE_THE_HEAD))
def test_with_all_blocks_cf_k_is_finetune(net: str) -> None:
    toy, settings = make_toy(net), {"epochs": 2, "batch": 16}
    after, plain = toy.unlearn(CfK(k=BEFORE_THE_HEAD[net], schedule=Constant(), **settings)), toy.unlearn(FineTune(**settings))  # type: ignore[arg-type]
    assert same(after.params, plain.params)
    assert same(after.buffers, plain.buffers)


@pytest.mark.parametrize("net", list(BEFORE_THE_HEAD))
@pytest.mark.parametrize("recipe", [Recipe(epochs=2, batch=10), Recipe(epochs=2, batch=16, class_weights="inverse", sharpness=0.05, augment=(Crop(1),))])
def test_with_all_blocks_eu_k_is_retrain(net: str, recipe: Recipe) -> None:
    toy = replace(make_toy(net), recipe=recipe)
    after, plain = toy.unlearn(EuK(k=BEFORE_THE_HEAD[net])), toy.unlearn(Retrain())
    assert same(after.params, plain.params)
    assert same(after.buffers, plain.buffers)
    assert after.seeds == plain.seeds


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm"])
def test_eu_k_starts_from_fresh_weights_and_statistics(net: str) -> None:
    """With a learning rate so small that nothing moves, the last block and the head are a fresh model's."""
    toy = replace(make_toy(net), recipe=Recipe(epochs=1, batch=56, lr=1e-30))
    ctx = toy.context()
    after, fresh = toy.unlearn(EuK(), ctx), toy.stack.fresh(ctx.seeds)
    inside = last_blocks(toy.stack, EuK())
    assert furthest({name: after.params[name] for name in inside}, fresh.params) < 1e-30
    if net == "batch_norm":
        assert float((after.buffers["9.running_mean"] - toy.stack.buffers["9.running_mean"]).abs().max()) > 0.1
        assert int(after.buffers["9.num_batches_tracked"][0]) == 1


def test_eu_k_takes_all_but_its_epochs_from_the_recipe() -> None:
    toy = make_toy("mlp")
    longer = replace(toy, recipe=replace(toy.recipe, epochs=5, rewind=5))
    assert same(longer.unlearn(EuK(epochs=2)).params, toy.unlearn(EuK()).params)
    assert same(longer.unlearn(EuK()).params, toy.unlearn(EuK(epochs=5)).params)
    assert not same(longer.unlearn(EuK()).params, toy.unlearn(EuK()).params)


def test_eu_k_runs_a_recipe_of_ones_own_but_cannot_shorten_it(toy: Toy) -> None:
    def recipe(stack: Stack, images: Images, progress: Progress) -> Stack:
        return stack

    ctx = replace(toy.context(), recipe=recipe)
    untrained = toy.unlearn(EuK(), ctx)
    inside = last_blocks(toy.stack, EuK())
    assert all(torch.equal(untrained.params[name], p) for name, p in toy.stack.fresh(ctx.seeds).params.items() if name in inside)
    with pytest.raises(InputError, match="cannot change epochs of a recipe of one's own"):
        toy.unlearn(EuK(epochs=1), ctx)


def test_eu_k_learns_what_is_retained() -> None:
    toy = replace(make_toy("batch_norm"), recipe=ORIGINAL)
    after = toy.unlearn(EuK())
    assert float((after.logits(toy.split.retain.pixels).argmax(2) == toy.split.retain.labels).float().mean()) > 0.8


def test_eu_k_refuses_a_mask(toy: Toy) -> None:
    with pytest.raises(InputError, match="cannot keep those outside a mask"):
        toy.unlearn(EuK(), toy.context(mask=Mask.everything(toy.stack)))


def test_pull_is_half_the_squared_distance_and_adds_nothing_at_the_start(toy: Toy) -> None:
    """Two steps of plain descent: the first is that without pull; the second also goes back by η·λ·(θ₁ − θ₀)."""
    one = toy.only(0)
    settings: dict[str, Any] = {"lr": 0.1, "batch": 56, "schedule": Constant(), "optimizer": Sgd(momentum=0, weight_decay=0)}
    first = one.unlearn(CfK(epochs=1, pull=0.5, **settings))
    assert same(first.params, one.unlearn(CfK(epochs=1, **settings)).params)
    pulled, free = one.unlearn(CfK(epochs=2, pull=0.5, **settings)), one.unlearn(CfK(epochs=2, **settings))
    expected = {n: p - 0.1 * 0.5 * (first.params[n] - one.stack.params[n]) for n, p in free.params.items()}
    assert furthest(pulled.params, expected) < 1e-6
    assert furthest(pulled.params, free.params) > 1e-5


def test_masks_and_pruned_weights_hold_within_the_last_blocks() -> None:
    toy = make_toy("batch_norm")
    lots = torch.Generator().manual_seed(1)
    bits = {name: torch.rand(p.shape, generator=lots) < 0.5 for name, p in toy.stack.params.items()}
    after = toy.unlearn(CfK(epochs=2, batch=16), toy.context(mask=Mask(bits, toy.stack.fingerprint)))
    for name, is_open in bits.items():
        assert torch.equal(after.params[name][~is_open], toy.stack.params[name][~is_open])
    inside = last_blocks(toy.stack, CfK())
    pruned = replace(toy, stack=toy.stack.pruned({name: b for name, b in bits.items() if b.dim() > 2}))
    for method in (CfK(epochs=2, batch=16), EuK()):
        sparse = pruned.unlearn(method)
        assert same(sparse.live, pruned.stack.live)
        for name, live in sparse.live.items():
            assert not bool(sparse.params[name][~live].any())
            assert torch.equal(sparse.params[name], pruned.stack.params[name]) == (name not in inside)


def test_goes_on_where_it_was_left(tmp_path: Any, toy: Toy) -> None:
    """Frozen weights travel with the buffers of the saved state."""
    plain = toy.unlearn(CfK(epochs=2, batch=16))
    for _ in range(2):  # the second run finds the first one's state, at its end
        ctx = replace(toy.context(), progress=Progress(tmp_path))
        assert same(toy.unlearn(CfK(epochs=2, batch=16), ctx).params, plain.params)


def test_only_retained_images_are_seen(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(CfK(epochs=2, batch=16))
    assert {int(i) for batch in calls[0].batches for i in batch.ids.flatten()} == set(toy.split.retain.ids.tolist())
