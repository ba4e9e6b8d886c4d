"""``neggrad_plus``: descend on the retain set while climbing on the forget set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch, cross_entropy
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Net, Stack


@spec("method", "neggrad_plus", paper="arXiv:2302.09880")
class NegGradPlus:
    """Descend the loss of the retain set and climb that of the forget set in the same step.

    L = α·CE(B_r) − (1−α)·CE(B_f); retain_weight = α, lr = η, epochs = E passes over R. With α = 1 the weights are those of ``finetune``.
    Source: Kurmanji et al. 2023 (methods.md §2.4).
    Differs from the published code: forget batches come from a stream that reshuffles at each pass (there: ``itertools.cycle``
    replays the batches of the first); the default α is .99 (one port shares α = .2 with other methods, which destroys the model).
    With bn = "train" both forwards update the running averages, as published.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E·(1 + forget batches beside retain batches)"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    retain_weight: Annotated[float, Setting("weight of the retain loss; the forget loss has the rest", symbol="α", ge=0, le=1)] = 0.99
    lr: LearningRate = 0.01
    epochs: Epochs = 5
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        retain, forget = batches(split.retain, self, ctx, "order.retain"), batches(split.forget, self, ctx, "order.forget")
        per_epoch = retain.steps_per_epoch

        def both(step: int) -> Batch:
            return replace(retain(step), also=forget(step))

        return descend(stack, both, self._loss, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch)

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        assert batch.also is not None
        return self.retain_weight * cross_entropy(net, batch, aux) - (1 - self.retain_weight) * cross_entropy(net, batch.also, aux)
