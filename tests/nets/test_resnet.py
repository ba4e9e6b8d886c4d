"""Residual networks: sizes, names, order, initialisation, shortcuts, and that a stacked step is the separate step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from stacking import forward_order_is_the_order_of_a_forward_pass, initialisation_follows_the_seed, one_stacked_step_is_two_separate_steps, weights
from torch import nn

from unlearnlab.nets.resnet import ResNet18, ResNet50
from unlearnlab.nets.resnet9 import ResNet9
from unlearnlab.nets.resnet_s import ResNet20s, ResNet44s, ResNet56s, Thinned
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack, head_names

CIFAR = (3, 32, 32)


def conv(inside: int, outside: int, kernel: int) -> int:
    """Weights of a convolution without bias and of the scale and shift after it."""
    return inside * outside * kernel**2 + 2 * outside


def basic(inside: int, outside: int) -> int:
    return conv(inside, outside, 3) + conv(outside, outside, 3)


def bottleneck(inside: int, outside: int) -> int:
    return conv(inside, outside // 4, 1) + conv(outside // 4, outside // 4, 3) + conv(outside // 4, outside, 1)


def narrow(depth: int) -> int:
    """resnet_s for 10 classes: its shortcuts have no weights."""
    stages = depth * basic(16, 16) + basic(16, 32) + (depth - 1) * basic(32, 32) + basic(32, 64) + (depth - 1) * basic(64, 64)
    return conv(3, 16, 3) + stages + 64 * 10 + 10


def test_parameter_counts_of_resnet18_and_resnet50() -> None:
    widening = sum(basic(width, 2 * width) + conv(width, 2 * width, 1) + basic(2 * width, 2 * width) for width in (64, 128, 256))
    stages = 2 * basic(64, 64) + widening
    assert weights(ResNet18()(CIFAR, 10)) == conv(3, 64, 3) + stages + 512 * 10 + 10 == 11_173_962
    assert weights(ResNet18()(CIFAR, 100)) == 11_173_962 + 90 * 513 == 11_220_132
    assert weights(ResNet18()((1, 32, 32), 10)) == 11_173_962 - 2 * 64 * 9
    assert weights(ResNet18(stem="imagenet")((3, 64, 64), 1000)) == conv(3, 64, 7) + stages + 513_000 == 11_689_512  # as torchvision's
    assert weights(ResNet18(head=(512, 1024))(CIFAR, 10)) == conv(3, 64, 3) + stages + 513 * 512 + 513 * 1024 + 1025 * 10

    stages = 0
    for inside, outside, depth in ((64, 256, 3), (256, 512, 4), (512, 1024, 6), (1024, 2048, 3)):
        stages += bottleneck(inside, outside) + conv(inside, outside, 1) + (depth - 1) * bottleneck(outside, outside)
    assert weights(ResNet50()(CIFAR, 10)) == conv(3, 64, 3) + stages + 2048 * 10 + 10 == 23_520_842
    assert weights(ResNet50(stem="imagenet")((3, 64, 64), 1000)) == conv(3, 64, 7) + stages + 2_049_000 == 25_557_032  # as torchvision's


@pytest.mark.parametrize(("spec", "depth", "count"), [(ResNet20s(), 3, 269_722), (ResNet44s(), 7, 658_586), (ResNet56s(), 9, 853_018)])
def test_parameter_counts_of_narrow_resnets(spec: ResNet20s | ResNet44s | ResNet56s, depth: int, count: int) -> None:
    assert weights(spec(CIFAR, 10)) == narrow(depth) == count
    assert weights(spec((1, 32, 32), 100)) == count - 2 * 9 * 16 + 90 * 65


def test_parameter_count_of_resnet9() -> None:
    chain = conv(3, 64, 3) + conv(64, 128, 5) + basic(128, 128) + conv(128, 256, 3) + basic(256, 256) + conv(256, 128, 3)
    assert weights(ResNet9()(CIFAR, 10)) == chain + 1280 == 2_274_880
    assert weights(ResNet9()((1, 28, 28), 100)) == chain - 2 * 9 * 64 + 12_800


def test_names_are_those_of_published_checkpoints() -> None:
    stem, last = ["conv1.weight", "bn1.weight", "bn1.bias"], ["fc.weight", "fc.bias"]
    names = [name for name, _ in ResNet18()(CIFAR, 10).named_parameters()]
    block = ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"]
    shortcut = ["downsample.0.weight", "downsample.1.weight", "downsample.1.bias"]
    stages = [f"layer{at}.{i}.{name}" for at in (1, 2, 3, 4) for i in (0, 1) for name in block + (shortcut if at > 1 and i == 0 else [])]
    assert names == stem + stages + last

    names = [name for name, _ in ResNet20s()(CIFAR, 10).named_parameters()]
    assert names == stem + [f"layer{at}.{i}.{name}" for at in (1, 2, 3) for i in (0, 1, 2) for name in block] + last

    names = [name for name, _ in ResNet50()(CIFAR, 10).named_parameters()]
    assert len(names) == 161
    assert {"layer1.0.downsample.0.weight", "layer3.5.conv3.weight", "layer4.2.bn3.bias"} < set(names)
    assert len(names) - len([name for name in names if ".0.downsample." in name]) == 3 + 16 * 9 + 2

    names = list(ResNet9()(CIFAR, 10).state_dict())
    assert [name for name in names if name.endswith("weight") and ".1." not in name] == (
        ["0.0.weight", "1.0.weight", "2.module.0.0.weight", "3.0.weight", "5.module.0.0.weight", "6.0.weight", "9.weight"]
    )
    assert {"2.module.1.1.running_mean", "5.module.1.0.weight"} < set(names)


def test_classifier_heads() -> None:
    net = ResNet18(head=(512, 1024))((1, 8, 8), 7)
    assert [tuple(net.get_parameter(f"fc.{at}.weight").shape) for at in (0, 2, 4)] == [(512, 512), (1024, 512), (7, 1024)]
    assert net.eval()(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 7)
    assert head_names(Stack.of([net], (0,))) == ["fc.4.weight", "fc.4.bias"]
    forward_order_is_the_order_of_a_forward_pass(net, (1, 8, 8))
    with pytest.raises(InputError, match="out of range"):
        ResNet50(head=(0,))


@pytest.mark.parametrize(
    ("spec", "shape", "after"),
    [
        (ResNet18(), (1, 32, 32), {"maxpool": (64, 32, 32), "layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer4": (512, 4, 4)}),
        (ResNet18(), (3, 9, 17), {"layer2": (128, 5, 9), "layer4": (512, 2, 3)}),
        (ResNet18(stem="imagenet"), (3, 64, 64), {"conv1": (64, 32, 32), "maxpool": (64, 16, 16), "layer1": (64, 16, 16), "layer4": (512, 2, 2)}),
        (ResNet50(), (1, 16, 16), {"layer1": (256, 16, 16), "layer2.0.conv1": (128, 16, 16), "layer2.0.conv2": (128, 8, 8), "layer4": (2048, 2, 2)}),
        (ResNet50(stem="imagenet"), (3, 64, 64), {"maxpool": (64, 16, 16), "layer4": (2048, 2, 2)}),
        (ResNet20s(), (1, 64, 64), {"layer1": (16, 64, 64), "layer2": (32, 32, 32), "layer3": (64, 16, 16)}),
        (ResNet20s(), (3, 5, 7), {"layer2": (32, 3, 4), "layer3": (64, 2, 2)}),
        (ResNet9(), (1, 64, 64), {"0": (64, 64, 64), "1": (128, 32, 32), "4": (256, 16, 16), "6": (128, 14, 14), "7": (128, 1, 1)}),
        (ResNet9(), (3, 11, 12), {"6": (128, 1, 1)}),
    ],
)
def test_sizes_along_the_way(spec: Any, shape: tuple[int, int, int], after: dict[str, tuple[int, int, int]]) -> None:
    net = spec(shape, 10).eval()
    found: dict[str, tuple[int, ...]] = {}
    for name in after:
        net.get_submodule(name).register_forward_hook(lambda module, given, y, name=name: found.update({name: tuple(y.shape[1:])}))
    pixels = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = net(pixels)
    assert found == after
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, net(pixels))


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        (ResNet18(), (3, 8, 7), "net 'resnet18' with stem 'small' needs images of at least 8×8 pixels, got 8×7"),
        (ResNet50(stem="imagenet"), (3, 31, 64), "net 'resnet50' with stem 'imagenet' needs images of at least 32×32 pixels, got 31×64"),
        (ResNet44s(), (3, 3, 9), "net 'resnet44s' needs images of at least 4×4 pixels, got 3×9"),
        (ResNet9(), (1, 10, 28), "net 'resnet9' needs images of at least 11×11 pixels, got 10×28"),
    ],
)
def test_images_that_are_too_small_are_refused(spec: Any, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec(shape, 10)


def test_the_stem_is_never_guessed() -> None:
    assert ResNet18()((3, 64, 64), 200).get_parameter("conv1.weight").shape == (64, 3, 3, 3)
    assert ResNet18(stem="imagenet")((3, 32, 32), 10).get_parameter("conv1.weight").shape == (64, 3, 7, 7)
    with pytest.raises(InputError, match="stem"):
        build("net", {"name": "resnet18", "stem": "cifar"})


def test_the_shortcut_without_weights() -> None:
    x = torch.arange(2 * 3 * 5.0).view(1, 2, 3, 5) + 1
    y = Thinned()(x)
    assert y.shape == (1, 4, 2, 3)
    assert torch.equal(y[0, 1], torch.tensor([[1.0, 3, 5], [11, 13, 15]]))
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, 0].any()
    assert not y[:, 3].any()


def test_a_block_whose_branch_is_silent_is_its_shortcut() -> None:
    for net in (ResNet18(), ResNet50(), ResNet20s()):
        block: Any = net((3, 8, 8), 10).eval().get_submodule("layer2.1")
        for name, parameter in block.named_parameters():
            if name.startswith("bn"):
                nn.init.zeros_(parameter)
        x = torch.randn(2, block.conv1.in_channels, 4, 4, generator=torch.Generator().manual_seed(0))
        assert torch.equal(block(x), x.relu())
    residual: Any = ResNet9()(CIFAR, 10).eval().get_submodule("2")
    nn.init.zeros_(residual.module[1][1].weight)
    x = torch.randn(2, 128, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(residual(x), x)  # no ReLU after this sum


def test_initialisation() -> None:
    for net in (ResNet18(head=(20,))((3, 8, 8), 10), ResNet20s()((3, 8, 8), 10), ResNet9()((3, 12, 12), 10)):
        initialisation_follows_the_seed(net)
    wide = Stack.init(ResNet18()((3, 8, 8), 10), (0,)).params
    assert float(wide["layer2.0.conv1.weight"].std()) == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.01)
    assert float(wide["fc.weight"].abs().max()) == pytest.approx(1 / math.sqrt(512), rel=0.01)
    slim = Stack.init(ResNet20s()((3, 8, 8), 100), (0,)).params
    assert float(slim["layer3.0.conv1.weight"].std()) == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.02)
    assert float(slim["fc.weight"].std()) == pytest.approx(math.sqrt(2 / 64), rel=0.03)


@pytest.mark.parametrize("spec", [ResNet18(), ResNet18(stem="imagenet"), ResNet50(), ResNet20s(), ResNet44s(), ResNet56s(), ResNet9()])
def test_forward_order(spec: Any) -> None:
    forward_order_is_the_order_of_a_forward_pass(spec(CIFAR, 10), CIFAR)


@pytest.mark.parametrize(
    ("spec", "side", "count"),
    [
        ("resnet18", 8, 4),
        ({"name": "resnet18", "stem": "imagenet", "head": [8]}, 32, 3),
        pytest.param("resnet50", 16, 2, marks=pytest.mark.slow),
        ("resnet20s", 8, 4),
        ("resnet44s", 8, 4),
        ("resnet56s", 8, 4),
        ("resnet9", 12, 3),
    ],
)
def test_one_stacked_step_is_two_separate_steps(spec: Any, side: int, count: int) -> None:
    one_stacked_step_is_two_separate_steps(spec, side, count)
