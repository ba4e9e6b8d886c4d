"""A refiner and a score of one's own, in one file: `unlearnlab run mine.toml --plugin examples/my_refiner.py`.

In mine.toml (start from `unlearnlab presets digits_rum > mine.toml`), `refine = "odd_even"`, or `score = "darkness"` in the forget set or in by_score.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

import unlearnlab as ul
from unlearnlab.spec import spec


@spec("refiner", "odd_even")
class OddEven:
    """Forget the images with an even id first, then those with an odd one."""

    score: ClassVar[str] = ""  # the name of the score it reads; none

    def __call__(self, split: ul.Split, scores: Mapping[str, ul.Scores]) -> dict[str, Tensor]:
        ids = split.forget.ids.cpu()
        groups = {"even": ids[ids % 2 == 0], "odd": ids[ids % 2 == 1]}
        return {name: group for name, group in groups.items() if len(group)}


@spec("score", "darkness")
class Darkness:
    """How dark an image is: a score that needs no model. (Those that do: EnsembleScore and ProbeScore in unlearnlab.contract.)"""

    scale: ClassVar[Literal["memorisation", "proxy"]] = "proxy"

    def read(self, train: ul.Images, test: ul.Images | None = None, size: int | None = None) -> ul.Scores:
        return ul.Scores("darkness", train.ids.cpu(), -train.pixels[:].flatten(1).double().mean(1).cpu(), self.scale)
