"""The toy every method and localiser is tested on: real digits, 56 to retain and 4 to forget, a few labels wrong."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from unlearnlab.attribution import Attribution
from unlearnlab.contract import Context, Localiser, Method, only_declared
from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images, Split
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.nets.vit import VitSmallData
from unlearnlab.outputs import Outputs, observe
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.stack import Mask, Stack
from unlearnlab.train import Recipe

NETS = {
    "small_cnn": SmallCnn(widths=(10, 10, 12)),
    "batch_norm": SmallCnn(widths=(10, 10, 12), norm="batch"),
    "mlp": Mlp(hidden=(32,)),
    "vit": VitSmallData(patch=4, dim=16, depth=2, heads=2, head_dim=8, mlp=32),
}
ORIGINAL, SHORT = Recipe(epochs=30, batch=10), Recipe(epochs=2, batch=10)


@dataclass(frozen=True, eq=False)
class Toy:
    """Three trained originals, their initial weights and the split they face."""

    stack: Stack
    init: Stack
    split: Split
    made_as: tuple[str, int]
    recipe: Recipe = SHORT

    def context(self, shift: int = 0, mask: Mask | None = None) -> Context:
        seeds = tuple(50 + shift + seed for seed in self.stack.seeds)
        return Context(seeds=seeds, recipe=self.recipe, progress=Progress(), mask=mask, original_init=self.init)

    def unlearn(self, method: Method, ctx: Context | None = None) -> Stack:
        """Run a method as a study does: it sees only what it declares."""
        return method(self.stack, *only_declared(method, self.split, self.equipped(method, ctx or self.context())))

    def equipped(self, method: Method, ctx: Context) -> Context:
        """The context with what is too dear to make for methods that do not read it."""
        if "oracles" in method.reads:
            ctx = replace(ctx, oracles=oracles(*self.made_as))
        return replace(ctx, attribution=attribution(*self.made_as)) if "attribution" in method.reads else ctx

    def locate(self, localiser: Localiser, ctx: Context | None = None) -> Mask:
        return localiser(self.stack, self.split, ctx or self.context())

    def only(self, k: int) -> Toy:
        """Member k alone."""
        return replace(self, stack=self.stack.rows([k]), init=self.init.rows([k]))

    def forgetting(self, forget: Images) -> Toy:
        return replace(self, split=replace(self.split, forget=forget))


@cache
def make_toy(net: str = "small_cnn", classes: int = 10) -> Toy:
    release = Digits()()
    images = SymmetricNoise(0.2)(Images(release.pixels, release.labels % classes, release.ids, classes), seed=1)
    rows = {"forget": (0, 4), "retain": (4, 60), "validation": (60, 70), "control": (70, 80), "test": (80, 100)}
    split = Split(**{name: images.rows(torch.arange(*ends)) for name, ends in rows.items()})
    init = Stack.init(NETS[net]((1, 8, 8), classes), (0, 1, 2))
    return Toy(ORIGINAL(init, split.train), init, split, (net, classes))


@cache
def oracles(net: str, classes: int) -> Outputs:
    """Outputs on all images of two models that never saw the toy's forget set."""
    toy = make_toy(net, classes)
    images, part = toy.split.together()
    retrained = ORIGINAL(toy.init.fresh((7, 8)), toy.split.retain)
    return observe(retrained, images, member=(part == 1).expand(2, -1), part=part)


@cache
def attribution(net: str, classes: int) -> Path:
    """Where scores of the toy's training images for all its images lie: drawn at random, about as large as real ones."""
    folder = Path(tempfile.mkdtemp(prefix="unlearnlab-toy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    split = make_toy(net, classes).split
    train, points = split.train.ids, split.together()[0].ids
    Attribution.write(folder, torch.randn(len(train), len(points), classes, generator=generator(1, "tau")) / 4, train, points)
    return folder


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal names and equal bits."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def furthest(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    return max(float((a[name] - b[name]).abs().max()) for name in a)


class Interrupted(Exception):  # noqa: N818
    pass


class Stops(Progress):
    """Counts the steps of all fits, and breaks off after so many."""

    def __init__(self, folder: Path | None = None, at: int = -1) -> None:
        super().__init__(folder, every=0)
        self.at, self.steps = at, 0

    def step(self, done: int, total: int) -> None:
        self.steps += 1
        if self.steps == self.at:
            raise Interrupted
