"""Gradients of a loss over a set of images, for every member at once: sums, one by one, their squares, Fisher information and its products.

Eval mode, no augmentation, every example exactly once. No optimiser: nothing here trains. Gradients of single examples come from
``vmap(grad)``, as many at a time as ``MEMORY`` holds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import grad, jvp, vjp

from unlearnlab.data.images import Images
from unlearnlab.grouped import call_alone, call_member
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.stack import Stack, Tensors, flat, head_names, in_mode, unflat

MEMORY = 256 * 2**20  # bytes of per-example gradients held at a time
EXAMPLES = 4096  # images of all members and classes that are on their way through the nets at a time

Rows = Int64[Tensor, "k n"] | None  # which of the images each member looks at; None: all of them


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


def mean_squared_gradient(stack: Stack, images: Images, progress: Progress, *, rows: Rows = None, batch: int = 1) -> Tensors:
    """Mean over images of (∂ cross-entropy of that image / ∂θ)², per member: name -> [K, *shape].

    ``rows``: each member's own images. ``batch`` > 1: the mean over batches of that many images, in order, of the squared gradient
    of the batch's mean, which falls with the batch size: for published numbers only.
    """
    one = _mean_cross_entropy(stack)
    total = {name: torch.zeros_like(p) for name, p in stack.params.items()}

    def squares(params: Tensors, buffers: Tensors, pixels: Tensor, labels: Tensor) -> Tensors:
        each = torch.vmap(grad(one), in_dims=(None, None, 0, 0))(params, buffers, pixels, labels)
        return {name: g.square().sum(0) for name, g in each.items()}

    at_once = max(1, min(_room(stack), EXAMPLES // (len(stack) * batch)))
    for pixels, labels in _units(stack, images, rows, batch, at_once):
        _add(total, _each_member(squares, stack, rows, pixels, labels))
        seen = labels.shape[-2] * labels.shape[-1]
        progress.seen(seen, seen)
    return {name: value / math.ceil(_count(images, rows) / batch) for name, value in total.items()}


def fisher_information(stack: Stack, images: Images, progress: Progress, *, rows: Rows = None, batch: int = 1) -> Tensors:
    """Diagonal of the Fisher information, F_j = mean over x of Σ_c p_c(x)·(∂_j(−log p_c(x)))², per member: name -> [K, *shape].

    The true labels are not read. ``rows``: each member's own images. ``batch`` > 1: the mean over batches of Σ_c p̄_c·(∂_j mean(−log p_c))²,
    p̄ the batch's mean probabilities: another quantity, for published numbers only. One pass forward, C backward.
    """
    net = in_mode(stack.net, "eval_all")
    classes = stack.params[head_names(stack)[0]].shape[1]
    room = _room(stack)
    at_once = max(1, min(room // classes, EXAMPLES // (len(stack) * batch * classes)))
    together = max(1, min(classes, room // at_once))
    total = {name: torch.zeros_like(p) for name, p in stack.params.items()}

    def one(params: Tensors, buffers: Tensors, pixels: Tensor) -> Tensors:
        def mean_log_p(params: Tensors) -> tuple[Tensor, Tensor]:
            log_p = call_alone(net, params | buffers, pixels).log_softmax(1)
            return log_p.mean(0), log_p.detach().exp().mean(0)

        outcome: Any = vjp(mean_log_p, params, has_aux=True)
        _, pull, p = outcome
        found = {name: torch.zeros_like(weights) for name, weights in params.items()}
        for some in torch.split(torch.diag_embed(p.sqrt()), together):  # (√p·∂)² = p·∂²
            found = {name: found[name] + g.square().sum(0) for name, g in torch.vmap(pull)(some)[0].items()}
        return found

    def squares(params: Tensors, buffers: Tensors, pixels: Tensor) -> Tensors:
        each = torch.vmap(one, in_dims=(None, None, 0))(params, buffers, pixels)
        return {name: value.sum(0) for name, value in each.items()}

    for pixels, labels in _units(stack, images, rows, batch, at_once):
        _add(total, _each_member(squares, stack, rows, pixels))
        seen = labels.shape[-2] * labels.shape[-1]
        progress.seen(seen, seen * classes)
    return {name: value / math.ceil(_count(images, rows) / batch) for name, value in total.items()}


def gradient_rows(stack: Stack, images: Images, progress: Progress, *, rows: Rows = None) -> Iterator[Float[Tensor, "k n p"]]:
    """∂ cross-entropy / ∂θ of every image in turn, all weights in one row: as many images at a time as ``MEMORY`` holds."""
    one = _mean_cross_entropy(stack)

    def each(params: Tensors, buffers: Tensors, pixels: Tensor, labels: Tensor) -> Tensor:
        found = torch.vmap(grad(one), in_dims=(None, None, 0, 0))(params, buffers, pixels, labels)
        return torch.cat([g.flatten(1) if g.dim() > 1 else g.unsqueeze(1) for g in found.values()], 1)

    at_once = max(1, min(_room(stack), EXAMPLES // len(stack)))
    for pixels, labels in _units(stack, images, rows, 1, at_once):
        yield _each_member(each, stack, rows, pixels, labels)
        progress.seen(labels.shape[-2], labels.shape[-2])


def fisher_product(
    stack: Stack, images: Images, vector: Float[Tensor, "k p"], progress: Progress, *, rows: Rows = None, batch: int = 256
) -> Float[Tensor, "k p"]:
    """(1/N) Σ_i g_i (g_i·v) over the N images, g_i = ∂ cross-entropy of image i / ∂θ; no g_i is ever held.

    The numbers g_i·v come from one forward pass with derivatives along v, their sum of gradients from one ordinary pass.
    """
    net = in_mode(stack.net, "eval_all")

    def product(params: Tensors, buffers: Tensors, along: Tensors, pixels: Tensor, labels: Tensor) -> Tensors:
        def losses(params: Tensors) -> Tensor:
            return torch.nn.functional.cross_entropy(call_alone(net, params | buffers, pixels[0]), labels[0], reduction="none")

        slopes = jvp(losses, (params,), (along,))[1]
        return cast(Tensors, vjp(losses, params)[1](slopes)[0])

    total, along = {name: torch.zeros_like(p) for name, p in stack.params.items()}, unflat(vector, stack.params)
    for pixels, labels in _units(stack, images, rows, batch, 1):
        where = None if rows is None else 0
        with warnings.catch_warnings():  # torch compiles some rules of forward derivatives at their first use, in a way it calls deprecated itself
            warnings.filterwarnings("ignore", r".torch\.jit\.script. is", DeprecationWarning)
            found = torch.vmap(product, in_dims=(0, 0, 0, where, where))(stack.params, stack.buffers, along, pixels, labels)
        _add(total, found)
        progress.seen(2 * labels.shape[-1], labels.shape[-1])
    return flat(total) / _count(images, rows)


def drawn_rows(images: Images, count: int, seeds: Sequence[int]) -> Rows:
    """Rows [K, count] of different images drawn at random, each member's with its own seed, in order; None where that is all images."""
    if count >= len(images):
        return None
    return torch.stack([torch.randperm(len(images), generator=generator(seed, "sample"))[:count].sort().values for seed in seeds])


