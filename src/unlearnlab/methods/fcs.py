"""``fcs``: make predictions on the forget set flat, then alternate contrastive forgetting and training on the retain set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch, cross_entropy
from unlearnlab.methods.ct import ContestBatch
from unlearnlab.methods.settings import Augment, BatchNorm, Course, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Constant, Cosine, Optimizer, Sgd
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Net, Stack, Tensors

REFERENCE_BATCH = 64  # the learning rate of the retain rounds is given for batches of this size
Turn = tuple[Optimizer, Callable[[int], float]]


@spec("method", "fcs", paper="arXiv:2410.01276")
class Fcs:
    """Make predictions on the forget set flat, then alternate between making it resemble all retained images alike and training on the retain set.

    1. one pass over S: min KL(uniform ‖ p), rate flat_lr. 2. E = epochs times (a) a forget round, min mean of −log softmax_rows(Z_f·Z_rᵀ/T)
    over batches of S, each beside a batch of R, with logits Z and Z_r held fixed, rate forget_lr on a cosine down to final_lr over all forget
    rounds; (b) one epoch of min CE(R), rate lr·B/64. temperature = T, batch = B. Each of the three has an optimiser of its own (momentum,
    count of steps), which lasts over the rounds. Source: NeurIPS'23 contest, place 1, as re-implemented by Cadet et al. 2024 (methods.md §6.1).
    Differs from the published code: nothing at the defaults; its "symmetric" KL is the one-sided one above; forget rounds pass over all
    of S even where R has fewer batches. The passes of Z_r count as forward and backward.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E + (1 + 2E)·n_f/n_r, forget rounds in whole batches of R"
    null: ClassVar[Mapping[str, Any] | None] = {"flat_lr": 0.0, "forget_lr": 0.0, "final_lr": 0.0, "lr": 0.0, "bn": "frozen"}
    flat_lr: Annotated[float, Setting("learning rate of the first pass", ge=0, published="0.005")] = 0.005
    forget_lr: Annotated[float, Setting("first learning rate of the forget rounds", ge=0, published="3e-4; searched in 1e-5…0.1")] = 3e-4
    final_lr: Annotated[float, Setting("last learning rate of the forget rounds", ge=0, published="1e-6")] = 1e-6
    lr: Annotated[float, Setting("learning rate of the retain rounds, per 64 examples of a batch", symbol="η", ge=0, published="0.001")] = 0.001
    temperature: Annotated[float, Setting("divides the similarities", symbol="T", gt=0, published="1.15; searched in 0…5")] = 1.15
    epochs: Annotated[int, Setting("rounds of forgetting and retraining", symbol="E", ge=1)] = 8
    batch: ContestBatch = 256
    forget_optimizer: Annotated[Optimizer, Setting("update rule of the first pass and of the forget rounds", kind="optimizer")] = Sgd(weight_decay=0.0)
    optimizer: Update = Sgd(weight_decay=0.01)
    schedule: Annotated[Course, Setting("course of the learning rate of the retain rounds", kind="schedule")] = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "none"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        forget, retain = batches(split.forget, self, ctx, "order.forget"), batches(split.retain, self, ctx, "order.retain")
        beside = batches(split.retain, self, ctx, "order.contrast")
        f, r = forget.steps_per_epoch, retain.steps_per_epoch
        shuffles = -(-f // r) * r  # batches in as many whole shuffles of R as one forget round draws from: each round begins a new one

        def whose(step: int) -> tuple[str, int]:
            """The phase of a step, and which of the phase's own steps it is."""
            if step < f:
                return "flatten", step
            epoch, at = divmod(step - f, f + r)
            return ("contrast", epoch * f + at) if at < f else ("train", epoch * r + at - f)

        def stream(step: int) -> Batch:
            phase, at = whose(step)
            if phase == "train":
                return replace(retain(at), tag=phase)
            if phase == "flatten":
                return replace(forget(at), tag=phase)
            return replace(forget(f + at), tag=phase, also=beside(at // f * shuffles + at % f))

        def falling(at: int) -> float:
            share = Cosine()(at, self.epochs * f, f)
            return self.forget_lr * share + self.final_lr * (1 - share)

        turns = InTurn(
            {
                "flatten": (self.forget_optimizer, lambda at: self.flat_lr),
                "contrast": (self.forget_optimizer, falling),
                "train": (self.optimizer, lambda at: self.lr * self.batch / REFERENCE_BATCH * self.schedule(at, self.epochs * r, r)),
            },
            whose,
        )
        steps = f + self.epochs * (f + r)
        return descend(stack, stream, self._loss, self, ctx, steps=steps, per_epoch=f + r, lr=1.0, schedule=turns, optimizer=turns)

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        if batch.tag == "train":
            return cross_entropy(net, batch, aux)
        logits = net(batch.images)
        if batch.tag == "flatten":  # KL(uniform ‖ p) = mean over classes of −log p, less log C
            return -logits.log_softmax(1).mean() - math.log(logits.shape[1])
        assert batch.also is not None
        similarity = logits @ net(batch.also.images).detach().T / self.temperature
        return -similarity.log_softmax(1).mean()


class InTurn:
    """Several optimisers of the same weights, one a phase, each with its own state and count of steps; also their learning rates.

    In one ``fit``, since momentum outlasts a phase's turn. ``whose(step)``: the phase and its own step.
    """

    def __init__(self, turns: Mapping[str, Turn], whose: Callable[[int], tuple[str, int]]) -> None:
        self.turns, self.whose = turns, whose

    def __call__(self, step: int, steps: int, per_epoch: int) -> float:
        phase, at = self.whose(step)
        return self.turns[phase][1](at)

    def start(self, params: Tensors) -> Tensors:
        # "slot/name" stays readable: the part after the slash is the weight's name
        return {f"{phase}.{slot}": held for phase, (rule, _) in self.turns.items() for slot, held in rule.start(params).items()}

    def update(self, params: Tensors, grads: Tensors, state: Tensors, lr: float, step: int) -> Tensors:
        phase, at = self.whose(step)
        own = {slot.removeprefix(f"{phase}."): held for slot, held in state.items() if slot.startswith(f"{phase}.")}
        after = self.turns[phase][0].update(params, grads, own, lr, at)
        state.update({f"{phase}.{slot}": held for slot, held in own.items()})
        return after
