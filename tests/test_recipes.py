"""The published recipes: every row of the table, with the values that it prints."""

from __future__ import annotations

import pytest
import torch

from unlearnlab.data.digits import Digits
from unlearnlab.nets.mlp import Mlp
from unlearnlab.spec import build, fields, info, key, lookup, names, to_dict
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

# epochs, batch, peak rate, momentum, weight decay, Nesterov, augmentation, and the rate's share at the start of some epochs
PUBLISHED = {
    "unlearn_sparse": (182, 256, 0.1, 0.9, 5e-4, False, ["crop", "flip"], {0: 1, 90: 1, 91: 0.1, 136: 0.01}),
    "unlearn_sparse_svhn": (160, 256, 0.1, 0.9, 5e-4, False, [], {0: 1, 91: 0.1, 136: 0.01}),
    "unlearn_sparse_imagenet": (90, 1024, 1.024, 0.875, 3.05e-5, False, ["random_resized_crop", "flip"], {8: 1, 49: 0.5}),
    "rum_cifar10": (30, 256, 0.1, 0.9, 5e-4, False, [], {0: 1, 15: 0.5}),
    "rum_cifar100": (150, 256, 0.1, 0.9, 5e-4, False, [], {59: 1, 60: 0.2, 120: 0.04}),
    "rum_tiny_imagenet": (80, 256, 0.1, 0.9, 5e-4, False, [], {0: 1, 40: 0.5}),
    "memorisation": (30, 512, 0.01, 0.9, 5e-4, False, [], {15: 1, 16: 0.1, 20: 0.1, 21: 0.01, 26: 0.001}),
    "del_cifar10": (30, 128, 0.1, 0.9, 0, False, [], {0: 1, 15: 0.505}),
    "del_svhn": (30, 128, 0.05, 0.9, 0, False, [], {0: 1, 15: 0.505}),
    "del_imagenet100": (100, 128, 0.1, 0.9, 0, False, ["random_resized_crop", "flip"], {0: 1, 50: 0.505}),
    "deepunlearn": (182, 256, 0.1, 0.9, 5e-4, False, ["crop", "flip"], {0: 1, 91: 0.5}),
    "deepunlearn_small": (50, 256, 0.1, 0.9, 5e-4, False, [], {0: 1, 25: 0.5}),
    "ssd_cifar10": (20, 128, 0.1, 0.9, 5e-4, False, ["crop", "flip"], {7: 1, 8: 0.1, 12: 0.01, 16: 0.001}),
    "ssd_cifar20": (40, 128, 0.1, 0.9, 5e-4, False, ["crop", "flip"], {14: 1, 15: 0.1, 30: 0.01, 35: 0.001}),
    "ssd_cifar100": (200, 128, 0.1, 0.9, 5e-4, False, ["crop", "flip"], {59: 1, 60: 0.1, 120: 0.01, 160: 0.001}),
    "fwp_cifar10": (100, 128, 0.1, 0.9, 5e-4, True, ["autoaugment", "crop", "flip"], {34: 1, 35: 0.1, 70: 0.01, 90: 0.001}),
    "fwp_agedb": (100, 128, 0.1, 0.9, 5e-4, True, ["autoaugment", "crop", "flip"], {34: 1, 35: 0.1, 70: 0.01, 90: 0.001}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name):
    recipe = build("recipe", name)
    epochs, batch, lr, momentum, decay, nesterov, augment, course = PUBLISHED[name]
    sgd = recipe.optimizer
    found = (recipe.epochs, recipe.batch, recipe.lr, sgd.momentum, sgd.weight_decay, sgd.nesterov, [info(one).name for one in recipe.augment])
    assert found == (epochs, batch, lr, momentum, decay, nesterov, augment)
    per_epoch = 10
    for epoch, share in course.items():
        assert recipe.schedule(epoch * per_epoch, epochs * per_epoch, per_epoch) == pytest.approx(share), epoch


def test_every_recipe_is_accounted_for():
    ours = {name for name in names("recipe") if not info(lookup("recipe", name)).source}  # other tests load plugins
    assert ours == {*PUBLISHED, "standard", "digits", "ssd_vit"}
    assert build("recipe", "unlearn_sparse").rewind == 8
    assert build("recipe", "fwp_agedb").class_weights == "inverse"
    assert build("recipe", "fwp_cifar10").augment[1].mode == "reflect"
    assert build("recipe", "unlearn_sparse_imagenet").schedule(0, 900, 10) == pytest.approx(1 / 80)


@pytest.mark.parametrize("name", names("recipe"))
def test_a_named_recipe_is_the_recipe_with_other_defaults(name):
    recipe = build("recipe", name)
    assert isinstance(recipe, Recipe)
    assert [field.name for field in fields(type(recipe))] == [field.name for field in fields(Recipe)]
    assert build("recipe", to_dict(recipe)) == recipe
    assert build("recipe", {"name": name, "epochs": 201, "rewind": 201}).epochs == 201
    assert len(info(lookup("recipe", name)).summary) > 30
    assert "Recipe" not in info(lookup("recipe", name)).summary


def test_digits_is_the_standard_under_another_name():
    start, images = Stack.init(Mlp(hidden=(4,))((1, 8, 8), 10), (0,)), Digits()().rows(torch.arange(60))
    assert build("recipe", "digits")(start, images).fingerprint == Recipe()(start, images).fingerprint
    assert key(build("recipe", "digits")) != key(Recipe())
