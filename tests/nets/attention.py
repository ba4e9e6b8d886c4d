"""What every net must hold to: blocks in forward order, the head found, a reproducible start, stacked as apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlearnlab.data.images import Images
from unlearnlab.fit import Shuffled, cross_entropy, fit
from unlearnlab.optimizers import Sgd
from unlearnlab.stack import Stack, blocks, head_names


def weights(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def some_images(shape: tuple[int, int, int], count: int, classes: int = 10) -> Images:
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(pixels, torch.arange(count) % classes, torch.arange(count), classes)


def assert_blocks_in_forward_order(net: nn.Module, shape: tuple[int, int, int]) -> None:
    """Modules with parameters of their own fire in the order of ``blocks``, each once."""
    fired: list[str] = []
    for name, module in net.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda module, given, found, name=name: fired.append(name))
    with torch.no_grad():
        net.eval()(torch.zeros(1, *shape))
    assert [{name.rpartition(".")[0] for name in block} for block in blocks(net)] == [{name} for name in fired]


def assert_starts_reproducibly(net: nn.Module, head: str) -> Stack:
    """Two members with one seed are equal; with two seeds all that is drawn differs; the head is found."""
    torch.manual_seed(0)
    stack = Stack.init(net, (1, 2))
    torch.manual_seed(1)
    again = Stack.init(net, (1,))
    for name, tensor in stack.params.items():
        assert torch.equal(again.params[name][0], tensor[0]), name
        assert tensor.isfinite().all()
        drawn = bool((tensor[0] != tensor[0].flatten()[0]).any())
        assert drawn == (not torch.equal(tensor[0], tensor[1])), name
    assert {name.rpartition(".")[0] for name in head_names(stack)} == {head}
    return stack


def assert_stacked_is_apart(stack: Stack, data: Images, batch: int = 3, *, rtol: float = 1e-4, atol: float = 1e-5) -> Stack:
    """One step of all members at once is one step of plain SGD on each; so are logits of all at once."""
    stream = Shuffled(data, batch, stack.seeds, "order")
    found = fit(stack, stream, cross_entropy, lr=0.1, optimizer=Sgd(), steps=1)
    for k in range(len(stack)):
        given, model = stream(0), stack.member(k).train()
        nn.functional.cross_entropy(model(given.images[k]), given.labels[k]).backward()
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4).step()
        assert_holds(found, k, model, rtol, atol)
    with torch.no_grad():
        logits = found.logits(data.pixels[:2])
        for k in range(len(stack)):
            torch.testing.assert_close(logits[k], found.member(k)(data.pixels[:2]), rtol=rtol, atol=atol)
    assert not torch.equal(found.params[next(iter(found.params))], stack.params[next(iter(stack.params))])
    return found


def assert_holds(stack: Stack, k: int, model: nn.Module, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Member k has these parameters and buffers."""
    own: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in own.items():
        torch.testing.assert_close(
            (stack.params | stack.buffers)[name][k], tensor.detach(), rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
