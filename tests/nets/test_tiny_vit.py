"""``tiny_vit_11m``: its size, windows, drop path, and members trained together or apart."""

from __future__ import annotations

import pytest
import torch
from attention import assert_blocks_in_forward_order, assert_stacked_is_apart, assert_starts_reproducibly, some_images, weights
from torch import nn

from unlearnlab.fit import Shuffled, cross_entropy, fit
from unlearnlab.nets.tiny_vit import DropPath, RelativePositions, TinyVit11m, WindowAttention
from unlearnlab.optimizers import Sgd
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack, in_mode, is_stochastic

SHAPE = (3, 32, 32)
SMALL = TinyVit11m(dims=(4, 6, 8), depths=(1, 1, 2), heads=(1, 2, 2), windows=(7, 3, 7), drop_path=0.5)


def test_parameter_counts() -> None:
    # timm 1.0.31: create_model("tiny_vit_11m_224", num_classes=1000) and 10
    assert weights(TinyVit11m()((3, 224, 224), 1000)) == 10_996_972
    assert weights(TinyVit11m()((3, 224, 224), 10)) == 10_552_462
    # smaller images, smaller windows: 4, 2, 1 in place of 7, 14, 7 tokens wide
    fewer = 2 * 4 * (7 * 7 - 4 * 4) + 6 * 8 * (14 * 14 - 2 * 2) + 2 * 14 * (7 * 7 - 1)
    assert weights(build("net", "tiny_vit_11m")(SHAPE, 10)) == 10_552_462 - fewer == 10_541_638


def test_windows_shrink_to_the_map() -> None:
    def windows(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
        return [module.window for module in TinyVit11m(depths=(1, 1, 1, 1))(shape, 10).modules() if isinstance(module, WindowAttention)]

    assert windows((3, 224, 224)) == [(7, 7), (14, 14), (7, 7)]
    assert windows((3, 64, 64)) == [(7, 7), (4, 4), (2, 2)]
    assert windows((3, 32, 32)) == [(4, 4), (2, 2), (1, 1)]
    assert windows((3, 40, 100)) == [(5, 7), (3, 7), (2, 4)]


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 64), (1, 28, 44)])
def test_shapes(shape: tuple[int, int, int]) -> None:
    net = TinyVit11m(depths=(1, 1, 1, 1))(shape, 7)
    assert net(some_images(shape, 2).pixels).shape == (2, 7)


