"""The training loop: optimisers and schedules against torch, stacked against separate, masks, resuming, divergence."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toy import make_toy
from unlearnlab.data.augment import Flip
from unlearnlab.data.images import Images
from unlearnlab.fit import Batch, Seen, Shuffled, cross_entropy, epochs_of, fit, weighted_cross_entropy
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.optimizers import Adam, AdamW, Constant, Cosine, Exponential, MultiStep, OneCycle, Optimizer, Schedule, Sgd, WarmUp
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError
from unlearnlab.stack import Mask, Net, Stack, flat
from unlearnlab.train import Recipe

SHAPE = (1, 8, 8)
SEEDS = (1, 2, 3)


def images(n: int = 23, seed: int = 0) -> Images:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=draw)
    return Images(pixels, torch.randint(0, 10, (n,), generator=draw), torch.arange(n) * 7 + 3, 10)


def mlp(seeds: tuple[int, ...] = SEEDS) -> Stack:
    return Stack.init(Mlp(hidden=(9,))(SHAPE, 10), seeds)


def cnn(seeds: tuple[int, ...] = SEEDS, norm: Any = "none") -> Stack:
    return Stack.init(SmallCnn(norm=norm)(SHAPE, 10), seeds)


def dropping(seeds: tuple[int, ...] = SEEDS) -> Stack:
    return Stack.init(nn.Sequential(*Mlp(hidden=(9,))(SHAPE, 10), nn.Dropout(0.3)), seeds)


def train(stack: Stack, data: Images | None = None, *, size: int = 5, steps: int = 12, loss: Any = cross_entropy, **settings: Any) -> Stack:
    """A few steps on random images with momentum and decay, whatever else is asked."""
    stream = settings.pop("stream", None) or Shuffled(data or images(), size, stack.seeds, "order")
    return fit(stack, stream, loss, **{"lr": 0.1, "optimizer": Sgd(weight_decay=0.01), "steps": steps, **settings})


def tensors(stack: Stack) -> dict[str, Tensor]:
    return stack.params | stack.buffers


def same(a: Stack, b: Stack) -> bool:
    return a.fingerprint == b.fingerprint


def close(a: Stack, b: Stack, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(tensors(a), tensors(b), rtol=rtol, atol=atol)


# ---------------------------------------------------------------- against torch.optim

OPTIMIZERS: list[tuple[Optimizer, Callable[[Any], torch.optim.Optimizer]]] = [
    (Sgd(momentum=0, weight_decay=0), lambda p: torch.optim.SGD(p, lr=0.05)),
    (Sgd(momentum=0.9, weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1)),
    (Sgd(momentum=0.8, weight_decay=0.1, nesterov=True), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.1, nesterov=True)),
    (Adam(), lambda p: torch.optim.Adam(p, lr=0.05)),
    (AdamW(), lambda p: torch.optim.AdamW(p, lr=0.05)),
    (AdamW(0.7, 0.95, 1e-3, 0.1), lambda p: torch.optim.AdamW(p, lr=0.05, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1)),
    (Adam(0.7, 0.95, 1e-3, 0.1), lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1)),
]


@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS)
def test_optimizers_do_what_torch_does(ours: Optimizer, theirs: Callable[[Any], torch.optim.Optimizer]) -> None:
    stack, data = mlp((4,)), images()
    stream, model = Shuffled(data, 5, (4,), "order"), stack.member(0).train()
    optimizer = theirs(model.parameters())
    for step in range(20):
        batch = stream(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.images[0]), batch.labels[0]).backward()
        optimizer.step()
    found = train(stack, data, steps=20, lr=0.05, optimizer=ours)
    close(found, Stack.of([model], (4,)), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(flat(found.params), flat(stack.params), atol=1e-2)


def lr_of(scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int, every: int = 1) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule, seen = scheduler(optimizer), []
    for step in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0 and step + 1 < steps:
            schedule.step()
    return seen


@pytest.mark.parametrize("steps", [2, 3, 10, 400])
def test_schedules_do_what_torch_does(steps: int) -> None:
    def ours(schedule: Schedule, per_epoch: int = 1) -> list[float]:
        return [0.3 * schedule(step, steps, per_epoch) for step in range(steps)]

    scheduler = torch.optim.lr_scheduler
    assert ours(OneCycle()) == pytest.approx(lr_of(lambda o: scheduler.OneCycleLR(o, 0.3, total_steps=steps), steps), abs=1e-12)
    other = OneCycle(0.1, 10, 100)
    if steps != 10:  # where the rise ends at step 0 exactly, torch divides by zero
        theirs = lr_of(lambda o: scheduler.OneCycleLR(o, 0.3, total_steps=steps, pct_start=0.1, div_factor=10, final_div_factor=100), steps)
        assert ours(other) == pytest.approx(theirs, abs=1e-12)
    else:
        assert other(0, 10, 1) == 1
    assert ours(Cosine()) == pytest.approx(lr_of(lambda o: scheduler.CosineAnnealingLR(o, steps), steps), abs=1e-12)
    assert ours(Cosine(0.2)) == pytest.approx(lr_of(lambda o: scheduler.CosineAnnealingLR(o, steps, eta_min=0.06), steps), abs=1e-12)
    drops = MultiStep((1, 3, 4), 0.5)
    assert ours(drops, 4) == pytest.approx(lr_of(lambda o: scheduler.MultiStepLR(o, [1, 3, 4], 0.5), steps, every=4), abs=1e-12)
    fading = Exponential(0.9)
    assert ours(fading, 4) == pytest.approx(lr_of(lambda o: scheduler.ExponentialLR(o, 0.9), steps, every=4), abs=1e-12)
    assert ours(Constant()) == [0.3] * steps


def test_warm_up() -> None:
    rates = [WarmUp(0.5, Cosine())(step, 12, 8) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, *(Cosine()(step, 8, 8) for step in range(8))])
    assert [WarmUp(3)(step, 4, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]  # longer than the training: it rises all the way
    assert WarmUp(1, MultiStep((1,), 0.1))(7, 20, 4) == 1.0
    assert WarmUp(1, MultiStep((1,), 0.1))(8, 20, 4) == pytest.approx(0.1)


def test_the_schedule_drives_the_steps() -> None:
    data, stack = images(), mlp()
    found = train(stack, data, steps=6, schedule=MultiStep((1,), 0.1), per_epoch=4, optimizer=Sgd(momentum=0))
    before, stream = train(stack, data, steps=4, optimizer=Sgd(momentum=0)), Shuffled(data, 5, SEEDS, "order")
    close(train(before, stream=lambda step: stream(step + 4), steps=2, lr=0.01, optimizer=Sgd(momentum=0)), found)


# ---------------------------------------------------------------- stacked = separate


@pytest.mark.parametrize("make", [mlp, cnn, dropping])
@pytest.mark.parametrize("optimizer", [Sgd(nesterov=True), Adam(weight_decay=0.01), AdamW()])
def test_stacked_is_separate(make: Callable[..., Stack], optimizer: Optimizer) -> None:
    stack = make()
    settings: dict[str, Any] = {"optimizer": optimizer, "lr": 0.01, "clip": 1.0, "size": 11}  # 23 images: the last batch holds one
    together = train(stack, **settings)
    close(together, Stack.join([train(stack.rows([k]), **settings) for k in range(3)]))
    assert together.seeds == SEEDS
    assert not torch.allclose(flat(together.params)[0], flat(stack.params)[0], atol=1e-3)


@pytest.mark.parametrize("bn", ["train", "frozen", "eval_all"])
def test_batch_norm_policies(bn: Any) -> None:
    stack, data = cnn(norm="batch"), images()
    warm = train(stack, data)  # averages that differ between members
    together = train(warm, data, bn=bn)
    close(together, Stack.join([train(warm.rows([k]), data, bn=bn) for k in range(3)]), rtol=1e-3, atol=1e-4)
    short = [train(stack, data, bn=bn, size=11, steps=3) for stack in (warm, *(warm.rows([k]) for k in range(3)))]  # the last batch holds one
    close(short[0], Stack.join(short[1:]), rtol=1e-3, atol=1e-4)
    kept = all(torch.equal(together.buffers[name], buffer) for name, buffer in warm.buffers.items())
    assert kept == (bn != "train")
    assert not torch.equal(together.params["2.weight"], warm.params["2.weight"])  # the affine weights learn under every policy
    counted = together.buffers["2.num_batches_tracked"]
    assert counted.tolist() == [24 if bn == "train" else 12] * 3
    model = warm.member(0).train(bn != "eval_all")
    if bn == "frozen":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for step in range(12):
        batch = Shuffled(data, 5, (1,), "order")(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.images[0]), batch.labels[0]).backward()
        optimizer.step()
    close(together.rows([0]), Stack.of([model], (1,)), rtol=1e-3, atol=1e-4)


class Noisy(nn.Module):
    """Draws from the global generator without telling."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.3, self.training)


