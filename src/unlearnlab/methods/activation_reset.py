"""``activation_reset``: renew the kernels that the forget set excites more than the retain set does, then fine-tune."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.grouped import call_alone
from unlearnlab.methods.class_weights import ClassWeights
from unlearnlab.methods.finetune import finetuned
from unlearnlab.methods.reinit import reinitialised
from unlearnlab.methods.sample import SampleShare, sampled
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import CONVOLUTIONS, Stack, Tensors, head_names, in_mode


@spec("method", "activation_reset")
class ActivationReset:
    """Start anew the kernels whose output is higher on forget images than on retain images, and fine-tune on the retain set.

    For every output kernel of every convolution, ā_X(u) = mean over X of its output at place u (before normalisation and ReLU), in eval
    mode, unaugmented; score = share of places u with ā_S(u) > ā_R′(u), R′ = sample_share of R, each model its own. Kernels with
    score > tolerance are drawn anew, all their input weights (Kaiming normal, fan-in), and with reset_head the weight of the head; then
    min CE(R) with lr = η, epochs = E. In a net without convolutions a kernel is an output unit of a hidden linear layer: it has one
    place, or one a token.
    Source: "Forget with Precision", ETH Zürich 2023 (methods.md §4.3).
    Differs from the published code: ā_R′ is divided by the size of R′ (there: of R, so that it is fifty times too small and
    nearly every kernel with a positive mean is reset); the net is in eval mode (there: left in training mode, which moves BatchNorm's
    averages); sums are kept in double precision, no activations; draws come from the method's own seeds (there: ignored).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    cost: ClassVar[str] = "E, and forward only n_f/n_r + sample_share"
    null: ClassVar[Mapping[str, Any] | None] = {"tolerance": 1.0, "reset_head": False, "lr": 0.0, "bn": "frozen"}
    sample_share: SampleShare = 0.02
    tolerance: Annotated[float, Setting("share of places beyond which a kernel is reset", ge=0, le=1)] = 0.8
    reset_head: Annotated[bool, Setting("also start the weight of the classifier head anew")] = True
    class_weights: ClassWeights = "none"
    lr: LearningRate = 0.001
    epochs: Epochs = 5
    batch: BatchSize = 128
    optimizer: Update = Sgd(nesterov=True)
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        found = self.scores(stack, split, ctx)
        kernels = {name: score > self.tolerance for name, score in found.items()}
        chosen = {name: bits.view(*bits.shape, *[1] * (stack.params[name].dim() - 2)) for name, bits in kernels.items()}
        if self.reset_head:
            chosen |= {name: stack.params[name].new_ones((), dtype=torch.bool) for name in head_names(stack) if stack.params[name].dim() > 2}
        return finetuned(reinitialised(stack, chosen, ctx), split, self, ctx)

    def scores(self, stack: Stack, split: Split, ctx: Context) -> Tensors:
        """Weight of a layer -> [K, kernels], the share of places where the mean over S is above that over R′."""
        layers, few = compared(stack), sampled(split.retain, self.sample_share, ctx.seeds)
        of_forget = self._means(stack, layers, split.forget, torch.arange(len(split.forget)).expand(len(stack), -1), ctx)
        of_few = self._means(stack, layers, split.retain, few, ctx)
        return {name: (mean > of_few[name]).double().mean(2) for name, mean in of_forget.items()}

    def _means(self, stack: Stack, layers: Sequence[str], images: Images, rows: Int64[Tensor, "k m"], ctx: Context) -> Tensors:
        """Weight of a layer -> mean output [K, kernels, places] over each member's rows of the images."""
        net = copy.deepcopy(in_mode(stack.net, "eval_all"))
        caught: dict[str, list[Tensor]] = {}
        for name in layers:
            net.get_submodule(name).register_forward_hook(_catcher(caught, f"{name}.weight"))

        def one(tensors: Tensors, pixels: Tensor) -> Tensors:
            caught.clear()
            call_alone(net, tensors, pixels)
            return {name: torch.cat(maps, 1) for name, maps in caught.items()}

        total: Tensors = {}
        for at in range(0, rows.shape[1], self.batch):
            part = rows[:, at : at + self.batch]
            with torch.no_grad():
                sums = torch.vmap(one)(stack.params | stack.buffers, images.pick(part.to(images.labels.device)).to(stack.device))
            total = {name: value + total[name] if total else value for name, value in sums.items()}
            ctx.progress.seen(part.shape[1])
        return {name: value / rows.shape[1] for name, value in total.items()}


def compared(stack: Stack) -> list[str]:
    """Names of the layers whose output counts: the convolutions, or without any the linear layers but the head."""
    head = head_names(stack)[0].rpartition(".")[0]
    found = {kinds: [name for name, layer in stack.net.named_modules() if isinstance(layer, kinds) and name != head] for kinds in (CONVOLUTIONS, nn.Linear)}
    layers = found[CONVOLUTIONS] or found[nn.Linear]
    if not layers:
        raise InputError("method 'activation_reset' compares what kernels put out, and this net has no layer but its head; choose a net with hidden layers")
    return layers


def _catcher(caught: dict[str, list[Tensor]], name: str) -> Any:
    """A hook that keeps the sum over the batch of what a layer puts out, [kernels, places]; a layer used twice has twice the places."""

    def hook(layer: nn.Module, given: Any, out: Tensor) -> None:
        units_first = out.movedim(-1, 1) if isinstance(layer, nn.Linear) else out
        caught.setdefault(name, []).append(_summed(units_first))

    return hook


def _summed(out: Float[Tensor, "n kernels ..."]) -> Float[Tensor, "kernels places"]:
    return out.sum(0, dtype=torch.float64).reshape(out.shape[1], -1)
