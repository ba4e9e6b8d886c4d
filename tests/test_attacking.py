"""The audit from logits alone: every number is a metric's own, and nothing is claimed that the folder cannot show."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unlearnlab import spec
from unlearnlab.attacking import BASELINE, DELTAS, attack, chosen
from unlearnlab.contract import Audit
from unlearnlab.data.images import PARTS
from unlearnlab.layouts import Ensemble, Folder
from unlearnlab.metrics import epsilon_published
from unlearnlab.metrics.epsilon import point, wrong
from unlearnlab.metrics.statistics import holm, t_interval
from unlearnlab.outputs import Outputs, hinge
from unlearnlab.report.attack_tables import sheets
from unlearnlab.spec import InputError

CLASSES = 5


def ensemble(
    name: str, shift: float, models: int = 80, examples: int = 40, seed: int = 0, logged: float | None = 0.0, parts: tuple[str, ...] = ("forget",)
) -> Ensemble:
    """Models whose margin lies ``shift`` sd above the oracles' on the forget images; ``logged``: how far a table's accuracies lie above the logits'."""
    draws = torch.Generator().manual_seed(1000 + seed)
    labels = torch.arange(examples) % CLASSES
    part = torch.tensor([PARTS.index(parts[at % len(parts)]) for at in range(examples)])
    hardness = torch.randn(examples, generator=torch.Generator().manual_seed(1))
    margin = hardness + shift * (part == 0) + torch.randn(models, examples, generator=draws)
    logits = margin[..., None] * torch.nn.functional.one_hot(labels, CLASSES) + 0.01 * torch.randn(models, examples, CLASSES, generator=draws)
    member = torch.isin(part, torch.tensor([1] if name == "oracles" else [0, 1])).expand(models, -1)
    seen = Outputs(logits, member, labels, torch.arange(examples) + 100, part, tuple(range(1000 * seed, 1000 * seed + models)))
    right = (seen.of("forget").predicted == seen.of("forget").labels).double().mean(1)
    table = {} if logged is None else {"retain": torch.linspace(0.98, 1.0, models, dtype=torch.float64), "forget": right + logged}
    return Ensemble(name, seen, table, Path(name))


def folder(*approaches: Ensemble, models: int = 80, originals: Ensemble | None = None, layout: Any = "fwp", **more: Any) -> Folder:
    oracles = ensemble("oracles", 0.0, models, **more)
    return Folder(Path("logits"), layout, oracles, originals, approaches, ("told by the folder",))


SHIFTS = {"perfect": 0.0, "near": 0.7, "far": 2.5}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    approaches = [ensemble(name, shift, seed=at, logged=0.02 if name == "near" else 0.001) for at, (name, shift) in enumerate(SHIFTS.items(), 1)]
    held = folder(*approaches)
    return attack(
        Folder(held.path, "fwp", held.oracles, None, (*held.approaches, replace(held.oracles, name="copy", accuracies={})), held.notes), originals="N"
    )


@pytest.fixture(scope="module")
def audits() -> dict[str, Audit]:
    oracles = ensemble("oracles", 0.0).outputs
    return {
        name: Audit(oracles.rows([]), oracles, ensemble(name, shift, seed=at).outputs, torch.arange(80)) for at, (name, shift) in enumerate(SHIFTS.items(), 1)
    }


def rows(document: dict[str, Any]) -> dict[str, Any]:
    return {row["method"]: row for row in document["rows"]}


def test_every_result_is_the_metric_s_own(document: dict[str, Any], audits: dict[str, Audit]) -> None:
    for name, audit in audits.items():
        made = rows(document)[name]["results"]
        for word in ("eps.published", "klom.smooth", "klom.gauss", "energy", "disagree", "acc", "perm.omnibus"):
            found = spec.build("metric", word)(audit)
            assert made[found.key] == json.loads(json.dumps(found.to_json()))
        assert made["eps.crossfit_delta0.05.forget"] == json.loads(json.dumps(spec.build("metric", {"name": "eps.crossfit", "delta": 0.05})(audit).to_json()))
    json.dumps(document, allow_nan=False)


def test_both_recipes_put_approaches_in_their_true_order(document: dict[str, Any]) -> None:
    medians = [document["per_example"][name]["median"] for name in SHIFTS]
    crossfit = [rows(document)[name]["results"]["eps.crossfit_delta0.05.forget"]["value"] for name in SHIFTS]
    assert medians == sorted(medians)
    assert crossfit == sorted(crossfit)
    assert len(set(crossfit)) == 3
    assert crossfit[0] < 0.1 < medians[0]  # the published floor is no zero
    # LLR = 0 errs with chance Phi(-shift/2) on either side; the logits' noise of .01 is nothing beside it
    rate = 0.5 * math.erfc(1.25 / math.sqrt(2))
    assert crossfit[2] == pytest.approx(math.log((0.95 - rate) / rate), abs=0.25)


