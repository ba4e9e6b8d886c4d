"""``Recipe``: how models are trained from scratch — originals, oracles and retrained models alike."""

from __future__ import annotations

from typing import Annotated

from unlearnlab.data.images import Images
from unlearnlab.fit import OneCycle, Optimizer, Schedule, Sgd, Shuffled, cross_entropy, fit
from unlearnlab.progress import Progress
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Stack


@spec("recipe", "standard")
class Recipe:
    """Minimise cross-entropy over shuffled batches; last-epoch weights, nothing selected."""

    epochs: Annotated[int, Setting("passes over the training set", symbol="E", ge=1)] = 40
    batch: Annotated[int, Setting("examples per step", ge=1)] = 50
    lr: Annotated[float, Setting("peak learning rate", symbol="η", gt=0)] = 0.1
    optimizer: Annotated[Optimizer, Setting("update rule", kind="optimizer")] = Sgd()
    schedule: Annotated[Schedule, Setting("course of the learning rate", kind="schedule")] = OneCycle()

    def __call__(self, stack: Stack, images: Images, progress: Progress | None = None) -> Stack:
        """Train freshly initialised members on these images, each in its own order of examples."""
        stream = Shuffled(images, self.batch, stack.seeds, "order")
        return fit(
            stack,
            stream,
            cross_entropy,
            lr=self.lr,
            optimizer=self.optimizer,
            schedule=self.schedule,
            steps=self.epochs * stream.steps_per_epoch,
            per_epoch=stream.steps_per_epoch,
            progress=progress,
        )
