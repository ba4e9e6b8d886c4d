"""What public data sets say of themselves before their files are there; that the files agree is tested with each of them (``genuine.agrees``)."""

from __future__ import annotations

import pytest
import torch

from unlearnlab.data.digits import Digits, DigitsPairs
from unlearnlab.data.images import Facts, Images
from unlearnlab.data.partition import Released, Stratified
from unlearnlab.data.source import Column
from unlearnlab.spec import build, lookup, names

OWN = {"csv", "hf", "image_folder", "npz"}  # the user's, of which nothing is known
PUBLIC = sorted(set(names("dataset")) - OWN)
DOCUMENTED = [name for name in PUBLIC if name not in ("digits_pairs", "cifar20")]  # which refer to others


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_data_set_says_how_large_it_is(name: str) -> None:
    facts = build("dataset", name).facts
    assert isinstance(facts, Facts)
    assert facts.shape[0] == len(build("dataset", name).mean)


@pytest.mark.parametrize("name", sorted(OWN))
def test_data_of_the_users_own_say_nothing(name: str) -> None:
    assert not hasattr(lookup("dataset", name), "facts")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_figures_are_those_of_its_help(name: str) -> None:
    dataset = build("dataset", name)
    facts, told = dataset.facts, (dataset.__doc__ or "").split("\n")[0]
    spelt = [f"{count:,}".replace(",", " ") for count in (facts.train, facts.test, facts.train + facts.test)]
    assert spelt[2] in told or (spelt[0] in told and spelt[1] in told)


def test_settings_that_change_what_is_stored_change_the_facts() -> None:
    assert build("dataset", {"name": "agedb", "size": 32}).facts.shape == (3, 32, 32)
    assert build("dataset", {"name": "imagenet100", "size": 144}).facts.shape == (3, 144, 144)
    assert build("dataset", {"name": "utkface", "bins": "10_years"}).facts.classes == 10
    assert build("dataset", {"name": "svhn", "extra": True}).facts.train == 73_257 + 531_131
    # the published numbers of faces trained on, by class
    assert build("dataset", "agedb").facts.train == sum((42, 449, 2251, 3257, 2872, 2357, 1818, 1247, 428, 63))


@pytest.mark.parametrize("dataset", [Digits(), DigitsPairs()])
def test_digits_are_as_they_say(dataset: Digits | DigitsPairs) -> None:
    images, facts = dataset(), dataset.facts
    assert (len(images), images.classes, tuple(images.pixels.shape[1:])) == (facts.train + facts.test, facts.classes, facts.shape)


@pytest.mark.parametrize("settings", [{}, {"held_out": 0.15}, {"by_class": False}, {"train": 20, "test": 7}])
def test_a_partition_says_beforehand_how_many_images_its_parts_have(settings: dict[str, float]) -> None:
    split = Column(torch.tensor([0] * 83 + [1] * 11), ("train", "test"))
    images = Images(torch.zeros(94, 1, 2, 2, dtype=torch.uint8), torch.arange(94) % 5, torch.arange(94), 5, columns={"split": split})
    parts = Released(**settings)(images, 0)
    assert Released(**settings).sizes(Facts(83, 11, 5, (1, 2, 2))) == (len(parts.train), len(parts.held_out), len(parts.test))


def test_a_partition_that_cannot_tell_says_none() -> None:
    assert Released().sizes(None) is None
    assert Released().sizes(Digits.facts) is None  # it holds out none
    assert Stratified(train=10, held_out=5, test=7).sizes(None) == (10, 5, 7)
