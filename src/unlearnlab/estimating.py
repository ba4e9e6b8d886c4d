"""What a study would take before anything like it was run here: images, passes over them, seconds, memory, disk.

The data need not be there: public data sets say how large they are. Nothing is written; the study's net is made, and timed on noise.
"""

from __future__ import annotations

import contextlib
import copy
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from unlearnlab import evidence
from unlearnlab import groundwork as ground
from unlearnlab.artefacts import clock, synchronise
from unlearnlab.contract import Answers, EnsembleScore, ProbeScore
from unlearnlab.data.images import Images
from unlearnlab.data.mapped import Mapped
from unlearnlab.data.partition import Parts
from unlearnlab.engine import Engine, Job, Local
from unlearnlab.filing import architecture
from unlearnlab.fit import Seen
from unlearnlab.forgetsets import BackdoorForget, ClassForget, IdsForget, Mislabelled
from unlearnlab.nets.pixels import Pixels
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, fields, info, to_dict
from unlearnlab.stack import Stack, chunk_size
from unlearnlab.study import Study
from unlearnlab.train import Recipe

STEPS, ENOUGH, LONG = 3, 0.5, 1.0  # steps timed in a row; the seconds after which no more follow; those of a step that needs no warm-up
TRIAL = 20  # steps timed of whole batches, however long they take
OBSERVED = 1024  # images at a time that ``observe`` shows to models
KEPT = 12  # ensembles whose outputs ``filing`` keeps in memory

# Copies of its weights that a model takes while it is trained or unlearned: the one given, a frozen one beside it, the one that is trained,
# its gradient, its momentum, and the last two anew as a step makes them.
COPIES = 7

Score = EnsembleScore | ProbeScore


# ---- images


@dataclass(frozen=True)
class Sizes:
    """How many images a study has of each kind; ``shape``: [c, h, w] as stored, ``mapped``: pixels stay on the disk.

    ``forget``: None where nobody can tell yet. ``about``: it is a guess.
    """

    train: int
    held_out: int
    test: int
    classes: int
    shape: tuple[int, ...]
    mapped: bool
    forget: int | None = None
    about: bool = False

    @property
    def retain(self) -> int:
        """At most, where it is not known how many are forgotten."""
        return self.train - (self.forget or 0)

    @property
    def all(self) -> int:
        return self.train + self.held_out + self.test

    def __str__(self) -> str:
        forgotten = "not known yet how many of them to forget" if self.forget is None else f"{'about ' * self.about}{self.forget} of them to forget"
        look = f"{'×'.join(map(str, self.shape))}, {self.classes} classes"
        return f"{self.train} trained on, {forgotten}; {self.held_out} held out, {self.test} for testing ({look})"


def sizes(study: Study, parts: Parts | None = None, forget: int | None = None) -> Sizes | None:
    """What is known of a study's images: from the divided images where they are there, else from what the data set says of itself.

    ``forget``: how many are forgotten, where that is known. None for data of the user's own that is not there.
    """
    if parts is not None:
        own = parts.train
        shape, mapped = tuple(own.pixels.shape[1:]), isinstance(own.pixels, Mapped)
        found = Sizes(len(own), len(parts.held_out), len(parts.test), own.classes, shape, mapped)
    else:
        facts, divide = getattr(study.dataset, "facts", None), getattr(study.partition, "sizes", None)
        divided = None if facts is None or divide is None else divide(facts)
        if facts is None or divided is None:
            return None
        train, held_out, test = divided
        found = Sizes(train, held_out, test, facts.classes, facts.shape, hasattr(study.dataset, "files"))
    if forget is not None:
        return replace(found, forget=forget)
    return replace(found, forget=_forgotten(study, found), about=isinstance(study.forget, ClassForget))


def _forgotten(study: Study, held: Sizes) -> int | None:
    chosen, corruption = study.forget, study.corruption
    if isinstance(chosen, ClassForget):
        return held.train // held.classes
    if isinstance(chosen, Mislabelled | BackdoorForget):
        changed = getattr(corruption, "count", None)
        return changed if changed is not None else round(getattr(corruption, "share", 0) * held.train) or None
    if isinstance(chosen, IdsForget):
        try:
            return len(chosen.content()["ids"])
        except InputError:
            return None  # a file that is not there yet
    return getattr(chosen, "count", None)


# ---- passes


def gathered(row: str, scores: Mapping[str, Score], study: Study) -> tuple[float, str] | None:
    """Of a row of models that are made beside the audited ones, the share of the images that each is trained on, and of which images."""
    if isinstance(score := scores.get(row), EnsembleScore):
        return score.share, "train"
    if row == "subset models":
        return study.attribution.share, "train"
    return (evidence.SHARE, "pool") if row == "reference models" else None


