"""``unlearnlab score``, on a real study at its smallest: memorisation, two proxies from one run, and a file."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from test_cli import Call, call
from unlearnlab import groundwork, scoring, spec, study, studyfiles
from unlearnlab.contract import Scores
from unlearnlab.engine import Local
from unlearnlab.scores.npz import read_npz
from unlearnlab.spec import InputError
from unlearnlab.store import Store

__all__ = ["call"]  # the fixture

STUDY = """
title = "Scored"
models = 1
dataset = "digits"
partition = { name = "stratified", train = 60, held_out = 40, test = 50 }
corruption = { name = "symmetric_noise", share = 0.2 }
net = { name = "mlp", hidden = [16] }
recipe = { name = "standard", epochs = 2 }
forget = { name = "random", count = 6 }
methods = ["finetune"]
metrics = ["tow"]
scores = [{ name = "seen_loss" }, { name = "memorisation", models = 6 }, { name = "seen_wrong" }]
"""
PLUGIN = '''
"""Two scores that are read off the same trained models."""
from typing import Annotated, ClassVar
import torch
from unlearnlab.contract import Scores
from unlearnlab.spec import Setting, spec

class Looks:
    def probe(self, stack, parts, recipe, progress):
        with torch.no_grad():
            held = stack.logits(parts.train.pixels).log_softmax(-1)
        labels = parts.train.labels.expand(len(held), -1)
        loss = -held.gather(-1, labels[..., None])[..., 0]
        loss[:, :3] = torch.nan
        return {"loss": loss, "wrong": held.argmax(-1) != labels}

@spec("score", "seen_loss")
class SeenLoss(Looks):
    """Loss of the label, after training."""
    scale: ClassVar[str] = "proxy"
    evidence: ClassVar[str] = "seen"
    start: ClassVar[str] = "trained"
    models: Annotated[int, Setting("models", ge=1)] = 2

    def score(self, gathered, ids):
        return Scores("seen_loss", ids, gathered["loss"].double().mean(0))

@spec("score", "seen_wrong")
class SeenWrong(Looks):
    """Wrong answers, after training."""
    scale: ClassVar[str] = "proxy"
    evidence: ClassVar[str] = "seen"
    start: ClassVar[str] = "trained"
    models: Annotated[int, Setting("models", ge=1)] = 2

    def score(self, gathered, ids):
        return Scores("seen_wrong", ids, gathered["wrong"].double().mean(0))
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Known to this file's tests only."""
    path = tmp_path_factory.mktemp("plugin") / "seen_scores.py"
    path.write_text(PLUGIN)
    yield path
    for name in ("seen_loss", "seen_wrong"):
        spec._registry["score"].pop(name, None)


