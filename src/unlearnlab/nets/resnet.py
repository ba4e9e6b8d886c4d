"""``resnet18`` and ``resnet50``: the residual networks of He et al. 2016, for small images or for ImageNet's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, Setting, spec


class BasicBlock(nn.Module):
    """y = relu(F(x) + shortcut(x)), F = two 3×3 convolutions, the first with the stride."""

    expansion: ClassVar[int] = 1

    def __init__(self, inside: int, outside: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """y = relu(F(x) + shortcut(x)), F = convolutions 1×1, 3×3 (with the stride) and 1×1 through a quarter of the channels."""

    expansion: ClassVar[int] = 4

    def __init__(self, inside: int, outside: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        narrow = outside // self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inside, narrow, 1, bias=False), nn.BatchNorm2d(narrow)
        self.conv2, self.bn2 = nn.Conv2d(narrow, narrow, 3, stride, padding=1, bias=False), nn.BatchNorm2d(narrow)
        self.conv3, self.bn3 = nn.Conv2d(narrow, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, mean over the image, classifier. Names of weights are torchvision's."""

    def __init__(
        self, pixels: Pixels, channels: int, block: type[BasicBlock | Bottleneck], depths: Sequence[int], *, stem: str, head: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        self.pixels = pixels
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False) if large else nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        widths = [width * block.expansion for width in (64, 128, 256, 512)]
        self.layer1 = _stage(block, 64, widths[0], depths[0], stride=1)
        self.layer2 = _stage(block, widths[0], widths[1], depths[1], stride=2)
        self.layer3 = _stage(block, widths[1], widths[2], depths[2], stride=2)
        self.layer4 = _stage(block, widths[2], widths[3], depths[3], stride=2)
        hidden = [layer for inside, units in zip((widths[3], *head), head, strict=False) for layer in (nn.Linear(inside, units), nn.ReLU())]
        last = nn.Linear((widths[3], *head)[-1], classes)
        self.fc = nn.Sequential(*hidden, last) if hidden else last
        self.forward_order = ("conv1", "bn1", *(f"layer{at}.{i}" for at, depth in enumerate(depths, 1) for i in range(depth)), "fc")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions normal with variance 2 / (outputs × kernel area), as He et al. 2015 for ReLU; torch's defaults elsewhere."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(self.pixels(images)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(block: type[BasicBlock | Bottleneck], inside: int, outside: int, depth: int, stride: int) -> nn.Sequential:
    shortcut: nn.Module = nn.Identity()
    if stride > 1 or inside != outside:
        shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
    return nn.Sequential(block(inside, outside, stride, shortcut), *(block(outside, outside, 1, nn.Identity()) for _ in range(depth - 1)))


Stem = Annotated[Literal["small", "imagenet"], Setting("first layers: small = 3×3 with stride 1; imagenet = 7×7 with stride 2, then max pooling by 2")]
Head = Annotated[tuple[int, ...], Setting("units of the classifier's hidden layers, each followed by a ReLU", ge=1)]


def _pixels(name: str, stem: str, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> Pixels:
    _, height, width = shape
    least = 32 if stem == "imagenet" else 8  # in a smaller image the last stage would see padding only
    if min(height, width) < least:
        raise InputError(f"net '{name}' with stem '{stem}' needs images of at least {least}×{least} pixels, got {height}×{width}")
    return Pixels(mean, std, (height, width))


@spec("net", "resnet18", paper="arXiv:1512.03385")
class ResNet18:
    """Residual network of 18 layers (two 3×3 convolutions a block, stages 64-128-256-512); 11 173 962 weights for 10 classes.

    The stem is chosen here and never by the number of classes. Forget with Precision gives it two hidden layers
    (head = [512, 1024]) on AgeDB.
    """

    stem: Stem = "small"
    head: Head = ()

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        pixels = _pixels("resnet18", self.stem, shape, mean, std)
        return ResNet(pixels, shape[0], BasicBlock, (2, 2, 2, 2), stem=self.stem, head=self.head, classes=classes)


@spec("net", "resnet50", paper="arXiv:1512.03385")
class ResNet50:
    """Residual network of 50 layers (1×1, 3×3, 1×1 convolutions a block, stages 256-512-1024-2048); 23 520 842 weights for 10 classes.

    The stride stands at the 3×3 convolution, as in torchvision and the code of the papers here; He et al. put it at the
    first 1×1. The stem is chosen here and never by the number of classes.
    """

    stem: Stem = "small"
    head: Head = ()

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        pixels = _pixels("resnet50", self.stem, shape, mean, std)
        return ResNet(pixels, shape[0], Bottleneck, (3, 4, 6, 3), stem=self.stem, head=self.head, classes=classes)
