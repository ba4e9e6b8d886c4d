"""``random``: prune by lot; the control for the other schemes."""

from __future__ import annotations

import torch

from unlearnlab.data.images import Images
from unlearnlab.progress import Progress
from unlearnlab.prune.cut import Dense, IncludeLinear, Sparsity, prunable, without_lowest
from unlearnlab.seeds import generator
from unlearnlab.spec import spec
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe


@spec("pruning", "random")
class Random:
    """Remove weights by lot from the untrained nets, each member its own, then train once.

    Uniform scores at the same sparsity (p) as the scheme it is compared with. Source: protocols.md §10.
    Differs from the published code: nothing known to differ.
    """

    sparsity: Sparsity = 0.95
    include_linear: IncludeLinear = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"init"})

    def __call__(self, dense: Dense, images: Images, recipe: Recipe, progress: Progress) -> Stack:
        stack = dense.state("init", "random")
        lots = {
            name: torch.stack([torch.rand(stack.params[name].shape[1:], generator=generator(seed, "prune", at)) for seed in stack.seeds]).to(stack.device)
            for at, name in enumerate(prunable(stack.net, self.include_linear))
        }
        return recipe(without_lowest(stack, lots, self.sparsity), images, progress)
