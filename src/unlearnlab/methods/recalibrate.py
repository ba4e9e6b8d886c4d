"""BatchNorm's running averages measured anew: what one-shot edits offer, since their weights no longer fit the old averages."""

from __future__ import annotations

import copy
import math
from typing import Annotated

import torch
from torch import nn

from unlearnlab.contract import Context
from unlearnlab.data.images import Images
from unlearnlab.grouped import Tensors, call_alone, call_member
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting
from unlearnlab.stack import Stack

BATCH = 256

Recalibrate = Annotated[bool, Setting("forget BatchNorm's running averages after the edit and measure them anew in one pass over the retain set")]


def recalibrated(stack: Stack, images: Images, ctx: Context) -> Stack:
    """The same weights, with BatchNorm's running averages from one pass over these images, forward and without gradients.

    Mean and variance of all batches, weighted by their sizes. Each member draws its own order, since images that stand sorted by
    class would make batches of too little variance; batches are as equal in size as can be, so that none is a single image. All
    other layers are in eval mode. A net without running averages comes back as it is, and nothing is counted.
    """
    net = copy.deepcopy(stack.net).eval()
    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None]
    if not layers:
        return stack
    for _, layer in layers:
        layer.train()
        layer.momentum = 1.0  # after each batch the "running" averages are those of the batch
    averages = [f"{name}.{kind}" for name, _ in layers for kind in ("running_mean", "running_var")]
    counters = [f"{name}.num_batches_tracked" for name, _ in layers]

    def of_batch(tensors: Tensors, buffers: Tensors, pixels: torch.Tensor) -> Tensors:
        own = {name: b.clone() for name, b in buffers.items()}  # updated in place
        (call_alone if len(stack) == 1 else call_member)(net, tensors | own, pixels)
        return own

    parts = _orders(len(images), ctx).to(images.labels.device).tensor_split(math.ceil(len(images) / BATCH), dim=1)
    buffers = dict(stack.buffers) | {name: torch.zeros_like(stack.buffers[name]) for name in (*averages, *counters)}
    with torch.no_grad():
        for rows in parts:
            pixels = images.pick(rows).to(stack.device)
            if len(stack) == 1:
                found = {name: b.unsqueeze(0) for name, b in of_batch(_first(stack.params), _first(stack.buffers), pixels[0]).items()}
            else:
                found = torch.vmap(of_batch)(stack.params, stack.buffers, pixels)
            for name in averages:
                buffers[name] = buffers[name] + found[name] * (rows.shape[1] / len(images))
            for name in counters:
                buffers[name] = buffers[name] + 1
            ctx.progress.seen(rows.shape[1])
    return stack.having(buffers=buffers)


def _orders(n: int, ctx: Context) -> torch.Tensor:
    return torch.stack([torch.randperm(n, generator=generator(seed, "order.recalibrate")) for seed in ctx.seeds])


def _first(stacked: Tensors) -> Tensors:
    return {name: tensor[0] for name, tensor in stacked.items()}
