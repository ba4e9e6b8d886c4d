"""``finetune_prune``: fine-tune on the retain set while removing the smallest weights little by little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import cross_entropy
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.prune.cut import IncludeLinear, Sparsity, magnitudes, prunable, remaining, without_lowest
from unlearnlab.spec import InputError, spec
from unlearnlab.stack import Stack


@spec("method", "finetune_prune", paper="arXiv:2304.04934")
class FineTunePrune:
    """Fine-tune on the retain set and remove the smallest weights in steps, so that the model ends sparse.

    min CE(R) from θ_o; before epochs E−2, E−4, … (0-based; and before epoch 0 also for odd E) the smallest |θ| of the live prunable
    weights are set to 0 for good: n = ⌊(E−1)/2⌋ + 1 removals, after the i-th of which the share (1−p)^(i/n) is left. sparsity = p, lr = η, epochs = E.
    Source: Jia et al. 2023, code (methods.md §2.5, protocols.md §10).
    Differs from the published code: the epochs of removal are planned first, so that the sparsity at the end is p for odd E as well
    (there: one removal too few); momentum starts anew after a removal. The pruned weights stay 0 in whatever is done to the model later.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "E"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "sparsity": 0.0, "bn": "frozen"}
    sparsity: Sparsity = 0.95
    include_linear: IncludeLinear = False
    lr: LearningRate = FineTune.lr
    epochs: Epochs = FineTune.epochs
    batch: BatchSize = FineTune.batch
    optimizer: Update = FineTune.optimizer
    schedule: Course = FineTune.schedule
    bn: BatchNorm = FineTune.bn
    augment: Augment = FineTune.augment

    def removals(self) -> list[int]:
        """The epochs (0-based) before which weights are removed."""
        return sorted({0, *range(self.epochs - 2, -1, -2)} if self.epochs % 2 else set(range(self.epochs - 2, -1, -2)))

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        if ctx.mask is not None:
            raise InputError("method 'finetune_prune' removes weights anywhere and cannot keep those outside a mask; use 'finetune' with a mask")
        stream = batches(split.retain, self, ctx, "order.retain")
        per_epoch, planned = stream.steps_per_epoch, self.removals()
        names = prunable(stack.net, self.include_linear)
        whole, total = remaining(stack, names), self.epochs * per_epoch

        def course(step: int, steps: int, per_epoch: int) -> float:
            return self.schedule(step, total, per_epoch)  # of the whole run, of which each fit below is a part

        for at, (first, end) in enumerate(zip(planned, [*planned[1:], self.epochs], strict=True), 1):
            live, left = remaining(stack, names), round(whole * (1 - self.sparsity) ** (at / len(planned)))
            stack = without_lowest(stack, magnitudes(stack, names), (live - left) / live)
            stack = descend(
                stack, stream, cross_entropy, self, ctx, steps=end * per_epoch, per_epoch=per_epoch, start=first * per_epoch, schedule=course
            )  # fmt: skip
        return stack
