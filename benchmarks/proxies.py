"""What the cheap scores cost beside training. Learning events may add at most a tenth to a training pass.

    python benchmarks/proxies.py [--members 8] [--epochs 4] [--repeats 15]

The recipe of the digits study (500 images, batch 50, SGD, one-cycle 0.1), shortened from 40 epochs to 4, on a stack of 8, as models are
trained there: once as it is, once watched for the four learning-event scores (``confidence``, ``max_conf``, ``entropy``, ``bi_acc``).
Both sides take turns, forth and back; what counts is the processor time of this process, so that a busy machine disturbs less, and the
ratio is the median of those of single turns. Reported without a threshold: ``loss_curvature``, after every epoch, as a multiple of the
same training; ``ho_ret``, at most 30 epochs on 297 held-out images, as a multiple of the training of 40 epochs before it, which is counted
in. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.partition import Parts, Stratified
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.progress import Progress
from unlearnlab.scores.curvature import LossCurvature
from unlearnlab.scores.held_out import HoRet
from unlearnlab.scores.learning_events import learning_events
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

REQUIRED = 1.10
FULL = 40  # epochs of the study


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def turns(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Processor seconds of both, taking turns; who begins changes every time."""
    taken: tuple[list[float], list[float]] = [], []
    for turn in range(repeats):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            taken[side].append(seconds((first, second)[side]))
    return taken


def measure(name: str, net: nn.Module, parts: Parts, members: int, epochs: int, repeats: int) -> float:
    """Print what each costs with this net; the ratio of watched to plain training."""
    recipe, stack = Recipe(epochs=epochs), Stack.init(net, range(members))

    def train() -> Stack:
        return recipe(stack, parts.train)

    for warm_up in (train, lambda: learning_events(stack, parts, recipe, Progress())):
        warm_up()
    plain, watched = turns(train, lambda: learning_events(stack, parts, recipe, Progress()), repeats)
    ratios = sorted(after / before for before, after in zip(plain, watched, strict=True))
    ratio, whole = statistics.median(ratios), statistics.median(plain)
    spread = f"quartiles {ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}, required {REQUIRED}x"
    print(f"{name:10} training {whole:.3f} s, with learning events {statistics.median(watched):.3f} s: {ratio:.3f}x ({spread})", flush=True)
    few = max(3, repeats // 3)
    for what, score in (("sign", LossCurvature()), (f"rademacher, {LossCurvature().count} draws", LossCurvature(directions="rademacher"))):
        before, after = turns(train, lambda score=score: score.probe(stack, parts, recipe, Progress()), few)  # type: ignore[misc]
        print(f"{name:10} loss_curvature ({what}): {statistics.median(a / b for b, a in zip(before, after, strict=True)):.2f}x training, medians of {few}")
    trained, passes = Recipe(epochs=FULL)(stack, parts.train), Progress()
    HoRet().probe(trained, parts, recipe, passes)
    before, after = turns(train, lambda: HoRet().probe(trained, parts, recipe, Progress()), few)
    share = statistics.median(a / b for b, a in zip(before, after, strict=True)) * epochs / FULL
    stopped = f"{passes.backward // len(parts.held_out)} epochs until the last of {members} copies stopped"
    print(f"{name:10} ho_ret: {1 + share:.2f}x training of {FULL} epochs ({stopped}), medians of {few}", flush=True)
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    parts = Stratified()(Digits()(), 0)
    parts = Parts(SymmetricNoise(0.2)(parts.train, 1), parts.held_out, parts.test)
    what = f"{asked.members} models, {asked.epochs} epochs of {len(parts.train)} images, batch {Recipe().batch}"
    print(f"{what}, one thread, processor time, medians of {asked.repeats} turns")
    nets = {"small_cnn": SmallCnn()((1, 8, 8), 10), "mlp": Mlp()((1, 8, 8), 10)}
    ratios = {name: measure(name, net, parts, asked.members, asked.epochs, asked.repeats) for name, net in nets.items()}
    slow = [name for name, ratio in ratios.items() if ratio > REQUIRED]
    if slow:
        print(f"FAILED: learning events cost more than a tenth of training on {', '.join(slow)}")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
