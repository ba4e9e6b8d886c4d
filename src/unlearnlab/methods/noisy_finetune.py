"""``noisy_finetune``: blur the weights with noise and fine-tune. ``Langevin``: the same with a guarantee, for linear classifiers only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import Batch, Edit, cross_entropy, fit
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Epochs, LearningRate, Update
from unlearnlab.methods.state import group, grouped, read, write
from unlearnlab.methods.training import batches, descend
from unlearnlab.nets.pixels import Pixels
from unlearnlab.optimizers import Constant, Sgd
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Net, Stack, Tensors, per_member, unflat


@spec("method", "noisy_finetune", paper="arXiv:2401.10371")
class NoisyFineTune:
    """Blur all weights with a little noise, then fine-tune on the retain set. A heuristic: nothing is certified.

    θ ← θ_o + ν·rms(θ_o)·N(0, I) for every tensor, once or after each step, and min CE(R); noise = ν, lr = η, epochs = E. With ν = 0 this is ``finetune``.
    Source: Langevin unlearning, Chien et al. 2024, carried over to deep nets, for which its guarantee does not hold (methods.md §8.3).
    Differs from the published code: noise is scaled to each tensor's root mean square (there: one σ for all); no ε is given. Where the theorem
    holds, for linear classifiers trained by the same noisy process, see ``Langevin`` in this file.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    certified: ClassVar[str] = "no; its class Langevin, on linear models"
    cost: ClassVar[str] = "E"
    null: ClassVar[Mapping[str, Any] | None] = {"noise": 0.0, "lr": 0.0, "bn": "frozen"}
    noise: Annotated[float, Setting("standard deviation of the noise, in root mean squares of each tensor", symbol="ν", ge=0)] = 1e-3
    when: Annotated[Literal["once", "every_step"], Setting("noise is added before fine-tuning, or after each of its steps")] = "once"
    lr: LearningRate = 0.01
    epochs: Epochs = 5
    batch: BatchSize = FineTune.batch
    optimizer: Update = FineTune.optimizer
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        alive = {name: stack.live.get(name, torch.ones_like(p, dtype=torch.bool)) for name, p in stack.params.items()}
        width = {name: self.noise * _rms(p, alive[name]) for name, p in stack.params.items()}

        def blur(params: Tensors, step: int) -> Tensors:
            drawn = standard_normal(params, ctx.seeds, "noise", step)
            return {name: p + width[name] * drawn[name] for name, p in params.items()}

        start, once = stack, self.when == "once"
        if once:
            blurred = blur(stack.params, 0)
            start = stack.having(blurred if ctx.mask is None else ctx.mask.choose(blurred, stack.params))
        retain = batches(split.retain, self, ctx, "order.retain")
        per_epoch = retain.steps_per_epoch
        return descend(start, retain, cross_entropy, self, ctx, steps=self.epochs * per_epoch, per_epoch=per_epoch, after_step=None if once else blur)


def _rms(weights: Tensor, alive: Tensor) -> Tensor:
    """Root mean square of each member's weights that are not pruned, [K, 1, …]."""
    over = tuple(range(1, weights.dim()))
    if not over:
        return weights.abs()
    return (weights.square().sum(over, keepdim=True) / alive.sum(over, keepdim=True).clamp(min=1)).sqrt()


def standard_normal(like: Tensors, seeds: Sequence[int], purpose: str, *counters: int) -> Tensors:
    """N(0, 1) for every weight, each member from its own generator."""
    size = sum(p[0].numel() for p in like.values())
    drawn = torch.stack([torch.randn(size, generator=generator(seed, purpose, *counters)) for seed in seeds])
    return unflat(drawn.to(next(iter(like.values())).device), like)


# ---- where the theorem holds


def langevin_step(seeds: Sequence[int], lr: float, noise: float, radius: float, purpose: str = "noise") -> Edit:
    """What makes a gradient step one of projected noisy SGD: θ ← Proj_{‖θ‖≤rad}(θ − ηg + √(2ησ²)·N(0, I)); the norm is over all weights of a member."""
    inside = radius * (1 - 1e-6)  # so that rounding leads nobody out of the ball

    def after(params: Tensors, step: int) -> Tensors:
        drawn = standard_normal(params, seeds, purpose, step)
        moved = {name: p + math.sqrt(2 * lr) * noise * drawn[name] for name, p in params.items()}
        shrink = (inside / per_member(moved, lambda t: t.double().square().sum(1)).sqrt()).clamp(max=1)
        return {name: p * shrink.view(-1, *[1] * (p.dim() - 1)).to(p.dtype) for name, p in moved.items()}

    return after


