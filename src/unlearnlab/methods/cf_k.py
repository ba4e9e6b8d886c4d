"""``cf_k`` and ``eu_k``: fine-tune, or train anew, only the last blocks and the head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch, cross_entropy
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import MultiStep, Sgd
from unlearnlab.spec import InputError, Setting, info, spec
from unlearnlab.stack import Mask, Net, Stack, blocks, head_names
from unlearnlab.train import Recipe

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
BATCH_NORM = nn.modules.batchnorm._BatchNorm

Blocks = Annotated[int, Setting("how many blocks before the head may change, beside the head", symbol="k", ge=0, published="1; searched from 1 to 10")]


@spec("method", "cf_k", paper="arXiv:2201.06640")
class CfK:
    """Go on training only the last k blocks and the head on the retain set.

    min CE(R) + λ/2·‖θ − θ_o‖² over the last k blocks and the head. k = k, pull = λ, lr = η, epochs = E. A block is a residual block, a
    transformer layer, or a convolution (or other layer) with the normalisation behind it. Frozen blocks use their running averages of
    BatchNorm whatever ``bn`` says, which is for the others. Source: Goel et al. 2022 (methods.md §3.4).
    Differs from the published code: nothing of a frozen block moves (there its running averages drift). Use ``pull`` in place of weight
    decay (optimizer: weight_decay = 0), as published.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "E, with the backward pass through the last blocks only"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}
    k: Blocks = 1
    pull: Annotated[float, Setting("L2 penalty towards the original weights", symbol="λ", ge=0, published="0 to 0.1")] = 0.0
    lr: LearningRate = 0.01
    epochs: Epochs = 10
    batch: BatchSize = 256
    optimizer: Update = Sgd()
    schedule: Course = MultiStep(epochs=(5, 8, 9))
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        start = opened(stack, last_blocks(stack, self))
        mask = None if ctx.mask is None else Mask({name: ctx.mask.open[name] for name in start.params}, ctx.mask.parent)
        stream = batches(split.retain, self, ctx, "order.retain")
        per_epoch, aux = stream.steps_per_epoch, {"start": start} if self.pull else {}
        after = descend(start, stream, self._loss, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, mask=mask, aux=aux)
        return whole(after, stack)

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        loss = cross_entropy(net, batch, aux)
        for name, weights in net.params.items() if self.pull else ():
            loss = loss + self.pull / 2 * (weights - aux["start"].params[name]).square().sum()
        return loss


@spec("method", "eu_k", paper="arXiv:2201.06640")
class EuK:
    """Forget the last k blocks and the head wholly, and train them anew on the retain set as the original was trained.

    The last k blocks and the head get fresh initial weights, then min CE(R) over them with the original's recipe. k = k, epochs = E.
    With k = all blocks this is ``retrain`` bit for bit. Frozen blocks use their running averages of BatchNorm. A mask is refused.
    Source: Goel et al. 2022 (methods.md §3.4).
    Differs from the published code: nothing of a frozen block moves (there its running averages drift); no pull towards the weights
    that training starts from, which are random; learning rate, batches and all else are those of the original's recipe.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    cost: ClassVar[str] = "E, by default E_train, with the backward pass through the last blocks only"
    null: ClassVar[Mapping[str, Any] | None] = None
    k: Blocks = 1
    epochs: Annotated[
        int | None,
        Setting("passes over the retain set; none: as many as the original's recipe", symbol="E", ge=1, published="the original's; up to 10"),
    ] = None

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        if ctx.mask is not None:
            raise InputError("method 'eu_k' starts from fresh weights and cannot keep those outside a mask; use 'reset_finetune' with a mask, or 'cf_k'")
        recipe = ctx.recipe
        if self.epochs is not None:
            if not isinstance(recipe, Recipe):
                raise InputError("method 'eu_k' cannot change epochs of a recipe of one's own; write another recipe, or leave epochs out")
            recipe = replace(recipe, epochs=self.epochs, rewind=None)
        names, fresh = last_blocks(stack, self), stack.fresh(ctx.seeds)
        inside = _behind(stack.net, names)
        params = {name: (fresh if name in names else stack).params[name] for name in stack.params}
        buffers = {name: (fresh if name.rpartition(".")[0] in inside else stack).buffers[name] for name in stack.buffers}
        start = replace(stack.having(params, buffers), seeds=ctx.seeds)
        return whole(recipe(opened(start, names), split.retain, ctx.progress), start)


def last_blocks(stack: Stack, method: CfK | EuK) -> set[str]:
    """Names of the parameters of the head and of the last k blocks before it."""
    found = grouped(stack.net)
    head = head_names(stack)[0]
    at = next(i for i, names in enumerate(found) if head in names)
    if method.k > at:
        raise InputError(f"method '{info(method).name}': k = {method.k}, but this net has {at} blocks before its head; choose k from 0 to {at}")
    return {name for names in found[at - method.k :] for name in names}


def grouped(net: nn.Module) -> list[tuple[str, ...]]:
    """``blocks``, of which those of one residual block or transformer layer count as one, and a normalisation with the block before it."""
    modules, found, last = dict(net.named_modules()), list[tuple[str, ...]](), ""
    for names in blocks(net):
        unit = _unit(modules, names[0])
        if found and (unit == last or isinstance(modules.get(unit), NORMS)):
            found[-1] += names
        else:
            found.append(names)
        last = unit
    return found


def _unit(modules: Mapping[str, nn.Module], name: str) -> str:
    """The outermost module around a parameter that is neither a mere list of others nor the whole net; without any, the parameter."""
    total = len(list(modules[""].parameters()))
    parts = name.split(".")
    for upto in range(1, len(parts)):
        module = modules[".".join(parts[:upto])]
        lists = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if not lists and len(list(module.parameters())) < total:
            return ".".join(parts[:upto])
    return name


def opened(stack: Stack, names: set[str]) -> Stack:
    """The same models with only these parameters left to train: the others travel as buffers, so that nothing can move them and no gradient is taken.

    BatchNorm in frozen blocks stays in eval mode, whichever mode the net is switched to.
    """
    net, inside = copy.deepcopy(stack.net), _behind(stack.net, names)
    for name, module in net.named_modules():
        if isinstance(module, BATCH_NORM) and name not in inside:
            module.eval()
            module.__dict__["train"] = lambda mode=True: None  # in the way of net.train(); a class of its own would lose the fast path of simple nets
    params, frozen = ({n: p for n, p in stack.params.items() if (n in names) == kept} for kept in (True, False))
    return replace(stack, net=net, params=params, buffers=stack.buffers | frozen, live={n: bits for n, bits in stack.live.items() if n in names})


def whole(after: Stack, before: Stack) -> Stack:
    """Undo ``opened``."""
    held = after.params | after.buffers
    params, buffers = ({name: held[name] for name in part} for part in (before.params, before.buffers))
    return replace(after, net=before.net, params=params, buffers=buffers, live=before.live)


def _behind(net: nn.Module, names: set[str]) -> set[str]:
    """Modules that hold some of these parameters, and those without parameters behind them (BatchNorm without scale)."""
    found, inside = set(), False
    for path, module in net.named_modules():
        own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)]
        inside = any(name in names for name in own) if own else inside
        if inside:
            found.add(path)
    return found
