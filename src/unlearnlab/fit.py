"""THE training loop: nothing else trains. K models learn in one call, each from its own stream of batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unlearnlab.data.augment import Augmentation, augmented
from unlearnlab.data.images import Images
from unlearnlab.grouped import call_alone, call_member
from unlearnlab.optimizers import Constant, Optimizer, Schedule
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator, seeded
from unlearnlab.spec import InputError
from unlearnlab.stack import BatchNormPolicy, Call, Divergence, Mask, Net, Stack, Tensors, in_mode, is_stochastic, per_member

# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """One step's examples; tensors lead with K in a stream and without it inside a loss.

    ``also``: a second batch of the same step, such as forget images beside retain images.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    tag: str = ""
    also: Batch | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        mine = (self.images, self.labels, self.ids)
        return mine if self.also is None else mine + self.also.tensors()

    def holding(self, tensors: Sequence[Tensor]) -> Batch:
        """The same batch with other tensors, in the order of ``tensors()``."""
        also = None if self.also is None else self.also.holding(tensors[3:])
        return replace(self, images=tensors[0], labels=tensors[1], ids=tensors[2], also=also)


class Stream(Protocol):
    """The batch of a step. A pure function of the step, so that a run can resume anywhere."""

    def __call__(self, step: int) -> Batch: ...


class Shuffled:
    """Batches of ``size`` in a new order each epoch, each member in its own; the last batch of an epoch may be short.

    ``purpose`` names the generator of the order. ``labels(epoch)`` -> [K, n] replaces the labels (relabelling
    never touches the images themselves). ``augment``: applied to every batch, each image at random of its own.
    ``rows``: each member's own part of the images, all equally large (none given: all images for everyone).
    """

    def __init__(
        self,
        images: Images,
        size: int,
        seeds: Sequence[int],
        purpose: str,
        *,
        tag: str = "",
        labels: Callable[[int], Tensor] | None = None,
        augment: Sequence[Augmentation] = (),
        rows: Int64[Tensor, "k m"] | None = None,
    ) -> None:
        self.rows = rows
        self.images, self.size, self.seeds, self.purpose, self.tag, self.labels = images, size, tuple(seeds), purpose, tag, labels
        self.augment = tuple(augment)
        self.count = len(images) if rows is None else rows.shape[1]
        self.steps_per_epoch = math.ceil(self.count / size)
        self._epoch: tuple[int, Tensor, Tensor] | None = None

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        if self._epoch is None or self._epoch[0] != epoch:
            n, device = len(self.images), self.images.labels.device
            order = torch.stack([torch.randperm(self.count, generator=generator(seed, self.purpose, epoch)) for seed in self.seeds]).to(device)
            order = order if self.rows is None else self.rows.to(device).gather(1, order)
            labels = self.images.labels.expand(len(self.seeds), n) if self.labels is None else self.labels(epoch).to(device)
            self._epoch = (epoch, order, labels.gather(1, order))
        return self._epoch[1], self._epoch[2]

    def __call__(self, step: int) -> Batch:
        epoch, at = divmod(step, self.steps_per_epoch)
        order, labels = self._order(epoch)
        part = slice(at * self.size, (at + 1) * self.size)
        rows = order[:, part]
        pixels = self.images.pick(rows)
        if self.augment:
            pixels = augmented(self.augment, pixels, self.seeds, step, self.purpose.replace("order", "augment"))
        return Batch(pixels, labels[:, part], self.images.ids[rows], self.tag)


# ---------------------------------------------------------------- the loop

