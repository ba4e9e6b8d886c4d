"""How what models say is observed and measured: outputs, audits, metrics.

Every ``make_`` function here is a job, as in ``artefacts``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnlab import auditing
from unlearnlab.contract import Audit, Relearning, Result, Triggered
from unlearnlab.data.images import PARTS
from unlearnlab.filing import load_curves, load_outputs, load_stack, outputs_key, save_outputs
from unlearnlab.groundwork import Setup, Table, load_groups, load_requests, load_split, stored
from unlearnlab.outputs import observe
from unlearnlab.spec import digest, identity


def make_outputs(setup: Setup, data: str, forget: str, stack: str, trained_on: tuple[str, ...]) -> str:
    """Evaluate a chunk of models once on every image of the split."""
    split = load_split(setup, data, forget)
    made = outputs_key(stack, split.fingerprint)

    def write(folder: Path) -> None:
        images, part = split.together()
        models = load_stack(setup, stack, images)
        member = torch.isin(part, torch.tensor([PARTS.index(name) for name in trained_on])).expand(len(models), -1)
        seen = observe(models, images, member=member, part=part)
        save_outputs(folder, seen)

    setup.store.make("outputs", made, write, manifest={"name": "outputs", "stack": f"stacks/{stack}", "split": split.fingerprint})
    return made


@dataclass(frozen=True)
class Ensembles:
    """Keys of the chunks that an audit compares, in seed order. ``answers``: the unlearned ones are outputs, with no models behind them.

    ``beside``: what else metrics read, by name, as ``kind/key`` (see ``evidence``).
    """

    originals: tuple[str, ...]
    oracles: tuple[str, ...]
    unlearned: tuple[str, ...]
    answers: bool = False
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Under which kind the unlearned chunks are stored."""
        return "outputs" if self.answers else "stacks"

    def outputs(self, who: str, split: str) -> list[str]:
        """The keys of what they say."""
        made: tuple[str, ...] = getattr(self, who)
        return list(made) if who == "unlearned" and self.answers else [outputs_key(one, split) for one in made]


def gather(setup: Setup, data: str, forget: str, stacks: Ensembles) -> Audit:
    """All that the metrics of one method may look at."""
    split = load_split(setup, data, forget)
    seen = {name: load_outputs(setup, stacks.outputs(name, split.fingerprint)) for name in ("originals", "oracles", "unlearned")}
    flipped = torch.cat([getattr(split, part).mislabelled for part in PARTS]).cpu()
    groups = {"mislabelled": flipped, "clean": ~flipped} if bool(flipped.any()) else {}
    if len(requests := load_requests(setup, forget)) > 1:  # each request's images, beside all that are not forgotten
        ids, others = seen["unlearned"].ids, seen["unlearned"].part != PARTS.index("forget")
        groups |= {f"request {at}": torch.isin(ids, torch.tensor(asked)) | others for at, asked in enumerate(requests, 1)}
    for name, chosen in load_groups(setup, forget).items():  # as images were chosen by their scores
        groups[name] = torch.isin(seen["unlearned"].ids, torch.tensor(chosen)) | (seen["unlearned"].part != PARTS.index("forget"))
    n = len(seen["unlearned"])
    parents = torch.arange(n) if len(seen["originals"]) == n else torch.zeros(n, dtype=torch.int64)  # or one original for all
    sides = seen["originals"], seen["oracles"], seen["unlearned"]
    true = torch.cat([getattr(split, part).true_labels for part in PARTS]).cpu()
    return Audit(*sides, parents=parents, groups=groups, facts=_facts(setup, stacks), seed=setup.seed, true_labels=true, **_beside(setup, stacks))


