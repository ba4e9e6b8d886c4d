"""The public names: what ``import unlearnlab`` promises, and the audit from end to end through them."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch

import unlearnlab as ul
from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import PARTS, Images, Split
from unlearnlab.data.partition import Stratified, split_for
from unlearnlab.nets.mlp import Mlp

N = 16
NO_VERDICT = "no verdict: N=4, needs 16"


def submodules() -> list[str]:
    return [module.name for module in pkgutil.walk_packages(ul.__path__, "unlearnlab.") if not module.name.endswith("__main__")]


def test_every_public_name_twice_with_all_submodules_imported() -> None:
    for module in submodules():
        importlib.import_module(module)
    for name in ul.__all__:
        first = getattr(ul, name)
        assert first is getattr(ul, name)
        assert not isinstance(first, ModuleType), name
        assert callable(first), name
        assert first.__name__ == name
    assert not {f"unlearnlab.{name}" for name in ul.__all__} & set(submodules())


@pytest.mark.parametrize("before", ["", "import unlearnlab.{home}; "], ids=["nothing", "its module"])
def test_a_name_is_found_whatever_was_imported_first(before: str) -> None:
    tried = "; ".join(f"{before.format(home=home)}assert callable(ul.{name})" for home, held in ul._HOMES.items() for name in held)
    subprocess.run([sys.executable, "-c", f"import unlearnlab as ul; {tried}"], check=True)


def test_importing_is_light() -> None:
    heavy = "torch", "numpy", "scipy", "sklearn", "rich", "cyclopts", "jinja2", "matplotlib", "importlib.metadata"
    words = f"import sys; before = set(sys.modules); import unlearnlab; print(sorted((set(sys.modules) - before) & {set(heavy)}))"
    assert subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_version_and_dir() -> None:
    assert ul.__version__ == version("unlearnlab")
    assert {*ul.__all__, "__version__"} <= set(dir(ul))
    with pytest.raises(AttributeError, match="module 'unlearnlab' has no attribute 'forget'"):
        _ = ul.forget


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(ul.__file__).read_text())
    seen = {(node.module, alias.asname) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names if alias.asname}
    assert seen == {(f"unlearnlab.{home}", name) for home, held in ul._HOMES.items() for name in held}


# ---- unlearn and audit, from training to verdict


@pytest.fixture(scope="module")
def trained() -> tuple[Split, ul.Stack, ul.Stack]:
    """Originals and oracles of a split of digits, half of whose forget set is mislabelled."""
    parts = Stratified(train=300, held_out=200, test=200)(Digits()(), 0)
    train = SymmetricNoise(0.2)(parts.train, 0)
    who = torch.cat([train.ids[train.mislabelled][:30], train.ids[~train.mislabelled][:30]])
    split = split_for(replace(parts, train=train), who, 0)
    net, recipe = Mlp(hidden=(64,))((1, 8, 8), 10), ul.Recipe(epochs=40, lr=0.2)
    return split, recipe(ul.Stack.init(net, range(N)), split.train), recipe(ul.Stack.init(net, range(100, 100 + N)), split.retain)


def test_from_training_to_verdict(trained: tuple[Split, ul.Stack, ul.Stack]) -> None:
    split, originals, oracles = trained
    some = {"finetune": ul.unlearn(originals, forget=split.forget, retain=split.retain, method="finetune", lr=0.05, batch=50)}
    again = ul.unlearn(originals, forget=split.forget, retain=split.retain, method="retrain", seed=200, recipe=ul.Recipe(epochs=40, lr=0.2))
    found = ul.audit(originals=originals, oracles=oracles, unlearned={"original": originals, "retrain": again, **some}, split=split)
    assert found.row("original").results["trace"].value == 1.0
    retrained, row = found.row("retrain").results["trace"].value, found.row("finetune")
    assert retrained is not None
    assert abs(retrained) < 0.1
    assert row.verdict.rule == "3a"
    assert 0.5 < (row.results["trace"].value or 0) < 0.97
    assert row.results["acc.retain"].value is not None
    assert "group.label.mislabelled.trace" in row.results
    # the same verdict from logits alone, as another framework would hand them over
    images = Images.join(getattr(split, name) for name in PARTS)
    part = [name for name in PARTS for _ in range(len(getattr(split, name)))]

    def seen(stack: ul.Stack) -> object:
        return ul.observe(stack, images, member=torch.zeros(len(stack), len(images), dtype=torch.bool), part=torch.zeros(len(images))).logits.numpy()

    stacks = {"original": originals, "retrain": again, **some}
    plain = ul.audit(
        originals=seen(originals), oracles=seen(oracles), unlearned={name: seen(one) for name, one in stacks.items()},
        labels=images.labels.numpy(), part=part,
    )  # fmt: skip
    assert [row.verdict for row in plain.rows] == [row.verdict for row in found.rows]
    assert plain.row("finetune").results["trace"] == row.results["trace"]


def test_four_models_are_too_few(trained: tuple[Split, ul.Stack, ul.Stack]) -> None:
    split, originals, oracles = trained
    first: Callable[[ul.Stack], ul.Stack] = lambda stack: stack.rows(range(4))  # noqa: E731
    after = ul.unlearn(first(originals), forget=split.forget, retain=split.retain, method="finetune", epochs=1)
    found = ul.audit(originals=first(originals), oracles=first(oracles), unlearned={"finetune": after}, split=split)
    assert found.row("finetune").verdict.text == NO_VERDICT
    assert NO_VERDICT in str(found)