def test_the_published_numbers_and_their_baseline(document: dict[str, Any], audits: dict[str, Audit]) -> None:
    u, o = (hinge(side.logits, side.labels) for side in (audits["near"].unlearned, audits["near"].oracles))
    each = epsilon_published.published(u, o, 0.05)
    seen = document["per_example"]["near"]
    assert seen["median"] == epsilon_published.median(each)
    assert (seen["infinite"], seen["undefined"]) == (int(each.isinf().sum()), int(each.isnan().sum()))
    assert document["per_example"][BASELINE]["median"] == epsilon_published.median(epsilon_published.baseline(o, 0.05))
    assert document["baseline"]["models"] == [40, 40]
    # at equal N a perfect unlearner stands at the floor; set against the baseline of half as many models it would look better than perfect
    perfect = rows(document)["perfect"]["results"]["eps.published.forget"]
    assert perfect["extra"]["value_at_floor_n"] == pytest.approx(perfect["floor"]["mean"], abs=0.15)
    assert document["per_example"]["perfect"]["median"] < document["per_example"][BASELINE]["median"]


def test_the_oracles_in_an_approach_s_place_are_told(document: dict[str, Any]) -> None:
    copy = rows(document)["copy"]
    assert copy["identical"]
    assert list(copy["results"]) == ["eps.published.forget"]
    assert copy["results"]["eps.published.forget"]["value"] is None
    assert (document["per_example"]["copy"]["median"], document["per_example"]["copy"]["undefined"]) == ("nan", 40)
    assert (copy["p"], copy["holm_p"]) == (None, None)


def test_curves_and_histograms_hold_what_the_metrics_say(document: dict[str, Any], audits: dict[str, Audit]) -> None:
    u, o = audits["near"].unlearned, audits["near"].oracles
    fp, fn = wrong(u.margin, o.margin, 5)
    at = DELTAS.index(0.2)
    assert document["curves"]["near"]["crossfit"][at] == float(point(fp, fn, 80, 80, 0.2).quantile(0.5))
    each = epsilon_published.published(hinge(u.logits, u.labels), hinge(o.logits, o.labels), 0.2)
    assert document["curves"]["near"]["published"][at] == pytest.approx(epsilon_published.median(each))
    seen = document["margins"]["far"]
    assert sum(seen["oracles"]) == pytest.approx(1)
    assert sum(seen["unlearned"]) == pytest.approx(1)
    middle = [
        sum(share * (a + b) / 2 for share, a, b in zip(seen[who], seen["edges"][:-1], seen["edges"][1:], strict=True)) for who in ("oracles", "unlearned")
    ]
    assert middle[1] - middle[0] == pytest.approx(2.5, abs=0.25)
    one = seen["examples"][0]
    assert one["oracles"] == pytest.approx(o.margin[:, one["id"] - 100].tolist())


def test_p_needs_originals_of_their_own_and_a_statement(document: dict[str, Any]) -> None:
    held = folder(ensemble("near", 0.7, 20, seed=1), ensemble("perfect", 0.0, 20, seed=2), models=20)
    for said, words in ((None, "how many is not known"), ("1", "one original"), ("5", "5 originals for 20")):
        made = attack(held, originals=said)
        assert all((row["p"], row["holm_p"], row["verdict"]) == (None, None, None) for row in made["rows"])
        assert words in made["originals"]["words"]
        assert "no p and no verdict" in made["originals"]["words"]
        assert "perm.omnibus" not in made["rows"][0]["results"]
    own = attack(held, originals="20")
    raw = [row["p"] for row in own["rows"]]
    assert [row["holm_p"] for row in own["rows"]] == holm(raw)
    assert raw[0] < 0.01 < raw[1]
    assert "--originals 20" in own["originals"]["words"]
    assert "no verdict" in own["originals"]["words"]
    assert [row["p"] for row in attack(held, originals="n")["rows"]] == raw
    # Holm's correction is over all approaches, one that is nothing but oracles included
    assert [rows(document)[name]["holm_p"] for name in SHIFTS] == holm([*(rows(document)[name]["p"] for name in SHIFTS), 1.0])[:3]


@pytest.mark.parametrize("said", ["0", "-3", "many", "1.5", ""])
def test_originals_that_are_no_number_are_refused(said: str) -> None:
    with pytest.raises(InputError, match=f"--originals {said} is none of N"):
        attack(folder(ensemble("near", 0.7, 20, seed=1), models=20), originals=said)


