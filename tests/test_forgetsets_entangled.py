"""Forget sets by entanglement: groups by distance to the centroid, named by what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from toy import make_toy
from unlearnlab.contract import Scores
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images
from unlearnlab.data.partition import Stratified, check_forget
from unlearnlab.forgetsets import ByEntanglement, ScoredForgetSet
from unlearnlab.groundwork import choose
from unlearnlab.outputs import features
from unlearnlab.scores.entanglement import CentroidDistance, centroid_distances, describe, entanglement
from unlearnlab.spec import InputError, build, legacy, to_dict

BOTH = ("global", "midpoint")


def made(seen: Tensor, ids: Tensor) -> Scores:
    return CentroidDistance(models=len(seen)).score({"features": seen.float()}, ids)


def some(count: int, first: int = 1000) -> Images:
    images = Digits()()
    return replace(images.rows(torch.arange(count)), ids=torch.arange(first, first + count))


def ring() -> tuple[Images, Scores]:
    """30 images in three rings: by distance to the centroid (the origin) the order is A, B, C, by distance of their means C, A, B.

    So by entanglement it is B, A, C: the furthest images lie on all sides of the others.
    """
    angle = torch.arange(10) * 2 * torch.pi / 10
    circle = torch.stack([angle.cos(), angle.sin()], 1).double()
    a = 0.3 * circle + torch.tensor([-1.2, 0.0])
    b = 0.1 * circle + torch.tensor([2.0, 0.0])
    c = 9 * circle + torch.tensor([-0.8, 0.0])
    images = some(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    return images.rows(order), made(torch.cat([a, b, c])[order][None], images.ids[order])


def rows_of(scores: Scores, ids: Tensor) -> Tensor:
    return torch.isin(scores.ids, ids)


def measured(scores: Scores, ids: Tensor, centre: str = "global") -> float:
    seen, inside = scores.beside["features"].transpose(0, 1), rows_of(scores, ids)
    return float(entanglement(seen[:, inside], seen[:, ~inside], centre).mean())


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Scores]:
    """500 real digits, in the features of the toy's three trained models."""
    train = Stratified()(Digits()(), 0).train
    return train, made(features(make_toy().stack, train), train.ids)


