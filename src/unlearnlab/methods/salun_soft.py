"""``salun_soft``: random labels, while the weights that moved least are pulled back to the original."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.methods.random_label import ExcludeTrue, Passes, RandomLabel, Redraw, RelabelEpochs, RelabelRate, RetainWeight
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Update
from unlearnlab.methods.training import descend
from unlearnlab.spec import Setting, fields, spec
from unlearnlab.stack import Mask, Stack, Tensors, flat, unflat


@spec("method", "salun_soft", paper="arXiv:2310.12508")
class SalUnSoft:
    """Train with random labels on the forget set, and after each step pull all weights towards the original, the least moved ones all the way.

    After step k = 0…K−1 of ``random_label``: Δ = θ − θ_o; s_k = ⌊ρ·(1 − k/K)·P⌋; τ = the s_k-th smallest |Δ|;
    θ ← θ_o + sign Δ · max(|Δ| − τ, 0). start_share = ρ. P counts the weights that may change (not pruned ones, nor those outside a mask).
    While s_k = 0 nothing is done, so a ρ below 1/P is ``random_label`` bit for bit. Source: Fan et al. 2024 (methods.md §2.8).
    Differs from the published code: the anchor is θ_o for the whole run and k counts all steps (there: the anchor is the model at the
    start of the epoch, and the batch index is forgotten).
    """

    reads: ClassVar[frozenset[str]] = RandomLabel.reads
    cost: ClassVar[str] = "E·n/n_r"
    null: ClassVar[Mapping[str, Any] | None] = RandomLabel.null
    start_share: Annotated[float, Setting("share of the weights put back to the original after the first step", symbol="ρ", ge=0, le=1, published="0.5")] = 0.5
    passes: Passes = RandomLabel.passes
    redraw: Redraw = RandomLabel.redraw
    exclude_true: ExcludeTrue = RandomLabel.exclude_true
    retain_weight: RetainWeight = RandomLabel.retain_weight
    lr: RelabelRate = RandomLabel.lr
    epochs: RelabelEpochs = RandomLabel.epochs
    batch: BatchSize = RandomLabel.batch
    optimizer: Update = RandomLabel.optimizer
    schedule: Course = RandomLabel.schedule
    bn: BatchNorm = RandomLabel.bn
    augment: Augment = RandomLabel.augment

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        relabel = RandomLabel(**{field.name: getattr(self, field.name) for field in fields(RandomLabel)})
        stream, per_epoch = relabel.stream(stack, split, ctx)
        steps = self.epochs * per_epoch
        mask = Mask.everything(stack).open
        open_ = flat(mask if ctx.mask is None else {name: bits & mask[name] for name, bits in ctx.mask.open.items()})
        anchor, counts = flat(stack.params), open_.sum(1).tolist()

        def pull(params: Tensors, step: int) -> Tensors:
            kept = [int(Decimal(str(self.start_share)) * (steps - step) * count) // steps for count in counts]
            return unflat(pulled(flat(params), anchor, open_, kept), params) if any(kept) else params

        return descend(stack, stream, relabel.loss(split), self, ctx, steps=steps, per_epoch=per_epoch, after_step=pull)


def pulled(weights: Tensor, anchor: Tensor, open_: Tensor, counts: list[int]) -> Tensor:
    """Rows [K, P] pulled towards the anchor's by the ``counts[k]``-th smallest way that an open weight has moved; where that is 0, as they were."""
    way = weights - anchor
    ranked = way.abs().masked_fill(~open_, torch.inf)
    by = torch.stack([row.kthvalue(count).values if count else row.new_zeros(()) for row, count in zip(ranked, counts, strict=True)]).unsqueeze(1)
    some = torch.tensor(counts, device=weights.device).unsqueeze(1) > 0
    return torch.where(some, anchor + way.sign() * (way.abs() - by).clamp(min=0), weights)
