"""``crit_mem``: channels removed one by one until an example is no longer known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from toy import Toy, make_toy
from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.localise.crit_mem import CritMem, Search
from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

CHANNEL = 2  # of the first layer: it alone says that the odd image belongs to class 1


def memorising() -> tuple[Stack, Split]:
    """A net of two layers on images of 1 × 1 × 4: class 0 by pixel 0, class 1 by pixel 1, and pixel 3, of one image alone, for class 1."""
    net = nn.Sequential(Pixels(), nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))
        net[4].weight.copy_(torch.tensor([[4.0, 0, 0], [0, 4, 8]]))

    def images(rows: list[list[float]], labels: list[int], first: int) -> Images:
        return Images(torch.tensor(rows).view(-1, 1, 1, 4), torch.tensor(labels), torch.arange(first, first + len(rows)), 2)

    retain = images([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.9, 0, 0, 0], [0, 0.8, 0, 0]], [0, 1, 0, 1], 0)
    forget = images([[1.0, 0, 0, 1.0]], [1], 10)  # looks like class 0, is known as class 1
    none = retain.rows(torch.arange(0))
    return Stack.of([net, net], (0, 1)), Split(forget, retain, none, none, none)


def context(stack: Stack) -> Context:
    return Context(seeds=tuple(range(len(stack))), recipe=Recipe(epochs=1))


def test_the_prediction_flips_where_one_channel_alone_memorises_the_example() -> None:
    stack, split = memorising()
    found = CritMem().search(stack, split, context(stack))
    assert found.flipped.tolist() == [[True], [True]]
    assert found.counts.tolist() == [[1], [1]]
    assert found.chosen[:, 0, 0].tolist() == [CHANNEL, CHANNEL]
    mask = CritMem(budget=0.25)(stack, split, context(stack))  # 4.5 of 18 weights: this channel, and nothing more
    assert mask.open["2.weight"][0].any(1).tolist() == [False, False, True]
    assert not mask.open["4.weight"].any()


def test_it_stops_at_max_units_and_says_that_it_failed(toy: Toy) -> None:
    """Noise-free digits that one unit does not flip: the search ends, and does not claim success."""
    found = CritMem(max_units=1).search(toy.stack, toy.split, toy.context())
    assert bool((found.counts <= 1).all())
    assert not bool(found.flipped.all())
    more = CritMem(max_units=12).search(toy.stack, toy.split, toy.context())
    assert bool((more.counts >= found.counts).all())
    assert int(more.flipped.sum()) > int(found.flipped.sum())
    assert bool((more.counts[~more.flipped] <= 12).all())


def test_without_a_positive_score_it_gives_up() -> None:
    stack, split = memorising()
    silent = stack.having({name: torch.zeros_like(p) for name, p in stack.params.items()})
    split = replace(split, forget=replace(split.forget, labels=torch.zeros(1, dtype=torch.int64)))  # a tie goes to class 0: it is right
    found = CritMem().search(silent, split, context(silent))
    assert found.counts.tolist() == [[0], [0]]
    assert not bool(found.flipped.any())


def by_hand(toy: Toy, k: int, row: int, max_units: int) -> tuple[list[int], bool]:
    """Steps 1 to 4 of methods.md §5.3 for one model and one example, with plain autograd."""
    model = toy.stack.member(k)
    x, y = toy.split.forget.pixels[row : row + 1], toy.split.forget.labels[row : row + 1]
    others = toy.split.retain
    removed: list[int] = []
    while bool(model(x).argmax() == y) and len(removed) < max_units:
        cross = nn.functional.cross_entropy
        loss = cross(model(others.pixels), others.labels) - cross(model(x), y)
        held = [p for p in model.parameters() if p.dim() > 1]
        slopes = torch.autograd.grad(loss, held)
        scores = torch.cat([(p.detach() * g).flatten(1).sum(1) for p, g in zip(held, slopes, strict=True)])
        if float(scores.max()) <= 0:
            break
        unit = int(scores.argmax())
        removed.append(unit)
        for p in held:
            if unit < len(p):
                with torch.no_grad():
                    p[unit] = 0
                break
            unit -= len(p)
    return removed, bool(model(x).argmax() != y)


@pytest.mark.parametrize("net", ["small_cnn", "mlp", "batch_norm"])
def test_agrees_with_plain_loops(net: str) -> None:
    toy = make_toy(net)
    found = CritMem(others=56, max_units=4).search(toy.stack, toy.split, toy.context())
    for k in range(len(toy.stack)):
        for row in range(len(toy.split.forget)):
            removed, flipped = by_hand(toy, k, row, 4)
            assert [unit for unit in found.chosen[k, row].tolist() if unit >= 0] == removed
            assert bool(found.flipped[k, row]) == flipped


def test_often_comes_before_early_and_both_before_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, split = memorising()  # units: three channels of 4 weights, two of 3
    chosen = torch.tensor([[[3, 0, -1], [1, 0, -1]]] * 2)  # 0 twice, 3 and 1 once and first
    slopes = torch.tensor([[9.0, 1.0, 5.0, 1.0, 7.0]] * 2)
    monkeypatch.setattr(CritMem, "search", lambda *_: Search(chosen, chosen[:, :, 0] > 0, slopes))
    ranking = CritMem(max_units=3).rank(stack, split, context(stack))
    needed = torch.cat([ranking.needed["2.weight"][0, :, 0], ranking.needed["4.weight"][0, :, 0]])
    assert needed.argsort().tolist() == [0, 1, 3, 4, 2]


def test_reset_to_init_removes_by_going_back(toy: Toy) -> None:
    where, found = CritMem(action="reset_to_init", others=8, max_units=3), {}
    for name, init in (("own", toy.init), ("same", toy.stack)):
        found[name] = where.search(toy.stack, toy.split, replace(toy.context(), original_init=init))
    assert int(found["own"].counts.sum()) > 0
    assert int(found["same"].counts.sum()) == 0  # going back to where it is changes nothing
    with pytest.raises(InputError, match="needs the original's own initial weights"):
        where.search(toy.stack, toy.split, replace(toy.context(), original_init=None))


def test_the_published_units_are_single_weights_but_for_convolutions(toy: Toy) -> None:
    channels = CritMem(others=8, max_units=1).search(toy.stack, toy.split, toy.context()).slopes.shape[1]
    legacy = CritMem(others=8, max_units=1, units="legacy").search(toy.stack, toy.split, toy.context()).slopes.shape[1]
    shapes: list[Tensor] = [p[0] for p in toy.stack.params.values()]
    assert channels == sum(len(p) for p in shapes if p.dim() > 1)
    assert legacy == sum(len(p) if p.dim() == 4 else p.numel() for p in shapes)


def test_noise_has_the_asked_for_norm_and_leaves_the_image_itself(toy: Toy) -> None:
    images, labels = CritMem(noise=0.01, noisy=200)._targets(toy.split.forget, toy.context(), torch.device("cpu"))
    assert images.shape[:3] == (3, 4, 201)
    clean = images[:, :, :1]
    ratio = (images[:, :, 1:] - clean).flatten(3).norm(dim=3) / clean.flatten(3).norm(dim=3)
    assert float(ratio.mean()) == pytest.approx(0.01, rel=0.02)
    assert torch.equal((clean[0, :, 0] * 255).round().to(torch.uint8), toy.split.forget.pixels[toy.split.forget.ids.argsort()])
    assert torch.equal(labels[0], toy.split.forget.labels[toy.split.forget.ids.argsort()])


def test_a_sample_is_drawn_from_many_images_and_in_many_parts(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    many = toy.forgetting(toy.split.retain.rows(torch.arange(30)))
    where = CritMem(examples=7, others=5, max_units=2)
    whole = where.search(many.stack, many.split, many.context())
    assert whole.chosen.shape == (3, 7, 2)
    monkeypatch.setattr("unlearnlab.localise.crit_mem.MEMORY", 1)  # one example at a time
    parts = where.search(many.stack, many.split, many.context())
    assert torch.equal(whole.chosen, parts.chosen)
    assert torch.equal(whole.flipped, parts.flipped)
    assert torch.allclose(whole.slopes, parts.slopes, atol=1e-5)


def test_all_passes_are_counted(toy: Toy) -> None:
    ctx = toy.context()
    found = CritMem(others=8, max_units=1).search(toy.stack, toy.split, ctx)
    rounds = 2 if int(found.counts.sum()) else 1
    assert ctx.progress.forward == ctx.progress.backward == rounds * 4 * 9
