"""``loss_curvature``: how sharply the loss bends around an image, over the course of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from unlearnlab.contract import Scores
from unlearnlab.data.images import Images
from unlearnlab.data.partition import Parts
from unlearnlab.fit import Seen
from unlearnlab.grouped import call_alone, call_member
from unlearnlab.pixels import as_floats, require_floats
from unlearnlab.progress import Progress
from unlearnlab.scores.learning_events import Models, over_models, require_learnt
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Stack, in_mode
from unlearnlab.train import Recipe

AT_ONCE = 256  # images of each member on their way through the nets, and
PIXELS = 2**20  # their pixels: both the same for any number of members, since random directions are drawn piece by piece


@spec("score", "loss_curvature")
class LossCurvature:
    """How much the gradient of the loss with respect to an image's pixels changes a small step away, while a model learns.

    Mean over epochs of ‖∂_x CE(x + z) − ∂_x CE(x)‖₂ with z = h·sign(g)/‖sign(g)‖₂, g = ∂_x CE(x) (0 where g is), on the images as they
    are, in eval mode, after each epoch; step = h. Pixels count as floats in [0, 1] (float32 images: as they are), x + z is not clipped.
    ``directions = "rademacher"``: mean over ``count`` random z = h·v/‖v‖₂, v_j = ±1, of the squared norm (Garg et al. 2024; unverified).
    Source: protocols.md §7.
    """

    scale: ClassVar[Literal["memorisation", "proxy"]] = "proxy"
    evidence: ClassVar[str] = "loss_curvature"
    start: ClassVar[Literal["init", "trained"]] = "init"
    models: Models = 1
    step: Annotated[float, Setting("length of the step, where pixels go from 0 to 1", symbol="h", gt=0)] = 0.01
    directions: Annotated[Literal["sign", "rademacher"], Setting("step along the gradient's sign, or at random")] = "sign"
    count: Annotated[int, Setting("random directions an image is looked at in (rademacher only)", ge=1)] = 10
    every: Annotated[int, Setting("look after every so many epochs", ge=1)] = 1

    def probe(self, stack: Stack, parts: Parts, recipe: Recipe, progress: Progress) -> Mapping[str, Tensor]:
        if self.every > recipe.epochs:
            raise InputError(f"score 'loss_curvature': every = {self.every} epochs, but the recipe has {recipe.epochs}; look at least once")
        require_floats(stack, parts.train, "score 'loss_curvature'")
        found = Curvatures(self, parts.train, len(stack), progress)
        require_learnt(recipe(stack, parts.train, progress, watch=[found]), "score 'loss_curvature'")
        return {"curvature": found.state["sum"] / (recipe.epochs // self.every)}

    def score(self, gathered: Mapping[str, Tensor], ids: Int64[Tensor, " n"]) -> Scores:
        return over_models("loss_curvature", gathered["curvature"], ids)

    def now(self, stack: Stack, images: Images, progress: Progress, epoch: int = 0) -> Float64[Tensor, "k n"]:
        """The curvature of each member at each image, as the members are; ``epoch`` numbers repeated draws of directions."""
        found, room = [], max(1, min(AT_ONCE, PIXELS // images.pixels[:1].numel()))
        for at in range(0, len(images), room):
            labels = images.labels[at : at + room].to(stack.device)
            x = as_floats(images.pixels[at : at + room].to(stack.device))
            x = x.expand(len(stack), *x.shape)
            slope = pixel_gradients(stack, x, labels)
            if self.directions == "sign":
                found.append(self._change(stack, x, labels, slope, slope.sign()).sqrt())
            else:
                lots = [generator(seed, "curvature", epoch, at) for seed in stack.seeds]
                total = torch.zeros(x.shape[:2], dtype=torch.float64, device=stack.device)
                for _ in range(self.count):
                    signs = torch.stack([torch.randint(0, 2, x.shape[1:], generator=lot, dtype=torch.int8) for lot in lots])
                    total += self._change(stack, x, labels, slope, signs.to(x) * 2 - 1)
                found.append(total / self.count)
            passes = len(labels) * (2 if self.directions == "sign" else 1 + self.count)
            progress.seen(passes, passes)
        return torch.cat(found, 1)

    def _change(self, stack: Stack, x: Tensor, labels: Tensor, slope: Tensor, signs: Tensor) -> Float64[Tensor, "k n"]:
        """Squared norm of the gradient's change a step along these signs away."""
        length = signs.flatten(2).norm(dim=2).clamp(min=1)  # at least 1 but where all signs are 0, as on images of a loss that is flat to the last bit
        z = self.step * signs / length.view(*length.shape, *[1] * (x.dim() - 2))
        return (pixel_gradients(stack, x + z, labels) - slope).flatten(2).double().square().sum(2)


class Curvatures:
    """Sums, over epochs, the curvature after each of those looked at."""

    def __init__(self, score: LossCurvature, images: Images, members: int, progress: Progress) -> None:
        self.score, self.images, self.progress = score, images, progress
        sums = torch.zeros(members, len(images), dtype=torch.float64, device=images.labels.device)
        self.state = {"sum": sums, "ended": torch.zeros((), dtype=torch.int64)}

    def __call__(self, seen: Seen) -> None:
        if not seen.epoch_ends:
            return
        self.state["ended"] += 1
        epoch = int(self.state["ended"])
        if epoch % self.score.every == 0:
            self.state["sum"] += self.score.now(seen.stack(), self.images, self.progress, epoch)


def pixel_gradients(stack: Stack, x: Float[Tensor, "k n ..."], labels: Int64[Tensor, " n"]) -> Float[Tensor, "k n ..."]:
    """∂ cross-entropy / ∂x of every member at images of its own, eval mode."""
    net, tensors = in_mode(stack.net, "eval_all"), stack.params | stack.buffers
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        if len(stack) == 1:
            logits = call_alone(net, {name: t[0] for name, t in tensors.items()}, x[0]).unsqueeze(0)
        else:
            logits = torch.vmap(lambda own, images: call_member(net, own, images))(tensors, x)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(stack)), reduction="sum")
        return torch.autograd.grad(loss, x)[0]
