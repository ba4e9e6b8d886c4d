"""How a forget set is divided: by score, by class, as given, at random."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import make_toy
from unlearnlab.contract import Refiner, Scores
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images, Split
from unlearnlab.refine import ByClass, ByScore, Given, Shuffle
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, build, fields, key, lookup, names, to_dict

NAN = math.nan
FORGET = 11


def split_of(count: int = FORGET, turn: int = 0) -> Split:
    """A toy whose forget set is larger, its images in another order for each ``turn``."""
    images, toy = Digits()(), make_toy()
    order = torch.randperm(count, generator=generator(turn, "test"))
    return replace(toy.split, forget=images.rows(100 + order), retain=images.rows(torch.arange(60)))


def scores_of(values: Any, ids: Any = None, name: str = "memorisation") -> dict[str, Scores]:
    held = torch.as_tensor(values, dtype=torch.float64)
    return {name: Scores(name, 100 + torch.arange(len(held)) if ids is None else torch.as_tensor(ids), held, "memorisation")}


def lists(groups: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: ids.tolist() for name, ids in groups.items()}


def test_by_score_by_hand() -> None:
    split = split_of(6)
    scores = scores_of([0.5, 0.1, 0.9, 0.1, 0.4, 0.8])
    assert lists(ByScore()(split, scores)) == {"low": [101, 103], "mid": [100, 104], "high": [102, 105]}
    assert lists(ByScore(groups=2)(split, scores)) == {"1": [101, 103, 104], "2": [100, 102, 105]}
    assert lists(ByScore(groups=1)(split, scores)) == {"1": [100, 101, 102, 103, 104, 105]}
    assert lists(ByScore(cuts=(0.4,))(split, scores)) == {"1": [101, 103], "2": [100, 102, 104, 105]}  # on the cut: above it
    assert lists(ByScore(cuts=(0.2, 0.45))(split, scores)) == {"low": [101, 103], "mid": [104], "high": [100, 102, 105]}
    assert list(ByScore()(split, scores)) == ["low", "mid", "high"]  # the easiest first


def test_equal_scores_are_told_apart_by_id_and_order_means_nothing() -> None:
    values = [0.5] * 7 + [0.2] * 4
    groups = lists(ByScore()(split_of(), scores_of(values)))
    assert groups == {"low": [107, 108, 109, 110], "mid": [100, 101, 102, 103], "high": [104, 105, 106]}
    turned = torch.randperm(FORGET, generator=generator(1, "test"))
    again = scores_of(torch.tensor(values)[turned], 100 + turned)
    assert lists(ByScore()(split_of(turn=5), again)) == groups


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_by_score_is_the_plain_loop(count: int) -> None:
    values = torch.rand(FORGET, generator=generator(count, "test"), dtype=torch.float64)
    ranked = sorted(range(FORGET), key=lambda i: (float(values[i]), i))
    naive: dict[str, list[int]] = {}
    for rank, i in enumerate(ranked):
        naive.setdefault(("low", "mid", "high")[rank * 3 // FORGET] if count == 3 else str(rank * count // FORGET + 1), []).append(100 + i)
    assert lists(ByScore(groups=count)(split_of(), scores_of(values))) == {name: sorted(ids) for name, ids in naive.items()}
    assert max(map(len, naive.values())) - min(map(len, naive.values())) <= 1


def test_images_without_a_score_come_last_in_a_group_of_their_own() -> None:
    groups = ByScore()(split_of(6), scores_of([NAN, 0.5, 0.1, NAN, 0.9, 0.8]))
    assert lists(groups) == {"low": [101, 102], "mid": [105], "high": [104], "unscored": [100, 103]}
    assert list(groups)[-1] == "unscored"
    cut = ByScore(cuts=(0.45, 0.7))(split_of(6), scores_of([NAN, 0.5, 0.1, NAN, 0.9, 0.8]))
    assert lists(cut) == {"low": [102], "mid": [101], "high": [104, 105], "unscored": [100, 103]}
    assert lists(ByScore()(split_of(3), scores_of([NAN] * 3))) == {"unscored": [100, 101, 102]}


def test_empty_groups_are_left_out() -> None:
    scores = scores_of([0.1, 0.9])
    assert lists(ByScore()(split_of(2), scores)) == {"low": [100], "mid": [101]}
    assert lists(ByScore(cuts=(0.2, 0.3))(split_of(2), scores)) == {"low": [100], "high": [101]}


def test_cuts_that_divide_nothing_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"no cut of \[2.0, 3.0\] divides anything: scores 'memorisation' of the forget set go from 0.1 to 0.9; cut between them"
    ):
        ByScore(cuts=(2.0, 3.0))(split_of(2), scores_of([0.1, 0.9]))


def test_a_score_that_is_not_at_hand_or_lacks_an_image_is_named() -> None:
    with pytest.raises(InputError, match=r"goes by the score 'memorisation', which is not at hand; did you mean 'memorization'\? \(given: memorization\)"):
        ByScore()(split_of(), scores_of([0.0] * FORGET, name="memorization"))
    with pytest.raises(InputError, match="image id 104 has no score 'memorisation'"):
        ByScore()(split_of(5), scores_of([0.0] * 4))
    for cuts in ((0.5, 0.2), (0.5, 0.5)):
        with pytest.raises(InputError, match="must rise, each above the one before"):
            ByScore(cuts=cuts)


def test_by_class_in_order_of_the_numbers() -> None:
    split = split_of()
    groups = ByClass()(split, {})
    assert list(groups) == sorted(groups, key=int)
    for name, ids in groups.items():
        assert set(split.forget.take(ids.tolist()).true_labels.tolist()) == {int(name)}
    assert sorted(i for ids in lists(groups).values() for i in ids) == sorted(split.forget.ids.tolist())
    many = replace(split, forget=Images(torch.zeros(3, 1, 1, 1), torch.tensor([11, 2, 2]), torch.tensor([5, 9, 7]), 12))
    assert lists(ByClass()(many, {})) == {"2": [7, 9], "11": [5]}


def test_given_groups_keep_their_order(tmp_path: Path) -> None:
    split = split_of(5)
    assert lists(Given(groups=((104, 100), (102,), (103, 101)))(split, {})) == {"1": [100, 104], "2": [102], "3": [101, 103]}
    table, rows, empty = tmp_path / "table.json", tmp_path / "rows.json", tmp_path / "empty.json"
    table.write_text(json.dumps({"z": [104, 100], "a": [102, 103, 101]}))
    rows.write_text(json.dumps([[104, 100], [102], [101, 103]]))
    assert list(Given(file=str(table))(split, {})) == ["z", "a"]
    assert lists(Given(file=str(table))(split, {})) == {"z": [100, 104], "a": [101, 102, 103]}
    assert lists(Given(file=str(rows))(split, {})) == {"1": [100, 104], "2": [102], "3": [101, 103]}
    empty.write_text(json.dumps({"none": [], "all": [100, 101, 102, 103, 104]}))
    assert lists(Given(file=str(empty))(split, {})) == {"all": [100, 101, 102, 103, 104]}


def test_given_groups_count_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "groups.json"
    file.write_text("[[3, 1], [2]]")
    assert key(Given(file=str(file))) == key(Given(groups=((1, 3), (2,))))
    assert key(Given(groups=((2,), (1, 3)))) != key(Given(groups=((1, 3), (2,))))  # their order is the order of forgetting
    file.write_text('{"a": [1, 3], "b": [2]}')
    assert key(Given(file=str(file))) != key(Given(groups=((1, 3), (2,))))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (((100, 101), (102, 100)), "image id 100 is in group '1' and in group '2'"),
        (((100, 100), (101, 102)), "image id 100 is twice in group '1'"),
        (((101,), (102,)), r"image id 100 of the forget set is in no group \(1 such id\(s\)\)"),
        (((100, 101), (102, 104, 103)), r"names image id 103, which is not in the forget set \(2 such id\(s\)\)"),
    ],
)
def test_every_forget_image_must_be_in_one_given_group(groups: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Given(groups=groups)(split_of(3), {})
    file = tmp_path / "groups.json"
    file.write_text(json.dumps(groups))
    with pytest.raises(InputError, match=message):
        Given(file=str(file))(split_of(3), {})


@pytest.mark.parametrize(
    "text", ["", "{", "3", "[]", "{}", "[1, 2]", '{"a": 1}', '[["1"]]', "[[1.5]]", "[[true]]", '{"a": [1], "a": [2]}', '{"a": {"b": [1]}}']
)
def test_a_file_that_holds_no_groups_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "groups.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"is not valid JSON|does not hold groups; expected a list of lists of ids"):
        Given(file=str(file))(split_of(3), {})
    with pytest.raises(InputError, match=r"cannot read the groups in .*: No such file or directory; give the path of an existing file"):
        Given(file=str(tmp_path / "absent.json"))(split_of(3), {})


def test_given_takes_one_of_two() -> None:
    with pytest.raises(InputError, match="give either groups, as lists of ids, or a file of them, not both"):
        Given(groups=((1,),), file="x.json")
    with pytest.raises(InputError, match=r"image id 100 of the forget set is in no group \(3 such id"):
        Given()(split_of(3), {})


def test_the_random_control_has_the_sizes_of_the_refined_groups() -> None:
    for count in (1, 2, 5, FORGET):
        values = torch.rand(count, generator=generator(2, "test"))
        for groups in (1, 2, 3, 4):
            refined, control = ByScore(groups=groups)(split_of(count), scores_of(values)), Shuffle(groups=groups)(split_of(count), {})
            assert [len(ids) for ids in refined.values()] == [len(ids) for ids in control.values()]
            assert sorted(i for ids in lists(control).values() for i in ids) == list(range(100, 100 + count))  # the same union


def test_the_random_control_depends_on_the_forget_set_and_its_draw_alone() -> None:
    first = lists(Shuffle()(split_of(), {}))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert lists(Shuffle()(split_of(turn=3), {})) == first  # the order of the images means nothing, and no seed is asked for
    assert torch.equal(torch.get_rng_state(), before)
    assert lists(Shuffle(draw=1)(split_of(), {})) != first
    other = replace(split_of(), forget=split_of(FORGET + 1).forget.without([100]))
    assert [[i - 1 for i in ids] for ids in lists(Shuffle()(other, {})).values()] != list(first.values())  # another forget set, another draw
    assert list(first) == ["1", "2", "3"]
    assert first != lists(ByScore()(split_of(), scores_of(torch.arange(FORGET))))


@pytest.mark.parametrize("made", [ByScore(), ByScore(score="confidence", cuts=(0.1, 0.2)), ByClass(), Given(groups=((1, 2), (3,))), Shuffle(groups=5, draw=2)])
def test_refiners_are_specs(made: Any) -> None:
    assert isinstance(made, Refiner)
    assert build("refiner", json.loads(json.dumps(to_dict(made)))) == made
    assert (made.score != "") == (type(made).__name__ == "ByScore")


def test_all_refiners_say_what_they_are() -> None:
    assert {"by_score", "by_class", "given", "shuffle"} <= set(names("refiner"))
    for name in names("refiner"):
        held = lookup("refiner", name)
        assert "Source:" in (held.__doc__ or ""), name
        assert "Differs from the published code:" in (held.__doc__ or ""), name
        assert all(field.setting.help for field in fields(held)), name
