"""Dividing the images: exact sizes, equal shares, and controls composed as the forget set is."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearnlab.data.corrupt import Backdoor, InterclassConfusion, SymmetricNoise, flip
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import PARTS, Column, Images, Split
from unlearnlab.data.partition import Parts, Released, Stratified, apportion, check_forget, draw_control, split_for, stratified
from unlearnlab.forgetsets import BackdoorForget, Mislabelled, RandomForget, SubClass
from unlearnlab.spec import InputError


@pytest.fixture(scope="module")
def release() -> Images:
    return Digits()()


@pytest.fixture(scope="module")
def parts(release) -> Parts:
    clean = Stratified()(release, seed=0)
    return Parts(SymmetricNoise(0.2)(clean.train, 0), clean.held_out, clean.test)


def counts(images: Images) -> torch.Tensor:
    return torch.bincount(images.true_labels, minlength=images.classes)


# -- the three parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(500, 297, 1000), (2, 1, 1), (700, 90, 33)])
def test_sizes_are_exact_and_shares_equal(release, sizes):
    parts = Stratified(*sizes)(release, seed=3)
    assert tuple(map(len, (parts.train, parts.held_out, parts.test))) == sizes
    for images in (parts.train, parts.held_out, parts.test):
        assert (counts(images) - len(images) * counts(release) / len(release)).abs().max() < 2
    together = torch.cat([parts.train.ids, parts.held_out.ids, parts.test.ids])
    assert len(set(together.tolist())) == sum(sizes)
    for images in (parts.train, parts.held_out, parts.test):
        assert torch.equal(images.labels, release.labels[images.ids])
        assert torch.equal(images.pixels, release.pixels[images.ids])


def test_the_seed_alone_decides(release):
    first, again, other = (Stratified()(release, seed) for seed in (0, 0, 1))
    assert first.train.fingerprint == again.train.fingerprint
    assert first.train.fingerprint != other.train.fingerprint
    assert first.test.fingerprint != other.test.fingerprint


def test_more_images_than_there_are(release):
    with pytest.raises(InputError, match=r"asks for 1000 \+ 297 \+ 1000 = 2297 images, but there are 1797; ask for fewer"):
        Stratified(train=1000)(release, 0)


def test_stratified_positions():
    labels = torch.tensor([0] * 6 + [2] * 3)  # no example of class 1
    at = stratified(labels, 6, 0, "test")
    assert at.tolist() == sorted(set(at.tolist()))
    assert torch.bincount(labels[at]).tolist() == [4, 0, 2]
    assert stratified(labels, 9, 0, "test").tolist() == list(range(9))
    assert stratified(labels[:0], 0, 0, "test").tolist() == []
    assert any(stratified(labels, 6, seed, "test").tolist() != at.tolist() for seed in range(1, 6))
    assert any(stratified(labels, 6, 0, purpose).tolist() != at.tolist() for purpose in "abcdef")


@given(st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any), st.data())
def test_apportion(weights, data):
    caps = data.draw(st.none() | st.lists(st.integers(0, 80), min_size=len(weights), max_size=len(weights)))
    room = weights if caps is None else caps
    total = data.draw(st.integers(0, sum(room)))
    given_out = apportion(weights, total, caps)
    assert sum(given_out) == total
    assert all(0 <= got <= cap for got, cap in zip(given_out, room, strict=True))
    exact = [total * weight / sum(weights) for weight in weights]
    if all(cap >= math.ceil(share) for cap, share in zip(room, exact, strict=True)):  # no cap binds
        assert all(abs(got - share) < 1 for got, share in zip(given_out, exact, strict=True))
    assert given_out == apportion(weights, total, caps)
    with pytest.raises(InputError, match=f"cannot choose {sum(room) + 1} images: only {sum(room)} fit"):
        apportion(weights, sum(room) + 1, caps)


def test_apportion_breaks_ties_to_the_lower_index():
    assert apportion([1, 1, 1], 2) == [1, 1, 0]
    assert apportion([5, 5, 5, 5], 6) == [2, 2, 1, 1]
    assert apportion([3, 1], 4, [2, 9]) == [2, 2]


# -- controls --------------------------------------------------------------------------------------


def forgotten(parts: Parts, mislabelled: int, clean: int) -> Images:
    """The first of each kind: by class they come as they come."""
    train = parts.train
    rows = [train.mislabelled.nonzero()[:mislabelled, 0], (~train.mislabelled).nonzero()[:clean, 0]]
    return train.rows(torch.cat(rows).sort().values)


def of_class(parts: Parts, label: int) -> Images:
    return parts.train.rows(parts.train.true_labels == label)


CASES = {
    "31/31": lambda parts: forgotten(parts, 31, 31),
    "10/50": lambda parts: forgotten(parts, 10, 50),
    "0/62": lambda parts: forgotten(parts, 0, 62),
    "62/0": lambda parts: forgotten(parts, 62, 0),
    "1/1": lambda parts: forgotten(parts, 1, 1),
    "class 3": lambda parts: of_class(parts, 3),
    "two classes": lambda parts: parts.train.rows((parts.train.true_labels == 1) | (parts.train.true_labels == 8)),
    "two thirds": lambda parts: parts.train.rows(torch.arange(333)),
}


@pytest.mark.parametrize("case", CASES)
def test_controls_are_composed_as_the_forget_set(parts, case):
    forget = CASES[case](parts)
    control, validation = draw_control(forget, parts.held_out, seed=0)
    assert len(control) > 0
    flipped, bad = int(control.mislabelled.sum()), int(forget.mislabelled.sum())
    unit = len(forget) // math.gcd(len(forget), bad)
    if unit <= len(control):
        assert flipped * len(forget) == bad * len(control)  # exactly as many for each clean one
    assert abs(flipped - bad * len(control) / len(forget)) <= 0.5  # 20 in 99 cannot be had exactly with 58 controls
    assert (counts(control) - len(control) * counts(forget) / len(forget)).abs().max() <= 1  # classes in proportion
    assert sorted([*control.ids.tolist(), *validation.ids.tolist()]) == parts.held_out.ids.tolist()  # nothing lost, nothing twice
    assert not validation.mislabelled.any()
    assert torch.equal(control.true_labels, parts.held_out.take(control.ids.tolist()).labels)
    assert bool((control.labels[control.mislabelled] != control.true_labels[control.mislabelled]).all())
    # as many as fit: one more unit of the forget set's composition would ask some class for more than it has
    scale = min(int(h) / int(w) for h, w in zip(counts(parts.held_out), counts(forget), strict=True) if w)
    assert len(control) + unit + forget.classes > scale * len(forget)


def test_no_control_is_lost_to_rounding():
    """In floats 15/22 · 22 falls short of 15 (as do 271 other pairs below 200/60), and the control set of a class forget lost an image."""
    pairs = [(h, w) for h in range(1, 60) for w in range(1, 60) if math.floor(h / w * w) != h]
    assert pairs
    for h, w in pairs:

        def of_class(label: int, n: int, start: int) -> Images:
            return Images(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.full((n,), label), torch.arange(start, start + n), classes=2)

        # enough of the other class that a tenth of the held-out images is left for validation anyway
        control, validation = draw_control(of_class(0, w, 0), Images.join([of_class(0, h, 1000), of_class(1, h, 2000)]), seed=0)
        assert (len(control), len(validation)) == (h, h)
        assert not control.labels.any()


def test_controls_are_seeded(parts):
    forget = CASES["31/31"](parts)
    first, again, other = (draw_control(forget, parts.held_out, seed)[0] for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_no_held_out_image_of_the_class(parts):
    with pytest.raises(InputError, match=r"no held-out image has a class of the forget set.*hold out more"):
        draw_control(of_class(parts, 3), parts.held_out.rows(parts.held_out.labels != 3), 0)


def test_a_class_that_is_not_held_out_leaves_the_others(parts):
    control, _ = draw_control(parts.train.rows(torch.arange(200)), parts.held_out.rows(parts.held_out.labels != 3), 0)
    assert len(control) > 100
    assert 3 not in control.true_labels.tolist()


def test_flipped_labels_are_never_true_and_all_others_come(release):
    rows = torch.arange(len(release))
    flipped = flip(release, rows, 0, "test")
    assert bool((flipped.labels != release.labels).all())
    shifts = torch.bincount((flipped.labels - release.labels) % 10, minlength=10)
    assert shifts[0] == 0
    assert (shifts[1:] > 120).all()


# -- the split -------------------------------------------------------------------------------------


def test_split_for(parts):
    ids = parts.train.ids[torch.arange(0, 500, 8)]
    split = split_for(parts, ids.flip(0), 0)
    assert split.forget.ids.tolist() == ids.sort().values.tolist()
    assert sorted(split.forget.ids.tolist() + split.retain.ids.tolist()) == parts.train.ids.tolist()
    assert torch.equal(split.retain.labels, parts.train.take(split.retain.ids.tolist()).labels)
    assert split.test.fingerprint == parts.test.fingerprint
    assert split_for(parts, ids, 0).fingerprint == split.fingerprint  # order has no meaning
    assert split_for(parts, ids[1:], 0).fingerprint != split.fingerprint


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda ids: ids[:0], "the forget set is empty: name at least one image"),
        (lambda ids: torch.cat([ids[:3], ids[1:2]]), "forget id {1} is given twice; give every id once"),
        (lambda ids: torch.tensor([9999, 8888]), r"forget id 8888 is not in the training set of 500 images \(2 such id\(s\)\)"),
        (lambda ids: torch.tensor([-1]), "forget id -1 is not in the training set"),
        (lambda ids: ids, r"the forget set is the whole training set \(500 images\): nothing would be left to retain"),
    ],
    ids=["empty", "repeated", "outside", "negative", "all"],
)
def test_forget_sets_that_make_no_sense(parts, choose, message):
    ids = parts.train.ids
    with pytest.raises(InputError, match=message.replace("{1}", str(int(ids[1])))):
        check_forget(parts.train, choose(ids))
    with pytest.raises(InputError):
        split_for(parts, choose(ids), 0)


def test_held_out_images_cannot_be_forgotten(parts):
    with pytest.raises(InputError, match="is not in the training set"):
        check_forget(parts.train, parts.held_out.ids[:1])


@pytest.mark.parametrize(("one", "other"), [(a, b) for i, a in enumerate(PARTS) for b in PARTS[i + 1 :]])
def test_an_image_in_two_parts_is_refused(release, one, other):
    held = {name: release.rows(torch.arange(5) + 10 * number) for number, name in enumerate(PARTS)}
    Split(**held).check()
    with pytest.raises(InputError, match=f"image id {int(held[one].ids[2])} is in both the {one} and the {other} set"):
        Split(**{**held, other: Images.join([held[other], held[one].rows(torch.tensor([2]))])}).check()


# -- released training and test images -------------------------------------------------------------


@pytest.fixture(scope="module")
def released(release) -> Images:
    """The digits as if their last 300 had been released for testing, with a sub-class for every image."""
    at = torch.arange(len(release))
    columns = {"split": Column((at >= 1497).long(), ("train", "test")), "half": Column(at % 2)}
    return replace(release, columns=columns)


def test_the_release_decides_who_is_tested_on(released):
    parts = Released(held_out=0.1)(released, seed=4)
    assert (len(parts.train), len(parts.held_out), len(parts.test)) == (1347, 150, 300)
    assert parts.test.ids.tolist() == list(range(1497, 1797))
    assert (counts(parts.held_out) - 150 * counts(released.rows(torch.arange(1497))) / 1497).abs().max() < 1
    small = Released(train=60, test=40, by_class=False)(released, seed=4)
    assert (len(small.train), len(small.held_out), len(small.test)) == (60, 150, 40)
    assert len({*small.train.ids.tolist(), *small.held_out.ids.tolist(), *small.test.ids.tolist()}) == 250


def test_what_released_refuses(release, released):
    with pytest.raises(InputError, match="without test images of its own; use partition 'stratified'"):
        Released()(release, 0)
    with pytest.raises(InputError, match=r"asks for 5000 of 1347 images \(train\)"):
        Released(train=5000)(released, 0)


# -- controls are drawn as the forget set was --------------------------------------------------------


def test_controls_of_a_sub_class_are_of_that_sub_class(released):
    parts = Released(held_out=0.2)(released, seed=0)
    chosen = SubClass(value=1, column="half", drop_from_test=True)
    split = split_for(parts, chosen(parts.train, 0), 0, eligible=chosen.eligible, drop_from_test=True)
    assert (split.forget.columns["half"].values == 1).all()
    assert (split.control.columns["half"].values == 1).all()
    assert (split.validation.columns["half"].values == 0).any()
    assert (split.test.columns["half"].values == 0).all()
    assert len(split.test) == 150
    assert split_for(parts, chosen(parts.train, 0), 0, eligible=chosen.eligible).test.ids.equal(parts.test.ids)


def test_controls_of_a_confusion_are_confused_alike(released):
    corruption = InterclassConfusion(a=2, b=7, count=60)
    clean = Released(held_out=0.3)(released, seed=0)
    parts = replace(clean, train=corruption(clean.train, 0))
    split = split_for(parts, Mislabelled()(parts.train, 0), 0, corruption=corruption)
    assert split.forget.mislabelled.all()
    assert split.control.mislabelled.all()
    assert set(split.control.true_labels.tolist()) == {2, 7}
    assert split.control.labels.equal(9 - split.control.true_labels)
    assert not split.validation.mislabelled.any()
    assert {2, 7} <= set(split.validation.labels.tolist())  # a tenth of both stays as it is, to compare with


def test_controls_of_a_backdoor_bear_the_trigger_and_the_target(released):
    corruption = Backdoor(target=3, size=2, margin=0)
    clean = Released(held_out=0.3)(released, seed=0)
    parts = replace(clean, train=corruption(clean.train, 0))
    split = split_for(parts, BackdoorForget()(parts.train, 0), 0, corruption=corruption)
    for images in (split.forget, split.control):
        assert images.triggered.all()
        assert (images.labels == 3).all()
        assert (images.pixels[:, 0, -2:, -2:] == 0).all()
    assert (counts(split.control) / len(split.control) - counts(split.forget) / len(split.forget)).abs().max() < 0.02
    for images in (split.retain, split.validation, split.test):
        assert not images.triggered.any()
        assert not images.mislabelled.any()


def test_a_tenth_of_the_held_out_images_is_left_for_validation(released):
    parts = Released(held_out=0.1)(released, seed=0)
    everyone = RandomForget(count=1000, by_class=True)(parts.train, 0)
    split = split_for(parts, everyone, 0)
    assert len(split.validation) >= 15
    assert len(split.control) >= 120


def test_nobody_like_the_forgotten_is_held_out(released):
    parts = Released(held_out=0.1)(released, seed=0)
    who = int(parts.train.ids[0])
    with pytest.raises(InputError, match="no held-out image is of the kind that is forgotten"):
        split_for(parts, torch.tensor([who]), 0, eligible=lambda images: images.ids == who)


def test_no_corruption_spills_into_classes_that_it_does_not_touch(released):
    """Confused images of two classes among clean ones of two others, with few held out: classes that are full give up, no other takes over."""
    corruption = InterclassConfusion(a=3, b=5, count=60)
    clean = Released(held_out=0.05)(released, seed=0)
    parts = replace(clean, train=corruption(clean.train, 0))
    wrong = parts.train.ids[parts.train.mislabelled]
    right = parts.train.ids[~parts.train.mislabelled & ((parts.train.labels == 1) | (parts.train.labels == 8))]
    seen = 0
    for seed in range(30):
        some = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(seed))[: 5 + seed]]
        control = split_for(parts, torch.cat([wrong, some]), seed, corruption=corruption).control
        assert set(control.true_labels[control.mislabelled].tolist()) <= {3, 5}
        seen += int(control.mislabelled.sum())
    assert seen > 30
