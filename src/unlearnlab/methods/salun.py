"""``salun``: random labels, but only the weights most salient for the forget set may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.localise.ranking import Budget
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.random_label import ExcludeTrue, Passes, RandomLabel, Redraw
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.spec import spec
from unlearnlab.stack import Stack


@spec("method", "salun", paper="arXiv:2310.12508")
class SalUn:
    """Train with random labels on the forget set, changing only the weights its loss depends on most.

    ``random_label`` under the mask of ``grad_param``: θ_u = m ⊙ θ + (1−m) ⊙ θ_o. budget = q, the share of weights kept open;
    q = 1 is ``random_label`` bit for bit. Source: Fan et al. 2024 (methods.md §2.8).
    Differs from the published code: the mask comes from the model at hand and also holds against weight decay and momentum
    (there: it multiplies the gradient only); the published retain weight 1 alternates passes, as ``passes`` says.
    """

    reads: ClassVar[frozenset[str]] = GradParam.reads | RandomLabel.reads
    cost: ClassVar[str] = "E·n/n_r + n_f/n_r"
    null: ClassVar[Mapping[str, Any] | None] = RandomLabel.null
    budget: Budget = GradParam.budget
    passes: Passes = RandomLabel.passes
    redraw: Redraw = RandomLabel.redraw
    exclude_true: ExcludeTrue = RandomLabel.exclude_true
    lr: LearningRate = RandomLabel.lr
    epochs: Epochs = RandomLabel.epochs
    batch: BatchSize = RandomLabel.batch
    optimizer: Update = RandomLabel.optimizer
    schedule: Course = RandomLabel.schedule
    bn: BatchNorm = RandomLabel.bn
    augment: Augment = RandomLabel.augment

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        relabel = RandomLabel(
            passes=self.passes, redraw=self.redraw, exclude_true=self.exclude_true, lr=self.lr, epochs=self.epochs,
            batch=self.batch, optimizer=self.optimizer, schedule=self.schedule, bn=self.bn, augment=self.augment,
        )  # fmt: skip
        return Localised(GradParam(self.budget), relabel)(stack, split, ctx)
