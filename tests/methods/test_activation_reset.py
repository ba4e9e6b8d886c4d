"""``activation_reset``: mean maps by hand and by a plain loop, in eval mode, each divided by its own number of images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from toy import Toy, make_toy, same
from unlearnlab.data.images import Images
from unlearnlab.methods.activation_reset import ActivationReset
from unlearnlab.methods.reinit import kaiming_normal
from unlearnlab.methods.sample import sampled
from unlearnlab.nets.mlp import Mlp
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack, head_names

STILL = {"lr": 0.0, "epochs": 1, "bn": "frozen"}  # what is reset stays as it was drawn


def of(pixels: Tensor, first: int = 0) -> Images:
    n = len(pixels)
    return Images(pixels, torch.arange(n) % 2, torch.arange(first, first + n), 2)


def by_hand() -> Toy:
    """Two 1×1 kernels that put out x and −x at four places, under a head of two classes."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        net[0].bias.fill_(0.5)
    stack = Stack.of([net], (0,))
    forget, retain = torch.tensor([1.0, 1.0, 1.0, 3.0]), torch.tensor([2.0, 0.0, 0.0, 0.0])
    split = replace(make_toy().split, forget=of(forget.view(1, 1, 2, 2)), retain=of(retain.view(1, 1, 2, 2).repeat(50, 1, 1, 1), 1))
    return Toy(stack, stack, split, ("by hand", 2))


def test_scores_by_hand() -> None:
    """x: higher on S at three of four places; −x: at one."""
    toy = by_hand()
    (scores,) = ActivationReset().scores(toy.stack, toy.split, toy.context()).values()
    assert scores.tolist() == [[0.75, 0.25]]


@pytest.mark.parametrize(("tolerance", "expected"), [(0.8, [False, False]), (0.75, [False, False]), (0.7, [True, False]), (0.2, [True, True])])
def test_kernels_beyond_the_tolerance_start_anew_with_all_their_weights(tolerance: float, expected: list[bool]) -> None:
    toy = by_hand()
    after = toy.unlearn(ActivationReset(tolerance=tolerance, reset_head=False, **STILL))  # type: ignore[arg-type]
    fresh = kaiming_normal(toy.stack, ["0.weight"], toy.context().seeds, mode="fan_in")["0.weight"]
    for u, reset in enumerate(expected):
        assert torch.equal(after.params["0.weight"][0, u], (fresh if reset else toy.stack.params["0.weight"])[0, u])
    assert same({n: after.params[n] for n in ("0.bias", "3.weight", "3.bias")}, {n: toy.stack.params[n] for n in ("0.bias", "3.weight", "3.bias")})


def test_head_weight_starts_anew_and_its_bias_does_not(toy: Toy) -> None:
    after = toy.unlearn(ActivationReset(tolerance=1.0, **STILL))  # type: ignore[arg-type]
    weight, bias = head_names(toy.stack)
    fresh = kaiming_normal(toy.stack, [weight], toy.context().seeds, mode="fan_in")
    assert same(after.params, toy.stack.params | fresh)
    assert torch.equal(after.params[bias], toy.stack.params[bias])


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp", "vit"])
def test_scores_are_those_of_a_plain_loop(net: str) -> None:
    """One member and image at a time, as modules in eval mode; units of hidden linear layers where there is no convolution."""
    toy, kind = make_toy(net), nn.Linear if net in ("mlp", "vit") else nn.Conv2d
    ctx, method = toy.context(), ActivationReset(sample_share=0.2, batch=3)
    found, rows = method.scores(toy.stack, toy.split, ctx), sampled(toy.split.retain, 0.2, ctx.seeds)
    head = head_names(toy.stack)[0]
    for k in range(3):
        maps = caught(toy.stack.member(k), kind, head, torch.cat([toy.split.forget.pixels, toy.split.retain.pixels[rows[k]]]))
        assert list(maps) == list(found)
        for name, each in maps.items():
            higher = each[:4].mean(0) - each[4:].mean(0)
            places = (higher.transpose(0, -1) if kind is nn.Linear else higher).reshape(found[name].shape[1], -1)
            unsure = (places.abs() < 1e-5).double().mean(1)  # such as the class token, the same for all images before the first attention
            assert bool(((found[name][k] - (places > 0).double().mean(1)).abs() <= unsure + 1e-12).all())
            assert float(unsure.mean()) < 0.4


