"""``finetune``: go on training on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Protocol

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.methods.class_weights import ClassWeights, Weighting, class_weighted
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Update
from unlearnlab.methods.training import Trains, batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Stack

Rate = Annotated[
    float,
    Setting("learning rate", symbol="η", ge=0, published="0.01 (Unlearn-Sparse, SalUn), 0.1 (RUM), 0.04 (SCRUB), 0.02 one-cycle (SSD), "
            "0.001 (Forget with Precision), 0.015 cosine to 1 % of it (DEL)"),
]  # fmt: skip
Passes = Annotated[int, Setting("passes over the retain set", symbol="E", ge=1, published="10; 5 (SSD, Forget with Precision), 30 or 100 as a ceiling (DEL)")]


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
    lr: Rate = 0.01
    epochs: Passes = 10
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"
    class_weights: ClassWeights = "none"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        return finetuned(stack, split, self, ctx)


class FineTunes(Trains, Protocol):
    """The settings that ``finetuned`` reads off a method."""

    @property
    def epochs(self) -> int: ...
    @property
    def class_weights(self) -> Weighting: ...


def finetuned(stack: Stack, split: Split, method: FineTunes, ctx: Context) -> Stack:
    """``finetune`` with a method's settings: also the last stage of methods that damage the model first."""
    stream = batches(split.retain, method, ctx, "order.retain")
    loss, per_epoch = class_weighted(method.class_weights, stack, split), stream.steps_per_epoch
    return descend(stack, stream, loss, method, ctx, steps=method.epochs * per_epoch, per_epoch=per_epoch)
