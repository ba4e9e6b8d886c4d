"""``mlp``: one hidden layer, for digits and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import Setting, spec


@spec("net", "mlp")
class Mlp:
    """A perceptron with ReLU hidden layers; 9 610 weights on 8×8 digits by default."""

    hidden: Annotated[tuple[int, ...], Setting("units of the hidden layers", ge=1)] = (128,)

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        channels, height, width = shape
        layers: list[nn.Module] = [Pixels(mean, std, (height, width)), nn.Flatten()]
        inside = channels * height * width
        for units in self.hidden:
            layers += [nn.Linear(inside, units), nn.ReLU()]
            inside = units
        return nn.Sequential(*layers, nn.Linear(inside, classes))
