"""Fresh values for some weights of a stack, for methods that re-initialise what they select."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Literal

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack, Tensors


def kaiming_normal(stack: Stack, names: Sequence[str], seeds: Sequence[int], *, mode: Literal["fan_in", "fan_out"]) -> Tensors:
    """Fresh values [K, *shape] of these weights: normal with mean 0 and variance 2/fan, as He et al. 2015 for ReLU.

    fan_in: inputs of an output unit; fan_out: output units times the area of a kernel. A tensor's values depend on the member's seed
    and on the tensor's place in the net, not on which others are drawn beside it.
    """
    places = {name: at for at, name in enumerate(stack.params)}
    return {name: _one(name, places[name], stack.params[name], seeds, mode) for name in names}


def _one(name: str, place: int, like: Tensor, seeds: Sequence[int], mode: Literal["fan_in", "fan_out"]) -> Tensor:
    shape = like.shape[1:]
    if len(shape) < 2:
        raise InputError(f"cannot draw '{name}' of shape {list(shape)} by its fan: that needs an output and an input dimension; choose weights, not biases")
    fan = prod(shape[1:]) if mode == "fan_in" else shape[0] * prod(shape[2:])
    drawn = torch.stack([torch.randn(shape, generator=generator(seed, "fresh_init", place)) for seed in seeds])  # on the CPU: the same bits for every device
    return (drawn * sqrt(2 / fan)).to(like)


def reinitialised(stack: Stack, chosen: Tensors, ctx: Context) -> Stack:
    """The same models with fresh weights (Kaiming normal, fan-in) where ``chosen``: name -> bool that fits [K, *shape]. Closed weights stay."""
    fresh = kaiming_normal(stack, list(chosen), ctx.seeds, mode="fan_in")
    edited = stack.params | {name: torch.where(bits, fresh[name], stack.params[name]) for name, bits in chosen.items()}
    return stack.having(edited if ctx.mask is None else ctx.mask.choose(edited, stack.params))