@pytest.mark.parametrize("centre", BOTH)
def test_labels_follow_what_is_measured_not_the_distance(centre):
    train, scores = ring()
    found = {level: ByEntanglement(10, level, parts=3).groups(train, 0, scores)[level] for level in ("low", "mid", "high")}
    names = {level: {"ABC"[(int(i) - 1000) // 10] for i in ids} for level, ids in found.items()}
    assert names == {"low": {"B"}, "mid": {"A"}, "high": {"C"}}
    values = [measured(scores, found[level], centre) for level in ("low", "mid", "high")]
    assert values == sorted(values)
    assert values[0] * 2 < values[1] < values[2] / 2
    distance = {level: float(scores.of(ids).mean()) for level, ids in found.items()}
    assert distance["mid"] < distance["low"] < distance["high"]


@pytest.mark.parametrize("centre", BOTH)
@pytest.mark.parametrize("parts", [3, 8, 15])
def test_on_digits_low_is_the_least_and_high_the_greatest_of_all_draws(digits, centre, parts):
    train, scores = digits
    made_of = ByEntanglement(30, parts=parts)
    found = {level: measured(scores, replace(made_of, level=level).groups(train, 3, scores)[level], centre) for level in ("low", "mid", "high")}
    each = []
    for picks in zip(range(parts), (at % parts for at in range(1, parts + 1)), (at % parts for at in range(2, parts + 2)), strict=True):
        for level in ("low", "mid", "high"):
            ids = replace(made_of, level=level, picks=picks).groups(train, 3, scores)[level]
            each.append(measured(scores, ids, centre))
    each = sorted({round(one, 9) for one in each})
    assert len(each) == parts
    assert found["low"] == pytest.approx(each[0])
    assert found["mid"] == pytest.approx(each[(parts - 1) // 2])
    assert found["high"] == pytest.approx(each[-1])


def test_groups_are_equal_parts_by_distance(digits):
    train, scores = digits
    order = scores.ids[(scores.values * 1e6).round().argsort()]
    cut = order.tensor_split(5)
    found = ByEntanglement(100, "mix", parts=5, picks=(0, 2, 4)).groups(train, 0, scores)
    assert sorted(len(ids) for ids in found.values()) == [33, 33, 34]
    assert {next(at for at in range(5) if torch.isin(ids, cut[at]).all()) for ids in found.values()} == {0, 2, 4}
    whole = ByEntanglement(100, "low", parts=5, picks=(4, 0, 2)).groups(train, 0, scores)["low"]
    assert any(torch.equal(whole, part.sort().values) for part in cut)


def test_mix_is_the_union_of_the_three_levels_and_the_rest_is_low(digits):
    train, scores = digits
    alone = {level: ByEntanglement(20, level).groups(train, 0, scores)[level] for level in ("low", "mid", "high")}
    mix = ByEntanglement(60, "mix").groups(train, 0, scores)
    assert list(mix) == ["low", "mid", "high"]
    assert all(torch.equal(mix[level], alone[level]) for level in mix)
    more = ByEntanglement(62, "mix").groups(train, 0, scores)
    assert {level: len(ids) for level, ids in more.items()} == {"low": 22, "mid": 20, "high": 20}
    assert all(torch.isin(mix[level], more[level]).all() for level in mix)
    check_forget(train, torch.cat(list(more.values())))  # disjoint, and all of the training set


def test_neighbours_make_one_candidate():
    train = some(100)
    seen = torch.randn(1, 100, 3, generator=torch.Generator().manual_seed(0))
    scores = made(seen, train.ids)
    order = train.ids[scores.values.argsort()]
    tiny = ByEntanglement(6, "mix", parts=50, neighbours=3, picks=(47, 0, 20))
    found = tiny.groups(train, 0, scores)
    runs = {at: order[2 * at : 2 * at + 6] for at in (0, 20, 47)}
    assert {at for ids in found.values() for at, run in runs.items() if torch.isin(ids, run).all()} == {0, 20, 47}
    values = [measured(scores, ids) for ids in found.values()]
    assert values == sorted(values)
    assert len(ByEntanglement(6, "low", parts=50, neighbours=3).groups(train, 0, scores)["low"]) == 6  # more than a group alone holds
    assert len(ByEntanglement(30, "high", parts=9, neighbours=3).groups(train, 0, scores)["high"]) == 30


def test_images_of_a_group_are_drawn_at_random_or_the_nearest_first(digits):
    train, scores = digits
    draws = [
        ByEntanglement(10, "high", parts=5, draw=draw, picks=(0, 2, 4)).groups(train, seed, scores)["high"] for draw, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(draws[0], draws[1])
    assert len({tuple(ids.tolist()) for ids in draws}) == 3
    nearest = ByEntanglement(10, "high", parts=5, picks=(0, 2, 4), within="nearest_first")
    ids = nearest.groups(train, 0, scores)["high"]
    order = scores.ids[(scores.values * 1e6).round().argsort()]
    assert any(set(ids.tolist()) == set(part[:10].tolist()) for part in order.tensor_split(5))
    assert legacy(nearest) == ["within = nearest_first"]


def test_neither_the_order_of_the_images_nor_that_of_the_scores_matters(digits):
    train, scores = digits
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    other = Scores(scores.name, scores.ids[order], scores.values[order], scores.scale, {"features": scores.beside["features"][order]})
    chosen = ByEntanglement(62, "mix")
    for images, held in ((train.rows(order), scores), (train, other), (train.rows(order), other)):
        assert {n: i.tolist() for n, i in chosen.groups(images, 0, held).items()} == {n: i.tolist() for n, i in chosen.groups(train, 0, scores).items()}


def test_equal_distances_go_by_id():
    train = some(12)
    line = torch.tensor([1.0, -1, 2, -2, 3, -3]).repeat(2)[None, :, None]  # four at each distance
    scores, train = made(line, train.ids), train.rows(torch.arange(12).flip(0))
    found = ByEntanglement(6, "mix", parts=6, picks=(0, 2, 4), within="nearest_first")
    ids = sorted(torch.cat(list(found.groups(train, 0, scores).values())).tolist())
    assert ids == [1000, 1001, 1002, 1003, 1004, 1005]  # of four equally far the two lower ids come first


def test_what_an_earlier_request_removed_is_neither_chosen_nor_measured(digits):
    train, scores = digits
    gone = ByEntanglement(20, "high").groups(train, 0, scores)["high"]
    ids, groups = choose(ByEntanglement(20, "high"), train, gone.tolist(), 0, scores)
    assert not set(ids) & set(gone.tolist())
    assert list(groups) == ["entanglement.high"]
    left = train.without(gone.tolist())
    assert torch.equal(ByEntanglement(20, "high").groups(left, 0, scores)["high"], torch.tensor(sorted(ids)))
    told = describe({"high": torch.tensor(ids)}, scores, train=left.ids)["high"]
    whole = describe({"high": torch.tensor(ids)}, scores)["high"]
    assert told["entanglement"] != whole["entanglement"]


def test_what_is_told_of_the_groups_is_what_they_were_named_by(digits):
    train, scores = digits
    found = ByEntanglement(60, "mix").groups(train, 0, scores)
    told = describe(found, scores)
    assert list(told) == ["low", "mid", "high"]
    assert told["low"]["entanglement"] < told["mid"]["entanglement"] < told["high"]["entanglement"]
    assert {name: one["count"] for name, one in told.items()} == {"low": 20, "mid": 20, "high": 20}
    assert scores.values.equal(centroid_distances(scores.beside["features"].transpose(0, 1)))


def test_it_is_a_forget_set_by_score():
    made_of = build("forget", {"name": "by_entanglement", "count": 9, "picks": [3, 12, 14]})
    assert isinstance(made_of, ScoredForgetSet)
    assert made_of.score == "centroid_distance"
    assert build("forget", to_dict(made_of)) == made_of
    assert bool(made_of.eligible(some(5)).all())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"level": "mix", "count": 2}, "a mix of count = 2 has not one image for each of three groups; expected at least 3"),
        ({"parts": 8, "neighbours": 3}, r"parts = 8 make 2 candidate\(s\) of neighbours = 3 groups; expected at least 3"),
        ({"picks": (3, 12, 15)}, "the candidate at picks = 15 ends with group 15, but groups are 0 to 14"),
        ({"picks": (0, 49, 98), "parts": 100, "neighbours": 3}, "ends with group 100, but groups are 0 to 99"),
        ({"picks": (3, 3, 14)}, "share groups"),
        ({"picks": (7, 0, 5), "neighbours": 3}, r"picks = \[7, 0, 5\] share groups, since each stands for 3 side by side"),
        ({"picks": (-1, 3, 5)}, "at least 0"),
        ({"picks": (1, 3)}, "must be a list of 3, got 2"),
        ({"parts": 2}, "at least 3"),
        ({"level": "middle"}, "must be one of: low, mid, high, mix"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        ByEntanglement(**settings)
    ByEntanglement(picks=(0, 49, 97), parts=100, neighbours=3)  # as published


def test_data_that_do_not_fit_are_refused(digits):
    train, scores = digits
    with pytest.raises(InputError, match="parts = 501, but there are 500 training images"):
        ByEntanglement(1, parts=501).groups(train, 0, scores)
    with pytest.raises(InputError, match=r"asks for 35 images of group 5 \(of 15\), which hold 33; ask for fewer"):
        ByEntanglement(35, "low", picks=(5, 7, 9)).groups(train, 0, scores)
    with pytest.raises(InputError, match=r"images of groups 0 to 1 \(of 15\), which hold 68"):
        ByEntanglement(69, "low", neighbours=2).groups(train, 0, scores)
    with pytest.raises(InputError, match=r"asks for 36 images of group 0 \(of 15\), which hold 34"):
        ByEntanglement(104, "mix").groups(train, 0, scores)
    values = scores.values.clone()
    values[[4, 9]] = torch.nan
    bad = min(scores.ids[[4, 9]].tolist())
    with pytest.raises(InputError, match=rf"image id {bad} has no distance \(NaN; 2 such image"):
        ByEntanglement(5).groups(train, 0, replace(scores, values=values))
    with pytest.raises(InputError, match="holds no features"):
        ByEntanglement(5).groups(train, 0, replace(scores, beside={}))
    with pytest.raises(InputError, match="has no score"):
        ByEntanglement(5).groups(some(30, 50_000), 0, scores)
    with pytest.raises(InputError, match="all training images have the same features"):
        ByEntanglement(5).groups(train, 0, made(torch.zeros(1, 500, 4), train.ids))
