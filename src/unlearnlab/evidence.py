"""What metrics may need beside the three ensembles: reference models, untrained nets, triggered images, relearning curves.

Each is made only where a metric of the study reads it. Every ``make_`` function here is a job, as in ``artefacts``; none of them
changes an audited model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from unlearnlab.artefacts import clock, cost, synchronise, training
from unlearnlab.contract import Metric
from unlearnlab.data.images import PARTS, Images, Split
from unlearnlab.engine import Job
from unlearnlab.filing import architecture, load_stack, save_curves, save_outputs
from unlearnlab.fit import Seen, Shuffled, cross_entropy, fit
from unlearnlab.groundwork import Setup, Table, load_split
from unlearnlab.measuring import Ensembles
from unlearnlab.metrics.relearn import Lesson
from unlearnlab.optimizers import Sgd
from unlearnlab.outputs import lowest_argmax, observe
from unlearnlab.progress import Progress
from unlearnlab.scoring import Wanted, observe_parts
from unlearnlab.spec import InputError, digest, identity, info, key, within
from unlearnlab.stack import Stack

SHARE = 0.5  # of the images that a reference model is trained on
POOL = ("forget", "retain", "control")  # the images that share is drawn from: with controls, which else no model has seen
UNTRAINED = 8  # nets; metrics.md §6.3 asks for 5


def needed(metrics: Iterable[Metric]) -> frozenset[str]:
    """What these metrics, and those within them, declare that they need beside the three ensembles."""
    return frozenset(name for one in _all(metrics) for name in getattr(one, "needs", ()))


def lessons(metrics: Iterable[Metric]) -> dict[str, Lesson]:
    """How models are taught the forget set again for these metrics, by key; what several read alike is made once."""
    found = [one.lesson for one in _all(metrics) if isinstance(getattr(one, "lesson", None), Lesson)]
    return {lesson.key: lesson for lesson in found}


def _all(metrics: Iterable[Metric]) -> list[Any]:
    return [one for metric in metrics for one in within(metric) if info(one).kind == "metric"]


# ---- what a study needs


@dataclass(frozen=True)
class Evidence:
    """What the metrics of a study read beside the three ensembles; ``split``: the fingerprint of its split.

    ``chunks``: the seeds of each chunk of so many models of a role.
    """

    setup: Setup
    data: str
    forget: str
    split: str
    metrics: tuple[Metric, ...]
    references: int
    chunks: Callable[[str, int], Sequence[tuple[int, ...]]]

    def trained(self) -> dict[str, list[Wanted]]:
        """The reference models, if a metric needs them: by far the dearest of all."""
        if "references" not in needed(self.metrics):
            return {}
        asking = [(seeds, (self.setup, self.data, self.forget, seeds)) for seeds in self.chunks("reference", self.references)]
        return {
            "references": [
                ("outputs", reference_key(self.setup, self.split, seeds), Job(make_references, given, "train reference models")) for seeds, given in asking
            ]
        }

    def beside(self, held: Ensembles) -> dict[str, list[Wanted]]:
        """All that is needed for one row, by name (``triggered/oracles`` …), with the jobs that make it; rows share most of it.

        A row that gives outputs and no models cannot be shown other images, nor be taught.
        """
        here, needs, found = (self.setup, self.data, self.forget), needed(self.metrics), self.trained()
        if "untrained" in needs:
            found["untrained"] = [
                ("outputs", untrained_key(self.setup, self.split, seeds), Job(make_untrained, (*here, seeds), "observe untrained nets"))
                for seeds in self.chunks("untrained", UNTRAINED)
            ]
        sides = () if held.answers else ("originals", "oracles", "unlearned")
        if "triggered" in needs and bears_trigger(self.setup):
            for side in sides:
                found[f"triggered/{side}"] = [
                    ("outputs", triggered_key(self.setup, self.split, made), Job(make_triggered, (*here, made), "observe triggered images"))
                    for made in getattr(held, side)
                ]
        for name, lesson in lessons(self.metrics).items():
            for side in sides[1:]:
                found[f"relearning/{name}/{side}"] = [
                    ("relearning", relearned_key(self.setup, self.split, made, lesson), Job(make_relearned, (*here, made, lesson), "teach again"))
                    for made in getattr(held, side)
                ]
        return found

    def naming(self, held: Ensembles) -> Ensembles:
        """The row with the names of what its metrics read beside it."""
        return replace(held, beside={name: tuple(f"{kind}/{made}" for kind, made, _ in wanted) for name, wanted in self.beside(held).items()})


# ---- reference models


def reference_key(setup: Setup, split: str, seeds: Sequence[int]) -> str:
    """The key of the outputs of models trained on known random halves of the forget, retained and control images of a split."""
    return key(setup.spec("recipe"), **_reference(setup, split, seeds))


def _reference(setup: Setup, split: str, seeds: Sequence[int]) -> dict[str, Any]:
    return {**training(setup, split, seeds), "share": SHARE, "pool": list(POOL)}


def pool_of(split: Split) -> Images:
    """Forget, retained and control images together, in order of id: who may have been seen by a reference model."""
    joined = Images.join([getattr(split, part) for part in POOL])
    return joined.rows(joined.ids.argsort())


def make_references(setup: Setup, data: str, forget: str, seeds: Sequence[int]) -> str:
    """Train a chunk of models by the study's recipe, each on a random half of the pool, and keep what they say of every image of the split.

    Dense, also where originals are pruned. The weights are not kept: these models are never audited.
    """
    split, recipe = load_split(setup, data, forget), setup.spec("recipe")
    made = reference_key(setup, split.fingerprint, seeds)

    def write(folder: Path) -> Table:
        progress = Progress(setup.store.partial("outputs", made), clock=clock(setup.device))
        seen = observe_parts(setup, seeds, pool_of(split), *split.together(), SHARE, progress)
        try:
            seen.require_finite()
        except InputError as error:
            raise InputError(f"reference models: {str(error).partition(';')[0]}: its training diverged; lower recipe.lr") from error
        save_outputs(folder, seen)
        return cost(progress, len(seeds), setup.device)

    setup.store.make("outputs", made, write, manifest={"name": "references", "spec": identity(recipe), **_reference(setup, split.fingerprint, seeds)})
    return made


# ---- untrained nets


def untrained_key(setup: Setup, split: str, seeds: Sequence[int]) -> str:
    return digest(_untrained(setup, split, seeds))


def _untrained(setup: Setup, split: str, seeds: Sequence[int]) -> dict[str, Any]:
    return {"untrained": True, **training(setup, split, seeds)}


def make_untrained(setup: Setup, data: str, forget: str, seeds: Sequence[int]) -> str:
    """What nets with fresh weights say of every image of the split."""
    split = load_split(setup, data, forget)
    made = untrained_key(setup, split.fingerprint, seeds)

    def write(folder: Path) -> None:
        images, part = split.together()
        fresh = Stack.init(architecture(setup, images), seeds).to(setup.device)
        save_outputs(folder, observe(fresh, images, member=torch.zeros(len(seeds), len(images), dtype=torch.bool), part=part))

    setup.store.make("outputs", made, write, manifest={"name": "untrained", **_untrained(setup, split.fingerprint, seeds)})
    return made


# ---- triggered images


def bears_trigger(setup: Setup) -> bool:
    """Can the study's corruption paint a trigger that asks for a class?"""
    corruption = setup.spec("corruption")
    return hasattr(corruption, "trigger") and hasattr(corruption, "target")


