"""``timm``: nets of the timm library. Without timm, a stand-in shows what is asked of it; with it, the real thing is tried."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from attention import assert_stacked_is_apart, assert_starts_reproducibly, some_images, weights
from torch import nn

from unlearnlab.nets.pixels import Pixels
from unlearnlab.nets.timm_net import TimmNet
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack, blocks, in_mode, is_stochastic

SHAPE = (3, 32, 32)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A module called timm with two nets; what is asked of it is listed."""
    calls: list[dict[str, Any]] = []

    def create_model(name: str, **settings: Any) -> nn.Module:
        calls.append({"name": name, **settings})
        if name == "resnet_small":
            channels, classes = settings["in_chans"], settings["num_classes"]
            return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, classes))
        raise AssertionError("Input size must be 224\nand more")

    timm = ModuleType("timm")
    known = ["resnet_small", "resnet_picky", "vit_small"]
    vars(timm).update(create_model=create_model, list_models=lambda: known, is_model=known.__contains__, __version__="0.0")
    monkeypatch.setitem(sys.modules, "timm", timm)
    return calls


def test_the_stand_in_is_asked_for_an_untrained_net(stand_in: list[dict[str, Any]]) -> None:
    net = build("net", {"name": "timm", "model": "resnet_small"})((1, 32, 32), 7, (0.5,), (0.2,))
    assert stand_in == [{"name": "resnet_small", "pretrained": False, "num_classes": 7, "in_chans": 1}]
    assert isinstance(next(net.children()), Pixels)
    pixels = some_images((1, 32, 32), 2).pixels
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(pixels), net.get_submodule("net")((pixels / 255 - 0.5) / 0.2))
    stack = assert_starts_reproducibly(net, "net.3")
    assert_stacked_is_apart(stack, some_images((1, 32, 32), 6, classes=7))


def test_a_net_that_is_not_there_or_does_not_fit_is_refused(stand_in: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"no model 'resnet_smal' in timm 0\.0; close to it: resnet_small, resnet_picky"):
        TimmNet("resnet_smal")(SHAPE, 10)
    with pytest.raises(InputError, match=r"no model 'q' in timm 0\.0; timm\.list_models\(\) names all"):
        TimmNet("q")(SHAPE, 10)
    with pytest.raises(InputError, match=r"cannot make 'resnet_picky' for 3 channels and 10 classes: AssertionError: Input size must be 224$"):
        TimmNet("resnet_picky")(SHAPE, 10)
    with pytest.raises(InputError, match=r"net 'timm' \(resnet_small\) fails on an image of 3×2×2: RuntimeError"):
        TimmNet("resnet_small")((3, 2, 2), 10)


@pytest.mark.parametrize("reason", ["ImportError('no torchvision')", "RuntimeError('operator torchvision::nms does not exist')"])
def test_without_a_working_timm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    (tmp_path / "timm.py").write_text(f"raise {reason}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    kind, _, words = reason[:-2].partition("('")
    with pytest.raises(InputError, match=rf"needs the timm library: pip install 'unlearnlab\[timm\]' \(importing it fails with {kind}: {words}\)"):
        TimmNet("resnet18")(SHAPE, 10)


@pytest.fixture
def timm() -> ModuleType:
    """The real library, where it is installed and works; torchvision fails with a RuntimeError beside another torch than its own."""
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"timm cannot be imported: {error}")


@pytest.mark.usefixtures("timm")
def test_the_real_thing() -> None:
    net, images = TimmNet("resnet18")((3, 64, 64), 10), some_images((3, 64, 64), 6)
    assert weights(net) == 11_181_642
    assert_stacked_is_apart(Stack.init(net, (1, 2)), images, atol=1e-4)
    with pytest.raises(InputError, match=r"close to it: .*resnet18"):
        TimmNet("resnet81")(SHAPE, 10)
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224\) fails on an image of 3×32×32: AssertionError"):
        TimmNet("vit_tiny_patch16_224")(SHAPE, 10)
    # a class token, positions and drop path: a start, an order and a seed all the same
    arguments = ["model_name='vit_tiny_patch16_224'", "img_size=32", "drop_path_rate=0.1"]
    small = build("net", {"name": "module", "path": "timm:create_model", "arguments": arguments})
    net = small(SHAPE, 10)
    assert ("net.cls_token",) in blocks(net)
    assert_starts_reproducibly(net, "net.head")
    assert is_stochastic(in_mode(net, "train"))
