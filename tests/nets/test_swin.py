"""``swin_t``: its size, merging, windows and shifts, and that stacked is apart."""

from __future__ import annotations

import pytest
import torch
from attention import assert_blocks_in_forward_order, assert_stacked_is_apart, assert_starts_reproducibly, some_images, weights
from torch import Tensor, nn

from unlearnlab.nets.swin import Merge, SwinT, WindowAttention
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack

SHAPE = (3, 32, 32)
SMALL = SwinT(window=2, downscaling=(2, 1), dims=(8, 12), depths=(2, 1), heads=(2, 3), head_dim=4)


def by_formula(channels: int, classes: int, window: int, downscaling: tuple[int, ...], dims: tuple[int, ...], depths: tuple[int, ...], inner: list[int]) -> int:
    total, inside = 0, channels
    for scale, dim, depth, width in zip(downscaling, dims, depths, inner, strict=True):
        attention = 2 * dim + 3 * dim * width + (2 * window - 1) ** 2 + width * dim + dim
        mlp = 2 * dim + 4 * dim * dim + 4 * dim + 4 * dim * dim + dim
        total += inside * scale**2 * dim + dim + depth * (attention + mlp)
        inside = dim
    return total + 2 * inside + inside * classes + classes


def test_parameter_counts() -> None:
    full = build("net", "swin_t")(SHAPE, 10)
    assert weights(full) == by_formula(3, 10, 4, (2, 2, 2, 1), (96, 192, 384, 768), (2, 2, 6, 2), [32 * heads for heads in (3, 6, 12, 24)]) == 26_598_646
    assert weights(SMALL((1, 8, 12), 5)) == by_formula(1, 5, 2, (2, 1), (8, 12), (2, 1), [8, 12])
    assert not any(isinstance(module, nn.modules.conv._ConvNd) for module in full.modules())
    assert not list(full.buffers())


def test_merging_is_unfold_and_a_linear_map() -> None:
    torch.manual_seed(0)
    merge, x = Merge(3, 5, 2), torch.randn(2, 4, 6, 3)
    squares = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).view(2, 12, 2, 3).permute(0, 2, 3, 1)
    torch.testing.assert_close(merge(x), merge.linear(squares))


def slow_attention(attention: WindowAttention, x: Tensor) -> Tensor:
    """Token by token and without a roll: windows that begin at the shift, those at the border cut off."""
    (h, w, _), m, s = x.shape, attention.window, attention.shift
    q, k, v = attention.qkv(attention.norm(x)).view(h, w, 3, attention.heads, attention.head_dim).unbind(2)
    table = attention.positions.table.view(2 * m - 1, 2 * m - 1)
    out = torch.zeros(h, w, attention.heads, attention.head_dim)
    places = [(row, column) for row in range(h) for column in range(w)]
    for row, column in places:
        window = ((row - s) // m, (column - s) // m)
        sees = [(there, (there[0] - row, there[1] - column)) for there in places if ((there[0] - s) // m, (there[1] - s) // m) == window]
        for head in range(attention.heads):
            scores = [q[row, column, head] @ k[other][head] / attention.head_dim**0.5 + table[way[0] + m - 1, way[1] + m - 1] for other, way in sees]
            shares = torch.stack(scores).softmax(0)
            out[row, column, head] = sum(share * v[other][head] for share, (other, _) in zip(shares, sees, strict=True))
    found: Tensor = attention.out(out.flatten(2))
    return found


@pytest.mark.parametrize(("window", "shift", "size"), [(2, 0, (4, 6)), (2, 1, (4, 6)), (4, 2, (8, 4)), (4, 2, (4, 4)), (3, 1, (6, 3))])
def test_attention_against_a_slow_reference(window: int, shift: int, size: tuple[int, int]) -> None:
    torch.manual_seed(window)
    attention = WindowAttention(6, heads=2, head_dim=3, window=window, shift=shift)
    x = torch.randn(2, *size, 6)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), torch.stack([slow_attention(attention, one) for one in x]), rtol=1e-4, atol=1e-5)


def test_tokens_that_the_roll_brought_together_do_not_attend() -> None:
    attention = WindowAttention(6, heads=1, head_dim=3, window=4, shift=2)
    x = torch.randn(1, 8, 8, 6, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :2, 5] += torch.randn(6)  # rows 0 and 1 of column 5: rolled to the bottom, beside rows 6 and 7
    with torch.no_grad():
        moved = (attention(x) != attention(changed)).any(-1)[0]
    sees = torch.zeros(8, 8, dtype=torch.bool)
    sees[:2, 2:6] = True
    assert torch.equal(moved, sees)


def test_every_second_block_is_shifted() -> None:
    shifts = [module.shift for module in SwinT()(SHAPE, 10).modules() if isinstance(module, WindowAttention)]
    assert shifts == [0, 2] * 6


def test_blocks_are_in_forward_order() -> None:
    assert_blocks_in_forward_order(SMALL((3, 8, 8), 10), (3, 8, 8))
    assert_blocks_in_forward_order(SwinT()(SHAPE, 10), SHAPE)


def test_one_stacked_step_is_two_separate_steps() -> None:
    stack = Stack.init(SwinT()(SHAPE, 10), (1, 2))
    assert stack.params["stage1.blocks.0.attention.positions.table"].std() == pytest.approx(1, abs=0.3)
    assert_stacked_is_apart(stack, some_images(SHAPE, 4), batch=2)
    assert_stacked_is_apart(assert_starts_reproducibly(SMALL((1, 8, 12), 10), "head"), some_images((1, 8, 12), 6))


def test_senseless_settings_and_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"28×28 pixels: stage 1 merges 2×2 of 28×28 tokens and cuts the result into windows of 4×4"):
        SwinT()((1, 28, 28), 10)
    with pytest.raises(InputError, match=r"one number a stage each, got \[4, 2, 4, 4\] numbers"):
        SwinT(dims=(96, 192))
    with torch.no_grad():
        assert SwinT()((1, 64, 32), 7)(torch.zeros(2, 1, 64, 32, dtype=torch.uint8)).shape == (2, 7)
