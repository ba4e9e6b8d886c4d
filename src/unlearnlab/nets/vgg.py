"""``vgg16_bn`` and ``vgg16_bn_lth``: VGG-16 (Simonyan & Zisserman 2015) with batch normalisation and heads for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, spec

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # max pooling halves the image after each


class Cells(nn.Module):
    """The mean of each cell of a ``count``×``count`` grid; where the sides do not divide, neighbouring cells overlap.

    This is ``nn.AdaptiveAvgPool2d(count)``, whose backward pass on a GPU adds in no fixed order: runs would not repeat.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            size = x.shape[dim]
            edges = [(at * size // self.count, -(-(at + 1) * size // self.count)) for at in range(self.count)]
            x = torch.stack([x.narrow(dim, start, end - start).mean(dim) for start, end in edges], dim)
        return x


class Vgg(nn.Module):
    """Thirteen 3×3 convolutions, each with batch normalisation and ReLU, then means over a grid and a classifier."""

    def __init__(self, pixels: Pixels, channels: int, cells: int, classifier: nn.Module, *, bias: bool) -> None:
        super().__init__()
        self.pixels = pixels
        layers: list[nn.Module] = []
        for stage in _STAGES:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=bias), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features, self.avgpool, self.classifier = nn.Sequential(*layers), Cells(cells), classifier
        held = [at for at, layer in enumerate(layers) if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        self.forward_order = (*(f"features.{at}" for at in held), "classifier")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the published code: convolutions normal with variance 2 / (outputs × kernel area), linear layers normal with
        standard deviation 0.01, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.avgpool(self.features(self.pixels(images))).flatten(1))
        return logits


def _pixels(name: str, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> Pixels:
    _, height, width = shape
    if min(height, width) < 32:
        raise InputError(f"net '{name}' halves its images five times and needs at least 32×32 pixels, got {height}×{width}")
    return Pixels(mean, std, (height, width))


@spec("net", "vgg16_bn", paper="arXiv:1409.1556")
class Vgg16Bn:
    """VGG-16 with batch normalisation, means over 2×2 cells and a head 2048-256-256; 15 311 818 weights for 10 classes.

    As in the published code (Unlearn-Sparse) its convolutions have no biases, and those of ``vgg16_bn_lth`` have.
    """

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        pixels = _pixels("vgg16_bn", shape, mean, std)
        head = nn.Sequential(nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes))
        return Vgg(pixels, shape[0], 2, head, bias=False)


@spec("net", "vgg16_bn_lth", paper="arXiv:1409.1556")
class Vgg16BnLth:
    """VGG-16 with batch normalisation and one linear layer, as in lottery-ticket work; 14 728 266 weights for 10 classes."""

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        return Vgg(_pixels("vgg16_bn_lth", shape, mean, std), shape[0], 1, nn.Linear(512, classes), bias=True)
