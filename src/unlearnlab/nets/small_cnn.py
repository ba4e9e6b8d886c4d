"""``small_cnn``: three small convolutions, for digits and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, Setting, spec


@spec("net", "small_cnn")
class SmallCnn:
    """Three 3×3 convolutions (16-16-32) with two max poolings and a linear head; 8 410 weights on 8×8 digits."""

    widths: Annotated[tuple[int, ...], Setting("output channels of the three convolutions", ge=1)] = (16, 16, 32)
    norm: Annotated[Literal["none", "batch"], Setting("normalisation after each convolution")] = "none"

    def __post_init__(self) -> None:
        if len(self.widths) != 3:
            raise InputError(f"net 'small_cnn': widths = {list(self.widths)} must be three numbers of channels")

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        channels, height, width = shape
        if height < 4 or width < 4:
            raise InputError(f"net 'small_cnn' needs images of at least 4×4 pixels, got {height}×{width}")
        layers: list[nn.Module] = [Pixels(mean, std, (height, width))]
        for at, out in enumerate(self.widths):
            layers.append(nn.Conv2d(channels, out, 3, padding=1, bias=self.norm == "none"))
            if self.norm == "batch":
                layers.append(nn.BatchNorm2d(out))
            if at > 0:
                layers.append(nn.MaxPool2d(2))  # before the ReLU: the same function, a quarter of the ReLUs
            layers.append(nn.ReLU())
            channels = out
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (height // 4) * (width // 4), classes))
