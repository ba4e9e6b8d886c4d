"""What all methods that train share: batches as their settings say, and the way to ``fit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from jaxtyping import Int64
from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Images
from unlearnlab.fit import Loss, Shuffled, Stream, fit
from unlearnlab.methods.settings import AugmentPolicy
from unlearnlab.optimizers import Optimizer, Schedule
from unlearnlab.stack import BatchNormPolicy, Stack


class Trains(Protocol):
    """The settings that ``batches`` and ``descend`` read off a method."""

    @property
    def lr(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def optimizer(self) -> Optimizer: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def bn(self) -> BatchNormPolicy: ...
    @property
    def augment(self) -> AugmentPolicy: ...


def batches(
    images: Images,
    method: Trains,
    ctx: Context,
    purpose: str,
    *,
    size: int | None = None,
    labels: Callable[[int], Tensor] | None = None,
    rows: Int64[Tensor, "k m"] | None = None,
) -> Shuffled:
    """Batches of these images in new orders each epoch, drawn from the method's own seeds and augmented as its ``augment`` says.

    ``purpose``: of the order's generator, ``order.retain`` for the retain set, ``order.forget`` for the forget set.
    ``size``: the method's ``batch`` if not given. ``labels(epoch)`` -> [K, n] replaces the labels.
    ``rows``: each member's own part of the images (none given: all of them).
    """
    augment = ctx.recipe.augment if method.augment == "train" else ()
    return Shuffled(images, size or method.batch, ctx.seeds, purpose, labels=labels, augment=augment, rows=rows)


def descend(stack: Stack, stream: Stream, loss: Loss, method: Trains, ctx: Context, *, steps: int, per_epoch: int, **changed: Any) -> Stack:
    """``fit`` with the method's settings, within the context's mask and at its cost; ``changed`` goes to ``fit`` in their place."""
    usual: dict[str, Any] = {"lr": method.lr, "optimizer": method.optimizer, "schedule": method.schedule, "bn": method.bn, "mask": ctx.mask}
    return fit(stack, stream, loss, steps=steps, per_epoch=per_epoch, progress=ctx.progress, seeds=ctx.seeds, **(usual | changed))
