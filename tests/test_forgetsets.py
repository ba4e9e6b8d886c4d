"""Who is forgotten."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearnlab.data.corrupt import Backdoor, SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Column, Images
from unlearnlab.data.partition import Stratified, check_forget
from unlearnlab.forgetsets import Attribute, BackdoorForget, ClassForget, IdsForget, Mislabelled, PartialClass, RandomForget, SubClass, read_ids
from unlearnlab.spec import InputError, build, key


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


# -- kinds that look at classes, sub-classes, columns, corruptions ------------------------------------


@pytest.fixture(scope="module")
def described(clean) -> Images:
    """Digits whose classes have names, with a sub-class, its number and an age."""
    names = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")
    spoken = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    at = torch.arange(len(clean))
    columns = {
        "class": Column(torch.tensor([names.index(spoken[label]) for label in clean.true_labels.tolist()]), names),
        "fine": Column(at % 3, ("bike", "rocket", "train")),
        "fine_label": Column(at % 3 + 68),
        "age": Column(at % 50),
    }
    return replace(clean, columns=columns)


def test_a_class_by_name(described, clean):
    assert ClassForget("seven")(described, 0).equal(ClassForget(7)(described, 0))
    with pytest.raises(InputError, match="there is no class 'sevn'; did you mean 'seven'"):
        ClassForget("sevn")(described, 0)
    with pytest.raises(InputError, match="there is no class 'seven'; give its number, 0 to 9"):
        ClassForget("seven")(clean, 0)


def test_some_of_some_classes(described):
    forget = chosen(PartialClass((2, "five"), 40), described)
    assert len(forget) == 40
    assert set(forget.true_labels.tolist()) == {2, 5}
    assert not PartialClass((2, 5), 40, draw=1)(described, 0).equal(forget.ids)
    with pytest.raises(InputError, match="asks for 400 images, but there are"):
        PartialClass((2, 5), 400)(described, 0)
    with pytest.raises(InputError, match="labels is empty"):
        PartialClass(())


def test_a_sub_class_by_name_or_number(described, clean):
    by_name = chosen(SubClass("rocket"), described)
    assert (by_name.columns["fine"].values == 1).all()
    assert len(by_name) == 167
    assert SubClass(69)(described, 0).equal(by_name.ids)
    with pytest.raises(InputError, match="no training image has fine = 'rockt'; did you mean 'rocket'"):
        SubClass("rockt")(described, 0)
    with pytest.raises(InputError, match="have no column 'fine'"):
        SubClass("rocket")(clean, 0)


def test_a_condition(described):
    assert (chosen(Attribute("age < 20"), described).columns["age"].values < 20).all()
    assert len(Attribute("age < 20")(described, 0)) == 200
    assert len(Attribute("age < 20", count=30)(described, 0)) == 30
    with pytest.raises(InputError, match="no training image has age > 100"):
        Attribute("age > 100")(described, 0)
    with pytest.raises(InputError, match="cannot read the condition"):
        Attribute("age <")


def test_what_a_corruption_changed(clean, train):
    assert Mislabelled()(train, 0).equal(train.ids[train.mislabelled])
    poisoned = Backdoor(size=2, margin=0)(clean, 0)
    assert len(chosen(BackdoorForget(), poisoned)) == 50
    for nothing in (Mislabelled(), BackdoorForget()):
        with pytest.raises(InputError, match="give the study"):
            nothing(clean, 0)


@pytest.mark.parametrize("eligible", [RandomForget(), IdsForget((1,)), Mislabelled(), BackdoorForget()])
def test_anyone_may_be_a_control(clean, eligible):
    assert eligible.eligible(clean).all()


# -- ids from files ------------------------------------------------------------------------------------


def write_ids(folder: Path, name: str) -> Path:
    path, ids = folder / name, [7, 3, 19]
    if name.endswith(".npy"):
        np.save(path, np.array(ids))
    else:
        texts = {"a.txt": "7, 3 # two of them\n19\n", "list.json": "[7, 3, 19]", "table.json": '{"ids": [7, 3, 19], "seed": 1}'}
        path.write_text(texts.get(name, "name,id\nx,7\ny,3\nz,19\n" if name == "two.csv" else "7\n3\n19\n"))
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.npy", "list.json", "table.json", "one.csv", "two.csv"])
def test_ids_from_a_file(tmp_path, name):
    spec = IdsForget(file=str(write_ids(tmp_path, name)))
    assert spec(None, 0).tolist() == [7, 3, 19]
    assert key(spec) == key(IdsForget((3, 7, 19)))  # what counts is who, not where it is written


def test_a_mask_of_members_is_read_as_ids(tmp_path):
    np.save(tmp_path / "mask.npy", np.array([False, True, True, False]))
    assert read_ids(tmp_path / "mask.npy") == [1, 2]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "3 four", "does not hold ids"),
        ("a.json", '{"id": [3]}', "does not hold ids"),
        ("a.json", "[3, 4.5]", "4.5 is no whole number"),
        ("a.json", "[true]", "True is no whole number"),
        ("a.json", "[3,", "does not hold ids"),
        ("a.csv", "a,b\n1,2\n", "none is called 'id'"),
        ("a.npy", "not an array", "does not hold ids"),
        ("a.json", "[Infinity]", "inf is no whole number"),
        ("a.json", "[99999999999999999999]", "is no whole number"),
        ("a.csv", "x,id\n3,4\n5\n", "does not hold ids"),
        ("a.pkl", "", "expected a file that ends in .txt, .npy, .json, .csv"),
    ],
)
def test_files_that_hold_no_ids(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_ids(tmp_path / name)


def test_numbers_that_are_no_ids_and_files_from_a_spreadsheet(tmp_path):
    for name, array in (("nan.npy", np.array([1.0, np.nan])), ("text.npy", np.array(["a"]))):
        np.save(tmp_path / name, array)
        with pytest.raises(InputError, match="is no whole number"):
            read_ids(tmp_path / name)
    (tmp_path / "excel.csv").write_text("id,name\n7,x\n3,y\n", encoding="utf-8-sig")
    assert read_ids(tmp_path / "excel.csv") == [7, 3]


def test_ids_or_a_file_of_them(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_ids(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="give either ids or a file of them"):
        IdsForget((1,), "a.txt")
    with pytest.raises(InputError, match="the forget set is empty: name at least one image"):
        check_forget(Digits()(), IdsForget()(Digits()(), 0))
