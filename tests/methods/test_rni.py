"""``rni``: which tensors are open and which get noise, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toy import Toy, make_toy, same
from unlearnlab.fit import fit
from unlearnlab.methods import training
from unlearnlab.methods.rni import Rni, plain_names
from unlearnlab.stack import Stack, head_names


def changed(before: dict[str, Tensor], after: dict[str, Tensor], k: int) -> set[str]:
    """Names of the tensors of member k that differ."""
    return {name for name in before if not torch.equal(before[name][k], after[name][k])}


def opened(call: Any, k: int) -> set[str]:
    """Names of the tensors of member k that may train; none is open in part."""
    bits = {name: is_open[k] for name, is_open in call.settings["mask"].open.items()}
    assert all(bool(b.all()) or not bool(b.any()) for b in bits.values())
    return {name for name, b in bits.items() if bool(b.any())}


def test_nine_random_tensors_and_all_norms_are_open_and_six_of_the_nine_get_noise(record: Callable[[], list[Any]]) -> None:
    toy, calls = make_toy("vit"), record()
    toy.unlearn(Rni())
    assert len(calls) == 9
    free, seen = set(plain_names(toy.stack)), set()
    norms = set(toy.stack.params) - free
    assert {"norm.weight", "norm.bias", "last_norm.weight"} <= norms
    assert len(free) > 9
    for epoch in range(5):
        for k in range(3):
            mine = opened(calls[epoch], k)
            assert norms <= mine
            assert len(mine - norms) == 9
            seen.add(frozenset(mine))
            if epoch:  # the recorded fit gives its stack back unchanged, so what differs is noise
                noised = changed(calls[epoch - 1].stack.params, calls[epoch].stack.params, k)
                assert len(noised) == 6
                assert noised <= mine - norms
    assert len(seen) > 10  # drawn anew each epoch, for each member alone
    for call in calls[5:]:
        assert call.settings["mask"] is None
        assert same(call.stack.params, calls[4].stack.params)  # no noise any more


def test_noise_has_the_standard_deviation_asked_for(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Rni(epochs=2, noised=1.0))
    noise = calls[1].stack.params["6.weight"] - calls[0].stack.params["6.weight"]
    assert float(noise.std()) == pytest.approx(0.04, rel=0.1)
    assert not torch.equal(noise[0], noise[1])


def test_the_head_starts_anew_and_the_first_epoch_has_no_noise(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Rni())
    fresh = toy.stack.fresh(toy.context().seeds).params
    for name, p in toy.stack.params.items():
        assert torch.equal(calls[0].stack.params[name], fresh[name] if name in head_names(toy.stack) else p), name


def test_with_fewer_than_nine_tensors_all_train_and_their_share_gets_noise(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Rni())
    assert len(plain_names(toy.stack)) == 8
    for epoch in range(1, 5):
        for k in range(3):
            assert opened(calls[epoch], k) == set(toy.stack.params)
            assert len(changed(calls[epoch - 1].stack.params, calls[epoch].stack.params, k)) == 5  # ⌊.7·8⌋


def test_frozen_tensors_are_bit_exact_within_an_epoch_and_open_ones_train(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[tuple[Any, Any, Any]] = []

    def spied(stack: Any, *given: Any, **settings: Any) -> Any:
        after = fit(stack, *given, **settings)
        epochs.append((stack, after, settings["mask"]))
        return after

    monkeypatch.setattr(training, "fit", spied)
    toy = make_toy("batch_norm")
    toy.unlearn(Rni(layers=2, batch=16, epochs=3, final_lr=(1e-3,)))
    for before, after, mask in epochs[:3]:
        for k in range(3):
            moved = changed(before.params, after.params, k)
            assert moved == {name for name, is_open in mask.open.items() if bool(is_open[k].any())}
            assert len(moved) == 2 + 6  # two drawn, and weight and bias of three normalisations
    before, after, _ = epochs[3]
    assert changed(before.params, after.params, 0) == set(toy.stack.params)


def test_normalisation_is_told_by_type_not_by_name() -> None:
    stack = make_toy("batch_norm").stack
    assert not any("bn" in name for name in stack.params)
    assert plain_names(stack) == ["1.weight", "4.weight", "8.weight", "13.weight", "13.bias"]


def test_every_kind_of_normalisation_is_known() -> None:
    kinds = [nn.BatchNorm2d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.RMSNorm(4)]
    stack = Stack.init(nn.Sequential(*kinds, nn.Linear(4, 2)), (0,))
    assert plain_names(stack) == ["5.weight", "5.bias"]


def test_legacy_bookkeeping_spares_what_was_open_before(record: Callable[[], list[Any]]) -> None:
    toy, calls = make_toy("vit"), record()
    toy.unlearn(Rni(variant="legacy_once"))
    norms = set(toy.stack.params) - set(plain_names(toy.stack))
    for k in range(3):
        before: set[str] = set()
        counts = []
        for epoch in range(5):
            mine = opened(calls[epoch], k) - norms
            if epoch:
                noised = changed(calls[epoch - 1].stack.params, calls[epoch].stack.params, k)
                assert noised <= mine - before
                counts.append(len(noised))
            before |= mine
        assert sum(counts) < 24  # of the 4 × 6 intended


def test_learning_rates_and_a_new_order_each_epoch(toy: Toy, record: Callable[[], list[Any]]) -> None:
    calls = record()
    toy.unlearn(Rni())
    assert [call.settings["lr"] for call in calls] == [2e-4] * 8 + [1e-3]
    assert all(call.settings["steps"] == 1 for call in calls)
    assert len({tuple(call.batches[0].ids[0].tolist()) for call in calls}) == 9
    assert {tuple(call.batches[0].ids[0].sort().values.tolist()) for call in calls} == {tuple(sorted(toy.split.retain.ids.tolist()))}