def test_with_the_originals_logits_there_is_a_verdict() -> None:
    originals = ensemble("originals", 2.0, 20, 60, seed=5)
    parts = [ensemble("original", 2.0, 20, 60, seed=5), ensemble("done", 0.0, 20, 60, seed=6), ensemble("undone", 1.0, 20, 60, seed=7)]
    held = folder(*parts, models=20, originals=originals, examples=60, layout="study")
    made = rows(attack(held))  # the folder tells that each has its own
    assert made["original"]["verdict"]["label"] == "calibration"
    assert made["original"]["results"]["trace"]["value"] == 1.0
    assert made["undone"]["verdict"]["label"] == "not forgotten"
    assert made["undone"]["results"]["trace"]["value"] == pytest.approx(0.5, abs=0.1)
    assert made["done"]["verdict"]["label"] in ("forgotten", "unresolved")
    assert made["undone"]["holm_p"] == pytest.approx(2 * made["undone"]["p"])
    unknown = attack(held, originals="unknown")
    assert [row["p"] for row in unknown["rows"]] == [None] * 3
    assert rows(unknown)["undone"]["verdict"]["label"] == "no verdict"
    assert attack(replace(held, layout="fwp"))["rows"][2]["p"] is None  # only our own studies tell
    with pytest.raises(InputError, match="'fewer' has 16 models and the folder holds 20 originals"):
        attack(replace(held, approaches=(ensemble("fewer", 0.0, 16, 60, seed=8),)), originals="N")


def test_a_table_that_does_not_fit_the_logits_is_said(document: dict[str, Any]) -> None:
    (warning,) = document["warnings"]
    assert warning.startswith("near: forget accuracy is")
    shown = next(row for row in document["accuracies"] if row["method"] == "near")
    table = ensemble("near", 0.7, seed=2, logged=0.02)
    ci = t_interval(table.accuracies["forget"])
    assert ci is not None
    assert shown["logged"]["forget"]["mean"] == pytest.approx(float(table.accuracies["forget"].mean()))
    assert shown["logged"]["forget"]["ci"]["lo"] == pytest.approx(ci.lo)
    assert shown["logits"]["forget"]["mean"] == pytest.approx(shown["logged"]["forget"]["mean"] - 0.02)
    few = attack(folder(ensemble("near", 0.7, 2, seed=1), models=20))["accuracies"][1]
    assert few["logged"]["retain"]["ci"] is None
    assert few["logits"]["forget"]["ci"] is None


def test_what_fails_a_check_shows_no_number() -> None:
    oracles = ensemble("oracles", 0.0, 20)
    mixed = ensemble("mixed", 0.5, 20, seed=3)
    mixed = replace(mixed, outputs=replace(mixed.outputs, logits=torch.cat([oracles.outputs.logits[:1], mixed.outputs.logits[1:]])))
    made = attack(folder(mixed, ensemble("sound", 0.5, 20, seed=4), models=20))
    assert rows(made)["mixed"]["results"] == {}
    assert made["warnings"] == ["mixed: some unlearned models are oracles"]
    assert "mixed" not in made["curves"]
    assert rows(made)["sound"]["results"]["energy"]["value"] > 0


def test_few_models_are_not_computed_and_many_have_the_published_histogram() -> None:
    few = attack(folder(ensemble("near", 0.7, 20, seed=1), models=20))
    assert rows(few)["near"]["results"]["eps.published.forget"]["missing"] == "not computed: N=20, needs 80"
    assert few["per_example"]["near"]["published"] is None
    assert few["curves"]["near"]["published"] is None
    assert not any("klom.hist" in key for key in rows(few)["near"]["results"])
    two = attack(folder(ensemble("near", 0.7, 2, seed=1), models=2))  # halves of one model are no ensembles
    assert two["baseline"] is None
    many = attack(folder(ensemble("near", 0.7, 100, 10, seed=1), models=100, examples=10))
    assert rows(many)["near"]["results"]["klom.hist.forget"]["value"] is not None


def test_further_metrics_by_name_or_key() -> None:
    held = folder(ensemble("near", 0.7, 20, seed=1, parts=("forget", "test")), models=20, parts=("forget", "test"))
    made = rows(attack(held, metrics=("tow, disagree.test", "trace")))["near"]["results"]
    assert made["tow"]["missing"] == "not computed: there are no retain examples"
    assert made["disagree.test"]["value"] > 0
    assert made["trace"]["missing"] == "not computed: no originals were given"
    assert made["acc.test"]["value"] is not None
    assert chosen("klom.smooth.validation").key == "klom.smooth.validation"
    for word in ("klom.smoth", "tow.test", "disagree.tests", ""):
        with pytest.raises(InputError, match=rf"unknown metric '{word}'"):
            chosen(word)


