"""Prunings: exact sparsity, one threshold over all layers, rewinding, SynFlow's scores, and masks that outlive everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from toy import make_toy, same
from unlearnlab.progress import Progress
from unlearnlab.prune.cut import Dense, prunable, remaining, sparsity, without_lowest
from unlearnlab.prune.imp import Imp
from unlearnlab.prune.omp import Omp
from unlearnlab.prune.random import Random
from unlearnlab.prune.synflow import SynFlow, flow
from unlearnlab.spec import InputError, build, names
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

RECIPE = Recipe(epochs=4, batch=20, rewind=2)


def dense(net: str = "batch_norm") -> Dense:
    """The toy's nets, trained for a moment."""
    toy = make_toy(net)
    kept: list[Stack] = []
    trained = RECIPE(toy.init, toy.split.train, at_rewind=kept.append)
    return Dense(trained, toy.init, kept[0])


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm", "mlp", "vit"])
@pytest.mark.parametrize("name", names("pruning"))
def test_sparsity_is_exact_and_the_models_are_trained(name: str, net: str) -> None:
    pruning: Any = build("pruning", name)
    linear = net in ("mlp", "vit")
    pruning = replace(pruning, include_linear=linear, **({"rounds": 3} if name in ("imp", "synflow") else {}))
    held = dense(net)
    sparse = pruning(held, make_toy(net).split.train, RECIPE, Progress())
    chosen = prunable(sparse.net, linear)
    size = remaining(held.init, chosen)
    expected = 1.0
    if name == "imp":
        left = size
        for _ in range(3):
            left -= round(left * 0.2)
        expected = 1 - left / size
    else:
        expected = 1 - round(size * 0.05) / size if name == "synflow" else round(size * 0.95) / size
    assert sparsity(sparse, chosen).tolist() == pytest.approx([expected] * 3, abs=1e-12)
    assert set(sparse.live) == set(chosen)
    assert all(int((sparse.params[n][~sparse.live[n]] != 0).sum()) == 0 for n in chosen)
    assert not all(torch.equal(sparse.params[n], torch.where(sparse.live[n], held.init.params[n], 0)) for n in chosen)  # trained


def test_every_pruning_says_what_it_needs() -> None:
    held = dense("small_cnn")
    for name in names("pruning"):
        pruning: Any = build("pruning", name)
        for state in ("trained", "init", "rewind"):
            without = replace(held, **{state: None})
            if state in pruning.needs:
                with pytest.raises(InputError, match=f"pruning '{name}' needs the weights '{state}'"):
                    pruning(without, make_toy().split.train, RECIPE, Progress())


def test_only_convolutions_unless_asked() -> None:
    assert all("weight" in name for name in prunable(make_toy("small_cnn").stack.net, False))
    assert len(prunable(make_toy("small_cnn").stack.net, False)) == 3
    assert len(prunable(make_toy("small_cnn").stack.net, True)) == 4
    for net in ("mlp", "vit"):
        with pytest.raises(InputError, match="include_linear = true"):
            prunable(make_toy(net).stack.net, False)


def test_one_threshold_over_all_layers_and_ties_to_the_first() -> None:
    stack = make_toy("small_cnn").only(0).stack
    chosen = prunable(stack.net, False)
    scores = {name: torch.full_like(stack.params[name], float(at)) for at, name in enumerate(chosen)}
    sizes = [stack.params[name].numel() for name in chosen]
    share = (sizes[0] + 10) / sum(sizes)
    cut = without_lowest(stack, scores, share)
    assert not bool(cut.live[chosen[0]].any())  # all of the lowest layer, then the first ten of the next
    assert cut.live[chosen[1]].flatten().tolist() == [False] * 10 + [True] * (sizes[1] - 10)
    assert bool(cut.live[chosen[2]].all())


def test_repeated_removal_counts_live_weights_only() -> None:
    stack = make_toy("small_cnn").only(0).stack
    chosen = prunable(stack.net, False)
    size, left = remaining(stack, chosen), remaining(stack, chosen)
    for _ in range(5):
        stack = without_lowest(stack, {name: stack.params[name].abs() for name in chosen}, 0.2)
        left -= round(0.2 * left)
        assert remaining(stack, chosen) == left
    assert left / size == pytest.approx(0.8**5, abs=0.01)


def test_omp_rewinds_to_the_early_epoch_under_the_mask() -> None:
    """With nothing removed, rewinding and training on gives what plain training from there gives: the schedule is at its place."""
    held, images = dense("small_cnn"), make_toy("small_cnn").split.train
    assert held.rewind is not None
    nothing = Omp(sparsity=0.0)(held, images, RECIPE, Progress())
    assert same(nothing.params, RECIPE(held.rewind, images, start=2).params)
    sgd = build("optimizer", {"name": "sgd", "momentum": 0.0})
    plain = replace(RECIPE, optimizer=sgd)
    kept: list[Stack] = []
    whole = plain(make_toy("small_cnn").init, images, at_rewind=kept.append)
    again = Omp(sparsity=0.0)(Dense(whole, None, kept[0]), images, plain, Progress())
    assert same(again.params, whole.params)  # without momentum nothing is lost by the interruption
    half = Omp(sparsity=0.5)(held, images, replace(RECIPE, lr=1e-30), Progress())
    chosen = prunable(half.net, False)
    for n in chosen:  # a learning rate of next to nothing shows where training started
        assert torch.allclose(half.params[n], torch.where(half.live[n], held.rewind.params[n], 0), atol=1e-12)