def caught(member: nn.Module, kind: type[nn.Module], head: str, images: Tensor) -> dict[str, Tensor]:
    """What each layer but the head puts out, image by image."""
    maps: dict[str, list[Tensor]] = {}

    def keep(name: str, layer: nn.Module) -> None:
        layer.register_forward_hook(lambda _, __, out: maps.setdefault(name, []).append(out[0].detach().double()))

    for name, layer in member.named_modules():
        if isinstance(layer, kind) and f"{name}.weight" != head:
            keep(f"{name}.weight", layer)
    for image in images:
        member(image.unsqueeze(0))
    return {name: torch.stack(each) for name, each in maps.items()}


def test_nothing_is_higher_where_both_sets_are_the_same(toy: Toy) -> None:
    twice = replace(toy, split=replace(toy.split, forget=toy.split.retain))
    scores = ActivationReset(sample_share=1.0, batch=16).scores(twice.stack, twice.split, twice.context())
    assert all(not score.any() for score in scores.values())


def test_scores_do_not_depend_on_the_size_of_the_sample(toy: Toy) -> None:
    """The mean over a sample is divided by the size of the sample: with fifty times one image any sample has the same mean."""
    lots = torch.Generator().manual_seed(2)
    noise, one = torch.rand(4, 1, 8, 8, generator=lots), torch.rand(1, 1, 8, 8, generator=lots)
    split = replace(toy.split, forget=of(noise), retain=of(one.repeat(50, 1, 1, 1), 4))
    few, some, whole = (ActivationReset(sample_share=share).scores(toy.stack, split, toy.context()) for share in (0.02, 0.1, 1.0))
    for name, score in whole.items():
        assert float((few[name] - score).abs().max()) < 0.02
        assert float((some[name] - score).abs().max()) < 0.02


def test_in_expectation_the_sample_changes_nothing() -> None:
    """Forty samples of four images against the whole retain set; divided by 56 instead of 4 the mean score of a kernel would move far."""
    toy = make_toy().only(0)
    seeds = tuple(range(40))
    many = Stack.join([toy.stack] * 40)
    ctx = replace(toy.context(), seeds=seeds)
    whole = ActivationReset(sample_share=1.0).scores(toy.stack, toy.split, toy.context())
    few = ActivationReset(sample_share=0.08).scores(many, toy.split, ctx)
    for name, score in whole.items():
        assert abs(float(few[name].mean()) - float(score.mean())) < 0.08


def test_statistics_leave_batch_norm_alone_and_do_not_see_the_batch() -> None:
    toy = make_toy("batch_norm")
    before = {name: b.clone() for name, b in toy.stack.buffers.items()}
    scores = [ActivationReset(batch=size, sample_share=0.5).scores(toy.stack, toy.split, toy.context()) for size in (2, 128)]
    assert same(toy.stack.buffers, before)
    assert all(float((scores[0][name] - scores[1][name]).abs().max()) < 0.05 for name in scores[0])  # batch statistics would differ
    after = toy.unlearn(ActivationReset(lr=0, epochs=1, bn="frozen"))
    assert same(after.buffers, before)


def test_statistics_are_forward_only(toy: Toy) -> None:
    ctx = toy.context()
    ActivationReset(sample_share=0.5).scores(toy.stack, toy.split, ctx)
    assert (ctx.progress.forward, ctx.progress.backward) == (4 + 28, 0)


def test_a_net_that_is_all_head_is_refused() -> None:
    toy = make_toy("mlp")
    bare = replace(toy, stack=Stack.init(Mlp(hidden=())((1, 8, 8), 10), (0,)))
    with pytest.raises(InputError, match="this net has no layer but its head"):
        bare.unlearn(ActivationReset())