def test_dropout_is_drawn_per_member_and_step() -> None:
    stack = Stack.of([dropping((1,)).member(0)] * 3, (1, 1, 2))  # equal weights; two members of the same seed
    found = train(stack, bn="train")
    torch.rand(3)
    state = torch.random.get_rng_state()
    assert same(train(stack, bn="train"), found)
    assert torch.equal(torch.random.get_rng_state(), state)
    one, twin, other = flat(found.params)
    assert torch.equal(one, twin)
    assert not torch.equal(one, other)
    assert not same(train(stack, bn="eval_all"), found)
    assert not same(train(stack, bn="train", seeds=(1, 1, 2)), found), "unlearning does not replay the noise of training"
    assert not same(train(stack, bn="train", seeds=(1, 1, 3)), train(stack, bn="train", seeds=(1, 1, 2)))
    batch = Batch(torch.ones(3, 5, *SHAPE), torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.int64))
    losses: list[list[float]] = []
    train(stack, stream=lambda step: batch, lr=0.0, steps=8, watch=[lambda seen: losses.append(seen.losses.tolist())])
    assert len({loss for row in losses for loss in row[1:]}) == 16  # another draw for each member and step

    hidden = Stack.init(nn.Sequential(*Mlp(hidden=(9,))(SHAPE, 10), Noisy()), (4,))
    assert same(train(hidden), train(hidden))


