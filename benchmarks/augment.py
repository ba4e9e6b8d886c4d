"""Augmented batches of CIFAR-sized images: on whole tensors, against Pillow image by image. Crop and flip need at least 12x.

    python benchmarks/augment.py [--batch 256] [--images 5120] [--repeats 9]

Both sides go through the same uint8 RGB images of 32×32 pixels in a new order and yield float32 batches in [0, 1]. The
plain side is a data set whose ``__getitem__`` applies the usual transforms (pad, crop, mirror, to tensor, each with its
numbers from torch's generator) behind a DataLoader; ours picks the batch, augments it as one member's and scales it. One
thread and no workers. The two sides take turns, so that a busy machine slows both; the ratio is that of the medians. Given
the same numbers, the two make the same images, which is checked first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unlearnlab.data.augment import Augmentation, Crop, Flip, augmented
from unlearnlab.data.autoaugment import POLICY, AutoAugment
from unlearnlab.data.images import Images
from unlearnlab.seeds import generator

# least ratio of images per second, a third below what was measured
REQUIRED = {"crop and flip": 12.0, "crop, flip and autoaugment": 4.0}
CHAINS: dict[str, tuple[Augmentation, ...]] = {"crop and flip": (Crop(), Flip()), "crop, flip and autoaugment": (Crop(), Flip(), AutoAugment())}

Picture = Image.Image
Draw = Callable[[], float]
GREY = (128, 128, 128)
EPOCHS = 5  # of ours in a turn, to one of the plain side


def crop(image: Picture, draw: Draw) -> Picture:
    padded = ImageOps.expand(image, 4)
    top, left = int(draw() * 9), int(draw() * 9)
    return padded.crop((left, top, left + 32, top + 32))


def flip(image: Picture, draw: Draw) -> Picture:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw() < 0.5 else image


def moved(image: Picture, matrix: tuple[float, ...]) -> Picture:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GREY)


OPERATIONS: dict[str, Callable[[Picture, float], Picture]] = {
    "shear_x": lambda image, s: moved(image, (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda image, s: moved(image, (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": lambda image, s: moved(image, (1, 0, 150 / 331 * 32 * s, 0, 1, 0)),
    "translate_y": lambda image, s: moved(image, (1, 0, 0, 0, 1, 150 / 331 * 32 * s)),
    "rotate": lambda image, s: image.rotate(30 * s, fillcolor=GREY),
    "invert": lambda image, s: ImageOps.invert(image),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 - 256 * abs(s)),  # type: ignore[arg-type]
    "posterize": lambda image, s: ImageOps.posterize(image, round(8 - 4 * abs(s))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
}


def autoaugment(image: Picture, draw: Draw) -> Picture:
    for name, share, magnitude in POLICY[int(draw() * 25)]:
        applied, sign = draw() < share, 1 if draw() < 0.5 else -1
        if applied:
            image = OPERATIONS[name](image, sign * magnitude / 9)
    return image


PLAIN = {"crop and flip": (crop, flip), "crop, flip and autoaugment": (crop, flip, autoaugment)}


def uniform() -> float:
    return torch.rand(1).item()


class Pictures(Dataset[tuple[Tensor, int]]):
    """What a user writes: one item at a time, through a list of transforms, the last of which is what torchvision's ``ToTensor`` does."""

    def __init__(self, images: Images, transforms: Sequence[Callable[[Picture, Draw], Picture]], draw: Draw = uniform) -> None:
        self.data, self.labels = images.pixels.permute(0, 2, 3, 1).contiguous().numpy(), images.labels.tolist()
        self.transforms, self.draw = transforms, draw

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.data[row])
        for transform in self.transforms:
            image = transform(image, self.draw)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255), self.labels[row]


def batched(images: Images, chain: Sequence[Augmentation], size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch for one member."""
    for step, rows in enumerate(torch.randperm(len(images), generator=generator(0, "order", epoch)).split(size)):
        pixels = augmented(chain, images.pixels.index_select(0, rows)[None], [0], epoch * len(images) + step)[0]
        yield pixels.to(torch.float32).div_(255), images.labels[rows]


def agree(images: Images, name: str) -> bool:
    """The same images from the same numbers; a few may differ where Pillow was built to fuse float operations."""
    chain, some = CHAINS[name], images.rows(torch.arange(256))
    u = torch.rand(len(some), sum(one.draws for one in chain), generator=generator(0, "augment", 0))
    plain = Pictures(some, PLAIN[name], iter(u.double().flatten().tolist()).__next__)
    differ = augmented(chain, some.pixels[None], [0], 0)[0] / 255 != torch.stack([plain[row][0] for row in range(len(plain))])
    return float(differ.flatten(1).any(1).double().mean()) <= (0.05 if "autoaugment" in name else 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (asked.images, 3, 32, 32), generator=draw, dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (asked.images,), generator=draw), torch.arange(asked.images), 10)
    failed = False
    for name, chain in CHAINS.items():
        if not agree(images, name):  # this also warms up
            print(f"FAILED: the two sides make different images by {name}")
            failed = True
        loader = DataLoader(Pictures(images, PLAIN[name]), batch_size=asked.batch, shuffle=True)
        speed: dict[str, list[float]] = {"batched": [], "plain": []}
        for turn in range(asked.repeats):
            start = time.perf_counter()
            for epoch in range(turn * EPOCHS, (turn + 1) * EPOCHS):
                for _ in batched(images, chain, asked.batch, epoch):
                    pass
            between = time.perf_counter()
            for _ in loader:
                pass
            end = time.perf_counter()
            speed["batched"].append(EPOCHS * asked.images / (between - start))
            speed["plain"].append(asked.images / (end - between))
        ours, theirs = (statistics.median(speed[side]) for side in ("batched", "plain"))
        print(f"{name}: plain {theirs:,.0f} images/s, batched {ours:,.0f} images/s, ratio {ours / theirs:.1f}x, required {REQUIRED[name]:g}x", flush=True)
        if ours / theirs < REQUIRED[name]:
            print("FAILED: too slow")
            failed = True
    print(f"{asked.images} RGB images of 32×32, batch {asked.batch}, one thread, medians of {asked.repeats} turns of {EPOCHS} epochs (plain: 1)")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
