"""``ssd``: selective synaptic dampening."""

from __future__ import annotations

import pytest
import torch

import unlearnlab.gradients as gradients
from toy import Toy, furthest, make_toy, same
from unlearnlab.methods.ssd import Ssd


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
