"""``synflow``: pruning at initialisation, without data, by the flow of synapses."""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from torch import Tensor

from unlearnlab.data.images import Images
from unlearnlab.grouped import call_alone
from unlearnlab.nets.pixels import Pixels
from unlearnlab.progress import Progress
from unlearnlab.prune.cut import Dense, IncludeLinear, Sparsity, prunable, remaining, without_lowest
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Stack, Tensors, in_mode
from unlearnlab.train import Recipe


@spec("pruning", "synflow", paper="arXiv:2006.05467")
class SynFlow:
    """Prune the untrained nets by how much signal each weight carries, looking at no data, then train once.

    R = Σ logits of the net with all weights replaced by their absolute values, on an input of ones (after normalisation), in eval mode;
    score |θ ⊙ ∂R/∂θ|; in each of n rounds all but the share (1−p)^(1/n) of the live weights go. sparsity = p, rounds = n. In float64: the
    scores of a deep net span hundreds of orders of magnitude. Source: Tanaka et al. 2020; Jia et al. 2023 (protocols.md §10).
    Differs from the published code: the input is ones where the first layer sees it (there: ones before normalisation).
    """

    sparsity: Sparsity = 0.95
    rounds: Annotated[int, Setting("rounds of scoring and removing", symbol="n", ge=1, published="100")] = 100
    include_linear: IncludeLinear = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"init"})

    def __call__(self, dense: Dense, images: Images, recipe: Recipe, progress: Progress) -> Stack:
        stack = dense.state("init", "synflow")
        names = prunable(stack.net, self.include_linear)
        whole = live = remaining(stack, names)
        for done in range(1, self.rounds + 1):
            left = round(whole * (1 - self.sparsity) ** (done / self.rounds))  # planned from the start, so that rounding does not add up
            scores = flow(stack, images.pixels.shape[1:])
            stack, live = without_lowest(stack, {name: scores[name] for name in names}, (live - left) / live), left
        return recipe(stack, images, progress)


def flow(stack: Stack, shape: torch.Size) -> Tensors:
    """|θ ⊙ ∂R/∂θ| of every weight, per member, in float64: name -> [K, *shape]."""
    net = copy.deepcopy(in_mode(stack.net, "eval_all")).double()
    for module in net.modules():
        if isinstance(module, Pixels):
            module.mean, module.std = (0.0,), (1.0,)
    sizes = {name: p.double().abs().requires_grad_() for name, p in stack.params.items()}
    buffers = {name: b.double() if b.is_floating_point() else b for name, b in stack.buffers.items()}
    ones = torch.ones(1, *shape, dtype=torch.float64, device=stack.device)

    def total(params: Tensors, held: Tensors) -> Tensor:
        return call_alone(net, params | held, ones).sum()

    with torch.enable_grad():
        flows = torch.vmap(total)(sizes, buffers).sum()
        grads = torch.autograd.grad(flows, list(sizes.values()), materialize_grads=True)
    return {name: (p * g).abs().detach() for (name, p), g in zip(sizes.items(), grads, strict=True)}
