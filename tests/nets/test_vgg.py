"""VGG-16: sizes, names, order, initialisation, and that a stacked step is the separate step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from stacking import forward_order_is_the_order_of_a_forward_pass, initialisation_follows_the_seed, one_stacked_step_is_two_separate_steps, weights
from torch import nn

from unlearnlab.nets.vgg import Cells, Vgg16Bn, Vgg16BnLth
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack, head_names

CIFAR = (3, 32, 32)
CONVOLUTIONS = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)  # their places in ``features``, a ReLU after each and poolings between


def test_parameter_counts() -> None:
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    features = sum(inside * outside * 9 + outside + 2 * outside for inside, outside in pairwise(widths))
    assert features == 14_723_136
    biases = sum(widths[1:])  # which vgg16_bn leaves to batch normalisation
    assert weights(Vgg16Bn()(CIFAR, 10)) == features - biases + 2049 * 256 + 257 * 256 + 257 * 10 == 15_311_818
    assert weights(Vgg16BnLth()(CIFAR, 10)) == features + 513 * 10 == 14_728_266
    assert weights(Vgg16BnLth()((1, 64, 64), 100)) == features - 2 * 9 * 64 + 513 * 100


def test_names_are_those_of_published_checkpoints() -> None:
    names = [name for name, _ in Vgg16BnLth()(CIFAR, 10).named_parameters()]
    features = [f"features.{at + after}.{own}" for at in CONVOLUTIONS for after in (0, 1) for own in ("weight", "bias")]
    assert names == [*features, "classifier.weight", "classifier.bias"]
    net = Vgg16Bn()(CIFAR, 10)
    unbiased = [name for name in features if not (name.endswith("bias") and int(name.split(".")[1]) in CONVOLUTIONS)]
    assert [name for name, _ in net.named_parameters()] == unbiased + [f"classifier.{at}.{own}" for at in (0, 2, 4) for own in ("weight", "bias")]
    assert head_names(Stack.of([net], (0,))) == ["classifier.4.weight", "classifier.4.bias"]


@pytest.mark.parametrize("spec", [Vgg16Bn(), Vgg16BnLth()])
@pytest.mark.parametrize(("shape", "last"), [((1, 32, 33), (1, 1)), ((3, 64, 96), (2, 3))])
def test_shapes(spec: Vgg16Bn | Vgg16BnLth, shape: tuple[int, int, int], last: tuple[int, int]) -> None:
    net = spec(shape, 10).eval()
    found: list[tuple[int, ...]] = []
    net.get_submodule("features").register_forward_hook(lambda module, given, y: found.append(tuple(y.shape)))
    pixels = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = net(pixels)
    assert found == [(2, 512, *last)]
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, net(pixels))


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(InputError, match="net 'vgg16_bn' halves its images five times and needs at least 32×32 pixels, got 32×28"):
        Vgg16Bn()((1, 32, 28), 10)
    with pytest.raises(InputError, match="'vgg16_bn_lth'"):
        Vgg16BnLth()((1, 8, 8), 10)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 6), (3, 5)])
def test_cells_are_adaptive_average_pooling(count: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Cells(count)(x), nn.AdaptiveAvgPool2d(count)(x))


def test_initialisation() -> None:
    net = Vgg16Bn()(CIFAR, 10)
    initialisation_follows_the_seed(net)
    params = Stack.init(net, (0,)).params
    assert float(params["features.7.weight"].std()) == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.01)
    assert float(params["classifier.0.weight"].std()) == pytest.approx(0.01, rel=0.01)
    assert not params["classifier.4.bias"].any()
    assert not Stack.init(Vgg16BnLth()(CIFAR, 10), (0,)).params["features.7.bias"].any()


@pytest.mark.parametrize("spec", [Vgg16Bn(), Vgg16BnLth()])
def test_forward_order(spec: Vgg16Bn | Vgg16BnLth) -> None:
    forward_order_is_the_order_of_a_forward_pass(spec(CIFAR, 10), CIFAR)


@pytest.mark.parametrize("spec", ["vgg16_bn", "vgg16_bn_lth"])
def test_one_stacked_step_is_two_separate_steps(spec: str) -> None:
    one_stacked_step_is_two_separate_steps(spec, 32, 3)
