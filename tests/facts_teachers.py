"""Facts of the boundary, teacher and last-layer methods (methods.md §3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from facts import Facts, Sizes, both
from toy import ORIGINAL, Toy
from unlearnlab.methods.unsir import Unsir
from unlearnlab.optimizers import Sgd


def forgetting_a_class(toy: Toy) -> Any:
    """The same originals, asked to forget the class with the most images wholly."""
    train = toy.split.train
    chosen = train.labels == torch.bincount(train.labels).argmax()
    return replace(toy, split=replace(toy.split, forget=train.rows(chosen), retain=train.rows(~chosen)))


def followed(n: Sizes) -> tuple[int, int]:
    """Three forward passes and one backward of the forget images and three tenths of the retain images."""
    images = n.epochs * (round(0.3 * n.retain) + n.forget)
    return 3 * images, images


NOISE = {"noise_images": 8, "noise_steps": 3}

FACTS = {
    "boundary_shrink": Facts(
        lambda n: ((n.epochs + 2) * n.forget, (n.epochs + 1) * n.forget),
        busy={"attack": "pgd"},
        other={"perturbation": 0.6, "attack_steps": 1},
    ),
    "boundary_expand": Facts(lambda n: both(n.epochs * n.forget)),
    "bad_teacher": Facts(followed, other={"temperature": 2.0, "retain_share": 0.6, "optimizer": Sgd()}),
    "cf_k": Facts(lambda n: both(n.epochs * n.retain), other={"k": 2, "pull": 0.1}),
    "eu_k": Facts(
        lambda n: both(n.epochs * n.retain),
        other={"k": 2},
        exempt={"null": "starts from fresh weights", "mask": "refuses a mask: see the test of its own"},
    ),
    "unsir": Facts(
        lambda n: both(8 * 3 + 8 + 2 * n.retain),
        build=Unsir(noise_images=64),  # quick at its default settings, too
        short=NOISE,
        other={
            "labels": (0, 1),
            "noise_images": 3,
            "noise_steps": 2,
            "noise_lr": 0.2,
            "penalty": 0.01,
            "retain_per_class": 2,
            "repair_lr": 0.01,
            "optimizer": Sgd(),
        },
        prepare=forgetting_a_class,
    ),
    "amnesiac": Facts(lambda n: both(n.epochs * (n.retain + n.forget)), other={"optimizer": Sgd()}, recipe=ORIGINAL),
}
