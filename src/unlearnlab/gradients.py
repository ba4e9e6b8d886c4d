"""Gradients of a loss over a set of images, for every member at once: sums, and per-example squares.

Eval mode, no augmentation, every example exactly once. No optimiser: nothing here trains.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from unlearnlab.data.images import Images
from unlearnlab.grouped import call_alone, call_member
from unlearnlab.progress import Progress
from unlearnlab.stack import Stack, Tensors, in_mode

MEMORY = 256 * 2**20  # bytes of per-example gradients held at a time


def summed_gradient(stack: Stack, images: Images, progress: Progress, *, batch: int = 256) -> Tensors:
    """Σ over images of ∂ cross-entropy / ∂θ, per member: name -> [K, *shape]. Independent of batch size and order."""
    net = in_mode(stack.net, "eval_all")
    leaves = {name: p.detach().requires_grad_() for name, p in stack.params.items()}
    total = {name: torch.zeros_like(p) for name, p in stack.params.items()}

    def one(params: Tensors, buffers: Tensors, pixels: Tensor, labels: Tensor) -> Tensor:
        call = call_alone if len(stack) == 1 else call_member
        return torch.nn.functional.cross_entropy(call(net, params | buffers, pixels), labels, reduction="sum")

    for at in range(0, len(images), batch):
        pixels, labels = images.pixels[at : at + batch].to(stack.device), images.labels[at : at + batch]
        with torch.enable_grad():
            if len(stack) == 1:
                loss = one({n: p[0] for n, p in leaves.items()}, {n: b[0] for n, b in stack.buffers.items()}, pixels, labels)
            else:
                loss = torch.vmap(one, in_dims=(0, 0, None, None))(leaves, stack.buffers, pixels, labels).sum()
            grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        for name, g in zip(total, grads, strict=True):
            total[name] += g
        progress.seen(len(labels), len(labels))
    return total


def mean_squared_gradient(stack: Stack, images: Images, progress: Progress) -> Tensors:
    """Mean over images of (∂ cross-entropy of that image / ∂θ)², per member: name -> [K, *shape].

    Per-example gradients by ``vmap(grad)``, as many at a time as ``MEMORY`` holds.
    """
    net = in_mode(stack.net, "eval_all")
    weights = sum(p.numel() for p in stack.params.values())
    size = max(1, min(len(images), MEMORY // (4 * weights)))
    total = {name: torch.zeros_like(p) for name, p in stack.params.items()}

    def one(params: Tensors, buffers: Tensors, pixels: Tensor, label: Tensor) -> Tensor:
        logits = call_alone(net, params | buffers, pixels.unsqueeze(0))
        return torch.nn.functional.cross_entropy(logits, label.unsqueeze(0))

    def squares(params: Tensors, buffers: Tensors, pixels: Tensor, labels: Tensor) -> Tensors:
        each = torch.vmap(grad(one), in_dims=(None, None, 0, 0))(params, buffers, pixels, labels)
        return {name: g.square().sum(0) for name, g in each.items()}

    for at in range(0, len(images), size):
        pixels, labels = images.pixels[at : at + size].to(stack.device), images.labels[at : at + size]
        found = torch.vmap(squares, in_dims=(0, 0, None, None))(stack.params, stack.buffers, pixels, labels)
        for name, value in found.items():
            total[name] += value
        progress.seen(len(labels), len(labels))
    return {name: value / len(images) for name, value in total.items()}
