"""``delete``: the original's own probabilities without the forgotten class."""

from __future__ import annotations

import pytest
import torch

from toy import Toy, furthest, make_toy
from unlearnlab.methods.delete import Delete
from unlearnlab.optimizers import Sgd
from unlearnlab.spec import InputError


def test_target_is_what_remains_of_the_probabilities() -> None:
    logits = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    hidden = torch.tensor([[True, False, False], [False, True, False]])
    q = Delete().target(logits, hidden)
    assert torch.allclose(q.sum(1), torch.ones(2))
    assert q[hidden].tolist() == [0.0, 0.0]
    e = torch.tensor([0.0, 2.0]).exp()
    assert torch.allclose(q[0, 1:], e / e.sum())  # as they were to one another
    assert torch.allclose(Delete(temperature=2.0).target(logits, hidden)[0, 1:], e.sqrt() / e.sqrt().sum())


def test_one_step_is_the_gradient_of_the_divergence(toy: Toy) -> None:
    """For softmax outputs ∂KL/∂z = p − q, which the bias of the head shows."""
    after = toy.unlearn(Delete(lr=0.1, epochs=1, optimizer=Sgd(momentum=0, weight_decay=0)))
    logits = toy.stack.logits(toy.split.forget.pixels)
    own = torch.nn.functional.one_hot(toy.split.forget.labels, 10).bool()
    q = torch.stack([Delete().target(z, own) for z in logits])
    head = next(name for name in reversed(toy.stack.params) if name.endswith("bias"))
    expected = toy.stack.params[head] - 0.1 * (logits.softmax(2) - q).mean(1)
    assert furthest({head: after.params[head]}, {head: expected}) < 1e-6


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm"])
def test_all_forgotten_hides_the_other_forgotten_classes_too(net: str) -> None:
    toy = make_toy(net).only(0)
    classes = toy.split.forget.labels.unique()
    assert 1 < len(classes) < 10
    settings = {"epochs": 40, "lr": 0.01, "batch": 2}
    before, own, every = (stack.logits(toy.split.forget.pixels).softmax(2)
                          for stack in (toy.stack, toy.unlearn(Delete(**settings)), toy.unlearn(Delete(hide="all_forgotten", **settings))))  # fmt: skip
    labels = toy.split.forget.labels.view(1, -1, 1)
    assert float(before.gather(2, labels).mean()) > 0.7
    assert float(own.gather(2, labels).max()) < 0.2
    assert float(every[:, :, classes].sum(2).max()) < 0.2 < float(own[:, :, classes].sum(2).max())


def test_hiding_every_class_is_refused() -> None:
    toy = make_toy(classes=2)
    assert len(toy.split.forget.labels.unique()) == 2
    with pytest.raises(InputError, match="holds all 2 classes"):
        toy.unlearn(Delete(hide="all_forgotten"))


def test_two_classes_become_the_other_one() -> None:
    toy = make_toy(classes=2)
    after = toy.unlearn(Delete(epochs=60, lr=0.05))
    assert bool((after.logits(toy.split.forget.pixels).argmax(2) == 1 - toy.split.forget.labels).all())


def test_running_averages_stay_on_forget_images_alone() -> None:
    toy = make_toy("batch_norm")
    assert furthest(toy.unlearn(Delete(epochs=2)).buffers, toy.stack.buffers) == 0
    assert furthest(toy.unlearn(Delete(epochs=2, bn="train")).buffers, toy.stack.buffers) > 0
