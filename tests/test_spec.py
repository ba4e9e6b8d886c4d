"""Settings as values: registry, checks, tables, keys."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unlearnlab.spec as registry
from unlearnlab.spec import InputError, Setting, build, digest, fields, identity, info, key, lookup, names, spec, suggest, to_dict

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def made() -> Iterator[SimpleNamespace]:
    """Specs of our own, filed under an existing kind and taken away afterwards."""

    @spec("score", "test_leaf", version=3, paper="arXiv:0000.00000")
    class Leaf:
        """What it does, in a line.

        And more.
        """

        lr: Annotated[float, Setting("learning rate", symbol="η", gt=0, le=1)] = 0.1
        epochs: Annotated[int, Setting("passes", ge=1)] = 5
        mode: Annotated[Literal["mean", "max"], Setting("reduction")] = "mean"
        loud: bool = False
        note: str | None = None
        widths: Annotated[tuple[int, ...], Setting("units", ge=1)] = (4, 2)
        crop: tuple[float, float] = (0.0, 1.0)
        share: Annotated[int | float, Setting("number or share", ge=0)] = 1
        free: float = 0.0

        def __post_init__(self) -> None:
            if self.epochs == 13:
                raise InputError("never 13")

    @spec("score", "test_tree")
    class Tree:
        must: Annotated[int, Setting("has no default")]
        child: Annotated[Any, Setting("another score", kind="score")] = Leaf()
        others: Annotated[tuple[Any, ...], Setting("more scores", kind="score")] = ()
        maybe: Annotated[Any | None, Setting("or none", kind="score")] = None

    yield SimpleNamespace(Leaf=Leaf, Tree=Tree)
    for name in ("test_leaf", "test_tree"):
        del registry._registry["score"][name]


def refuses(make: Any, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_specs_are_frozen_values(made: SimpleNamespace) -> None:
    leaf = made.Leaf(lr=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        leaf.lr = 0.2
    assert leaf == made.Leaf(lr=0.5) != made.Leaf()
    assert len({leaf, made.Leaf(lr=0.5)}) == 1


def test_registry_knows_name_version_paper_and_summary(made: SimpleNamespace) -> None:
    assert lookup("score", "test_leaf") is made.Leaf
    assert {"test_leaf", "test_tree"} <= set(names("score"))
    held = info(made.Leaf())
    assert (held.kind, held.name, held.version, held.paper, held.summary) == ("score", "test_leaf", 3, "arXiv:0000.00000", "What it does, in a line.")
    assert [(field.name, field.setting.symbol) for field in fields(made.Leaf)][:2] == [("lr", "η"), ("epochs", "")]
    assert fields(made.Tree)[0].default is dataclasses.MISSING
    refuses(lambda: info(3), "registered spec")


def test_a_name_belongs_to_one_class(made: SimpleNamespace) -> None:
    def again() -> None:
        @spec("score", "test_leaf")
        class Other:
            pass

    refuses(again, "score 'test_leaf' is already registered by", "Leaf")
    assert lookup("score", "test_leaf") is made.Leaf


def test_unknown_words_come_with_a_suggestion(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses(lambda: build("score", {"name": "test_leaf", "epoch": 3}), "score 'test_leaf' has no setting 'epoch'; did you mean 'epochs'?")
    refuses(lambda: build("score", "test_laef"), "unknown score 'test_laef'; did you mean 'test_leaf'?")
    refuses(lambda: build("scores", "x"), "unknown kind 'scores'; did you mean 'score'?")
    refuses(lambda: build("score", {"name": "test_leaf", "mode": "men"}), "must be one of: mean, max; did you mean 'mean'?")
    refuses(lambda: build("score", {"name": "test_tree", "must": 1, "child": {"name": "test_leaf", "epoch": 3}}), "no setting 'epoch'; did you mean 'epochs'?")
    monkeypatch.setitem(registry.ALIASES, "score", {"LF": "test_leaf"})
    refuses(lambda: build("score", "LF"), "here it is called 'test_leaf'")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": "fast"}, ["test_leaf", "lr = 'fast'", "wrong type", "a number"]),
        ({"epochs": 2.0}, ["epochs = 2.0", "a whole number"]),
        ({"epochs": True}, ["epochs = True", "a whole number"]),
        ({"lr": True}, ["lr = True", "a number"]),
        ({"loud": 1}, ["loud = 1", "true or false"]),
        ({"note": 1}, ["note = 1", "text"]),
        ({"widths": 3}, ["widths = 3", "a list"]),
        ({"widths": "12"}, ["widths = '12'", "a list"]),
        ({"widths": [2, 0]}, ["widths = 0", "out of range", "at least 1"]),
        ({"crop": [1.0]}, ["crop = [1.0]", "a list of 2"]),
        ({"lr": 0}, ["lr = 0.0", "out of range", "more than 0 and at most 1", "learning rate"]),
        ({"lr": 30}, ["lr = 30.0", "at most 1"]),
        ({"lr": math.nan}, ["lr = nan", "out of range"]),
        ({"free": math.nan}, ["free = nan", "a finite number"]),
        ({"free": math.inf}, ["free = inf", "a finite number"]),
        ({"share": "half"}, ["share = 'half'", "a number"]),
        ({"share": -1}, ["share = -1", "at least 0"]),
        ({"epochs": 13}, ["never 13"]),
    ],
)
def test_bad_settings_are_refused_in_words(made: SimpleNamespace, settings: dict[str, Any], words: list[str]) -> None:
    refuses(lambda: build("score", {"name": "test_leaf", **settings}), *words)
    refuses(lambda: made.Leaf(**settings), *words)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("test_tree", ["needs the setting 'must'", "has no default"]),
        ({"must": 1}, ["needs name"]),
        (7, ["expected a score", "7"]),
        ({"name": "test_tree", "must": 1, "child": registry.Setting()}, ["expected a score"]),
        ({"name": "test_tree", "must": 1, "others": "test_leaf"}, ["others", "a list"]),
    ],
)
def test_bad_tables_are_refused_in_words(made: SimpleNamespace, table: Any, words: list[str]) -> None:
    refuses(lambda: build("score", table), *words)


def test_a_spec_of_another_kind_is_refused(made: SimpleNamespace) -> None:
    from unlearnlab.optimizers import Sgd

    refuses(lambda: build("score", Sgd()), "expected a score, got the optimizer 'sgd'")


def test_build_is_recursive_over_tables_names_and_instances(made: SimpleNamespace) -> None:
    leaf = made.Leaf(lr=1)
    table = {"name": "test_leaf", "lr": 1}
    built = build("score", {"name": "test_tree", "must": 1, "child": table, "others": ["test_leaf", leaf, table], "maybe": None})
    assert built == made.Tree(must=1, child=leaf, others=(made.Leaf(), leaf, leaf))
    assert build("score", built) is built
    assert build("score", "test_leaf") == made.Leaf()


def test_numbers_are_taken_for_what_they_are(made: SimpleNamespace) -> None:
    assert type(made.Leaf(lr=1).lr) is float
    assert key(made.Leaf(lr=1)) == key(made.Leaf(lr=1.0))
    assert key(made.Leaf(free=-0.0)) == key(made.Leaf(free=0.0))  # equal specs, equal keys
    assert key(made.Leaf(lr=np.float64(0.5), epochs=np.int64(3))) == key(made.Leaf(lr=0.5, epochs=3))
    assert type(made.Leaf(share=0.5).share) is float
    assert type(made.Leaf(share=2).share) is int


settings = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.floats(0, 1, exclude_min=True) | st.just(1),
        "epochs": st.integers(1, 10**6).filter(lambda n: n != 13),
        "mode": st.sampled_from(["mean", "max"]),
        "loud": st.booleans(),
        "note": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        "widths": st.lists(st.integers(1, 99), max_size=4),
        # 1 image and a share of 1.0 are not the same setting, though Python calls them equal: their keys differ
        "share": st.integers(0, 9) | st.floats(0, 1e300).filter(lambda x: not x.is_integer()),
        "free": st.floats(allow_nan=False, allow_infinity=False),
    },
)


@given(one=settings, two=settings)
def test_round_trip(made: SimpleNamespace, one: dict[str, Any], two: dict[str, Any]) -> None:
    a, b = made.Leaf(**one), made.Leaf(**two)
    for value in (a, made.Tree(must=2, child=a, others=(b, a), maybe=b)):
        through_json = json.loads(json.dumps(to_dict(value)))  # as a TOML file would hold it: lists for tuples
        for again in (build("score", to_dict(value)), build("score", through_json)):
            assert again == value
            assert hash(again) == hash(value)
            assert key(again) == key(value)
    assert (a == b) == (key(a) == key(b))


def test_the_key_changes_with_every_setting(made: SimpleNamespace) -> None:
    other: dict[str, Any] = {
        "lr": 0.2,
        "epochs": 6,
        "mode": "max",
        "loud": True,
        "note": "",
        "widths": (2, 4),
        "crop": (0.0, 2.0),
        "share": 2,
        "free": 1e-300,
    }
    assert set(other) == {field.name for field in fields(made.Leaf)}
    changed = [made.Leaf(), *(made.Leaf(**{name: value}) for name, value in other.items())]
    trees = [made.Tree(must=1, child=leaf) for leaf in changed] + [
        made.Tree(must=2),
        made.Tree(must=1, others=(changed[1],)),
        made.Tree(must=1, maybe=changed[0]),
    ]
    keys = [key(value) for value in changed + trees]
    assert len(set(keys)) == len(keys)
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in keys)


def test_the_key_changes_with_version_kind_name_parents_and_seeds_and_nothing_else(made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = made.Leaf()
    plain = key(leaf, parents=["a", "b"], seeds=[1, 2])
    assert plain == key(made.Leaf(), seeds=[1, 2], parents=["a", "b"]) != key(leaf)
    different = [key(leaf, parents=["b", "a"], seeds=[1, 2]), key(leaf, parents=["a", "b"], seeds=[2, 1]), key(leaf, parents=["a", "b"], seeds=[1])]
    for field, value in (("version", 4), ("kind", "metric"), ("name", "another")):
        with monkeypatch.context() as patch:
            patch.setattr(made.Leaf, "__spec__", dataclasses.replace(made.Leaf.__spec__, **{field: value}))
            different.append(key(leaf, parents=["a", "b"], seeds=[1, 2]))
    assert len({plain, *different}) == len(different) + 1
    monkeypatch.setattr(made.Leaf, "__spec__", dataclasses.replace(made.Leaf.__spec__, paper="", summary="reworded"))
    assert key(leaf, parents=["a", "b"], seeds=[1, 2]) == plain
    assert identity(leaf)["settings"]["widths"] == [4, 2]
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"loss": math.nan})


def run(code: str, **env: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **env}).stdout.strip()


def test_the_key_is_the_same_in_every_process() -> None:
    code = "from unlearnlab.train import Recipe; from unlearnlab.spec import key; print(key(Recipe(lr=0.3), seeds=[1], data={'b': 1, 'a': 2}))"
    from unlearnlab.train import Recipe

    here = key(Recipe(lr=0.3), data={"a": 2, "b": 1}, seeds=[1])
    assert run(code, PYTHONHASHSEED="1") == here
    assert run(code, PYTHONHASHSEED="2") == here


def test_importing_spec_imports_nothing_heavy() -> None:
    assert run("import sys, unlearnlab.spec; print([name for name in ('torch', 'numpy', 'scipy', 'sklearn') if name in sys.modules])") == "[]"


def test_golden_keys() -> None:
    """A changed default or version shows in review: the keys of all registered specs with default settings."""
    held = json.loads((HERE / "golden" / "keys.json").read_text())
    found = runpy.run_path(str(HERE / "golden" / "make.py"))["default_keys"]()
    differing = sorted(name for name in held.keys() | found.keys() if held.get(name) != found.get(name))
    assert not differing, f"keys of {', '.join(differing)} changed: everything stored under them is made anew; if that is meant: python tests/golden/make.py"


def test_a_name_that_is_a_path_chooses_who_reads_it(tmp_path) -> None:
    for path, name in (("a.npz", "npz"), ("b/c.csv", "csv"), ("d/e.parquet", "hf"), ("./photos", "image_folder")):
        made = build("dataset", path)
        assert (info(made).name, made.path) == (name, path)
    sized = build("dataset", {"name": "photos/", "size": 32})
    assert (info(sized).name, sized.path, sized.size) == ("image_folder", "photos/", 32)
    assert info(build("net", "package.models:Net")).name == "module"
    with pytest.raises(InputError, match=r"unknown dataset 'photos' .*; a path must hold '.npz' or '.csv' or '.parquet' or '/'\)"):
        build("dataset", "photos")


def test_a_table_without_a_name_takes_the_usual_one() -> None:
    study = {"title": "x", "dataset": "digits", "partition": "stratified", "net": "mlp", "recipe": "standard", "methods": [], "metrics": []}
    made = build("study", {"name": "study", **study, "forget": {"ids": [3, 4]}, "original": {"checkpoint": "a.pt"}})
    assert info(made.forget).name == "ids"
    assert made.forget.ids == (3, 4)
    assert info(made.original).name == "checkpoint"
    with pytest.raises(InputError, match="forget 'ids' has no setting 'count'"):
        build("study", {"name": "study", **study, "forget": {"count": 3}})


def test_the_head_of_a_dotted_name_suggests_all_that_go_on_from_it() -> None:
    known = ["lira.online", "lira.offline", "ulira.auc", "tow"]
    assert suggest("lira", known) == "; did you mean 'lira.online' or 'lira.offline'?"
    assert suggest("toww", known) == "; did you mean 'tow'?"
    assert suggest("zzz", known) == ""
