"""Which weights may be pruned, and the one way to close the lowest of them: a single threshold over all, per member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor, nn

from unlearnlab.data.images import Images
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError, Setting
from unlearnlab.stack import CONVOLUTIONS, Stack, Tensors, flat, unflat, weights_of
from unlearnlab.train import Recipe

Sparsity = Annotated[float, Setting("share of the prunable weights that are removed", symbol="p", ge=0, lt=1, published="0.95; also 0.75, 0.9, 0.99")]
IncludeLinear = Annotated[bool, Setting("prune linear layers as well as convolutions (transformers have nothing else)")]


@dataclass(frozen=True, eq=False)
class Dense:
    """Dense models in the states that a pruning may start from; None where a state is not at hand.

    ``init``: before training. ``rewind``: after the recipe's ``rewind`` epochs. ``trained``: at the end.
    """

    trained: Stack | None = None
    init: Stack | None = None
    rewind: Stack | None = None

    def state(self, which: str, pruning: str) -> Stack:
        found: Stack | None = getattr(self, which)
        if found is None:
            ways = {
                "rewind": "set recipe.rewind to the epoch to go back to (published: 8), or rewind_to = 'init' or 'trained'",
                "init": "name the file of the initial weights in [original] init = …, or use rewind_to = 'trained'",
                "trained": "train a dense model first",
            }
            raise InputError(f"pruning '{pruning}' needs the weights '{which}' of the dense models and they are not at hand; {ways[which]}")
        return found


class Pruning(Protocol):
    """Makes sparse, trained models of dense ones. What it removes is 0 in the stack it returns, and stays so (``Stack.live``).

    ``needs``: the states of ``Dense`` that it reads. ``images``: what the sparse models are trained on.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(self, dense: Dense, images: Images, recipe: Recipe, progress: Progress) -> Stack: ...


def prunable(net: nn.Module, include_linear: bool) -> list[str]:
    """Names of the weights of convolutions (stem and 1×1 shortcuts too) and, if asked for, of linear layers; never biases or norms."""
    found = weights_of(net, *CONVOLUTIONS, *((nn.Linear,) if include_linear else ()))
    if not found:
        what = "convolution or linear layer" if include_linear else "convolution"
        raise InputError(f"this net has no {what}, so there is nothing to prune; {'prune another net' if include_linear else 'set include_linear = true'}")
    return found


def without_lowest(stack: Stack, scores: Tensors, share: float) -> Stack:
    """Remove, per member, the round(share · live) lowest of the live weights by ``scores`` (name -> [K, *shape]): one threshold over all tensors.

    Ties go to the order of definition, so that exactly so many are removed.
    """
    live = flat({name: stack.live.get(name, torch.ones_like(scores[name], dtype=torch.bool)) for name in scores})
    row = flat(scores).masked_fill(~live, torch.inf)  # what is gone already is not counted again
    order = row.argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(row.shape[1], device=row.device).expand_as(order))
    gone = (live.sum(1).double() * share).round().long().unsqueeze(1)  # single precision is one off from some three million on
    return stack.pruned(unflat(live & (rank >= gone), scores))


def remaining(stack: Stack, names: Sequence[str]) -> int:
    """How many of these weights are live; the same number in every member."""
    return sum(int(stack.live[name][0].sum()) if name in stack.live else stack.params[name][0].numel() for name in names)


def magnitudes(stack: Stack, names: Sequence[str]) -> Tensors:
    return {name: stack.params[name].abs() for name in names}


def sparsity(stack: Stack, names: Sequence[str]) -> Tensor:
    """Share of these weights that are exactly 0, per member."""
    zeros = torch.stack([(stack.params[name] == 0).flatten(1).sum(1) for name in names]).sum(0)
    return zeros.double() / sum(stack.params[name][0].numel() for name in names)
