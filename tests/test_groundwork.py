"""A study's images and forget set, when pixels stay in a mapped file and when originals come from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from toy import same
from unlearnlab import artefacts as make
from unlearnlab import filing, measuring, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.data.images import PARTS
from unlearnlab.data.mapped import Mapped
from unlearnlab.planning import needed, plan
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack
from unlearnlab.store import Store

NET = {"name": "small_cnn", "widths": [4, 4, 6]}


def arrays(path: Path, count: int = 240) -> Path:
    """Colour pictures of three classes, each brightest in a channel of its own, with a user for every image; the last 60 are for testing."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % 3
    pixels = draw.integers(0, 100, (count, 8, 8, 3))
    pixels[np.arange(count), :, :, labels] += 120
    users = np.array(["u17" if at % 4 == 0 else "u2" for at in range(count)])
    parts = {"train": slice(0, count - 60), "test": slice(count - 60, count)}
    named = {f"{name}_{part}": array[rows] for part, rows in parts.items() for name, array in (("x", pixels.astype(np.uint8)), ("y", labels), ("user", users))}
    np.savez(path, **named)
    return path


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return arrays(tmp_path_factory.mktemp("own") / "pictures.npz")


def prepare(root: Path, release: Path, **changes: Any) -> ground.Setup:
    base = ground.Setup(
        str(root),
        seed=0,
        dataset={"name": "npz", "path": str(release)},
        partition={"name": "released", "held_out": 0.3},
        corruption={"name": "none"},
        forget={"name": "attribute", "where": 'user == "u17" and label != 2'},
        net=NET,
        recipe={"name": "standard", "epochs": 2, "batch": 20},
        original={"name": "trained"},
    )
    return replace(base, **changes)


def test_a_study_refers_to_mapped_pixels_and_copies_none(tmp_path, release):
    setup = prepare(tmp_path, release)
    data = ground.make_data(setup)
    parts = ground.load_data(setup, data)
    whole = np.concatenate([np.load(release)[f"x_{part}"] for part in ("train", "test")]).transpose(0, 3, 1, 2)
    for images in (parts.train, parts.held_out, parts.test):
        assert isinstance(images.pixels, Mapped)
        assert images.pixels[:].numpy().tolist() == whole[images.ids].tolist()
    assert sum(path.stat().st_size for path in (tmp_path / "data").rglob("*.safetensors")) < whole.nbytes
    split = ground.load_split(setup, data, ground.make_forget(setup, data))
    for images in (split.forget, split.control):
        user = images.columns["user"]
        assert {user.words[at] for at in user.values.tolist()} == {"u17"}
        assert set(images.labels.tolist()) == {0, 1}
    split.check()


def test_a_file_that_was_only_touched_gives_the_same_data(tmp_path, release):
    setup = prepare(tmp_path, release)
    before = ground.make_data(setup)
    os.utime(release, ns=(1, 1))
    assert ground.make_data(setup) == before
    assert len(setup.store.list("images")) == 2  # read anew, and found to be the same
    ground._read_data.cache_clear()
    setup.store.tidy({("data", before), ("images", setup.store.list("images")[1].key)})  # either of them serves
    assert ground.load_data(setup, before).train.pixels[:1].shape == (1, 3, 8, 8)


def test_pixels_that_are_gone_are_named(tmp_path, release):
    setup = prepare(tmp_path, release)
    data = ground.make_data(setup)
    setup.store.tidy({("data", data)})
    ground._read_data.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"the converted images \w+ are not in the store .*; run the study again"):
        ground.load_data(setup, data)
    assert ground.make_data(setup) == data
    assert len(ground.load_data(setup, data).test) == 60


def test_a_backdoor_on_mapped_pixels_comes_back(tmp_path, release):
    corruption = {"name": "backdoor", "share": 0.25, "size": 2, "margin": 1, "target": 2}
    setup = prepare(tmp_path, release, corruption=corruption, forget={"name": "backdoor"})
    data = ground.make_data(setup)
    split = ground.load_split(setup, data, ground.make_forget(setup, data))
    for images in (split.forget, split.control):
        assert images.triggered.all()
        assert (images.labels == 2).all()
        assert not images.pixels[:][..., 5:7, 5:7].any()
    assert not split.test.triggered.any()
    manifest = setup.store.manifest("forget", ground.make_forget(setup, data))
    assert (manifest["count"], manifest["corrupted"], sum(manifest["classes"])) == (len(split.forget),) * 3


def test_what_the_net_normalises_is_in_the_key(tmp_path, release):
    keys = [make.trained_key(prepare(tmp_path, release, normalise=normalise), "images", (0,)) for normalise in (True, False)]
    assert keys[0] != keys[1]
    assert filing.architecture(prepare(tmp_path, release, normalise=False), _images(tmp_path, release)).get_submodule("0").mean == (0.0,)


def _images(root: Path, release: Path) -> Any:
    setup = prepare(root, release)
    return ground.load_data(setup, ground.make_data(setup)).train


