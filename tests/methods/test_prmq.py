"""``prmq``: which weights start anew, what is learned, and half precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from toy import Toy, make_toy, same
from unlearnlab.data.images import Images
from unlearnlab.fit import Batch
from unlearnlab.localise.random import Random
from unlearnlab.methods.prmq import Prmq, entropy, mild_weights, towards_confidence
from unlearnlab.stack import Net, flat


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp", "vit"])
def test_the_smallest_weights_of_all_layers_together_start_anew(net: str, record: Callable[[], list[Any]]) -> None:
    toy, calls = make_toy(net), record()
    method = Prmq(pruned=0.7)
    toy.unlearn(method)
    start, chosen = calls[0].stack.params, method.smallest(toy.stack)
    ranked, here = flat({name: toy.stack.params[name].abs() for name in chosen}), flat(chosen)
    for k in range(3):
        assert int(here[k].sum()) == round(0.7 * here.shape[1])
        assert float(ranked[k][here[k]].max()) <= float(ranked[k][~here[k]].min())
    for name, p in toy.stack.params.items():
        if name not in chosen:
            assert torch.equal(start[name], p), name  # normalisation, positions
        elif p.dim() == 2:
            assert torch.equal(start[name], torch.where(chosen[name], 0, p)), name  # biases
        else:
            bound = p[0, 0].numel() ** -0.5
            fresh = start[name][chosen[name]]
            assert torch.equal(start[name][~chosen[name]], p[~chosen[name]]), name
            assert float(fresh.abs().max()) <= bound
            assert float(fresh.std()) == pytest.approx(bound / 3**0.5, rel=0.2)
            assert abs(float(fresh.mean())) < bound / 4


def test_layers_ranked_are_convolutions_and_linear_ones() -> None:
    assert list(Prmq().smallest(make_toy("batch_norm").stack)) == ["1.weight", "4.weight", "8.weight", "13.weight", "13.bias"]


def test_pruned_weights_neither_rank_nor_count(toy: Toy) -> None:
    lots = {name: bits for name, bits in toy.locate(Random(budget=0.5)).open.items() if bits.dim() > 2}
    sparse = toy.stack.pruned(lots)
    chosen = Prmq(pruned=0.5).smallest(sparse)
    alive = sum(sparse.params[name][0].numel() for name in chosen) - sum((~live).flatten(1).sum(1) for live in lots.values())
    assert flat(chosen).sum(1).tolist() == [round(0.5 * int(count)) for count in alive]
    assert all(not bool((chosen[name] & ~live).any()) for name, live in lots.items())


@pytest.mark.parametrize(("epochs", "steps"), [(3.2, 12), (1, 4), (0.5, 2), (2.99, 11)])
def test_steps_are_the_whole_part_of_epochs_times_batches(epochs: float, steps: int, toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Prmq(epochs=epochs, batch=16))  # four batches an epoch
    assert calls[0].settings["steps"] == len(calls[0].batches) == steps


def test_every_weight_is_representable_in_half_precision(toy: Toy) -> None:
    after, unrounded = toy.unlearn(Prmq()), toy.unlearn(Prmq(half=False))
    assert same({n: p.half().float() for n, p in after.params.items()}, after.params)
    assert same({n: p.half().float() for n, p in unrounded.params.items()}, after.params)
    assert not same(unrounded.params, after.params)
    assert all(p.dtype == torch.float32 for p in after.params.values())


def test_weights_outside_a_mask_are_not_rounded(toy: Toy) -> None:
    mask = toy.locate(Random(budget=0.5))
    after = toy.unlearn(Prmq(), toy.context(mask=mask))
    for name, is_open in mask.open.items():
        assert torch.equal(after.params[name][~is_open], toy.stack.params[name][~is_open])
        assert torch.equal(after.params[name][is_open].half().float(), after.params[name][is_open])


def test_the_loss_by_hand() -> None:
    p, taught = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]), torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.98, 0.01, 0.01]])
    weights = torch.tensor([0.5, 2.0, 9.0])
    batch = Batch(p.log(), torch.tensor([0, 1]), torch.arange(2))
    value = towards_confidence(weights)(cast(Net, lambda x: x), batch, {"teacher": cast(Net, lambda x: taught.log())})
    h = [-sum(q * math.log(q) for q in row) for row in (*p.tolist(), *taught.tolist())]
    labels = (0.5 * -math.log(0.5) + 2.0 * -math.log(0.1)) / 2.5
    assert float(value) == pytest.approx(labels + ((h[0] - h[2]) ** 2 + (h[1] - h[3]) ** 2) / 2, abs=1e-5)
    assert entropy(p.log()).tolist() == pytest.approx(h[:2])


def test_weights_of_classes_also_where_one_is_missing() -> None:
    images = Images(torch.zeros(5, 1, 8, 8), torch.tensor([0, 0, 0, 2, 2]), torch.arange(5), 4)
    assert mild_weights(images, 4).tolist() == pytest.approx([3**-0.1, 0, 2**-0.1, 0])


def test_the_teacher_is_the_original_and_only_retained_images_are_seen(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Prmq())
    assert calls[0].settings["aux"]["teacher"] is toy.stack
    assert {int(i) for batch in calls[0].batches for i in batch.ids.flatten()} == set(toy.split.retain.ids.tolist())
