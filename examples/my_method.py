"""A method of one's own, in one file. ``unlearnlab check examples/my_method.py`` tests it; ``--plugin examples/my_method.py`` lets a study use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from torch import Tensor

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.fit import Batch, Shuffled, cross_entropy, fit
from unlearnlab.methods.settings import BatchNorm, BatchSize, Epochs, LearningRate, Update
from unlearnlab.optimizers import Sgd
from unlearnlab.spec import Setting, spec
from unlearnlab.stack import Net, Stack


@spec("method", "leash")
class Leash:
    """Make the model unsure about the forget set while it keeps learning the retain set and is pulled back to where it was.

    min CE(R) + w·CE(S, uniform) + ρ/2·‖θ − θ_o‖². Source: this file. Differs from the published code: there is none.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})  # all it may look at; anything else raises
    cost: ClassVar[str] = "E·(1 + forget batches beside retain batches)"  # in epochs over the retain set
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "bn": "frozen"}  # settings under which nothing may change
    forget_weight: Annotated[float, Setting("weight of the forget images", symbol="w", ge=0)] = 0.1
    pull: Annotated[float, Setting("strength of the pull towards the original", symbol="ρ", ge=0)] = 0.01
    lr: LearningRate = 0.02
    epochs: Epochs = 10
    batch: BatchSize = 64
    optimizer: Update = Sgd()
    bn: BatchNorm = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        retain = Shuffled(split.retain, self.batch, ctx.seeds, "order.retain")
        forget = Shuffled(split.forget, self.batch, ctx.seeds, "order.forget")
        return fit(
            stack, lambda step: replace(retain(step), also=forget(step)), self._loss, aux={"original": stack}, lr=self.lr, optimizer=self.optimizer,
            steps=self.epochs * retain.steps_per_epoch, per_epoch=retain.steps_per_epoch, mask=ctx.mask, bn=self.bn, progress=ctx.progress,
        )  # fmt: skip

    def _loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        """Written for one model; ``fit`` runs it for all members at once."""
        assert batch.also is not None
        unsure = -net(batch.also.images).log_softmax(1).mean()
        far = sum((weights - aux["original"].params[name]).square().sum() for name, weights in net.params.items())
        return cross_entropy(net, batch, aux) + self.forget_weight * unsure + self.pull / 2 * far


if __name__ == "__main__":
    import torch

    import unlearnlab as ul

    images = ul.build("corruption", "symmetric_noise")(ul.build("dataset", "digits")(), seed=0).rows(torch.arange(500))
    wrong = images.ids[images.mislabelled][:40].tolist()
    forget, retain = images.take(wrong), images.without(wrong)
    net = ul.build("net", "mlp")((1, 8, 8), classes=10)
    model = ul.Recipe(epochs=80, lr=0.2)(ul.Stack.init(net, seeds=[0]), images).member(0)
    new = ul.unlearn(model, forget=forget, retain=retain, method=Leash())
    for when, one in (("before", model), ("after", new)):
        right = [float((one(part.pixels).argmax(1) == part.labels).float().mean()) for part in (forget, retain)]
        print(f"{when}: {right[0]:.0%} of the wrong labels to forget, {right[1]:.0%} of the labels to keep")