def shift(lr: float, slope: float, batch: int, per_epoch: int, strength: float, radius: float) -> float:
    """Z: how far one replaced example can move a run of any length (W∞): min(2ηM/(b(1 − c^{n/b})), 2·rad), c = 1 − ημ."""
    return min(2 * lr * slope / (batch * (1 - (1 - lr * strength) ** per_epoch)), 2 * radius)


def renyi_rate(distance: float, lr: float, noise: float, strength: float, steps: int) -> float:
    """r such that D_α ≤ α·r for every α > 1, after so many common noisy steps of two runs that begin at most ``distance`` apart (W∞).

    r = Z²c^{2N}(1 − c²) / (4ησ²(1 − c^{2N})): each step contracts by c, and noise of variance 2ησ² hides a part a_t of what is left at a cost of
    a_t²/(4ησ²) (privacy amplification by iteration, Feldman et al. 2018); this splits it at the least total. At most Z²c^{2N}/(4ησ²), half of
    the paper's form as methods.md §8.3 gives it.
    """
    if steps < 1:
        return math.inf
    c = 1 - lr * strength
    return distance**2 * c ** (2 * steps) * (1 - c**2) / (4 * lr * noise**2 * (1 - c ** (2 * steps)))


def epsilon_of(rate: float, delta: float) -> float:
    """ε at δ of a bound D_α ≤ α·r for every α: min over α of αr + ln(1/δ)/(α−1) = r + 2√(r·ln(1/δ)) (Mironov 2017)."""
    return rate + 2 * math.sqrt(rate * math.log(1 / delta))


@dataclass(frozen=True)
class Langevin:
    """Train a linear classifier by projected noisy SGD, and unlearn by more of it: Rényi unlearning, with a guarantee.

    θ ← Proj(θ − η·g_B + √(2ησ²)·N(0, I)) in learning and unlearning alike; g_B of (1/b)Σ_B CE + (λ/2)‖θ‖², minibatches fixed, in the same cycle always.
    A removed image leaves its slot empty: its batch is still divided by b. lr = η, noise = σ, penalty = λ = μ, radius = rad, batch = b.
    ``length``: an image's pixels (scaled to [0, 1]) with a 1 for the bias are no longer than this; that bounds gradients by M = √2·length, without clipping,
    which would break convexity. It must be known without looking at the images: √(number of pixels + 1) always holds.
    Source: Chien et al. 2024, projected noisy SGD (methods.md §8.3). The noise is drawn by a pseudo-random generator in float32, as everywhere here.
    """

    lr: float = 0.01
    noise: float = 0.03
    penalty: float = 0.1
    radius: float = 10.0
    batch: int = 128
    length: float = 8.1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"Langevin: {name} = {value} must be a positive number")
        smooth = self.length**2 / 2 + self.penalty
        if self.lr * smooth > 1:
            raise InputError(f"Langevin: lr = {self.lr:g} must be at most {1 / smooth:.3g} = 1/(length²/2 + penalty), or a step is no contraction")

    def learn(self, stack: Stack, images: Images, epochs: int, progress: Progress | None = None) -> Chain:
        """Train from this stack's weights, which must not depend on the images; random numbers come from its seeds."""
        _require_linear(stack)
        order = images.ids.argsort()
        chain = Chain(self, stack, images.ids[order].cpu(), torch.ones(len(images), dtype=torch.bool), 0.0, 0, 0)
        return replace(chain, stack=chain.train(images, epochs, "noise.learn", progress))


