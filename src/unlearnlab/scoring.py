"""What is estimated from models made for the purpose: scores and attributions. No audited model is among them.

Every ``make_`` function here is a job, as in ``artefacts``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlearnlab.artefacts import clock, cost, make_trained, synchronise, training
from unlearnlab.attribution import observe_subsets
from unlearnlab.contract import EnsembleScore, FiledScore, ProbeScore, Score, Scores
from unlearnlab.data.images import PARTS, Images, grey_levels
from unlearnlab.engine import Job
from unlearnlab.filing import architecture, divergences, load_outputs, load_scores, load_stack, save_outputs
from unlearnlab.groundwork import Setup, Table, load_data, stored
from unlearnlab.metrics.statistics import spearman
from unlearnlab.outputs import Outputs
from unlearnlab.progress import Progress
from unlearnlab.scores.npz import write_npz
from unlearnlab.spec import InputError, digest, identity, info, key, to_dict
from unlearnlab.stack import Stack

Chunks = Callable[[str, int], Sequence[tuple[int, ...]]]  # the seeds of each chunk of so many models of a role
Wanted = tuple[str, str, Job]  # kind, key, and the job that makes it
ENDS = 12  # images shown of those most, and of those least, memorised

# ---- subset models


def subset_key(setup: Setup, data: str, images: str, seeds: Sequence[int], share: float) -> str:
    """The key of the outputs of models that were each trained on a random part of the training images with this fingerprint."""
    return key(setup.spec("recipe"), **_subset(setup, data, images, seeds, share))


def _subset(setup: Setup, data: str, images: str, seeds: Sequence[int], share: float) -> dict[str, Any]:
    return {**training(setup, images, seeds), "share": share, "points": f"data/{data}"}


def make_subset(setup: Setup, data: str, seeds: Sequence[int], share: float) -> str:
    """Train a chunk of models on random parts of the training images, and keep what they say of all images: the weights are not kept."""
    parts, recipe = load_data(setup, data), setup.spec("recipe")
    made = subset_key(setup, data, parts.train.fingerprint, seeds, share)

    def write(folder: Path) -> Table:
        progress = Progress(setup.store.partial("outputs", made), clock=clock(setup.device))
        groups = {"retain": parts.train, "validation": parts.held_out, "test": parts.test}
        part = torch.cat([torch.full((len(images),), PARTS.index(name)) for name, images in groups.items()])
        save_outputs(folder, observe_parts(setup, seeds, parts.train, Images.join(groups.values()), part, share, progress))
        return cost(progress, len(seeds), setup.device)

    manifest = {"name": "subsets", "spec": identity(recipe), **_subset(setup, data, parts.train.fingerprint, seeds, share)}
    setup.store.make("outputs", made, write, manifest=manifest)
    return made


def observe_parts(setup: Setup, seeds: Sequence[int], images: Images, points: Images, part: torch.Tensor, share: float, progress: Progress) -> Outputs:
    """Train a chunk of fresh models, each on a random ``share`` of the images, and observe them on the points; ``part``: theirs, as for ``Outputs``."""
    start = Stack.init(architecture(setup, images), seeds).to(setup.device)
    seen = observe_subsets(start, images.to(setup.device), points.to(setup.device), part, setup.spec("recipe"), share, progress)
    synchronise(setup.device)
    return seen


def subset_jobs(setup: Setup, data: str, images: str, chunks: Sequence[tuple[int, ...]], share: float) -> list[Wanted]:
    """What trains all subset models of an ensemble."""
    return [
        ("outputs", subset_key(setup, data, images, seeds, share), Job(make_subset, (setup, data, seeds, share), "train subset models")) for seeds in chunks
    ]


# ---- attributions


def attribution_key(setup: Setup, data: str, subsets: Sequence[str]) -> str:
    return key(setup.spec("attribution"), data=data, subsets=list(subsets))


def make_attribution(setup: Setup, data: str, subsets: Sequence[str]) -> str:
    """Estimate, from the outputs of subset models, what training on each image does to the logits on every other."""
    chosen, made = setup.spec("attribution"), attribution_key(setup, data, subsets)

    def write(folder: Path) -> Table:
        parts = load_data(setup, data)
        points = torch.cat([parts.train.ids, parts.held_out.ids, parts.test.ids])
        found = chosen(load_outputs(setup, subsets).rows(range(chosen.models)), parts.train.ids, points, folder)
        return {name: value for name, value in found.meta.items() if name in ("ridge", "heldout_correlation")}

    manifest = {"spec": identity(chosen), "data": f"data/{data}", "subsets": [f"outputs/{one}" for one in subsets]}
    setup.store.make("attribution", made, write, manifest=manifest)
    return made


# ---- scores


def score_steps(setup: Setup, data: str, images: str, score: Score, chunks: Chunks) -> tuple[list[Wanted], Wanted]:
    """The jobs that gather what a score is read off, and the one that reads it; ``images``: the fingerprint of the training images."""
    evidence: list[Wanted] = []
    if isinstance(score, EnsembleScore):
        evidence = subset_jobs(setup, data, images, chunks("subset", score.models), score.share)
    elif isinstance(score, ProbeScore):
        table, label = to_dict(score), f"probe {score.evidence}"
        evidence = [
            ("probes", probe_key(setup, data, images, score, seeds), Job(make_probe, (setup, data, table, seeds), label))
            for seeds in chunks("probe", score.models)
        ]
    read_off = [made for _, made, _ in evidence]
    return evidence, ("scores", score_key(setup, data, score, read_off), Job(make_scores, (setup, data, to_dict(score), read_off), f"score {info(score).name}"))


def probe_key(setup: Setup, data: str, images: str, score: ProbeScore, seeds: Sequence[int]) -> str:
    """The key of what a chunk of models gave: the same for all scores that gather the same evidence."""
    return digest(_probing(setup, data, images, score, seeds))


def _probing(setup: Setup, data: str, images: str, score: ProbeScore, seeds: Sequence[int]) -> dict[str, Any]:
    own = identity(score)
    settings = {name: value for name, value in own["settings"].items() if name != "models"}
    held = {"evidence": score.evidence, "version": own["version"], "settings": settings, "recipe": identity(setup.spec("recipe"))}
    return {**held, **training(setup, images, seeds), "data": f"data/{data}"} | ({"source": own["source"]} if "source" in own else {})


def make_probe(setup: Setup, data: str, table: Table, seeds: Sequence[int]) -> str:
    """Train a chunk of models on all training images and gather, meanwhile or afterwards, what a score is read off."""
    parts, recipe, score = load_data(setup, data), setup.spec("recipe"), setup.spec("score", table)
    made = probe_key(setup, data, parts.train.fingerprint, score, seeds)
    trained = make_trained(setup, data, None, seeds) if score.start == "trained" else ""
    if trained and (found := divergences(setup, trained)):
        raise InputError(f"score '{info(score).name}': training diverged for {found[0]} ({len(found)} of {len(seeds)} models); lower recipe.lr")

    def write(folder: Path) -> Table:
        progress = Progress(setup.store.partial("probes", made), clock=clock(setup.device))
        start = load_stack(setup, trained, parts.train) if trained else Stack.init(architecture(setup, parts.train), seeds).to(setup.device)
        found = score.probe(start, parts.to(setup.device), recipe, progress)
        synchronise(setup.device)
        arrays: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in found.items()}
        np.savez(folder / "probe.npz", **arrays)
        return cost(progress, len(seeds), setup.device)

    manifest = _probing(setup, data, parts.train.fingerprint, score, seeds) | ({"trained": f"stacks/{trained}"} if trained else {})
    setup.store.make("probes", made, write, manifest={"name": score.evidence, **manifest})
    return made


def score_key(setup: Setup, data: str, score: Score, read_off: Sequence[str]) -> str:
    return key(score, data=data, read_off=list(read_off))


def make_scores(setup: Setup, data: str, table: Table, read_off: Sequence[str]) -> str:
    """Make one number for every training image of what was gathered."""
    score = setup.spec("score", table)
    made = score_key(setup, data, score, read_off)

    def write(folder: Path) -> None:
        parts = load_data(setup, data)
        train = parts.train
        if isinstance(score, EnsembleScore):
            seen = load_outputs(setup, read_off).rows(range(score.models))
            try:
                seen.require_finite()
            except InputError as error:
                raise InputError(f"score '{info(score).name}': {str(error).partition(';')[0]}: its training diverged; lower recipe.lr") from error
            found = score(seen)
        elif isinstance(score, ProbeScore):
            found = score.score(_gathered(setup, read_off), train.ids.cpu())
        else:
            assert isinstance(score, FiledScore), f"{info(score).name} is no kind of score"
            found = score.read(train, parts.test, setup.store.manifest("data", data).get("size"))
        found.rows(train.ids)  # all of them have one, if only NaN
        beside = dict(found.beside)
        if (influence := beside.pop("influence", None)) is not None:  # as large as gigabytes: in a file of its own, which nobody reads with the scores
            np.save(folder / "influence.npy", influence.numpy())
        write_npz(folder / "scores.npz", replace(found, beside=beside), made)

    kind = "outputs" if isinstance(score, EnsembleScore) else "probes"
    setup.store.make("scores", made, write, manifest={"spec": identity(score), "data": f"data/{data}", "read_off": [f"{kind}/{one}" for one in read_off]})
    return made


def _gathered(setup: Setup, read_off: Sequence[str]) -> dict[str, torch.Tensor]:
    chunks = []
    for made in read_off:
        with np.load(stored(setup, "probes", made) / "probe.npz", allow_pickle=False) as held:
            chunks.append({name: torch.from_numpy(held[name]) for name in held.files})
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def seconds_of(setup: Setup, score: Score, read_off: Sequence[str]) -> float | None:
    """Processor seconds (on an accelerator: seconds) that making a score from nothing takes, training included; None where a file was read."""
    if isinstance(score, FiledScore):
        return None
    kind, total = "outputs" if isinstance(score, EnsembleScore) else "probes", 0.0
    for made in read_off:
        held = setup.store.manifest(kind, made)
        total += held["compute_seconds"] * len(held["seeds"])
        if "trained" in held:
            before = setup.store.manifest(*held["trained"].split("/"))
            total += before["compute_seconds"] * len(before["seeds"])
    return total


# ---- looking at scores


def seen_scores(setup: Setup, data: str, scored: Mapping[str, Score], steps: Mapping[str, tuple[Sequence[Wanted], Wanted]]) -> Table:
    """Of all scores of a study, once made, what there is to see, as plain data; ``steps``: of each, what ``score_steps`` gave.

    ``reference``: the score that is true memorisation ("": none), which the others are held against.
    """
    train = load_data(setup, data).train.to("cpu")
    found = {name: load_scores(setup, made) for name, (_, (_, made, _)) in steps.items()}
    read_off = {name: tuple(made for _, made, _ in evidence) for name, (evidence, _) in steps.items()}
    true = [name for name in ("memorisation", *found) if name in found and found[name].scale == "memorisation"]
    reference = true[0] if true else ""
    whole = seconds_of(setup, scored[reference], read_off[reference]) if reference else None
    columns = {name: scores.of(train.ids) for name, scores in found.items()}
    rows = []
    for name, values in columns.items():
        known, seconds = values[~values.isnan()], seconds_of(setup, scored[name], read_off[name])
        agreement = spearman(values, columns[reference]) if reference not in ("", name) else None
        rows.append({
            "name": name,
            "scale": found[name].scale,
            "models": getattr(scored[name], "models", 0),
            "with": [other for other in found if other != name and read_off[other] and read_off[other] == read_off[name]],
            "scored": len(known),
            "unscored": len(values) - len(known),
            "least": float(known.min()) if len(known) else None,
            "median": float(known.quantile(0.5)) if len(known) else None,
            "most": float(known.max()) if len(known) else None,
            "seconds": seconds,
            "share": seconds / whole if seconds is not None and whole else None,
            "agreement": None if agreement is None else asdict(agreement),
            "right": _right(found[name]),
            "ends": {"most": _end(train, values, True), "least": _end(train, values, False)},
        })  # fmt: skip
    images = {name: getattr(train, name).tolist() for name in ("ids", "labels", "true_labels")}
    stderr = {name: _beside(scores, "stderr", train.ids) for name, scores in found.items() if "stderr" in scores.beside}
    return {"reference": reference, "scores": rows, "images": images, "values": {name: held.tolist() for name, held in columns.items()}, "stderr": stderr}


def _right(scores: Scores) -> list[float] | None:
    """How often models are right on images that they were trained on, and on the others: what they do not learn they cannot memorise."""
    return [float(scores.beside[name].nanmean()) for name in ("right_in", "right_out")] if "right_in" in scores.beside else None


def _beside(scores: Scores, name: str, ids: torch.Tensor) -> list[float]:
    listed: list[float] = scores.beside[name][scores.rows(ids)].double().tolist()
    return listed


def _end(train: Images, values: torch.Tensor, most: bool) -> Table:
    """The images at one end of the order by (score, id), never more than half of those that have a score; ``tied``: how many more equal the last."""
    rows = (~values.isnan()).nonzero()[:, 0]
    rows = rows[train.ids[rows].argsort()]
    rows = rows[values[rows].argsort(stable=True)]
    rows = rows.flip(0) if most else rows
    count = min(ENDS, max(1, len(rows) // 2))
    shown, rest = rows[:count], rows[count:]
    some = train.rows(shown)
    return {
        "ids": some.ids.tolist(),
        "labels": some.labels.tolist(),
        "true_labels": some.true_labels.tolist(),
        "values": values[shown].tolist(),
        "tied": int((values[rest] == values[shown[-1]]).sum()) if len(shown) else 0,
        "pixels": grey_levels(some.pixels[:]).tolist(),
    }
