"""``resnet9``: the small residual network that EasyDUB's oracles have."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.spec import InputError, spec


class _Residual(nn.Module):
    """y = x + F(x), without a ReLU after the sum."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.module(x)
        return y


class _Scaled(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits * 0.2


class _Chain(nn.Sequential):
    forward_order = ("0", "1", "2", "3", "5", "6", "9")


@spec("net", "resnet9")
class ResNet9:
    """Residual network of nine layers for CIFAR, as EasyDUB's oracles; 2 274 880 weights for 10 classes.

    The paper (Georgiev et al. 2025) does not spell the architecture out. This is the usual definition, that of EasyDUB's
    code, with its names of weights and torch's own initialisation: convolutions without bias, each followed by batch
    normalisation and ReLU, two residual pairs, the largest value over the image, a linear layer without bias, logits × 0.2.
    """

    def __call__(self, shape: tuple[int, int, int], classes: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> nn.Module:
        channels, height, width = shape
        if min(height, width) < 11:  # the last convolution is not padded and needs 3×3 of what two halvings leave
            raise InputError(f"net 'resnet9' needs images of at least 11×11 pixels, got {height}×{width}")
        layers = [
            _conv(channels, 64, 3, padding=1),
            _conv(64, 128, 5, stride=2, padding=2),
            _Residual(nn.Sequential(_conv(128, 128, 3, padding=1), _conv(128, 128, 3, padding=1))),
            _conv(128, 256, 3, padding=1),
            nn.MaxPool2d(2),
            _Residual(nn.Sequential(_conv(256, 256, 3, padding=1), _conv(256, 256, 3, padding=1))),
            _conv(256, 128, 3, padding=0),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(128, classes, bias=False),
            _Scaled(),
        ]
        # the layers keep the numbers that EasyDUB's checkpoints know them by
        return _Chain(OrderedDict([("pixels", Pixels(mean, std, (height, width))), *((str(at), layer) for at, layer in enumerate(layers))]))


def _conv(inside: int, outside: int, kernel: int, *, padding: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inside, outside, kernel, stride, padding, bias=False), nn.BatchNorm2d(outside), nn.ReLU())
