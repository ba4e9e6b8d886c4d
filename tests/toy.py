"""The toy every method and localiser is tested on: real digits, 56 to retain and 4 to forget, a few labels wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from unlearnlab.contract import Context, Localiser, Method, only_declared
from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images, Split
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.progress import Progress
from unlearnlab.stack import Mask, Stack
from unlearnlab.train import Recipe

NETS = {"small_cnn": SmallCnn(widths=(10, 10, 12)), "batch_norm": SmallCnn(widths=(10, 10, 12), norm="batch"), "mlp": Mlp(hidden=(32,))}
ORIGINAL, SHORT = Recipe(epochs=30, batch=10), Recipe(epochs=2, batch=10)


@dataclass(frozen=True, eq=False)
class Toy:
    """Three trained originals, their initial weights and the split they face."""

    stack: Stack
    init: Stack
    split: Split

    def context(self, shift: int = 0, mask: Mask | None = None) -> Context:
        seeds = tuple(50 + shift + seed for seed in self.stack.seeds)
        return Context(seeds=seeds, recipe=SHORT, progress=Progress(), mask=mask, original_init=self.init)

    def unlearn(self, method: Method, ctx: Context | None = None) -> Stack:
        """Run a method as a study does: it sees only what it declares."""
        return method(self.stack, *only_declared(method, self.split, ctx or self.context()))

    def locate(self, localiser: Localiser, ctx: Context | None = None) -> Mask:
        return localiser(self.stack, self.split, ctx or self.context())

    def only(self, k: int) -> Toy:
        """Member k alone."""
        return Toy(self.stack.rows([k]), self.init.rows([k]), self.split)

    def forgetting(self, forget: Images) -> Toy:
        return replace(self, split=replace(self.split, forget=forget))


@cache
def make_toy(net: str = "small_cnn", classes: int = 10) -> Toy:
    release = Digits()()
    images = SymmetricNoise(0.2)(Images(release.pixels, release.labels % classes, release.ids, classes), seed=1)
    rows = {"forget": (0, 4), "retain": (4, 60), "validation": (60, 70), "control": (70, 80), "test": (80, 100)}
    split = Split(**{name: images.rows(torch.arange(*ends)) for name, ends in rows.items()})
    init = Stack.init(NETS[net]((1, 8, 8), classes), (0, 1, 2))
    return Toy(ORIGINAL(init, split.train), init, split)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal names and equal bits."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def furthest(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    return max(float((a[name] - b[name]).abs().max()) for name in a)
