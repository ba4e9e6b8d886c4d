"""``unsir``: forget a whole class without its images: impair with noise that the model takes for anything but the class, then repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unlearnlab.contract import Context
from unlearnlab.data.augment import augmented
from unlearnlab.data.images import Images, Split
from unlearnlab.fit import Batch, Stream, cross_entropy, fit
from unlearnlab.methods.settings import Augment, BatchNorm, BatchSize, Course, Update
from unlearnlab.methods.training import batches, descend
from unlearnlab.optimizers import Adam, Constant
from unlearnlab.pixels import as_floats, require_floats
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Net, Stack

AT_ONCE = 256  # images of noise made at a time


@spec("method", "unsir", paper="arXiv:2111.08947")
class Unsir:
    """Forget whole classes without their images: train on noise labelled as the class but unlike it, then repair on retain images.

    1 Images of noise N_b ~ N(0, 1) each minimise −CE(f_o(N_b), c) + λ‖N_b‖² in ``noise_steps`` steps of Adam with rate noise_lr, f_o in
    eval mode. 2 Impair: one epoch on ``noise_images`` such, labelled c, shuffled with up to ``retain_per_class`` images of each retained
    class. 3 Repair: one epoch on those images. penalty = λ, lr = η of the impair step. The forgotten classes are those without an image
    in R, or the ``labels``, each with noise of its own. No forget image is read: of a class that keeps some in R, as where a sub-class is
    forgotten, those are trained on like the others. Noise is float32 and enters the net as it is, before any normalisation inside; uint8
    images beside it come as floats in [0, 1].
    Source: Tarun et al. 2023 (methods.md §3.5).
    Differs from the published code: all images of noise are different and all are used (there one batch, repeated, of which as many
    images as an image has channels); the model takes no gradients in step 1.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"retain"})
    designed_for: ClassVar[str] = "class"
    cost: ClassVar[str] = "(noise images·(noise_steps + 1) + 2·retain images used)/n_r"
    null: ClassVar[Mapping[str, Any] | None] = {"lr": 0.0, "repair_lr": 0.0, "bn": "frozen"}
    labels: Annotated[tuple[int, ...], Setting("classes to forget though some of their images are retained; none: those forgotten whole", ge=0)] = ()
    noise_images: Annotated[int, Setting("images of noise for each forgotten class", ge=1, published="80 batches of 32")] = 2560
    noise_steps: Annotated[int, Setting("steps in which noise is made", ge=1)] = 25
    noise_lr: Annotated[float, Setting("learning rate of the noise", ge=0)] = 0.1
    penalty: Annotated[float, Setting("weight of the noise's squared norm", symbol="λ", ge=0)] = 0.1
    retain_per_class: Annotated[int, Setting("most images of a retained class that are trained on", ge=1)] = 500
    lr: Annotated[float, Setting("learning rate of the impair step", symbol="η", ge=0, published="1e-4 (SSD's code); 0.02")] = 1e-4
    repair_lr: Annotated[float, Setting("learning rate of the repair step", ge=0, published="1e-4 (SSD's code); 0.01")] = 1e-4
    batch: BatchSize = 256
    optimizer: Update = Adam()
    schedule: Course = Constant()
    bn: BatchNorm = "train"
    augment: Augment = "train"

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        retain = split.retain
        classes, rows = self.forgotten(retain), self.rows(retain, ctx)
        require_floats(stack, retain, "method 'unsir'")
        noise = self.noise(stack, classes, self._seen(retain, rows[:, :1], ctx, 0).shape[2:], ctx)
        labels = torch.tensor(classes, device=noise.device).repeat_interleave(self.noise_images)
        mixed, per_epoch = self._mixed(retain, rows.to(noise.device), noise, labels, ctx)
        impaired = descend(stack, mixed, cross_entropy, self, ctx, steps=per_epoch, per_epoch=per_epoch)
        again = batches(retain, self, ctx, "order.retain", rows=rows)
        return descend(impaired, again, cross_entropy, self, ctx, steps=again.steps_per_epoch, per_epoch=again.steps_per_epoch, lr=self.repair_lr)

    def forgotten(self, retain: Images) -> list[int]:
        """The classes that were named, or those of which no image is retained."""
        if any(label >= retain.classes for label in self.labels):
            raise InputError(f"method 'unsir': labels = {list(self.labels)}, but the classes are 0 to {retain.classes - 1}")
        if self.labels:
            return sorted(set(self.labels))
        found: list[int] = (torch.bincount(retain.labels, minlength=retain.classes) == 0).nonzero()[:, 0].tolist()
        if not found:
            words = f"every one of the {retain.classes} classes still has images in the retain set"
            hint = "forget a class and all its images, name it in labels, or use another method"
            raise InputError(f"method 'unsir' forgets whole classes only, and {words}; {hint}")
        return found

    def noise(self, stack: Stack, classes: list[int], shape: torch.Size, ctx: Context) -> Float[Tensor, "k n c h w"]:
        """The noise of all classes, ``noise_images`` each, one class after the other; what is trained here are the images."""
        lots = [[generator(seed, "noise", label) for label in classes] for seed in ctx.seeds]
        start = torch.stack([torch.cat([torch.randn(self.noise_images, *shape, generator=lot) for lot in own]) for own in lots]).to(stack.device)
        wanted = torch.tensor(classes, device=stack.device).repeat_interleave(self.noise_images).expand(len(stack), -1)
        counted = Progress()  # one of its own: noise is made anew when a run resumes, and need not be stored
        parts = zip(torch.split(start, AT_ONCE, 1), torch.split(wanted, AT_ONCE, 1), strict=True)
        done = torch.cat([self._worst(stack, images, labels, ctx.seeds, counted) for images, labels in parts], 1)
        ctx.progress.seen(counted.forward, counted.forward)
        return done

    def _worst(self, stack: Stack, images: Tensor, labels: Tensor, seeds: tuple[int, ...], counted: Progress) -> Tensor:
        """The images, changed until the model least takes them for these labels."""

        def stream(step: int) -> Batch:
            return Batch(labels, labels, labels)  # the loss reads the labels only

        held, aux = Stack(nn.Identity(), {"noise": images}, {}, seeds), {"model": stack}
        made = fit(held, stream, self._noise_loss, lr=self.noise_lr, optimizer=Adam(), steps=self.noise_steps, aux=aux, progress=counted)
        return made.params["noise"]

    def _noise_loss(self, net: Net, batch: Batch, aux: Mapping[str, Net]) -> Tensor:
        noise = net.params["noise"]  # every image for itself, so a sum
        return self.penalty * noise.square().sum() - nn.functional.cross_entropy(aux["model"](noise), batch.labels, reduction="sum")

    def rows(self, retain: Images, ctx: Context) -> Int64[Tensor, "k m"]:
        """Each member's draw of up to ``retain_per_class`` images of each class."""
        labels = retain.labels.cpu()
        counts = torch.bincount(labels)
        place = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # of an image in its class

        def drawn(seed: int) -> Tensor:
            order = torch.randperm(len(labels), generator=generator(seed, "retain.share"))
            return order[labels[order].argsort(stable=True)][place < self.retain_per_class]

        return torch.stack([drawn(seed) for seed in ctx.seeds])

    def _mixed(self, retain: Images, rows: Tensor, noise: Tensor, labels: Tensor, ctx: Context) -> tuple[Stream, int]:
        """Noise and retain images shuffled together, and how many batches that makes. Noise is not augmented."""
        made, total = noise.shape[1], noise.shape[1] + rows.shape[1]
        order = torch.stack([torch.randperm(total, generator=generator(seed, "order.train")) for seed in ctx.seeds]).to(noise.device)
        member = torch.arange(len(noise), device=noise.device)[:, None]

        def stream(step: int) -> Batch:
            at = order[:, step * self.batch : (step + 1) * self.batch]
            is_noise, of_noise = at < made, at.clamp(max=made - 1)
            row = rows.gather(1, (at - made).clamp(min=0))
            images = torch.where(is_noise[:, :, None, None, None], noise[member, of_noise], as_floats(self._seen(retain, row, ctx, step)))
            return Batch(images, torch.where(is_noise, labels[of_noise], retain.labels[row]), torch.where(is_noise, -1, retain.ids[row]))

        return stream, -(-total // self.batch)

    def _seen(self, retain: Images, rows: Int64[Tensor, "k b"], ctx: Context, step: int) -> Tensor:
        """Retain images as the impair step shows them: augmented, which may change their size."""
        pixels, augment = retain.pick(rows.to(retain.labels.device)), ctx.recipe.augment if self.augment == "train" else ()
        return augmented(augment, pixels, ctx.seeds, step, "augment.train") if augment else pixels
