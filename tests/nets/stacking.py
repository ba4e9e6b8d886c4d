"""What every larger network must hold to, whatever its layers: asked of each by its own test file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unlearnlab.fit import Batch, cross_entropy, fit
from unlearnlab.optimizers import Sgd
from unlearnlab.spec import build
from unlearnlab.stack import Stack, blocks

DOUBLE = torch.float64


def one_stacked_step_is_two_separate_steps(spec: Any, side: int, count: int) -> None:
    """Parameters and buffers after a step on members with weights and images of their own; and logits in eval mode.

    The step is compared in double precision: at their first weights deep nets have ReLUs near their edge, and one that
    rounding tips over moves gradients by a percent in single precision (plain torch against itself, with and without oneDNN).
    """
    draw = torch.Generator().manual_seed(0)
    single = Stack.init(build("net", spec)((3, side, side), 10, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)), (1, 2))
    seen = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=draw)
    logits = single.logits(seen)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, single.logits(seen))
    alone = torch.stack([single.member(k)(seen).detach() for k in range(2)])
    torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))

    stack = single.having(_double(single.params), _double(single.buffers))
    images, labels = torch.rand(2, count, 3, side, side, generator=draw, dtype=DOUBLE), torch.arange(2 * count).view(2, count) % 10
    both = _step(stack, images, labels)
    for k in range(2):
        one = _step(stack.rows([k]), images[k : k + 1], labels[k : k + 1])
        for name, tensor in (one.params | one.buffers).items():
            torch.testing.assert_close((both.params | both.buffers)[name][k], tensor[0], rtol=1e-9, atol=1e-11)
    still = [name for name, tensor in both.params.items() if tensor[0].dim() > 1 and torch.equal(tensor, stack.params[name])]
    still += [name for name, tensor in both.buffers.items() if torch.equal(tensor, stack.buffers[name])]
    assert not still


def forward_order_is_the_order_of_a_forward_pass(net: nn.Module, shape: tuple[int, int, int]) -> None:
    found = blocks(net)  # refuses what does not cover every parameter once
    assert all(found)
    called: list[str] = []
    order: Any = net.forward_order
    for name in order:
        net.get_submodule(name).register_forward_pre_hook(lambda module, given, name=name: called.append(name))
    net.eval()(torch.zeros(1, *shape, dtype=torch.uint8))
    assert tuple(called) == order


def initialisation_follows_the_seed(net: nn.Module) -> None:
    once, again = Stack.init(net, (3, 4)), Stack.init(net, (4,))
    assert all(torch.equal(tensor[0], once.params[name][1]) for name, tensor in again.params.items())
    assert not any(torch.equal(tensor[0], tensor[1]) for tensor in once.params.values() if tensor[0].dim() > 1)
    assert all(int(tensor.sum()) == 0 for name, tensor in once.buffers.items() if name.endswith("num_batches_tracked"))


def weights(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(DOUBLE) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _step(stack: Stack, images: Tensor, labels: Tensor) -> Stack:
    return fit(stack, lambda step: Batch(images, labels, labels), cross_entropy, lr=0.1, optimizer=Sgd(), steps=1)
