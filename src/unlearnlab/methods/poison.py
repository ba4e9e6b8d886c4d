"""``poison`` and ``poison_full``: train on the forget set with wrong labels, alone or together with the retain set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.methods.class_weights import ClassWeights, class_weighted
from unlearnlab.methods.random_label import ExcludeTrue, RandomLabel
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Cosine, Sgd
from unlearnlab.spec import spec
from unlearnlab.stack import Stack, head_names


@spec("method", "poison")
class Poison:
    """Train briefly on the forget set with random labels, drawn once; the retain set is never trained on.

    min CE(S, y′), y′ uniform over the C classes and fixed, from θ_o; lr = η, epochs = E passes over S.
    Source: "Forget with Precision", ETH Zürich 2023 (methods.md §4).
    Differs from the published code: labels pass through a function, in a new order of images each epoch, all drawn from the
    method's own seeds (there: written over the label list of the whole data set, from Python's global generator; seeds are ignored).
    The retain set is read only for the class weights of class_weights = "inverse".
    """

    cost: ClassVar[str] = "E·n_f/n_r"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    exclude_true: ExcludeTrue = False
    class_weights: ClassWeights = "none"
    lr: LearningRate = 0.0007
    epochs: Epochs = 1
    batch: BatchSize = 128
    optimizer: Update = Sgd(nesterov=True)
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget"} if self.class_weights == "none" else {"forget", "retain"})

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        labels = poisoned(split.forget, split.forget, stack, ctx, self.exclude_true)
        stream = batches(split.forget, self, ctx, "order.forget", labels=labels)
        loss, per_epoch = class_weighted(self.class_weights, stack, split), stream.steps_per_epoch
        return descend(stack, stream, loss, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch)


@spec("method", "poison_full")
class PoisonFull:
    """Go on training on all images, those of the forget set with random labels that are drawn once.

    min CE(S, y′) + CE(R), S and R shuffled together, y′ uniform over the C classes and fixed, from θ_o; lr = η, epochs = E passes over both.
    Source: "Forget with Precision", ETH Zürich 2023 (methods.md §4).
    Differs from the published code: S and R are shuffled together (there: S comes at the end of every epoch); the labels of R cannot
    change (there: new labels are drawn for the whole data set); all draws come from the method's own seeds (there: ignored).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E·n/n_r"
    null: ClassVar[Mapping[str, Any] | None] = Poison.null
    exclude_true: ExcludeTrue = Poison.exclude_true
    class_weights: ClassWeights = Poison.class_weights
    lr: LearningRate = 0.002
    epochs: Epochs = 5
    batch: BatchSize = Poison.batch
    optimizer: Update = Poison.optimizer
    schedule: Course = Cosine()
    bn: BatchNorm = Poison.bn
    augment: Augment = Poison.augment

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        both = split.train
        stream = batches(both, self, ctx, "order.train", labels=poisoned(both, split.forget, stack, ctx, self.exclude_true))
        loss, per_epoch = class_weighted(self.class_weights, stack, split), stream.steps_per_epoch
        return descend(stack, stream, loss, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch)


def poisoned(images: Images, forget: Images, stack: Stack, ctx: Context, exclude_true: bool) -> Callable[[int], Tensor]:
    """Labels [K, n] of these images, the same in every epoch: random where they are to be forgotten, as given elsewhere."""
    drawn, classes = RandomLabel(redraw="once", exclude_true=exclude_true), stack.params[head_names(stack)[0]].shape[1]
    chosen = torch.isin(images.ids, forget.ids)
    return lambda epoch: drawn.labels(images, chosen, ctx.seeds, classes, epoch)
