"""``datamodel_matching`` and ``datamodel_direct``: what attribution predicts, trained towards or answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toy import Toy, furthest, make_toy, same
from unlearnlab.attribution import Attribution
from unlearnlab.contract import Context
from unlearnlab.data.images import Images
from unlearnlab.methods.datamodels import DatamodelDirect, DatamodelMatching
from unlearnlab.methods.retrain import Retrain
from unlearnlab.nets.pixels import Pixels
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

PLAIN = Sgd(momentum=0, weight_decay=0)


def told(toy: Toy, folder: Path, tau: Tensor) -> Context:
    """A context with these scores [60, n, C] of the training images; the points are all images of the toy, in another order."""
    points = toy.split.together()[0].ids.flip(0)
    Attribution.write(folder, tau.flip(1), toy.split.train.ids, points)
    return replace(toy.context(), attribution=folder)


def zero(toy: Toy, classes: int = 10) -> Tensor:
    return torch.zeros(60, 100, classes)


@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_no_effect_moves_nothing_but_batch_norm(tmp_path: Path, bn: str) -> None:
    """The original answers in eval mode: with frozen BatchNorm its own answers are the target, and nothing moves."""
    for net in ("small_cnn", "batch_norm"):
        toy = make_toy(net)
        method = DatamodelMatching(lr=0.01, epochs=3, optimizer=PLAIN, bn=bn)  # type: ignore[arg-type]
        after = method(toy.stack, toy.split, told(toy, tmp_path / net, zero(toy)))
        assert (furthest(after.params, toy.stack.params) < 1e-5) == (bn == "frozen" or net == "small_cnn")
        assert net == "small_cnn" or (furthest(after.buffers, toy.stack.buffers) == 0) == (bn == "frozen")


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_targets_are_the_originals_answers_less_the_effect(toy: Toy, tmp_path: Path, record: Callable[[], list[Any]], rows: list[int]) -> None:
    """Each member's own answers, by id, in chunks of the batch size."""
    toy = replace(toy, stack=toy.stack.rows(rows), init=toy.init.rows(rows))
    tau = torch.randn(60, 100, 10, generator=torch.Generator().manual_seed(0)).half().float()
    ctx, calls = told(toy, tmp_path, tau), record()
    DatamodelMatching(multiplier=0.5, epochs=1, batch=7)(toy.stack, toy.split, ctx)
    images = toy.split.together()[0]
    expected = toy.stack.logits(images.pixels) - 0.5 * tau[torch.isin(toy.split.train.ids, toy.split.forget.ids)].sum(0)
    where = {i: row for row, i in enumerate(images.ids.tolist())}
    for batch in calls[0].batches:
        for k, ids in enumerate(batch.ids.tolist()):
            assert torch.allclose(batch.labels[k], expected[k, [where[i] for i in ids]], atol=1e-4)
    assert (ctx.progress.forward, ctx.progress.backward) == (4 + 12, 0)  # asked once; the training is not carried out here


def linear(classes: int) -> nn.Module:
    return nn.Sequential(Pixels((0.0,), (1.0,)), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, classes))


def test_on_a_linear_model_with_exact_attribution_it_is_the_retrained_model(tmp_path: Path) -> None:
    """Sixteen images fix the five numbers of each class, so that the only linear model with the retrained one's answers on them is that model."""
    base = make_toy(classes=3)
    recipe = Recipe(epochs=40, batch=10)
    init = Stack.init(linear(3), (0,))
    toy = replace(base, stack=recipe(init, base.split.train), init=init, recipe=recipe)
    retrained = toy.unlearn(Retrain())
    images = toy.split.together()[0]
    effect = (toy.stack.logits(images.pixels) - retrained.logits(images.pixels))[0]
    tau = torch.zeros(60, 100, 3)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    tau[torch.isin(toy.split.train.ids, toy.split.forget.ids)] = shares.view(-1, 1, 1) * effect
    ctx = told(toy, tmp_path, tau)
    method = DatamodelMatching(lr=0.2, epochs=600, optimizer=Sgd(momentum=0.9, weight_decay=0), schedule=Constant())
    matched = method(toy.stack, toy.split, ctx)
    before = furthest(toy.stack.params, retrained.params)
    assert furthest(matched.params, retrained.params) < 0.01 * before  # float16 keeps three digits
    direct = DatamodelDirect().answer(toy.stack, toy.split, ctx, toy.split.test)
    assert torch.allclose(direct, retrained.logits(toy.split.test.pixels), atol=1e-2 * float(effect.abs().max()))


def test_direct_subtracts_the_effect_by_id(toy: Toy, tmp_path: Path) -> None:
    tau = torch.randn(60, 100, 10, generator=torch.Generator().manual_seed(0)).half().float()
    ctx, images = told(toy, tmp_path, tau), toy.split.together()[0]
    some = torch.tensor([99, 3, 41])
    found = DatamodelDirect(multiplier=2.0).answer(toy.stack, toy.split, ctx, images.rows(some))
    effect = tau[torch.isin(toy.split.train.ids, toy.split.forget.ids)].sum(0)
    assert torch.allclose(found, toy.stack.logits(images.pixels[some]) - 2 * effect[some], atol=1e-4)
    assert ctx.progress.example_passes == 0  # answering is no part of the deletion
    nothing = DatamodelDirect(multiplier=0.0).answer(toy.stack, toy.split, ctx, images)
    assert torch.allclose(nothing, toy.stack.logits(images.pixels), atol=1e-5)


def test_what_is_missing_is_named(toy: Toy, tmp_path: Path) -> None:
    for method in (DatamodelMatching(), DatamodelDirect()):
        with pytest.raises(InputError, match=r"needs attribution scores"):
            ask(method, toy, toy.context())
        with pytest.raises(InputError, match="attribution is of 3 classes and the model of 10"):
            ask(method, toy, told(toy, tmp_path / "three", zero(toy, 3)))
        Attribution.write(tmp_path / "few", torch.zeros(60, 5, 10), toy.split.train.ids, toy.split.train.ids[:5])
        with pytest.raises(InputError, match="is not among the 5 points"):
            ask(method, toy, replace(toy.context(), attribution=tmp_path / "few"))


def ask(method: Any, toy: Toy, ctx: Context) -> Any:
    everything: Images = toy.split.together()[0]
    return method(toy.stack, toy.split, ctx) if callable(method) else method.answer(toy.stack, toy.split, ctx, everything)


def test_the_original_is_asked_in_eval_mode(tmp_path: Path) -> None:
    toy = make_toy("batch_norm")
    before = {name: b.clone() for name, b in toy.stack.buffers.items()}
    DatamodelMatching(epochs=2)(toy.stack, toy.split, told(toy, tmp_path, zero(toy)))
    assert same(toy.stack.buffers, before)
