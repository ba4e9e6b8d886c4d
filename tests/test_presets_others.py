"""What is particular to the presets of Forget with Precision, SCRUB, SSD, the contest, EasyDUB and certified removal."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlearnlab import cli
from unlearnlab.forgetsets import IdsForget
from unlearnlab.planning import plan
from unlearnlab.spec import InputError, info
from unlearnlab.studyfiles import read, read_family

# protocols.md §1: fine class and the class of CIFAR-20 that it is part of
COARSE = {"rocket": 19, "mushroom": 4, "baby": 14, "lamp": 5, "sea": 10}
DIGITS = ("--set", "dataset=digits", "--set", 'partition={name = "stratified", train = 500, held_out = 297, test = 1000}', "--set", "net=small_cnn")


@pytest.mark.parametrize("name", ["fwp_cifar10", "fwp_agedb"])
@pytest.mark.parametrize("small", [False, True])
def test_forget_with_precision_allows_about_five_epochs(name: str, small: bool) -> None:
    study = read(name, small=small)[1]
    assert study.budget is not None
    assert study.budget.fraction_of_retrain * study.recipe.epochs == pytest.approx(5)
    assert max(getattr(method, "epochs", 0) for method in study.methods) == 5
    assert len(study.methods) == 8
    assert study.models == 80


def test_faces_are_weighted_by_class_everywhere() -> None:
    for small in (False, True):
        study = read("fwp_agedb", small=small)[1]
        assert study.recipe.class_weights == "inverse"
        assert {getattr(method, "class_weights", None) for method in study.methods} == {"inverse"}


def test_scrub_lowers_its_rate_where_its_notebook_does() -> None:
    for method in read("scrub_ic")[1].methods[:2]:
        assert [share * method.epochs for share in method.decay_at] == [5, 6, 9]


def test_unsir_is_told_the_class_of_the_sub_class() -> None:
    for small in (False, True):
        family = read_family("ssd_subclass", small=small)
        assert [one.rpartition(".")[2] for one in family.studies] == list(COARSE)
        for word, study in zip(COARSE, family.studies.values(), strict=True):
            label = study.forget.value // 2 if small else COARSE[word]
            assert [method.labels for method in study.methods if info(method).name == "unsir"] == [(label,)]
    assert len({study.forget.value for study in read_family("ssd_subclass", small=True).studies.values()}) == len(COARSE)


def test_contest_variants_differ_in_tuning_alone() -> None:
    default, tuned = read_family("contest_top7").studies.values()
    assert default.tune is None
    assert tuned.tune is not None
    assert default.methods == tuned.methods
    assert default.forget.count == round(50_000 * (1 - default.partition.held_out) / 10)  # a tenth of what is trained on


def test_a_linear_model_stays_one_when_made_small() -> None:
    pixels, features = read_family("certified_linear", small=True).studies.values()
    assert (info(pixels.net).name, pixels.net.hidden) == ("mlp", ())
    assert info(features.net).name == "small_cnn"
    assert (pixels.methods[0].features, features.methods[0].features) == ("pixels", "penultimate")


# ---- index files that others publish


def test_published_sets_are_planned_without_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    studies = read_family("easydub").studies
    files = [getattr(study.forget, "file", None) for study in studies.values()]
    assert files[:3] == [None] * 3
    assert files[3:] == [f"data/easydub/forget_set_{at}.npy" for at in range(4, 11)]
    assert sum(item.models for item in plan(studies["easydub.set4"], None) if item.stage == "oracle") == 100


def test_a_run_without_the_file_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    assert cli.call(["forget", "easydub.set7", *DIGITS]) == 2
    source = "forget_sets/cifar10/forget_set_7.npy of https://huggingface.co/datasets/easydub/EasyDUB-dataset"
    assert capsys.readouterr().err == f"unlearnlab: forget set 'ids': there is no data/easydub/forget_set_7.npy; put there {source}\n"


def test_where_a_file_comes_from_is_no_part_of_who_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("3\n1\n")
    assert IdsForget(file=str(path), origin="somebody's page").content() == IdsForget(ids=(1, 3)).content()
    path.unlink()
    with pytest.raises(InputError, match=r"there is no .*ids\.txt; put there somebody's page"):
        IdsForget(file=str(path), origin="somebody's page").content()
    with pytest.raises(InputError, match="cannot read the ids"):
        IdsForget(file=str(path)).content()
