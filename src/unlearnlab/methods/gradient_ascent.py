"""``gradient_ascent``: climb the loss of the forget set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch, Stream, cross_entropy
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.methods.waypoints import Waypoints, logits_on, pick
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Net, Stack, head_names

Rate = Annotated[
    float, Setting("learning rate", symbol="η", ge=0, published="1e-4 (one class of CIFAR-10); search 1e-5 to 0.1 (Unlearn-Sparse), 1e-5 to 5e-2 (EasyDUB)")
]
Passes = Annotated[int, Setting("passes over the forget set", symbol="E", ge=1, published="5; 1 to 10 (EasyDUB)")]


@spec("method", "gradient_ascent", paper="arXiv:1911.04933")
class GradientAscent:
    """Undo learning by climbing the loss of the forget set; the retain set is never seen.

    min −CE(S) + γ‖θ‖₁, from θ_o; lr = η, epochs = E passes over S, penalty = γ. Very sensitive to the learning rate.
    With ``stop_at_chance`` each member ends at the first end of an epoch at which the mean probability of the true label on S, in
    eval mode, is at most 1/C; members of a stack go on together, and each is given back as it then was.
    Source: Golatkar et al. 2020; Thudi et al. 2022 (methods.md §2.3).
    Differs from the published code: E·⌈n_f/B⌉ steps (one port steps once per retain batch, nine times as often);
    gradients are clipped (``clip = 0``: they are not); BatchNorm uses its running averages and does not update them on
    forget images alone (published: bn = "train"); the loss is never clamped, which would zero its gradient.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget"})
    cost: ClassVar[str] = "E·n_f/n_r, and with stop_at_chance (E−1)·n_f/n_r more forward"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0}
    lr: Rate = 1e-4
    epochs: Passes = 5
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "frozen"
    augment: Augment = "train"
    clip: Annotated[float, Setting("largest gradient norm; 0: no clipping", ge=0)] = 1.0
    penalty: Annotated[float, Setting("weight of the L1 norm of all weights", symbol="γ", ge=0, published="at most 1e-5")] = 0.0
    stop_at_chance: Annotated[bool, Setting("end a model after the first epoch at which it gives the true labels no more than 1/C on average")] = False
    step_budget: Annotated[int, Setting("at most so many steps; 0: as many as the epochs have", ge=0)] = 0

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        stream = batches(split.forget, self, ctx, "order.forget")
        per_epoch = stream.steps_per_epoch
        steps = min(self.epochs * per_epoch, self.step_budget or self.epochs * per_epoch)
        if not self.stop_at_chance:
            return self._climb(stack, stream, ctx, steps, per_epoch)
        way = Waypoints(stack, range(per_epoch, steps, per_epoch), ctx.progress)
        found, stopped = self._climb(stack, stream, ctx, steps, per_epoch, way.keep), torch.full((len(stack),), steps)
        chance, labels = 1 / stack.params[head_names(stack)[0]].shape[1], split.forget.labels.to(stack.device)
        for step in sorted(way.keep, reverse=True):  # so that the earliest has the last word
            then = way.at(step)
            probabilities = logits_on(then, split.forget, ctx.progress).softmax(2)
            ends = probabilities.gather(2, labels.expand(len(stack), -1).unsqueeze(2)).mean((1, 2)) <= chance
            found, stopped = pick(ends, then, found), stopped.where(~ends.cpu(), step)
        until = dict(zip(stack.seeds, stopped.tolist(), strict=True))  # what failed only after a member's end does not count
        return replace(found, diverged=tuple(bad for bad in found.diverged if bad in stack.diverged or bad.step < until[bad.seed]))

    def _climb(
        self, stack: Stack, stream: Stream, ctx: Context, steps: int, per_epoch: int, keep: Mapping[int, Callable[[Stack], None]] | None = None
    ) -> Stack:
        return descend(stack, stream, self._loss, self, ctx, steps=steps, per_epoch=per_epoch, clip=self.clip or None, keep=keep)

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        climb = -cross_entropy(net, batch, aux)
        for weights in net.params.values() if self.penalty else ():
            climb = climb + self.penalty * weights.abs().sum()
        return climb
