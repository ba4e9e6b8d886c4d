"""The recipe that every model is trained by."""

import pytest
import torch

from toy import same
from unlearnlab.data.augment import Crop
from unlearnlab.data.digits import Digits
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.optimizers import Adam, Constant, Sgd
from unlearnlab.progress import Progress
from unlearnlab.seeds import model_seeds
from unlearnlab.spec import InputError, build, key, to_dict
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe


@pytest.fixture(scope="module")
def images():
    return Digits()().rows(torch.arange(150))


def accuracy(stack, images):
    return (stack.logits(images.pixels).argmax(-1) == images.labels).float().mean(1)


@pytest.mark.parametrize(("net", "epochs"), [(SmallCnn(), 15), (SmallCnn(norm="batch"), 10), (Mlp(), 15)], ids=["small_cnn", "batch_norm", "mlp"])
def test_clean_digits_are_learnt(images, net, epochs):
    progress = Progress()
    start = Stack.init(net((1, 8, 8), 10), model_seeds("original", 2))
    trained = Recipe(epochs=epochs, batch=25)(start, images, progress)
    assert (accuracy(start, images) < 0.5).all()
    assert (accuracy(trained, images) > 0.97).all()
    assert not trained.diverged
    assert trained.seeds == start.seeds
    assert (progress.forward, progress.backward) == (epochs * 150, epochs * 150)


def test_same_seeds_same_bits_and_other_seeds_other_models(images):
    def train(seeds):
        return Recipe(epochs=2, batch=40)(Stack.init(Mlp(hidden=(8,))((1, 8, 8), 10), seeds), images)

    originals = train(model_seeds("original", 2))
    assert same(originals.params, train(model_seeds("original", 2)).params)
    marks = {one.rows([k]).fingerprint for one in (originals, train(model_seeds("oracle", 2)), train(model_seeds("retrain", 2))) for k in range(2)}
    assert len(marks) == 6


def test_each_setting_is_alive_and_in_the_key(images):
    start = Stack.init(Mlp(hidden=(8,))((1, 8, 8), 10), (0, 1))
    base = Recipe(epochs=2, batch=40)
    others = [
        Recipe(epochs=3, batch=40),
        Recipe(epochs=2, batch=50),
        Recipe(epochs=2, batch=40, lr=0.05),
        Recipe(epochs=2, batch=40, optimizer=Adam()),
        Recipe(epochs=2, batch=40, optimizer=Sgd(nesterov=True)),
        Recipe(epochs=2, batch=40, schedule=Constant()),
        Recipe(epochs=2, batch=40, augment=(Crop(padding=1),)),
        Recipe(epochs=2, batch=40, label_smoothing=0.1),
        Recipe(epochs=2, batch=40, class_weights="inverse"),
        Recipe(epochs=2, batch=40, sharpness=0.05),
        Recipe(epochs=2, batch=40, precision="bfloat16"),
    ]
    assert len({key(recipe) for recipe in (base, *others)}) == len(others) + 1
    assert len({recipe(start, images).fingerprint for recipe in (base, *others)}) == len(others) + 1
    for recipe in (base, *others):
        assert build("recipe", to_dict(recipe)) == recipe


@pytest.mark.parametrize(("setting", "value"), [("epochs", 0), ("batch", 0), ("lr", 0.0), ("lr", float("nan")), ("epochs", 1.5)])
def test_settings_out_of_range(setting, value):
    with pytest.raises(InputError, match=f"recipe 'standard': {setting} = {value}"):
        Recipe(**{setting: value})


def test_rewind_weights_are_those_after_so_many_epochs(images):
    start, held = Stack.init(Mlp(hidden=(8,))((1, 8, 8), 10), (0, 1)), []
    Recipe(epochs=4, batch=40, schedule=Constant(), rewind=2)(start, images, at_rewind=held.append)
    (kept,) = held
    assert same(kept.params, Recipe(epochs=2, batch=40, schedule=Constant())(start, images).params)
    with pytest.raises(InputError, match="rewind = 5 comes after the last of 4 epochs"):
        Recipe(epochs=4, rewind=5)


def test_class_weights_are_inverse_frequencies_of_the_images_at_hand(images):
    few = images.rows(torch.cat([(images.labels == 3).nonzero()[:2, 0], (images.labels == 5).nonzero()[:6, 0]]))
    weights = Recipe(class_weights="inverse")._weights(few)
    assert weights.tolist() == [0, 0, 0, 4.0, 0, pytest.approx(8 / 6), 0, 0, 0, 0]
    assert Recipe()._weights(few) is None
