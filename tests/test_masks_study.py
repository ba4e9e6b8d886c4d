"""The stage ``mask``: what methods may change is kept, told, pictured, and held against what they changed."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from test_study import TINY
from unlearnlab import artefacts as make
from unlearnlab import cli, filing, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.chain import run_requests
from unlearnlab.localise.deepest import Deepest
from unlearnlab.localise.fisher_ratio import FisherRatio
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.localise.random import Random
from unlearnlab.localise.shallowest import Shallowest
from unlearnlab.localise.weighted_grad_channel import WeightedGradChannel
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.del_ import Del
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.methods.reset_finetune import ResetFineTune
from unlearnlab.methods.salun import SalUn
from unlearnlab.planning import needed
from unlearnlab.report.masks import mask_table, mask_words, write_mask_figure
from unlearnlab.spec import build, identity
from unlearnlab.stack import Stack, head_names
from unlearnlab.store import Store

METHODS = (
    '{name="finetune", epochs=1}',
    '{name="salun", epochs=1, budget=0.4}',
    '{name="del", epochs=1}',
    '{name="localised", where="shallowest", method={name="finetune", epochs=1}}',
)
WHERE = {"salun": "grad_param", "del": "weighted_grad_channel", "localised": "shallowest"}
MASKS = tuple(f"masks/{name}{end}" for name in WHERE for end in ("", "/random"))


def tiny(*changes: str) -> tuple[str, study.Study]:
    return studyfiles.read("digits", [*TINY, f"methods=[{', '.join(METHODS)}]", 'metrics=["delta.outside_mask", "delta.changed"]', *changes])


def run(root: Path, changes: Sequence[str] = (), until: str = "mask", **more: Any) -> study.Runner:
    name, what = tiny(*changes)
    return study.run(what, more.pop("name", name), Store(root), until=until, **more)


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> study.Runner:
    return run(tmp_path_factory.mktemp("masks"), until="audit")


# -- which methods have a mask ---------------------------------------------------------------------


def test_methods_say_their_localiser() -> None:
    assert make.place_of(SalUn(budget=0.3)) == GradParam(0.3)
    assert make.place_of(Del(budget=0.2, top_share=0.5, tie="legacy_argsort")) == WeightedGradChannel(0.2, 0.5, tie="legacy_argsort")
    assert make.place_of(Localised(Deepest(0.1), FineTune())) == Deepest(0.1)
    assert make.place_of(FineTune()) is None
    assert make.place_of(build("method", "original")) is None


def test_methods_that_open_the_head_are_known() -> None:
    assert make.opens_head(Del())
    assert make.opens_head(ResetFineTune())
    assert make.opens_head(Localised(Deepest(), ResetFineTune()))
    assert not make.opens_head(SalUn())
    assert not make.opens_head(Localised(Deepest(), RandomLabel()))


def test_the_control_has_the_same_budget_and_granularity() -> None:
    assert make.control_for(GradParam(0.4), 0.39) == Random(0.4)
    assert make.control_for(WeightedGradChannel(0.3, ranking="per_tensor"), 0.28) == Random(0.3, "channel", "per_tensor")
    assert make.control_for(Shallowest(0.2, always_open="head"), 0.3) == Random(0.2, "channel", always_open="head")
    assert make.control_for(FisherRatio(threshold=1.0), 0.28) == Random(0.28)  # what a threshold opens is known only afterwards
    assert make.control_for(FisherRatio(threshold=1e9), 0.0).budget > 0
    assert make.control_for(Random(0.5), 0.5) == Random(0.5, draw=1)  # another draw than its own


# -- the artefacts ---------------------------------------------------------------------------------


def test_masks_and_their_controls_are_made_once_and_named(audited) -> None:
    index = json.loads((audited.store.root / "studies" / "digits" / "index.json").read_text())
    assert tuple(name for name in index if name.startswith("masks/")) == tuple(sorted(MASKS, key=lambda name: (name.endswith("random"), MASKS.index(name))))
    held = {row.key: row.name for row in audited.store.list("masks")}
    assert sorted(held.values()) == sorted([*WHERE.values(), "random", "random"])  # two controls are one: equal budget, equal granularity
    for name, where in WHERE.items():
        (key,) = audited.masks[name]
        assert held[key] == where
        body = audited.store.manifest("masks", key)
        assert body["parent"] == f"stacks/{audited.originals[0]}"
        assert body["seeds"] == [0, 1]
        assert body["forget"] == ground.load_split(audited.setup, audited.data_key, audited.forget_key).forget.fingerprint
        mask = make.load_mask(audited.setup, key)
        assert body["model"] == mask.parent
        assert body["share"] == pytest.approx(mask.share().tolist())
        assert body["live"] == [sum(bits[0].numel() for bits in mask.open.values())] * 2
        size = (audited.store.root / "masks" / key / "mask.safetensors").stat().st_size
        assert size < 2 * body["live"][0] / 8 + 2500


def test_the_stored_mask_is_the_one_the_method_works_under(audited, monkeypatch) -> None:
    split = ground.load_split(audited.setup, audited.data_key, audited.forget_key)
    original = filing.load_stack(audited.setup, audited.originals[0], split.retain)
    for name in WHERE:
        after = filing.load_stack(audited.setup, audited.unlearned[name][0], split.retain)
        mask = make.load_mask(audited.setup, audited.masks[name][0])
        mask.require(original)
        opened = (mask.opening(head_names(original)) if name == "del" else mask).open
        moved = {n: after.params[n] != p for n, p in original.params.items()}
        assert not any(bool((moved[n] & ~opened[n]).any()) for n in moved)
        assert sum(int((moved[n] & opened[n]).sum()) for n in moved) > 0.8 * sum(int(bits.sum()) for bits in opened.values())


def test_a_second_run_makes_nothing(audited, monkeypatch) -> None:
    monkeypatch.setattr(Store, "_create", lambda *_: pytest.fail("made something again"))
    again = run(audited.store.root, until="mask")
    assert (again.masks, again.controls) == (audited.masks, audited.controls)


def test_only_what_a_mask_depends_on_makes_it_anew(audited, tmp_path) -> None:
    root = audited.store.root
    assert run(root, ["methods.salun.lr=0.001"], name="other").masks == audited.masks
    other = run(root, ["methods.salun.budget=0.2"], name="other").masks
    assert other["salun"] != audited.masks["salun"]
    assert other["del"] == audited.masks["del"]
    assert run(root, ["forget.draw=1"], name="other").masks["salun"] != audited.masks["salun"]


def test_progress_is_told(tmp_path) -> None:
    told: list[tuple[str, int, int]] = []
    run(tmp_path, watch=lambda *step: told.append(step))
    assert [step for step in told if step[0] in ("mask", "control")] == [*(("mask", at, 3) for at in range(4)), *(("control", at, 2) for at in range(3))]


def test_tidy_keeps_masks(audited) -> None:
    live, _ = needed(audited.store)
    assert {("masks", key) for keys in (*audited.masks.values(), *audited.controls.values()) for key in keys} <= live


def test_chunks_have_masks_of_their_own(tmp_path) -> None:
    runner = run(tmp_path, ["models=9", "recipe.epochs=1"])
    assert [len(keys) for keys in runner.masks.values()] == [2, 2, 2]
    assert [runner.store.manifest("masks", key)["seeds"] for key in runner.masks["del"]] == [list(range(8)), [8]]
    assert runner.seen_masks()["del"]["models"] == 9


# -- what was changed outside the mask -------------------------------------------------------------


def test_nothing_changes_outside_the_masks(audited) -> None:
    rows = {row["method"]: row["results"]["delta.outside_mask"] for row in audited.document["rows"]}
    assert {name: rows[name]["value"] for name in WHERE} == dict.fromkeys(WHERE, 0.0)
    assert "not computed" in rows["finetune"]["missing"]
    assert "not computed" in rows["original"]["missing"]


CARELESS = '''
from dataclasses import replace
from typing import Annotated, Any, ClassVar
from unlearnlab.contract import Localiser
from unlearnlab.spec import Setting, spec

@spec("method", "careless")
class Careless:
    """Shift three weights of every model, whatever the mask says."""
    reads: ClassVar = frozenset({"forget"})
    null: ClassVar = None
    cost: ClassVar = "0"
    where: Annotated[Localiser, Setting("nobody asks", kind="localiser")] = "deepest"

    def __call__(self, stack, split, ctx):
        name = next(iter(stack.params))
        moved = stack.params[name].clone()
        moved[:, 11, :3] += 1  # ``deepest`` opens the first channels of this layer only
        return stack.having({**stack.params, name: moved})
'''


def test_weights_changed_outside_the_mask_are_counted(tmp_path) -> None:
    from unlearnlab.spec import load_plugin

    path = tmp_path / "careless.py"
    path.write_text(CARELESS)
    load_plugin(path)
    runner = run(tmp_path / "store", ['methods=["careless"]'], until="audit", plugins=(str(path),))
    found = {row["method"]: row["results"]["delta.outside_mask"] for row in runner.document["rows"]}["careless"]
    assert list(found["per_model"]) == [3.0, 3.0]
    assert found["value"] == 3.0


def test_the_head_counts_as_open_only_where_the_method_opens_it(audited) -> None:
    split = ground.load_split(audited.setup, audited.data_key, audited.forget_key)
    before = filing.load_stack(audited.setup, audited.originals[0], split.retain)
    head = head_names(before)[1]
    after = before.having(before.params | {head: before.params[head] + 1})
    source = make.Source(audited.originals[0], (0, 1))

    def count(method: Any) -> list[int]:
        found: list[int] = make._outside_mask(audited.setup, audited.data_key, audited.forget_key, method, source, after, before)["outside_mask"]
        return found

    assert count(Localised(Shallowest(), FineTune())) == [10, 10]
    assert count(Localised(Shallowest(), ResetFineTune())) == [0, 0]
    assert make._outside_mask(audited.setup, audited.data_key, audited.forget_key, FineTune(), source, after, before) == {}


def test_a_mask_of_another_model_is_refused(audited) -> None:
    split = ground.load_split(audited.setup, audited.data_key, audited.forget_key)
    before = filing.load_stack(audited.setup, audited.originals[0], split.retain)
    other: Stack = before.having({name: p + 1 for name, p in before.params.items()})
    source = make.Source(audited.originals[0], (0, 1))
    with pytest.raises(ValueError, match="this mask was made from model"):
        make._outside_mask(audited.setup, audited.data_key, audited.forget_key, SalUn(), source, other, other)


def test_one_original_for_all_has_a_mask_for_each_seed(tmp_path) -> None:
    trained = run(tmp_path / "first", ["models=1"], until="original")
    train = ground.load_data(trained.setup, trained.data_key).train
    torch.save(filing.load_stack(trained.setup, trained.originals[0], train).member(0).state_dict(), tmp_path / "model.pt")
    methods = 'methods=[{name="localised", where="random", method={name="finetune", epochs=1}}]'
    runner = run(tmp_path / "second", [methods, f"original={{name='checkpoint', checkpoint='{tmp_path}/model.pt'}}"], until="audit")
    mask = make.load_mask(runner.setup, runner.masks["localised"][0])
    assert not all(torch.equal(bits[0], bits[1]) for bits in mask.open.values())
    rows = {row["method"]: row["results"]["delta.outside_mask"] for row in runner.document["rows"]}
    assert list(rows["localised"]["per_model"]) == [0.0, 0.0]


def test_a_later_request_has_masks_of_the_models_that_the_earlier_one_left(tmp_path) -> None:
    name, what = tiny('requests={sets=[{name="ids", ids=[3, 5, 7]}]}', 'forget={name="ids", ids=[1, 2, 9, 11]}', 'metrics=["delta.outside_mask"]')
    ids = ground.load_data(run(tmp_path, until="data").setup, run(tmp_path, until="data").data_key).train.ids.tolist()
    what = replace(
        what,
        forget=build("forget", {"name": "ids", "ids": ids[:4]}),
        requests=replace(what.requests, sets=(build("forget", {"name": "ids", "ids": ids[4:7]}),)),
    )
    (first, second), _ = run_requests(what, name, Store(tmp_path), until="audit")
    for row in WHERE:
        body = second.store.manifest("masks", second.masks[row][0])
        assert body["parent"] == f"stacks/{first.unlearned[row][0]}"
        assert body["origin"] == f"stacks/{first.originals[0]}"
        assert body["forget"] == ground.load_data(second.setup, second.data_key).train.take(ids[4:7]).fingerprint  # this request's images alone
        assert body["model"] != first.store.manifest("masks", first.masks[row][0])["model"]
    rows = {row["method"]: row["results"]["delta.outside_mask"] for row in second.document["rows"]}
    assert {row: rows[row]["value"] for row in WHERE} == dict.fromkeys(WHERE, 0.0)


# -- what is shown ---------------------------------------------------------------------------------


def test_what_is_told_of_masks_agrees_with_them(audited) -> None:
    told = audited.document["masks"]
    assert list(told) == list(WHERE)
    mask = make.load_mask(audited.setup, audited.masks["localised"][0])
    assert told["localised"]["spec"] == identity(Shallowest())
    layers = {row["layer"]: row for row in told["localised"]["layers"]}
    assert [row["weights"] for row in layers.values()] == [64 * 12 + 12, 12 * 10 + 10]
    first = torch.cat([mask.open[name].flatten(1) for name in list(mask.open)[:2]], 1)
    assert next(iter(layers.values()))["share"] == pytest.approx(float(first.float().mean()))
    assert list(layers.values())[1]["share"] == 0.0
    assert told["salun"]["share"]["mean"] == pytest.approx(0.4, abs=2e-3)
    chance = told["salun"]["chance"]
    assert chance == pytest.approx(0.4 / 1.6, abs=2e-3)
    assert all(row["random"] == pytest.approx(0.4, abs=0.12) for row in told["salun"]["layers"])
    assert told["salun"]["jaccard"]["least"] <= told["salun"]["jaccard"]["mean"] <= told["salun"]["jaccard"]["most"]
    json.dumps(told)


def test_two_random_masks_overlap_by_chance(tmp_path) -> None:
    runner = run(tmp_path, ["models=8", 'methods=[{name="localised", where="random", method="finetune"}]'])
    told = runner.seen_masks()["localised"]
    assert told["jaccard"]["mean"] == pytest.approx(told["chance"], abs=0.02)
    assert told["chance"] == pytest.approx(0.3 / 1.7, abs=2e-3)


def test_words_table_and_picture(audited, tmp_path) -> None:
    held = audited.document["masks"]["del"]
    words = " ".join(mask_words(held))
    assert re.search(r"open: \d+ % of all weights.* \(2 models\)", words)
    assert re.search(r"overlap with random \(Jaccard\): 0\.\d\d, 0\.\d\d to 0\.\d\d; by chance 0\.\d\d", words)
    out = io.StringIO()
    Console(file=out, width=100).print(mask_table(held))
    assert [line.split()[:2] for line in out.getvalue().splitlines()[1:]] == [[row["layer"], f"{row['weights']:,}"] for row in held["layers"]]
    path = write_mask_figure("del", held, tmp_path / "figures")
    assert path == tmp_path / "figures" / "mask-del.svg"
    root = ElementTree.fromstring(path.read_text())
    texts = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {row["layer"] for row in held["layers"]} <= texts
    assert "random, same budget" in texts
    before = path.read_bytes()
    write_mask_figure("del", held, tmp_path / "figures")
    assert path.read_bytes() == before  # the same bytes every time
    many = {**held, "layers": [{**held["layers"][0], "layer": f"blocks.{at}.a_rather_long_name_of_a_layer"} for at in range(80)]}
    write_mask_figure("many", many, tmp_path / "figures")


def test_the_command(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    sets = [word for change in (*TINY, f"methods=[{', '.join(METHODS)}]") for word in ("--set", change)]
    assert cli.call(["mask", "digits", "--workers", "1", *sets]) == 0
    out = capsys.readouterr().out
    for name, where in WHERE.items():
        assert f"{name}, by {where}\n" in out
        figure = tmp_path / "store" / "studies" / "digits" / "figures" / f"mask-{name}.svg"
        assert f"picture: {figure}\n" in out
        assert figure.exists()
    assert out.count("by chance") == 3
    assert not (tmp_path / "store" / "outputs").exists()  # nothing was unlearned or observed
    assert cli.call(["mask", "digits", *sets, "--set", 'methods=["finetune"]']) == 2
    assert "no method of study 'digits' chooses weights before it starts; add one, such as salun, del or localised" in capsys.readouterr().err


def test_a_pruned_study_counts_live_weights(tmp_path) -> None:
    runner = run(tmp_path, ['prune={name="omp", sparsity=0.8, include_linear=true, rewind_to="init"}', "models=1"])
    body = runner.store.manifest("masks", runner.masks["salun"][0])
    assert body["live"][0] < 0.4 * 910
    assert body["open"][0] == int(0.4 * body["live"][0])
    told = runner.seen_masks()["salun"]
    assert told["chance"] == pytest.approx(0.25, abs=0.01)


def test_replacing_settings_keeps_specs_usable() -> None:
    assert replace(make.control_for(GradParam(), 0.5), budget=0.2) == Random(0.2)


def test_the_control_of_a_threshold_opens_as_many_live_weights(tmp_path) -> None:
    where = '{name="fisher_ratio", threshold=1.0}'
    methods = f'methods=[{{name="localised", where={where}, method="finetune"}}]'
    runner = run(tmp_path, [methods, 'prune={name="synflow", sparsity=0.8, rounds=3, include_linear=true}'])
    mine, random = (runner.store.manifest("masks", held["localised"][0])["open"] for held in (runner.masks, runner.controls))
    assert random == pytest.approx([sum(mine) / 2] * 2, abs=1)


def test_a_mask_does_not_hang_on_what_the_method_reads_besides(tmp_path) -> None:
    methods = ", ".join(f'{{name="localised", where="shallowest", method="{name}"}}' for name in ("finetune", "datamodel_matching"))
    runner = run(tmp_path, [f"methods=[{methods}]", "attribution.models=40"], until="unlearn")
    assert runner.masks["shallowest-finetune"] == runner.masks["shallowest-datamodel_matching"]
    assert len(runner.store.list("masks")) == 2  # that one and its control: the check of the outcome made none


def test_masks_alone_are_also_of_the_models_that_the_earlier_request_left(tmp_path) -> None:
    name, what = tiny('requests={sets=[{name="random", count=5, draw=1}]}', 'methods=[{name="salun", epochs=1}]')
    (first, second), _ = run_requests(what, name, Store(tmp_path), until="mask")
    body = second.store.manifest("masks", second.masks["salun"][0])
    assert body["parent"] == f"stacks/{first.unlearned['salun'][0]}"
    assert not second.unlearned
