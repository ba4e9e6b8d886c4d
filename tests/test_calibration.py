"""How often the audit is wrong, on simulated studies with fixed seeds; `benchmarks/calibration.py` does the same at length and files the result."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

SIMULATED = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "calibration.py")))
DIGITS, CORRELATED = SIMULATED.REGIMES["digits"], SIMULATED.REGIMES["correlated"]
FILED = json.loads(SIMULATED.RESULT.read_text(encoding="utf-8"))


def check_perfect(seen: SimpleNamespace, slack: float = 0.0) -> None:
    # 7.2 % of 400: 5 % and two standard errors
    assert seen.accused <= 0.072 + slack
    assert 0.92 - slack <= seen.covers <= 0.98 + slack
    assert 0.93 - slack <= seen.forgotten <= 0.98 + slack


# ---- who is accused


def test_perfect_methods_are_not_accused_where_images_go_together() -> None:
    check_perfect(SIMULATED.perfect_methods(CORRELATED, 60, 1_999), slack=0.03)


@pytest.mark.slow
def test_perfect_methods_are_not_accused() -> None:
    check_perfect(SIMULATED.perfect_methods(DIGITS, 400, 1_999))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATED.REGIMES)
def test_in_full(name: str) -> None:
    check_perfect(SIMULATED.perfect_methods(SIMULATED.REGIMES[name], 400, 9_999))


def test_what_is_left_is_accused() -> None:
    seen = SIMULATED.seen(DIGITS, 40)  # a share of 80 % of 40 has a standard error of 6
    curve = dict(zip(SIMULATED.SHARES, seen.curve("share"), strict=True))
    assert curve[0.01] < 0.3  # a hundredth is beyond what 32 models show, or the test would be another
    assert curve[0.05] > 0.7
    assert curve[0.1] == 1
    assert seen.reaching("share", "unadjusted") < seen.reaching("share") < 0.06
    assert seen.rate("spread") > 0.9
    assert seen.rate("three") > 0.9
    # the weak spot: a little, on half of the images alone
    assert 0.1 < seen.rate("clean") < 0.8
    # the power sentence promises .8
    assert 0.62 <= seen.rate("promised.shift") <= 0.96
    assert 0.62 <= seen.rate("promised.share") <= 0.96


def test_the_least_shift_is_found() -> None:
    """The search by halves and a walk over all sizes find the same least shift."""
    study, found = SIMULATED.simulate(DIGITS, 3), SIMULATED.power_study(DIGITS, 3, 1_999)
    for kind, sizes, by in (("shift", SIMULATED.SHIFTS, study.sd), ("share", SIMULATED.SHARES, study.gap)):
        ps = [SIMULATED.p_value(study, study.perfect[0] + size * by, 1_999, 0.12) for size in sizes]
        for name, level in SIMULATED.LEVELS.items():
            assert found[f"{kind}.{name}"] == next(at for at, p in enumerate(ps) if p <= level)


def test_power_is_read_off_the_least_shifts() -> None:
    made = SIMULATED.Seen([{"shift.accused": at, "spread": p} for at, p in ((0, 0.004), (1, 0.02), (1, 0.3), (len(SIMULATED.SHIFTS), 0.001))])
    assert made.curve("shift")[:3] == [0.25, 0.75, 0.75]
    assert made.reaching("shift", wanted=0.5) == pytest.approx(0.03)  # half way from .02 to .04
    assert made.reaching("shift") is None
    assert made.rate("spread") == 0.5
    assert made.rate("spread", "unadjusted") == 0.75


# ---- coverage

# one of each kind of interval: over models, over pairs, delta method, Welch's, jackknife, half samples, trace
FEW = ("acc", "disagree", "energy", "gap", "klom.smooth", "loss", "mia_lr.auc", "tow", "trace")
STUDIES = 40


@pytest.mark.parametrize("left", [0.0, SIMULATED.SHIFTED])
def test_intervals_hold_the_truth(left: float) -> None:
    rows = [SIMULATED.coverage_study(32, left, seed, FEW) for seed in range(STUDIES)]
    for name in FEW:
        for rescaled in (False, True):
            held = [row[name] for row in rows]
            truth = SIMULATED.truth_of(name, left, rescaled)
            found = SIMULATED.cover(held, rescaled, truth)
            if found is None:
                assert name == "trace"  # its value is the share left: there is nothing to rescale
                continue
            assert found.studies >= STUDIES - 5
            assert not found.low, f"{name}: {found.held} of {found.studies} intervals hold {found.truth}"
            # a fifth of the width is seen for what it is, also of intervals that are wider than they need be
            assert SIMULATED.cover([narrowed(row) for row in held], rescaled, truth).low


def narrowed(row: list[float]) -> list[float]:
    value, lo, hi, other, other_lo, other_hi = (torch.nan if number is None else number for number in row)
    fifth = [value, value + (lo - value) / 5, value + (hi - value) / 5]
    return fifth if other_lo != other_lo else [*fifth, other, other + (other_lo - other) / 5, other + (other_hi - other) / 5]


def test_the_planted_share_is_what_the_trace_finds() -> None:
    rows = [SIMULATED.coverage_study(32, SIMULATED.SHIFTED, seed, ["trace"])["trace"] for seed in range(10)]
    assert sum(row[0] for row in rows) / 10 == pytest.approx(SIMULATED.SHIFTED, abs=0.02)


def test_cover_counts() -> None:
    rows: list[Any] = [[1.0, 0.0, 2.0, None, None, None], [3.0, 2.5, 3.5, None, None, None], [2.0, 1.0, 2.2, None, None, None], "not computed: N=2, needs 3"]
    # means of the others: 2.5, 1.5, 2.0
    found = SIMULATED.cover(rows)
    assert (found.held, found.studies, found.truth) == (1, 3, 2.0)
    assert SIMULATED.cover(rows, truth=1.5).held == 2
    assert SIMULATED.cover(rows, rescaled=True) is None
    assert SIMULATED.Cover(200, 200, 0.0, 1.0).conservative
    assert SIMULATED.Cover(170, 200, 0.0, 1.0).low
    assert not SIMULATED.Cover(180, 200, 0.0, 1.0).low  # 90 % of 200: chance


def test_every_study_draws_other_models_of_the_same_images() -> None:
    one, other = SIMULATED.audited(16, 0.0, 1), SIMULATED.audited(16, 0.0, 2)
    for side in ("originals", "oracles", "unlearned", "references"):
        assert torch.equal(getattr(one, side).labels, getattr(other, side).labels)
        assert not torch.equal(getattr(one, side).logits, getattr(other, side).logits)
    assert torch.equal(one.oracles.logits, SIMULATED.audited(16, 0.0, 1).oracles.logits)


# ---- what is filed


def test_every_metric_is_filed() -> None:
    assert set(FILED["coverage"]) == set(SIMULATED.measured()), "a metric came or went; run: python benchmarks/calibration.py"


# What is known to be too narrow, and why.
KNOWN: dict[str, str] = {}


def test_what_is_filed_is_good_enough() -> None:
    low = set()
    for name, sizes in FILED["coverage"].items():
        for n in ("32", "64", "128"):
            for side in sizes[n].values():
                low |= {name for what in ("ci", "rescaled_ci") if side.get(what, {}).get("low")}
    assert low == set(KNOWN)
    for one in FILED["accused"]:
        assert one["accused"] <= 0.05 + 2 * (0.05 * 0.95 / one["studies"]) ** 0.5
    assert {one["n"] for one in FILED["power"]} == {16, 32, 64, 128}


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    class Pool:
        @staticmethod
        def imap_unordered(perform: Any, left: list[Any]) -> list[Any]:
            return [(task, [task["first"]]) for task in reversed(left)]

    todo, kept = list(SIMULATED.chunks(9, kind="coverage", n=32)), SIMULATED.Kept(tmp_path / "kept.jsonl")
    assert [task["count"] for task in todo] == [4, 4, 1]
    kept.add(todo[1], [77])
    with kept.path.open("a") as file:
        file.write('\n[{"kind": "cov')  # stopped while it wrote
    said: list[str] = []
    found = SIMULATED.perform_all(Pool(), todo, kept, said.append)
    assert found == [(todo[0], [0]), (todo[1], [77]), (todo[2], [8])]
    assert len(said) == 2
