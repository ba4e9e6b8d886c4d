"""How each artefact is made and named: a key holds everything the thing depends on, and every read is checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from toy import same
from unlearnlab import artefacts as make
from unlearnlab import filing, measuring
from unlearnlab import groundwork as ground
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import PARTS
from unlearnlab.spec import _registry, spec
from unlearnlab.stack import Stack
from unlearnlab.store import Store

FORGET = {"name": "random", "count": 12, "mislabelled": 6}
FINETUNE = {"name": "finetune", "epochs": 1}
METRICS = [{"name": "acc", "part": "test"}]


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> ground.Setup:
    return ground.Setup(
        str(tmp_path_factory.mktemp("store")),
        seed=0,
        dataset={"name": "digits"},
        partition={"name": "stratified", "train": 120, "held_out": 60, "test": 100},
        corruption={"name": "symmetric_noise"},
        forget=FORGET,
        original={"name": "trained"},
        net={"name": "mlp", "hidden": [12]},
        recipe={"name": "standard", "epochs": 1},
    )


@pytest.fixture(scope="module")
def data(setup) -> str:
    return ground.make_data(setup)


@pytest.fixture(scope="module")
def forget(setup, data) -> str:
    return ground.make_forget(setup, data)


@pytest.fixture(scope="module")
def original(setup, data) -> str:
    return make.make_trained(setup, data, None, (0, 1))


@pytest.fixture(scope="module")
def ensembles(setup, data, forget, original) -> measuring.Ensembles:
    oracle = make.make_trained(setup, data, forget, (100_000, 100_001))
    unlearned = make.make_unlearned(setup, data, forget, FINETUNE, make.Source(original, (0, 1)))
    for stack in (original, oracle, unlearned):
        measuring.make_outputs(setup, data, forget, stack, ("retain",) if stack == oracle else ("forget", "retain"))
    return measuring.Ensembles((original,), (oracle,), (unlearned,))


@pytest.fixture
def other_range() -> Iterator[None]:
    @spec("dataset", "test_other_range")
    class OtherRange:
        """The same digits, normalised."""

        mean: ClassVar[tuple[float, ...]] = (0.5,)
        std: ClassVar[tuple[float, ...]] = (0.25,)

        def __call__(self) -> Any:
            return Digits()()

    yield
    del _registry["dataset"]["test_other_range"]


# -- made once, named by what they depend on -------------------------------------------------------


def test_every_job_makes_its_thing_once(setup, data, forget, original, ensembles, monkeypatch):
    measured = measuring.make_metrics(setup, data, forget, ensembles, "finetune", METRICS)
    monkeypatch.setattr(Store, "_create", lambda *_: pytest.fail("made again"))
    assert ground.make_data(setup) == data
    assert ground.make_forget(setup, data) == forget
    assert make.make_trained(setup, data, None, (0, 1)) == original
    assert make.make_unlearned(setup, data, forget, FINETUNE, make.Source(original, (0, 1))) == ensembles.unlearned[0]
    split = ground.load_split(setup, data, forget).fingerprint
    assert measuring.make_outputs(setup, data, forget, original, ("forget", "retain")) == filing.outputs_key(original, split)
    assert measuring.make_metrics(setup, data, forget, ensembles, "finetune", METRICS) == measured


def test_keys_are_foretold(setup, data, forget, original, ensembles):
    """The study names artefacts before they are made; the jobs must agree."""
    train, split = ground.load_data(setup, data).train, ground.load_split(setup, data, forget)
    assert original == make.trained_key(setup, train.fingerprint, (0, 1))
    assert ensembles.oracles[0] == make.trained_key(setup, split.retain.fingerprint, (100_000, 100_001))
    assert ensembles.unlearned[0] == make.unlearned_key(setup, FINETUNE, make.Source(original, (0, 1)), split.fingerprint)
    assert measuring.make_metrics(setup, data, forget, ensembles, "finetune", METRICS) == measuring.metrics_key(
        setup, data, forget, ensembles, "finetune", METRICS
    )


def test_a_key_holds_all_that_a_training_depends_on(setup, other_range):
    keys = [
        make.trained_key(setup, "images", (0, 1)),
        make.trained_key(setup, "other images", (0, 1)),
        make.trained_key(setup, "images", (0, 2)),
        make.trained_key(setup, "images", (0,)),  # another chunk agrees only to float tolerance
        make.trained_key(replace(setup, net={"name": "mlp", "hidden": [13]}), "images", (0, 1)),
        make.trained_key(replace(setup, recipe={"name": "standard", "epochs": 2}), "images", (0, 1)),
        make.trained_key(replace(setup, dataset={"name": "test_other_range"}), "images", (0, 1)),  # the same pixels, another mean and sd
    ]
    assert len(set(keys)) == len(keys)
    assert make.trained_key(replace(setup, root="elsewhere", jobs_on="cuda", plugins=()), "images", (0, 1)) == keys[0]


def test_a_key_holds_all_that_an_unlearning_depends_on(setup):
    keys = [
        make.unlearned_key(setup, FINETUNE, make.Source("parent", (0, 1)), "split"),
        make.unlearned_key(setup, {**FINETUNE, "lr": 0.5}, make.Source("parent", (0, 1)), "split"),
        make.unlearned_key(setup, FINETUNE, make.Source("other", (0, 1)), "split"),
        make.unlearned_key(setup, FINETUNE, make.Source("parent", (0, 1)), "other"),
        make.unlearned_key(setup, FINETUNE, make.Source("parent", (1, 0)), "split"),
        make.unlearned_key(setup, FINETUNE, make.Source("parent", (0, 1), oracles=("oracle",)), "split"),
        make.unlearned_key(setup, FINETUNE, make.Source("parent", (0, 1), attribution="tau"), "split"),
        make.unlearned_key(replace(setup, recipe={"name": "standard", "epochs": 2}), FINETUNE, make.Source("parent", (0, 1)), "split"),  # `retrain` reads it
    ]
    assert len(set(keys)) == len(keys)


def test_a_key_holds_all_that_a_measurement_depends_on(setup):
    stacks = measuring.Ensembles(("a", "b"), ("c",), ("d",))
    keys = [
        measuring.metrics_key(setup, "data", "forget", stacks, "finetune", METRICS),
        measuring.metrics_key(setup, "other", "forget", stacks, "finetune", METRICS),
        measuring.metrics_key(setup, "data", "other", stacks, "finetune", METRICS),
        measuring.metrics_key(setup, "data", "forget", stacks, "original", METRICS),  # the checks know this name
        measuring.metrics_key(setup, "data", "forget", stacks, "finetune", [{"name": "acc", "part": "retain"}]),
        measuring.metrics_key(replace(setup, seed=1), "data", "forget", stacks, "finetune", METRICS),
        *(
            measuring.metrics_key(setup, "data", "forget", replace(stacks, **{who: ("e",)}), "finetune", METRICS)
            for who in ("originals", "oracles", "unlearned")
        ),
        measuring.metrics_key(setup, "data", "forget", replace(stacks, originals=("b", "a")), "finetune", METRICS),
    ]
    assert len(set(keys)) == len(keys)


def test_data_and_forget_sets_follow_their_seed(setup, data, forget):
    shifted = replace(setup, seed=1)
    other = ground.make_data(shifted)
    assert other != data
    assert ground.make_forget(shifted, other) != forget
    assert ground.make_forget(replace(setup, forget={**FORGET, "draw": 1}), data) != forget
    assert ground.make_data(replace(setup, corruption={"name": "none"})) != data


# -- what is read is what was written --------------------------------------------------------------


def test_data_comes_back_whole(setup, data, forget):
    parts, release = ground.load_data(setup, data), Digits()()
    for images in (parts.train, parts.held_out, parts.test):
        assert torch.equal(images.pixels, release.pixels[images.ids])
        assert torch.equal(images.true_labels, release.labels[images.ids])
    assert int(parts.train.mislabelled.sum()) == 24
    assert setup.store.manifest("data", data)["train"] == parts.train.fingerprint
    split = ground.load_split(setup, data, forget)
    assert setup.store.manifest("forget", forget)["split"] == split.fingerprint
    assert len(split.forget) == 12


def test_stacks_come_back_bit_for_bit(setup, data, tmp_path):
    images = ground.load_data(setup, data).train
    for net in ({"name": "mlp", "hidden": [12]}, {"name": "small_cnn", "norm": "batch"}):  # the latter with buffers
        shaped = replace(setup, net=net)
        stack = Stack.init(filing.architecture(shaped, images), (3, 9))
        filing.save_stack(tmp_path / "weights.safetensors", stack)
        back = filing.load_tensors(shaped, tmp_path, images)
        assert same(back.params, stack.params)
        assert same(back.buffers, stack.buffers)
        assert back.seeds == (3, 9)


def test_audits_share_originals_and_oracles(setup, data, forget, ensembles):
    """Else each method would read them, and test them against each other, anew."""
    first, second = (measuring.gather(setup, data, forget, stacks) for stacks in (ensembles, replace(ensembles, unlearned=ensembles.originals)))
    assert first.originals is second.originals
    assert first.oracles is second.oracles
    assert first.unlearned is not second.unlearned
    assert first.groups["mislabelled"].sum() + first.groups["clean"].sum() == 280
    assert first.originals.of("forget").member.all()
    assert not first.oracles.of("forget").member.any()
    assert [len(first.originals.of(part)) for part in PARTS] == [2] * 5


def test_facts_are_one_per_model(setup, data, forget, ensembles):
    facts = measuring.gather(setup, data, forget, ensembles).facts
    assert set(facts) == {
        "seconds",
        "retrain_seconds",
        "example_passes",
        "retrain_example_passes",
        "peak_bytes",
        "changed",
        "rel_l2",
        "sparsity_prunable",
        "sparsity_all",
    }
    assert all(fact.shape == (2,) for fact in facts.values())
    assert facts["example_passes"].tolist() == [3 * 108] * 2  # one epoch over retain: forward + 2 × backward
    assert (facts["changed"] > 0.5).all()
    assert ((facts["rel_l2"] > 0) & (facts["rel_l2"] < 1)).all()
    assert (facts["seconds"] > 0).all()
    assert (facts["peak_bytes"] > 0).all()


def test_memory_is_what_was_held_more_than_before_whatever_came_earlier():
    big = [torch.ones(30_000_000), *(torch.ones(5000) for _ in range(2000))]  # 160 MB, and gone again: a mark that is not set back would keep it
    del big
    grown = make.growth("cpu")
    held = torch.ones(5_000_000)
    most = grown()
    if most is None:
        pytest.skip("this system does not tell")
    assert held.nbytes * 0.9 < most < held.nbytes * 2


def test_models_that_diverge_are_stored_and_counted(setup, data, forget, original):
    """Their distance is no number, and JSON has none for that."""
    ruin = {"name": "gradient_ascent", "lr": 1e9, "clip": 0.0}
    made = make.make_unlearned(setup, data, forget, ruin, make.Source(original, (0, 1)))
    assert setup.store.manifest("stacks", made)["rel_l2"] == [None, None]
    assert [found.seed for found in filing.divergences(setup, made)] == [0, 1]
    assert all(not math.isfinite(found.loss) for found in filing.divergences(setup, made))
    facts = measuring._facts(setup, measuring.Ensembles((original,), (original,), (made,)))
    assert facts["rel_l2"].isnan().all()


@pytest.mark.parametrize(
    "read",
    [
        ground.load_data,
        lambda setup, made: ground.load_split(setup, made, made),
        lambda setup, made: filing.load_outputs(setup, [made]),
        measuring.load_results,
    ],
)
def test_what_is_not_there_is_named(setup, read):
    with pytest.raises(FileNotFoundError, match=r"/none is not in the store .*; run the study again"):
        read(setup, "none")


def test_every_read_is_checked(setup, data, forget, ensembles, capsys):
    """Also of what this process has read before, and holds in memory."""
    measured = measuring.make_metrics(setup, data, forget, ensembles, "finetune", METRICS)
    split = ground.load_split(setup, data, forget)
    seen = filing.outputs_key(ensembles.originals[0], split.fingerprint)

    def damage(path: Path) -> None:
        body = bytearray(path.read_bytes())
        body[-1] ^= 1
        path.write_bytes(body)

    reads = {
        f"metrics/{measured}/results.json": lambda: measuring.load_results(setup, measured),
        f"outputs/{seen}/logits.safetensors": lambda: filing.load_outputs(setup, [seen]),
        f"stacks/{ensembles.originals[0]}/init.safetensors": lambda: filing.load_stack(setup, ensembles.originals[0], split.retain),
        f"forget/{forget}/ids.json": lambda: ground.load_split(setup, data, forget),
        f"data/{data}/test.safetensors": lambda: ground.load_data(setup, data),
    }
    for name, read in reads.items():
        read()
        damage(Path(setup.root) / name)
        with pytest.raises(FileNotFoundError, match=name.rpartition("/")[0]):
            read()
        assert f"{name.rpartition('/')[0]} is damaged" in capsys.readouterr().err
    assert ground.make_data(setup) == data  # and all can be made again, to the same images
    assert ground.make_forget(setup, data) == forget
    assert ground.load_split(setup, data, forget).fingerprint == split.fingerprint


def test_making_a_net_leaves_the_global_generator_alone(setup, data):
    images = ground.load_data(setup, data).train
    before = torch.get_rng_state()
    filing.architecture(setup, images)
    assert torch.equal(torch.get_rng_state(), before)
