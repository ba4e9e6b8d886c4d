"""ResNets on an accelerator: our loop beside the plain one, its share of the card's matmul peak, stacked against sequential.

    python benchmarks/gpu.py [--out figures.json]          # on a CUDA device
    python benchmarks/gpu.py --device cpu --images 64 --batch 32 --seconds 0 --stacks 2 --nets resnet20s   # does the script run?

A synthetic CIFAR-shaped set. (1) ``resnet18`` at K = 1, images per second over whole steps (batch drawn, augmented, forward,
backward, update): the plain loop (DataLoader with per-item PIL transforms, float32) beside ours in float32, TF32, bfloat16, and
bfloat16 compiled. (2) The same as a share of the peak that the card reaches here on 8192-wide matrix products of that precision.
(3) K members in one call against K alone, for resnet9, resnet20s and resnet18 at K = 4, 8, 16. All sides take turns in one run;
figures are medians of the turns. There is no threshold: the run is a measurement.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from unlearnlab.data.augment import Crop, Flip
from unlearnlab.data.images import Images
from unlearnlab.fit import Precision
from unlearnlab.optimizers import Constant
from unlearnlab.spec import build
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TURNS = 3


def synthetic(count: int) -> Images:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return Images(pixels, torch.randint(0, 10, (count,), generator=draw), torch.arange(count), 10)


def network(name: str) -> nn.Module:
    made: nn.Module = build("net", name)((3, 32, 32), 10, MEAN, STD)
    return made


class Pictures(Dataset[tuple[Tensor, int]]):
    """What users write: one PIL image at a time, padded, cropped, mirrored, scaled, normalised."""

    def __init__(self, images: Images) -> None:
        self.pixels, self.labels = images.pixels[:].permute(0, 2, 3, 1).numpy(), images.labels.tolist()
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.pixels[row]), 4)
        left, top = (int(torch.randint(0, 9, (1,))) for _ in range(2))
        image = image.crop((left, top, left + 32, top + 32))
        if torch.rand(1) < 0.5:
            image = ImageOps.mirror(image)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (tensor - self.mean) / self.std, self.labels[row]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def plain(images: Images, batch: int, steps: int, device: str, workers: int) -> float:
    """Images per second of the loop of every tutorial, its workers started before the clock."""
    model = network("resnet18").to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = iter(DataLoader(Pictures(images), batch_size=batch, shuffle=True, num_workers=workers, pin_memory=device == "cuda", drop_last=True))

    def step() -> None:
        pixels, labels = (tensor.to(device, non_blocking=True) for tensor in next(loader))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(pixels), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()

    for _ in range(3):
        step()
    wait(device)
    start, done = time.perf_counter(), 0
    while done < steps:
        step()
        done += 1
    wait(device)
    return done * batch / (time.perf_counter() - start)


def ours(net: nn.Module, seeds: range, images: Images, batch: int, steps: int, device: str, **settings: Any) -> float:
    """Images per second, summed over members, of a recipe with crops and flips on pixels that lie on the device."""
    stack, held = Stack.init(net, tuple(seeds)).to(device), images.to(device)

    def run(count: int) -> float:
        some = held.rows(torch.arange(count * batch, device=device) % len(held)) if count * batch <= len(held) else held
        epochs = max(1, count * batch // len(some))
        recipe = Recipe(epochs=epochs, batch=batch, lr=0.01, schedule=Constant(), augment=(Crop(), Flip()), **settings)
        wait(device)
        start = time.perf_counter()
        recipe(stack, some)
        wait(device)
        return len(seeds) * epochs * len(some) / (time.perf_counter() - start)

    run(min(5, steps))  # warm up: algorithms are chosen, code is compiled
    return run(steps)


def matmul_peak(device: str, precision: Precision, width: int) -> float:
    """FLOP/s of a square matrix product, the best of several."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(width, width, device=device, dtype=kind) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    best = 0.0
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        wait(device)
        best = max(best, 5 * 2 * width**3 / (time.perf_counter() - start))
    torch.backends.cuda.matmul.allow_tf32 = before
    return best


def flops_per_image(name: str) -> float:
    """Of one forward and backward pass, counted by torch."""
    model, x = network(name), torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops() / len(x)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    device, images = asked.device, synthetic(asked.images)
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bfloat16") if device == "cuda" else ("float32", "bfloat16")
    workers = min(os.cpu_count() or 1, 16) if device == "cuda" else 0
    held: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "images": len(images),
        "batch": asked.batch,
        "turns": TURNS,
        "plain loop workers": workers,
        "peak": {precision: matmul_peak(device, precision, 8192 if device == "cuda" else 512) for precision in precisions},
        "flops per image": {name: flops_per_image(name) for name in asked.nets},
    }
    if "resnet18" in asked.nets:
        net, sides = network("resnet18"), dict[str, Callable[[int], float]]()
        sides["plain loop, float32"] = lambda steps: plain(images, asked.batch, min(steps, len(images) // asked.batch - 4), device, workers)
        for precision in precisions:
            sides[f"ours, {precision}"] = lambda steps, p=precision: ours(net, range(1), images, asked.batch, steps, device, precision=p)  # type: ignore[misc]
        sides["ours, bfloat16, compiled"] = lambda steps: ours(net, range(1), images, asked.batch, steps, device, precision="bfloat16", compiled=True)
        held["resnet18 images per second"] = in_turns(sides, asked.seconds, asked.batch)
    held["stacked"] = {}
    for name in asked.nets:
        for k in asked.stacks:
            net = network(name)
            sides = {
                "stacked": lambda steps, k=k, net=net: ours(net, range(k), images, asked.batch, max(1, steps // k), device, precision=precisions[-1]),  # type: ignore[misc]
                "one at a time": lambda steps, net=net: ours(net, range(1), images, asked.batch, steps, device, precision=precisions[-1]),  # type: ignore[misc]
            }
            try:
                found = in_turns(sides, asked.seconds, asked.batch)
            except torch.OutOfMemoryError:
                found = {}
            held["stacked"][f"{name} K={k}"] = found | ({"ratio": found["stacked"] / found["one at a time"]} if found else {"out of memory": 1.0})
            print(f"{name} K={k}: {held['stacked'][f'{name} K={k}']}", flush=True)
            gc.collect()
    return held


def in_turns(sides: dict[str, Callable[[int], float]], seconds: float, batch: int) -> dict[str, float]:
    """Medians over turns of what each side reaches in about so many seconds."""
    steps = {name: max(2, round(side(4) * seconds / batch)) for name, side in sides.items()}
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(TURNS):
        for name, side in sides.items():
            seen[name].append(side(steps[name]))
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0, help="about so long for each side and turn")
    parser.add_argument("--stacks", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--nets", nargs="*", default=["resnet18", "resnet9", "resnet20s"])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; nothing was measured")
        return 2
    held = measure(asked)
    flops = held["flops per image"]
    for name, speed in held.get("resnet18 images per second", {}).items():
        precision = name.split(", ")[1]
        share = 100 * speed * flops["resnet18"] / held["peak"][precision]
        print(f"resnet18, {name}: {speed:,.0f} images/s, {share:.0f} % of the matmul peak in {precision}")
    print(json.dumps(held, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(held, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