def test_rewind_weights_lie_beside_the_others(tmp_path, release):
    setup = prepare(tmp_path, release, recipe={"name": "standard", "epochs": 2, "batch": 20, "schedule": "constant", "rewind": 1})
    data = ground.make_data(setup)
    images = ground.load_data(setup, data).train
    made = make.make_trained(setup, data, None, (0, 1))
    short = replace(setup, recipe={"name": "standard", "epochs": 1, "batch": 20, "schedule": "constant"})
    once = make.make_trained(short, data, None, (0, 1))
    assert same(filing.load_stack(setup, made, images, "rewind").params, filing.load_stack(short, once, images).params)
    assert not (Path(setup.root) / "stacks" / once / "rewind.safetensors").exists()


# -- whole studies ---------------------------------------------------------------------------------


def write_study(path: Path, release: Path, models: int, methods: Sequence[dict[str, Any]], **more: Any) -> Path:
    table = {
        "title": "own pictures",
        "models": models,
        "dataset": str(release),
        "partition": {"name": "released", "held_out": 0.3},
        "net": NET,
        "recipe": {"name": "standard", "epochs": 2, "batch": 20},
        "forget": {"name": "attribute", "where": 'user == "u17"'},
        "methods": list(methods),
        "metrics": ["trace", {"name": "acc", "part": "test"}],
        **more,
    }
    path.write_text(tomli_w.dumps(table))
    return path


def save_originals(folder: Path, store: Path, release: Path, count: int) -> list[str]:
    """Originals as another code base would leave them: state dicts saved by torch."""
    setup = prepare(store, release)
    data = ground.make_data(setup)
    made = make.make_trained(setup, data, None, tuple(range(count)))
    paths = []
    for which in ("weights", "init"):
        stack = filing.load_stack(setup, made, ground.load_data(setup, data).train, which)
        for k in range(count):
            paths.append(folder / f"{which}{k}.pt")
            torch.save(stack.member(k).state_dict(), paths[-1])
    return [str(path) for path in paths]


def test_a_study_on_ones_own_pictures(tmp_path, release):
    path = write_study(tmp_path / "own.toml", release, 2, [{"name": "finetune", "epochs": 1}])
    runner = study.run(studyfiles.read(str(path))[1], "own", Store(tmp_path / "store"))
    document = runner.document
    assert [row["method"] for row in document["rows"]] == ["original", "retrain", "finetune"]
    assert (tmp_path / "store" / "studies" / "own" / "report.html").stat().st_size > 10_000
    assert np.array(document["forget"]["pixels"]).shape[1:] == (3, 8, 8)
    live, _ = needed(runner.store)
    assert {kind for kind, _ in live} == {"images", "data", "forget", "stacks", "outputs", "metrics"}


def test_originals_from_files(tmp_path, release):
    files = save_originals(tmp_path, tmp_path / "store", release, 2)
    methods = [{"name": "finetune", "epochs": 1}, {"name": "del", "epochs": 1}]
    ours = studyfiles.read(str(write_study(tmp_path / "ours.toml", release, 2, methods)))[1]
    theirs = studyfiles.read(str(write_study(tmp_path / "theirs.toml", release, 2, methods, original={"checkpoint": files[:2], "init": files[2:]})))[1]
    store = Store(tmp_path / "store")
    assert [item.row for item in plan(theirs, store)][:2] == ["oracles", "original"]  # nothing to train for originals
    first, second = (study.run(asked, name, store, until="audit") for name, asked in (("ours", ours), ("theirs", theirs)))
    images = ground.load_data(first.setup, first.data_key).train
    for name in ("original", "finetune", "del"):
        a, b = (filing.load_stack(runner.setup, runner.unlearned[name][0], images) for runner in (first, second))
        assert same(a.params, b.params), name
    assert all(item.reused == item.models for item in plan(theirs, store))


def test_one_original_for_all(tmp_path, release):
    (file, _) = save_originals(tmp_path, tmp_path / "store", release, 1)
    path = write_study(tmp_path / "one.toml", release, 3, [{"name": "finetune", "epochs": 1}], original={"checkpoint": file})
    runner = study.run(studyfiles.read(str(path))[1], "one", Store(tmp_path / "store"))
    audit = measuring.gather(runner.setup, runner.data_key, runner.forget_key, runner.ensembles("finetune"))
    assert (len(audit.originals), len(audit.oracles), len(audit.unlearned)) == (1, 3, 3)
    assert audit.parents is not None
    assert audit.parents.tolist() == [0, 0, 0]
    assert not audit.independent
    stack = filing.load_stack(runner.setup, runner.unlearned["finetune"][0], ground.load_data(runner.setup, runner.data_key).train)
    assert len({stack.rows([k]).fingerprint for k in range(3)}) == 3  # each in an order of its own
    assert runner.document["models"]["originals"] == 1


