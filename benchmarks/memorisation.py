"""Models for memorisation, as the score ``memorisation`` trains them: stacked, against one at a time as users write it today.

    python benchmarks/memorisation.py [--models 48] [--plain 6] [--turns 3]
    python benchmarks/memorisation.py --full     # all 400 stacked, 10 one at a time, 5 turns: about ten minutes

Both sides train ``mlp`` and ``small_cnn`` from scratch by the recipe of the study ``digits`` (40 epochs, batch 50), each model on its own random
350 of the 500 noisily labelled digits, and ask it about all 1 797. The stacked side is ``attribution.observe_subsets``, chunk by chunk; the plain
side is the loop of every tutorial over a ``DataLoader`` that reads one item at a time. One thread. The two sides take turns; rates are medians over
these, of however many models each side made in one, and count the processor time of this process, which other work on the machine stretches least.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from training import Scans, plain

from unlearnlab.attribution import observe_subsets, subsets
from unlearnlab.data.images import PARTS, Images
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.outputs import Outputs
from unlearnlab.scores.memorisation import Memorisation
from unlearnlab.seeds import model_seeds
from unlearnlab.stack import Stack, chunk_size
from unlearnlab.studyfiles import read
from unlearnlab.train import Recipe

SHARE = Memorisation.share
REQUIRED = {"mlp": 2.0, "small_cnn": 1.5}
NETS = {"mlp": Mlp(), "small_cnn": SmallCnn()}
ALIKE = 0.05  # by how much the sides' accuracies may differ: there are few plain models


def data() -> tuple[Images, Images, Tensor]:
    """The training images of the study, all images it has, and of what part these are."""
    study = read("digits")[1]
    parts = study.partition(study.dataset(), study.seed)
    groups = {"retain": study.corruption(parts.train, study.seed), "validation": parts.held_out, "test": parts.test}
    part = torch.cat([torch.full((len(images),), PARTS.index(name)) for name, images in groups.items()])
    return groups["retain"], Images.join(groups.values()), part


def alone(spec: Mlp | SmallCnn, train: Images, points: Images, seed: int, recipe: Recipe) -> Tensor:
    """One model by the loop of every tutorial, and which of the points it answers right."""
    rows, _ = subsets([seed], len(train), SHARE)
    model = plain(Subset(Scans(train), rows[0].tolist()), seed, recipe, spec)
    with torch.no_grad():
        return torch.cat([model(pixels).argmax(1) == labels for pixels, labels in DataLoader(Scans(points), batch_size=256)])


def stacked(spec: Mlp | SmallCnn, train: Images, points: Images, part: Tensor, seeds: tuple[int, ...], recipe: Recipe) -> list[Outputs]:
    """The same models in chunks, as a study makes them."""
    net = spec((1, 8, 8), 10)
    size = chunk_size(net)
    return [observe_subsets(Stack.init(net, seeds[at : at + size]), train, points, part, recipe, SHARE) for at in range(0, len(seeds), size)]


class Timer:
    """Seconds on the wall and of this process, for each turn."""

    def __init__(self) -> None:
        self.wall, self.own = list[float](), list[float]()

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall.append(time.perf_counter() - self._began[0])
        self.own.append(time.process_time() - self._began[1])


def median(timer: Timer, of: str) -> float:
    return statistics.median(getattr(timer, of))


def compare(name: str, models: int, few: int, turns: int) -> list[str]:
    """Train and time both sides; what went wrong."""
    train, points, part = data()
    recipe, spec = read("digits")[1].recipe, NETS[name]
    seeds, short = model_seeds("subset", models), Recipe(epochs=1)
    stacked(spec, train, points, part, seeds[:2], short)  # warm up: first calls import and compile
    alone(spec, train, points, 0, short)
    timers, seen, right = {"stacked": Timer(), "plain": Timer()}, list[Outputs](), list[Tensor]()
    each, one = models // turns, few // turns
    for turn in range(turns):
        with timers["stacked"]:
            seen += stacked(spec, train, points, part, seeds[turn * each : (turn + 1) * each], recipe)
        with timers["plain"]:
            right += [alone(spec, train, points, seed, recipe) for seed in seeds[turn * one : (turn + 1) * one]]
    rates, wall = ({"stacked": each / median(timers["stacked"], of), "plain": one / median(timers["plain"], of)} for of in ("own", "wall"))
    ratio = rates["stacked"] / rates["plain"]
    whole = Outputs.join(seen)
    correct = {"stacked": whole.predicted == whole.labels, "plain": torch.stack(right)}
    tested = part == PARTS.index("test")
    accuracy = {side: float(found[:, tested].double().mean()) for side, found in correct.items()}
    words = [f"{side} {rates[side]:.2f} models/s (n = {len(correct[side])})" for side in rates]
    print(
        f"{name}: {words[0]}, {words[1]}, ratio {ratio:.2f}x; on the wall {wall['stacked']:.2f} and {wall['plain']:.2f}: {wall['stacked'] / wall['plain']:.2f}x"
    )
    print(f"  400 models: {400 / rates['stacked']:.0f} s and {400 / rates['plain']:.0f} s; test accuracy {accuracy['stacked']:.3f} and {accuracy['plain']:.3f}")
    scores = Memorisation(models=len(whole))(whole)
    known = int((~scores.values.isnan()).sum())
    wrong = scores.of(train.ids[train.mislabelled]).nanmean(), scores.of(train.ids[~train.mislabelled]).nanmean()
    told = f"memorisation of {known} digits: mislabelled {wrong[0]:.2f}, others {wrong[1]:.2f}"
    print(f"  {told}; median standard error {float(scores.beside['stderr'].nanmedian()):.3f}", flush=True)
    failed = [f"{name} is {ratio:.2f}x as fast, required {REQUIRED[name]}x"] if ratio < REQUIRED[name] else []
    return failed + ([f"{name}: the two sides do not learn equally well"] if abs(accuracy["stacked"] - accuracy["plain"]) > ALIKE else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=48, help="stacked models of each net, a multiple of 8 times the turns")
    parser.add_argument("--plain", type=int, default=6, help="models one at a time")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="400 models, 10 one at a time, 5 turns")
    asked = parser.parse_args()
    models, few, turns = (400, 10, 5) if asked.full else (asked.models, asked.plain, asked.turns)
    if models % (8 * turns) or few % turns or not few:
        parser.error(f"{models} stacked models must be a multiple of 8 for each of {turns} turns, and {few} plain ones of the turns")
    torch.set_num_threads(1)
    failed = [line for name in NETS for line in compare(name, models, few, turns)]
    for line in failed:
        print(f"FAILED: {line}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
