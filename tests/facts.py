"""What the contract tests must know of each method beyond what the method says itself; one table a family, in ``facts_*.py``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnlab.contract import Method
from unlearnlab.train import Recipe


@dataclass(frozen=True)
class Sizes:
    """Of the toy and of the short method that runs on it."""

    forget: int
    retain: int
    validation: int
    epochs: int
    batch: int
    classes: int
    recipe_epochs: int

    def steps(self, images: int) -> int:
        """Batches of one pass over so many images."""
        return -(-images // self.batch)


@dataclass(frozen=True)
class Facts:
    """``passes``: examples forward and backward, per model, that the short method must count.

    ``build``: the method, where its name alone does not build one. ``busy``: changes under which every setting has something to
    do. ``other``: another allowed value of a setting that is neither a choice nor a switch (see also ``OTHER``). ``short``: changes that
    make it quick, beyond ``epochs`` and ``batch``. ``exempt``: test -> why it need not pass. ``one_shot``: no order of examples
    matters. ``opens_head``: it trains the classifier head whatever the mask says. ``recipe``: if not the toy's usual one.
    ``prepare``: makes of the toy one that the method can work on.
    """

    passes: Callable[[Sizes], tuple[int, int]]
    build: Method | None = None
    busy: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)
    short: Mapping[str, Any] = field(default_factory=dict)
    exempt: Mapping[str, str] = field(default_factory=dict)
    one_shot: bool = False
    opens_head: bool = False
    recipe: Recipe | None = None
    prepare: Callable[[Any], Any] | None = None


def both(count: int) -> tuple[int, int]:
    """So many examples forward, and the same backward."""
    return count, count


def collect() -> dict[str, Facts]:
    """The facts of every method, from all families."""
    found: dict[str, Facts] = {}
    for path in sorted(Path(__file__).parent.glob("facts_*.py")):
        found |= importlib.import_module(path.stem).FACTS
    return found
