"""Settings of the methods in the `digits` study: a small grid each, equal budget, on other forget sets.

Two tuning studies with seeds of their own (other training images, noise, forget sets and models than the study shown), 16 originals
and 16 oracles each, six settings for every method. Objective, to be small: |trace| + (|ΔRA| + |ΔFA| + |ΔVA|) / 3, the last three
being differences in accuracy to the oracles on retain, forget and validation images; the mean over both studies. The test images are
never looked at. Ties go to the earlier setting.

    python benchmarks/tune_digits.py [--workers N]     # a few minutes; writes benchmarks/tune_digits.json

`tests/test_digits_study.py` checks that the shipped preset holds the winners.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w
import torch

from unlearnlab.contract import Audit, Context, only_declared
from unlearnlab.data.images import Split
from unlearnlab.data.partition import Parts, split_for
from unlearnlab.engine import Job, Local
from unlearnlab.metrics.trace import Trace
from unlearnlab.outputs import Outputs, observe
from unlearnlab.seeds import model_seeds
from unlearnlab.spec import build
from unlearnlab.stack import Stack
from unlearnlab.studyfiles import read

SEEDS = (101, 102)  # of the tuning studies; the study shown has another
MODELS = 16
GRIDS: dict[str, dict[str, list[Any]]] = {  # six settings each, at most a quarter of retraining's epochs
    "finetune": {"lr": [0.01, 0.03, 0.1, 0.15, 0.2, 0.3], "epochs": [10]},
    "gradient_ascent": {"lr": [0.001, 0.003, 0.01, 0.02, 0.03, 0.05], "epochs": [5]},
    "neggrad_plus": {"lr": [0.03, 0.1], "retain_weight": [0.9, 0.95, 0.98], "epochs": [10]},
    "l1_sparse": {"lr": [0.1, 0.2], "penalty": [3e-5, 3e-4, 3e-3], "epochs": [10]},
    "random_label": {"lr": [0.03, 0.1, 0.2], "passes": ["concat", "sequential"], "epochs": [10]},
    "salun": {"lr": [0.1, 0.2], "budget": [0.2, 0.5, 0.8], "epochs": [10]},
    "ssd": {"selection": [1.2, 1.5, 2.0, 3.0, 4.5, 6.0]},
    "del": {"lr": [0.1, 0.2], "budget": [0.3, 0.6, 0.9], "epochs": [10]},
}


def settings(method: str) -> list[dict[str, Any]]:
    """The six tables of a method's grid; methods that train take batches of 50, as the recipe does, and those that see retain images end at rate 0."""
    grid = GRIDS[method]
    fixed: dict[str, Any] = {} if method == "ssd" else {"batch": 50} if method in ("gradient_ascent", "del") else {"batch": 50, "schedule": "cosine"}
    return [{"name": method, **fixed, **dict(zip(grid, values, strict=True))} for values in itertools.product(*grid.values())]


@cache
def tuning_study(seed: int) -> tuple[Split, Any, Stack, Stack, Stack, Outputs, Outputs]:
    """Split, recipe, own initial weights, originals, oracles and what both say."""
    torch.set_num_threads(1)
    _, study = read("digits", [f"seed={seed}"])
    parts = study.partition(study.dataset(), seed)
    parts = Parts(study.corruption(parts.train, seed), parts.held_out, parts.test)
    split = split_for(parts, study.forget(parts.train, seed), seed)
    net = study.net(tuple(parts.train.pixels.shape[1:]), parts.train.classes)
    init = Stack.init(net, model_seeds("original", MODELS, seed))
    originals = study.recipe(init, parts.train)
    oracles = study.recipe(Stack.init(net, model_seeds("oracle", MODELS, seed)), split.retain)
    return split, study.recipe, init, originals, oracles, see(originals, split, True), see(oracles, split, False)


def see(stack: Stack, split: Split, knew: bool) -> Outputs:
    images, part = split.together()
    member = torch.isin(part, torch.tensor([0, 1] if knew else [1])).expand(len(stack), -1)
    return observe(stack, images, member=member, part=part)


def objective(seed: int, table: dict[str, Any]) -> dict[str, float]:
    """What one setting scores in one tuning study."""
    split, recipe, init, originals, _, p, o = tuning_study(seed)
    method = build("method", table)
    ctx = Context(originals.seeds, recipe, original_init=init)
    made = method(originals, *only_declared(method, split, ctx))
    if made.diverged:
        return {"objective": float("inf"), "diverged": len(made.diverged)}
    u = see(made, split, True)
    trace = Trace()(Audit(p, o, u, torch.arange(MODELS))).value
    assert trace is not None, "the tuning studies leave a mark"

    def accuracy(seen: Outputs, part: str) -> float:
        here = seen.of(part)
        return float((here.predicted == here.labels).double().mean())

    gaps = {part: accuracy(u, part) - accuracy(o, part) for part in ("retain", "forget", "validation")}
    return {"objective": abs(trace) + sum(map(abs, gaps.values())) / 3, "trace": trace, **gaps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=None)
    cases = [(seed, table) for seed in SEEDS for method in GRIDS for table in settings(method)]
    found: list[dict[str, float]] = [{}] * len(cases)
    with Local(parser.parse_args().workers) as engine:
        for done, (at, scores) in enumerate(engine.run([Job(objective, case, str(case)) for case in cases]), 1):
            found[at] = scores
            print(f"{done}/{len(cases)}", file=sys.stderr, end="\r")
    report: dict[str, Any] = {"seeds": SEEDS, "models": MODELS, "objective": "|trace| + (|dRA| + |dFA| + |dVA|) / 3, mean over seeds", "methods": {}}
    for method in GRIDS:
        tried = []
        for table in settings(method):
            scores = [scores for (_, held), scores in zip(cases, found, strict=True) if held == table]
            names = {name for held in scores for name in held}
            mean = {name: round(sum(held.get(name, float("nan")) for held in scores) / len(scores), 4) for name in sorted(names)}
            tried.append({"settings": {name: value for name, value in table.items() if name != "name"}, **mean})
        best = min(tried, key=lambda held: held["objective"])
        report["methods"][method] = {"best": best["settings"], "tried": tried}
        for held in tried:
            print(method, "*" if held is best else " ", held)
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(f"\n[[methods]]\nname = {json.dumps(method)}\n{tomli_w.dumps(held['best'])}" for method, held in report["methods"].items()))


if __name__ == "__main__":
    main()
