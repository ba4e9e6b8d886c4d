"""From scores to masks: ranks and budgets, per member, over all tensors at once.

A mask is a prefix of one ranking, so the mask of a smaller budget is a subset of that of a larger one. Weights that were pruned
never open and use no budget: a budget is a share of the weights that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unlearnlab.spec import InputError, Setting
from unlearnlab.stack import Mask, Stack, Tensors, blocks, head_names, top_share

Granular = Literal["parameter", "channel", "layer"]
Scale = Literal["none", "per_tensor"]
Scope = Literal["global", "per_tensor"]
Forced = Literal["none", "head"]

Budget = Annotated[float, Setting("share of all weights that may change", symbol="q", gt=0, le=1)]
TopShare = Annotated[float, Setting("share of a channel's weights, the largest, that its score is the mean of", gt=0, le=1)]
Granularity = Annotated[Granular, Setting("what opens whole: single weights, output channels or layers; these are scored by the mean of their weights")]
Normalise = Annotated[Scale, Setting("compare scores as they are, or as multiples of their tensor's mean")]
Within = Annotated[Scope, Setting("one ranking over all tensors, or the budget spent in each tensor")]
AlwaysOpen = Annotated[Forced, Setting("open the classifier head as well, over and above the budget")]
MinKeep = Annotated[int, Setting("so many units of every tensor, its best, come before all others", ge=0)]

NEVER = 2**62  # more weights than any net has


@dataclass(frozen=True, eq=False)
class Ranking:
    """The masks of all budgets at once: ``needed``, name -> int64 [K, *shape], says how many weights are open when this one is.

    0: open under every budget; ``NEVER``: under none. ``total``, name -> int64 [K]: of how many weights. ``parent``: as in ``Mask``.
    """

    needed: Tensors
    total: Tensors
    parent: str

    def mask(self, budget: float) -> Mask:
        """Open the weights that share ``budget`` reaches."""
        reach = {name: torch.tensor([allowed(budget, n) for n in total.tolist()], device=total.device) for name, total in self.total.items()}
        opened = {name: needed <= reach[name].view(-1, *[1] * (needed.dim() - 1)) for name, needed in self.needed.items()}
        return Mask(opened, self.parent)


def rank(
    stack: Stack,
    scores: Tensors,
    *,
    granularity: Granular = "parameter",
    normalise: Scale = "none",
    ranking: Scope = "global",
    always_open: Forced = "none",
    min_keep: int = 0,
) -> Ranking:
    """Rank weights by ``scores`` (name -> [K, *shape]), highest first; ties go to (order of definition, index)."""
    units, layers = unit_means(stack, scores, granularity), granularity == "layer"
    return rank_units(stack, units, normalise=normalise, ranking=ranking, always_open=always_open, min_keep=min_keep, layers=layers)


def rank_units(
    stack: Stack,
    units: Tensors,
    *,
    normalise: Scale = "none",
    ranking: Scope = "global",
    always_open: Forced = "none",
    min_keep: int = 0,
    layers: bool = False,
) -> Ranking:
    """Rank units that open whole: name -> [K, units], where a tensor of n weights with u units has n/u consecutive ones in each.

    ``layers``: all tensors of a block are one unit, under the score of the first of them.
    """
    if layers and (normalise, ranking, min_keep) != ("none", "global", 0):
        needed_settings = "normalise = 'none', ranking = 'global' and min_keep = 0"
        raise InputError(f"granularity = 'layer' ranks nothing within a tensor; set {needed_settings}, or another granularity")
    alive = {name: _alive(stack, name).reshape(*units[name].shape, -1) for name in units}
    sizes = {name: held.sum(2) if held.shape[2] > 1 else held[:, :, 0].long() for name, held in alive.items()}
    if normalise == "per_tensor":
        units = {name: s / _mean(s.abs(), sizes[name] > 0).clamp(min=torch.finfo(s.dtype).tiny) for name, s in units.items()}
    units = {name: s.masked_fill(sizes[name] == 0, -torch.inf) for name, s in units.items()}
    first = {name: top_share(s, min_keep) for name, s in units.items()} if min_keep else {}
    needed: Tensors = {}
    for names in [[name] for name in units] if ranking == "per_tensor" else [list(units)]:
        score, size = (torch.cat([held[name] for name in names], 1) for held in (units, sizes))
        if layers:
            owner = {name: at for at, block in enumerate(blocks(stack.net)) for name in block}
            at = torch.tensor([owner[name] for name in names], device=stack.device)
            heads = torch.tensor([[owner[name] for name in names].index(block) for block in range(int(at.max()) + 1)], device=stack.device)
            whole = torch.zeros(len(stack), len(heads), dtype=size.dtype, device=stack.device).index_add_(1, at, size)
            found = _filled(score[:, heads], whole)[:, at]
        else:
            found = _filled(score, size, torch.cat([first[name] for name in names], 1) if min_keep else None)
        needed |= dict(zip(names, torch.split(found, [units[name].shape[1] for name in names], 1), strict=True))
    head = head_names(stack) if always_open == "head" else []
    total = {name: sum((s.sum(1) for s in sizes.values()), torch.zeros_like(sizes[name][:, 0])) for name in units}
    total = {name: sizes[name].sum(1) for name in units} if ranking == "per_tensor" else total
    opened = {name: (torch.zeros_like(n) if name in head else n).unsqueeze(2).expand(alive[name].shape) for name, n in needed.items()}
    return Ranking({name: torch.where(alive[name], n, NEVER).reshape(stack.params[name].shape) for name, n in opened.items()}, total, stack.fingerprint)


def _filled(score: Float[Tensor, "k u"], size: Int64[Tensor, "k u"], first: Bool[Tensor, "k u"] | None = None) -> Int64[Tensor, "k u"]:
    """How many weights are open once each unit is: units open best first, those of ``first`` before all others."""
    order = score.argsort(dim=1, descending=True, stable=True)
    if first is not None:
        order = order.gather(1, (~first).gather(1, order).to(torch.uint8).argsort(dim=1, stable=True))
    return torch.empty_like(size).scatter_(1, order, size.gather(1, order).cumsum(1))


def open_weights(stack: Stack, scores: Tensors, budget: float) -> Mask:
    """Open the ⌊budget · P⌋ weights with the highest ``scores`` (name -> [K, *shape]); ties go to (order of definition, index)."""
    return rank(stack, scores).mask(budget)


def open_channels(stack: Stack, scores: Tensors, budget: float) -> Mask:
    """Open whole channels (scores: name -> [K, units]), best first, until the next one would exceed the budget."""
    return rank_units(stack, scores).mask(budget)


def by_channel(stacked: Float[Tensor, "k ..."]) -> Float[Tensor, "k units size"]:
    """A tensor's output channels, the slices of its first dimension; one without (bias, normalisation) is a single unit.

    Embeddings of shape (1, places, width) have a unit for each place.
    """
    shape = stacked.shape[1:]
    units = 1 if len(shape) < 2 else shape[1] if len(shape) == 3 and shape[0] == 1 else shape[0]
    return stacked.reshape(len(stacked), units, -1)


def unit_means(stack: Stack, scores: Tensors, granularity: Granular) -> Tensors:
    """Mean score of the live weights of every unit: name -> [K, units]; the tensors of a layer share one."""
    if granularity == "parameter":
        return {name: s.reshape(len(s), -1) for name, s in scores.items()}

    def grouped(held: Tensor) -> Tensor:
        return by_channel(held) if granularity == "channel" else held.reshape(len(held), 1, -1)

    sums = {name: grouped(s if name not in stack.live else torch.where(stack.live[name], s, 0)).sum(2) for name, s in scores.items()}
    counts = {name: grouped(_alive(stack, name)).sum(2) for name in scores}
    if granularity == "layer":
        for block in blocks(stack.net):
            both = [sum((held[name] for name in block), torch.zeros_like(held[block[0]])) for held in (sums, counts)]
            sums, counts = (held | dict.fromkeys(block, whole) for held, whole in zip((sums, counts), both, strict=True))
    return {name: held / counts[name].clamp(min=1) for name, held in sums.items()}


def best_of_channels(stack: Stack, values: Tensors, share: float) -> Tensors:
    """Mean of the largest ``share`` of the live entries of every channel, of a 1-D tensor the maximum: name -> [K, units]."""
    return {name: _best(by_channel(held), by_channel(_alive(stack, name)), 0.0 if held.dim() < 3 else share) for name, held in values.items()}


def _best(entries: Float[Tensor, "k u size"], alive: Bool[Tensor, "k u size"], share: float) -> Float[Tensor, "k u"]:
    sizes, at = torch.unique(alive.sum(2), return_inverse=True)
    counts = torch.tensor([max(1, allowed(share, size)) for size in sizes.tolist()], device=entries.device)[at]
    best = entries.masked_fill(~alive, -torch.inf).topk(int(counts.max()), 2).values
    taken = torch.arange(best.shape[2], device=best.device) < counts.unsqueeze(2)
    return torch.where(taken, best, 0).sum(2) / counts


def allowed(budget: float, weights: int) -> int:
    """How many of so many weights a share of them is, rounded down."""
    return int(Decimal(str(budget)) * weights)  # in decimals: .29 × 100 is 29 weights, not the 28 of floating point


def _alive(stack: Stack, name: str) -> Bool[Tensor, "k ..."]:
    return stack.live[name] if name in stack.live else torch.ones_like(stack.params[name], dtype=torch.bool)


def _mean(values: Float[Tensor, "k u"], where: Bool[Tensor, "k u"]) -> Float[Tensor, "k 1"]:
    return torch.where(where, values, 0).sum(1, keepdim=True) / where.sum(1, keepdim=True).clamp(min=1)
