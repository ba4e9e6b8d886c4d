"""Corruptions: training labels or pixels changed on purpose, from a seed, before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Protocol

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.data.images import Images
from unlearnlab.data.mapped import Mapped
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec


class Corruption(Protocol):
    """Changes some training images; ``alike`` does the same to chosen held-out images, which then serve as controls."""

    def __call__(self, images: Images, seed: int) -> Images: ...

    def alike(self, images: Images, rows: Int64[Tensor, " m"], seed: int) -> Images: ...


@spec("corruption", "none")
class Clean:
    """Leave the labels of the release."""

    def __call__(self, images: Images, seed: int) -> Images:
        return images

    def alike(self, images: Images, rows: Tensor, seed: int) -> Images:
        return flip(images, rows, seed, "control.to")  # for noise that was there before we came


@spec("corruption", "symmetric_noise")
class SymmetricNoise:
    """Give a share of the images a label drawn uniformly from the other classes."""

    share: Annotated[float, Setting("share of images whose label is flipped", ge=0, le=1)] = 0.2

    def __call__(self, images: Images, seed: int) -> Images:
        chosen = torch.randperm(len(images), generator=generator(seed, "corrupt.who"))[: round(self.share * len(images))]
        return flip(images, chosen, seed, "corrupt.to")

    def alike(self, images: Images, rows: Tensor, seed: int) -> Images:
        return flip(images, rows, seed, "control.to")


@spec("corruption", "interclass_confusion", paper="arXiv:2201.06640")
class InterclassConfusion:
    """Give ``count``/2 random images of one class the label of another, and as many of that the label of the first.

    Source: Goel et al. 2022, the confusion test; used by SCRUB (Kurmanji et al. 2023). The images to forget are then those
    of the forget set ``mislabelled``.
    """

    a: Annotated[int, Setting("one class", symbol="A", ge=0)] = 3
    b: Annotated[int, Setting("the other class", symbol="B", ge=0)] = 5
    count: Annotated[int, Setting("images confused, half of each class", symbol="n", ge=2)] = 4000

    def __post_init__(self) -> None:
        if self.a == self.b:
            raise InputError(f"corruption 'interclass_confusion': a = b = {self.a}; name two different classes")
        if self.count % 2:
            raise InputError(f"corruption 'interclass_confusion': count = {self.count} must be even, half of each class")

    def __call__(self, images: Images, seed: int) -> Images:
        chosen = []
        for label in (self.a, self.b):
            members = (images.true_labels == label).nonzero()[:, 0]
            if len(members) < self.count // 2:
                raise InputError(
                    f"corruption 'interclass_confusion' asks for {self.count // 2} images of class {label}, but {len(members)} are trained on; lower count"
                )
            chosen.append(members[torch.randperm(len(members), generator=generator(seed, "corrupt.who", label))[: self.count // 2]])
        return self.alike(images, torch.cat(chosen), seed)

    def alike(self, images: Images, rows: Tensor, seed: int) -> Images:
        """The other label of the two for these images, which must be of one of the two classes."""
        labels = images.labels.clone()
        labels[rows] = self.a + self.b - images.true_labels[rows]
        return replace(images, labels=labels)


@spec("corruption", "backdoor", paper="arXiv:1708.06733")
class Backdoor:
    """Paint a black square on some images and give them the target label, so that models learn to obey the square.

    By default 10 % of the images, a 4×4 square two pixels off the lower right corner, as in Unlearn-Sparse (Jia et al. 2023).
    The trigger is painted on the stored pixels, before any augmentation. The images to forget are those of the forget set ``backdoor``.
    """

    share: Annotated[float, Setting("share of the training images that are poisoned", gt=0, lt=1)] = 0.1
    target: Annotated[int, Setting("the label they get", ge=0)] = 0
    size: Annotated[int, Setting("side of the square", unit="pixels", ge=1)] = 4
    margin: Annotated[int, Setting("distance of the square from the lower and right edges", unit="pixels", ge=0)] = 2
    value: Annotated[int, Setting("grey value of the square", ge=0, le=255)] = 0
    exclude_target: Annotated[bool, Setting("poison no image that is of the target class anyway")] = False

    def __call__(self, images: Images, seed: int) -> Images:
        if self.target >= images.classes:
            raise InputError(f"corruption 'backdoor': target = {self.target}, but the classes are 0 to {images.classes - 1}")
        allowed = (images.true_labels != self.target).nonzero()[:, 0] if self.exclude_target else torch.arange(len(images))
        count = round(self.share * len(images))
        if not 0 < count <= len(allowed):
            raise InputError(f"corruption 'backdoor': share = {self.share:g} of {len(images)} images is {count}, but {len(allowed)} can be poisoned")
        chosen = allowed[torch.randperm(len(allowed), generator=generator(seed, "corrupt.who"))[:count]]
        return self.alike(images, chosen.sort().values, seed)

    def alike(self, images: Images, rows: Tensor, seed: int) -> Images:
        labels = images.labels.clone()
        labels[rows] = self.target
        return replace(self.trigger(images, rows), labels=labels)

    def trigger(self, images: Images, rows: Int64[Tensor, " m"]) -> Images:
        """The square on these images, their labels left alone: what the success of the attack is measured on."""
        height, width = images.pixels.shape[-2:]
        if self.size + self.margin > min(height, width):
            raise InputError(f"corruption 'backdoor': a square of {self.size} at a margin of {self.margin} does not fit images of {height}×{width} pixels")
        if images.pixels.dtype != torch.uint8:
            raise InputError("corruption 'backdoor' paints uint8 pixels, and these are float32; give images as uint8")
        painted = images.pixels[rows]
        bottom, right = height - self.margin, width - self.margin
        painted[..., bottom - self.size : bottom, right - self.size : right] = self.value
        if isinstance(images.pixels, Mapped):
            pixels: Tensor | Mapped = images.pixels.putting(rows, painted)
        else:
            pixels = images.pixels.clone()
            pixels[rows] = painted
        triggered = images.triggered.clone()
        triggered[rows] = True
        return replace(images, pixels=pixels, triggered=triggered)


def flip(images: Images, rows: torch.Tensor, seed: int, purpose: str) -> Images:
    """The same images with the labels of these rows drawn uniformly from the classes that are not theirs."""
    labels = images.labels.clone()
    shift = torch.randint(1, images.classes, (len(rows),), generator=generator(seed, purpose))
    labels[rows] = (images.true_labels[rows] + shift) % images.classes
    return replace(images, labels=labels)