Loss = Callable[[Net, Batch, Mapping[str, Net]], Tensor]
Edit = Callable[[Tensors, int], Tensors]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a collector is shown of a step. ``logits``: of the training-time forward pass on the batch's own images, before the step.

    ``stack()``: the members as the step left them. ``epoch_ends``: was it the last step of an epoch?
    """

    step: int
    batch: Batch
    logits: Float[Tensor, "k b classes"]
    losses: Float[Tensor, " k"]
    params: Tensors
    stack: Callable[[], Stack]
    epoch_ends: bool


# Called after every step. Tensors that it holds in a dict ``state`` are saved with the fit, and put back in place when a run resumes.
Collector = Callable[[Seen], None]
Precision = Literal["float32", "tf32", "bfloat16"]


def fit(
    stack: Stack,
    stream: Stream,
    loss: Loss,
    *,
    lr: float,
    optimizer: Optimizer,
    steps: int,
    start: int = 0,
    schedule: Schedule | None = None,
    per_epoch: int = 1,
    mask: Mask | None = None,
    aux: Mapping[str, Stack] | None = None,
    bn: BatchNormPolicy = "train",
    clip: float | None = None,
    edit_grad: Edit | None = None,
    after_step: Edit | None = None,
    watch: Sequence[Collector] = (),
    keep: Mapping[int, Callable[[Stack], None]] | None = None,
    sharpness: float = 0.0,
    adaptive: bool = False,
    precision: Precision = "float32",
    compiled: bool = False,
    progress: Progress | None = None,
    seeds: Sequence[int] | None = None,
) -> Stack:
    """Train every member of a stack; the input stack is untouched.

    ``loss(net, batch, aux) -> scalar`` is written for ONE model. ``aux``: frozen stacks (teacher, anchor), sliced
    per member, in eval mode. ``mask``: weights outside it are put back bit for bit after every step and their
    optimiser state is zeroed. ``clip``: largest gradient norm, per member. ``edit_grad(grads, step)`` and
    ``after_step(params, step)``: pure functions on stacked tensors. ``watch``: who is shown every step.
    ``keep``: by number of steps done, who is given the stack as it then is. ``sharpness``: ρ of SAM (Foret et al. 2021):
    gradients are taken at θ + ρ g/‖g‖, norm per member; BatchNorm's averages follow the pass at θ alone.
    ``adaptive``: at θ + ρ θ²g/‖θg‖ instead, so that the radius is relative to each weight (ASAM, Kwon et al. 2021).
    ``start``: the first step, for a run that goes on where an earlier one of ``steps`` steps was left (with fresh optimiser state).
    ``precision``: of the forward and backward passes; weights and optimiser stay in float32.
    ``compiled``: run nets that train one at a time through ``torch.compile`` (stacked ones are not).
    ``seeds``: of dropout in an unlearning run (none given: the stack's own, as in training from scratch).

    Members whose loss stops being finite are listed in the result's ``diverged``; the others finish.
    """
    progress = progress or Progress()
    if stack.live:  # pruned weights are 0 in the stack: outside the mask they stay so
        everything = Mask.everything(stack).open
        mask = Mask(everything if mask is None else {name: bits & everything[name] for name, bits in mask.open.items()}, stack.fingerprint)
        stack = stack.having()
    schedule = schedule or Constant()
    if not (math.isfinite(lr) and lr >= 0) or steps < 0:
        raise InputError(f"learning rate {lr} and steps {steps} must be finite and not negative")
    params = {name: _for_device(tensor) for name, tensor in stack.params.items()}
    buffers = {name: tensor.clone() for name, tensor in stack.buffers.items()}
    state = optimizer.start(params)
    bad_step = torch.full((len(stack),), -1, device=stack.device)
    bad_loss = torch.zeros(len(stack), device=stack.device)
    file, first = progress.state_file(), start
    if file is not None and file.exists():
        first = max(start, _load_state(file, progress, params, buffers, state, bad_step, bad_loss, watch))
    gradients = _Gradients(stack, loss, aux or {}, bn, progress, seeds, precision, compiled, keep_logits=bool(watch))
    saved = time.monotonic()
    for step in range(first, steps):
        batch = stream(step)
        losses, grads, logits = gradients(params, buffers, batch, step)
        if sharpness:
            higher = _climb(params, grads, sharpness, mask, adaptive)
            _, grads, _ = gradients(higher, dict(buffers), batch, step)
        newly = (bad_step < 0) & ~torch.isfinite(losses)
        bad_step, bad_loss = torch.where(newly, step, bad_step), torch.where(newly, losses, bad_loss)
        if edit_grad is not None:
            grads = edit_grad(grads, step)
        if clip is not None:
            factor = (clip / (_norm(grads, mask) + 1e-6)).clamp(max=1.0)
            grads = {name: g * factor.view(-1, *[1] * (g.dim() - 1)) for name, g in grads.items()}
        after = optimizer.update(params, grads, state, lr * schedule(step, steps, per_epoch), step - start)  # whose state is fresh at the start
        if after_step is not None:
            after = after_step(after, step)
        if mask is not None:
            after = mask.choose(after, stack.params)
            for slot in state:
                state[slot] = torch.where(mask.open[slot.partition("/")[2]], state[slot], 0)
        params = after
        now = partial(_standing, stack, params, buffers)
        for collect in watch:
            collect(Seen(step, batch, logits, losses, params, now, (step + 1) % per_epoch == 0))
        if keep is not None and step + 1 in keep:
            keep[step + 1](now())
        progress.step(step + 1, steps)
        if file is not None and (time.monotonic() - saved > progress.every or step + 1 == steps):
            _save_state(file, progress, step + 1, params, buffers, state, bad_step, bad_loss, watch)
            saved = time.monotonic()
    # the last step may have ruined weights that no loss has seen yet
    ruined = (bad_step < 0) & (per_member(params, lambda t: (~t.isfinite()).sum(1)) > 0)
    bad_step, bad_loss = torch.where(ruined, steps - 1, bad_step), torch.where(ruined, torch.nan, bad_loss)
    known = {bad.seed for bad in stack.diverged}
    found = [Divergence(*bad) for bad in zip(stack.seeds, bad_step.tolist(), bad_loss.tolist(), strict=True) if bad[1] >= 0 and bad[0] not in known]
    return replace(stack, params=params, buffers=buffers, diverged=stack.diverged + tuple(found))


def _standing(stack: Stack, params: Tensors, buffers: Tensors) -> Stack:
    return replace(stack, params={n: p.clone() for n, p in params.items()}, buffers={n: b.clone() for n, b in buffers.items()})


def _for_device(stacked: Tensor) -> Tensor:
    """A copy of its own; convolutions of one model on an accelerator are fastest with channels last."""
    if stacked.is_cuda and stacked.dim() == 5 and len(stacked) == 1:
        return stacked[0].clone(memory_format=torch.channels_last).unsqueeze(0)
    return stacked.clone()


def _norm(grads: Tensors, mask: Mask | None) -> Float[Tensor, " k"]:
    """Length of each member's gradient, where it may move."""
    moving = grads if mask is None else {name: torch.where(mask.open[name], g, 0) for name, g in grads.items()}
    return per_member(moving, lambda g: g.square().sum(1)).sqrt()


def _climb(params: Tensors, grads: Tensors, radius: float, mask: Mask | None, adaptive: bool) -> Tensors:
    """Each member's weights, moved by ``radius`` in the direction in which its loss grows fastest."""
    if adaptive:
        grads = {name: p * grads[name] for name, p in params.items()}
    length = radius / (_norm(grads, mask) + 1e-12)
    by = {name: g * length.view(-1, *[1] * (g.dim() - 1)) for name, g in grads.items()}
    moved = {name: p + (p * by[name] if adaptive else by[name]) for name, p in params.items()}
    return moved if mask is None else mask.choose(moved, params)


class _Gradients:
    """Losses [K], stacked gradients and, if they are to be kept, logits of a step; buffers are updated in place of the dict given."""

    def __init__(
        self,
        stack: Stack,
        loss: Loss,
        aux: Mapping[str, Stack],
        bn: BatchNormPolicy,
        progress: Progress,
        seeds: Sequence[int] | None,
        precision: Precision,
        compiled: bool,
        keep_logits: bool,
    ) -> None:
        self.loss, self.progress, self.precision, self.keep_logits = loss, progress, precision, keep_logits
        self.seeds, self.noise = (stack.seeds, "dropout") if seeds is None else (tuple(seeds), "dropout.unlearn")
        self.net, self.device = in_mode(stack.net, bn), stack.device
        self.one_by_one = len(stack) == 1 or is_stochastic(self.net)
        plain = call_alone if self.one_by_one else call_member
        self.calls = _compiled() if compiled and self.one_by_one else plain, plain  # of the models trained, and of auxiliary ones
        self.aux = {name: (in_mode(held.net, "eval_all"), held) for name, held in aux.items()}

    def __call__(self, params: Tensors, buffers: Tensors, batch: Batch, step: int) -> tuple[Tensor, Tensors, Tensor]:
        with torch.enable_grad(), _tf32(self.precision):
            leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
            mapped = (leaves, buffers, {name: held.params | held.buffers for name, (_, held) in self.aux.items()}, batch.tensors())
            if self.one_by_one:
                # the plain path: one model, or nets that draw from the global generator in their forward pass
                losses, logits = map(torch.stack, zip(*[self._member(k, mapped, batch, step) for k in range(len(self.seeds))], strict=True))
            else:
                losses, after, logits = torch.vmap(lambda p, b, a, t: self._one(p, b, a, batch.holding(t)))(*mapped)
                buffers.update(after)
            grads = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        return losses.detach(), dict(zip(leaves, grads, strict=True)), logits

    def _member(self, k: int, mapped: tuple[Tensors, Tensors, dict[str, Tensors], tuple[Tensor, ...]], batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        params, buffers, aux, tensors = mapped
        own = {name: b[k] for name, b in buffers.items()}
        with seeded(self.seeds[k], self.noise, step, device=self.device):
            given = ({n: p[k] for n, p in params.items()}, own, {name: {n: t[k] for n, t in held.items()} for name, held in aux.items()})
            # per-member counting would count K times what a stacked pass counts once
            value, after, logits = self._one(*given, batch.holding([t[k] for t in tensors]), count=k == 0)
        for name, b in after.items():
            buffers[name] = torch.cat([buffers[name][:k], b.detach().unsqueeze(0), buffers[name][k + 1 :]])
        return value, logits

    def _one(self, params: Tensors, buffers: Tensors, aux: Mapping[str, Tensors], batch: Batch, count: bool = True) -> tuple[Tensor, Tensors, Tensor]:
        counted = self.progress if count else Progress()
        own = {name: b.clone() for name, b in buffers.items()}  # BatchNorm updates these in place
        held: list[Tensor] = []
        net = Net(self.net, params, own, lambda n: counted.seen(n, n), self._keeping(held) if self.keep_logits else self.calls[0])
        others = {name: Net(self.aux[name][0], held, {}, lambda n: counted.seen(n), self.calls[1]) for name, held in aux.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            value = self.loss(net, batch, others)
        return value, {name: b.detach() for name, b in own.items()}, held[0] if held else value.detach()

    def _keeping(self, held: list[Tensor]) -> Call:
        """The call, which also puts by what it gave the first time."""

        def call(module: torch.nn.Module, tensors: Tensors, images: Tensor) -> Tensor:
            logits = self.calls[0](module, tensors, images)
            held.append(logits.detach())
            return logits

        return call


@cache
def _compiled() -> Call:
    return torch.compile(call_alone)


@contextmanager
def _tf32(precision: Precision) -> Iterator[None]:
    """Let an accelerator round the factors of matrix products to 10 bits; nothing changes on a CPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def cross_entropy(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the batch."""
    return torch.nn.functional.cross_entropy(net(batch.images), batch.labels)


def weighted_cross_entropy(smoothing: float, weight: Float[Tensor, " classes"] | None) -> Loss:
    """Cross-entropy towards (1 − s)·label + s/C·everything; with class weights, a weighted mean: Σ w_y ℓ / Σ w_y."""

    def loss(net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        if weight is None or not smoothing:
            return torch.nn.functional.cross_entropy(net(batch.images), batch.labels, weight=weight, label_smoothing=smoothing)
        # written out, since torch's own has no batching rule for both at once
        minus, own = -torch.log_softmax(net(batch.images), -1), weight.to(batch.labels.device)[batch.labels]
        hit = minus.gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
        return ((1 - smoothing) * own * hit + smoothing / minus.shape[-1] * (minus * weight.to(minus.device)).sum(-1)).sum() / own.sum()

    return loss


def epochs_of(images: Images, size: int, epochs: int) -> int:
    """Steps of so many passes in batches of ``size``, the short last batch included."""
    return epochs * math.ceil(len(images) / size)


def _save_state(
    file: Path,
    progress: Progress,
    step: int,
    params: Tensors,
    buffers: Tensors,
    state: Tensors,
    bad_step: Tensor,
    bad_loss: Tensor,
    watch: Sequence[Collector],
) -> None:
    from safetensors.torch import save_file

    groups: dict[str, Mapping[str, Tensor]] = {"params": params, "buffers": buffers, "state": state, "bad": {"step": bad_step, "loss": bad_loss}}
    groups |= {f"watch{at}": getattr(collect, "state", {}) for at, collect in enumerate(watch)}
    tensors = {f"{group}:{name}": tensor.contiguous() for group, held in groups.items() for name, tensor in held.items()}
    words = {"step": str(step), "forward": str(progress.forward), "backward": str(progress.backward), "seconds": str(progress.seconds)}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary, metadata=words)
    temporary.replace(file)


def _load_state(
    file: Path, progress: Progress, params: Tensors, buffers: Tensors, state: Tensors, bad_step: Tensor, bad_loss: Tensor, watch: Sequence[Collector]
) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as held:
            words, found = held.metadata(), {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError:
        return 0  # damaged, as by a full disk: start again
    for group, target in (("params", params), ("buffers", buffers), ("state", state)):
        for name in target:
            target[name] = found[f"{group}:{name}"].to(target[name].device)
    for at, collect in enumerate(watch):
        for name, tensor in getattr(collect, "state", {}).items():
            tensor.copy_(found[f"watch{at}:{name}"])
    bad_step.copy_(found["bad:step"])
    bad_loss.copy_(found["bad:loss"])
    progress.resume(int(words["forward"]), int(words["backward"]), float(words["seconds"]))
    return int(words["step"])
