"""Groups of a forget set by entanglement: the least entangled is forgotten first."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from toy import make_toy
from unlearnlab.contract import Refiner, Scores
from unlearnlab.data.images import Split
from unlearnlab.outputs import features
from unlearnlab.refine import ByEntanglement
from unlearnlab.scores.entanglement import CentroidDistance, centroid_distances, describe, entanglement
from unlearnlab.spec import InputError, build, to_dict


def made(seen: Tensor, ids: Tensor) -> dict[str, Scores]:
    return {"centroid_distance": CentroidDistance(models=len(seen)).score({"features": seen.float()}, ids)}


def split_of(forget: int) -> Split:
    """The toy's training images, so many of them to forget."""
    toy = make_toy().split
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    return replace(toy, forget=toy.train.rows(order[:forget]), retain=toy.train.rows(order[forget:]))


@pytest.fixture(scope="module")
def scores() -> dict[str, Scores]:
    toy = make_toy()
    return made(features(toy.stack, toy.split.train), toy.split.train.ids)


def measured(split: Split, held: Scores, ids: Tensor, centre: str) -> float:
    at = held.rows(split.train.ids)
    seen, inside = held.beside["features"][at].transpose(0, 1), torch.isin(split.train.ids, ids)
    return float(entanglement(seen[:, inside], seen[:, ~inside], centre).mean())


@pytest.mark.parametrize("centre", ["global", "midpoint"])
@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_groups_are_equal_parts_by_distance_in_order_of_measured_entanglement(scores, groups, centre):
    split, held = split_of(20), scores["centroid_distance"]
    found = ByEntanglement(groups=groups)(split, scores)
    assert list(found) == {1: ["1"], 2: ["1", "2"], 3: ["low", "mid", "high"], 5: ["1", "2", "3", "4", "5"]}[groups]
    assert torch.equal(torch.cat(list(found.values())).sort().values, split.forget.ids.sort().values)
    sizes = [len(ids) for ids in found.values()]
    assert max(sizes) - min(sizes) <= 1
    values = [measured(split, held, ids, centre) for ids in found.values()]
    assert values == sorted(values)  # about either centre
    ranges = sorted((float(held.of(ids).min()), float(held.of(ids).max())) for ids in found.values())
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    told = describe(found, held, centre)
    assert [one["entanglement"] for one in told.values()] == pytest.approx(values)


def test_order_by_measured_entanglement_is_not_that_of_distance():
    """Far out on all sides the forgotten have their mean in the centre: most entangled; half way out on one side, least."""
    split = split_of(12)
    angle = torch.arange(4) * torch.pi / 2
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    forget = torch.cat([circle * 0.2 + torch.tensor([1.0, 0]), circle * 0.2 + torch.tensor([4.0, 0]), circle * 9])
    retain = torch.randn(48, 2, generator=torch.Generator().manual_seed(0)) * 0.5
    retain -= (retain.sum(0) + forget.sum(0)) / 48  # the centroid of all is the origin
    ids = split.forget.ids
    found = ByEntanglement()(split, made(torch.cat([forget, retain])[None], torch.cat([ids, split.retain.ids])))
    assert {name: set(held.tolist()) for name, held in found.items()} == {
        "low": set(ids[4:8].tolist()),
        "mid": set(ids[:4].tolist()),
        "high": set(ids[8:].tolist()),
    }


def test_the_centroid_is_that_of_the_training_images_at_hand(scores):
    """What an earlier request removed plays no part, even where it lies far out."""
    split = split_of(20)
    held = scores["centroid_distance"]
    seen, away = held.beside["features"].transpose(0, 1), torch.full((3, 5, held.beside["features"].shape[2]), 1e3)
    more = made(torch.cat([seen, away], 1), torch.cat([held.ids, torch.arange(90_000, 90_005)]))
    for name, ids in ByEntanglement()(split, scores).items():
        assert torch.equal(ByEntanglement()(split, more)[name], ids)
    order = centroid_distances(seen)
    assert not torch.equal(order.argsort(), more["centroid_distance"].values[:60].argsort())  # with them the order is another


def test_neither_the_order_of_the_forget_set_nor_that_of_the_scores_matters(scores):
    split, held = split_of(20), scores["centroid_distance"]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    other = {"centroid_distance": Scores(held.name, held.ids[order], held.values[order], held.scale, {"features": held.beside["features"][order]})}
    turned = replace(split, forget=split.forget.rows(torch.arange(20).flip(0)), retain=split.retain.rows(torch.arange(40).flip(0)))
    wanted = {name: ids.tolist() for name, ids in ByEntanglement()(split, scores).items()}
    assert {name: ids.tolist() for name, ids in ByEntanglement()(turned, other).items()} == wanted


def test_it_is_a_refiner():
    refiner = build("refiner", {"name": "by_entanglement", "groups": 4})
    assert isinstance(refiner, Refiner)
    assert refiner.score == "centroid_distance"
    assert refiner.names == ("1", "2", "3", "4")
    assert build("refiner", to_dict(refiner)) == refiner


def test_what_does_not_fit_is_refused(scores):
    split = split_of(4)
    with pytest.raises(InputError, match="groups = 5, but the forget set has 4 images"):
        ByEntanglement(groups=5)(split, scores)
    assert [len(ids) for ids in ByEntanglement(groups=4)(split, scores).values()] == [1, 1, 1, 1]
    with pytest.raises(InputError, match="score 'centroid_distance', which is not at hand"):
        ByEntanglement()(split, {})
    with pytest.raises(InputError, match="holds no features"):
        ByEntanglement()(split, {"centroid_distance": replace(scores["centroid_distance"], beside={})})
    with pytest.raises(InputError, match="at least 1"):
        ByEntanglement(groups=0)
