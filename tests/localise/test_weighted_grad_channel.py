"""``weighted_grad_channel``: DEL's criterion, against a plain loop, and the published code's variants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toy import Toy, make_toy
from unlearnlab.gradients import summed_gradient
from unlearnlab.localise.ranking import best_of_channels
from unlearnlab.localise.weighted_grad_channel import WeightedGradChannel
from unlearnlab.spec import InputError
from unlearnlab.stack import flat


def by_loops(toy: Toy, k: int, budget: float, top_share: float) -> list[Tensor]:
    """Steps 1–5 of methods.md §5.2 for one model, channel by channel."""
    slopes = summed_gradient(toy.stack, toy.split.forget, toy.context().progress)
    units: list[tuple[float, int, Tensor]] = []  # score, weights, view of the mask
    masks = []
    for name, stacked in toy.stack.params.items():
        values, bits = (stacked[k] * slopes[name][k]).abs(), torch.zeros(stacked[k].shape, dtype=torch.bool)
        masks.append(bits)
        if values.dim() == 1:
            units.append((float(values.max()), len(values), bits))
        else:
            for channel, view in zip(values, bits, strict=True):
                best = sorted(channel.flatten().tolist(), reverse=True)[: max(1, int(top_share * channel.numel()))]
                units.append((sum(best) / len(best), channel.numel(), view))
    left = budget * sum(bits.numel() for bits in masks)
    for _, weights, view in sorted(units, key=lambda unit: -unit[0]):
        left -= weights
        if left < 0:
            break
        view.fill_(True)
    return masks


@pytest.mark.parametrize("top_share", [0.1, 1.0])
@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp"])
def test_agrees_with_plain_loops(net: str, top_share: float) -> None:
    toy = make_toy(net)
    mask = toy.locate(WeightedGradChannel(budget=0.3, top_share=top_share))
    for k in range(len(toy.stack)):
        for mine, theirs in zip(mask.open.values(), by_loops(toy, k, 0.3, top_share), strict=True):
            assert torch.equal(mine[k], theirs)


def test_legacy_argsort_fills_the_budget_and_may_split_a_channel(toy: Toy) -> None:
    legacy, whole = (toy.locate(WeightedGradChannel(tie=tie)) for tie in ("legacy_argsort", "whole_channel"))
    weights = flat(toy.stack.params).shape[1]
    assert flat(legacy.open).sum(1).tolist() == [int(0.3 * weights)] * 3
    assert bool((flat(legacy.open) | ~flat(whole.open)).all())  # the same channels, and part of the next
    assert any(bool((bits.flatten(2).any(2) != bits.flatten(2).all(2)).any()) for bits in legacy.open.values() if bits.dim() > 2)


def test_legacy_elementwise_ranks_biases_one_by_one(toy: Toy) -> None:
    mask = toy.locate(WeightedGradChannel(one_dim="legacy_elementwise"))
    biases = [bits for bits in mask.open.values() if bits.dim() == 2]
    assert any(bool((bits.any(1) != bits.all(1)).any()) for bits in biases)


def test_legacy_top_share_counts_output_channels_and_refuses_to_average_nothing() -> None:
    """int(.1 · C_out) entries: one for ten channels, none for the two of a binary head (NaN in the published code)."""
    toy, legacy = make_toy("mlp"), WeightedGradChannel(top_share=0.1, topk_rule="legacy_out_channels")
    slopes = summed_gradient(toy.stack, toy.split.forget, toy.context().progress)
    name = list(toy.stack.params)[-2]
    values = (toy.stack.params[name] * slopes[name]).abs()
    assert values.shape[1:] == (10, 32)
    assert torch.equal(legacy._legacy(name, values), values.amax(2))
    assert torch.allclose(best_of_channels(toy.stack, {name: values}, 0.1)[name], values.topk(3, 2).values.mean(2))
    with pytest.raises(InputError, match=r"legacy_out_channels.*2 output channels"):
        make_toy("small_cnn", 2).locate(legacy)


def test_binary_classifier(toy: Toy) -> None:
    mask = make_toy("small_cnn", 2).locate(WeightedGradChannel())
    assert bool(((mask.share() > 0.25) & (mask.share() <= 0.3)).all())
