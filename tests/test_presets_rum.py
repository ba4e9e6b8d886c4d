"""The presets of DEL and RUM: what each of their commands needs, and what ties their settings together."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlearnlab.comparing import _alike
from unlearnlab.finished import Finished
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.rum import Rum
from unlearnlab.spec import info, within
from unlearnlab.store import Store
from unlearnlab.studyfiles import presets, read, read_family

DEL = ("del_cifar_iid", "del_cifar_noniid", "del_imagenet100", "del_svhn_vit")


@pytest.mark.parametrize("name", DEL)
def test_del_forgets_a_tenth_of_as_many_images_as_the_release_trains_on(name: str) -> None:
    _, study = read(name)
    facts = study.dataset.facts
    train, held_out, test = study.partition.sizes(facts)
    assert train == facts.train
    assert study.forget.count in (train // 10, -(-train // 10))
    assert train + held_out + test == facts.train + facts.test


@pytest.mark.parametrize("name", DEL)
def test_del_compares_the_same_localisers_with_both_algorithms_at_the_budget_of_del(name: str) -> None:
    _, study = read(name)
    rows = study.rows()
    pairs = [(info(one.where).name, info(one.method).name) for one in rows.values() if isinstance(one, Localised)]
    reset, relabelled = ([where for where, method in pairs if method == wanted] for wanted in ("reset_finetune", "random_label"))
    assert relabelled == ["weighted_grad_channel", *reset]  # which, with the first, is `del` itself
    assert len(set(reset)) == len(reset) == 9
    assert {one.where.budget for one in rows.values() if isinstance(one, Localised)} == {rows["del"].budget} == {0.3}
    assert {one.method.lr for one in rows.values() if isinstance(one, Localised) and info(one.method).name == "reset_finetune"} == {rows["del"].lr}
    # the rule of transformers is for every localiser that asks
    assert {one.top_share for one in within(study) if hasattr(one, "top_share")} == ({1.0} if name == "del_svhn_vit" else {0.1})
    assert all(f"{where}-{method}" in rows for where, method in pairs)


def test_the_released_scores_take_the_place_of_our_own() -> None:
    own = read("rum_mem")[1]
    assert list(own.scored()) == ["memorisation"]
    changes = ['scores=[{name="file", path="cifar10_mem.npz"}]', "forget.score=file", "methods.*.refine.score=file"]
    assert all(change.partition("=")[0] in presets()["rum_mem"].read_text(encoding="utf-8") for change in changes)
    filed = read("rum_mem", changes)[1]
    assert list(filed.scored()) == ["file"]
    assert len(filed.rows()) == len(own.rows())


def test_the_small_form_of_a_study_by_filed_scores_makes_its_own(tmp_path: Path) -> None:
    path = tmp_path / "filed.toml"
    path.write_text(
        'title="t"\ndataset="cifar10"\npartition="released"\nnet="resnet18"\nrecipe="rum_cifar10"\nscores=[{name="file", path="x.npz"}]\n'
        'forget={name="by_score", score="file"}\nmethods=[{name="rum", refine={name="by_score", score="file"}, each=["finetune"]}]\n'
    )
    _, small = read(str(path), small=True)
    assert list(small.scored()) == ["memorisation"]
    assert small.scored()["memorisation"].models < 100


def test_every_form_of_rum_has_its_control() -> None:
    _, study = read("rum_mem")
    rows = study.rows()
    for one in ("neggrad_plus", "finetune", "l1_sparse", "salun", "influence_unlearning", "scrub"):
        refined, shuffled = rows[f"rum-memorisation-{one}"], rows[f"rum-shuffle-{one}"]
        assert isinstance(refined, Rum)
        assert isinstance(shuffled, Rum)
        assert refined.each == shuffled.each  # all that differs is who is in which group
        assert one in rows
    assert [info(one).name for one in rows["rum-memorisation-original+finetune+salun"].each] == ["original", "finetune", "salun"]  # type: ignore[attr-defined]


def test_a_proxy_chooses_and_orders_alike_and_takes_no_ensemble() -> None:
    family = read_family("rum_proxy").studies
    assert {name.partition(".")[2] for name in family} == {"confidence", "max_conf", "entropy", "bi_acc", "ho_ret", "loss_curvature"}
    for name, study in family.items():
        (proxy,) = study.scored().values()
        assert info(proxy).name == study.forget.score == name.partition(".")[2]  # type: ignore[attr-defined]
        assert proxy.models == 1  # type: ignore[union-attr]


def test_every_group_by_entanglement_is_large_enough_to_draw_from() -> None:
    family = read_family("rum_entangled").studies
    assert len(family) == 12
    for study in family.values():
        train, forget = study.partition.sizes(study.dataset.facts)[0], study.forget
        assert forget.count <= train // forget.parts * forget.neighbours  # type: ignore[attr-defined]
    assert {(info(one.dataset).name, info(one.net).name) for one in family.values()} == {
        ("cifar10", "resnet18"),
        ("cifar100", "resnet50"),
        ("tiny_imagenet", "resnet18"),
        ("tiny_imagenet", "vgg16_bn"),
    }


def test_groups_by_each_study_s_own_score_are_one_row_of_a_comparison(tmp_path: Path) -> None:
    def study(score: str) -> Finished:
        rows = [{"method": name, "calibration": False} for name in ("salun", f"rum-{score}-salun", "rum-shuffle-salun")]
        index = {f"stacks/unlearned/rum-{score}-salun": [f"stacks/{score}"]}
        return Finished(score, {"rows": rows, "study": {"forget": {"name": "by_score", "score": score}}}, index, Store(tmp_path))

    alike = _alike([study("confidence"), study("entropy")])
    assert [list(one.rows) for one in alike] == [["salun", "rum-score-salun", "rum-shuffle-salun"]] * 2
    assert [one.keys("unlearned/rum-score-salun") for one in alike] == [["stacks/confidence"], ["stacks/entropy"]]
    assert [list(one.rows) for one in _alike([study("entropy")] * 2)] == [["salun", "rum-entropy-salun", "rum-shuffle-salun"]] * 2