@pytest.mark.parametrize(
    ("original", "words"),
    [
        ({"checkpoint": ["a.pt", "b.pt"]}, "names 2 checkpoints for 3 models; give one for each, or one for all"),
        ({"checkpoint": "gone.pt"}, "cannot read the weights gone.pt"),
    ],
)
def test_originals_that_cannot_be(tmp_path, release, original, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_study(tmp_path / "bad.toml", release, 3, [], original=original)
    with pytest.raises(InputError, match=words):
        study.run(studyfiles.read(str(path))[1], "bad", Store(tmp_path / "store"), until="original")


def test_a_method_that_goes_back_to_the_start_needs_it(tmp_path, release):
    (file, _) = save_originals(tmp_path, tmp_path / "store", release, 1)
    path = write_study(tmp_path / "del.toml", release, 2, [{"name": "del", "epochs": 1}], original={"checkpoint": file})
    with pytest.raises(InputError, match=r"method 'del' goes back to the original's initial weights, and none came with the checkpoint"):
        study.run(studyfiles.read(str(path))[1], "del", Store(tmp_path / "other"), until="unlearn")
    assert not Store(tmp_path / "other").list("stacks")  # before the oracles are trained


def test_the_forget_set_is_shown_without_training(tmp_path, release):
    asked = studyfiles.read(str(write_study(tmp_path / "own.toml", release, 2, [])))[1]
    store = Store(tmp_path / "store")
    held = study.choose_forget(asked, "own", store)
    assert held["count"] == len(held["ids"]) == sum(row["forgotten"] for row in held["classes"])
    assert held["settings"]["where"] == 'user == "u17"'
    assert not store.list("stacks")
    again = studyfiles.read(str(write_study(tmp_path / "again.toml", release, 2, [], forget={"ids": held["ids"]})))[1]
    assert study.choose_forget(again, "again", store)["hash"] == held["hash"]


def test_parts_of_a_split_are_disjoint_and_complete(tmp_path, release):
    """Invariants 1 to 4 of the protocols, on a real split."""
    setup = prepare(tmp_path, release)
    data = ground.make_data(setup)
    parts, split = ground.load_data(setup, data), ground.load_split(setup, data, ground.make_forget(setup, data))
    trained = set(parts.train.ids.tolist())
    sets = {part: set(getattr(split, part).ids.tolist()) for part in PARTS}
    assert sets["forget"] | sets["retain"] == trained
    assert sum(map(len, sets.values())) == len(set().union(*sets.values()))
    assert split.retain.labels.equal(split.retain.true_labels)


# -- what an accelerator does to mapped pixels, which is to copy them there ------------------------------


def test_keys_do_not_depend_on_where_pixels_lie(tmp_path, release, monkeypatch):
    """A worker computes keys from images on its device, the runner from images here."""
    path = write_study(tmp_path / "own.toml", release, 2, [{"name": "finetune", "epochs": 1}])
    asked = studyfiles.read(str(path))[1]
    study.run(asked, "own", Store(tmp_path / "here"), until="audit")
    ground._derive_split.cache_clear()
    monkeypatch.setattr(Mapped, "to", lambda self, device: self[:])
    study.run(asked, "own", Store(tmp_path / "there"), until="audit")
    for kind in ("stacks", "outputs"):
        here, there = (sorted(row.key for row in Store(tmp_path / where).list(kind)) for where in ("here", "there"))
        assert here == there
    ground._derive_split.cache_clear()


def test_parts_stay_together_where_one_is_too_large(tmp_path, release, monkeypatch):
    setup = prepare(tmp_path, release)
    data = ground.make_data(setup)
    forget = ground.make_forget(setup, data)
    ground._derive_split.cache_clear()
    monkeypatch.setattr(Mapped, "to", lambda self, device: self[:] if len(self) < 50 else self)
    split = ground.load_split(setup, data, forget)
    assert {type(getattr(split, part).pixels) for part in PARTS} == {Mapped}
    assert len(split.together()[0]) == sum(len(getattr(split, part)) for part in PARTS)
    ground._derive_split.cache_clear()


def test_what_a_net_sees_of_an_image_is_in_the_key(tmp_path):
    def key(view: int) -> str:
        return make.trained_key(prepare(tmp_path, tmp_path, dataset={"name": "imagenet100", "view": view}), "images", (0,))

    assert key(128) != key(96)


def test_members_from_one_original_have_seeds_of_their_own(tmp_path, release):
    images = _images(tmp_path, release)
    one = Stack.init(filing.architecture(prepare(tmp_path, release), images), (7,))
    for seeds in ((3,), (4, 5)):
        assert make._for_each(one, seeds, shared=True).seeds == seeds
        assert same(make._for_each(one, seeds, shared=True).rows([0]).params, one.params)
    assert make._for_each(one, (3,), shared=False) is one


def test_a_plan_without_the_pixels_knows_nothing(tmp_path, release):
    asked = studyfiles.read(str(write_study(tmp_path / "own.toml", release, 2, [])))[1]
    store = Store(tmp_path / "store")
    study.run(asked, "own", store, until="data")
    assert all(item.reused == 0 for item in plan(asked, store))
    ground._read_data.cache_clear()
    store.tidy({(row.kind, row.key) for row in store.list() if row.kind != "images"})
    assert all(item.reused is None for item in plan(asked, store))