def triggered_key(setup: Setup, split: str, stack: str) -> str:
    return digest({"stack": stack, "split": split, "trigger": identity(setup.spec("corruption"))})


def make_triggered(setup: Setup, data: str, forget: str, stack: str) -> str:
    """What a chunk of models says of the test images with the trigger painted on; their labels are the true ones."""
    split, corruption = load_split(setup, data, forget), setup.spec("corruption")
    made = triggered_key(setup, split.fingerprint, stack)

    def write(folder: Path) -> None:
        painted = corruption.trigger(split.test, torch.arange(len(split.test), device=split.test.labels.device))
        painted, models = replace(painted, labels=split.test.true_labels), load_stack(setup, stack, split.retain)
        part = torch.full((len(painted),), PARTS.index("test"))
        save_outputs(folder, observe(models, painted, member=torch.zeros(len(models), len(painted), dtype=torch.bool), part=part))

    manifest = {"name": "triggered", "stack": f"stacks/{stack}", "split": split.fingerprint, "trigger": identity(corruption)}
    setup.store.make("outputs", made, write, manifest=manifest)
    return made


# ---- relearning curves


def relearned_key(setup: Setup, split: str, stack: str, lesson: Lesson) -> str:
    return digest(_relearning(setup, split, stack, lesson))