def passes(study: Study, row: str, scores: Mapping[str, Score], held: Sizes) -> float | None:
    """How many images a model of this row is trained on, counted each time; None where there is no telling.

    A method: its epochs (one, if it has none) times the forget and retain images, of those that it declares to read.
    """
    epochs = getattr(study.recipe, "epochs", None)
    if epochs is None:  # a recipe of one's own
        return None
    if (part := gathered(row, scores, study)) is not None:
        share, of = part
        return float(share * epochs * (held.train + (held.held_out if of == "pool" else 0)))
    if row in scores or row == "originals":
        return float(epochs * held.train)
    if row == "sparse originals":
        return float(_sparse(study) * held.train)
    if row in ("oracles", "dense oracles"):
        sparse = row == "oracles" and study.prune is not None and study.mask_from == "retain"
        return float((_sparse(study) if sparse else epochs) * held.retain)
    return _method(study.rows()[row], epochs, held)


def _sparse(study: Study) -> int:
    """Epochs that a pruning trains: of a trained model again after each round, of an untrained one once."""
    pruning: Any = study.prune
    again = study.recipe.epochs - ((study.recipe.rewind or 0) if getattr(pruning, "rewind_to", "") == "rewind" else 0)
    return again * (getattr(pruning, "rounds", 1) if "trained" in pruning.needs else 1)


def _method(method: Any, epochs: int, held: Sizes) -> float | None:
    kinds = {field.setting.kind: getattr(method, field.name) for field in fields(method.__class__)}
    if isinstance(method, Answers) or "pruning" in kinds:  # which train models of their own
        return None
    if "method" in kinds:
        inner = kinds["method"] if isinstance(kinds["method"], tuple) else (kinds["method"],)
        found = [_method(one, epochs, held) for one in inner]
        groups = len(getattr(kinds.get("refiner"), "names", ())) if len(inner) == 1 else 0  # one method may serve all groups
        return None if None in found else sum(one for one in found if one is not None) * max(1, groups)
    if info(method).name == "retrain":
        return float(epochs * held.retain)
    if "retain" not in method.reads and "forget" in method.reads and held.forget is None:
        return None
    seen = sum(getattr(held, part) or 0 for part in ("forget", "retain") if part in method.reads)
    if hasattr(method, "steps") and hasattr(method, "batch") and not hasattr(method, "epochs"):
        return float(method.steps * method.batch)
    own = getattr(method, "epochs", 1)
    return float((epochs if own is None else own) * seen)


# ---- seconds


@dataclass(frozen=True)
class Pace:
    """Seconds for one image to go forward and backward through one model, in chunks of ``chunk``: from so many steps timed."""

    seconds: float
    steps: int
    chunk: int
    device: str


class _Enough(Exception):  # noqa: N818 - no error
    """Ends a training run that was only to be timed."""


class _Stopwatch:
    """Times steps: ``trial`` of them, or a few. The first, which warms up, counts only where it takes long (never on an accelerator, or in a trial)."""

    def __init__(self, device: str, trial: int) -> None:
        self.device, self.trial, self.tick, self.times = device, trial, clock(device), list[float]()
        self.times.append(self.tick())

    def __call__(self, seen: Seen) -> None:
        synchronise(self.device)
        self.times.append(self.tick())
        took, first = self.times[-1] - self.times[0], len(self.times) == 2
        if self.trial:
            if len(self.times) > self.trial + 1:
                raise _Enough
        elif (took > LONG and self.device == "cpu" if first else took > ENOUGH) or len(self.times) > STEPS + 1:
            raise _Enough

    @property
    def steps(self) -> int:
        return max(1, len(self.times) - 2)

    @property
    def seconds(self) -> float:
        """Of one step."""
        return (self.times[-1] - self.times[-1 - self.steps]) / self.steps


def pace(study: Study, held: Sizes, plugins: tuple[str, ...] = (), trial: Engine | None = None) -> Pace | None:
    """Train the study's net by its recipe for a few steps on noise, a chunk at once as a run would; None for a recipe of one's own.

    ``trial``: the engine on which to do TRIAL steps, where the run itself would be.
    """
    if not isinstance(study.recipe, Recipe):
        return None
    engine = trial or Local(1)  # in this process, on one thread as all work is done
    setup = _setup(study, plugins, engine.device)
    [(_, found)] = engine.run([Job(_timed, (setup, held, TRIAL if trial else 0), "time a few steps")])
    assert isinstance(found, Pace)
    return found


