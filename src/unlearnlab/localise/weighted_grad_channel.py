"""``weighted_grad_channel``: the channels whose weights matter most to the forget set (DEL)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.ranking import AlwaysOpen, Budget, MinKeep, Normalise, Ranking, Within, allowed, best_of_channels, by_channel, rank, rank_units
from unlearnlab.localise.ranking import TopShare as TopShare
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Mask, Stack

TopkRule = Annotated[Literal["share_of_entries", "legacy_out_channels"], Setting("what the share is taken of")]
OneDim = Annotated[Literal["max", "legacy_elementwise"], Setting("how biases and normalisation weights are scored")]
Tie = Annotated[Literal["whole_channel", "legacy_argsort"], Setting("whether the channel at the cut stays whole")]


@spec("localiser", "weighted_grad_channel", paper="arXiv:2412.02432")
class WeightedGradChannel:
    """Open the output channels whose weights, times their gradient on the forget set, are largest.

    a = |θ ⊙ Σ_{x∈S} ∂_θ CE(x)|; score of channel o = mean of the largest ``top_share`` of a[o, …]; a 1-D tensor
    (bias, BatchNorm) is one channel with score max a. Channels open whole, best first, while they fit the budget (α).
    ``top_share`` = 1 is the rule for transformers. Source: Torkzadehmahani et al. 2025 (methods.md §5.2).
    Differs from the published code, whose behaviour the ``legacy`` values reproduce: it averages int(top_share · C_out) entries of a
    channel whatever its size, ranks 1-D tensors weight by weight, and may split the channel at the cut.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    granularity: ClassVar[str] = "channel"
    budget: Budget = 0.3
    top_share: TopShare = 0.1
    topk_rule: TopkRule = "share_of_entries"
    one_dim: OneDim = "max"
    tie: Tie = "whole_channel"
    normalise: Normalise = "none"
    ranking: Within = "global"
    always_open: AlwaysOpen = "none"
    min_keep: MinKeep = 0

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        slopes = summed_gradient(stack, split.forget, ctx.progress)
        values = {name: (weights * slopes[name]).abs() for name, weights in stack.params.items()}
        units = best_of_channels(stack, values, self.top_share)
        if self.one_dim == "legacy_elementwise":
            units |= {name: held for name, held in values.items() if held.dim() == 2}
        if self.topk_rule == "legacy_out_channels":
            units |= {name: self._legacy(name, by_channel(held)) for name, held in values.items() if held.dim() > 2}
        if self.tie == "whole_channel":
            return rank_units(stack, units, normalise=self.normalise, ranking=self.ranking, always_open=self.always_open, min_keep=self.min_keep)
        each = {name: s.repeat_interleave(stack.params[name][0].numel() // s.shape[1], 1).view_as(stack.params[name]) for name, s in units.items()}
        return rank(stack, each, normalise=self.normalise, ranking=self.ranking, always_open=self.always_open, min_keep=self.min_keep)

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        return self.rank(stack, split, ctx).mask(self.budget)

    def _legacy(self, name: str, entries: Tensor) -> Tensor:
        """[K, channels, size] -> [K, channels]."""
        _, channels, size = entries.shape
        count = min(allowed(self.top_share, channels), size)
        if count == 0:
            raise InputError(
                f"topk_rule = 'legacy_out_channels' with top_share = {self.top_share:g} leaves nothing to average "
                f"in '{name}' with its {channels} output channels; use 'share_of_entries'"
            )
        return entries.topk(count, 2).values.mean(2)
