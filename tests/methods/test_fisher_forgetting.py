"""``fisher_forgetting``: noise inversely proportional to the Fisher information of the retain set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from toy import make_toy, same
from unlearnlab.gradients import drawn_rows, fisher_information, mean_squared_gradient
from unlearnlab.methods.fisher_forgetting import FisherForgetting
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack, flat, head_names, unflat


def test_variances_by_hand() -> None:
    """F of 1e-2 gives 1e2, of 0 the clip; two members, a convolution-like tensor, one of one dimension, one number, and the head."""
    net = nn.Sequential(nn.Conv2d(2, 1, (1, 2)), nn.Flatten(), nn.LayerNorm(3), nn.Linear(3, 2))
    stack = Stack.init(net, (0, 1))
    f = {name: torch.full_like(p, 1e-1) for name, p in stack.params.items()}
    f["0.weight"][0] = torch.tensor([[[1e-2, 0], [1.0, 1.0]]]).unsqueeze(2)  # [out 1, in 2, 1, 2]
    f["2.weight"][1] = torch.tensor([0.5, 0.0, 1e-2])
    f["3.weight"][0] = torch.tensor([[1e-2, 0.1, 1.0], [1e-4, 0.0, 0.1]])
    f["3.bias"][0] = torch.tensor([0.1, 0.0])
    v = FisherForgetting(noise=0.5).variances(stack, f)

    def held(name: str, k: int) -> list[float]:
        return (v[name][k] / 0.5).flatten().tolist()

    assert held("0.weight", 0) == pytest.approx([50.5, 500.5, 50.5, 500.5], rel=1e-4)  # (100 + 1)/2; (1000 + 1)/2: over inputs only
    assert held("0.weight", 1) == pytest.approx([10] * 4, rel=1e-4)
    assert held("2.weight", 1) == pytest.approx([20, 10_000, 1000], rel=1e-4)  # one dimension: not averaged, ten times
    assert held("3.weight", 0) == pytest.approx([10 * 37] * 3 + [10 * 70] * 3, rel=1e-4)  # clipped at 100: (100+10+1)/3; (100+100+10)/3
    assert held("3.bias", 0) == pytest.approx([100, 1000], rel=1e-4)  # ten times once, not twice


def test_a_wide_layer_of_as_many_units_as_classes_is_no_head() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))
    stack = Stack.init(net, (0,))
    v = FisherForgetting(noise=1.0).variances(stack, {name: torch.zeros_like(p) for name, p in stack.params.items()})
    assert {name: float(one.max()) for name, one in v.items()} == {"1.weight": 1e3, "1.bias": 1e4, "3.weight": 1e3, "3.bias": 1e3}


def test_is_the_formula() -> None:
    """Every weight is its old value plus √v times the member's own normal draws."""
    toy, method = make_toy("batch_norm"), FisherForgetting(noise=1e-6, fisher_examples=20)
    ctx = toy.context()
    after = toy.unlearn(method, ctx)
    rows = drawn_rows(toy.split.retain, 20, ctx.seeds)
    v = flat(method.variances(toy.stack, fisher_information(toy.stack, toy.split.retain, Progress(), rows=rows)))
    before = flat(toy.stack.params)
    lots = torch.stack([torch.randn(before.shape[1], generator=generator(seed, "noise")) for seed in ctx.seeds])
    torch.testing.assert_close(flat(after.params), before + v.sqrt() * lots, rtol=1e-5, atol=1e-7)
    assert same(after.buffers, toy.stack.buffers)


def test_estimators() -> None:
    """Each is what it says. Batches see another quantity than examples: in a trained net, p̄_c(∂ mean)² is several times larger."""
    toy = make_toy()
    ctx, retain = toy.context(), toy.split.retain
    per_example, batches, labels = (
        flat(build("method", {"name": "fisher_forgetting", "fisher": fisher}).information(toy.stack, retain, ctx))
        for fisher in ("per_example", "batch32_legacy", "empirical_true_label")
    )
    assert torch.equal(per_example, flat(fisher_information(toy.stack, retain, Progress())))
    assert torch.equal(batches, flat(fisher_information(toy.stack, retain, Progress(), batch=32)))
    assert torch.equal(labels, flat(mean_squared_gradient(toy.stack, retain, Progress())))
    assert bool((batches.sum(1) > 2 * per_example.sum(1)).all())


