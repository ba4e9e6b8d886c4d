"""Gradients over a set of images, against loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unlearnlab import gradients
from unlearnlab.data.images import Images
from unlearnlab.gradients import drawn_rows, fisher_information, fisher_product, gradient_rows, mean_squared_gradient, summed_gradient
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.nets.vit import VitSmallData
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.stack import Stack, flat

SHAPE = (1, 8, 8)


def images(n: int = 11) -> Images:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=draw)
    return Images(pixels, torch.randint(0, 10, (n,), generator=draw), torch.arange(n), 10)


def stack_of(net: nn.Module, seeds: tuple[int, ...]) -> Stack:
    stack, draw = Stack.init(net, seeds), torch.Generator().manual_seed(1)
    return stack.having(buffers={n: b + torch.rand(b.shape, generator=draw) if b.is_floating_point() else b for n, b in stack.buffers.items()})


MAKES: list[Callable[[tuple[int, ...]], Stack]] = [
    lambda seeds: stack_of(Mlp(hidden=(9,))(SHAPE, 10), seeds),
    lambda seeds: stack_of(SmallCnn(widths=(4, 4, 6))(SHAPE, 10), seeds),
    lambda seeds: stack_of(SmallCnn(widths=(4, 4, 6), norm="batch")(SHAPE, 10), seeds),
    lambda seeds: stack_of(nn.Sequential(*Mlp(hidden=(9,))(SHAPE, 10), nn.Dropout(0.9)), seeds),  # eval mode: it drops nothing
]

VIT = VitSmallData(patch=4, dim=8, depth=1, heads=2, head_dim=4, mlp=8)
EACH = [*MAKES, lambda seeds: stack_of(VIT(SHAPE, 10), seeds)]


def loop(stack: Stack, data: Images, combine: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Σ over images of ``combine(gradient of that image)``, one model and one image at a time."""
    total = {name: torch.zeros_like(p) for name, p in stack.params.items()}
    for k in range(len(stack)):
        model = stack.member(k)
        for row in range(len(data)):
            model.zero_grad()
            nn.functional.cross_entropy(model(data.pixels[row : row + 1]), data.labels[row : row + 1]).backward()
            for name, p in model.named_parameters():
                total[name][k] += combine(p.grad)
    return total


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("seeds", [(4,), (4, 5, 6)])
def test_against_a_loop_over_models_and_images(make: Callable[[tuple[int, ...]], Stack], seeds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    stack, data = make(seeds), images()
    before, progress = stack.fingerprint, Progress()
    torch.testing.assert_close(summed_gradient(stack, data, progress), loop(stack, data, lambda g: g), rtol=1e-4, atol=1e-5)
    assert (progress.forward, progress.backward) == (11, 11)
    squares = {name: total / len(data) for name, total in loop(stack, data, torch.square).items()}
    torch.testing.assert_close(mean_squared_gradient(stack, data, progress), squares, rtol=1e-4, atol=1e-7)
    assert (progress.forward, progress.backward) == (22, 22)
    weights = sum(p.numel() for p in stack.params.values())
    monkeypatch.setattr(gradients, "MEMORY", 4 * weights * 3)  # three images at a time, the last time two
    torch.testing.assert_close(mean_squared_gradient(stack, data, Progress()), squares, rtol=1e-4, atol=1e-7)
    stack.__dict__.pop("fingerprint")
    assert stack.fingerprint == before
    assert not any(p.requires_grad for p in stack.params.values())


@pytest.mark.parametrize("make", MAKES[:3])
def test_batch_size_and_order_do_not_matter(make: Callable[[tuple[int, ...]], Stack]) -> None:
    stack, data = make((1, 2)), images()
    shuffled = data.rows(torch.randperm(11, generator=torch.Generator().manual_seed(2)))
    for measure in (lambda d: summed_gradient(stack, d, Progress(), batch=4), lambda d: mean_squared_gradient(stack, d, Progress())):
        torch.testing.assert_close(measure(data), measure(shuffled), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summed_gradient(stack, data, Progress(), batch=4), summed_gradient(stack, data, Progress()), rtol=1e-4, atol=1e-5)


def test_a_weight_that_nothing_uses_has_gradient_zero() -> None:
    class Spare(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)
            self.spare = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1).float())

    stack = Stack.init(Spare(), (0, 1))
    found = summed_gradient(stack, images(), Progress())
    assert (found["spare.weight"] == 0).all()
    assert (found["weight"] != 0).any()


def fisher_loop(stack: Stack, data: Images, rows: Tensor | None, batch: int) -> dict[str, Tensor]:
    """Mean over batches of Σ_c p̄_c (∂ mean(−log p_c))², one model, one batch and one class at a time."""
    total = {name: torch.zeros_like(p) for name, p in stack.params.items()}
    for k in range(len(stack)):
        model, mine = stack.member(k), data if rows is None else data.rows(rows[k])
        batches = mine.pixels.split(batch)
        for pixels in batches:
            log_p = model(pixels).log_softmax(1)
            for c in range(10):
                slopes = torch.autograd.grad(-log_p[:, c].mean(), list(model.parameters()), retain_graph=True)
                for (name, _), g in zip(model.named_parameters(), slopes, strict=True):
                    total[name][k] += log_p[:, c].exp().mean().detach() * g.square() / len(batches)
    return total


