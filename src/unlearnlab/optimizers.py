"""How a step is taken: optimisers, which update stacked tensors elementwise, and schedules of the learning rate."""

from __future__ import annotations

import math
from typing import Annotated, Protocol

import torch

from unlearnlab.grouped import Tensors
from unlearnlab.spec import Setting, spec


class Optimizer(Protocol):
    """Elementwise update of stacked tensors; ``state`` holds stacked tensors by "slot/name"."""

    def start(self, params: Tensors) -> Tensors: ...

    def update(self, params: Tensors, grads: Tensors, state: Tensors, lr: float, step: int) -> Tensors: ...


@spec("optimizer", "sgd")
class Sgd:
    """Stochastic gradient descent with momentum: v ← μv + g + λθ, θ ← θ − ηv."""

    momentum: Annotated[float, Setting("momentum", symbol="μ", ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Setting("L2 penalty, added to the gradient", symbol="λ", ge=0)] = 5e-4
    nesterov: Annotated[bool, Setting("look ahead along the momentum")] = False

    def start(self, params: Tensors) -> Tensors:
        return {f"momentum/{name}": torch.zeros_like(p) for name, p in params.items()} if self.momentum else {}

    def update(self, params: Tensors, grads: Tensors, state: Tensors, lr: float, step: int) -> Tensors:
        weights, slopes = list(params.values()), list(grads.values())
        if self.weight_decay:
            slopes = list(torch._foreach_add(slopes, weights, alpha=self.weight_decay))
        if self.momentum:
            held = [state[f"momentum/{name}"] for name in params]
            torch._foreach_mul_(held, self.momentum)
            torch._foreach_add_(held, slopes)
            slopes = list(torch._foreach_add(slopes, held, alpha=self.momentum)) if self.nesterov else held
        return dict(zip(params, torch._foreach_add(weights, slopes, alpha=-lr), strict=True))


@spec("optimizer", "adam")
class Adam:
    """Adam with bias correction (Kingma & Ba 2015); weight decay is added to the gradient."""

    beta1: Annotated[float, Setting("decay of the mean", symbol="β₁", ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Setting("decay of the square", symbol="β₂", ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Setting("added to the root", symbol="ε", gt=0)] = 1e-8
    weight_decay: Annotated[float, Setting("L2 penalty, added to the gradient", symbol="λ", ge=0)] = 0.0

    def start(self, params: Tensors) -> Tensors:
        return {f"{slot}/{name}": torch.zeros_like(p) for slot in ("mean", "square") for name, p in params.items()}

    def update(self, params: Tensors, grads: Tensors, state: Tensors, lr: float, step: int) -> Tensors:
        slopes = {name: g + self.weight_decay * params[name] for name, g in grads.items()} if self.weight_decay else grads
        return _adam(params, slopes, state, lr, step, self.beta1, self.beta2, self.epsilon)


@spec("optimizer", "adamw")
class AdamW:
    """Adam whose weight decay acts on the weights themselves: θ ← (1 − ηλ)θ, then Adam's step (Loshchilov & Hutter 2019)."""

    beta1: Annotated[float, Setting("decay of the mean", symbol="β₁", ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Setting("decay of the square", symbol="β₂", ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Setting("added to the root", symbol="ε", gt=0)] = 1e-8
    weight_decay: Annotated[float, Setting("share of the weights, times the learning rate, lost in a step", symbol="λ", ge=0)] = 0.01

    def start(self, params: Tensors) -> Tensors:
        return Adam().start(params)

    def update(self, params: Tensors, grads: Tensors, state: Tensors, lr: float, step: int) -> Tensors:
        shrunk = {name: p * (1 - lr * self.weight_decay) for name, p in params.items()}
        return _adam(shrunk, grads, state, lr, step, self.beta1, self.beta2, self.epsilon)


def _adam(params: Tensors, grads: Tensors, state: Tensors, lr: float, step: int, beta1: float, beta2: float, epsilon: float) -> Tensors:
    after = {}
    for name, p in params.items():
        mean = state[f"mean/{name}"].lerp_(grads[name], 1 - beta1)
        square = state[f"square/{name}"].mul_(beta2).addcmul_(grads[name], grads[name], value=1 - beta2)
        root = (square / (1 - beta2 ** (step + 1))).sqrt_().add_(epsilon)
        after[name] = p - lr / (1 - beta1 ** (step + 1)) * mean / root
    return after


class Schedule(Protocol):
    """Share of the peak learning rate at a step (0-based) of ``steps``, with ``per_epoch`` steps an epoch."""

    def __call__(self, step: int, steps: int, per_epoch: int) -> float: ...


@spec("schedule", "constant")
class Constant:
    """The same learning rate throughout."""

    def __call__(self, step: int, steps: int, per_epoch: int) -> float:
        return 1.0


@spec("schedule", "cosine")
class Cosine:
    """Half a cosine from the peak down to ``final`` of it, step by step."""

    final: Annotated[float, Setting("share of the peak reached at the end", ge=0, le=1)] = 0.0

    def __call__(self, step: int, steps: int, per_epoch: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * step / steps)) / 2


@spec("schedule", "multi_step")
class MultiStep:
    """Multiply the learning rate by ``factor`` at the start of each of these epochs."""

    epochs: Annotated[tuple[int, ...], Setting("0-based epochs at which the rate drops", ge=0)] = (91, 136)
    factor: Annotated[float, Setting("by which it is multiplied", gt=0, le=1)] = 0.1

    def __call__(self, step: int, steps: int, per_epoch: int) -> float:
        return self.factor ** sum(step >= epoch * per_epoch for epoch in self.epochs)


@spec("schedule", "exponential")
class Exponential:
    """Multiply the learning rate by ``factor`` at the end of each epoch."""

    factor: Annotated[float, Setting("by which it is multiplied", gt=0, le=1)] = 0.95

    def __call__(self, step: int, steps: int, per_epoch: int) -> float:
        return float(self.factor ** (step // per_epoch))


@spec("schedule", "one_cycle")
class OneCycle:
    """Cosine up from peak/``start_divisor``, then cosine down to that start/``end_divisor`` (Smith & Topin 2019)."""

    rising: Annotated[float, Setting("share of the steps spent rising", gt=0, lt=1)] = 0.3
    start_divisor: Annotated[float, Setting("peak over first rate", ge=1)] = 25.0
    end_divisor: Annotated[float, Setting("first over last rate", ge=1)] = 1e4

    def __call__(self, step: int, steps: int, per_epoch: int) -> float:
        first = 1 / self.start_divisor
        top, last = self.rising * steps - 1, steps - 1
        if step <= top:
            return _cosine_between(first, 1.0, step / top if top > 0 else 1.0)
        return _cosine_between(1.0, first / self.end_divisor, (step - top) / (last - top) if last > top else 1.0)


@spec("schedule", "warm_up")
class WarmUp:
    """Rise linearly from 0 over the first epochs, then follow another schedule over the remaining steps."""

    epochs: Annotated[float, Setting("length of the rise", gt=0)] = 1.0
    then: Annotated[Schedule, Setting("what follows", kind="schedule")] = Constant()

    def __call__(self, step: int, steps: int, per_epoch: int) -> float:
        rise = min(round(self.epochs * per_epoch), steps)
        return (step + 1) / rise if step < rise else self.then(step - rise, steps - rise, per_epoch)


def _cosine_between(a: float, b: float, share: float) -> float:
    return b + (a - b) * (1 + math.cos(math.pi * share)) / 2
