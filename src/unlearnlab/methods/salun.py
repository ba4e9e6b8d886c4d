"""``salun``: random labels, but only the weights most salient for the forget set may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.localise.grad_param import Accumulate, GradientBatch, GradParam
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.random_label import ExcludeTrue, Passes, RandomLabel, Redraw, RelabelEpochs, RelabelRate, RetainWeight
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Update
from unlearnlab.spec import Setting, fields, spec
from unlearnlab.stack import Stack, Tensors

Kept = Annotated[float, Setting("share of all weights that may change", symbol="q", gt=0, le=1, published="0.5; masks for 0.1, 0.2 … 1")]
MaskMode = Annotated[
    Literal["hard", "grad_only"],
    Setting("closed weights stay bit for bit, or only get no gradient and still move with weight decay", published="grad_only", legacy=("grad_only",)),
]


@spec("method", "salun", paper="arXiv:2310.12508")
class SalUn:
    """Train with random labels on the forget set, changing only the weights its loss depends on most.

    ``random_label`` under the mask of ``grad_param``: θ_u = m ⊙ θ + (1−m) ⊙ θ_o. budget = q, the share of weights kept open;
    q = 1 is ``random_label`` bit for bit. Source: Fan et al. 2024 (methods.md §2.8).
    Differs from the published code: the mask comes from the model at hand and also holds against weight decay and momentum
    (there: it multiplies the gradient only, which mask_mode = "grad_only" does; pruned weights and those a surrounding method
    closed stay even then). The published retain weight 1 alternates passes, as ``passes`` says;
    retain_weight = α weighs the images within a step.
    """

    reads: ClassVar[frozenset[str]] = GradParam.reads | RandomLabel.reads
    cost: ClassVar[str] = "E·n/n_r + n_f/n_r"
    null: ClassVar[Mapping[str, Any] | None] = RandomLabel.null
    budget: Kept = GradParam.budget
    accumulate: Accumulate = GradParam.accumulate
    gradient_batch: GradientBatch = GradParam.gradient_batch
    mask_mode: MaskMode = "hard"
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

    @property
    def where(self) -> GradParam:
        """The localiser whose mask it works under."""
        return GradParam(self.budget, self.accumulate, self.gradient_batch)

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        relabel = RandomLabel(**{field.name: getattr(self, field.name) for field in fields(RandomLabel)})
        if self.mask_mode == "hard":
            return Localised(self.where, relabel)(stack, split, ctx)
        open_ = self.where(stack, split, ctx).open

        def where_open(grads: Tensors, step: int) -> Tensors:
            return {name: torch.where(open_[name], g, 0) for name, g in grads.items()}

        return relabel.train(stack, split, ctx, edit_grad=where_open)
