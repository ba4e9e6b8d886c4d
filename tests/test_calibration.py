"""How often the audit is wrong, on simulated studies with fixed seeds; `benchmarks/calibration.py` prints the same and more."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SIMULATED = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "calibration.py")))
DIGITS, CORRELATED = SIMULATED.REGIMES["digits"], SIMULATED.REGIMES["correlated"]


def check_perfect(seen: SimpleNamespace, slack: float = 0.0) -> None:
    # 7.2 % of 400: 5 % and two standard errors
    assert seen.accused <= 0.072 + slack
    assert 0.92 - slack <= seen.covers <= 0.98 + slack
    assert 0.93 - slack <= seen.forgotten <= 0.98 + slack


@pytest.mark.slow
def test_perfect_methods_are_not_accused() -> None:
    check_perfect(SIMULATED.perfect_methods(DIGITS, 400))


def test_nor_where_images_go_together() -> None:
    check_perfect(SIMULATED.perfect_methods(CORRELATED, 60), slack=0.03)


def test_a_twentieth_of_the_trace_is_seen() -> None:
    assert SIMULATED.accused(DIGITS, 0.05, 200) > 0.8
    assert SIMULATED.accused(DIGITS, 0.1, 50) == 1
    assert SIMULATED.accused(DIGITS, -0.1, 50) == 1


def test_the_power_sentence_keeps_its_promise() -> None:
    uniform, share = SIMULATED.seen_as_promised(DIGITS, 200)
    assert 0.7 <= uniform <= 0.9
    assert 0.7 <= share <= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATED.REGIMES)
def test_in_full(name: str) -> None:
    check_perfect(SIMULATED.perfect_methods(SIMULATED.REGIMES[name], 400, 9_999))
