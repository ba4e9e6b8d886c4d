"""``hybrid_two_stage``: first wrong labels on the forget set, then fine-tuning on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.methods.class_weights import ClassWeights
from unlearnlab.methods.finetune import finetuned
from unlearnlab.methods.poison import Poison
from unlearnlab.methods.random_label import ExcludeTrue
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.optimizers import Constant
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Stack


@spec("method", "hybrid_two_stage")
class HybridTwoStage:
    """Wreck what the model knows of the forget set with random labels, then fine-tune on the retain set.

    ``poison`` with forget_lr and forget_epochs at a constant rate, then ``finetune`` with lr = η, epochs = E and schedule, each with an
    optimiser of its own. With bn = "frozen", forget_lr = 0 is ``finetune`` bit for bit, and lr = 0 is ``poison``.
    Source: "Forget with Precision", ETH Zürich 2023 (methods.md §4).
    Differs from the published code: as ``poison``; retain images come in a new order each epoch, augmented as in training
    (there: in their given order, through the transform of evaluation); no stage replaces the classifier head (there: on face images).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E + forget_epochs·n_f/n_r"
    null: ClassVar[Mapping[str, Any] | None] = {"forget_lr": 0.0, "lr": 0.0, "bn": "frozen"}
    forget_lr: Annotated[float, Setting("learning rate of the first stage", ge=0)] = 0.01
    forget_epochs: Annotated[int, Setting("passes over the forget set in the first stage", ge=1)] = 1
    exclude_true: ExcludeTrue = Poison.exclude_true
    class_weights: ClassWeights = Poison.class_weights
    lr: LearningRate = 0.001
    epochs: Epochs = 5
    batch: BatchSize = Poison.batch
    optimizer: Update = Poison.optimizer
    schedule: Course = Constant()
    bn: BatchNorm = Poison.bn
    augment: Augment = Poison.augment

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        poison = Poison(
            exclude_true=self.exclude_true, class_weights=self.class_weights, lr=self.forget_lr, epochs=self.forget_epochs,
            batch=self.batch, optimizer=self.optimizer, bn=self.bn, augment=self.augment,
        )  # fmt: skip
        return finetuned(poison(stack, split, ctx), split, self, ctx)
