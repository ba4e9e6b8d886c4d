"""``salun``: ``random_label`` on the most salient weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from toy import Toy, make_toy, same
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.localise.random import Random
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.methods.salun import SalUn
from unlearnlab.optimizers import Adam, Sgd
from unlearnlab.progress import Progress
from unlearnlab.spec import fields
from unlearnlab.stack import flat


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
    parts = {field.name: field.default for cls in (GradParam, RandomLabel) for field in fields(cls)}
    assert {field.name: field.default for field in fields(SalUn)} == parts | {"mask_mode": "hard"}
    assert same(toy.unlearn(SalUn(budget=0.2)).params, toy.unlearn(Localised(GradParam(budget=0.2), RandomLabel())).params)
    per_image = GradParam(budget=0.2, accumulate="abs_per_batch", gradient_batch=1)
    found = toy.unlearn(SalUn(budget=0.2, accumulate="abs_per_batch", gradient_batch=1))
    assert same(found.params, toy.unlearn(Localised(per_image, RandomLabel())).params)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_mask_on_gradients_alone_lets_decay_move_closed_weights(weight_decay: float, toy: Toy) -> None:
    """As older code: three steps of pure decay outside the mask, the same steps as with a hard one inside for as long as nothing differs."""
    update, mask = Sgd(momentum=0.0, weight_decay=weight_decay), toy.locate(GradParam())
    hard, soft = (toy.unlearn(SalUn(mask_mode=mode, epochs=1, optimizer=update)) for mode in ("hard", "grad_only"))
    later = toy.unlearn(SalUn(mask_mode="grad_only", epochs=3, optimizer=update))
    for name, bits in mask.open.items():
        before = toy.stack.params[name]
        assert torch.equal(hard.params[name][bits], soft.params[name][bits])
        assert torch.allclose(later.params[name][~bits], before[~bits] * (1 - 0.013 * weight_decay) ** 3, rtol=1e-6, atol=0)
        assert torch.equal(later.params[name][~bits], before[~bits]) == (weight_decay == 0 or bool(bits.all()))


def test_a_mask_on_gradients_alone_leaves_pruned_weights_and_outer_masks_hard(toy: Toy) -> None:
    outer = toy.locate(Random(budget=0.5))
    after = toy.unlearn(SalUn(mask_mode="grad_only"), toy.context(mask=outer))
    for name, bits in outer.open.items():
        assert torch.equal(after.params[name][~bits], toy.stack.params[name][~bits])
        assert bool((after.params[name][bits] != toy.stack.params[name][bits]).all())  # decay reaches all that are open, salient or not
    sparse = replace(toy, stack=toy.stack.pruned({n: bits for n, bits in outer.open.items() if bits.dim() > 2}))
    after = sparse.unlearn(SalUn(mask_mode="grad_only"))
    assert sum(int((after.params[n][~live] != 0).sum()) for n, live in sparse.stack.live.items()) == 0


def test_least_salient_weights_are_not_the_ones_chosen(toy: Toy) -> None:
    """With the sign of the ranking dropped the mask would hold the weights whose gradients are smallest."""
    mask, slopes = toy.locate(GradParam(budget=0.1)), summed_gradient(toy.stack, toy.split.forget, Progress())
    moved = {n: p != toy.stack.params[n] for n, p in toy.unlearn(SalUn(budget=0.1)).params.items()}
    assert all(not bool((moved[n] & ~bits).any()) for n, bits in mask.open.items())
    for k in range(3):
        size, chosen = flat(slopes)[k].abs(), flat(moved)[k]
        assert size[chosen].min() >= size[~flat(mask.open)[k]].max()
