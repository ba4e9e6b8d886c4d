"""``bad_teacher``: two teachers, each for its own images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import Toy, furthest, make_toy
from unlearnlab.fit import Batch
from unlearnlab.grouped import call_alone
from unlearnlab.methods.bad_teacher import BadTeacher
from unlearnlab.optimizers import Sgd
from unlearnlab.stack import Net, Stack, in_mode

Record = Callable[[], list[Any]]


class Says:
    """A net with these logits, whatever it is shown."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __call__(self, images: Tensor) -> Tensor:
        return self.logits


def loss(method: BadTeacher, flags: list[int], own: Tensor, bad: Tensor, good: Tensor) -> Tensor:
    batch = Batch(torch.empty(0), torch.tensor(flags), torch.empty(0))
    net, teacher, original = (Says(logits) for logits in (own, bad, good))
    return method._loss(net, batch, {"incompetent": teacher, "competent": original})  # type: ignore[arg-type, dict-item]


def test_each_image_follows_its_own_teacher() -> None:
    """KL(q ‖ p) by hand: forget images have the bad teacher's q, retain images the original's."""
    own, bad, good = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [9.0, 9.0]]), torch.tensor([[7.0, 7.0], [0.0, 2.0]])

    def kl(difference: float) -> Tensor:
        q = torch.tensor([difference, 0.0]).softmax(0)
        return (q * (q / 0.5).log()).sum()

    assert torch.isclose(loss(BadTeacher(), [1, 0], own, bad, good), (kl(1.0) + kl(2.0)) / 2)
    assert torch.isclose(loss(BadTeacher(temperature=2.0), [1, 0], own, bad, good), (kl(0.5) + kl(1.0)) / 2)
    assert torch.isclose(loss(BadTeacher(), [0, 1], own, bad, good), torch.tensor(0.0))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_scale_does_not_change_with_the_number_of_classes_at_uniform_outputs(classes: int) -> None:
    """The student is uniform, the teacher sure of half the classes: log 2, whatever C is; the legacy mean divides by C."""
    own, bad = torch.zeros(3, classes), torch.zeros(3, classes)
    bad[:, classes // 2 :] = -1e4
    assert torch.isclose(loss(BadTeacher(), [1] * 3, own, bad, own), torch.tensor(2.0).log())
    assert torch.isclose(loss(BadTeacher(kl_reduction="mean_legacy"), [1] * 3, own, bad, own), torch.tensor(2.0).log() / classes)


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp", "vit"])
def test_without_forget_images_the_original_has_nothing_to_learn(net: str) -> None:
    toy = make_toy(net).only(1)
    module, stack, images = in_mode(toy.stack.net, "eval_all"), toy.stack, toy.split.retain
    leaves = {name: p[0].clone().requires_grad_() for name, p in stack.params.items()}

    def model(held: Stack, params: dict[str, Tensor]) -> Net:
        return Net(module, params, {n: b[0] for n, b in held.buffers.items()}, lambda n: None, call_alone)

    batch = Batch(images.pixels, torch.zeros(len(images), dtype=torch.int64), images.ids)
    fresh = stack.fresh((9,))
    aux = {"competent": model(stack, {n: p[0] for n, p in stack.params.items()}), "incompetent": model(fresh, {n: p[0] for n, p in fresh.params.items()})}
    value = BadTeacher()._loss(model(stack, leaves), batch, aux)
    grads = torch.autograd.grad(value, list(leaves.values()))
    assert abs(float(value.detach())) < 1e-6
    assert max(float(g.abs().max()) for g in grads) < 1e-6
    flagged = Batch(images.pixels, torch.ones(len(images), dtype=torch.int64), images.ids)
    assert float(BadTeacher()._loss(model(stack, leaves), flagged, aux).detach()) > 0.1


def test_teachers_are_the_original_and_a_fresh_model_of_its_architecture(toy: Toy, record: Record) -> None:
    calls, ctx = record(), toy.context()
    toy.unlearn(BadTeacher(), ctx)
    aux = calls[0].settings["aux"]
    assert aux["competent"] is toy.stack
    assert repr(aux["incompetent"].net) == repr(toy.stack.net)
    assert furthest(aux["incompetent"].params, toy.stack.fresh(ctx.seeds).params) == 0


@pytest.mark.parametrize(("share", "count"), [(0.3, 17), (1.0, 56), (0.001, 1)])
def test_all_forget_images_and_the_same_share_of_the_retain_images_every_epoch(toy: Toy, record: Record, share: float, count: int) -> None:
    calls = record()
    toy.unlearn(BadTeacher(retain_share=share, epochs=3, batch=10))
    forget, retain = set(toy.split.forget.ids.tolist()), set(toy.split.retain.ids.tolist())
    drawn = []
    for k in range(3):
        pairs = [(int(i), int(y)) for batch in calls[0].batches for i, y in zip(batch.ids[k], batch.labels[k], strict=True)]
        size = 4 + count
        epochs = [{i for i, _ in pairs[at : at + size]} for at in range(0, 3 * size, size)]
        assert len(pairs) == 3 * size
        assert epochs[0] == epochs[1] == epochs[2]  # drawn once
        assert forget < epochs[0] <= forget | retain
        assert len(epochs[0]) == size
        assert all((i in forget) == (flag == 1) for i, flag in pairs)
        drawn.append(epochs[0])
    assert count == 56 or drawn[0] != drawn[1]  # each member its own


def test_forget_images_lose_their_certainty(toy: Toy) -> None:
    after = toy.unlearn(BadTeacher(lr=0.01, epochs=20, retain_share=1.0, optimizer=Sgd(weight_decay=0.0)))
    sure = [stack.logits(toy.split.forget.pixels).softmax(2).amax(2).mean() for stack in (toy.stack, after)]
    kept = (after.logits(toy.split.retain.pixels).argmax(2) == toy.split.retain.labels).float().mean()
    assert float(sure[0]) > 0.8
    assert float(sure[1]) < 0.6
    assert float(kept) > 0.8
