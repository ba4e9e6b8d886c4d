"""``salun``: ``random_label`` on the most salient weights."""

from __future__ import annotations

import pytest
import torch

from toy import Toy, make_toy, same
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.methods.salun import SalUn
from unlearnlab.optimizers import Adam
from unlearnlab.spec import fields


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp"])
def test_budget_one_is_random_label_bit_for_bit(net: str) -> None:
    toy = make_toy(net)
    masked, plain = toy.unlearn(SalUn(budget=1, epochs=3, batch=16)), toy.unlearn(RandomLabel(epochs=3, batch=16))
    assert same(masked.params | masked.buffers, plain.params | plain.buffers)


@pytest.mark.parametrize("optimizer", [RandomLabel.optimizer, Adam(weight_decay=5e-4)])
def test_only_the_salient_half_changes(optimizer: object, toy: Toy) -> None:
    mask = toy.locate(GradParam(budget=0.5))
    after = toy.unlearn(SalUn(epochs=3, batch=16, optimizer=optimizer))
    for name, bits in mask.open.items():
        assert torch.equal(after.params[name][~bits], toy.stack.params[name][~bits])
        assert bool((after.params[name][bits] != toy.stack.params[name][bits]).float().mean() > 0.99)


def test_is_the_marriage_of_its_parts_with_the_same_defaults(toy: Toy) -> None:
    assert {field.name: field.default for field in fields(SalUn)} == {field.name: field.default for cls in (GradParam, RandomLabel) for field in fields(cls)}
    assert same(toy.unlearn(SalUn(budget=0.2)).params, toy.unlearn(Localised(GradParam(budget=0.2), RandomLabel())).params)
