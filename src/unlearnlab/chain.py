"""Requests one after the other: a study for each, every one from the models that the one before it left."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearnlab import measuring
from unlearnlab.auditing import CALIBRATION
from unlearnlab.contract import Audit, Metric
from unlearnlab.forgetsets import ScoredForgetSet
from unlearnlab.spec import InputError, build, to_dict
from unlearnlab.store import Store, write_text_atomic
from unlearnlab.study import STAGES, Runner, Study, run

# How far the models of a step are from models retrained on what is left.
DRIFT = {"tow": {"name": "tow"}, "disagree_test": {"name": "disagree", "part": "test"}, "disagree_retain": {"name": "disagree", "part": "retain"}}
HEADINGS = ("request", "removed", "method", "tow", "retain_gap", "disagree_retain", "disagree_test", "retrain_now")


@dataclass(frozen=True)
class Drift:
    """One row of models after one request. ``removed``: images forgotten so far; ``retain_gap``: retain accuracy minus the retrained models'."""

    request: int
    removed: int
    method: str
    tow: float
    retain_gap: float
    disagree_retain: float
    disagree_test: float
    retrain_now: bool


def step_name(name: str, request: int) -> str:
    """Under which name the study of a request (1, 2, …) is kept."""
    return f"{name}.request-{request}"


def run_requests(study: Study, name: str, store: Store, *, until: str = "report", **how: Any) -> tuple[list[Runner], list[Drift]]:
    """Carry out all requests of a study, in order; interrupted work goes on. ``how``: as for ``study.run``.

    All forget sets are chosen before anything is trained, or, where scores choose some, before anything is forgotten. A method that
    cannot go on from models that a request changed raises ``InputError`` at that request; one that a budget stopped is left out of all later
    ones. Up to ``mask`` means the masks of every request, so that all but the last are carried out.
    """
    assert study.requests is not None
    asked = (study.forget, *study.requests.sets)
    runners: list[Runner] = []
    parents: dict[str, tuple[str, ...]] = {}
    stopped: dict[str, int] = {}

    def carry_out(at: int, until: str) -> Runner:
        title = f"{study.title}: request {at + 1} of {len(asked)}"
        step = replace(study, forget=asked[at], requests=None, scores=tuple(study.scored().values()), title=title)
        try:
            return run(step, step_name(name, at + 1), store, until=until, earlier=asked[:at], parents=parents, left_out=stopped, **how)
        except InputError as error:
            raise InputError(f"request {at + 1} of {len(asked)}: {error}") from error

    for stage in ("data", *(["forget"] if any(isinstance(one, ScoredForgetSet) for one in asked) else [])):
        for at in range(len(asked)):
            # a later request that cannot be met is refused before hours of training; where scores tell who is asked for, before anything is forgotten
            carry_out(at, min(stage, until, key=STAGES.index))
    for at in range(len(asked)):
        # a mask is of the models that the request before left
        runner = carry_out(at, "unlearn" if until == "mask" and at + 1 < len(asked) else until)
        runners.append(runner)
        # calibration rows start from the originals each time: doing nothing, and retraining on what is left
        parents = {row: keys for row, keys in runner.unlearned.items() if row not in CALIBRATION and row not in runner.answered}
        stopped |= {row: at + 1 for row in runner.refused if row not in runner.answered}  # what answers starts anew each time
    found = [row for at, runner in enumerate(runners, 1) for row in drift(study, runner, at)] if runners[-1].document else []
    if found:
        _write(found, store.study(name), [runner.name for runner in runners], to_dict(study))
    return runners, found


def drift(study: Study, runner: Runner, request: int) -> list[Drift]:
    """How far each row of a step is from retraining."""
    assert study.requests is not None
    rows: list[Drift] = []
    best = 1.0  # what the retrained models score: no method can be asked for more
    for method in sorted(runner.unlearned, key=lambda name: name != "retrain"):
        audit = measuring.gather(runner.setup, runner.data_key, runner.forget_key, runner.ensembles(method))
        values = {name: _value(build("metric", table), audit) for name, table in DRIFT.items()}
        gap = float(_accuracy(audit, "unlearned") - _accuracy(audit, "oracles"))
        removed = int((audit.unlearned.part == 0).sum())
        best = values["tow"] if method == "retrain" else best
        late = method not in CALIBRATION and (values["tow"] < study.requests.tow * best or abs(gap) > study.requests.gap)
        rows.append(Drift(request, removed, method, values["tow"], gap, values["disagree_retain"], values["disagree_test"], late))
    return rows


def _value(metric: Metric, audit: Audit) -> float:
    found = metric(audit).value
    return float("nan") if found is None else found


def _accuracy(audit: Audit, who: str) -> float:
    seen = getattr(audit, who).of("retain")
    return float((seen.predicted == seen.labels).double().mean())


def _write(rows: Sequence[Drift], folder: Path, steps: Sequence[str], study: dict[str, Any]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADINGS)
    table.writerows([getattr(row, name) for name in HEADINGS] for row in rows)
    write_text_atomic(folder / "drift.csv", text.getvalue())
    write_text_atomic(folder / "index.json", json.dumps({"requests": list(steps), "study": study}))
    write_text_atomic(folder / "drift.svg", _picture(rows))


def _picture(rows: Sequence[Drift]) -> str:
    """Disagreement with retrained models on the test set, request by request, a line for each method."""
    from unlearnlab.report.canvas import canvas, to_svg

    figure, axes = canvas(3.2)
    ax = axes.flat[0]
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        ax.plot([row.request for row in mine], [row.disagree_test for row in mine], marker="o", label=method)
    ax.set_xticks(sorted({row.request for row in rows}))
    ax.set_xlabel("request")
    ax.set_ylabel("test images on which predictions differ from retraining")
    ax.legend(fontsize="small")
    return to_svg(figure, "drift")