def test_relative_positions_against_a_slow_reference() -> None:
    positions = RelativePositions(2, (3, 2))
    nn.init.normal_(positions.table)
    found = positions(torch.zeros(1, 2, 6, 6))[0]
    table = positions.table.view(2, 3, 2)
    for i in range(6):
        for j in range(6):
            assert torch.equal(found[:, i, j], table[:, abs(i // 2 - j // 2), abs(i % 2 - j % 2)])


def test_attention_against_a_slow_reference() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(6, heads=2, window=(3, 2))
    nn.init.normal_(attention.positions.table)
    nn.init.normal_(attention.norm.bias)
    x = torch.randn(1, 4, 5, 6)
    padded = torch.zeros(6, 6, 6)  # two rows and a column of zeros more
    padded[:4, :5] = x[0]
    with torch.no_grad():
        by_hand = torch.zeros(6, 6, 6)
        for top in (0, 3):
            for left in (0, 2, 4):
                tokens = padded[top : top + 3, left : left + 2].reshape(6, 6)
                q, k, v = attention.qkv(attention.norm(tokens)).view(6, 2, 3, 3).unbind(2)
                scores = attention.positions(torch.einsum("ihd,jhd->hij", q, k) / 3**0.5)
                seen = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(6, 6)
                by_hand[top : top + 3, left : left + 2] = attention.out(seen).view(3, 2, 6)
        torch.testing.assert_close(attention(x)[0], by_hand[:4, :5])


def test_drop_path_rises_over_the_blocks_and_rests_in_eval() -> None:
    net = TinyVit11m()(SHAPE, 10)
    chances = [module.p for module in net.modules() if isinstance(module, DropPath)]
    # the first block has none; those of attention have two branches
    assert chances == pytest.approx([at * 0.1 / 11 for at in (1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11)])
    assert is_stochastic(net.train())
    assert not is_stochastic(net.eval())
    assert not is_stochastic(TinyVit11m(drop_path=0.0, depths=(1, 1, 1, 1))(SHAPE, 10).train())
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    assert drop.eval()(x) is x
    torch.manual_seed(0)
    found = drop.train()(x)
    assert found.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(found, found[:, :1, :1].expand_as(x))  # the image as a whole
    assert (found[:, 0, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.03)


def test_start() -> None:
    net = TinyVit11m()(SHAPE, 10)
    stack = assert_starts_reproducibly(net, "head")
    for name, tensor in stack.params.items():
        if name.endswith(("qkv.weight", "mlp.1.weight", "mlp.3.weight", "head.weight")):
            assert tensor.std() == pytest.approx(0.02, rel=0.05)
        if name.endswith("branch.4.norm.weight"):
            assert not tensor.any()
    assert is_stochastic(in_mode(stack.net, "train"))
    assert not is_stochastic(in_mode(stack.net, "eval_all"))


def test_blocks_are_in_forward_order() -> None:
    assert_blocks_in_forward_order(TinyVit11m()(SHAPE, 10), SHAPE)


def test_without_drop_path_one_stacked_step_is_two_separate_steps() -> None:
    small = TinyVit11m(dims=SMALL.dims, depths=SMALL.depths, heads=SMALL.heads, windows=SMALL.windows, drop_path=0.0)
    found = assert_stacked_is_apart(assert_starts_reproducibly(small((1, 36, 32), 10), "head"), some_images((1, 36, 32), 6))
    assert found.buffers["embedding.0.norm.running_mean"].any()


@pytest.mark.parametrize(("net", "shape"), [(SMALL, (1, 36, 32)), (TinyVit11m(), SHAPE)], ids=["small", "full"])
def test_members_trained_together_are_members_trained_apart(net: TinyVit11m, shape: tuple[int, int, int]) -> None:
    stack, data = Stack.init(net(shape, 10), (1, 2)), some_images(shape, 4)
    steps = 2 if net is SMALL else 1

    def train(seeds: tuple[int, ...]) -> dict[str, torch.Tensor]:
        begun = stack.rows([stack.seeds.index(seed) for seed in seeds])
        done = fit(begun, Shuffled(data, 2, seeds, "order"), cross_entropy, lr=0.1, optimizer=Sgd(), steps=steps)
        return done.params | done.buffers

    together, apart = train((1, 2)), [train((1,)), train((2,))]
    for name, tensor in together.items():
        for k in range(2):
            torch.testing.assert_close(tensor[k], apart[k][name][0], rtol=0, atol=0)
    assert not torch.equal(together["head.weight"][0], together["head.weight"][1])


def test_drop_path_draws_anew_for_each_member_and_step() -> None:
    stack, data = Stack.init(SMALL((1, 36, 32), 10), (1, 2)), some_images((1, 36, 32), 8)
    drop = in_mode(stack.net, "train").get_submodule("stage3.blocks.1.mlp_drop")
    assert isinstance(drop, DropPath)
    assert drop.p == 0.5
    seen: list[list[bool]] = []
    drop.register_forward_hook(lambda module, given, found: seen.append((found.flatten(1) != 0).any(1).tolist()))
    fit(stack, Shuffled(data, 8, stack.seeds, "order"), cross_entropy, lr=0.1, optimizer=Sgd(), steps=2)
    assert len(seen) == 4
    assert len(set(map(tuple, seen))) == 4


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"one number a stage each, got \[4, 4, 3, 4\] numbers"):
        TinyVit11m(heads=(2, 4, 8))
    with pytest.raises(InputError, match="448 channels cannot be shared out among 13 heads"):
        TinyVit11m(heads=(2, 4, 8, 13))
