"""``Recipe``: how models are trained from scratch — originals, oracles and retrained models alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unlearnlab.data.augment import Augmentation
from unlearnlab.data.images import Images
from unlearnlab.fit import Collector, Precision, Shuffled, cross_entropy, fit, weighted_cross_entropy
from unlearnlab.optimizers import OneCycle, Optimizer, Schedule, Sgd
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack


@spec("recipe", "standard")
class Recipe:
    """Minimise cross-entropy over shuffled batches; last-epoch weights, nothing selected."""

    epochs: Annotated[int, Setting("passes over the training set", symbol="E", ge=1)] = 40
    batch: Annotated[int, Setting("examples per step", ge=1)] = 50
    lr: Annotated[float, Setting("peak learning rate", symbol="η", gt=0)] = 0.1
    optimizer: Annotated[Optimizer, Setting("update rule", kind="optimizer")] = Sgd()
    schedule: Annotated[Schedule, Setting("course of the learning rate", kind="schedule")] = OneCycle()
    augment: Annotated[tuple[Augmentation, ...], Setting("random changes of the images, in this order", kind="augmentation")] = ()
    label_smoothing: Annotated[float, Setting("share of the target spread evenly over all classes", ge=0, lt=1)] = 0.0
    class_weights: Annotated[Literal["none", "inverse"], Setting("inverse: an image counts n/n_c, with n_c images of its class among the n trained on")] = (
        "none"
    )
    sharpness: Annotated[float, Setting("radius of sharpness-aware minimisation (SAM); 0: plain", symbol="ρ", ge=0)] = 0.0
    adaptive: Annotated[bool, Setting("make the radius relative to each weight (ASAM)")] = False
    rewind: Annotated[int | None, Setting("also keep the weights after so many epochs, to rewind to when pruning", ge=1)] = None
    precision: Annotated[Precision, Setting("of forward and backward passes; weights stay in float32")] = "float32"
    compiled: Annotated[bool, Setting("run nets that train one at a time through torch.compile")] = False

    def __post_init__(self) -> None:
        if self.rewind is not None and self.rewind > self.epochs:
            raise InputError(f"recipe: rewind = {self.rewind} comes after the last of {self.epochs} epochs; choose an earlier one")

    def __call__(
        self,
        stack: Stack,
        images: Images,
        progress: Progress | None = None,
        *,
        at_rewind: Callable[[Stack], None] | None = None,
        start: int = 0,
        rows: Int64[Tensor, "k m"] | None = None,
        watch: Sequence[Collector] = (),
    ) -> Stack:
        """Train freshly initialised members on these images, each in its own order of examples.

        ``at_rewind`` is given the stack after ``rewind`` epochs. ``start``: epochs already behind the stack, as when it was rewound.
        ``rows``: each member's own subset of the images. ``watch``: as for ``fit``.
        """
        stream = Shuffled(images, self.batch, stack.seeds, "order", augment=self.augment, rows=rows)
        per_epoch = stream.steps_per_epoch
        plain = not self.label_smoothing and self.class_weights == "none"
        return fit(
            stack,
            stream,
            cross_entropy if plain else weighted_cross_entropy(self.label_smoothing, self._weights(images)),
            lr=self.lr,
            optimizer=self.optimizer,
            schedule=self.schedule,
            steps=self.epochs * per_epoch,
            start=start * per_epoch,
            watch=watch,
            per_epoch=per_epoch,
            keep={} if self.rewind is None or at_rewind is None else {self.rewind * per_epoch: at_rewind},
            sharpness=self.sharpness,
            adaptive=self.adaptive,
            precision=self.precision,
            compiled=self.compiled,
            progress=progress,
        )

    def _weights(self, images: Images) -> Tensor | None:
        """From the images at hand: an oracle must not know how many images of a class were forgotten."""
        return None if self.class_weights == "none" else class_weights(images, images.classes)


def class_weights(images: Images, classes: int) -> Float[Tensor, " classes"]:
    """n/n_c for every class, with n_c images of it among these n; 0 for a class that none of them has."""
    counts = torch.bincount(images.labels, minlength=classes)
    return torch.where(counts > 0, len(images) / counts.clamp(min=1), 0.0)