def test_rewinding_without_an_epoch_to_go_back_to_is_refused() -> None:
    with pytest.raises(InputError, match=r"set recipe\.rewind"):
        Omp()(Dense(dense().trained, None, None), make_toy().split.train, RECIPE, Progress())


def test_synflow_scores_sum_to_the_same_in_every_layer_of_a_chain() -> None:
    """Σ θ ∂R/∂θ over a layer is conserved in a chain of linear and ReLU layers without biases (Tanaka et al., theorem 1)."""
    from unlearnlab.nets.mlp import Mlp

    net = Mlp(hidden=(12, 9))((1, 8, 8), 10)
    stack = Stack.init(net, (0, 1))
    stack = stack.having({n: torch.zeros_like(p) if n.endswith("bias") else p for n, p in stack.params.items()})
    scores = flow(stack, torch.Size((1, 8, 8)))
    sums = torch.stack([scores[n].flatten(1).sum(1) for n in scores if n.endswith("weight")])
    assert sums.dtype == torch.float64
    assert torch.allclose(sums, sums[0].expand_as(sums), rtol=1e-9)
    ones = torch.ones(64, dtype=torch.float64)
    weights = [stack.params[n][0].double().abs() for n in stack.params if n.endswith("weight")]
    by_hand = (weights[2] @ (weights[1] @ (weights[0] @ ones))).sum()
    assert float(sums[0, 0]) == pytest.approx(float(by_hand), rel=1e-9)


def test_synflow_sees_ones_whatever_the_normalisation_and_keeps_signs() -> None:
    from unlearnlab.nets.small_cnn import SmallCnn

    shape = torch.Size((1, 8, 8))
    plain, shifted = (Stack.init(SmallCnn()((1, 8, 8), 10, **how), (0,)) for how in ({}, {"mean": [0.3], "std": [0.2]}))
    assert same(flow(plain, shape), flow(shifted, shape))
    held = dense("small_cnn")
    assert held.init is not None
    sparse = SynFlow(sparsity=0.5, rounds=4)(held, make_toy().split.train, replace(RECIPE, lr=1e-30), Progress())
    for n in prunable(sparse.net, False):
        assert torch.allclose(sparse.params[n], torch.where(sparse.live[n], held.init.params[n], 0), atol=1e-12)


def test_a_layer_of_extreme_flow_keeps_its_ranking() -> None:
    """In single precision the scores of the weights below would all be infinite, and the removal arbitrary."""
    stack = make_toy("small_cnn").only(0).init
    big = stack.having({n: p * 1e15 for n, p in stack.params.items()})
    scores = flow(big, torch.Size((1, 8, 8)))
    assert all(bool(torch.isfinite(s).all()) for s in scores.values())
    assert float(max(s.max() for s in scores.values())) > torch.finfo(torch.float32).max


def test_random_draws_differ_between_members() -> None:
    sparse = Random(sparsity=0.5)(dense("small_cnn"), make_toy().split.train, RECIPE, Progress())
    first = next(iter(sparse.live.values()))
    assert not torch.equal(first[0], first[1])


def test_imp_trains_after_every_removal() -> None:
    held, images = dense("small_cnn"), make_toy("small_cnn").split.train
    progress = Progress()
    Imp(rounds=2, rewind_to="init")(held, images, RECIPE, progress)
    assert progress.backward == 2 * RECIPE.epochs * len(images)


@pytest.mark.parametrize("what", ["to", "rows", "join", "fresh", "member"])
def test_what_is_pruned_stays_pruned(what: str) -> None:
    stack = without_lowest(make_toy("small_cnn").stack, {"1.weight": make_toy("small_cnn").stack.params["1.weight"].abs()}, 0.5)
    live = stack.live["1.weight"]
    if what == "member":
        weight = dict(stack.member(1).named_parameters())["1.weight"]
        assert torch.equal(weight != 0, live[1])
        return
    made = {"to": stack.to("cpu"), "rows": stack.rows([1, 0]), "join": Stack.join([stack.rows([1]), stack.rows([0])]), "fresh": stack.fresh((9, 8, 7))}[what]
    expected = live[[1, 0]] if what in ("rows", "join") else live
    assert torch.equal(made.live["1.weight"], expected)
    assert torch.equal(made.params["1.weight"] != 0, expected)
    assert stack.having({n: torch.ones_like(p) for n, p in stack.params.items()}).params["1.weight"].sum() == live.sum()


def test_removal_is_exact_in_large_nets() -> None:
    """0.95 · 6 000 005 = 5 700 004.75, and 5 700 004 in single precision."""
    size = 6_000_005
    stack = Stack(torch.nn.Linear(1, 1), {"w": torch.ones(1, size)}, {}, (0,))
    sparse = without_lowest(stack, {"w": torch.arange(size, dtype=torch.float32).unsqueeze(0)}, 0.95)
    assert int((~sparse.live["w"]).sum()) == 5_700_005
