"""``ct``: transpose every convolution kernel, then fine-tune on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from torch import nn

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.settings import Augment, BatchNorm, Course, Epochs, Update
from unlearnlab.optimizers import Cosine, Sgd
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack, Tensors, weights_of

# What the contest's methods share: their code searched these ranges.
ContestRate = Annotated[float, Setting("learning rate", symbol="η", ge=0, published="searched log-uniformly in 1e-5…0.1")]
ContestBatch = Annotated[int, Setting("examples per step", symbol="B", ge=1, published="64, fcs 256; searched in {64, 128, 256}")]


@spec("method", "ct", paper="arXiv:2410.01276")
class Ct:
    """Transpose every convolution kernel, so that all filters look for mirrored patterns, then fine-tune on the retain set.

    θ⁽⁰⁾ = θ_o with the last two axes of each kernel swapped (1×1 kernels are unaffected, BatchNorm is kept), then min CE(R) with a fresh
    optimiser; lr = η, epochs = E. A net without kernels larger than 1×1 is merely fine-tuned. Source: NeurIPS'23 contest, place 5, as
    re-implemented by Cadet et al. 2024 (methods.md §6.5).
    Differs from the published code: a kernel that is not square is refused (there: its layer changes shape and may fail later); the
    cosine falls at each step (there: at each epoch).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "E"
    null: ClassVar[Mapping[str, Any] | None] = None
    lr: ContestRate = 0.001
    epochs: Epochs = 3
    batch: ContestBatch = 64
    optimizer: Update = Sgd()
    schedule: Course = Cosine()
    bn: BatchNorm = "train"
    augment: Augment = "none"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        turned = transposed(stack)
        start = stack.having(turned if ctx.mask is None else ctx.mask.choose(turned, stack.params))
        then = FineTune(lr=self.lr, epochs=self.epochs, batch=self.batch, optimizer=self.optimizer, schedule=self.schedule, bn=self.bn, augment=self.augment)
        return then(start, split, ctx)


def transposed(stack: Stack) -> Tensors:
    """All weights, kernels with their last two axes swapped."""
    turned = dict(stack.params)
    for name in weights_of(stack.net, nn.Conv2d):
        *_, height, width = turned[name].shape
        if height != width:
            raise InputError(f"method 'ct' transposes square kernels only, and '{name}' is {height}×{width}; use another method, such as 'finetune'")
        turned[name] = turned[name].transpose(-1, -2).contiguous()
    return turned
