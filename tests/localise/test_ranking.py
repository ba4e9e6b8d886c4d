"""Ranks, ties and budgets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unlearnlab.localise.ranking import Ranking, best_of_channels, by_channel, open_channels, open_weights, rank
from unlearnlab.spec import InputError, build
from unlearnlab.stack import Mask, Stack, flat


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
@pytest.mark.parametrize("name", ["grad_param", "weighted_grad_channel", "weight_magnitude", "random", "deepest", "fisher_ratio", "crit_mem"])
def test_budgets_out_of_range_are_refused(name: str, budget: float) -> None:
    with pytest.raises(InputError, match=f"budget = {float(budget)} is out of range"):
        build("localiser", {"name": name, "budget": budget})


# -- units, and what else a ranking may ask for (methods.md §5.1) -----------------------------------


def opened(ranking: Ranking, budget: float, k: int = 0) -> dict[str, list[bool]]:
    return {name: bits[k].flatten().tolist() for name, bits in ranking.mask(budget / 26 + 1e-6).open.items()}


def example() -> dict[str, Tensor]:
    """Scores of the net of 26 weights, the same for both members."""
    values = {"0.weight": [[1.0] * 3, [9.0] * 3, [5.0] * 3, [2.0] * 3], "0.bias": [8.0, 0, 0, 0], "1.weight": [[7.0] * 4, [0.0] * 4], "1.bias": [6.0, 6]}
    return {name: torch.tensor([held] * 2) for name, held in values.items()}


def test_channels_are_scored_by_the_mean_of_their_weights(stack: Stack) -> None:
    ranking = rank(stack, example(), granularity="channel")  # channels 9, 7, 6 (a bias whole), 5, 2, 2 (8 over four), 1, 0
    assert [sum(map(sum, opened(ranking, budget).values())) for budget in (3, 7, 9, 12, 15)] == [3, 7, 9, 12, 15]
    assert opened(ranking, 9)["1.bias"] == [True, True]
    assert opened(ranking, 15)["0.weight"][9:] == [True] * 3  # before the bias of equal score, which comes later in the net
    assert opened(ranking, 19)["0.bias"] == [True] * 4


def test_layers_open_whole_and_are_scored_by_all_their_weights(stack: Stack) -> None:
    ranking = rank(stack, example(), granularity="layer")  # (51 + 8)/16 = 3.7 and (28 + 12)/10 = 4
    assert [sum(map(sum, opened(ranking, budget).values())) for budget in (9, 10, 25, 26)] == [0, 10, 10, 26]
    assert all(opened(ranking, 10)["1.weight"] + opened(ranking, 10)["1.bias"])
    with pytest.raises(InputError, match="ranks nothing within a tensor"):
        rank(stack, example(), granularity="layer", ranking="per_tensor")


def test_a_budget_per_tensor_is_spent_in_each(stack: Stack) -> None:
    found = rank(stack, example(), ranking="per_tensor").mask(0.5)
    assert {name: bits[0].sum().item() for name, bits in found.open.items()} == {"0.weight": 6, "0.bias": 2, "1.weight": 4, "1.bias": 1}
    assert found.open["0.weight"][1].flatten().tolist() == [False] * 3 + [True] * 6 + [False] * 3


def test_normalised_scores_are_multiples_of_their_tensors_mean(stack: Stack) -> None:
    plain = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(3)) for name, p in stack.params.items()}
    scaled = {name: held * 10.0**at for at, (name, held) in enumerate(plain.items())}
    assert not torch.equal(flat(rank(stack, scaled).mask(0.3).open), flat(rank(stack, plain).mask(0.3).open))
    both = [flat(rank(stack, held, normalise="per_tensor").mask(0.3).open) for held in (plain, scaled)]
    assert torch.equal(*both)


def test_the_best_of_each_tensor_come_first(stack: Stack) -> None:
    ranking = rank(stack, example(), min_keep=1)
    assert [bits.count(True) for bits in opened(ranking, 4).values()] == [1, 1, 1, 1]
    assert [bits.count(True) for bits in opened(ranking, 7).values()] == [3, 1, 2, 1]  # then 9, 9, 7 as without
    subset = [flat(ranking.mask(budget / 26 + 1e-6).open) for budget in (2, 4, 7)]
    assert bool((subset[1] | ~subset[0]).all())
    assert bool((subset[2] | ~subset[1]).all())


def test_an_open_head_costs_no_budget(stack: Stack) -> None:
    found = rank(stack, example(), always_open="head").mask(3 / 26 + 1e-6)
    assert {name: bits[0].sum().item() for name, bits in found.open.items()} == {"0.weight": 3, "0.bias": 0, "1.weight": 8, "1.bias": 2}


def test_pruned_weights_have_no_rank_and_no_say_in_a_mean(stack: Stack) -> None:
    live = torch.ones(2, 4, 3, dtype=torch.bool)
    live[0, 1] = False  # the best channel of member 0 is gone
    live[1, 2, 1:] = False  # two of three weights of the third channel of member 1
    sparse = stack.pruned({"0.weight": live})
    scores = example()
    scores["0.weight"][1, 2] = torch.tensor([9.5, 0, 0])
    ranking = rank(sparse, scores, granularity="channel")
    assert ranking.total["1.bias"].tolist() == [23, 24]
    first = ranking.mask(4 / 23 + 1e-6).open  # 4 of 23, 4 of 24
    assert first["0.weight"][0].sum() == 0
    assert first["1.weight"][0, 0].tolist() == [True] * 4
    assert first["0.weight"][1].tolist() == [[False] * 3, [True] * 3, [True, False, False], [False] * 3]  # 9.5 alone, not a third of it
    assert torch.equal(flat(ranking.mask(1.0).open), flat(Mask.everything(sparse).open))


def test_the_best_share_of_a_channel_is_of_its_live_weights() -> None:
    stack = Stack.init(nn.Linear(10, 2, bias=False), (0,))
    live = torch.ones(1, 2, 10, dtype=torch.bool)
    live[0, 1, 5:] = False
    values = torch.arange(20.0).view(1, 2, 10)
    assert best_of_channels(stack.pruned({"weight": live}), {"weight": values}, 0.4)["weight"].tolist() == [[(9 + 8 + 7 + 6) / 4, (14 + 13) / 2]]


def test_places_of_an_embedding_are_units() -> None:
    assert by_channel(torch.zeros(2, 1, 5, 16)).shape == (2, 5, 16)
    assert by_channel(torch.zeros(2, 1, 3, 3, 3)).shape == (2, 1, 27)  # a convolution with one output
    assert by_channel(torch.zeros(2, 7)).shape == (2, 1, 7)
    assert by_channel(torch.zeros(2)).shape == (2, 1, 1)
