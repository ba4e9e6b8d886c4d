"""``gradient_ascent``: climb the loss of the forget set."""

from __future__ import annotations

from collections.abc import Mapping
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


@spec("method", "gradient_ascent", paper="arXiv:1911.04933")
class GradientAscent:
    """Undo learning by climbing the loss of the forget set; the retain set is never seen.

    min −CE(S) + γ‖θ‖₁, from θ_o; lr = η, epochs = E passes over S, penalty = γ. Very sensitive to the learning rate.
    Source: Golatkar et al. 2020; Thudi et al. 2022 (methods.md §2.3).
    Differs from the published code: E·⌈n_f/B⌉ steps (one port steps once per retain batch, nine times as often);
    gradients are clipped (``clip = 0``: they are not); BatchNorm uses its running averages and does not update them on
    forget images alone (published: bn = "train"); the loss is never clamped, which would zero its gradient.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    cost: ClassVar[str] = "E·n_f/n_r"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0}
    lr: LearningRate = 1e-4
    epochs: Epochs = 5
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "frozen"
    augment: Augment = "train"
    clip: Annotated[float, Setting("largest gradient norm; 0: no clipping", ge=0)] = 1.0
    penalty: Annotated[float, Setting("weight of the L1 norm of all weights", symbol="γ", ge=0)] = 0.0

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        stream = batches(split.forget, self, ctx, "order.forget")
        per_epoch = stream.steps_per_epoch
        return descend(stack, stream, self._loss, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, clip=self.clip or None)

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        climb = -cross_entropy(net, batch, aux)
        for weights in net.params.values() if self.penalty else ():
            climb = climb + self.penalty * weights.abs().sum()
        return climb
