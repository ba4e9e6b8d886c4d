"""``l1_sparse``: fine-tune on the retain set with a penalty that drives weights to zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch, cross_entropy
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Net, Stack, Tensors

Rate = Annotated[float, Setting("learning rate", symbol="η", ge=0, published="0.01; search 1e-3 to 0.1 (SalUn)")]
Passes = Annotated[int, Setting("passes over the retain set", symbol="E", ge=1, published="10")]
Penalty = Annotated[
    float, Setting("weight of the L1 norm at its largest", symbol="γ", ge=0, published="7e-5 (DEL), 5e-4 (class-wise), search 1e-6 to 1e-4 (SalUn)")
]
How = Annotated[Literal["subgradient", "proximal"], Setting("penalty as part of the gradient, or shrinkage after each step", published="subgradient")]


@spec("method", "l1_sparse", paper="arXiv:2304.04934")
class L1Sparse:
    """Fine-tune on the retain set while a penalty shrinks all weights, so that what only the forget set needs withers.

    L_e = CE(R) + γ_e·‖θ‖₁ at epoch e of E, of which the last N₀ go without penalty: γ_e = γ(1 − e/(E−N₀)) (decay), γ·e/(E−N₀) (growth),
    γ (constant). penalty = γ, penalty_free_epochs = N₀. Source: Jia et al. 2023 (methods.md §2.5).
    Differs from the published code: nothing at the defaults; there the sub-gradient never makes a weight exactly zero, so a reported
    sparsity is meaningless; ``update = "proximal"`` (θ ← sign θ · max(|θ| − ηγ_e, 0) after each step) makes real zeros, and so
    does a ``final_threshold`` t: |θ| < t becomes 0 after the last step.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "E"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    penalty: Penalty = 5e-5
    penalty_schedule: Annotated[Literal["decay", "growth", "constant"], Setting("course of the penalty over the epochs", published="decay")] = "decay"
    penalty_free_epochs: Annotated[int, Setting("epochs at the end without penalty", symbol="N₀", ge=0, published="0")] = 0
    penalise: Annotated[Literal["all", "weights_only"], Setting("penalise all tensors, or not the biases and normalisation weights")] = "all"
    update: How = "subgradient"
    final_threshold: Annotated[float, Setting("penalised weights smaller than this are 0 in the end; 0: all stay as they are", ge=0)] = 0.0
    lr: Rate = 0.01
    epochs: Passes = 10
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __post_init__(self) -> None:
        if self.penalty_free_epochs >= self.epochs:
            raise InputError(f"method 'l1_sparse': penalty_free_epochs = {self.penalty_free_epochs} must be less than epochs = {self.epochs}")

    def strength(self, epoch: int) -> float:
        """γ_e, the penalty of an epoch (0-based)."""
        last = self.epochs - self.penalty_free_epochs
        course = {"decay": 1 - epoch / last, "growth": epoch / last, "constant": 1.0}
        return self.penalty * course[self.penalty_schedule] if epoch < last else 0.0

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        retain = batches(split.retain, self, ctx, "order.retain")
        per_epoch, proximal = retain.steps_per_epoch, self.update == "proximal"
        steps = self.epochs * per_epoch

        def stream(step: int) -> Batch:
            # a loss does not see the step, so the penalty of the step travels with its batch
            return retain(step) if proximal else replace(retain(step), tag=repr(self.strength(step // per_epoch)))

        def shrink(params: Tensors, step: int) -> Tensors:
            by = self.lr * self.schedule(step, steps, per_epoch) * self.strength(step // per_epoch)
            return {name: p.sign() * (p.abs() - by).clamp(min=0) if self._penalised(p[0]) else p for name, p in params.items()}

        loss, after_step = (cross_entropy, shrink) if proximal else (self._loss, None)
        after = descend(stack, stream, loss, self, ctx, steps=steps, per_epoch=per_epoch, after_step=after_step)
        if not self.final_threshold:
            return after
        cut = {name: torch.where(p.abs() < self.final_threshold, 0, p) if self._penalised(p[0]) else p for name, p in after.params.items()}
        return after.having(cut if ctx.mask is None else ctx.mask.choose(cut, after.params))

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        loss, strength = cross_entropy(net, batch, aux), float(batch.tag)
        for weights in net.params.values() if strength else ():
            if self._penalised(weights):
                loss = loss + strength * weights.abs().sum()
        return loss

    def _penalised(self, weights: Tensor) -> bool:
        return self.penalise == "all" or weights.dim() > 1
