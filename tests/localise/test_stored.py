"""Masks on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from toy import SHORT, Toy, same
from unlearnlab.localise.random import Random
from unlearnlab.localise.ranking import rank
from unlearnlab.localise.stored import Stored, read_mask, read_ranking, write_mask
from unlearnlab.localise.weight_magnitude import WeightMagnitude
from unlearnlab.localise.weighted_grad_channel import WeightedGradChannel
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.finetune import FineTune
from unlearnlab.spec import InputError, key
from unlearnlab.stack import Stack, flat


@pytest.fixture
def path(toy: Toy, tmp_path: Path) -> Path:
    where = Random(budget=0.37)
    write_mask(tmp_path / "mask.safetensors", toy.locate(where), localiser=where, forget=toy.split.forget, seeds=toy.context().seeds)
    return tmp_path / "mask.safetensors"


def test_comes_back_bit_for_bit_and_serves_a_method(toy: Toy, path: Path) -> None:
    mask = toy.locate(Random(budget=0.37))
    assert same(toy.locate(Stored(path=str(path))).open, mask.open)
    stored, direct = (toy.unlearn(Localised(where, FineTune(epochs=1))) for where in (Stored(path=str(path)), Random(budget=0.37)))
    assert same(stored.params, direct.params)


def test_is_packed_and_remembers_where_it_came_from(toy: Toy, path: Path) -> None:
    with safe_open(path, framework="pt") as held:
        words = json.loads(held.metadata()["about"])
        size = sum(held.get_tensor(name).numel() for name in held.keys())  # noqa: SIM118 - not a dict
    weights = sum(p.numel() for p in toy.stack.params.values())
    assert size < weights / 8 + len(toy.stack.params)
    assert words["parent"] == toy.stack.fingerprint
    assert words["forget"] == toy.split.forget.fingerprint
    assert words["localiser"]["budget"] == 0.37
    assert words["seeds"] == [50, 51, 52]


def test_the_same_mask_is_the_same_bytes(toy: Toy, path: Path, tmp_path: Path) -> None:
    where = Random(budget=0.37)
    for at in range(8):
        write_mask(tmp_path / str(at), toy.locate(where), localiser=where, forget=toy.split.forget, seeds=toy.context().seeds)
        assert (tmp_path / str(at)).read_bytes() == path.read_bytes()


def test_a_mask_of_another_model_is_refused(toy: Toy, path: Path) -> None:
    later = replace(toy, stack=SHORT(toy.stack, toy.split.retain))
    with pytest.raises(InputError, match="this mask was made from model") as caught:
        later.locate(Stored(path=str(path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "cut", "scribbled", "foreign"])
def test_what_is_no_mask_file_is_refused_in_one_line(damage: str, path: Path, toy: Toy) -> None:
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "scribbled":
        path.write_bytes(b"not safetensors at all")
    else:
        from safetensors.torch import save_file

        save_file(toy.stack.params, path)  # tensors, but no mask
    with pytest.raises(InputError) as caught:
        read_mask(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_its_key_holds_the_mask_and_not_the_path(toy: Toy, path: Path, tmp_path: Path) -> None:
    before, moved = key(Stored(str(path))), tmp_path / "moved.safetensors"
    moved.write_bytes(path.read_bytes())
    assert key(Stored(str(moved))) == before
    mask = toy.locate(Random(0.6))
    write_mask(path, mask, localiser=Random(0.6), forget=toy.split.forget, seeds=toy.stack.seeds)
    assert key(Stored(str(path))) != before
    with pytest.raises(InputError, match="cannot read the mask"):
        key(Stored(str(tmp_path / "none")))


# -- one file for all budgets (protocols.md §16) ----------------------------------------------------


@pytest.fixture
def ranked(toy: Toy, tmp_path: Path) -> Path:
    where, path = WeightedGradChannel(), tmp_path / "ranked.safetensors"
    ranking = where.rank(toy.stack, toy.split, toy.context())
    write_mask(path, ranking.mask(0.3), localiser=where, forget=toy.split.forget, seeds=toy.context().seeds, ranking=ranking)
    return path


def test_one_file_serves_all_budgets(toy: Toy, ranked: Path) -> None:
    last = None
    for budget in (0.02, 0.1, 0.3, 0.5, 0.77, 1.0):
        mask, direct = toy.locate(Stored(str(ranked), budget)), toy.locate(WeightedGradChannel(budget=budget))
        assert same(mask.open, direct.open)  # the toy has fewer weights than the file has steps
        assert last is None or bool((flat(mask.open) | ~last).all())
        last = flat(mask.open)
    assert same(toy.locate(Stored(str(ranked))).open, toy.locate(WeightedGradChannel()).open)


def test_ranks_take_two_bytes_a_weight(toy: Toy, ranked: Path) -> None:
    weights = flat(toy.stack.params).numel()
    with safe_open(ranked, framework="pt") as held:
        ranks = [held.get_tensor(name) for name in held.keys() if name.startswith("rank:")]  # noqa: SIM118 - not a dict
    assert {rank.dtype for rank in ranks} == {torch.uint16}
    assert sum(rank.numel() for rank in ranks) == weights


def test_budgets_of_large_nets_are_never_exceeded_and_hardly_missed(tmp_path: Path, toy: Toy) -> None:
    stack = Stack.init(nn.Linear(1000, 300, bias=False), (0,))
    ranking, path = rank(stack, {"weight": stack.params["weight"].abs()}), tmp_path / "large.safetensors"
    write_mask(path, ranking.mask(0.3), localiser=WeightMagnitude(), forget=toy.split.forget, seeds=(0,), ranking=ranking)
    for budget in (0.1, 0.123456, 0.3):
        count = int(read_ranking(path).mask(budget).open["weight"].sum())
        assert budget * 300_000 - 10 < count <= budget * 300_000
    assert bool(read_ranking(path).mask(1.0).open["weight"].all())


def test_what_never_opens_and_what_always_does_stays_so(toy: Toy, tmp_path: Path) -> None:
    live = {"1.weight": torch.rand(toy.stack.params["1.weight"].shape, generator=torch.Generator().manual_seed(1)) < 0.5}
    sparse, path, where = replace(toy, stack=toy.stack.pruned(live)), tmp_path / "sparse.safetensors", WeightMagnitude(always_open="head")
    ranking = where.rank(sparse.stack, sparse.split, sparse.context())
    write_mask(path, ranking.mask(0.3), localiser=where, forget=toy.split.forget, seeds=(0,), ranking=ranking)
    for budget in (1e-5, 0.4, 1.0):
        assert same(sparse.locate(Stored(str(path), budget)).open, ranking.mask(budget).open)


def test_a_file_without_ranks_has_one_budget(toy: Toy, path: Path, ranked: Path) -> None:
    with pytest.raises(InputError, match="holds the mask of one budget and no ranks; leave budget out"):
        toy.locate(Stored(str(path), 0.2))
    later = replace(toy, stack=SHORT(toy.stack, toy.split.retain))
    with pytest.raises(InputError, match="this mask was made from model"):
        later.locate(Stored(str(ranked), 0.2))
    assert key(Stored(str(ranked), 0.2)) != key(Stored(str(ranked)))
