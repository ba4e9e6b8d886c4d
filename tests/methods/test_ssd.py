"""``ssd``: selective synaptic dampening."""

from __future__ import annotations

from typing import cast

import pytest
import torch

import unlearnlab.gradients as gradients
from toy import Toy, furthest, make_toy, same
from unlearnlab.data.images import Images
from unlearnlab.methods.ssd import Ssd
from unlearnlab.stack import Stack


def test_dampening_by_hand() -> None:
    weights, of_forget, of_all = (torch.tensor([row]) for row in ([2.0, 2, 2, 2, -2], [12.0, 10, 0, 4, 100], [1.0, 1, 0, 0, 5]))
    #  12 > 10·1: dampened to 1/12; 10 = 10·1: not; 0 against 0: not; 4 against 0: to nothing; 100 > 50: to 1/20
    assert Ssd().dampened(weights, of_forget, of_all).tolist()[0] == pytest.approx([2 / 12, 2, 2, 0, -0.1])
    assert Ssd(dampening=3, exponent=2).dampened(weights, of_forget, of_all).tolist()[0] == pytest.approx([2 / 16, 2, 2, 0, -2 * 0.0225])
    assert Ssd(selection=0, dampening=9).dampened(weights, of_forget, of_all).tolist()[0] == pytest.approx([2 * 0.75, 1.8, 2, 0, -0.9])


def test_is_the_formula_with_plain_per_example_gradients(toy: Toy) -> None:
    after = toy.unlearn(Ssd(selection=2))
    for k in range(3):
        model = toy.stack.member(k)
        squares = []
        for pixels, label in zip(toy.split.train.pixels, toy.split.train.labels, strict=True):
            loss = torch.nn.functional.cross_entropy(model(pixels[None]), label[None])
            squares.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).double().square())
        of_all = torch.stack(squares).mean(0)
        of_forget = torch.stack([one for one, i in zip(squares, toy.split.train.ids, strict=True) if i in toy.split.forget.ids]).mean(0)
        before = torch.cat([p[k].flatten() for p in toy.stack.params.values()]).double()
        now = torch.cat([p[k].flatten() for p in after.params.values()]).double()
        chosen = of_forget > 2 * of_all
        clear = (of_forget - 2 * of_all).abs() > 1e-5 * of_forget
        expected = torch.where(chosen, before * (of_all / of_forget.clamp(min=1e-300)).clamp(max=1), before)
        assert 10 < int(chosen.sum()) < len(chosen) - 10
        assert torch.allclose(now[clear], expected[clear], rtol=1e-4, atol=1e-7)


