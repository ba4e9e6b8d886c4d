"""``resnet20s``, ``resnet44s``, ``resnet56s``: the narrow residual networks that He et al. 2016 (section 4.2) made for CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.nets.resnet import BasicBlock
from unlearnlab.spec import InputError, spec


class Thinned(nn.Module):
    """Option A of the paper's shortcuts: every second pixel, with zeros for the channels that are new. It has no weights.

    The zeros stand half before and half after, as in the published code, so that its checkpoints mean the same here.
    """

    def forward(self, x: Tensor) -> Tensor:
        new = x.shape[1] // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, new, new))


class ResNetS(nn.Module):
    """Stem of 16 channels, three stages of ``depth`` blocks (16-32-64), mean over the image, linear classifier."""

    def __init__(self, pixels: Pixels, channels: int, depth: int, classes: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.conv1, self.bn1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16, 1, nn.Identity()) for _ in range(depth)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2, Thinned()), *(BasicBlock(32, 32, 1, nn.Identity()) for _ in range(depth - 1)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2, Thinned()), *(BasicBlock(64, 64, 1, nn.Identity()) for _ in range(depth - 1)))
        self.fc = nn.Linear(64, classes)
        self.forward_order = ("conv1", "bn1", *(f"layer{at}.{i}" for at in (1, 2, 3) for i in range(depth)), "fc")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions and classifier normal with variance 2 / inputs (He et al. 2015, as the paper says); torch's defaults elsewhere."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(self.pixels(images))))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _build(name: str, depth: int, shape: tuple[int, int, int], classes: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    channels, height, width = shape
    if min(height, width) < 4:  # the last stage would see padding only
        raise InputError(f"net '{name}' needs images of at least 4×4 pixels, got {height}×{width}")
    return ResNetS(Pixels(mean, std, (height, width)), channels, depth, classes)


@spec("net", "resnet20s", paper="arXiv:1512.03385")
class ResNet20s:
    """Narrow residual network for CIFAR (stages 16-32-64, three blocks each); 269 722 weights for 10 classes."""

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        return _build("resnet20s", 3, shape, classes, mean, std)


@spec("net", "resnet44s", paper="arXiv:1512.03385")
class ResNet44s:
    """Narrow residual network for CIFAR (stages 16-32-64, seven blocks each); 658 586 weights for 10 classes."""

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        return _build("resnet44s", 7, shape, classes, mean, std)


@spec("net", "resnet56s", paper="arXiv:1512.03385")
class ResNet56s:
    """Narrow residual network for CIFAR (stages 16-32-64, nine blocks each); 853 018 weights for 10 classes."""

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        return _build("resnet56s", 9, shape, classes, mean, std)
