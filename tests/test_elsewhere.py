"""Other forget sets of the same kind: none of the audited images, none twice, and alike in what makes the kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unlearnlab.contract import Scores
from unlearnlab.data.corrupt import Backdoor, Clean, InterclassConfusion, SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.elsewhere import Elsewhere as CorruptElsewhere
from unlearnlab.data.images import Column, Images
from unlearnlab.elsewhere import Elsewhere, ElsewhereByScore, elsewhere
from unlearnlab.forgetsets import (
    Attribute,
    BackdoorForget,
    ByEntanglement,
    ByScore,
    ClassForget,
    IdsForget,
    Mislabelled,
    PartialClass,
    RandomForget,
    ScoredForgetSet,
    SubClass,
)
from unlearnlab.groundwork import choose
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, build, info, lookup, names, to_dict

SEED = 7


@pytest.fixture(scope="module")
def train() -> Images:
    """600 digits, a fifth mislabelled, each with an age and one of twelve users."""
    release = Digits()()
    images = SymmetricNoise(0.2)(release.rows(torch.arange(600)), SEED)
    age = torch.randint(0, 80, (600,), generator=generator(1, "age"))
    user = torch.randint(0, 12, (600,), generator=generator(1, "user"))
    return replace(images, columns={"age": Column(age), "user": Column(user, tuple(f"u{i}" for i in range(12)))})


def scores(train: Images, name: str) -> Scores:
    chance = generator(3, name)
    features = {"features": torch.randn(len(train), 1, 4, generator=chance)} if name == "centroid_distance" else {}
    return Scores(name, train.ids, torch.rand(len(train), generator=chance).double(), "memorisation", features)


# One of every kind; the corruption that all of its images come from, where there is one.
KINDS = {
    "random": RandomForget(count=40, mislabelled=15, by_class=True),
    "class": ClassForget(label=9),
    "partial_class": PartialClass(labels=(2, 5), count=30),
    "sub_class": SubClass(value="u11", column="user"),
    "attribute": Attribute(where="age < 20", count=25),
    "ids": IdsForget(ids=(3, 5, 8, 13, 21, 34, 55, 89, 144, 233)),
    "by_score": ByScore(band="mix", count=60),
    "by_entanglement": ByEntanglement(count=12, parts=6),
    "mislabelled": Mislabelled(),
    "backdoor": BackdoorForget(),
}
CORRUPTIONS = {"mislabelled": SymmetricNoise(0.2), "backdoor": Backdoor(share=0.1, size=2, margin=0)}


def test_every_kind_of_forget_set_is_tried_here() -> None:
    ours = {name for name in names("forget") if lookup("forget", name).__module__.startswith("unlearnlab.")}  # a plugin may have filed more
    assert ours == {*KINDS, "elsewhere", "elsewhere_by_score"}


def ids(forget, train: Images) -> list[int]:
    held = scores(train, forget.score) if isinstance(forget, ScoredForgetSet) else None
    return choose(forget, train, [], SEED, held)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_of_the_audited_set_nor_of_another_draw(kind: str, train: Images) -> None:
    if kind in CORRUPTIONS:
        clean, corruption = Digits()().rows(torch.arange(600)), CORRUPTIONS[kind]
        found = [ids(KINDS[kind], one(clean, SEED)) for one in (corruption, *(CorruptElsewhere(corruption, draw) for draw in (1, 2)))]
    else:
        found = [ids(one, train) for one in (KINDS[kind], *(elsewhere(KINDS[kind], draw) for draw in (1, 2)))]
    assert all(found)
    assert len({i for each in found for i in each}) == sum(map(len, found))
    if kind not in ("class", "sub_class"):  # another class has as many images as it has
        assert len({len(each) for each in found}) == 1


def test_a_random_set_has_as_many_mislabelled_and_the_same_share_of_classes(train: Images) -> None:
    other = train.take(ids(Elsewhere(KINDS["random"], 2), train))
    assert int(other.mislabelled.sum()) == 15
    assert int(torch.bincount(other.true_labels, minlength=10).max()) <= 6


def test_a_partial_class_stays_within_its_classes(train: Images) -> None:
    assert set(train.take(ids(Elsewhere(KINDS["partial_class"]), train)).true_labels.tolist()) == {2, 5}


def test_another_class_is_the_next_one_and_whole(train: Images) -> None:
    for draw, label in ((1, 0), (2, 1), (9, 8)):
        other = ids(Elsewhere(ClassForget(9), draw), train)
        assert other == sorted(train.ids[train.true_labels == label].tolist())
    with pytest.raises(InputError, match=r"no other forget set like 'class' .draw 10.*10 different labels.*fewer sets"):
        ids(Elsewhere(ClassForget(9), 10), train)


def test_another_sub_class_is_the_next_one_and_whole(train: Images) -> None:
    user = train.columns["user"].values
    assert ids(Elsewhere(KINDS["sub_class"]), train) == sorted(train.ids[user == 0].tolist())


def test_an_attribute_with_enough_left_is_drawn_again_and_else_composed_by_class(train: Images) -> None:
    again = train.take(ids(Elsewhere(KINDS["attribute"]), train))
    assert int(again.columns["age"].values.max()) < 20
    whole = Attribute(where="age < 5")
    own, other = (train.take(ids(one, train)) for one in (whole, Elsewhere(whole)))
    for mask in ("corrupted", "mislabelled"):
        alike = [torch.bincount(one.true_labels[getattr(one, mask)], minlength=10).tolist() for one in (own, other)]
        assert alike[0] == alike[1]
    assert torch.bincount(own.true_labels, minlength=10).tolist() == torch.bincount(other.true_labels, minlength=10).tolist()


def test_ids_are_matched_by_class_and_by_corruption_or_refused(train: Images) -> None:
    own, other = (train.take(ids(one, train)) for one in (KINDS["ids"], Elsewhere(KINDS["ids"], 3)))
    for one in (own, other):
        assert torch.equal(torch.bincount(one.true_labels * 2 + one.corrupted.long()), torch.bincount(own.true_labels * 2 + own.corrupted.long()))
    all_wrong = IdsForget(ids=tuple(train.ids[train.mislabelled].tolist()))
    with pytest.raises(InputError, match=r"it needs .* corrupted images of class 0, and 0 are left"):
        ids(Elsewhere(all_wrong), train)


@pytest.mark.parametrize("band", ["low", "mid", "high"])
def test_by_score_takes_the_same_band_of_what_is_left(band: str, train: Images) -> None:
    like = ByScore(band=band, count=50)
    values = scores(train, "memorisation").of(torch.tensor(ids(ElsewhereByScore(like, 1), train)))
    low, high = {"low": (50 / 600, 100 / 600), "mid": (0.5 - 60 / 600, 0.5 + 60 / 600), "high": (500 / 600, 550 / 600)}[band]
    assert low - 0.05 < float(values.min()) <= float(values.max()) < high + 0.05


def test_groups_by_score_keep_their_names(train: Images) -> None:
    found = ElsewhereByScore(KINDS["by_score"], 1).groups(train, SEED, scores(train, "memorisation"))
    assert {name: len(group) for name, group in found.items()} == {"low": 20, "mid": 20, "high": 20}
    assert ElsewhereByScore(KINDS["by_entanglement"]).scheme == "entanglement"


def test_it_is_a_spec_like_any_other_and_draws_the_same_again(train: Images) -> None:
    for like in (KINDS["random"], KINDS["by_score"]):
        one = elsewhere(like, 2)
        again = build("forget", to_dict(one))
        assert again == one
        assert ids(again, train) == ids(one, train)


def test_what_was_corrupted_whole_is_refused_with_what_to_do() -> None:
    for like in (Mislabelled(), BackdoorForget()):
        with pytest.raises(InputError, match=f"'{info(like).name}' is every image that was corrupted.*corruption 'elsewhere'"):
            Elsewhere(like)
    with pytest.raises(InputError, match="say forget = 'elsewhere_by_score'"):
        Elsewhere(ByScore())
    with pytest.raises(InputError, match="say forget = 'elsewhere'"):
        ElsewhereByScore(RandomForget())  # type: ignore[arg-type]


@pytest.mark.parametrize("like", [SymmetricNoise(0.2), InterclassConfusion(3, 5, 20), Backdoor(share=0.1, size=2, margin=0)])
def test_another_corruption_hits_as_many_others_and_leaves_the_rest_as_released(like) -> None:
    clean = Digits()().rows(torch.arange(600))
    audited, other = like(clean, SEED), CorruptElsewhere(like, 1)(clean, SEED)

    def hit(images: Images) -> torch.Tensor:
        return (images.labels != clean.labels) | images.triggered

    assert int(hit(other).sum()) == int(hit(audited).sum())
    assert not bool((hit(other) & hit(audited)).any())
    assert torch.equal(other.pixels[hit(audited)], clean.pixels[hit(audited)])
    assert torch.equal(other.ids, clean.ids)


def test_a_corruption_that_leaves_too_few_alone_is_refused() -> None:
    clean = Digits()().rows(torch.arange(200))
    with pytest.raises(InputError, match=r"'symmetric_noise' leaves too few images alone for draw 3.*fewer sets"):
        CorruptElsewhere(SymmetricNoise(0.3), 3)(clean, SEED)
    with pytest.raises(InputError, match="'none' changes no image"):
        CorruptElsewhere(Clean(), 1)(clean, SEED)
