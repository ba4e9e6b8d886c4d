"""Corruptions: training labels changed on purpose, from a seed, before anything is trained."""

from __future__ import annotations

from typing import Annotated

import torch

from unlearnlab.data.images import Images
from unlearnlab.seeds import generator
from unlearnlab.spec import Setting, spec


@spec("corruption", "none")
class Clean:
    """Leave the labels of the release."""

    def __call__(self, images: Images, seed: int) -> Images:
        return images


@spec("corruption", "symmetric_noise")
class SymmetricNoise:
    """Give a share of the images a label drawn uniformly from the other classes."""

    share: Annotated[float, Setting("share of images whose label is flipped", ge=0, le=1)] = 0.2

    def __call__(self, images: Images, seed: int) -> Images:
        chosen = torch.randperm(len(images), generator=generator(seed, "corrupt.who"))[: round(self.share * len(images))]
        return flip(images, chosen, seed, "corrupt.to")


def flip(images: Images, rows: torch.Tensor, seed: int, purpose: str) -> Images:
    """The same images with the labels of these rows drawn uniformly from the classes that are not theirs."""
    labels = images.labels.clone()
    shift = torch.randint(1, images.classes, (len(rows),), generator=generator(seed, purpose))
    labels[rows] = (images.true_labels[rows] + shift) % images.classes
    return Images(images.pixels, labels, images.ids, images.classes, images.true_labels)
