"""Training 32 small CNNs: stacked, against the plain loop as users write it today. Needs at least 2x.

    python benchmarks/training.py [--models 32] [--epochs 4] [--repeats 5]

Both sides train ``small_cnn`` on 500 digits by the recipe of the study (batch 50, SGD, one-cycle 0.1), shortened
from 40 epochs to 4: the time of a step does not depend on how many there are. One thread. The two sides take
turns, so that a busy machine slows both; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.stack import Stack, chunk_size
from unlearnlab.train import Recipe

REQUIRED = 2.0


class Scans(Dataset[tuple[Tensor, int]]):
    """What a user writes: one item at a time, scaled by a transform (what torchvision's ``ToTensor`` does)."""

    def __init__(self, images: Images) -> None:
        self.pixels, self.labels = images.pixels, images.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.pixels[row].to(torch.float32).div(255), self.labels[row]


def plain(images: Dataset[tuple[Tensor, int]], seed: int, recipe: Recipe, spec: Mlp | SmallCnn) -> nn.Module:
    """One model by the loop of every tutorial."""
    torch.manual_seed(seed)
    model = spec((1, 8, 8), 10)
    loader = DataLoader(images, batch_size=recipe.batch, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=recipe.epochs * len(loader), cycle_momentum=False)
    model.train()
    for _ in range(recipe.epochs):
        running = 0.0
        for pixels, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pixels), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            running += loss.item()
    return model.eval()


def stacked(images: Images, seeds: range, recipe: Recipe) -> list[Stack]:
    """The same models in chunks."""
    net = SmallCnn()((1, 8, 8), 10)
    size = chunk_size(net)
    return [recipe(Stack.init(net, seeds[at : at + size]), images) for at in range(0, len(seeds), size)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    images = Digits()().rows(torch.arange(500))
    recipe, seeds = Recipe(epochs=asked.epochs), range(asked.models)
    stacked(images, range(2), Recipe(epochs=1))  # warm up: first calls import and compile
    plain(Scans(images), 0, Recipe(epochs=1), SmallCnn())
    seconds: dict[str, list[float]] = {"stacked": [], "plain": []}
    for turn in range(asked.repeats):
        start = time.perf_counter()
        chunks = stacked(images, seeds, recipe)
        between = time.perf_counter()
        models = [plain(Scans(images), seed, recipe, SmallCnn()) for seed in seeds]
        seconds["stacked"].append(between - start)
        seconds["plain"].append(time.perf_counter() - between)
        print(f"turn {turn + 1}: stacked {seconds['stacked'][-1]:.2f} s, plain {seconds['plain'][-1]:.2f} s", flush=True)
    with torch.no_grad():
        right = {
            "stacked": torch.cat([chunk.logits(images.pixels) for chunk in chunks]).argmax(-1) == images.labels,
            "plain": torch.stack([model(images.pixels) for model in models]).argmax(-1) == images.labels,
        }
    accuracy = {side: float(found.double().mean()) for side, found in right.items()}
    stacked_s, plain_s = (statistics.median(seconds[side]) for side in ("stacked", "plain"))
    ratio = plain_s / stacked_s
    print(f"{asked.models} models, {asked.epochs} epochs of {len(images)} images, batch {recipe.batch}, one thread, medians of {asked.repeats}")
    print(f"plain loop {plain_s:.2f} s (train accuracy {accuracy['plain']:.3f}), stacked {stacked_s:.2f} s (train accuracy {accuracy['stacked']:.3f})")
    print(f"ratio {ratio:.2f}x, required {REQUIRED}x")
    if abs(accuracy["stacked"] - accuracy["plain"]) > 0.03:
        print("FAILED: the two sides do not learn equally well")
        return 1
    if ratio < REQUIRED:
        print("FAILED: too slow")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
