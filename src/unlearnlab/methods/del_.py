"""``del``: find the channels critical for the forget set, reset them, and fine-tune only them on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.localise.ranking import Budget
from unlearnlab.localise.weighted_grad_channel import OneDim, Tie, TopkRule, TopShare, WeightedGradChannel
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.reset_finetune import ResetFineTune, ResetTo
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.spec import spec
from unlearnlab.stack import Stack


@spec("method", "del", paper="arXiv:2412.02432")
class Del:
    """Find the channels that matter most to the forget set, reset them to their initial values, and fine-tune only them on the retain set.

    ``reset_finetune`` under the mask of ``weighted_grad_channel``; budget = α. The classifier head is open for training throughout.
    Source: Torkzadehmahani et al. 2025 (methods.md §5.2). Published weight decay 0, momentum .9, batch 128, cosine to 1 % of η.
    Differs from the published code: as the two parts say (own initial weights; shares of entries; channels never split).
    """

    cost: ClassVar[str] = "E + n_f/n_r"
    opens_head: ClassVar[bool] = ResetFineTune.opens_head
    null: ClassVar[Mapping[str, Any] | None] = ResetFineTune.null
    budget: Budget = WeightedGradChannel.budget
    top_share: TopShare = WeightedGradChannel.top_share
    topk_rule: TopkRule = WeightedGradChannel.topk_rule
    one_dim: OneDim = WeightedGradChannel.one_dim
    tie: Tie = WeightedGradChannel.tie
    reset_to: ResetTo = ResetFineTune.reset_to
    lr: LearningRate = ResetFineTune.lr
    epochs: Epochs = ResetFineTune.epochs
    batch: BatchSize = ResetFineTune.batch
    optimizer: Update = ResetFineTune.optimizer
    schedule: Course = ResetFineTune.schedule
    bn: BatchNorm = ResetFineTune.bn
    augment: Augment = ResetFineTune.augment

    @property
    def reads(self) -> frozenset[str]:
        return self._parts.reads

    @property
    def where(self) -> WeightedGradChannel:
        """The localiser whose mask it works under."""
        return WeightedGradChannel(budget=self.budget, top_share=self.top_share, topk_rule=self.topk_rule, one_dim=self.one_dim, tie=self.tie)

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        return self._parts(stack, split, ctx)

    @property
    def _parts(self) -> Localised:
        then = ResetFineTune(
            reset_to=self.reset_to, lr=self.lr, epochs=self.epochs, batch=self.batch, optimizer=self.optimizer, schedule=self.schedule, bn=self.bn,
            augment=self.augment,
        )  # fmt: skip
        return Localised(self.where, then)
