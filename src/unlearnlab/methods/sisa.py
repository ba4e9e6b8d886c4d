"""``sisa``: an ensemble trained on shards of the data, in which a deletion retrains only what has seen the deleted images."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unlearnlab.contract import Context
from unlearnlab.data.images import Images, Split
from unlearnlab.methods.state import group, grouped, read, read_words, write
from unlearnlab.optimizers import MultiStep, Schedule, WarmUp
from unlearnlab.outputs import lowest_argmax
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, Setting, build, digest, identity, spec, to_dict
from unlearnlab.stack import Stack, Tensors
from unlearnlab.train import Recipe


@spec("method", "sisa", paper="arXiv:1912.03817")
class Sisa:
    """Train one model for each shard of the data, slice by slice; to delete images, go back to before they were first seen. Exact.

    Every id belongs to one of N_s shards and one of N_r slices. A shard's model is trained on slice 1, then on 1–2, … then on all N_r, e′ epochs each and
    with a checkpoint after each; predictions are averaged over shards, or voted. To delete S, each shard hit goes back to the checkpoint before its
    earliest hit slice and trains the rest without S. shards = N_s, slices = N_r, slice_epochs = e′ (none: 2E/(N_r+1), rounded, at least 1: the
    visits then sum to the recipe's E). Source: Bourtoule et al. 2021 (methods.md §8.1).
    Differs from the published code: an image's place is a hash of its id, so no image is left over, no border moves, and the system after a deletion
    is that trained without S from the beginning; stale checkpoints are replaced; a tied vote goes to the lowest class.
    Ours: each slice starts the recipe's optimiser and schedule anew (a schedule's epochs shrink by e′/E), so that a checkpoint is weights and buffers
    alone; all members share the places and differ in initial weights and order. A shard that has lost all its images has no say.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain"})
    certified: ClassVar[str] = "exact"
    cost: ClassVar[str] = "Σ over shards hit and slices r from the first one hit: e′·(images left in slices 1 to r)/n_r"
    shards: Annotated[int, Setting("models, each trained on its own part of the images", symbol="N_s", ge=1)] = 5
    slices: Annotated[int, Setting("parts of a shard, trained on one after the other with checkpoints", symbol="N_r", ge=1, published="1 to 10")] = 5
    slice_epochs: Annotated[int | None, Setting("epochs at each slice; none: 2E/(N_r+1), rounded", symbol="e′", ge=1)] = None
    combine: Annotated[Literal["mean", "vote"], Setting("prediction: mean softmax of the shards, or majority vote (ties to the lowest class)")] = "mean"
    draw: Annotated[int, Setting("number of the draw that places images in shards and slices", ge=0)] = 0

    def fit(self, net: nn.Module | Stack, images: Images, recipe: Recipe, seeds: Sequence[int], folder: Path | str, progress: Progress | None = None) -> System:
        """Train a system in a folder, or go on with one that was interrupted there. Of a stack, the architecture and what is pruned is used."""
        system = System(self, _like(net, seeds), images, recipe, tuple(seeds), Path(folder))
        system.update(progress)
        return system

    def answer(self, stack: Stack, split: Split, ctx: Context, images: Images) -> Float[Tensor, "k n classes"]:
        """Fit on forget and retain set, delete the forget set, answer. Only the deletion counts as cost."""
        if ctx.mask is not None:
            raise InputError("method 'sisa' trains models of its own and cannot keep weights outside a mask; use it without one")
        with ExitStack() as held:
            kept = ctx.progress.folder
            folder = Path(held.enter_context(TemporaryDirectory())) if kept is None else kept / "sisa"
            before = ctx.progress.seconds
            system = self.fit(stack, split.train, ctx.recipe, ctx.seeds, folder, Progress(tell=ctx.progress.step))
            ctx.progress.resume(ctx.progress.forward, ctx.progress.backward, before)  # training is not unlearning
            if not system.requests:
                system.delete(split.forget.ids.tolist(), Progress(tell=ctx.progress.step))
            ctx.progress.seen(*system.passes(request=1))  # read from the folder: right also when an interrupted deletion was finished
            return system.logits(images)

    def places(self, ids: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
        """Shard and slice of each id (both from 0): a hash of draw and id, whatever other ids there are."""
        x = ids.cpu().numpy().astype("uint64") + generator(self.draw, "shards").initial_seed()
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9  # the finaliser of SplitMix64 (Steele et al. 2014)
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB
        x = x ^ (x >> 31)
        cell = torch.from_numpy((x % (self.shards * self.slices)).astype("int64"))
        return cell % self.shards, cell // self.shards

    def slice_recipe(self, recipe: Recipe) -> Recipe:
        """How each slice is trained."""
        if not isinstance(recipe, Recipe):
            raise InputError("method 'sisa' cannot shorten a recipe of one's own to the epochs of a slice; use recipe 'standard'")
        epochs = self.slice_epochs or max(1, math.floor(2 * recipe.epochs / (self.slices + 1) + 0.5))
        return replace(recipe, epochs=epochs, rewind=None, schedule=_squeezed(recipe.schedule, epochs / recipe.epochs))


class System:
    """A trained ensemble in a folder. ``delete`` makes it exactly what it would be without these images; ``logits`` asks it.

    ``system.safetensors``: settings, every id's shard and slice, deletion requests so far. ``shard-s-slice-r.safetensors``: weights of shard s
    after slice r (0: initial ones), named by a hash of all that they were trained on. A checkpoint whose name does not fit what is left of
    the images is stale and made again, so that an interrupted deletion is finished when the folder is next opened; until then ``logits`` refuses.
    Images are not stored. ``requests``: the ids of each deletion, in order.
    """

    def __init__(self, method: Sisa, like: Stack, images: Images, recipe: Recipe, seeds: tuple[int, ...], folder: Path) -> None:
        self.method, self.like, self.recipe, self.seeds, self.folder = method, like, recipe, seeds, folder
        self.requests: list[list[int]] = []
        self.ids = images.ids.cpu().sort().values
        self.shard, self.slice = method.places(self.ids)
        if self._file.exists():
            tensors, held = read(self._file)  # raises where it is damaged: begun anew, the system would not know what was deleted
            if held | {"requests": []} != self._words() | {"requests": []} or not _equal(group(tensors, "live"), like.live):
                raise InputError(f"{folder} holds a system of other settings, seeds, images or pruned weights; give another, or open it with System.load")
            self.requests = held["requests"]
        else:
            self._save()
        self.images = self._left(images)

    @staticmethod
    def load(folder: Path | str, net: nn.Module | Stack, images: Images, progress: Progress | None = None) -> System:
        """Open a system: its architecture and the images that it was trained on (deleted ones may be missing) are given, all else is stored."""
        tensors, words = read(Path(folder) / "system.safetensors")
        system = System.__new__(System)
        system.method, system.recipe = build("method", words["method"]), build("recipe", words["recipe"])
        system.folder, system.seeds, system.requests = Path(folder), tuple(words["seeds"]), words["requests"]
        like = _like(net, system.seeds)
        system.like = replace(like, live={name: bits.to(like.device) for name, bits in group(tensors, "live").items()})
        system.ids, system.shard, system.slice = tensors["ids"], tensors["shard"], tensors["slice"]
        system.images = system._left(images)
        system.update(progress)
        return system

    def delete(self, ids: Iterable[int], progress: Progress | None = None) -> None:
        """Forget these images, exactly: models that never saw them are not touched. Raises ``InputError`` for ids not here or deleted before."""
        wanted = sorted({int(i) for i in ids})
        before, known = set(self._gone), set(self.ids.tolist())
        for what, wrong in (("deleted before", sorted(before & set(wanted))), ("not among the images trained on", sorted(set(wanted) - known))):
            if wrong:
                raise InputError(f"cannot delete ids {', '.join(map(str, wrong))}: {what}; leave them out of the request")
        if not wanted or len(wanted) == len(self.images):
            raise InputError(f"a request to delete {len(wanted)} of {len(self.images)} images: name at least one, and leave at least one")
        self.requests.append(wanted)
        self._save()  # first the request, then the work: whatever happens, these images will be gone
        self.images = self._left(self.images)
        self.update(progress)

    def logits(self, images: Images, batch: int = 1024) -> Float[Tensor, "k n classes"]:
        """Log of the mean softmax of the shards, or of the share of votes (as if one more shard voted for all classes alike)."""
        device, found = self.like.device, []
        for shard in sorted(set(self.shard[self._alive].tolist())):
            if self._known(shard, self.method.slices).get("name") != self._names(shard)[-1]:
                raise InputError("training or a deletion was interrupted, so models may still know deleted images; finish it with update()")
            stack = self.checkpoint(shard, self.method.slices)
            with torch.no_grad():
                each = torch.cat([stack.logits(images.pixels[at : at + batch].to(device)) for at in range(0, len(images), batch)], 1)
            found.append(each.double())
        together = torch.stack(found)
        if self.method.combine == "mean":
            return (together.log_softmax(-1).logsumexp(0) - math.log(len(found))).float()
        classes = together.shape[-1]
        votes = nn.functional.one_hot(lowest_argmax(together), classes).sum(0)
        return ((votes + 1 / classes) / (len(found) + 1)).log().float()

    def passes(self, request: int) -> tuple[int, int]:
        """Examples forward and backward, per member, that a deletion took (1 is the first; 0: the training), as far as its checkpoints are still in use."""
        held = [self._known(shard, at) for shard in range(self.method.shards) for at in range(self.method.slices + 1)]
        mine = [words for words in held if words.get("request") == request]
        return sum(words["forward"] for words in mine), sum(words["backward"] for words in mine)

    def checkpoint(self, shard: int, at: int) -> Stack:
        """A shard's model after so many slices."""
        tensors, _ = read(self._checkpoint_file(shard, at))
        params, buffers = group(tensors, "params", self.like.params), group(tensors, "buffers", self.like.buffers)
        return replace(self.like, params=params, buffers=buffers, seeds=self.seeds, diverged=())

    def update(self, progress: Progress | None = None) -> None:
        """Train what is missing or stale; nothing, where all is as it should be. A slice whose training was interrupted goes on where it was."""
        progress, names = progress or Progress(), [self._names(shard) for shard in range(self.method.shards)]
        for begun in self.folder.glob("*.partial"):
            if not any(begun.stem in own for own in names):
                shutil.rmtree(begun)  # of a training that had seen what is now deleted
        for shard, wanted in enumerate(names):
            for at, name in enumerate(wanted):
                if self._known(shard, at).get("name") != name:
                    begun = self.folder / f"{name}.partial"
                    own = Progress(begun, every=progress.every, tell=progress.step)
                    made = self.like.fresh(self.seeds, f"init.shard.{shard}") if at == 0 else self._train(shard, at, own)
                    words = {"name": name, "request": len(self.requests), "forward": own.forward, "backward": own.backward}
                    write(self._checkpoint_file(shard, at), grouped(params=made.params, buffers=made.buffers), words)
                    shutil.rmtree(begun, ignore_errors=True)
                    progress.seen(own.forward, own.backward)

    def _train(self, shard: int, at: int, progress: Progress) -> Stack:
        before = self.checkpoint(shard, at - 1)  # from the folder also when it was just made: the same bits whether interrupted or not
        mine = (self.shard[self._alive] == shard) & (self.slice[self._alive] < at)
        if not mine.any():
            return before
        seeds = tuple(generator(seed, "sisa", shard, at).initial_seed() for seed in self.seeds)  # each slice in an order of its own
        return self.method.slice_recipe(self.recipe)(replace(before, seeds=seeds), self.images.rows(mine.to(self.images.labels.device)), progress)

    def _names(self, shard: int) -> list[str]:
        """What each checkpoint must be called, given the images that are left: a deletion changes its slice's and all later names."""
        names = [digest([identity(self.method), identity(self.recipe), list(self.seeds), shard])]
        for at in range(self.method.slices):
            names.append(digest([names[-1], self.ids[self._alive & (self.shard == shard) & (self.slice == at)].tolist()]))
        return names

    @property
    def _gone(self) -> list[int]:
        return [i for request in self.requests for i in request]

    @property
    def _alive(self) -> Tensor:
        return ~torch.isin(self.ids, torch.tensor(self._gone, dtype=torch.int64))

    def _left(self, images: Images) -> Images:
        """Of these images those that are trained on, in order of id (an order of training must not depend on how they came)."""
        wanted = self.ids[self._alive]
        found = images.rows(torch.isin(images.ids.cpu(), wanted).to(images.labels.device))
        if len(found) != len(wanted):
            missing = wanted[~torch.isin(wanted, found.ids.cpu())].tolist()
            raise InputError(f"{len(missing)} images of this system are not among those given (id {missing[0]} is one); give all that are not deleted")
        return found.rows(found.ids.argsort())

    def _words(self) -> dict[str, Any]:
        names = {"method": to_dict(self.method), "recipe": to_dict(self.recipe), "seeds": list(self.seeds), "ids": digest(self.ids.tolist())}
        return {**names, "requests": self.requests}

    def _save(self) -> None:
        table = {"ids": self.ids, "shard": self.shard, "slice": self.slice}
        write(self._file, table | grouped(live=self.like.live), self._words())

    @property
    def _file(self) -> Path:
        return self.folder / "system.safetensors"

    def _checkpoint_file(self, shard: int, at: int) -> Path:
        return self.folder / f"shard-{shard}-slice-{at}.safetensors"

    def _known(self, shard: int, at: int) -> dict[str, Any]:
        return read_words(self._checkpoint_file(shard, at)) or {}


def _like(net: nn.Module | Stack, seeds: Sequence[int]) -> Stack:
    like = net if isinstance(net, Stack) else Stack.init(net, seeds)
    if len(like) != len(seeds):
        raise InputError(f"{len(seeds)} seeds for a stack of {len(like)} models; give one seed for each")
    return like


def _equal(some: Tensors, others: Tensors) -> bool:
    return some.keys() == others.keys() and all(torch.equal(bits.cpu(), others[name].cpu()) for name, bits in some.items())


def _squeezed(schedule: Schedule, share: float) -> Schedule:
    """The same course in a shorter run: what it counts in epochs shrinks with the run."""
    if isinstance(schedule, MultiStep):
        return replace(schedule, epochs=tuple(round(epoch * share) for epoch in schedule.epochs))
    if isinstance(schedule, WarmUp):
        return replace(schedule, epochs=schedule.epochs * share, then=_squeezed(schedule.then, share))
    return schedule
