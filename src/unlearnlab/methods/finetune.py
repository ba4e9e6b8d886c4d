"""``finetune``: go on training on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import cross_entropy
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import spec
from unlearnlab.stack import Stack


@spec("method", "finetune", paper="arXiv:1911.04933")
class FineTune:
    """Go on training on the retain set and hope that the rest is forgotten by itself.

    min CE(R), from θ_o; lr = η, epochs = E. Source: Golatkar et al. 2020; Warnecke et al. 2023 (methods.md §2.2).
    Differs from the published code: only images of R are ever seen, in a new order each epoch
    (there: a relabelling that fails silently turns this into training on all of D).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "E"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    lr: LearningRate = 0.01
    epochs: Epochs = 10
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        stream = batches(split.retain, self, ctx, "order.retain")
        per_epoch = stream.steps_per_epoch
        return descend(stack, stream, cross_entropy, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch)
