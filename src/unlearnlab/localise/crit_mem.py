"""``crit_mem``: the channels without which a model no longer knows an example, found one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.func import grad

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.gradients import MEMORY
from unlearnlab.grouped import call_alone
from unlearnlab.localise.ranking import AlwaysOpen, Budget, Ranking, by_channel, rank_units
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Mask, Stack, Tensors, in_mode


@dataclass(frozen=True, eq=False)
class Search:
    """What the search found: ``chosen``, the units removed for each example in order (−1: none), and whether its prediction ``flipped``
    (or was wrong from the start).

    ``slopes``: the units' scores in the whole model, summed over the examples. Units of all tensors are numbered in order of definition.
    """

    chosen: Int64[Tensor, "k examples max_units"]
    flipped: Bool[Tensor, "k examples"]
    slopes: Float[Tensor, "k units"]

    @property
    def counts(self) -> Int64[Tensor, "k examples"]:
        """How many units each example took."""
        return (self.chosen >= 0).sum(2)


@spec("localiser", "crit_mem", paper="arXiv:2307.09542")
class CritMem:
    """Remove, for one forget image after another, the channel that holds it most, until its prediction flips; open the channels found.

    For each x_i of S: L = −CE(x_i) + mean CE over other images; the unit with the largest Σ θ ⊙ ∂_θ L, whose removal lowers L most,
    is set to zero, and so on until argmax f(x_i) ≠ y_i, no score is positive or ``max_units`` are gone (the last two: failure, see
    ``search``). Units are ordered by how often and how early they were removed, the others by their score in the whole model; they open
    whole while they fit the budget. Source: Maini et al. 2023 (methods.md §5.3).
    Differs from the published code: the number of steps is bounded; every example is edited on a copy of its own; units are output channels
    of convolutions and linear layers alike, and biases and normalisation weights come last (``units = "legacy"`` compares the sum over a
    convolution's channel with single weights of all other layers, as published).
    """

    budget: Budget = 0.3
    examples: Annotated[int, Setting("forget images looked at, drawn by lot", ge=1)] = 200
    others: Annotated[int, Setting("retain images whose loss is to be spared, drawn by lot", ge=1)] = 64
    max_units: Annotated[int, Setting("most units removed for one image", ge=1)] = 50
    action: Annotated[Literal["zero", "reset_to_init"], Setting("what removing a unit does: set it to zero, or to its initial weights")] = "zero"
    units: Annotated[Literal["channel", "legacy"], Setting("what is removed: channels, or also single weights of what is no convolution")] = "channel"
    noise: Annotated[float, Setting("robust gradient: norm of Gaussian noise as a share of the image's norm (0: none)", ge=0, published="0.01")] = 0.0
    noisy: Annotated[int, Setting("noisy copies of the image that a robust gradient averages over", ge=1)] = 5
    always_open: AlwaysOpen = "none"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"forget", "retain", "original_init"} if self.action == "reset_to_init" else {"forget", "retain"})

    @property
    def granularity(self) -> str:
        """Of what opens whole."""
        return "channel"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        return self.rank(stack, split, ctx).mask(self.budget)

    def rank(self, stack: Stack, split: Split, ctx: Context) -> Ranking:
        """All budgets at once."""
        found = self.search(stack, split, ctx)
        often = torch.zeros_like(found.slopes, dtype=torch.float64)
        early = torch.arange(self.max_units, 0, -1, dtype=torch.float64, device=stack.device).expand(found.chosen.shape)
        most = self.max_units * found.chosen.shape[1] + 1  # how early never outweighs how often
        taken = found.chosen >= 0
        weight = torch.where(taken, early + most, 0)
        often.scatter_add_(1, found.chosen.clamp(min=0).flatten(1), weight.flatten(1))
        place = found.slopes.argsort(dim=1).argsort(dim=1) / found.slopes.shape[1]  # of those never chosen, below 1
        score = torch.where(often > 0, often, place)
        counts = self._counts(stack)
        scores = dict(zip(counts, torch.split(score, list(counts.values()), 1), strict=True))
        last = {name: torch.full((len(stack), 1), -1.0, dtype=score.dtype, device=stack.device) for name in stack.params}
        return rank_units(stack, {name: scores.get(name, last[name]) for name in stack.params}, always_open=self.always_open)

    def search(self, stack: Stack, split: Split, ctx: Context) -> Search:
        """Remove units for every example drawn, all members and many examples at a time."""
        mine, labels = self._targets(split.forget, ctx, stack.device)
        others, their_labels = self._drawn(split.retain, self.others, ctx, stack.device)
        target, total = self._removed(stack, ctx), sum(self._counts(stack).values())
        chosen = torch.full((*labels.shape, self.max_units), -1, device=stack.device)
        flipped, slopes = torch.zeros_like(labels, dtype=torch.bool), torch.zeros(len(stack), total, device=stack.device)
        weights = len(stack) * sum(p[0].numel() for p in stack.params.values())
        size = max(1, MEMORY // (16 * weights))  # weights, slopes, their product and the edited weights of each example
        for at in range(0, labels.shape[1], size):
            part = slice(at, at + size)
            params = {name: p.unsqueeze(1).expand(-1, labels[:, part].shape[1], *p.shape[1:]) for name, p in stack.params.items()}
            for step in range(self.max_units + 1):
                scores, right = self._scores(stack, params, target, (mine[:, part], labels[:, part], others, their_labels), ctx)
                if step == 0:
                    slopes += scores.sum(1)
                best, unit = scores.max(2)
                move = right & (best > 0)
                if step == self.max_units or not bool(move.any()):
                    break
                chosen[:, part, step] = torch.where(move, unit, -1)
                params = self._without(params, target, chosen[:, part, step])
            flipped[:, part] = ~right
        return Search(chosen, flipped, slopes)

    def _scores(self, stack: Stack, params: Tensors, target: Tensors, data: tuple[Tensor, ...], ctx: Context) -> tuple[Tensor, Tensor]:
        """Score of every unit [K, examples, units], and whether the example is still predicted right [K, examples]."""
        net, clean = in_mode(stack.net, "eval_all"), 1 if self.noise else 0

        def objective(held: Tensors, buffers: Tensors, x: Tensor, y: Tensor, others: Tensor, their_labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = call_alone(net, held | buffers, torch.cat([x, others]))
            mine, rest = logits[: len(x)], logits[len(x) :]
            entropy = torch.nn.functional.cross_entropy
            return entropy(rest, their_labels) - entropy(mine[clean:], y.expand(len(x) - clean)), mine[0].argmax() == y

        per_example = torch.vmap(grad(objective, has_aux=True), in_dims=(0, None, 0, 0, None, None))
        slopes, right = torch.vmap(per_example)(params, stack.buffers, *data)
        passed = data[1].shape[1] * (data[0].shape[2] + data[2].shape[1])
        ctx.progress.seen(passed, passed)
        gains = [((params[n] - target[n].unsqueeze(1)) * slopes[n]).reshape(*data[1].shape, u, -1).sum(3) for n, u in self._counts(stack).items()]
        return torch.cat(gains, 2), right

    def _without(self, params: Tensors, target: Tensors, unit: Int64[Tensor, "k e"]) -> Tensors:
        """The weights of each example after its unit is gone (−1: none)."""
        edited, first = dict(params), 0
        for name, count in self._units(params).items():
            hit = unit.unsqueeze(2) == torch.arange(first, first + count, device=unit.device)
            shape = (*unit.shape, count, -1)
            fill = target[name].reshape(len(unit), 1, count, -1)
            edited[name] = torch.where(hit.unsqueeze(3), fill, params[name].reshape(shape)).view(params[name].shape)
            first += count
        return edited

    def _counts(self, stack: Stack) -> dict[str, int]:
        """How many units each tensor has; those of one dimension have none, where only channels count."""
        return self._units({name: p.unsqueeze(1) for name, p in stack.params.items()})

    def _units(self, params: Mapping[str, Tensor]) -> dict[str, int]:
        """The same of weights [K, examples, *shape]."""
        counts = {}
        for name, held in params.items():
            one = held[:1, 0]
            if self.units == "legacy" and one.dim() != 5:
                counts[name] = one.numel()
            elif one.dim() > 2:
                counts[name] = by_channel(one).shape[1]
        return counts

    def _removed(self, stack: Stack, ctx: Context) -> Tensors:
        """What a removed unit is set to."""
        if self.action == "zero":
            return {name: torch.zeros_like(p) for name, p in stack.params.items()}
        if ctx.original_init is None:
            raise InputError("action = 'reset_to_init' needs the original's own initial weights and none are at hand; set action = 'zero'")
        return stack.having(ctx.original_init.params).params

    def _targets(self, images: Images, ctx: Context, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images looked at [K, examples, 1 + noisy, …], the first of each as it is (the only one, without noise)."""
        pixels, labels = self._drawn(images, self.examples, ctx, device)
        pixels = pixels.unsqueeze(2)
        if not self.noise:
            return pixels, labels
        clean = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels  # as the net's first layer does
        shape = clean.shape[3:]
        lots = [generator(seed, "localise.noise") for seed in ctx.seeds]
        noise = torch.stack([torch.randn(labels.shape[1], self.noisy, *shape, generator=lot) for lot in lots]).to(device)
        width = self.noise * clean.square().mean(tuple(range(3, clean.dim())), keepdim=True).sqrt()  # per pixel, so that the norms' ratio is ``noise``
        return torch.cat([clean, clean + width * noise], 2), labels

    @staticmethod
    def _drawn(images: Images, count: int, ctx: Context, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pixels [K, n, …] and labels [K, n] of so many images, drawn by lot for each member from the images in order of id."""
        order, n = images.ids.argsort().cpu(), min(count, len(images))
        rows = torch.stack([order[torch.randperm(len(images), generator=generator(seed, "localise", len(images)))[:n]] for seed in ctx.seeds])
        rows = rows.sort(dim=1).values.to(images.labels.device)
        return images.pick(rows).to(device), images.labels[rows].to(device)
