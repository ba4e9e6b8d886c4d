"""Reading studies from files: variants, changes for many at once, where settings come from, the small form."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w

from unlearnlab import studyfiles, terms
from unlearnlab.chain import run_requests
from unlearnlab.spec import InputError, build, to_dict
from unlearnlab.store import Store
from unlearnlab.study import run
from unlearnlab.studyfiles import presets, read, read_family

DIGITS = {
    "title": "a study",
    "dataset": "digits",
    "partition": {"name": "stratified"},
    "net": "small_cnn",
    "recipe": {"name": "standard", "epochs": 3},
    "forget": {"name": "random", "count": 60},
    "methods": [{"name": "finetune", "lr": 0.02}, {"name": "salun", "budget": 0.3}, "ssd"],
}


def write(folder: Path, name: str = "mine", **more: object) -> str:
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps({**DIGITS, **more}))
    return str(path)


# ---- variants


def test_a_file_of_variants_is_a_family(tmp_path: Path) -> None:
    file = write(
        tmp_path, variants={"dense": {}, "sparse": {"prune": {"name": "random", "sparsity": 0.5}}, "more": {"forget.count": 90, "methods.salun.lr": 0.5}}
    )
    family = read_family(file)
    assert list(family.studies) == ["mine.dense", "mine.sparse", "mine.more"]
    dense, sparse, more = family.studies.values()
    assert dense.prune is None
    assert sparse.prune.sparsity == 0.5
    assert sparse.forget.count == 60
    assert more.forget.count == 90
    assert more.methods[1].lr == 0.5
    assert dense.methods[1].lr != 0.5


def test_one_variant_by_its_name(tmp_path: Path) -> None:
    file = write(tmp_path, variants={"few": {"forget.count": 20}, "many": {"forget.count": 80}})
    name, study = read(f"{file}.many")
    assert (name, study.forget.count) == ("mine.many", 80)
    assert list(read_family(f"{file}.few").studies) == ["mine.few"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("{file}.mny", r"'mine' has no variant 'mny'; did you mean 'many'\?; it has: few, many"),
        ("{file}", r"holds 2 studies, and one is expected here; name one of: \S+mine.toml.few, \S+mine.toml.many"),
        ("digits-small", r"'digits-small' is what the small form of a study is kept under; to run it: unlearnlab run digits --small$"),
        ("trojan-small.dense", "to run it: unlearnlab run trojan.dense --small$"),
        ("digits.dense", r"'digits' has no variant 'dense'; it has: none"),
        ("digitz.dense", r"unknown study 'digitz.dense'"),
    ],
)
def test_wrong_names_of_variants(tmp_path: Path, asked: str, words: str) -> None:
    file = write(tmp_path, variants={"few": {"forget.count": 20}, "many": {"forget.count": 80}})
    with pytest.raises(InputError, match=words):
        read(asked.format(file=file))


def test_a_bad_variant_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variant 'odd' of mine.toml: cannot change 'methods.scrub.lr': there is no 'scrub'"):
        read_family(write(tmp_path, variants={"odd": {"methods.scrub.lr": 1.0}}))
    with pytest.raises(InputError, match=r"the variants of .*mine.toml must be tables of changes"):
        read_family(write(tmp_path, variants={"odd": 3}))


@pytest.mark.parametrize("name", ["a/b", "..", "v1.5", ""])
def test_names_of_variants_are_fit_for_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a variant"):
        read_family(write(tmp_path, variants={name: {}, "x": {}}))


def test_a_variant_that_no_longer_is_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"variant 'odd' of mine.toml: study 'study': models = 'a' has the wrong type"):
        read_family(write(tmp_path, variants={"odd": {"models": "a"}}))
    # an unquoted path is a table in TOML
    with pytest.raises(InputError, match=r"variant 'odd' of mine.toml: .* has no setting 'count'.*; a table stands for the whole of forget: .*quote the path"):
        read_family(write(tmp_path, variants={"odd": {"forget": {"count": 20}}}))


def test_changes_apply_to_every_variant_and_last(tmp_path: Path) -> None:
    file = write(tmp_path, variants={"few": {"forget.count": 20}, "many": {"forget.count": 80}})
    family = read_family(file, ["forget.count=33", "models=5"])
    assert [(one.forget.count, one.models) for one in family.studies.values()] == [(33, 5), (33, 5)]


# ---- one change for many


def test_a_star_changes_all_that_have_the_setting() -> None:
    _, study = read("digits", ["methods.*.epochs=2", "methods.*.batch=25"])
    for method in study.methods:
        assert getattr(method, "epochs", 2) == 2
        assert getattr(method, "batch", 25) == 25
    assert sum(hasattr(method, "epochs") for method in study.methods) >= 6


def test_a_star_reaches_into_methods_of_methods() -> None:
    _, study = read("digits_rum", ["methods.*.refine.score=confidence", "methods.*.each.*.batch=30", "forget.score=confidence"])
    refined = [method for method in study.methods if terms.info(method).name == "rum"]
    assert {method.refine.score for method in refined if terms.info(method.refine).name == "by_score"} == {"confidence"}
    assert {one.batch for method in refined for one in method.each if hasattr(one, "batch")} == {30}


def test_a_star_that_meets_nothing() -> None:
    with pytest.raises(InputError, match=r"cannot change 'methods.\*.epoch': nothing there has a setting 'epoch'"):
        read("digits", ["methods.*.epoch=2"])


def test_two_of_a_name_may_be_changed_together() -> None:
    with pytest.raises(InputError, match=r"or all with methods.\*.refine"):
        read("digits_rum", ["methods.rum.refine=shuffle"])


def test_a_list_of_nameless_tables_is_no_traceback() -> None:
    for change in ("methods.finetune.lr=2", "methods.*.lr=2"):
        with pytest.raises(InputError):
            read("digits", ["methods=[{lr=1}]", change])


def test_what_is_not_there_is_given_first() -> None:
    with pytest.raises(InputError, match=r"the study has no 'budget' to change; give it first, such as --set budget=…"):
        read("digits", ["budget.fraction_of_retrain=0.1"])
    assert read("digits", ["budget=retraining", "budget.fraction_of_retrain=0.1"])[1].budget.fraction_of_retrain == 0.1


# ---- where settings come from

PROVENANCE = [
    {"what": "published", "settings": ["recipe", "methods.finetune.lr"], "source": "a paper"},
    {"what": "ours", "settings": ["methods.salun"], "source": "a guess"},
    {"what": "tuned", "settings": ["methods.salun.budget"], "source": "other forget sets"},
]


def test_the_last_word_counts(tmp_path: Path) -> None:
    _, study = read(write(tmp_path, provenance=PROVENANCE))
    said = {
        path: terms.origin(path.split("."), study.provenance) for path in ("methods.salun.lr", "methods.salun.budget", "methods.ssd.selection", "recipe.epochs")
    }
    assert [one and one.what for one in said.values()] == ["ours", "tuned", None, "published"]


def test_marks_of_rows(tmp_path: Path) -> None:
    _, study = read(write(tmp_path, provenance=PROVENANCE))
    finetune, salun, ssd = study.methods
    assert [terms.mark(one, study.provenance) for one in (finetune, salun, ssd)] == ["published", "tuned elsewhere", "default"]
    assert terms.mark(build("method", {"name": "ssd", "selection": 2.0}), study.provenance) == "from the file"  # nobody says where it comes from
    both = build("method", {"name": "finetune", "lr": 0.02, "epochs": 3})
    assert terms.mark(both, study.provenance) == "published in part"


def test_a_change_is_told(tmp_path: Path) -> None:
    _, study = read(write(tmp_path, provenance=PROVENANCE), ["methods.finetune.lr=0.7"])
    assert terms.mark(study.methods[0], study.provenance) == "changed here"
    told = terms.told(study)
    assert any(line.startswith("changed: methods.finetune.lr = 0.7") for line in told)
    assert not any(line.startswith("published") and "finetune" in line for line in told)


def test_another_spec_is_a_change_of_all_its_settings(tmp_path: Path) -> None:
    file = write(tmp_path, provenance=[{"what": "published", "settings": ["methods", "recipe"], "source": "a paper"}])
    _, study = read(file, ["methods.*.name=ssd", "recipe.optimizer.name=sgd"])
    assert [terms.mark(one, study.provenance) for one in study.methods] == ["changed here"] * 3
    assert terms.origin(("recipe", "optimizer", "momentum"), study.provenance).what == "changed"  # though it is the default's name


def test_provenance_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[\[provenance\]\] speaks of 'methods.scrub.lr', which this study does not have"):
        read(write(tmp_path, provenance=[{"what": "published", "settings": ["methods.scrub.lr"]}]))
    with pytest.raises(InputError, match="what = 'guessed' must be one of: published, ours"):
        read(write(tmp_path, provenance=[{"what": "guessed", "settings": ["recipe"]}]))
    # of a variant alone
    read_family(write(tmp_path, provenance=[{"what": "published", "settings": ["prune.sparsity"]}], variants={"a": {}, "b": {"prune": "random"}}))


def test_defaults_and_what_differs_from_them() -> None:
    method = build("method", {"name": "salun", "budget": 0.3, "schedule": {"name": "cosine"}})
    found = {".".join(path): default for path, _, default in terms.leaves(method)}
    assert not found["budget"]
    assert not found["schedule.name"]
    assert found["lr"]
    assert all(default for _, _, default in terms.leaves(build("method", "salun")))


# ---- the small form


def test_small_keeps_every_row_and_metric_and_says_so(tmp_path: Path) -> None:
    name, study = read("digits_rum", small=True)
    _, whole = read("digits_rum")
    assert name == "digits_rum-small"
    assert list(study.rows()) == list(whole.rows())
    assert [terms.info(one).name for one in study.metrics] == [terms.info(one).name for one in whole.metrics]
    assert {terms.mark(one, study.provenance) for one in study.methods if hasattr(one, "epochs")} == {"scaled down"}
    assert study.scored()["memorisation"].models < whole.scored()["memorisation"].models


def test_small_is_small_wherever_it_starts_from(tmp_path: Path) -> None:
    big = {
        "dataset": "cifar10",
        "partition": {"name": "released"},
        "net": "resnet18",
        "recipe": "unlearn_sparse",
        "forget": {"name": "random", "count": 4500},
        "methods": [{"name": "localised", "where": "deepest", "method": {"name": "finetune", "epochs": 40, "batch": 512}}, {"name": "cf_k", "epochs": 90}],
        "prune": "omp",
        "models": 80,
    }
    _, study = read(write(tmp_path, **big), small=True)
    assert terms.info(study.dataset).name == "digits"
    assert terms.info(study.net).name == "small_cnn"
    assert study.forget.count == 50  # 4 500 of 45 000, as 50 of 500
    assert study.recipe.rewind == 1
    assert study.recipe.augment == ()
    assert study.recipe.optimizer == build("recipe", "unlearn_sparse").optimizer
    assert study.methods[0].method.epochs == 5
    assert study.methods[0].method.batch == 50
    assert study.methods[1].epochs == 5
    assert study.models < 80
    assert terms.info(study.prune).name == "omp"


RELEASED = {"partition": {"name": "released"}, "net": "resnet18", "recipe": "unlearn_sparse"}
SPARE = {"name": "elsewhere", "like": {"name": "interclass_confusion", "a": 3, "b": 13, "count": 4000}}
RUM_GIVEN = {"name": "rum", "refine": {"name": "given", "file": "of-cifar.json"}, "each": ["finetune", "salun"]}


@pytest.mark.parametrize(
    "more",
    [
        {"dataset": "cifar10", "forget": {"name": "class", "label": "cat"}},
        {"dataset": "cifar100", "forget": {"name": "class", "label": 47, "drop_from_test": True}},
        {"dataset": "cifar100", "forget": {"name": "partial_class", "labels": [17, 27, "bee"], "count": 900}},
        {"dataset": "cifar10", "forget": {"name": "partial_class", "labels": [2], "count": 4500}},
        {"dataset": "cifar10", "corruption": "symmetric_noise", "forget": {"name": "random", "count": 4500, "mislabelled": 1000}},
        {"dataset": "cifar10", "corruption": {"name": "symmetric_noise", "share": 0.02}, "forget": {"name": "random", "count": 900, "mislabelled": 900}},
        {"dataset": "cifar100", "corruption": {"name": "interclass_confusion", "a": 13, "b": 3, "count": 450}, "forget": "mislabelled"},
        {"dataset": "cifar10", "corruption": {"name": "interclass_confusion", "count": 4050}, "forget": "mislabelled"},
        {"dataset": "cifar100", "corruption": {"name": "backdoor", "target": 17}, "forget": "backdoor"},
        {"dataset": "cifar10", "corruption": {"name": "backdoor", "share": 0.001}, "forget": "backdoor"},
        {"dataset": "cifar20", "corruption": {"name": "backdoor", "target": 7}, "forget": {"name": "sub_class", "value": "rocket"}},
        {"dataset": "cifar100", "forget": {"name": "elsewhere", "like": {"name": "class", "label": 17}}},
        {"dataset": "cifar100", "corruption": SPARE, "forget": "mislabelled"},
        {"dataset": "utkface", "forget": {"name": "attribute", "where": "age < 20"}},
        {"dataset": "imagenet100", "forget": {"name": "ids", "file": "nowhere.npy"}},
        {"dataset": "of-my-own.npz", "partition": "stratified", "forget": {"name": "class", "label": "b"}},
        {"dataset": "photos/", "forget": {"name": "random", "count": 20}},
        {"dataset": "cifar10", "prune": "omp", "recipe": "standard", "original": {"name": "checkpoint", "checkpoint": "mine.pt"}},
        {"dataset": "cifar10", "methods": [RUM_GIVEN]},
        {"dataset": "cifar20", "requests": {"name": "in_order", "sets": [{"name": "sub_class", "value": "rocket"}]}, "forget": {"name": "random", "count": 90}},
    ],
    ids=lambda more: ",".join(f"{one}" for one in more.values())[:60],
)
def test_small_finds_whom_to_forget_whatever_the_study_names(tmp_path: Path, more: dict[str, object]) -> None:
    """Classes by name or beyond the tenth, more images than there are, files of another release: data and forget set are made."""
    name, study = read(write(tmp_path, **RELEASED | more), small=True)
    (run if study.requests is None else run_requests)(study, name, Store(tmp_path / "store"), until="data")
    assert list((tmp_path / "store" / "forget").iterdir())


def test_small_masks_are_not_those_of_another_net(tmp_path: Path) -> None:
    held = [{"name": "localised", "where": {"name": which, "path": "nowhere.pt"}, "method": "finetune"} for which in ("legacy_file", "stored")]
    _, study = read(write(tmp_path, methods=held), small=True)
    assert {terms.info(one.where).name for one in study.methods} == {"grad_param"}


def test_small_groups_by_score_and_entanglement_fit(tmp_path: Path) -> None:
    file = {"name": "file", "path": "nowhere.npz"}
    _, study = read(write(tmp_path, scores=["memorisation", file], forget={"name": "by_score", "score": "file", "band": "unscored"}), small=True)
    assert (list(study.scored()), study.forget.band) == (["memorisation"], "low")
    _, study = read(write(tmp_path, forget={"name": "by_entanglement", "count": 20000}), small=True)
    assert study.forget.count * study.forget.parts <= 500
    _, study = read(write(tmp_path, forget={"name": "by_score", "band": "mix", "count": 20000}), small=True)
    assert study.forget.count == 120


def test_small_nets_have_few_blocks(tmp_path: Path) -> None:
    _, study = read(write(tmp_path, methods=[{"name": "cf_k", "k": 30}, {"name": "eu_k", "k": 0}, {"name": "unsir", "labels": [47]}]), small=True)
    assert [one.k for one in study.methods[:2]] == [1, 0]
    assert study.methods[2].labels == (7,)


def test_small_rates_go_with_the_optimiser(tmp_path: Path) -> None:
    rates = [read(write(tmp_path, recipe={"name": "standard", "optimizer": name}), small=True)[1].recipe.lr for name in ("sgd", "adamw")]
    assert rates == [0.1, 0.003]


def test_small_on_data_of_ones_own_does_not_say_digits(tmp_path: Path) -> None:
    _, study = read(write(tmp_path), ["dataset=photos/"], small=True)
    assert terms.info(study.dataset).name == "image_folder"
    assert study.title == "a study (small form)"


def test_small_form_of_the_small_form_is_itself() -> None:
    for name in presets():
        for study in read_family(name, small=True).studies.values():
            again = build("study", studyfiles.shrink(to_dict(study)))
            assert [again.forget, again.methods, again.recipe, again.models] == [study.forget, study.methods, study.recipe, study.models], name


def test_changes_come_after_the_small_form() -> None:
    _, study = read("digits", ["models=4", "recipe.epochs=2"], small=True)
    assert (study.models, study.recipe.epochs) == (4, 2)


def test_digits_pairs_is_digits_with_sub_classes() -> None:
    digits, pairs = build("dataset", "digits")(), build("dataset", "digits_pairs")()
    assert pairs.classes == 5
    assert bool((pairs.labels == digits.labels // 2).all())
    assert bool((pairs.pixels == digits.pixels).all())
    assert bool((pairs.columns["fine"].values == digits.labels).all())
    threes = build("forget", {"name": "sub_class", "value": 3})(pairs, 0)
    assert len(threes) == int((digits.labels == 3).sum())
