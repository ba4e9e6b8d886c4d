"""`benchmarks/methods.py` compares like with like: its plain loops, written without this library's, make the same models at the same cost."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from unlearnlab.stack import Stack

pytestmark = pytest.mark.slow  # trains the plain way

PLAIN = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "methods.py")))


@pytest.fixture(scope="module")
def task() -> SimpleNamespace:
    split, recipe, net, _ = PLAIN.task()
    return SimpleNamespace(split=split, recipe=recipe, stack=Stack.init(net, (1, 2, 3)))


@pytest.mark.parametrize("name", PLAIN.METHODS)
def test_plain_loops_end_at_the_same_models(task: SimpleNamespace, name: str) -> None:
    assert PLAIN.apart(name, task.stack, task.split, task.recipe) < PLAIN.APART


@pytest.mark.parametrize("name", PLAIN.METHODS)
def test_reported_cost_is_what_loaders_and_models_count(task: SimpleNamespace, name: str) -> None:
    method = PLAIN.method_of(name, **PLAIN.BRIEF.get(name, {"epochs": 2}))
    forward, backward, served = PLAIN.counted(name, task.stack.member(0), method, task.split, 1)
    _, reported = PLAIN.ours([task.stack], method, task.split, task.recipe)
    assert reported == {(forward, backward)}
    assert served == backward > 0