# ---------------------------------------------------------------- clipping, masks, edits


def test_clipping_is_per_member() -> None:
    stack, norms = mlp(), []
    steps: list[Tensor] = []

    def note(grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        norms.append(flat(grads).norm(dim=1))
        return {name: g * torch.tensor([1.0, 10.0, 0.01]).view(-1, *[1] * (g.dim() - 1)) for name, g in grads.items()}

    found = train(stack, edit_grad=note, clip=0.5, lr=1.0, steps=1, optimizer=Sgd(0, 0), watch=[lambda seen: steps.append(flat(seen.params))])
    moved = (steps[0] - flat(stack.params)).norm(dim=1)
    raw = norms[0] * torch.tensor([1.0, 10.0, 0.01])
    assert raw[0] > 0.5 > raw[2]
    torch.testing.assert_close(moved, raw.clamp(max=0.5), rtol=1e-3, atol=1e-5)
    model = stack.member(0).train()
    batch = Shuffled(images(), 5, (1,), "order")(0)
    nn.functional.cross_entropy(model(batch.images[0]), batch.labels[0]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    torch.optim.SGD(model.parameters(), 1.0).step()
    close(found.rows([0]), Stack.of([model], (1,)))


def half_open(stack: Stack) -> Mask:
    draw = torch.Generator().manual_seed(1)
    return Mask({name: torch.rand(p.shape, generator=draw) < 0.5 for name, p in stack.params.items()}, stack.fingerprint)


@pytest.mark.parametrize("optimizer", [Sgd(), Sgd(nesterov=True), Adam(weight_decay=0.01)])
def test_masks_are_hard(optimizer: Optimizer) -> None:
    stack, states = mlp(), []
    mask = half_open(stack)

    class Spy:
        def start(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
            states.append(optimizer.start(params))
            return states[0]

        def update(self, *args: Any) -> dict[str, Tensor]:
            return optimizer.update(*args)

    def push(params: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {name: p - 0.01 for name, p in params.items()}  # even a push after the step stays inside

    found = train(stack, mask=mask, optimizer=Spy(), lr=0.01, after_step=push)
    for name, p in found.params.items():
        assert torch.equal(p[~mask.open[name]], stack.params[name][~mask.open[name]])
        assert (p[mask.open[name]] != stack.params[name][mask.open[name]]).float().mean() > 0.9
    for slot, held in states[0].items():
        assert (held[~mask.open[slot.partition("/")[2]]] == 0).all()


def test_a_mask_is_as_if_the_weights_did_not_exist() -> None:
    """Clipping too: the gradient of closed weights must not shorten the step of open ones."""
    stack = mlp()
    head = Mask({name: torch.full_like(p, name.startswith("4"), dtype=torch.bool) for name, p in stack.params.items()}, stack.fingerprint)
    found = train(stack, mask=head, clip=0.2, steps=3)
    model = stack.member(0).train()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("4"))
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, 0.1, momentum=0.9, weight_decay=0.01)
    for step in range(3):
        batch = Shuffled(images(), 5, (1,), "order")(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.images[0]), batch.labels[0]).backward()
        assert nn.utils.clip_grad_norm_(learning, 0.2) > 0.2
        optimizer.step()
    close(found.rows([0]), Stack.of([model], (1,)))


def test_an_open_mask_changes_no_bit() -> None:
    stack = mlp()
    assert same(train(stack, mask=Mask.everything(stack), clip=1.0), train(stack, clip=1.0))


def test_edits_and_watchers() -> None:
    stack, calls = mlp(), []
    still = train(stack, edit_grad=lambda grads, step: {name: g * 0 for name, g in grads.items()}, optimizer=Sgd(weight_decay=0))
    assert same(still, stack)
    pulled = train(stack, after_step=lambda params, step: {name: torch.full_like(p, step) for name, p in params.items()}, steps=4)
    assert all((p == 3).all() for p in pulled.params.values())
    found = train(stack, watch=[lambda seen: calls.append((seen.step, seen.losses.clone(), flat(seen.params)))])
    assert [step for step, _, _ in calls] == list(range(12))
    assert torch.equal(calls[-1][2], flat(found.params))
    batch = Shuffled(images(), 5, SEEDS, "order")(0)
    expected = torch.stack([nn.functional.cross_entropy(stack.member(k)(batch.images[k]), batch.labels[k]) for k in range(3)])
    torch.testing.assert_close(calls[0][1], expected.detach())


@pytest.mark.parametrize("make", [mlp, lambda: dropping((1, 2)), lambda: cnn(norm="batch")])
def test_a_watcher_sees_the_logits_of_the_training_pass(make: Callable[[], Stack]) -> None:
    """Before the step, in training mode, on the batch's own images; and the stack after it."""
    stack, shown = make(), list[Seen]()
    found = train(stack, watch=[shown.append], sharpness=0.05, per_epoch=4)
    assert same(found, train(stack, sharpness=0.05)), "watching changes nothing"
    for seen in shown:
        losses = nn.functional.cross_entropy(seen.logits.flatten(0, 1), seen.batch.labels.flatten(), reduction="none").view(len(stack), -1).mean(1)
        torch.testing.assert_close(losses, seen.losses)

    assert same(shown[-1].stack(), found)
    assert [seen.step for seen in shown if seen.epoch_ends] == [3, 7, 11]


class Counts:
    """Sums losses, which must not be lost when a run breaks off."""

    def __init__(self, at: int = 99) -> None:
        self.state, self.at = {"sum": torch.zeros(3)}, at

    def __call__(self, seen: Seen) -> None:
        self.state["sum"] += seen.losses
        if seen.step == self.at:
            raise Interrupted


def test_what_a_watcher_gathers_survives_an_interruption(tmp_path: Path) -> None:
    stack, whole, again = mlp(), Counts(), Counts()
    train(stack, watch=[whole])
    with pytest.raises(Interrupted):
        train(stack, watch=[Counts(5)], progress=Progress(tmp_path, every=0))
    train(stack, watch=[again], progress=Progress(tmp_path, every=0))
    assert torch.equal(again.state["sum"], whole.state["sum"])


def test_the_input_and_auxiliary_models_are_untouched() -> None:
    stack, teacher = cnn(norm="batch"), cnn((7, 8, 9), norm="batch")
    before = (stack.fingerprint, teacher.fingerprint, {name: t.clone() for name, t in stack.net.state_dict().items()})

    def imitate(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        anchor = sum((net.params[name] - aux["teacher"].params[name]).square().sum() for name in net.params)
        return (net(batch.images) - aux["teacher"](batch.images)).square().mean() + 1e-3 * anchor

    found = train(stack, loss=imitate, aux={"teacher": teacher}, lr=0.01)
    for held in (stack, teacher):
        held.__dict__.pop("fingerprint")  # computed once and kept
    assert (stack.fingerprint, teacher.fingerprint) == before[:2]
    assert all(torch.equal(before[2][name], t) for name, t in stack.net.state_dict().items())
    apart = [train(stack.rows([k]), loss=imitate, aux={"teacher": teacher.rows([k])}, lr=0.01) for k in range(3)]
    close(found, Stack.join(apart), rtol=1e-3, atol=1e-4)  # each member has its own teacher
    assert not torch.allclose(flat(found.params)[0], flat(train(stack, loss=imitate, aux={"teacher": teacher.rows([1, 2, 0])}, lr=0.01).params)[0])


def test_a_weight_the_loss_does_not_reach_keeps_its_place() -> None:
    stack = mlp()

    def head_only(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        return net.params["4.bias"].square().sum()

    found = train(stack, loss=head_only, optimizer=Sgd(weight_decay=0))
    assert [name for name in stack.params if not torch.equal(found.params[name], stack.params[name])] == ["4.bias"]


# ---------------------------------------------------------------- streams and counting


def test_every_epoch_and_member_has_its_own_order_and_the_last_batch_is_short() -> None:
    data = images(23)
    stream = Shuffled(data, 5, SEEDS, "order", tag="retain")
    epochs = [[stream(step) for step in range(epoch * 5, epoch * 5 + 5)] for epoch in range(3)]
    assert stream.steps_per_epoch == 5
    assert epochs_of(data, 5, 3) == 15
    assert [batch.ids.shape for batch in epochs[0]] == [(3, 5)] * 4 + [(3, 3)]
    orders = [torch.cat([batch.ids for batch in epoch], 1) for epoch in epochs]
    assert all(sorted(row.tolist()) == data.ids.tolist() for order in orders for row in order)
    assert len({tuple(row.tolist()) for order in orders for row in order}) == 9
    for batch in epochs[1]:
        rows = (batch.ids - 3) // 7
        assert torch.equal(batch.images, data.pixels[rows])
        assert torch.equal(batch.labels, data.labels[rows])
        assert batch.tag == "retain"
    assert torch.equal(Shuffled(data, 5, SEEDS, "order")(11).ids, stream(11).ids)  # whatever was drawn before
    assert torch.equal(Shuffled(data, 5, (2,), "order")(6).ids[0], stream(6).ids[1])
    assert not torch.equal(Shuffled(data, 5, SEEDS, "order.forget")(0).ids, stream(0).ids)
    assert Shuffled(data, 100, SEEDS, "order")(1).ids.shape == (3, 23)
    assert Shuffled(data.rows(torch.tensor([4])), 5, SEEDS, "order").steps_per_epoch == 1


def test_a_stream_may_relabel() -> None:
    data, asked = images(23), []

    def labels(epoch: int) -> Tensor:
        asked.append(epoch)
        return (data.labels + torch.tensor([[1], [2], [3]]) + epoch) % 10

    stream = Shuffled(data, 5, SEEDS, "order", labels=labels)
    for step in range(10):
        batch = stream(step)
        rows = (batch.ids - 3) // 7
        assert torch.equal(batch.labels, (data.labels[rows] + torch.tensor([[1], [2], [3]]) + step // 5) % 10)
    assert asked == [0, 1]


def test_a_second_batch_travels_along() -> None:
    data, stack = images(), mlp()
    retain, forget = Shuffled(data, 5, SEEDS, "retain"), Shuffled(data.rows(torch.arange(4)), 3, SEEDS, "forget")

    def both(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        assert batch.also is not None
        return cross_entropy(net, batch, aux) - 0.1 * cross_entropy(net, batch.also, aux)

    def stream(part: slice) -> Callable[[int], Batch]:
        def of(step: int) -> Batch:
            made = replace(retain(step), also=forget(step))
            return made.holding([t[part] for t in made.tensors()])

        return of

    progress = Progress()
    found = train(stack, stream=stream(slice(None)), loss=both, progress=progress)
    close(found, Stack.join([train(stack.rows([k]), stream=stream(slice(k, k + 1)), loss=both) for k in range(3)]))
    assert progress.forward == progress.backward == 2 * (5 * 4 + 3) + 2 * 5 + 6 * 3 + 6 * 1


@pytest.mark.parametrize("make", [mlp, dropping])
@pytest.mark.parametrize("seeds", [(1,), SEEDS])
def test_examples_are_counted_per_model(make: Callable[..., Stack], seeds: tuple[int, ...]) -> None:
    progress = Progress()

    def imitate(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        return (net(batch.images) - aux["teacher"](batch.images)).square().mean()

    train(make(seeds), steps=10, progress=progress)  # two epochs of 23
    assert (progress.forward, progress.backward, progress.example_passes) == (46, 46, 138)
    train(make(seeds), steps=5, loss=imitate, aux={"teacher": make(seeds)}, progress=progress)
    assert (progress.forward, progress.backward) == (46 + 2 * 23, 46 + 23)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    train(mlp(), progress=Progress(tell=lambda done, total: told.append((done, total))))
    assert told[-1] == (12, 12)
    assert told == sorted(told)


@pytest.mark.parametrize("settings", [{"lr": -0.1}, {"lr": float("nan")}, {"steps": -1}])
def test_senseless_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be finite and not negative"):
        train(mlp(), **settings)


def test_the_recipe_trains() -> None:
    stack, progress = mlp(), Progress()
    data = Images(images().pixels, images().pixels[:, 0, 0, 0].long() % 2, images().ids, 10)
    found = Recipe(epochs=40, batch=5)(stack, data, progress)
    assert (found.logits(data.pixels).argmax(-1) == data.labels).float().mean() > 0.95
    assert progress.forward == 40 * 23
    assert same(found, Recipe(epochs=40, batch=5)(stack, data))


# ---------------------------------------------------------------- resuming


class Interrupted(Exception):  # noqa: N818
    pass


def interrupt(at: int, seen: list[int]) -> Callable[..., None]:
    def watch(shown: Seen) -> None:
        seen.append(shown.step)
        if shown.step == at:
            raise Interrupted

    return watch


@pytest.mark.parametrize("optimizer", [Sgd(), Sgd(momentum=0), Adam()])
@pytest.mark.parametrize("make", [lambda: cnn(norm="batch"), lambda: dropping((1,))])
def test_an_interrupted_fit_ends_in_the_same_bits(optimizer: Optimizer, make: Callable[[], Stack], tmp_path: Path) -> None:
    stack, undisturbed = make(), Progress()
    whole = train(stack, optimizer=optimizer, progress=undisturbed, lr=0.01)
    seen: list[int] = []
    stops = sorted(random.sample(range(1, 12), 2))
    for at in stops:
        with pytest.raises(Interrupted):
            train(stack, optimizer=optimizer, progress=Progress(tmp_path, every=0), watch=[interrupt(at, seen)], lr=0.01)
    progress = Progress(tmp_path, every=0)
    again = train(stack, optimizer=optimizer, progress=progress, watch=[interrupt(99, seen)], lr=0.01)
    assert same(again, whole), stops
    assert seen == sorted([*range(12), *stops])  # only the interrupted steps were done twice
    assert (progress.forward, progress.backward) == (undisturbed.forward, undisturbed.backward)
    finished: list[int] = []
    assert same(train(stack, optimizer=optimizer, progress=Progress(tmp_path), watch=[interrupt(99, finished)], lr=0.01), whole)
    assert finished == []


def test_an_interruption_between_steps_by_the_caller(tmp_path: Path) -> None:
    """As Ctrl-C may come: out of the progress bar, before the state of that step is saved."""
    stack, at = mlp(), random.randrange(12)
    whole, seen = train(stack), []

    class Stops(Progress):
        def step(self, done: int, total: int) -> None:
            if done == at + 1:
                raise Interrupted

    with pytest.raises(Interrupted):
        train(stack, progress=Stops(tmp_path, every=0))
    assert same(train(stack, progress=Progress(tmp_path, every=0), watch=[interrupt(99, seen)]), whole)
    assert seen == list(range(at, 12)), at


def test_states_of_several_fits_stay_apart(tmp_path: Path) -> None:
    def two(progress: Progress, at: int = 99) -> Stack:
        middle = train(mlp(), progress=progress)
        progress.seen(forward=100)  # what a method does between its fits
        return train(middle, images(seed=3), progress=progress, watch=[interrupt(at, [])])

    undisturbed, progress = Progress(), Progress(tmp_path, every=0)
    whole = two(undisturbed)
    with pytest.raises(Interrupted):
        two(progress, at=5)
    progress = Progress(tmp_path, every=0)
    assert same(two(progress), whole)
    assert progress.example_passes == undisturbed.example_passes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fit-1.safetensors", "fit-2.safetensors"]


def test_nothing_is_saved_before_its_time(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(mlp(), progress=Progress(tmp_path / "deep" / "down", every=60), watch=[interrupt(8, [])])
    assert not list(tmp_path.iterdir())
    train(mlp(), progress=Progress(tmp_path / "deep" / "down", every=60))
    assert (tmp_path / "deep" / "down" / "fit-1.safetensors").exists()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_state_is_no_state(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    whole = train(mlp(), progress=Progress(tmp_path))
    file = tmp_path / "fit-1.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert same(train(mlp(), progress=Progress(tmp_path)), whole)


def test_states_hold_what_edits_return(tmp_path: Path) -> None:
    """An edit may return views of one storage, such as pieces of a flat row."""
    from unlearnlab.stack import unflat

    def shrink(params: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return unflat(flat(params) * 0.99, params)

    for seeds in ((1,), SEEDS):
        whole = train(mlp(seeds), after_step=shrink)
        folder = tmp_path / str(len(seeds))
        with pytest.raises(Interrupted):
            train(mlp(seeds), after_step=shrink, progress=Progress(folder, every=0), watch=[interrupt(7, [])])
        assert same(train(mlp(seeds), after_step=shrink, progress=Progress(folder, every=0)), whole)


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize("make", [mlp, cnn, lambda: cnn(norm="batch"), dropping])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_member_that_diverges_is_named_and_harms_no_other(make: Callable[[], Stack], clip: float | None) -> None:
    stack = make()

    def absurd(grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        factor = torch.tensor([1.0, 1e30 if step >= 4 and clip is None else float("inf") if step >= 4 else 1.0, 1.0])
        return {name: g * factor.view(-1, *[1] * (g.dim() - 1)) for name, g in grads.items()}

    calm = train(stack, clip=clip, edit_grad=lambda grads, step: grads)
    wild = train(stack, clip=clip, edit_grad=absurd)
    (bad,) = wild.diverged
    assert bad.seed == 2
    assert bad.step >= 5
    assert not torch.isfinite(torch.tensor(bad.loss))
    assert str(bad) == f"seed 2 at step {bad.step}: loss {bad.loss}"
    assert calm.diverged == ()
    assert same(wild.rows([0, 2]), calm.rows([0, 2]))
    assert torch.isfinite(flat(wild.rows([0, 2]).params)).all()


def test_ruin_in_the_last_step_is_noticed() -> None:
    def last(grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {name: g * (torch.inf if step == 11 else 1) for name, g in grads.items()} if step == 11 else grads

    found = train(mlp(), edit_grad=last)
    assert [(bad.seed, bad.step) for bad in found.diverged] == [(1, 11), (2, 11), (3, 11)]


def test_absurd_images_and_rates_diverge_by_name() -> None:
    data = images()
    huge = Images(data.pixels.float() * 1e30, data.labels, data.ids, 10)
    assert {bad.seed for bad in train(mlp(), huge, lr=1e10).diverged} == set(SEEDS)
    twice = train(train(mlp(), huge, lr=1e10), data)
    assert [bad.step for bad in twice.diverged] == [1, 1, 1]  # once each, by the step that failed first


def test_divergence_survives_an_interruption(tmp_path: Path) -> None:
    data = images()
    huge = Images(data.pixels.float() * 1e30, data.labels, data.ids, 10)
    whole = train(mlp(), huge, lr=1e10)
    with pytest.raises(Interrupted):
        train(mlp(), huge, lr=1e10, progress=Progress(tmp_path, every=0), watch=[interrupt(9, [])])
    again = train(mlp(), huge, lr=1e10, progress=Progress(tmp_path, every=0))
    assert str(again.diverged) == str(whole.diverged)


# ---------------------------------------------------------------- sharpness, precision, weights kept on the way


def test_sharpness_takes_the_gradient_where_the_loss_grew() -> None:
    """Against SAM written out with torch for one model: two steps, one momentum for the whole run."""
    stack, data = mlp((4,)), images()
    stream = Shuffled(data, 5, (4,), "order")
    module = stack.member(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        batch = stream(step)
        for rho in (0.5, None):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(batch.images[0]), batch.labels[0]).backward()
            if rho is not None:
                start = [p.detach().clone() for p in module.parameters()]
                norm = torch.cat([p.grad.flatten() for p in module.parameters()]).norm()
                with torch.no_grad():
                    for p in module.parameters():
                        p.add_(rho * p.grad / norm)
        with torch.no_grad():
            for p, before in zip(module.parameters(), start, strict=True):
                p.copy_(before)
        optimizer.step()
    found = fit(stack, stream, cross_entropy, lr=0.1, optimizer=Sgd(weight_decay=0.0), steps=3, sharpness=0.5)
    for name, p in module.named_parameters():
        assert torch.allclose(found.params[name][0], p, atol=1e-6)


@pytest.mark.parametrize("make", [mlp, lambda *a: cnn(*a, norm="batch"), dropping])
def test_sharpness_is_per_member(make: Callable[..., Stack]) -> None:
    together = train(make(), sharpness=0.3)
    for k, seed in enumerate(SEEDS):
        alone = train(make((seed,)), sharpness=0.3)
        for name, tensor in tensors(alone).items():
            assert torch.allclose(tensors(together)[name][k], tensor[0], atol=2e-5), name


def test_averages_of_batch_norm_follow_the_first_pass_alone() -> None:
    stack = cnn((1,), norm="batch")
    plain, sharp = (train(stack, steps=1, sharpness=rho) for rho in (0.0, 0.3))
    assert not same(plain, sharp)
    for name, buffer in plain.buffers.items():
        assert buffer.equal(sharp.buffers[name]), name


def test_sharpness_moves_no_closed_weight() -> None:
    """Closed weights neither move nor count in the length of the climb: the model may as well not have them."""
    stack = mlp((1,))
    mask = Mask({name: torch.full_like(p, name.startswith(("3", "4")), dtype=torch.bool) for name, p in stack.params.items()}, "")
    found = train(stack, sharpness=0.3, mask=mask, steps=4)
    for name, p in stack.params.items():
        assert found.params[name].equal(p) == (not bool(mask.open[name].any())), name
    seen: list[float] = []

    def loss(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        seen.append(float(sum((net.params[name].detach() - stack.params[name][0]).square().sum() for name in net.params) ** 0.5))
        return cross_entropy(net, batch, aux)

    train(stack, sharpness=0.3, mask=mask, steps=1, loss=loss)
    assert seen == [0.0, pytest.approx(0.3, rel=1e-4)]


def test_half_precision_stays_near_and_weights_stay_whole() -> None:
    found = {precision: train(cnn(), steps=4, precision=precision) for precision in ("float32", "tf32", "bfloat16")}
    assert same(found["float32"], found["tf32"])  # which means something on an accelerator only
    assert not same(found["float32"], found["bfloat16"])
    for name, p in found["bfloat16"].params.items():
        assert p.dtype == torch.float32
        assert torch.allclose(p, found["float32"].params[name], atol=0.02), name


def test_weights_kept_on_the_way_are_those_of_a_shorter_run(tmp_path: Path) -> None:
    held: dict[int, Stack] = {}
    keep = {steps: lambda stack, steps=steps: held.setdefault(steps, stack) for steps in (3, 7)}
    final = train(cnn(norm="batch"), keep=keep, steps=9)
    for steps, stack in held.items():
        assert same(stack, train(cnn(norm="batch"), steps=steps))
    assert same(train(cnn(norm="batch"), steps=9), final)
    assert sorted(held) == [3, 7]


def test_smoothing_and_class_weights_go_together_in_a_stack() -> None:
    """torch's own loss has no batching rule for both at once."""
    data = images(20)
    recipe = Recipe(epochs=2, batch=5, label_smoothing=0.1, class_weights="inverse")
    together = recipe(mlp(), data)
    for k in range(len(together)):
        close(together.rows([k]), recipe(mlp().rows([k]), data))
    batch = Batch(torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6))
    weight = torch.tensor([1.0, 2.0, 3.0, 0.5])
    theirs = torch.nn.functional.cross_entropy(batch.images, batch.labels, weight=weight, label_smoothing=0.2)
    assert float(weighted_cross_entropy(0.2, weight)(lambda x: x, batch, {})) == pytest.approx(float(theirs), rel=1e-6)  # type: ignore[arg-type]


def test_smoothed_and_weighted_cross_entropy_by_hand() -> None:
    """Logits (2, 0) and (0, 0), labels 0 and 1, weights 3 and 1."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    batch = Batch(logits, torch.tensor([0, 1]), torch.arange(2))
    first, second = math.log(1 + math.exp(-2)), math.log(2)

    def value(smoothing: float, weight: Tensor | None) -> float:
        return float(weighted_cross_entropy(smoothing, weight)(lambda x: x, batch, {}))

    assert value(0.0, None) == pytest.approx((first + second) / 2)
    assert value(0.0, torch.tensor([3.0, 1.0])) == pytest.approx((3 * first + second) / 4)
    # with smoothing s the target of the first is (1 - s/2, s/2), so its loss grows by s/2 times the gap of 2
    assert value(0.2, None) == pytest.approx((first + 0.1 * 2 + second) / 2)


def test_augmented_batches_keep_their_labels_and_differ_by_step_and_member() -> None:
    data = images()
    plain = Shuffled(data, 5, SEEDS, "order")
    flipping = Shuffled(data, 5, SEEDS, "order", augment=(Flip(),))
    seen = []
    for step in range(6):
        before, after = plain(step), flipping(step)
        assert after.labels.equal(before.labels)
        assert after.ids.equal(before.ids)
        mirrored = (after.images == before.images.flip(-1)).flatten(2).all(-1)
        assert (mirrored | (after.images == before.images).flatten(2).all(-1)).all()
        seen.append(mirrored)
        assert flipping(step).images.equal(after.images)
    share = torch.cat([one.flatten() for one in seen]).float().mean()
    assert 0.3 < share < 0.7
    assert len({tuple(row.tolist()) for one in seen[:4] for row in one}) > 6
    alone = Shuffled(data, 5, SEEDS[1:2], "order", augment=(Flip(),))
    assert alone(2).images[0].equal(flipping(2).images[1])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
def test_compiled_training_is_the_same_training() -> None:
    """Weights and BatchNorm's averages, for one model; stacked models do not go through the compiler."""
    plain, compiled = (train(cnn((1,), norm="batch"), steps=3, compiled=flag) for flag in (False, True))
    for name, tensor in tensors(plain).items():
        assert torch.allclose(tensor, tensors(compiled)[name], atol=1e-5), name
    assert same(train(cnn(), steps=2), train(cnn(), steps=2, compiled=True))


@pytest.mark.parametrize("optimizer", [Adam(), AdamW(weight_decay=0.0)])
@pytest.mark.parametrize("start", [0, 49])
def test_a_run_that_starts_later_starts_with_fresh_moments(start: int, optimizer: Optimizer) -> None:
    """Adam's first step is as long as the rate, whatever number the step bears in the schedule."""
    toy, kept = make_toy("small_cnn"), list[Stack]()
    recipe = Recipe(epochs=50, batch=60, optimizer=optimizer, lr=0.01, schedule=Constant(), rewind=start + 1)
    recipe(toy.init, toy.split.train, start=start, at_rewind=kept.append)
    moved = torch.cat([(kept[0].params[name] - p).abs().flatten() for name, p in toy.init.params.items()])
    assert float(moved.median()) == pytest.approx(0.01, rel=0.01)
