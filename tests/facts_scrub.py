"""Facts of SCRUB with and without rewinding, and of soft SalUn (methods.md §2.6, §2.8)."""

from __future__ import annotations

from dataclasses import replace

from facts import Facts, Sizes, both
from toy import Toy
from unlearnlab.data.images import Images
from unlearnlab.methods.scrub_rewind import ScrubRewind

MAX = 2  # of two or more epochs


def scrubbed(n: Sizes) -> tuple[int, int]:
    """Every image goes through the original as well."""
    trained = n.epochs * n.retain + MAX * n.forget
    return 2 * trained, trained


def rewound(n: Sizes) -> tuple[int, int]:
    """Forget images before the first and after every epoch, and once the validation images of their classes."""
    forward, backward = scrubbed(n)
    return forward + (n.epochs + 1) * n.forget + n.validation, backward


def learnable(toy: Toy) -> Toy:
    """The forget images bear wrong labels, and the retain and validation images are copies of them.

    So a few gentle steps lower the error on the forget set, and the reference is that error at the end: rewinding has somewhere to go.
    """
    forget = replace(toy.split.forget, labels=(toy.split.forget.labels + 1) % toy.split.forget.classes)
    copies = [replace(forget, ids=forget.ids + 10_000 * (1 + turn)) for turn in range(15)]
    return replace(toy, split=replace(toy.split, forget=forget, retain=Images.join(copies[1:]), validation=copies[0]))


OTHER = {"label_weight": 0.5, "teacher_weight": 2.0, "temperature": 4.0, "max_epochs": 1, "decay_at": (), "forget_batch": 1, "batch": 9}

FACTS = {
    "scrub": Facts(scrubbed, short={"max_epochs": MAX}, other=OTHER),
    "scrub_rewind": Facts(
        rewound,
        build=ScrubRewind(lr=0.02, batch=16),  # the default rate is too small to change an answer on so few images
        short={"max_epochs": MAX, "teacher_weight": 0.1},
        other=OTHER | {"lr": 0.03},
        prepare=learnable,
    ),
    "salun_soft": Facts(lambda n: both(n.epochs * (n.retain + n.forget)), other={"start_share": 0.1}),
}