def _timed(setup: ground.Setup, held: Sizes, trial: int) -> Pace:
    """Batches grow to the recipe's while they take no time. Short of that, a step is taken to cost so much, and so much more an image."""
    device, net, recipe = setup.device, architecture(setup, _noise(held, 1)), setup.spec("recipe")
    # a short recipe must last for a few steps, and compiling would take longer than all of it
    recipe = replace(recipe, epochs=max(recipe.epochs, (trial or STEPS) + 1), rewind=None, compiled=False)

    def run(stack: Stack, size: int) -> _Stopwatch:
        images, watch = _noise(held, size).to(device), _Stopwatch(device, trial)
        with contextlib.suppress(_Enough):
            replace(recipe, batch=size)(stack, images, Progress(), watch=[watch])
        return watch

    start = Stack.init(net, range(chunk_size(net))).to(device)
    whole, size, steps, found = min(recipe.batch, held.train), min(2, recipe.batch), 0, dict[int, float]()
    light = nn.Sequential(Pixels(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(held.shape[0], held.classes))
    run(Stack.init(light, range(len(start))).to(device), size)  # what is done but once, such as imports
    if trial:
        watch = run(start, whole)
        return Pace(watch.seconds / whole / len(start), watch.steps, len(start), device)
    while True:
        watch = run(start, size)
        found[size], steps = watch.seconds, steps + watch.steps
        if size == whole or watch.seconds > ENOUGH or (watch.seconds > ENOUGH / 4 and len(found) > 1):
            break
        size = min(whole, 4 * size)
    (before, less), (size, most) = (*found.items(),)[-2:] if len(found) > 1 else ((0, 0.0), *found.items())
    step = most + max(0.0, most - less) / (size - before) * (whole - size)
    return Pace(step / whole / len(start), steps, len(start), device)


def build_net(study: Study, held: Sizes, plugins: tuple[str, ...] = ()) -> nn.Module:
    """The study's net for such images; raises ``InputError`` where it does not fit them."""
    return architecture(_setup(study, plugins), _noise(held, 1))


def _setup(study: Study, plugins: tuple[str, ...], device: str = "cpu") -> ground.Setup:
    tables: dict[str, Any] = {kind: to_dict(getattr(study, kind)) for kind in ground.KINDS}
    return ground.Setup("", study.seed, **tables, normalise=study.normalise, plugins=plugins, jobs_on=device)


def _noise(held: Sizes, count: int) -> Images:
    chance = generator(0, "noise")
    pixels = torch.randint(256, (count, *held.shape), dtype=torch.uint8, generator=chance)
    return Images(pixels, torch.randint(held.classes, (count,), generator=chance), torch.arange(count), held.classes)


# ---- memory and disk


@dataclass(frozen=True)
class Footprint:
    """Bytes at most. ``base``: of any process. ``work``: more of one that trains or observes, where it computes. ``judge``: more of one that measures.

    ``whole``: more of the process that compares all rows in the end. ``disk``: what the images and models still to be made take in the store.
    """

    base: int
    work: int
    judge: int
    whole: int
    disk: int


def footprint(study: Study, net: nn.Module, held: Sizes, made: Mapping[str, int], *, finished: bool, stored: bool, gpu: bool = False) -> Footprint:
    """``made``: models of each row that are still to be made. ``finished``: does the run go as far as the audit? ``stored``: are the images there?"""
    base, chunk, batch = _resident(), chunk_size(net), min(getattr(study.recipe, "batch", held.train), held.train)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*net.parameters(), *net.buffers()))
    pixels, (saved, widest) = _bytes(held.shape), _activations(net, held)
    kept = 1 if chunk == 1 else 2  # in a stack layers turn their inputs about, and keep both
    training = chunk * (COPIES * weights + batch * (kept * saved + 5 * pixels))  # of a batch the bytes, and the same as float32
    observing = chunk * 2 * weights + min(OBSERVED, held.all) * 5 * (chunk * widest + pixels)  # as measured, from 2 for a chain of layers to 6
    images = 0 if held.mapped and not gpu else held.all * pixels
    answers, rows = (study.models * held.all * (4 * held.classes + 1) if finished else 0), 2 + len(study.rows())
    disk = _disk(study, held, weights, made, finished) + (0 if stored else held.all * pixels)
    return Footprint(base, images + max(training, observing), answers * min(KEPT, rows), answers * rows, disk)


def _disk(study: Study, held: Sizes, weights: int, made: Mapping[str, int], finished: bool) -> int:
    """What training keeps of models, what they say of every image, and how each image acts on every other."""
    states = 2 + (getattr(study.recipe, "rewind", None) is not None)  # initial, final, rewound
    live = 0 if study.prune is None else 0.25  # a byte for each weight
    said, total = held.all * (4 * held.classes + 1), 0
    for row, count in made.items():
        if row in ("subset models", "reference models") or row.startswith("models for "):  # whose weights nobody needs
            total += count * said
            continue
        kept = states if row in ("originals", "oracles", "dense oracles") else 1 + (row == "sparse originals") + live
        total += round(count * kept * weights) + (count * said if finished else 0)
    return total + (2 * held.train * held.all * held.classes if "subset models" in made else 0)


def _bytes(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _activations(net: nn.Module, held: Sizes) -> tuple[int, int]:
    """Bytes for each image that training keeps for the backward pass, and of the largest tensor among them."""
    net, seen = copy.deepcopy(net).train(), dict[int, Tensor]()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images = _noise(held, 2)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(images.pixels)
    found = [tensor.untyped_storage().nbytes() // len(images) for at, tensor in seen.items() if at not in own]
    return sum(found), max(found, default=0)


@cache
def _resident() -> int:
    """The most that this process has held before it tried anything: Python, torch and this package, as in every worker."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
