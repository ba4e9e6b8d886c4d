"""Squared gradients of single examples: ours, against the loop over batches of one as users write it today. Needs at least 5x.

    python benchmarks/fisher.py [--images 500] [--repeats 5]

Both sides measure the mean over digits of (∂ cross-entropy / ∂θ)², the importance of ``ssd`` and the empirical Fisher
information, of one model: a ``small_cnn`` and a small ``mlp``. One thread. The two sides take turns, so that a busy
machine slows both; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images
from unlearnlab.gradients import mean_squared_gradient
from unlearnlab.nets.mlp import Mlp
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.progress import Progress
from unlearnlab.stack import Stack

REQUIRED = 5.0


def plain(model: nn.Module, images: Images) -> dict[str, Tensor]:
    """What a user writes: batches of one, since ``backward`` only gives sums."""
    loader = DataLoader(TensorDataset(images.pixels[:].float() / 255, images.labels), batch_size=1)
    importance = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.eval()
    for pixels, labels in loader:
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(pixels), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, p in model.named_parameters():
            assert p.grad is not None
            importance[name] += p.grad.detach() ** 2
    return {name: value / len(loader) for name, value in importance.items()}


def compare(name: str, net: nn.Module, images: Images, repeats: int) -> bool:
    """One table; False if too slow or if the two sides disagree."""
    stack = Stack.init(net, (0,))
    model = stack.member(0)
    warm = images.rows(torch.arange(20))
    mean_squared_gradient(stack, warm, Progress())  # warm up: first calls import and compile
    plain(model, warm)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(repeats):
        start = time.perf_counter()
        found = mean_squared_gradient(stack, images, Progress())
        between = time.perf_counter()
        expected = plain(model, images)
        seconds["ours"].append(between - start)
        seconds["plain"].append(time.perf_counter() - between)
        print(f"{name}, turn {turn + 1}: ours {seconds['ours'][-1]:.3f} s, plain {seconds['plain'][-1]:.3f} s", flush=True)
    furthest = max(float((found[n][0] - e).abs().max() / e.abs().max().clamp(min=1e-20)) for n, e in expected.items())
    ours, theirs = (statistics.median(seconds[side]) for side in ("ours", "plain"))
    weights = sum(p.numel() for p in net.parameters())
    print(f"{name} ({weights} weights), {len(images)} images, one thread, medians of {repeats}: plain loop {theirs:.3f} s, ours {ours:.3f} s")
    print(f"{name}: ratio {theirs / ours:.1f}x, required {REQUIRED:g}x; largest relative difference of a tensor's entries {furthest:.1e}")
    if furthest > 1e-3:
        print("FAILED: the two sides do not find the same")
    if theirs / ours < REQUIRED:
        print("FAILED: too slow")
    return furthest <= 1e-3 and theirs / ours >= REQUIRED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    images = Digits()().rows(torch.arange(asked.images))
    nets = {"small_cnn": SmallCnn(), "mlp": Mlp(hidden=(64,))}
    held = [compare(name, net((1, 8, 8), 10), images, asked.repeats) for name, net in nets.items()]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
