"""``sfron``: now and then a step that forgets, where the forget set matters most; in between steps that repair."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import Batch, cross_entropy
from unlearnlab.gradients import mean_squared_gradient, summed_gradient
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Cosine, Optimizer, Sgd
from unlearnlab.progress import Progress
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Mask, Net, Stack, Tensors, per_member

TINY = 1e-15


@spec("method", "sfron", paper="arXiv:2409.19732")
class SfRon:
    """Every few steps climb the loss of the forget set, along the weights that matter more to it than to the retain set; else repair.

    Round k of K: if k mod f = 0 a step on −a_k·Σ c_i CE_i / Σ c_i over a batch of S, c_i = 1/(CE_i^λ + tiny), its gradient masked and clipped to norm 7;
    then a step on CE(R); then θ ← (1−β)·θ_prev + β·θ. a_k falls from a_0 to 0 along a cosine, the mask is F_S/F_R ≥ γ, F_X = mean squared gradient of
    CE over X. steps = K, forget_every = f, forget_weight = a_0, adaptivity = λ, threshold = γ, slow_share = β, slow_every = rounds between slow
    updates. One optimiser makes all steps. Source: Huang et al. 2024 (methods.md §7.2).
    Differs from the published code: a short last batch counts by its size in F, which is never read from a file of another forget set; at
    the default β = 1 the slow update is the identity, as published (β < 1: the paper's).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "K·(1 + 1/f) batches, and n/n_r for each mask"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    steps: Annotated[int, Setting("rounds, each ending in a retain step", symbol="K", ge=1, published="1500 (CIFAR-10), 500 (Tiny-ImageNet)")] = 1500
    forget_every: Annotated[int, Setting("rounds from one forget step to the next", symbol="f", ge=1, published="5 (CIFAR-10), 1 (Tiny-ImageNet)")] = 5
    forget_weight: Annotated[float, Setting("weight of the forget loss at first", symbol="a₀", ge=0, published="25 (CIFAR-10), 500 (Tiny-ImageNet)")] = 25.0
    adaptivity: Annotated[float, Setting("how much less images count whose loss is already high", symbol="λ", ge=0, published="0.5, 0.6")] = 0.5
    threshold: Annotated[float, Setting("how many times more a weight must matter to the forget set to be open", symbol="γ", ge=0, published="1")] = 1.0
    squares: Annotated[Literal["batch", "example"], Setting("what is squared for the mask: gradients of batches, or of single images", published="batch")] = (
        "batch"
    )
    mask_refresh: Annotated[
        Literal["once", "every_forget_step"],
        Setting("when the mask is made: of the original, or of the model before each forget step (dear)", published="once"),
    ] = "once"
    slow_share: Annotated[float, Setting("how far the slow weights follow", symbol="β", ge=0, le=1, published="1")] = 1.0
    slow_every: Annotated[int, Setting("rounds from one slow update to the next", ge=1)] = 1
    clip: Annotated[float, Setting("largest norm of a forget step's gradient", gt=0, published="7")] = 7.0
    lr: LearningRate = 0.01
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Cosine()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        forget, retain = batches(split.forget, self, ctx, "order.forget"), batches(split.retain, self, ctx, "order.retain")
        steps, per_epoch = self.steps + math.ceil(self.steps / self.forget_every), retain.steps_per_epoch

        def stream(step: int) -> Batch:
            k, forgets = self.round(step)
            # a loss does not see the step, so the weight of the step travels with its batch
            return replace(forget(k // self.forget_every), tag=repr(self.weight(k))) if forgets else retain(k)

        def course(step: int, _steps: int, _per_epoch: int) -> float:
            return self.schedule(self.round(step)[0], self.steps, per_epoch)  # both steps of a round have one learning rate

        once = self.open(stack, split, ctx.progress) if self.mask_refresh == "once" else None

        def opened(params: Tensors) -> Tensors:
            # fit lends no running averages here, so the mask of a moved model uses the original's
            return once or self.open(stack.having(params), split, ctx.progress)

        rule = _Rounds(self, opened, ctx.mask)
        return descend(stack, stream, self._loss, self, ctx, steps=steps, per_epoch=per_epoch, optimizer=rule, schedule=course)

    def round(self, step: int) -> tuple[int, bool]:
        """The round that a step belongs to, and whether it is its forget step."""
        block, at = divmod(step, self.forget_every + 1)
        return block * self.forget_every + max(at - 1, 0), at == 0

    def weight(self, k: int) -> float:
        """a_k, the weight of the forget loss in round k."""
        return self.forget_weight * (1 + math.cos(math.pi * k / self.steps)) / 2

    def open(self, stack: Stack, split: Split, progress: Progress) -> Tensors:
        """Which weights matter at least γ times as much to the forget set as to the retain set; never pruned ones."""
        of_forget, of_retain = (self._importance(stack, images, progress) for images in (split.forget, split.retain))
        matter = {name: (of_forget[name] + TINY) / (of_retain[name] + TINY) >= self.threshold for name in of_forget}
        return {name: bits & stack.live.get(name, bits) for name, bits in matter.items()}  # a pruned weight does not move: the norm leaves it out

    def _importance(self, stack: Stack, images: Images, progress: Progress) -> Tensors:
        if self.squares == "example":
            return mean_squared_gradient(stack, images, progress)
        total = {name: torch.zeros_like(p) for name, p in stack.params.items()}
        for rows in torch.split(torch.arange(len(images), device=images.labels.device), self.batch):
            for name, g in summed_gradient(stack, images.rows(rows), progress).items():
                total[name] += (g / len(rows)).square() * (len(rows) / len(images))
        return total

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        if not batch.tag:
            return cross_entropy(net, batch, aux)
        each = F.cross_entropy(net(batch.images), batch.labels, reduction="none")
        counts = 1 / (each.detach() ** self.adaptivity + TINY)
        return -float(batch.tag) * (counts * each).sum() / counts.sum()


@dataclass(frozen=True)
class _Rounds:
    """The method's update rule: masks and clips forget steps, and lets slow weights follow. It sees the weights that ``edit_grad`` does not."""

    method: SfRon
    opened: Callable[[Tensors], Tensors]
    mask: Mask | None

    def start(self, params: Tensors) -> Tensors:
        slow = {f"slow/{name}": p.clone() for name, p in params.items()} if self.method.slow_share < 1 else {}
        return self._rule.start(params) | slow

    @property
    def _rule(self) -> Optimizer:
        return self.method.optimizer

    def update(self, params: Tensors, grads: Tensors, state: Tensors, lr: float, step: int) -> Tensors:
        k, forgets = self.method.round(step)
        if forgets:
            may = self.opened(params)
            inside = may if self.mask is None else {name: bits & self.mask.open[name] for name, bits in may.items()}
            grads = {name: torch.where(inside[name], g, 0) for name, g in grads.items()}
            shrink = (self.method.clip / (per_member(grads, lambda g: g.square().sum(1)).sqrt() + 1e-6)).clamp(max=1.0)
            grads = {name: g * shrink.view(-1, *[1] * (g.dim() - 1)) for name, g in grads.items()}
        after = self._rule.update(params, grads, state, lr, step)
        if not forgets and self.method.slow_share < 1 and (k + 1) % self.method.slow_every == 0:
            after = {name: torch.lerp(state[f"slow/{name}"], p, self.method.slow_share) for name, p in after.items()}
            state |= {f"slow/{name}": p.clone() for name, p in after.items()}
        return after