def _relearning(setup: Setup, split: str, stack: str, lesson: Lesson) -> dict[str, Any]:
    return {"lesson": asdict(lesson), "stack": f"stacks/{stack}", "split": split, "seed": setup.seed}


def make_relearned(setup: Setup, data: str, forget: str, stack: str, lesson: Lesson) -> str:
    """Teach copies of a chunk of models the forget set again, and keep the course of their accuracy on it alone."""
    split = load_split(setup, data, forget)
    made = relearned_key(setup, split.fingerprint, stack, lesson)

    def write(folder: Path) -> Table:
        progress = Progress(setup.store.partial("relearning", made), clock=clock(setup.device))
        models = load_stack(setup, stack, split.forget)
        save_curves(folder, relearn(models, split.forget, lesson, setup.seed, progress))
        synchronise(setup.device)
        return cost(progress, len(models), setup.device)

    setup.store.make("relearning", made, write, manifest={"name": "relearning", **_relearning(setup, split.fingerprint, stack, lesson)})
    return made


def relearn(stack: Stack, images: Images, lesson: Lesson, seed: int, progress: Progress | None = None) -> Float64[Tensor, "models draws steps"]:
    """Accuracy on the images before the first step and after each one of a lesson; the stack itself is untouched.

    Batches depend on (seed, draw) alone: every model of every ensemble is shown the same ones in the same order.
    """
    progress, curves = progress or Progress(), []
    for draw in range(lesson.draws):
        same = (seed,) * len(stack)
        stream = Shuffled(images, lesson.batch, same, f"order.relearn.{draw}")
        course = _Course(stack, images, lesson.steps)
        update = Sgd(momentum=lesson.momentum, weight_decay=0.0)
        fit(stack, stream, cross_entropy, lr=lesson.lr, optimizer=update, steps=lesson.steps, watch=[course], progress=progress, seeds=same)
        curves.append(course.state["accuracy"])
    return torch.stack(curves, 1)


class _Course:
    """Collects the accuracy after every step; saved and put back with the fit, so that an interruption loses none of it."""

    def __init__(self, stack: Stack, images: Images, steps: int) -> None:
        self.images = images
        self.state = {"accuracy": torch.zeros(len(stack), steps + 1, dtype=torch.float64)}
        self.state["accuracy"][:, 0] = _accuracy(stack, images)

    def __call__(self, seen: Seen) -> None:
        self.state["accuracy"][:, seen.step + 1] = _accuracy(seen.stack(), self.images)


def _accuracy(stack: Stack, images: Images, batch: int = 1024) -> Float64[Tensor, " models"]:
    """Share right, in eval mode; a model that broke knows nothing."""
    right = torch.zeros(len(stack), dtype=torch.float64)
    with torch.no_grad():
        for at in range(0, len(images), batch):
            logits = stack.logits(images.pixels[at : at + batch].to(stack.device))
            hit = (lowest_argmax(logits) == images.labels[at : at + batch].to(stack.device)) & torch.isfinite(logits).all(-1)
            right += hit.sum(1).double().cpu()
    return right / len(images)