@dataclass(frozen=True, eq=False)
class Chain:
    """A linear classifier trained by ``Langevin``, and how far it can be from one that never saw what was removed. It is never changed; steps return another.

    ``ids``: of the slots of the fixed minibatches; ``open``: slots not emptied. ``distance``: bound on W∞ between the laws of the weights of this chain and of
    retraining when the last unlearning began; ``steps``: since then. ``requests``: removals so far.
    """

    langevin: Langevin
    stack: Stack
    ids: Int64[Tensor, " n"]
    open: Bool[Tensor, " n"]
    distance: float
    steps: int
    requests: int

    @property
    def per_epoch(self) -> int:
        return math.ceil(len(self.ids) / self.langevin.batch)

    def unlearn(self, images: Images, ids: Iterable[int], epochs: int, progress: Progress | None = None) -> Chain:
        """Empty the slots of these ids and go on for some epochs. ``images``: those that are left; removed ones are not looked at."""
        gone = torch.tensor(sorted({int(i) for i in ids}), dtype=torch.int64)
        known = self.ids[self.open]
        wrong = gone[~torch.isin(gone, known)].tolist()
        if wrong or not len(gone) or len(gone) == len(known) or epochs < 1:
            what = f"ids {', '.join(map(str, wrong))} are not among the images left" if wrong else f"{len(gone)} of {len(known)} images, {epochs} epochs"
            raise InputError(f"cannot unlearn: {what}; name images that are left, but not all of them, and at least one epoch")
        how, contraction = self.langevin, 1 - self.langevin.lr * self.langevin.penalty
        each = shift(how.lr, math.sqrt(2) * how.length, how.batch, self.per_epoch, how.penalty, how.radius)
        # what earlier requests left, shrunk by the steps since, and what this one adds (triangle inequality, an image at a time)
        distance = min(self.distance * contraction**self.steps + len(gone) * each, 2 * how.radius)
        chain = replace(self, open=self.open & ~torch.isin(self.ids, gone), distance=distance, steps=epochs * self.per_epoch, requests=self.requests + 1)
        return replace(chain, stack=chain.train(images, epochs, f"noise.unlearn.{chain.requests}", progress))

    def epsilon(self, delta: float) -> float:
        """ε at δ between this model and one trained by the same process on what is left, for as many epochs in all. 0 where nothing was removed."""
        how = self.langevin
        return epsilon_of(renyi_rate(self.distance, how.lr, how.noise, how.penalty, self.steps), delta) if self.requests else 0.0

    def train(self, images: Images, epochs: int, purpose: str, progress: Progress | None) -> Stack:
        """Epochs of projected noisy SGD over the slots that are open."""
        how, k, device = self.langevin, len(self.stack), self.stack.device
        held = images.take(self.ids[self.open].tolist())
        pixels = torch.zeros(len(self.ids), *held.pixels.shape[1:], dtype=held.pixels.dtype, device=device)
        labels = torch.full((len(self.ids),), -100, device=device)  # what cross-entropy passes over
        at = self.open.to(device)
        pixels[at], labels[at] = held.pixels[:].to(device), held.labels.to(device)
        slot_ids = self.ids.to(device)
        flat = pixels.flatten(1).double() / (255 if pixels.dtype == torch.uint8 else 1)
        longest = float((flat.square().sum(1) + 1).sqrt().max())
        if longest > how.length:
            raise InputError(f"an image with its bias is {longest:.4g} long, more than length = {how.length:g}; raise length, or scale the pixels")

        def slots(step: int) -> Batch:
            part = slice(step % self.per_epoch * how.batch, (step % self.per_epoch + 1) * how.batch)
            images, wanted, ids = (tensor[part].expand(k, *tensor[part].shape) for tensor in (pixels, labels, slot_ids))
            return Batch(images, wanted, ids)

        def loss(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
            summed = nn.functional.cross_entropy(net(batch.images), batch.labels, reduction="sum")
            return summed / how.batch + how.penalty / 2 * sum((p.square().sum() for p in net.params.values()), torch.zeros((), device=device))

        return fit(
            self.stack, slots, loss, lr=how.lr, optimizer=Sgd(momentum=0.0, weight_decay=0.0), steps=epochs * self.per_epoch, bn="eval_all",
            after_step=langevin_step(self.stack.seeds, how.lr, how.noise, how.radius, purpose), progress=progress,
        )  # fmt: skip

    def save(self, folder: Path | str) -> None:
        """Write all but the images."""
        words = {"langevin": asdict(self.langevin), "seeds": list(self.stack.seeds), "distance": self.distance, "steps": self.steps, "requests": self.requests}
        write(Path(folder) / "chain.safetensors", grouped(params=self.stack.params, slots={"ids": self.ids, "open": self.open}), words)

    @staticmethod
    def load(folder: Path | str, net: nn.Module) -> Chain:
        """Read what ``save`` wrote, for a net of the same architecture."""
        tensors, words = read(Path(folder) / "chain.safetensors")
        like, slots = Stack.init(net, words["seeds"]), group(tensors, "slots")
        stack = like.having(group(tensors, "params", like.params))
        return Chain(Langevin(**words["langevin"]), stack, slots["ids"], slots["open"], words["distance"], words["steps"], words["requests"])


def _require_linear(stack: Stack) -> None:
    """The theorem needs a strongly convex loss: pixels, as they are, and one linear layer."""
    layers = [layer for layer in stack.net.modules() if not isinstance(layer, (nn.Sequential, nn.Flatten, nn.Identity))]
    plain = [layer for layer in layers if isinstance(layer, Pixels) and not any(layer.mean) and all(value == 1 for value in layer.std)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linear) != 1 or len(layers) != len(linear) + len(plain) or stack.live:
        kinds = ", ".join(type(layer).__name__ for layer in layers)
        wanted = "one linear layer on pixels that are not shifted by a mean, unpruned (net 'mlp' with hidden = [])"
        raise InputError(f"the guarantee holds for {wanted}; this net has {kinds}; for other nets there is 'noisy_finetune', without a guarantee")
