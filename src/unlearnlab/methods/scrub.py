"""``scrub``: disagree with the original on the forget set, agree with it on the retain set."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch, Stream
from unlearnlab.methods.settings import Augment, BatchNorm
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import MultiStep, Optimizer, Sgd
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Net, Stack

LabelWeight = Annotated[float, Setting("weight of the retain cross-entropy", symbol="γ", ge=0, published="1 (small, membership), 0.99 (large), 99 (confusion)")]
TeacherWeight = Annotated[
    float,
    Setting("weight of the distance from the original on the retain set", symbol="α", ge=0,
            published="0.5 (small, membership), 0.001 (large), 0.01 (confusion), 0.1 (EasyDUB)"),
]  # fmt: skip
Temperature = Annotated[
    float, Setting("softens both outputs before they are compared", symbol="T", gt=0, published="2 (small, confusion), 4 (large, membership, EasyDUB)")
]
MaxEpochs = Annotated[
    int,
    Setting("epochs, the first ones, that begin with a pass over the forget set", symbol="M", ge=0,
            published="3 (small, membership), 2 (large, confusion), 5 of 5 (ResNet-50 on CIFAR-100), 4 of 5 (RUM)"),
]  # fmt: skip
DecayAt = Annotated[
    tuple[float, ...],
    Setting("shares of the epochs, rounded up, after which the learning rate falls to a tenth", gt=0, le=1,
            published="epochs 5, 8, 9 of 10 (small); 3, 5, 9 of 3 (large) or 5 (membership); 5, 6, 9 of 10 (confusion)"),
]  # fmt: skip
ForgetBatch = Annotated[int, Setting("forget images per step", ge=1, published="64 (small), 512 (large), 16 (membership), 32 (confusion)")]
RetainBatch = Annotated[int, Setting("retain images per step", symbol="B", ge=1, published="32 (small, membership, confusion), 256 (large)")]
ScrubRate = Annotated[float, Setting("learning rate", symbol="η", ge=0, published="5e-4")]
ScrubEpochs = Annotated[int, Setting("passes over the retain set", symbol="E", ge=1, published="10 (small, confusion), 3 (large), 5 (membership)")]
ScrubUpdate = Annotated[Optimizer, Setting("update rule", kind="optimizer", published="Adam with weight decay 0.1 (small), else SGD 0.9 with 5e-4")]


@spec("method", "scrub", paper="arXiv:2302.09880")
class Scrub:
    """Push the model's outputs on the forget set away from the original's, and hold them near on the retain set.

    d(x) = T²·KL(softmax(z_o/T) ‖ softmax(z/T)), z_o of the frozen original (the teacher). Epoch e = 1…E: if e ≤ M one pass over S that
    minimises −mean d ("max"); then one over R that minimises γ·CE + α·mean d ("min"); learning rate η·0.1^(decay epochs before e).
    label_weight = γ, teacher_weight = α, max_epochs = M, decay_at = decay epochs / E. Source: Kurmanji et al. 2023 (methods.md §2.6).
    Differs from the published code: nothing at the settings of a notebook. Ports of it run M + 1 max passes, or hand the teacher's weights
    to the optimiser; here one optimiser holds the student's alone, and its momentum goes on through all passes. With bn = "train", as
    published, the passes over S also move BatchNorm's running averages.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E + M·n_f/n_r, and as much again forward through the original"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    label_weight: LabelWeight = 1.0
    teacher_weight: TeacherWeight = 0.5
    temperature: Temperature = 2.0
    max_epochs: MaxEpochs = 3
    decay_at: DecayAt = (0.5, 0.8, 0.9)
    lr: ScrubRate = 5e-4
    epochs: ScrubEpochs = 10
    batch: RetainBatch = 128
    forget_batch: ForgetBatch = 64
    optimizer: ScrubUpdate = Sgd()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __post_init__(self) -> None:
        if self.max_epochs > self.epochs:
            raise InputError(f"method 'scrub': max_epochs = {self.max_epochs} must be at most epochs = {self.epochs}")

    @property
    def schedule(self) -> MultiStep:
        """Of the learning rate, by epoch; shares of the epochs are rounded up to whole ones."""
        return MultiStep(tuple(math.ceil(Decimal(str(share)) * self.epochs) for share in self.decay_at), 0.1)

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        stream, ends = self.passes(split, ctx)
        return self.train(stack, stream, ends, ctx)

    def passes(self, split: Split, ctx: Context) -> tuple[Stream, list[int]]:
        """All batches, tagged max or min, and how many steps are done after 0, 1, … E epochs."""
        forget, retain = batches(split.forget, self, ctx, "order.forget", size=self.forget_batch), batches(split.retain, self, ctx, "order.retain")
        up, down = forget.steps_per_epoch, retain.steps_per_epoch
        ends = [epoch * down + min(epoch, self.max_epochs) * up for epoch in range(self.epochs + 1)]

        def stream(step: int) -> Batch:
            epoch = bisect_right(ends, step) - 1
            at, first = step - ends[epoch], up if epoch < self.max_epochs else 0
            return replace(forget(epoch * up + at), tag="max") if at < first else replace(retain(epoch * down + at - first), tag="min")

        return stream, ends

    def train(self, stack: Stack, stream: Stream, ends: Sequence[int], ctx: Context, keep: Mapping[int, Callable[[Stack], None]] | None = None) -> Stack:
        """All passes in one go. ``keep``: by number of steps done, who is given the stack as it then is."""

        def rate(step: int, steps: int, per_epoch: int) -> float:
            return self.schedule(bisect_right(ends, step) - 1, self.epochs, 1)  # epochs are not equally long

        return descend(stack, stream, self._loss, self, ctx, steps=ends[-1], per_epoch=1, schedule=rate, aux={"teacher": stack}, keep=keep)

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        logits, warm = net(batch.images), 1 / self.temperature
        student, teacher = (logits * warm).log_softmax(1), (aux["teacher"](batch.images) * warm).log_softmax(1)
        apart = (teacher.exp() * (teacher - student)).sum(1).mean() * self.temperature**2  # torch's kl_div has no fast rule for vmap
        return -apart if batch.tag == "max" else self.label_weight * F.cross_entropy(logits, batch.labels) + self.teacher_weight * apart