def _mean_cross_entropy(stack: Stack) -> Callable[[Tensors, Tensors, Tensor, Tensor], Tensor]:
    net = in_mode(stack.net, "eval_all")

    def one(params: Tensors, buffers: Tensors, pixels: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(call_alone(net, params | buffers, pixels), labels)

    return one


def _each_member(found: Callable[..., Any], stack: Stack, rows: Rows, *given: Tensor) -> Any:
    """``found(params, buffers, *given)`` of every member; what is given leads with K where members have images of their own."""
    where = (None if rows is None else 0,) * len(given)
    return torch.vmap(found, in_dims=(0, 0, *where))(stack.params, stack.buffers, *given)


def _units(stack: Stack, images: Images, rows: Rows, batch: int, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels [(k) units batch …] and labels [(k) units batch], ``at_once`` units of ``batch`` images at a time; a short last unit comes alone."""
    n = _count(images, rows)
    whole, step = n - n % batch, at_once * batch
    parts = [slice(at, min(at + step, whole)) for at in range(0, whole, step)] + ([slice(whole, n)] if whole < n else [])
    for part in parts:
        size = min(batch, part.stop - part.start)
        if rows is None:
            pixels, labels = images.pixels[part], images.labels[part]
        else:
            mine = rows[:, part].to(images.labels.device)
            pixels, labels = images.pick(mine), images.labels[mine]
        shape = (*labels.shape[:-1], -1, size)
        yield pixels.to(stack.device).reshape(*shape, *pixels.shape[labels.dim() :]), labels.to(stack.device).reshape(shape)


def _count(images: Images, rows: Rows) -> int:
    return len(images) if rows is None else rows.shape[1]


def _room(stack: Stack) -> int:
    """How many gradients of all members fit into ``MEMORY``."""
    return max(1, MEMORY // sum(p.numel() * p.element_size() for p in stack.params.values()))


def _add(total: Tensors, more: Tensors) -> None:
    for name, value in more.items():
        total[name] += value