@pytest.mark.parametrize("make", EACH)
@pytest.mark.parametrize("seeds", [(4,), (4, 5)])
@pytest.mark.parametrize("batch", [1, 4])
def test_fisher_information_against_a_loop(
    make: Callable[[tuple[int, ...]], Stack], seeds: tuple[int, ...], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of four: two whole ones and a short one of three."""
    stack, data, progress = make(seeds), images(), Progress()
    plain = fisher_loop(stack, data, None, batch)
    torch.testing.assert_close(fisher_information(stack, data, progress, batch=batch), plain, rtol=1e-3, atol=1e-7)
    assert (progress.forward, progress.backward) == (11, 110)
    for held in (25, 3):  # two images at a time with all classes; three classes of one image
        monkeypatch.setattr(gradients, "MEMORY", 4 * sum(p.numel() for p in stack.params.values()) * held)
        torch.testing.assert_close(fisher_information(stack, data, progress, batch=batch), plain, rtol=1e-3, atol=1e-7)
    assert (progress.forward, progress.backward) == (33, 330)  # memory does not change the cost


def test_fisher_information_is_the_closed_form_of_logistic_regression() -> None:
    """F of the weight of class c at input j: the mean of p_c (1 − p_c) x_j²."""
    stack, data = stack_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)), (1, 2)), images()
    data = Images(data.pixels.float() / 255, data.labels, data.ids, 10)
    p = stack.logits(data.pixels).softmax(-1)
    expected = torch.einsum("knc,nj->kcj", p * (1 - p), data.pixels.flatten(1).square()) / 11
    torch.testing.assert_close(fisher_information(stack, data, Progress())["1.weight"], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("make", EACH)
def test_squares_of_batch_means_against_a_loop(make: Callable[[tuple[int, ...]], Stack]) -> None:
    stack, data, progress = make((4, 5)), images(), Progress()
    found = mean_squared_gradient(stack, data, progress, batch=4)
    assert (progress.forward, progress.backward) == (11, 11)
    expected = {name: torch.zeros_like(p) for name, p in stack.params.items()}
    for k in range(2):
        model = stack.member(k)
        for at in (0, 4, 8):
            loss = nn.functional.cross_entropy(model(data.pixels[at : at + 4]), data.labels[at : at + 4])
            for (name, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                expected[name][k] += g.square() / 3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("make", EACH)
@pytest.mark.parametrize("seeds", [(4,), (4, 5)])
def test_rows_and_products(make: Callable[[tuple[int, ...]], Stack], seeds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    stack, data, progress = make(seeds), images(), Progress()
    weights = sum(p[0].numel() for p in stack.params.values())
    monkeypatch.setattr(gradients, "MEMORY", 4 * len(seeds) * weights * 4)
    pieces = list(gradient_rows(stack, data, progress))
    assert [piece.shape for piece in pieces] == [(len(seeds), n, weights) for n in (4, 4, 3)]
    assert (progress.forward, progress.backward) == (11, 11)
    g = torch.cat(pieces, 1)
    torch.testing.assert_close(g.sum(1), flat(summed_gradient(stack, data, Progress())), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(g.square().mean(1), flat(mean_squared_gradient(stack, data, Progress())), rtol=1e-3, atol=1e-6)
    v = torch.randn(len(seeds), weights, generator=torch.Generator().manual_seed(3))
    expected = torch.einsum("knp,kn->kp", g, torch.einsum("knp,kp->kn", g, v)) / 11
    for batch in (256, 4):
        progress = Progress()
        found = fisher_product(stack, data, v, progress, batch=batch)
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
        assert (progress.forward, progress.backward) == (22, 11)


@pytest.mark.parametrize("make", [EACH[2], EACH[4]])
def test_each_member_may_look_at_images_of_its_own(make: Callable[[tuple[int, ...]], Stack]) -> None:
    stack, data = make((4, 5)), images()
    rows = drawn_rows(data, 5, (8, 9))
    assert rows is not None
    assert rows.tolist() == [torch.randperm(11, generator=generator(seed, "sample"))[:5].sort().values.tolist() for seed in (8, 9)]
    assert rows[0].tolist() != rows[1].tolist()
    assert drawn_rows(data, 11, (8, 9)) is None
    v = torch.randn(2, sum(p[0].numel() for p in stack.params.values()), generator=torch.Generator().manual_seed(3))
    measures: list[Callable[[Stack, Images, Tensor | None, Tensor], Tensor]] = [
        lambda s, d, r, v: flat(fisher_information(s, d, Progress(), rows=r)),
        lambda s, d, r, v: flat(fisher_information(s, d, Progress(), rows=r, batch=2)),
        lambda s, d, r, v: flat(mean_squared_gradient(s, d, Progress(), rows=r)),
        lambda s, d, r, v: flat(mean_squared_gradient(s, d, Progress(), rows=r, batch=2)),
        lambda s, d, r, v: torch.cat(list(gradient_rows(s, d, Progress(), rows=r)), 1),
        lambda s, d, r, v: fisher_product(s, d, v, Progress(), rows=r),
    ]
    for measure in measures:
        together = measure(stack, data, rows, v)
        for k in range(2):
            alone = measure(stack.rows([k]), data.rows(rows[k]), None, v[k : k + 1])
            torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-3, atol=1e-6)
