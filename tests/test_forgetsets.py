"""Who is forgotten."""

import pytest
import torch

from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images
from unlearnlab.data.partition import Stratified, check_forget
from unlearnlab.forgetsets import ClassForget, IdsForget, RandomForget
from unlearnlab.spec import InputError, build


@pytest.fixture(scope="module")
def clean() -> Images:
    return Stratified()(Digits()(), 0).train


@pytest.fixture(scope="module")
def train(clean) -> Images:
    return SymmetricNoise(0.2)(clean, 0)


def chosen(spec, train: Images, seed: int = 0) -> Images:
    ids = spec(train, seed)
    assert ids.dtype == torch.int64
    return train.take(check_forget(train, ids))


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("mislabelled", [None, 0, 31, 62])
def test_random_counts(train, mislabelled, by_class):
    forget = chosen(RandomForget(62, mislabelled, by_class), train)
    assert len(forget) == 62
    if mislabelled is not None:
        assert int(forget.mislabelled.sum()) == mislabelled
    if by_class:  # each kind in the proportion in which it comes in training
        for kind in ((forget.mislabelled, train.mislabelled), (~forget.mislabelled, ~train.mislabelled)) if mislabelled is not None else ():
            got, there = (torch.bincount(images.true_labels[mask], minlength=10) for images, mask in ((forget, kind[0]), (train, kind[1])))
            assert (got - there * got.sum() / there.sum()).abs().max() < 1
        if mislabelled is None:
            there = torch.bincount(train.true_labels)
            assert (torch.bincount(forget.true_labels) - there * 62 / 500).abs().max() < 1


def test_chance_depends_on_seed_and_draw_alone(train):
    draws = [RandomForget(62, 31)(train, 0), RandomForget(62, 31, draw=1)(train, 0), RandomForget(62, 31)(train, 1), RandomForget(62)(train, 0)]
    assert torch.equal(draws[0], RandomForget(62, 31)(train, 0))
    assert len({tuple(ids.tolist()) for ids in draws}) == 4
    for ids in draws[1:]:
        overlap = torch.isin(ids, draws[0]).sum()
        assert overlap < 40  # 62 of 500 by chance: 8, with 31 of 100 mislabelled in both: 14


def test_a_clean_training_set_has_none_mislabelled(clean):
    for by_class in (False, True):
        assert len(chosen(RandomForget(62, 0, by_class), clean)) == 62
        with pytest.raises(InputError, match="asks for 31 mislabelled images, but the training set has 0"):
            RandomForget(62, 31, by_class)(clean, 0)


def test_random_errors(train):
    with pytest.raises(InputError, match="asks for 501 images, but the training set has 500"):
        RandomForget(501)(train, 0)
    with pytest.raises(InputError, match="mislabelled = 5 is more than count = 4"):
        RandomForget(4, 5)(train, 0)
    with pytest.raises(InputError, match="count = 0 is out of range: expected at least 1"):
        RandomForget(0)


def test_class(train):
    forget = chosen(ClassForget(3), train)
    assert set(forget.true_labels.tolist()) == {3}
    assert len(forget) == int((train.true_labels == 3).sum())
    with pytest.raises(InputError, match="label = 10, but the classes are 0 to 9"):
        ClassForget(10)(train, 0)
    rest = train.rows(train.true_labels != 3)
    with pytest.raises(InputError, match="the forget set is empty"):
        check_forget(rest, ClassForget(3)(rest, 0))


def test_ids(train):
    ids = train.ids[[5, 3, 9]].tolist()
    assert IdsForget(tuple(ids))(train, 0).tolist() == ids
    assert build("forget", {"name": "ids", "ids": ids}) == IdsForget(tuple(ids))
    assert IdsForget(())(train, 0).dtype == torch.int64
    with pytest.raises(InputError, match="needs the setting 'ids'"):
        build("forget", "ids")
