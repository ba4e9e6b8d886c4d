"""Gradients over a set of images, against loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unlearnlab import gradients
from unlearnlab.data.images import Images
from unlearnlab.gradients import mean_squared_gradient, summed_gradient
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.progress import Progress
from unlearnlab.stack import Stack

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
