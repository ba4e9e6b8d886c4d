"""Ranks, ties and budgets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unlearnlab.localise.ranking import open_channels, open_weights
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Stack, flat


@pytest.fixture
def stack() -> Stack:
    """Two members of a net of 4×3 weights and 4 biases, then 2×4 and 2: 26 weights."""
    return Stack.init(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (0, 1))


def constant(stack: Stack) -> dict[str, Tensor]:
    return {name: torch.ones_like(p) for name, p in stack.params.items()}


def test_ties_go_to_order_of_definition_then_index(stack: Stack) -> None:
    bits = flat(open_weights(stack, constant(stack), 0.5).open)
    assert bits.tolist() == [[True] * 13 + [False] * 13] * 2


def test_the_largest_open_over_all_tensors_and_each_member_ranks_its_own(stack: Stack) -> None:
    scores = {name: p.abs() for name, p in stack.params.items()}
    bits = flat(open_weights(stack, scores, 7 / 26 + 1e-6).open)
    for k in range(2):
        row = flat(scores)[k]
        assert set(bits[k].nonzero().flatten().tolist()) == set(sorted(range(26), key=lambda i: -float(row[i]))[:7])


def test_budgets_are_exact_in_decimals() -> None:
    """.29 × 100 is 28.999999999999996 in floating point."""
    stack = Stack.init(nn.Linear(10, 10, bias=False), (0,))
    assert int(flat(open_weights(stack, constant(stack), 0.29).open).sum()) == 29


def test_channels_fill_the_budget_until_the_next_would_exceed_it(stack: Stack) -> None:
    units = {
        "0.weight": torch.tensor([[1.0, 9, 5, 2]] * 2),
        "0.bias": torch.tensor([[8.0]] * 2),
        "1.weight": torch.tensor([[7.0, 0]] * 2),
        "1.bias": torch.tensor([[6.0]] * 2),
    }
    open_at = {budget: open_channels(stack, units, budget / 26 + 1e-6).open for budget in (2, 3, 7, 10, 11, 12, 13, 26)}
    assert not flat(open_at[2]).any()  # the best channel alone has 3 weights
    assert open_at[3]["0.weight"][0].tolist() == [[False] * 3, [True] * 3, [False] * 3, [False] * 3]
    assert [int(flat(open_at[budget])[0].sum()) for budget in open_at] == [0, 3, 7, 7, 11, 11, 13, 26]  # 3 · 4 · 4 · 2 …: never part of one
    assert open_at[12]["1.weight"][0].tolist() == [[True] * 4, [False] * 4]  # the bias that would fit as well does so only at 13


def test_tied_channels_go_in_order(stack: Stack) -> None:
    many = Stack.init(nn.Linear(1, 5000, bias=False), (0,))  # so many that an unstable sort shuffles them
    assert flat(open_channels(many, {"weight": torch.arange(5000).remainder(2).float()[None]}, 0.25).open)[0].nonzero().flatten().tolist() == list(
        range(1, 2500, 2)
    )
    units = {"0.weight": torch.ones(2, 4), "0.bias": torch.ones(2, 1), "1.weight": torch.ones(2, 2), "1.bias": torch.ones(2, 1)}
    assert open_channels(stack, units, 0.25).open["0.weight"][1].tolist() == [[True] * 3, [True] * 3, [False] * 3, [False] * 3]


@pytest.mark.parametrize("budget", [30, 0, -0.1, 1.01])
@pytest.mark.parametrize("name", ["grad_param", "weighted_grad_channel", "weight_magnitude", "random"])
def test_budgets_out_of_range_are_refused(name: str, budget: float) -> None:
    with pytest.raises(InputError, match=f"budget = {float(budget)} is out of range"):
        build("localiser", {"name": name, "budget": budget})