def test_independent_of_batch_size_and_order(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = toy.unlearn(Ssd(selection=2))
    monkeypatch.setattr(gradients, "MEMORY", 1)  # one example at a time
    assert furthest(toy.unlearn(Ssd(selection=2)).params, whole.params) < 1e-5  # sums in another order
    monkeypatch.undo()
    turned = toy.forgetting(toy.split.forget.rows(torch.tensor([3, 2, 1, 0])))
    assert furthest(turned.unlearn(Ssd(selection=2)).params, whole.params) < 1e-6


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp"])
def test_no_weight_grows_and_buffers_stay(net: str) -> None:
    toy = make_toy(net)
    after = toy.unlearn(Ssd(selection=0.5, dampening=100))
    assert all(bool((p.abs() <= toy.stack.params[n].abs()).all()) for n, p in after.params.items())
    assert all(bool((p * toy.stack.params[n] >= 0).all()) for n, p in after.params.items())
    assert same(after.buffers, toy.stack.buffers)


def test_weights_nobody_uses_stay_as_they_are() -> None:
    """The corners of digits are blank: no gradient from any image, 0/0."""
    toy = make_toy("mlp")
    name = next(iter(toy.stack.params))
    blank = (toy.split.train.pixels == 0).all(0).flatten()
    assert int(blank.sum()) > 3
    after = toy.unlearn(Ssd(selection=0))
    assert torch.equal(after.params[name][..., blank], toy.stack.params[name][..., blank])
    assert not torch.equal(after.params[name], toy.stack.params[name])


def test_a_selection_of_n_over_n_f_or_more_selects_nothing(toy: Toy) -> None:
    """D holds S, so its importance is at least n_f/n of that of S: here 4 of 60."""
    assert same(toy.unlearn(Ssd(selection=15.01)).params, toy.stack.params)
    assert not same(toy.unlearn(Ssd(selection=14)).params, toy.stack.params)


def test_batch_mean_is_the_published_importance(toy: Toy) -> None:
    """Squares of gradients of batch means, averaged over batches; all data: the retain images and then the forget images."""
    method = Ssd(selection=1.2, importance="batch_mean", batch=7)
    ctx = toy.context()
    after = toy.unlearn(method, ctx)
    assert (ctx.progress.forward, ctx.progress.backward) == (64, 64)
    everyone = Images.join([toy.split.retain, toy.split.forget])
    for k in range(3):
        model = toy.stack.member(k)

        def importance(images: Images, model: torch.nn.Module = model) -> torch.Tensor:
            squares = []
            for pixels, labels in zip(images.pixels.split(7), images.labels.split(7), strict=True):
                loss = torch.nn.functional.cross_entropy(model(pixels), labels)
                squares.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).square())
            return torch.stack(squares).mean(0)

        of_forget, of_all = importance(toy.split.forget), importance(everyone)
        before, now = (torch.cat([p[k].flatten() for p in stack.params.values()]) for stack in (toy.stack, after))
        clear = (of_forget - 1.2 * of_all).abs() > 1e-4 * of_forget
        chosen = of_forget > 1.2 * of_all
        assert int(chosen.sum()) > 10
        expected = torch.where(chosen, before * (of_all / of_forget.clamp(min=1e-30)).clamp(max=1), before)
        assert torch.allclose(now[clear], expected[clear], rtol=1e-3, atol=1e-7)


def test_batch_mean_depends_on_the_batch_size_and_per_example_does_not(toy: Toy) -> None:
    by_size = [toy.unlearn(Ssd(selection=1, importance="batch_mean", batch=batch)) for batch in (4, 16)]
    assert not same(by_size[0].params, by_size[1].params)
    by_size = [toy.unlearn(Ssd(selection=1, batch=batch)) for batch in (4, 16)]
    assert same(by_size[0].params, by_size[1].params)
    single = toy.unlearn(Ssd(selection=2, importance="batch_mean", batch=1))
    assert furthest(single.params, toy.unlearn(Ssd(selection=2)).params) < 1e-5


def test_attention_temperatures_stay() -> None:
    """They are logarithms, here negative: shrinking one towards 0 would make attention sharper, not weaker."""
    toy = make_toy("vit")
    after = toy.unlearn(Ssd(selection=0, dampening=0.1))
    names = [name for name in toy.stack.params if name.endswith("temperature.t")]
    assert len(names) == 2
    for name, p in toy.stack.params.items():
        assert torch.equal(after.params[name], p) == (name in names)
    bare = nn_with_a_bare_number()
    ctx, split = toy.context(), toy.split
    edited = Ssd(selection=0, dampening=0.1)(bare, split, ctx)
    assert torch.equal(edited.params["t"], bare.params["t"])
    assert not torch.equal(edited.params["head.weight"], bare.params["head.weight"])


def nn_with_a_bare_number() -> Stack:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t, self.head = torch.nn.Parameter(torch.empty(())), torch.nn.Linear(64, 10)
            self.reset_parameters()

        def reset_parameters(self) -> None:
            torch.nn.init.constant_(self.t, -0.5)
            self.head.reset_parameters()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return cast(torch.Tensor, self.head(x.flatten(1).float() / 255)) * self.t.exp()

    return Stack.init(Scaled(), (0, 1, 2))
