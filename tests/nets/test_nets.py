"""Networks: sizes, pixels, and that a stacked step is the separate step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlearnlab.data.images import Images
from unlearnlab.fit import Shuffled, cross_entropy, fit
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.pixels import Pixels
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.optimizers import Sgd
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack

SHAPE = (1, 8, 8)


def weights(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts() -> None:
    assert weights(SmallCnn()(SHAPE, 10)) == 8410
    assert weights(Mlp()(SHAPE, 10)) == 9610
    assert weights(SmallCnn(norm="batch")(SHAPE, 10)) == 8410 + (16 + 16 + 32)  # a scale and a shift for each bias
    assert weights(Mlp(hidden=(5, 4))((3, 4, 4), 2)) == 48 * 5 + 5 + 5 * 4 + 4 + 4 * 2 + 2
    assert weights(SmallCnn(widths=(2, 3, 4))((3, 9, 6), 7)) == (27 * 2 + 2) + (18 * 3 + 3) + (27 * 4 + 4) + (4 * 2 * 1 * 7 + 7)


@pytest.mark.parametrize("spec", ["mlp", "small_cnn", {"name": "small_cnn", "norm": "batch"}])
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("shape", [SHAPE, (3, 9, 5)])
def test_shapes(spec: object, classes: int, shape: tuple[int, int, int]) -> None:
    net = build("net", spec)(shape, classes)
    assert net(torch.zeros(4, *shape, dtype=torch.uint8)).shape == (4, classes)


@pytest.mark.parametrize("spec", [Mlp(), SmallCnn()])
def test_bytes_are_scaled_floats(spec: Mlp | SmallCnn) -> None:
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.2, 0.3), (0.5, 2.0, 1.0)
    net = spec((3, 8, 8), 10, mean, std)
    assert torch.equal(net(pixels), net(pixels.float() / 255))
    by_hand = torch.stack([(pixels[:, c].float() / 255 - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(Pixels(mean, std)(pixels), by_hand)
    assert torch.equal(Pixels()(pixels), pixels.float() / 255)
    floats = torch.randn(2, 3, 8, 8)
    assert Pixels()(floats) is floats
    stack = Stack.of([net, spec((3, 8, 8), 10, mean, std)], (0, 1))
    torch.testing.assert_close(stack.logits(pixels)[0], net(by_hand * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)), rtol=1e-4, atol=1e-5)


def test_one_stacked_step_is_two_separate_steps() -> None:
    draw = torch.Generator().manual_seed(0)
    data = Images(torch.randint(0, 256, (12, *SHAPE), dtype=torch.uint8, generator=draw), torch.arange(12) % 10, torch.arange(12), 10)
    stack = Stack.init(SmallCnn(norm="batch")(SHAPE, 10), (1, 2))
    stream = Shuffled(data, 6, stack.seeds, "order")
    found = fit(stack, stream, cross_entropy, lr=0.1, optimizer=Sgd(), steps=1)
    for k in range(2):
        model, batch = stack.member(k).train(), stream(0)
        nn.functional.cross_entropy(model(batch.images[k]), batch.labels[k]).backward()
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4).step()
        for name, tensor in (dict(model.named_parameters()) | dict(model.named_buffers())).items():
            torch.testing.assert_close((found.params | found.buffers)[name][k], tensor.detach(), rtol=1e-4, atol=1e-6)
    assert not torch.equal(found.buffers["2.running_mean"], stack.buffers["2.running_mean"])


def test_senseless_nets_are_refused() -> None:
    with pytest.raises(InputError, match=r"widths = \[1, 2\] must be three"):
        SmallCnn(widths=(1, 2))
    with pytest.raises(InputError, match="at least 4×4 pixels, got 3×8"):
        SmallCnn()((1, 3, 8), 10)
    with pytest.raises(InputError, match="out of range"):
        Mlp(hidden=(0,))
