"""``neggrad_plus``: descend on the retain set while climbing on the forget set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch, cross_entropy
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Net, Stack

Rate = Annotated[float, Setting("learning rate", symbol="η", ge=0, published="0.01 (SCRUB; RUM low and mid), 0.001 (RUM high)")]
Passes = Annotated[int, Setting("passes over the retain set", symbol="E", ge=1, published="5; 10 (RUM high)")]
RetainWeight = Annotated[
    float,
    Setting("weight of the retain loss; the forget loss has the rest", symbol="α", ge=0, le=1,
            published="0.9999 (SCRUB), 0.99 (DEL; RUM low), 0.97 (RUM mid and high), 0.95 (where deepunlearn starts)"),
]  # fmt: skip
Joint = Annotated[bool, Setting("both batches in one forward pass, so that BatchNorm sees them together")]
Pull = Annotated[float, Setting("weight of the squared distance of the weights from the original's", symbol="λ", ge=0, published="0 (deepunlearn)")]


@spec("method", "neggrad_plus", paper="arXiv:2302.09880")
class NegGradPlus:
    """Descend the loss of the retain set and climb that of the forget set in the same step.

    L = α·CE(B_r) − (1−α)·CE(B_f) + λ‖θ − θ_o‖²; retain_weight = α, pull = λ, lr = η, epochs = E passes over R. With α = 1 and λ = 0
    the weights are those of ``finetune`` (with joint_forward only where no BatchNorm mixes the batches).
    Source: Kurmanji et al. 2023 (methods.md §2.4).
    Differs from the published code: forget batches come from a stream that reshuffles at each pass (there: ``itertools.cycle``
    replays the batches of the first); the default α is .99 (one port shares α = .2 with other methods, which destroys the model).
    With bn = "train" both forwards update the running averages, as published in RUM; SCRUB and deepunlearn keep the whole model
    in eval mode, which is bn = "eval_all".
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E·(1 + forget batches beside retain batches)"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    retain_weight: RetainWeight = 0.99
    joint_forward: Joint = False
    pull: Pull = 0.0
    lr: Rate = 0.01
    epochs: Passes = 5
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

        aux = {"original": stack} if self.pull else {}
        return descend(stack, both, self._loss, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, aux=aux)

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        assert batch.also is not None
        if self.joint_forward:
            retain, forget = self._together(net, batch, batch.also)
        else:
            retain, forget = cross_entropy(net, batch, aux), cross_entropy(net, batch.also, aux)
        loss = self.retain_weight * retain - (1 - self.retain_weight) * forget
        for name, weights in net.params.items() if self.pull else ():
            loss = loss + self.pull * (weights - aux["original"].params[name]).square().sum()
        return loss

    @staticmethod
    def _together(net: Net, retain: Batch, forget: Batch) -> tuple[Tensor, Tensor]:
        """Both losses from one forward pass."""
        logits, first = net(torch.cat([retain.images, forget.images])), len(retain.labels)
        return F.cross_entropy(logits[:first], retain.labels), F.cross_entropy(logits[first:], forget.labels)
