"""``vit_small_data``: its size, its shifted patches, its attention, and that stacked is apart."""

from __future__ import annotations

import math

import pytest
import torch
from attention import assert_blocks_in_forward_order, assert_stacked_is_apart, assert_starts_reproducibly, some_images, weights
from torch import Tensor

from unlearnlab.nets.vit import LocalAttention, ShiftedPatches, VitSmallData
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack, blocks

SHAPE = (3, 32, 32)
SMALL = VitSmallData(patch=4, dim=12, depth=2, heads=2, head_dim=5, mlp=7)


def test_parameter_counts() -> None:
    assert weights(build("net", "vit_small_data")(SHAPE, 10)) == 11_013_518
    tokens, values = 6, 5 * 2 * 16
    inside = 2 * 12 + 12 * 3 * 10 + 1 + 10 * 12 + 12 + 2 * 12 + 12 * 7 + 7 + 7 * 12 + 12
    assert weights(SMALL((2, 8, 12), 4)) == 2 * values + values * 12 + 12 + 12 + (tokens + 1) * 12 + 2 * inside + 2 * 12 + 12 * 4 + 4


def test_patches_are_cut_from_the_image_and_its_four_shifted_copies() -> None:
    c, h, w, p = 2, 6, 9, 3
    x = torch.randn(2, c, h, w, generator=torch.Generator().manual_seed(0))

    def seen(image: int, copy: int, channel: int, row: int, column: int) -> float:
        down, right = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)][copy]  # as it is, right, left, down, up
        row, column = row - down, column - right
        return float(x[image, channel, row, column]) if 0 <= row < h and 0 <= column < w else 0.0

    found = ShiftedPatches(p)(x)
    assert found.shape == (2, 6, 5 * c * p * p)
    for image in range(2):
        for token in range(6):
            top, left = token // 3 * p, token % 3 * p
            by_hand = [seen(image, copy, channel, top + i, left + j) for i in range(p) for j in range(p) for copy in range(5) for channel in range(c)]
            assert found[image, token].tolist() == by_hand


def test_no_token_attends_to_itself() -> None:
    net = VitSmallData()(SHAPE, 10)
    found: list[tuple[Tensor, LocalAttention]] = []
    attentions = [module for module in net.modules() if isinstance(module, LocalAttention)]
    for attention in attentions:
        attention.qkv.register_forward_hook(lambda module, given, out, attention=attention: found.append((out, attention)))
    with torch.no_grad():
        net(some_images(SHAPE, 2).pixels)
        assert len(found) == 4
        for out, attention in found:
            q, k, _ = out.view(2, 17, 3, 8, 64).permute(2, 0, 3, 1, 4)
            shares = attention.shares(q, k)
            assert shares.shape == (2, 8, 17, 17)
            torch.testing.assert_close(shares.sum(-1), torch.ones(2, 8, 17))
            assert shares.diagonal(dim1=-2, dim2=-1).count_nonzero() == 0
            assert (shares > 0).sum() == 2 * 8 * 17 * 16


def test_attention_against_a_slow_reference() -> None:
    torch.manual_seed(0)
    attention = LocalAttention(6, heads=2, head_dim=4)
    torch.nn.init.constant_(attention.temperature.t, 0.3)  # as if learned
    x = torch.randn(1, 5, 6)
    with torch.no_grad():
        q, k, v = attention.qkv(attention.norm(x))[0].view(5, 3, 2, 4).unbind(1)
        rows = []
        for i in range(5):
            heads = []
            for h in range(2):
                others = [j for j in range(5) if j != i]
                shares = torch.stack([(q[i, h] @ k[j, h] * math.exp(0.3)).exp() for j in others])
                heads.append(sum(share / shares.sum() * v[j, h] for share, j in zip(shares, others, strict=True)))
            rows.append(attention.out(torch.cat(heads)))
        torch.testing.assert_close(attention(x)[0], torch.stack(rows))


def test_start() -> None:
    stack = assert_starts_reproducibly(VitSmallData()(SHAPE, 10), "head")
    for k in range(2):
        temperatures = [tensor[k] for name, tensor in stack.params.items() if name.endswith("temperature.t")]
        assert len(temperatures) == 4
        for t in temperatures:
            assert float(t) == pytest.approx(math.log(64**-0.5))
            assert float(t.exp()) == pytest.approx(1 / 8)
        assert stack.params["positions.places"][k].std() == pytest.approx(1, abs=0.03)
        assert stack.params["positions.class_token"][k].std() == pytest.approx(1, abs=0.15)


def test_blocks_are_in_forward_order() -> None:
    net = SMALL(SHAPE, 10)
    assert_blocks_in_forward_order(net, SHAPE)
    assert blocks(net)[2] == ("positions.class_token", "positions.places")


def test_one_stacked_step_is_two_separate_steps() -> None:
    assert_stacked_is_apart(Stack.init(VitSmallData()(SHAPE, 10), (1, 2)), some_images(SHAPE, 4), batch=2)
    assert_stacked_is_apart(assert_starts_reproducibly(SMALL((1, 8, 12), 10), "head"), some_images((1, 8, 12), 6))


def test_images_that_patches_do_not_fill_are_refused() -> None:
    with pytest.raises(InputError, match="patches of 8×8 pixels, which do not fill 28×32; set patch"):
        VitSmallData()((1, 28, 32), 10)
    with torch.no_grad():
        assert VitSmallData(patch=7, depth=1)((1, 28, 28), 3)(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 3)
