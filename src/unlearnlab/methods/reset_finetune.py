"""``reset_finetune``: put weights back to their values at initialisation, then fine-tune them on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import cross_entropy
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Cosine, Sgd
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Mask, Stack, Tensors, head_names

ResetTo = Annotated[Literal["original_init", "fresh_init"], Setting("values that open weights are reset to: the original's own initial weights, or new ones")]


@spec("method", "reset_finetune", paper="arXiv:2412.02432")
class ResetFineTune:
    """Reset the open weights (all, without a mask) to their values at initialisation, then train them and the head on the retain set.

    θ⁽⁰⁾ = (1−m) ⊙ θ_o + m ⊙ θ_i, then min CE(R) over m and the classifier head (which is reset only where m says so).
    lr = η, epochs = E. Source: Torkzadehmahani et al. 2025 (the second half of DEL; methods.md §5.2).
    Differs from the published code: θ_i are the original's own initial weights (there: a new unseeded network, here ``fresh_init``);
    the head is the last linear layer (there: found by the substrings "fc" and "mlp_head").
    """

    cost: ClassVar[str] = "E"
    opens_head: ClassVar[bool] = True
    null: ClassVar[Mapping[str, Any] | None] = None
    reset_to: ResetTo = "original_init"
    lr: LearningRate = 0.015
    epochs: Epochs = 10
    batch: BatchSize = 128
    optimizer: Update = Sgd(weight_decay=0.0)
    schedule: Course = Cosine(final=0.01)
    bn: BatchNorm = "train"
    augment: Augment = "train"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"retain", "original_init"} if self.reset_to == "original_init" else {"retain"})

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        mask = ctx.mask or Mask.everything(stack)
        start = stack.having(mask.choose(self._initial(stack, ctx), stack.params))
        stream = batches(split.retain, self, ctx, "order.retain")
        per_epoch, opened = stream.steps_per_epoch, mask.opening(head_names(stack))
        return descend(start, stream, cross_entropy, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, mask=opened)

    def _initial(self, stack: Stack, ctx: Context) -> Tensors:
        if self.reset_to == "fresh_init":
            return stack.fresh(ctx.seeds).params
        if ctx.original_init is None:
            raise InputError("reset_to = 'original_init' needs the original's own initial weights and none are at hand; set reset_to = 'fresh_init'")
        return ctx.original_init.params