def test_no_head_row_is_zero_unless_asked() -> None:
    toy = make_toy()
    weight, bias = head_names(toy.stack)
    forgotten = toy.split.forget.labels.unique()
    plain = toy.unlearn(FisherForgetting(noise=1e-12))
    assert (plain.params[weight] - toy.stack.params[weight]).abs().max() < 1e-3
    asked = toy.unlearn(FisherForgetting(noise=1e-12, head="zero_row"))
    others = [c for c in range(10) if c not in forgotten]
    assert torch.equal(asked.params[weight][:, others], plain.params[weight][:, others])
    assert torch.equal(asked.params["1.weight"], plain.params["1.weight"])
    rows = asked.params[weight][:, forgotten]
    assert float(rows.std()) == pytest.approx(1e-3**0.5, rel=0.1)  # the variance of the noise around zero: 10·1e-4
    assert float(asked.params[bias][:, forgotten].abs().max()) < 0.2
    assert FisherForgetting().reads == {"retain"}
    assert FisherForgetting(head="zero_row").reads == {"retain", "forget"}


def test_a_forget_set_of_all_classes_has_no_rows_to_zero() -> None:
    toy = make_toy(classes=2)
    with pytest.raises(InputError, match="holds all 2"):
        toy.unlearn(FisherForgetting(head="zero_row"))


@pytest.mark.parametrize("net", ["small_cnn", "mlp"])
def test_pruned_weights_stay_zero_and_do_not_alter_the_noise_of_live_ones(net: str) -> None:
    """Dead inputs have F = 0, so that the mean of their v would drown the few live weights beside them."""
    toy = make_toy(net)
    bits = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(5)) < 0.3 for name, p in toy.stack.params.items() if p.dim() > 2}
    stack, method = toy.stack.pruned(bits), FisherForgetting(noise=1.0)
    f = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(6)) for name, p in stack.params.items()}
    dead = {name: torch.where(stack.live.get(name, torch.ones_like(one, dtype=torch.bool)), one, 0) for name, one in f.items()}
    v, with_dead = method.variances(stack, f), method.variances(stack, dead)
    assert all(torch.equal(v[name][live], with_dead[name][live]) for name, live in stack.live.items())
    name = [name for name, p in stack.params.items() if p.dim() > 2 and name not in head_names(stack)][-1]
    live, own, first = (held[name][1, 0].flatten(1)[:, 0] if held[name].dim() > 3 else held[name][1, 0] for held in (stack.live, f, v))
    assert 0 < int(live.sum()) < len(live)
    assert float(first[0]) == pytest.approx(float((1 / (own[live] + 1e-8)).clamp(max=1e3).mean()), rel=1e-4)
    after = replace(toy, stack=stack).unlearn(FisherForgetting(noise=1e-4))
    for name, live in stack.live.items():
        assert int((after.params[name][~live] != 0).sum()) == 0
        assert torch.isfinite(after.params[name]).all()


def test_each_model_draws_its_own_examples_and_its_own_noise() -> None:
    toy = make_toy()
    method = FisherForgetting(fisher_examples=10)
    one, again, other = (toy.unlearn(method, toy.context(shift=shift)) for shift in (0, 0, 1))
    assert same(one.params, again.params)
    assert not same(one.params, other.params)
    information = unflat(flat(method.information(toy.stack, toy.split.retain, toy.context())), toy.stack.params)
    everyone = FisherForgetting(fisher_examples=56).information(toy.stack, toy.split.retain, toy.context())
    assert not same(information, everyone)
