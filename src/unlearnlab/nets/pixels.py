"""The first layer of every net: pixels to normalised floats, so that attacks and triggers act in pixel space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Pixels(nn.Module):
    """uint8 pixels are scaled by 1/255; all are shifted by ``mean`` and divided by ``std`` (per channel, in [0, 1] units).

    Images larger than ``size`` (height, width) are seen through a centred window of that size: the view of evaluation where
    training takes random crops.
    """

    def __init__(self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.mean, self.std, self.size = tuple(mean), tuple(std), size

    def forward(self, pixels: Tensor) -> Tensor:
        if self.size is not None and tuple(pixels.shape[-2:]) != self.size:
            (height, width), (h, w) = pixels.shape[-2:], self.size
            top, left = max(height - h, 0) // 2, max(width - w, 0) // 2
            pixels = pixels[..., top : top + h, left : left + w]
        x = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels  # in place on a copy: half the time
        if any(self.mean) or any(value != 1 for value in self.std):
            shape = (-1, 1, 1)
            x = (x - torch.tensor(self.mean, device=x.device).view(shape)) / torch.tensor(self.std, device=x.device).view(shape)
        return x
