"""``cfw``: whose weights get noise and when, and what the class weights multiply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from toy import Toy, make_toy
from unlearnlab.data.images import Images
from unlearnlab.fit import Batch
from unlearnlab.methods.cfw import Cfw, weighted
from unlearnlab.optimizers import Cosine
from unlearnlab.spec import InputError
from unlearnlab.stack import Net

LOGITS, LABELS = torch.tensor([[2.0, 0.0, 1.0], [0.5, 1.0, -1.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]]), torch.tensor([0, 0, 1, 0])
WEIGHTS = torch.tensor([0.25, 3.0, 7.0])


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in before if not torch.equal(before[name], after[name])]


def loss_of(weighting: Any) -> float:
    batch = Batch(LOGITS, LABELS, torch.arange(4))
    return float(weighted(WEIGHTS, weighting)(cast(Net, lambda images: images), batch, {}))


@pytest.mark.parametrize(("net", "stem"), [("small_cnn", "1.weight"), ("batch_norm", "1.weight"), ("mlp", "2.weight"), ("vit", "embedding.weight")])
def test_only_the_first_convolution_or_first_weights_get_the_noise_at_the_start(net: str, stem: str, record: Callable[[], list[Any]]) -> None:
    toy, calls = make_toy(net), record()
    toy.unlearn(Cfw())
    start = calls[0].stack.params
    assert changed(toy.stack.params, start) == [stem]
    noise = start[stem] - toy.stack.params[stem]
    for one in noise:
        assert float(one.std()) == pytest.approx(0.6, rel=0.3)
        assert float(one.mean().abs()) < 0.6 * 4 / one.numel() ** 0.5
    assert not torch.equal(noise[0], noise[1])  # each member's own


def test_layers_may_be_named_and_must_exist(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Cfw(layers=("3", "6")))
    assert changed(toy.stack.params, calls[0].stack.params) == ["3.weight", "6.weight"]
    with pytest.raises(InputError, match="layers names 'conv1', which is no module with weights to add noise to; this net has '1', '3', '6'"):
        toy.unlearn(Cfw(layers=("conv1",)))
    with pytest.raises(InputError, match="layers names '2'"):  # a ReLU
        toy.unlearn(Cfw(layers=("2",)))


def test_a_little_noise_comes_before_the_last_epoch_and_only_then(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Cfw(epochs=4, batch=16))
    late, params = calls[0].settings["after_step"], toy.stack.params
    assert calls[0].settings["steps"] == 16
    for step in range(16):
        after = late(params, step)
        assert changed(params, after) == (["1.weight"] if step == 11 else [])  # the last step of the third epoch of four
        if step == 11:
            assert float((after["1.weight"] - params["1.weight"]).std()) == pytest.approx(0.005, rel=0.3)
    calls.clear()
    toy.unlearn(Cfw(epochs=1, batch=16))
    assert all(calls[0].settings["after_step"](params, step) is params for step in range(4))


def test_each_loss_has_its_own_weight() -> None:
    theirs = F.cross_entropy(LOGITS, LABELS, weight=WEIGHTS)  # divides by the sum of the weights, not by the number of examples
    assert loss_of("per_example") == pytest.approx(float(theirs) * float(WEIGHTS[LABELS].mean()), rel=1e-6)


def test_the_legacy_weights_only_rescale_the_batch() -> None:
    plain = float(F.cross_entropy(LOGITS, LABELS))
    assert loss_of("legacy_batch") == pytest.approx(plain * (3 * 0.25 + 3.0) / 4, rel=1e-6)
    assert loss_of("legacy_batch") != pytest.approx(loss_of("per_example"), rel=1e-2)


def test_class_weights() -> None:
    images = Images(torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 0, 1]), torch.arange(4), 3)
    balanced = Cfw().weights(images)
    assert balanced.tolist() == pytest.approx([4 / (2 * 3), 4 / (2 * 1), 0])
    assert float(balanced[images.labels].mean()) == pytest.approx(1)
    assert Cfw(class_weights="contest").weights(images).tolist() == pytest.approx([1, 0.05, 0.05])


def test_trains_on_the_retain_set_as_published(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Cfw())
    assert {int(i) for batch in calls[0].batches for i in batch.ids.flatten()} == set(toy.split.retain.ids.tolist())
    assert (calls[0].settings["lr"], calls[0].settings["schedule"], calls[0].settings["steps"]) == (7e-4, Cosine(), 4)
