"""``l1_sparse``: the course of the penalty, and real zeros from the proximal step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from toy import Toy, furthest, make_toy, same
from unlearnlab.localise.random import Random
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.l1_sparse import L1Sparse
from unlearnlab.optimizers import MultiStep, Sgd
from unlearnlab.spec import InputError

COURSES: dict[str, list[float]] = {"decay": [1, 0.75, 0.5, 0.25, 0], "growth": [0, 0.25, 0.5, 0.75, 0], "constant": [1, 1, 1, 1, 0]}


@pytest.mark.parametrize("course", COURSES)
def test_course_of_the_penalty(course: Any, toy: Toy, record: Callable[[], list[Any]]) -> None:
    method = L1Sparse(penalty=2e-4, penalty_schedule=course, penalty_free_epochs=1, epochs=5, batch=28)
    expected = [2e-4 * share for share in COURSES[course]]
    assert [method.strength(epoch) for epoch in range(5)] == pytest.approx(expected)
    calls = record()
    toy.unlearn(method)
    assert [float(batch.tag) for batch in calls[0].batches] == pytest.approx([g for g in expected for _ in range(2)])  # two steps an epoch


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm"])
@pytest.mark.parametrize("update", ["subgradient", "proximal"])
def test_no_penalty_is_finetune_bit_for_bit(update: Any, net: str) -> None:
    toy = make_toy(net)
    plain = toy.unlearn(FineTune(epochs=3, batch=16))
    bare = toy.unlearn(L1Sparse(penalty=0, update=update, epochs=3, batch=16))
    assert same(bare.params | bare.buffers, plain.params | plain.buffers)


def test_subgradient_step_is_the_sign(toy: Toy) -> None:
    plain = Sgd(momentum=0, weight_decay=0)
    bare, pulled = (toy.unlearn(L1Sparse(penalty=g, epochs=1, lr=0.1, optimizer=plain)) for g in (0.0, 1e-2))
    assert furthest(pulled.params, {n: p - 0.1 * 1e-2 * toy.stack.params[n].sign() for n, p in bare.params.items()}) < 1e-6
    assert not any(bool((p == 0).any()) for p in pulled.params.values())


def test_proximal_shrinks_after_the_step_by_the_rate_of_that_step_and_makes_zeros(toy: Toy) -> None:
    plain = Sgd(momentum=0, weight_decay=0)
    settings: dict[str, Any] = {"epochs": 1, "lr": 0.1, "optimizer": plain, "schedule": MultiStep(epochs=(0,), factor=0.5), "update": "proximal", "batch": 56}
    bare, pulled = (toy.unlearn(L1Sparse(penalty=g, **settings)) for g in (0.0, 0.5))
    expected = {n: p.sign() * (p.abs() - 0.05 * 0.5).clamp(min=0) for n, p in bare.params.items()}
    assert furthest(pulled.params, expected) < 1e-6
    assert sum(int((p == 0).sum()) for p in pulled.params.values()) > 100


def test_weights_only_spares_biases(toy: Toy) -> None:
    hard: dict[str, Any] = {"penalty": 500.0, "update": "proximal", "penalty_schedule": "constant", "epochs": 4}
    everything, weights = (toy.unlearn(L1Sparse(penalise=which, **hard)) for which in ("all", "weights_only"))
    for name, p in weights.params.items():
        assert bool((p == 0).all()) == (p.dim() > 2), name
        assert bool((everything.params[name] == 0).all()), name


def test_some_epoch_must_have_a_penalty() -> None:
    with pytest.raises(InputError, match="penalty_free_epochs = 10 must be less than epochs = 10"):
        L1Sparse(penalty_free_epochs=10)


def test_final_threshold_zeroes_the_small_penalised_weights_inside_the_mask(toy: Toy) -> None:
    plain, cut = (toy.unlearn(L1Sparse(epochs=2, final_threshold=t)) for t in (0.0, 0.05))
    assert same(cut.params, {n: torch.where(p.abs() < 0.05, 0, p) for n, p in plain.params.items()})
    assert sum(int((p == 0).sum()) for p in cut.params.values()) > 100
    assert not any(bool((p == 0).any()) for p in plain.params.values())
    spared = toy.unlearn(L1Sparse(epochs=2, final_threshold=0.05, penalise="weights_only"))
    assert all(bool((p == 0).any()) == (p.dim() > 2) for p in spared.params.values())
    mask = toy.locate(Random(budget=0.5))
    inside = toy.unlearn(L1Sparse(epochs=2, final_threshold=0.05), toy.context(mask=mask))
    for n, bits in mask.open.items():
        assert torch.equal(inside.params[n][~bits], toy.stack.params[n][~bits])
        assert int(((inside.params[n].abs() < 0.05) & (inside.params[n] != 0) & bits).sum()) == 0
