"""The last stage of methods that damage a model first: train on the retain set until it is whole again."""

from __future__ import annotations

from typing import Protocol

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.methods.class_weights import Weighting, class_weighted
from unlearnlab.methods.training import Trains, batches, descend
from unlearnlab.stack import Stack


class Relearns(Trains, Protocol):
    """The settings that ``relearn`` reads off a method."""

    @property
    def epochs(self) -> int: ...
    @property
    def class_weights(self) -> Weighting: ...


def relearn(stack: Stack, split: Split, method: Relearns, ctx: Context) -> Stack:
    """``finetune`` with these settings; bit for bit the same where images are not weighted by class."""
    stream = batches(split.retain, method, ctx, "order.retain")
    loss, per_epoch = class_weighted(method.class_weights, stack, split), stream.steps_per_epoch
    return descend(stack, stream, loss, method, ctx, steps=method.epochs * per_epoch, per_epoch=per_epoch)