def _beside(setup: Setup, stacks: Ensembles) -> dict[str, Any]:
    """What metrics read beside the three ensembles, as far as it was made."""

    def keys(name: str) -> list[str]:
        return [made.partition("/")[2] for made in stacks.beside[name]]

    found: dict[str, Any] = {name: load_outputs(setup, keys(name)) for name in ("references", "untrained") if name in stacks.beside}
    if "triggered/unlearned" in stacks.beside:
        originals, oracles, unlearned = (load_outputs(setup, keys(f"triggered/{side}")) for side in ("originals", "oracles", "unlearned"))
        found["triggered"] = Triggered(originals, oracles, unlearned, setup.spec("corruption").target)
    taught = [name.split("/")[1] for name in stacks.beside if name.startswith("relearning/") and name.endswith("/unlearned")]
    found["relearning"] = {name: Relearning(*(load_curves(setup, keys(f"relearning/{name}/{side}")) for side in ("oracles", "unlearned"))) for name in taught}
    return found


def _facts(setup: Setup, stacks: Ensembles) -> dict[str, Tensor]:
    def per_model(keys: Sequence[str], name: str, kind: str = "stacks") -> Tensor:
        found: list[float | None] = []
        for made in keys:
            held = setup.store.manifest(kind, made)
            value = held.get(name)
            found += value if isinstance(value, list) else [value] * len(held["seeds"])
        return torch.tensor([math.nan if value is None else value for value in found], dtype=torch.float64)

    facts = {
        "seconds": per_model(stacks.unlearned, "compute_seconds", stacks.kind),
        "retrain_seconds": per_model(stacks.oracles, "compute_seconds"),
        "example_passes": per_model(stacks.unlearned, "example_passes", stacks.kind),
        "retrain_example_passes": per_model(stacks.oracles, "example_passes"),
    }
    peak = per_model(stacks.unlearned, "peak_bytes", stacks.kind)
    facts |= {} if bool(peak.isnan().any()) else {"peak_bytes": peak}  # not every system tells
    if stacks.answers:
        return facts
    if all("outside_mask" in setup.store.manifest("stacks", made) for made in stacks.unlearned):
        facts["outside_mask"] = per_model(stacks.unlearned, "outside_mask")
    return facts | {name: per_model(stacks.unlearned, name) for name in ("changed", "rel_l2", "sparsity_prunable", "sparsity_all")}


def metrics_key(setup: Setup, data: str, forget: str, stacks: Ensembles, name: str, metrics: Sequence[Table]) -> str:
    return digest({"data": data, **_measuring(setup, forget, stacks, name, metrics)})


def _measuring(setup: Setup, forget: str, stacks: Ensembles, name: str, metrics: Sequence[Table]) -> dict[str, Any]:
    kinds = {"originals": "stacks", "oracles": "stacks", "unlearned": stacks.kind}
    ensembles = {who: [f"{kind}/{made}" for made in getattr(stacks, who)] for who, kind in kinds.items()}
    return {
        "name": name,
        "metrics": [identity(setup.spec("metric", metric)) for metric in metrics],
        "of_groups": list(auditing.GROUPABLE),
        "checks": 2,  # counted on when an integrity check changes: what an older one refused is measured
        **ensembles,
        **({"beside": {name: list(made) for name, made in stacks.beside.items()}} if stacks.beside else {}),
        "forget": forget,
        "seed": setup.seed,
    }


def make_metrics(setup: Setup, data: str, forget: str, stacks: Ensembles, name: str, metrics: Sequence[Table]) -> str:
    """Measure one method; a method whose integrity checks fail is not measured."""
    chosen = [setup.spec("metric", metric) for metric in metrics]
    made = metrics_key(setup, data, forget, stacks, name, metrics)

    def write(folder: Path) -> None:
        audit = gather(setup, data, forget, stacks)
        found = {} if auditing.integrity(audit, name) else auditing.measure(audit, chosen, tuple(audit.groups))
        (folder / "results.json").write_text(json.dumps({key: result.to_json() for key, result in found.items()}))

    setup.store.make("metrics", made, write, manifest=_measuring(setup, forget, stacks, name, metrics))
    return made


def load_results(setup: Setup, made: str) -> dict[str, Result]:
    held = json.loads((stored(setup, "metrics", made) / "results.json").read_text())
    return {name: Result.from_json(result) for name, result in held.items()}