@pytest.mark.parametrize("delta", [-0.1, 1.0, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(InputError, match="expected a probability from 0 to below 1"):
        attack(folder(ensemble("near", 0.7, 20, seed=1), models=20), delta=delta)


def test_delta_holds_for_both_recipes() -> None:
    made = attack(folder(ensemble("near", 0.7, seed=1)), delta=0.2)
    assert made["keys"] == {"published": "eps.published_delta0.2.forget", "crossfit": "eps.crossfit_delta0.2.forget"}
    at = DELTAS.index(0.2)
    assert made["per_example"]["near"]["median"] == pytest.approx(made["curves"]["near"]["published"][at])
    assert rows(made)["near"]["results"]["eps.crossfit_delta0.2.forget"]["value"] == made["curves"]["near"]["crossfit"][at]


def test_a_folder_without_anything_to_compare_is_refused() -> None:
    with pytest.raises(InputError, match="holds oracles and no approach"):
        attack(folder(models=20))
    with pytest.raises(InputError, match="holds no forget images"):
        attack(folder(ensemble("near", 0.7, 20, seed=1, parts=("test",), logged=None), models=20, parts=("test",), logged=None))


def test_a_number_of_originals_is_told_of_every_approach_by_itself() -> None:
    """32 originals give 32 models one each, and 40 models not."""
    made = attack(folder(ensemble("own", 0.5, 32, seed=1), ensemble("shared", 0.5, 40, seed=2), models=32), originals="32")
    assert (rows(made)["own"]["p"] is None, rows(made)["shared"]["p"] is None) == (False, True)
    assert "; but not those of shared, which have no p" in made["originals"]["words"]
    other = attack(folder(ensemble("shared", 0.5, 40, seed=2), ensemble("own", 0.5, 32, seed=1), models=32), originals="32")
    assert "not those of shared" in other["originals"]["words"]
    assert other["originals"]["independent"], "or the table of p would be left out"


def test_a_number_beside_the_originals_logits_is_not_called_unknown() -> None:
    made = attack(folder(ensemble("near", 0.5, 32, seed=1), models=32, originals=ensemble("originals", 1.0, 4, seed=3)), originals="4")
    assert made["originals"]["words"].startswith("4 (--originals 4): no p and no verdict")
    assert rows(made)["near"]["p"] is None


def test_no_curve_is_drawn_of_fewer_models_than_the_number_needs() -> None:
    made = attack(folder(ensemble("few", 0.5, 15, seed=1), ensemble("enough", 0.5, 16, seed=2), models=20))
    assert rows(made)["few"]["results"][made["keys"]["crossfit"]]["missing"] == "not computed: N=15, needs 16"
    assert {name: held["crossfit"] is None for name, held in made["curves"].items()} == {"few": True, "enough": False, BASELINE: True}


def test_where_no_approach_can_be_measured_there_is_no_empty_table() -> None:
    held = folder(models=20)
    made = attack(replace(held, approaches=(replace(held.oracles, name="copy"),)))
    assert "KLoM on the forget images" not in [sheet.title for sheet in sheets(made)]


def test_originals_that_are_given_are_a_row_of_their_own_and_damage_is_looked_for_in_what_was_logged() -> None:
    def logged(one: Ensemble, accuracy: float) -> Ensemble:
        noise = 0.005 * torch.randn(len(one.outputs), generator=torch.Generator().manual_seed(int(accuracy * 100)), dtype=torch.float64)
        return replace(one, accuracies={"retain": accuracy + noise, "test": accuracy + noise})

    given = (("near", 0.0, 1), ("ruined", 0.0, 4), ("originals", 1.0, 3))
    near, ruined, undone = (ensemble(name, left, 32, seed=seed, logged=None) for name, left, seed in given)
    whole = folder(near, ruined, models=32, originals=undone, logged=None)
    blind = {row["method"]: row for row in attack(whole, originals="N")["rows"]}
    assert list(blind) == ["original", "near", "ruined"]
    assert blind["original"]["calibration"]
    assert blind["original"]["results"]["energy"]["rescaled"] == pytest.approx(1)
    assert "damage not looked for" in blind["ruined"]["verdict"]["text"]
    whole = replace(whole, oracles=logged(whole.oracles, 0.9), originals=logged(undone, 0.91), approaches=(logged(near, 0.89), logged(ruined, 0.3)))
    seen = {row["method"]: row["verdict"] for row in attack(whole, originals="N")["rows"]}
    assert (seen["near"]["damaged"], seen["ruined"]["damaged"]) == (False, True)
    assert "not looked for" not in seen["near"]["text"]


def test_more_originals_than_models_are_refused() -> None:
    with pytest.raises(InputError, match="--originals 1000, but there are 20 unlearned models at most; say N"):
        attack(folder(ensemble("near", 0.5, 20, seed=1), models=20), originals="1000")
