"""``ho_ret``: how far the answer to a training image moves when the model goes on learning from held-out images alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from unlearnlab.contract import Scores
from unlearnlab.data.images import Images
from unlearnlab.data.partition import Parts
from unlearnlab.fit import Seen, Shuffled, cross_entropy, fit
from unlearnlab.optimizers import Optimizer, Sgd
from unlearnlab.progress import Progress
from unlearnlab.scores.learning_events import Models, over_models
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack, Tensors
from unlearnlab.train import Recipe

AT_ONCE = 1024  # images looked at in one forward pass
LEAST = 1e-10  # probabilities below count as this


@spec("score", "ho_ret")
class HoRet:
    """How much a model changes its mind about a training image when it is trained on, but without its training images.

    ½[KL(P‖Q) + KL(Q‖P)] between a trained model's answer P and that of a copy fine-tuned on held-out images, Q; eval mode, probabilities
    clamped at 1e-10. Each copy stops after ``patience`` epochs without a lower training loss. Batches are as large as the recipe's,
    without augmentation; BatchNorm learns along. Source: protocols.md §7.
    Differs from the published code: that fine-tunes on the test set (``heldout = "test_legacy"``), which then can no longer test;
    here on the held-out images, of which audits later draw validation and controls: but probed models are never audited.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]] = "proxy"
    evidence: ClassVar[str] = "ho_ret"
    start: ClassVar[Literal["init", "trained"]] = "trained"
    models: Models = 1
    heldout: Annotated[Literal["held_out", "test_legacy"], Setting("what the copy is trained on", published="the test set")] = "held_out"
    epochs: Annotated[int, Setting("most passes over the held-out images", ge=1)] = 30
    patience: Annotated[int, Setting("epochs without a lower training loss after which a copy stops", ge=1)] = 4
    lr: Annotated[float, Setting("learning rate", symbol="η", ge=0)] = 0.1
    optimizer: Annotated[Optimizer, Setting("update rule", kind="optimizer")] = Sgd()

    def probe(self, stack: Stack, parts: Parts, recipe: Recipe, progress: Progress) -> Mapping[str, Tensor]:
        copy = self.moved(stack, parts.held_out if self.heldout == "held_out" else parts.test, recipe, progress)
        found = symmetric_kl(stack, copy, parts.train, progress)
        bad = (~found.isfinite()).any(1).nonzero()[:, 0].tolist()
        if bad:
            raise InputError(
                f"score 'ho_ret': fine-tuning diverged for seed {stack.seeds[bad[0]]} ({len(bad)} of {len(stack)} models); lower its lr, now {self.lr:g}"
            )
        return {"symmetric_kl": found}

    def score(self, gathered: Mapping[str, Tensor], ids: Int64[Tensor, " n"]) -> Scores:
        return over_models("ho_ret", gathered["symmetric_kl"], ids)

    def moved(self, stack: Stack, images: Images, recipe: Recipe, progress: Progress) -> Stack:
        """Every member as it stood when it stopped."""
        stream = Shuffled(images, recipe.batch, stack.seeds, "order.held_out")
        per_epoch, stopping = stream.steps_per_epoch, Stopping(stack, self.epochs, self.patience)
        with suppress(AllStopped):
            fit(
                stack,
                stream,
                cross_entropy,
                lr=self.lr,
                optimizer=self.optimizer,
                steps=self.epochs * per_epoch,
                per_epoch=per_epoch,
                watch=[stopping],
                progress=progress,
                seeds=stack.seeds,
            )
        return stack.having(*stopping.held())


class AllStopped(Exception):  # noqa: N818 - no error
    """Every member has stopped: the rest of the fit would change nothing that is kept."""


class Stopping:
    """Puts by each member as it stands when its training loss has not fallen for ``patience`` epochs, or after the last of ``epochs``.

    A member that has stopped goes through the motions until the last one stops, and counts as work done; then the fit is broken off.
    """

    def __init__(self, stack: Stack, epochs: int, patience: int) -> None:
        k, device = len(stack), stack.device
        self.epochs, self.patience = epochs, patience
        self.state = {
            "loss": torch.zeros(k, dtype=torch.float64, device=device),
            "best": torch.full((k,), torch.inf, dtype=torch.float64, device=device),
            "since": torch.zeros(k, dtype=torch.int64, device=device),  # epochs without a lower loss
            "stopped": torch.zeros(k, dtype=torch.bool, device=device),
            "ended": torch.zeros((), dtype=torch.int64),
            **{name: tensor.clone() for name, tensor in _named(stack).items()},  # a resumed fit writes into these
        }

    def __call__(self, seen: Seen) -> None:
        held = self.state
        held["loss"] += seen.losses * seen.batch.labels.shape[1]
        if not seen.epoch_ends:
            return
        held["ended"] += 1
        lower = held["loss"] < held["best"]  # NaN is not lower
        held["best"] = torch.where(lower, held["loss"], held["best"])
        held["since"] = torch.where(lower, 0, held["since"] + 1)
        held["loss"] = torch.zeros_like(held["loss"])
        last = int(held["ended"]) == self.epochs
        stops = ~held["stopped"] & ((held["since"] >= self.patience) | last)
        held["stopped"] = held["stopped"] | stops
        if bool(stops.any()):
            for name, now in _named(seen.stack()).items():
                held[name] = torch.where(stops.view(-1, *[1] * (now.dim() - 1)), now, held[name])
        if bool(held["stopped"].all()) and not last:
            raise AllStopped

    def held(self) -> tuple[Tensors, Tensors]:
        """Weights and buffers of the members as they stopped."""
        params, buffers = ({n.partition("/")[2]: t for n, t in self.state.items() if n.startswith(kind)} for kind in ("params/", "buffers/"))
        return params, buffers


def _named(stack: Stack) -> Tensors:
    return {f"params/{name}": p for name, p in stack.params.items()} | {f"buffers/{name}": b for name, b in stack.buffers.items()}


def symmetric_kl(before: Stack, after: Stack, images: Images, progress: Progress) -> Float64[Tensor, "k n"]:
    """½[KL(P‖Q) + KL(Q‖P)] = ½ Σ_c (p_c − q_c)(log p_c − log q_c) of every member on every image, eval mode."""
    found = []
    with torch.no_grad():
        for at in range(0, len(images), AT_ONCE):
            pixels = images.pixels[at : at + AT_ONCE].to(before.device)
            found.append(divergence(before.logits(pixels), after.logits(pixels)))
            progress.seen(2 * len(pixels))
    return torch.cat(found, 1)


def divergence(before: Float[Tensor, "... classes"], after: Float[Tensor, "... classes"]) -> Float64[Tensor, " ..."]:
    """Symmetric KL of two logits, probabilities clamped at 1e-10."""
    p, q = (logits.double().softmax(-1).clamp(min=LEAST) for logits in (before, after))
    return ((p - q) * (p.log() - q.log())).sum(-1) / 2