@pytest.fixture(scope="module")
def made(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> study.Runner:
    """A store with the scores in it; never written to."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "scored.toml").write_text(STUDY)
    spec.load_plugin(plugin)
    name, asked = studyfiles.read(str(folder / "scored.toml"))
    with Local(1) as engine:
        return study.run(asked, name, Store(folder / "store"), until="score", engine=engine, plugins=(str(plugin),))


def seen(runner: study.Runner) -> dict[str, Any]:
    return dict(scoring.seen_scores(runner.setup, runner.data_key, runner.study.scored(), runner.score_steps()))


@pytest.fixture
def scored(call: Call, made: study.Runner, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command line over that store, in a folder of its own."""
    Path("scored.toml").write_text(STUDY)
    monkeypatch.setenv("UNLEARNLAB_STORE", str(made.store.root))
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *words: call("score", "scored.toml", "--plugin", str(plugin), "--workers", "1", *words)


# ---- what there is to see


def test_the_gathered_numbers_are_those_of_the_scores(made: study.Runner) -> None:
    held, train = seen(made), groundwork.load_data(made.setup, made.data_key).train
    assert held["reference"] == "memorisation"
    assert held["images"]["ids"] == train.ids.tolist()
    assert held["images"]["true_labels"] != held["images"]["labels"]  # a fifth is mislabelled
    loss, true = (np.array(held["values"][name]) for name in ("seen_loss", "memorisation"))
    row = {one["name"]: one for one in held["scores"]}
    both = ~np.isnan(loss) & ~np.isnan(true)
    agreement = row["seen_loss"]["agreement"]
    assert agreement["rho"] == pytest.approx(float(spearmanr(loss[both], true[both]).statistic))
    assert (agreement["n"], agreement["dropped"]) == (both.sum(), 60 - both.sum())
    assert agreement["ci"]["lo"] < agreement["rho"] < agreement["ci"]["hi"]
    assert row["memorisation"]["agreement"] is None
    assert (row["seen_loss"]["scored"], row["seen_loss"]["unscored"]) == (57, 3)
    assert row["seen_loss"]["median"] == pytest.approx(float(np.nanmedian(loss)))
    assert len(held["stderr"]["memorisation"]) == 60


def test_both_ends_are_in_order_with_ties_by_id_and_no_unscored_image(made: study.Runner) -> None:
    held = seen(made)
    ids, labels = held["images"]["ids"], dict(zip(held["images"]["ids"], held["images"]["labels"], strict=True))
    for row in held["scores"]:
        pairs = [(value, i) for value, i in zip(held["values"][row["name"]], ids, strict=True) if not math.isnan(value)]
        most, least = (row["ends"][end] for end in ("most", "least"))
        assert most["ids"] == [i for _, i in sorted(pairs, reverse=True)][:12]
        assert least["ids"] == [i for _, i in sorted(pairs)][:12]
        assert most["labels"] == [labels[i] for i in most["ids"]]
        assert len(most["pixels"]) == 12
        assert least["tied"] == sum(value == least["values"][-1] for value, _ in pairs) - least["values"].count(least["values"][-1])
    wrong = next(row for row in held["scores"] if row["name"] == "seen_wrong")
    assert wrong["ends"]["most"]["tied"] + wrong["ends"]["least"]["tied"] > 0  # two models: three values at most


def test_of_few_images_none_is_shown_at_both_ends(made: study.Runner) -> None:
    train = groundwork.load_data(made.setup, made.data_key).train
    values = np.full(60, math.nan)
    values[[4, 9, 30]] = 1.0, 3.0, 2.0
    assert [scoring._end(train, torch.from_numpy(values), most)["values"] for most in (True, False)] == [[3.0], [1.0]]
    assert scoring._end(train, torch.full((60,), math.nan), True)["ids"] == []
    values[:] = 1.0
    most, least = (scoring._end(train, torch.from_numpy(values), most)["ids"] for most in (True, False))
    assert not set(most) & set(least)


def test_costs_count_training_and_are_shares_of_the_full_estimate(made: study.Runner) -> None:
    row = {one["name"]: one for one in seen(made)["scores"]}
    assert row["memorisation"]["share"] == 1
    steps = made.score_steps()
    bodies = [made.store.manifest("outputs", key) for _, key, _ in steps["memorisation"][0]]
    assert row["memorisation"]["seconds"] == pytest.approx(sum(body["compute_seconds"] * len(body["seeds"]) for body in bodies))
    probe = made.store.manifest("probes", steps["seen_loss"][0][0][1])
    trained = made.store.manifest(*probe["trained"].split("/"))
    assert row["seen_loss"]["seconds"] == pytest.approx(2 * (probe["compute_seconds"] + trained["compute_seconds"]))
    assert row["seen_loss"]["share"] == pytest.approx(row["seen_loss"]["seconds"] / row["memorisation"]["seconds"])
    assert row["seen_loss"]["with"] == ["seen_wrong"]
    assert row["memorisation"]["with"] == []


def test_a_filed_memorisation_is_the_reference_where_no_other_is_made(made: study.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    read = scoring.load_scores

    def filed(setup: Any, key: str) -> Scores:
        found = read(setup, key)
        return Scores(found.name, found.ids, found.values, "memorisation") if found.name == "seen_loss" else found

    monkeypatch.setattr(scoring, "load_scores", filed)
    steps = {name: step for name, step in made.score_steps().items() if name != "memorisation"}
    held = scoring.seen_scores(made.setup, made.data_key, made.study.scored(), steps)
    assert held["reference"] == "seen_loss"
    assert [row["agreement"] is None for row in held["scores"]] == [True, False]


# ---- the command


def test_score_prints_agreement_cost_and_both_ends_and_says_where_pictures_lie(scored: Call, made: study.Runner) -> None:
    said = scored()
    assert (said.code, said.err) == (0, "")  # everything was there
    row = {one["name"]: one for one in seen(made)["scores"]}
    rho = row["seen_loss"]["agreement"]["rho"]
    assert re.search(rf"^ ?seen_loss +2 +57 +3 +{rho:.2f} \[-?\d\.\d\d, \d\.\d\d\] +{row['seen_loss']['agreement']['n']} ", said.out, re.M)
    assert re.search(r"^ ?memorisation +6 .* true +– +\d+\.\d+ +100 % ", said.out, re.M)
    assert "seen_loss, seen_wrong come from one run: the cost of each is that of the run" in said.out
    assert "seen_loss: 3 of 60 images have no score (NaN)" in said.out
    first = row["memorisation"]["ends"]["most"]
    label = f"{first['labels'][0]}" if first["labels"][0] == first["true_labels"][0] else f"{first['labels'][0]}, is {first['true_labels'][0]}"
    assert f"memorisation, most memorised: {first['ids'][0]} ({label}) {first['values'][0]:.3g}, " in said.out
    assert "seen_wrong, least memorised: " in said.out
    for path in re.findall(r"^picture: (.*)$", said.out, re.M):
        assert ElementTree.fromstring(Path(path).read_text()).tag.endswith("svg")
    assert len(re.findall("^picture: ", said.out, re.M)) == 3


def test_the_csv_file_holds_every_image_with_all_digits(scored: Call, made: study.Runner) -> None:
    said, held = scored(), seen(made)
    path = re.search(r"^scores: (.*scores\.csv)$", said.out, re.M)
    assert path is not None
    rows = list(csv.DictReader(Path(path[1]).read_text().splitlines()))
    assert list(rows[0]) == ["id", "label", "true_label", "seen_loss", "memorisation", "seen_wrong", "memorisation_stderr"]
    assert [int(row["id"]) for row in rows] == held["images"]["ids"]
    assert [row["seen_loss"] for row in rows][:3] == ["", "", ""]
    assert [float(row["seen_loss"]) for row in rows[3:]] == held["values"]["seen_loss"][3:]
    assert [int(row["label"]) for row in rows] == held["images"]["labels"]


def test_on_a_narrow_terminal_the_table_comes_in_halves(scored: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    heads = [line.split() for line in scored().out.splitlines() if line.split()[:1] == ["score"]]
    assert [head[-1] for head in heads] == ["n", "most"]


def test_without_true_memorisation_it_says_how_to_get_it(scored: Call) -> None:
    said = scored("--set", 'scores=["seen_loss"]')
    assert said.code == 0
    assert "Spearman needs true memorisation" in said.out
    assert re.search(r"^ ?seen_loss +2 +57 +3 +– +– ", said.out, re.M)
    assert "come from one run" not in said.out


def test_a_study_without_scores_says_how_to_ask_for_one_and_set_takes_a_whole_list(call: Call, tmp_path: Path) -> None:
    said = call("score", "tiny.toml")
    assert said.code == 2
    assert said.err == "unlearnlab: study 'tiny' asks for no score; add [[scores]] to it, or give --set 'scores=[{name=\"memorisation\"}]'\n"
    assert not (tmp_path / "store").exists()
    _, asked = studyfiles.read("tiny.toml", ['scores=[{name="memorisation", models=7}]'])
    assert asked.scored()["memorisation"].models == 7  # type: ignore[union-attr]
    _, asked = studyfiles.read("tiny.toml", ['scores=[{name="memorisation"}]', "scores.memorisation.models=9"])
    assert asked.scored()["memorisation"].models == 9  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"the study lists none: give the whole list, scores=\[\{name=\"memorisation\", models=9\}\]"):
        studyfiles.read("tiny.toml", ["scores.memorisation.models=9"])
    with pytest.raises(InputError, match="must be a list"):
        studyfiles.read("tiny.toml", ["scores=memorisation"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--name", "seen_loss"], "add --write FILE.npz"),
        (["--write", "x.npz", "--name", "sen_loss"], "has no score 'sen_loss'; did you mean 'seen_loss'? (it has: seen_loss, memorisation, seen_wrong)"),
        (["--write", "x.npz", "--set", 'scores=["seen_loss", "seen_wrong"]'], "has the scores seen_loss, seen_wrong; say with --name which one goes to x.npz"),
        (["--layout", "tr-mum", "--write", "x.npz"], "tr-mum"),
    ],
)
def test_wrong_input_is_one_clear_line(scored: Call, words: list[str], complaint: str) -> None:
    said = scored(*words)
    assert said.code == 2
    assert complaint in said.err
    assert said.err.count("\n") == 1
    assert not Path("x.npz").exists()


def test_write_exports_memorisation_unless_another_is_named(scored: Call, made: study.Runner) -> None:
    held = seen(made)
    for words, name in (((), "memorisation"), (("--name", "seen_loss"), "seen_loss")):
        said = scored("--write", "x.npz", *words)
        assert said.code == 0
        assert f"{name}: x.npz" in said.out
        found = read_npz(Path("x.npz"))
        assert found.name == name
        assert np.array_equal(found.values.numpy(), np.array(held["values"][name]), equal_nan=True)


def test_write_takes_published_layouts_by_row_of_the_release(scored: Call, made: study.Runner) -> None:
    assert scored("--write", "x.npz", "--layout", "tr_mem").code == 0
    held, parts = seen(made), groundwork.load_data(made.setup, made.data_key)
    with np.load("x.npz") as found:
        assert np.allclose(found["tr_mem"][held["images"]["ids"]], held["values"]["memorisation"], equal_nan=True)
        assert found["tr_labels"][parts.held_out.ids].tolist() == parts.held_out.true_labels.tolist()
        assert found["tr_labels"][held["images"]["ids"]].tolist() == held["images"]["true_labels"]
    said = scored("--write", "y.npz", "--layout", "memorization", "--name", "seen_loss")
    assert said.code == 2
    assert "is a proxy" in said.err
    assert not Path("y.npz").exists()


# ---- a forget set that is chosen by a score


def test_groups_of_a_scored_forget_set_are_told_by_score_and_by_forget(scored: Call, call: Call, made: study.Runner, plugin: Path) -> None:
    change = 'forget={name="by_score", score="seen_loss", count=9}'
    said = scored("--set", change)
    assert said.code == 0
    told = re.findall(r"^group seen_loss\.(\w+): (\d+) images, scores (\S+) to (\S+)$", said.out, re.M)
    assert {name: int(count) for name, count, *_ in told} == {"low": 3, "mid": 3, "high": 3}
    held = np.array(seen(made)["values"]["seen_loss"])
    low = next(one for one in told if one[0] == "low")
    assert (float(low[2]), float(low[3])) == pytest.approx((np.nanmin(held), np.sort(held)[2]), rel=5e-3)
    assert "ids:" not in said.out
    again = call("forget", "scored.toml", "--plugin", str(plugin), "--set", change)
    assert re.findall(r"^group .*$", again.out, re.M) == re.findall(r"^group .*$", said.out, re.M)
    assert "ids:" in again.out
    assert "group" not in call("forget", "scored.toml", "--plugin", str(plugin)).out


def test_too_large_a_group_is_refused_after_the_scores_are_told(scored: Call) -> None:
    said = scored("--set", 'forget={name="by_score", score="seen_loss", count=59}')
    assert said.code == 2
    assert "seen_loss, most memorised: " in said.out
    assert "by_score" in said.err
