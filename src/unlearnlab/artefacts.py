"""How the models of a study are made once the groundwork is laid: trained, pruned and unlearned stacks, masks.

Every ``make_`` function here is a job: plain arguments, the key of what it made as the answer, safe to run anywhere and
twice. What is in the store already is not made again.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnlab.checkpoints import load_originals
from unlearnlab.contract import Context, Localiser, only_declared
from unlearnlab.data.images import PARTS, Images, Split
from unlearnlab.filing import architecture, load_outputs, load_scores, load_stack, load_tensors, save_outputs, save_stack
from unlearnlab.groundwork import Setup, Table, load_data, load_request, load_split, stored
from unlearnlab.localise.overlap import chance_jaccard, jaccard, layer_shares
from unlearnlab.localise.random import Random
from unlearnlab.localise.stored import read_mask, write_mask
from unlearnlab.outputs import Outputs
from unlearnlab.progress import OverBudget, Progress
from unlearnlab.prune.cut import Dense, prunable, sparsity
from unlearnlab.seeds import at_step
from unlearnlab.spec import InputError, digest, identity, info, key, to_dict
from unlearnlab.stack import CONVOLUTIONS, Mask, Stack, blocks, head_names, per_member
from unlearnlab.train import Recipe

# ---- stacks


def trained_key(setup: Setup, images: str, seeds: Sequence[int], like: str = "") -> str:
    """The key of models trained from scratch on images with this fingerprint, as sparse as the chunk ``like``."""
    return key(setup.spec("recipe"), **training(setup, images, seeds, like))


def training(setup: Setup, images: str, seeds: Sequence[int], like: str = "") -> dict[str, Any]:
    sparse = {"live": f"stacks/{like}"} if like else {}
    return {"net": identity(setup.spec("net")), "images": images, **setup.seen, "seeds": list(seeds), **sparse}


def make_trained(setup: Setup, data: str, forget: str | None, seeds: Sequence[int], like: str = "") -> str:
    """Train a chunk of models from scratch: on all training images, or on what a forget set leaves of them.

    ``like``: the chunk of sparse models in whose places the weights are; none: dense.
    """
    parts = load_data(setup, data)
    images = parts.train.to(setup.device) if forget is None else load_split(setup, data, forget).retain
    recipe, made = setup.spec("recipe"), trained_key(setup, images.fingerprint, seeds, like)

    def write(folder: Path) -> Table:
        start = Stack.init(architecture(setup, images), seeds).to(setup.device)
        if like:  # the same places, never the rewound weights
            start = start.pruned(_for_each(load_stack(setup, like, images), seeds, setup.spec("original").shared).live)
        save_stack(folder / "init.safetensors", start)
        partial = setup.store.partial("stacks", made)
        progress = Progress(partial, clock=clock(setup.device))
        if like or getattr(recipe, "rewind", None) is None:
            return _run(folder, setup, progress, lambda: recipe(start, images, progress))
        waiting = partial / "rewind.safetensors"  # beside the resumable state, so that an interruption loses neither
        facts = _run(folder, setup, progress, lambda: recipe(start, images, progress, at_rewind=lambda stack: save_stack(waiting, stack)))
        shutil.copyfile(waiting, folder / waiting.name)
        return facts

    setup.store.make("stacks", made, write, manifest={"spec": identity(recipe), **training(setup, images.fingerprint, seeds, like)})
    return made


def pruned_key(setup: Setup, parent: str, images: str, seeds: Sequence[int]) -> str:
    """The key of sparse models made of a chunk of dense ones."""
    return key(setup.spec("pruning", setup.prune), **_pruning(setup, parent, images, seeds))


def _pruning(setup: Setup, parent: str, images: str, seeds: Sequence[int]) -> dict[str, Any]:
    return {"parent": f"stacks/{parent}", "recipe": identity(setup.spec("recipe")), "images": images, "seeds": list(seeds)}


def make_pruned(setup: Setup, data: str, forget: str | None, parent: str, seeds: Sequence[int]) -> str:
    """Prune a chunk of dense models, and train what is left: on all training images, or on what a forget set leaves of them."""
    images = load_data(setup, data).train.to(setup.device) if forget is None else load_split(setup, data, forget).retain
    pruning = setup.spec("pruning", setup.prune)
    made = pruned_key(setup, parent, images.fingerprint, seeds)

    def write(folder: Path) -> Table:
        there = stored(setup, "stacks", parent)
        states = {name: load_stack(setup, parent, images, file) for name, file in _STATES.items() if (there / f"{file}.safetensors").exists()}
        if (init := states.get("init")) is not None:
            save_stack(folder / "init.safetensors", init)
        progress = Progress(setup.store.partial("stacks", made), clock=clock(setup.device))
        needed = {name: stack for name, stack in states.items() if name in pruning.needs}
        return _run(folder, setup, progress, lambda: pruning(Dense(**needed), images, setup.spec("recipe"), progress))

    setup.store.make("stacks", made, write, manifest={"spec": identity(pruning), **_pruning(setup, parent, images.fingerprint, seeds)})
    return made


_STATES = {"trained": "weights", "init": "init", "rewind": "rewind"}  # of Dense, and the files that hold them


def imported_key(setup: Setup, seeds: Sequence[int]) -> str:
    """The key of originals taken from files: of their content and of the net that it goes into."""
    return key(setup.spec("original"), **_importing(setup, seeds))


def _importing(setup: Setup, seeds: Sequence[int]) -> dict[str, Any]:
    return {"net": identity(setup.spec("net")), **setup.seen, "seeds": list(seeds)}


def make_imported(setup: Setup, data: str, first: int, seeds: Sequence[int]) -> str:
    """Take a chunk of originals from the user's files, the file numbered ``first`` and those after it."""
    made, source = imported_key(setup, seeds), setup.spec("original")

    def write(folder: Path) -> Table:
        net, chosen = architecture(setup, load_data(setup, data).train), slice(first, first + len(seeds))
        stack = load_originals(net, source.paths[chosen], tuple(seeds))
        save_stack(folder / "weights.safetensors", stack)
        if source.inits:
            save_stack(folder / "init.safetensors", load_originals(net, source.inits[chosen], tuple(seeds)))
        return {"compute_seconds": None, "diverged": []}

    setup.store.make("stacks", made, write, manifest={"spec": identity(source), **_importing(setup, seeds)})
    return made


@dataclass(frozen=True)
class Source:
    """What a chunk of unlearned models is made from: the keys of its parents and of what else its method reads.

    ``origin``: the originals, where the parents are models that an earlier request made of them.
    """

    parent: str
    seeds: tuple[int, ...]
    origin: str = ""
    oracles: tuple[str, ...] = ()  # outputs
    attribution: str = ""
    scores: tuple[tuple[str, str], ...] = ()  # names and keys


def unlearned_key(setup: Setup, method: Table, source: Source, split: str) -> str:
    return key(setup.spec("method", method), **_unlearning(setup, source, split))


def _unlearning(setup: Setup, source: Source, split: str) -> dict[str, Any]:
    held = {"parent": f"stacks/{source.parent}", "split": split, "recipe": identity(setup.spec("recipe")), "seeds": list(source.seeds)}
    if source.origin:
        held["origin"] = f"stacks/{source.origin}"
    if source.oracles:
        held["oracles"] = [f"outputs/{made}" for made in source.oracles]
    if source.scores:
        held["scores"] = {name: f"scores/{made}" for name, made in source.scores}
    return held | ({"attribution": f"attribution/{source.attribution}"} if source.attribution else {})


def make_unlearned(setup: Setup, data: str, forget: str, method: Table, source: Source, limit: int | None = None) -> str:
    """Let a method forget, starting from a chunk of originals.

    ``limit``: the example passes that it may take a model. A method that needs more is stopped, and only that is kept (``stopped_key``).
    """
    split, chosen = load_split(setup, data, forget), setup.spec("method", method)
    made = unlearned_key(setup, method, source, split.fingerprint)

    def write(folder: Path, progress: Progress) -> Table:
        request = load_request(setup, data, forget)
        original, ctx = at_hand(setup, chosen, source, request, progress)
        facts = _run(folder, setup, ctx.progress, lambda: chosen(original, *only_declared(chosen, request, ctx)))
        after = load_tensors(setup, folder, split.retain)
        return {**facts, **_change(after, original), **_outside_mask(setup, data, forget, chosen, source, after, original)}

    _make_within(setup, "stacks", made, limit, write, {"spec": identity(chosen), **_unlearning(setup, source, split.fingerprint)})
    return made


def make_answered(setup: Setup, data: str, forget: str, method: Table, source: Source, limit: int | None = None) -> str:
    """Let a method forget that gives no models back, and keep what it answers on every image of the split.

    It starts anew at every request, so it forgets all that was asked for so far. ``limit``: as for ``make_unlearned``.
    """
    split, chosen = load_split(setup, data, forget), setup.spec("method", method)
    made = unlearned_key(setup, method, source, split.fingerprint)

    def write(folder: Path, progress: Progress) -> Table:
        original, ctx = at_hand(setup, chosen, source, split, progress)
        images, part = split.together()
        grown = growth(setup.device)
        logits = chosen.answer(original, *only_declared(chosen, split, ctx), images)
        synchronise(setup.device)
        facts = cost(ctx.progress, len(source.seeds), setup.device) | {"peak_bytes": grown()}
        member = (part <= PARTS.index("retain")).expand(len(logits), -1)  # as the other unlearned models: the originals saw all of it
        save_outputs(folder, Outputs(logits.cpu(), member, images.labels.cpu(), images.ids.cpu(), part, source.seeds))
        return {**facts, "diverged": []}

    _make_within(setup, "outputs", made, limit, write, {"spec": identity(chosen), **_unlearning(setup, source, split.fingerprint)})
    return made


def stopped_key(made: str, limit: int) -> str:
    """The key of the note that making these unlearned models takes more example passes than this."""
    return digest({"unlearned": made, "limit": limit})


def _make_within(setup: Setup, kind: str, made: str, limit: int | None, write: Callable[[Path, Progress], Table], manifest: Table) -> None:
    """Make an artefact by at most ``limit`` example passes a model, or note that it takes more. What others made without a limit is taken as it is."""
    note = "" if limit is None else stopped_key(made, limit)
    if note and setup.store.get(kind, made) is None and setup.store.get("stopped", note) is not None:
        return

    def work(folder: Path) -> Table:
        partial = setup.store.partial(kind, made)
        try:
            return write(folder, Progress(partial, clock=clock(setup.device), limit=limit))
        except OverBudget:
            shutil.rmtree(partial, ignore_errors=True)  # while the lock is ours
            raise

    try:
        setup.store.make(kind, made, work, manifest=manifest)
    except OverBudget:
        setup.store.make("stopped", note, lambda _: {"stopped": True}, manifest={**manifest, "unlearned": f"{kind}/{made}", "limit": limit})


def retraining_passes(recipe: Any, retained: int) -> int:
    """Example passes of one model trained from scratch on so many images: what the row `retrain` counts, pruned or not.

    Raises ``InputError`` for a recipe of one's own, of which only running it would tell.
    """
    if type(recipe).__call__ is not Recipe.__call__:
        raise InputError(
            f"[budget] is a share of what retraining costs, and recipe '{info(recipe).name}' does not tell beforehand; use 'standard', or no budget"
        )
    gradients = 2 if recipe.sharpness else 1  # sharpness-aware steps take each twice
    return 3 * gradients * int(recipe.epochs) * retained  # one forward, and a backward, which counts as two


def at_hand(setup: Setup, method: Any, source: Source, split: Split, progress: Progress) -> tuple[Stack, Context]:
    """The originals of a chunk, and what else its method reads."""
    shared, seeds, origin = setup.spec("original").shared, source.seeds, source.origin or source.parent
    original = _for_each(load_stack(setup, source.parent, split.retain), seeds, shared and not source.origin)
    init = _for_each(_initial(setup, origin, split.retain, method), seeds, shared) if "original_init" in method.reads else None
    init = None if init is None else init.pruned(original.live)
    oracles = load_outputs(setup, source.oracles) if source.oracles else None
    attribution = stored(setup, "attribution", source.attribution) if source.attribution else None
    scores, device = {name: load_scores(setup, made) for name, made in source.scores}, torch.device(setup.device)
    if source.origin:  # a later request must not draw what the one before drew
        seeds = tuple(at_step(seed, len(setup.earlier)) for seed in seeds)
    recipe = setup.spec("recipe")
    return original, Context(seeds, recipe, device, progress, original_init=init, oracles=oracles, attribution=attribution, scores=scores)


def _for_each(parent: Stack, seeds: Sequence[int], shared: bool) -> Stack:
    """A single original from a file serves all, each under a seed of its own."""
    return replace(parent.rows([0] * len(seeds)), seeds=tuple(seeds)) if shared else parent


def _initial(setup: Setup, parent: str, images: Images, method: Any) -> Stack:
    if not (stored(setup, "stacks", parent) / "init.safetensors").exists():
        raise no_initial(method)
    return load_stack(setup, parent, images, "init")


def no_initial(method: Any) -> InputError:
    """For a method that reads initial weights which nobody has."""
    return InputError(
        f"method '{info(method).name}' goes back to the original's initial weights, and none came with the checkpoint;"
        " name their file in [original] init = …, or leave the method out"
    )


def _run(folder: Path, setup: Setup, progress: Progress, work: Any) -> dict[str, Any]:
    """Time the work alone (what came before an interruption included), save its stack, and say what it cost per model."""
    grown = growth(setup.device)
    stack: Stack = work()
    synchronise(setup.device)
    spent = cost(progress, len(stack), setup.device) | {"peak_bytes": grown()}
    save_stack(folder / "weights.safetensors", stack)
    return {**spent, **_sparsity(stack), "diverged": [[found.seed, found.step, str(found.loss)] for found in stack.diverged]}


def cost(progress: Progress, members: int, device: str) -> dict[str, Any]:
    return {
        "device": device,
        "compute_seconds": progress.seconds / members,
        "example_passes": progress.example_passes,
        "forward": progress.forward,
        "backward": progress.backward,
    }


def clock(device: str) -> Callable[[], float]:
    """On a CPU the time of this process, which other work on the machine does not stretch; on an accelerator the time that passes."""
    return time.process_time if device == "cpu" else time.perf_counter


def growth(device: str) -> Callable[[], int | None]:
    """From now on, by how many bytes more was held at most than is held now; None where the system does not tell.

    A process keeps one high-water mark, which whatever it did before has raised: Linux sets it back on request. What was freed and not given
    back yet would be used again unseen, so it is given back first.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - held
    try:
        with contextlib.suppress(AttributeError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        start = _status("VmRSS")
    except OSError:
        return lambda: None
    return lambda: max(0, _status("VmHWM") - start)


def _status(name: str) -> int:
    """A size of this process, in bytes, as Linux tells it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _change(after: Stack, before: Stack) -> dict[str, list[Any]]:
    """How far the weights moved, per member: share of changed weights, and relative distance (None where they diverged)."""
    moved = {name: after.params[name].double() - before.params[name].double() for name in before.params}
    size = sum(tensor[0].numel() for tensor in moved.values())
    changed = per_member({name: after.params[name] != before.params[name] for name in moved}) / size
    norm = per_member({n: t.double() for n, t in before.params.items()}, lambda t: t.square().sum(1)).sqrt()
    distance = (per_member(moved, lambda t: t.square().sum(1)).sqrt() / norm).tolist()
    return {"changed": changed.tolist(), "rel_l2": [far if math.isfinite(far) else None for far in distance]}  # JSON has no NaN


def _sparsity(stack: Stack) -> dict[str, list[float]]:
    """Share of weights that are exactly 0, per member: of those that pruning may remove, and of all."""
    kinds = {type(module) for module in stack.net.modules()}
    of_all, convolutional = sparsity(stack, list(stack.params)).tolist(), any(issubclass(kind, CONVOLUTIONS) for kind in kinds)
    if not stack.live and not convolutional and not any(issubclass(kind, torch.nn.Linear) for kind in kinds):
        return {"sparsity_all": of_all}  # layers of one's own, of which pruning knows nothing
    names = list(stack.live) or prunable(stack.net, include_linear=not convolutional)  # what was pruned says what was to be pruned
    return {"sparsity_prunable": sparsity(stack, names).tolist(), "sparsity_all": of_all}


# ---- masks


def place_of(method: Any) -> Localiser | None:
    """The localiser whose mask a method works under; None where it chooses no weights beforehand."""
    found = getattr(method, "where", None)
    return found if isinstance(found, Localiser) and info(found).kind == "localiser" else None


def opens_head(method: Any) -> bool:
    """Does a method train the classifier head whatever the mask says?"""
    inside = {"sequence": "steps", "rum": "each"}.get(info(method).name, "")
    held = getattr(method, inside) if inside else (method.method,) if hasattr(method, "method") else ()
    return bool(getattr(method, "opens_head", False)) or any(map(opens_head, held))


def control_for(where: Localiser, share: float) -> Random:
    """The ``random`` localiser of the same budget and granularity; of the share reached, where the localiser has no budget."""
    alike = {name: getattr(where, name) for name in ("granularity", "ranking", "always_open", "min_keep") if hasattr(where, name)}
    budget = getattr(where, "budget", None) if getattr(where, "threshold", None) is None else None
    return Random(budget=budget or max(share, 1e-6), draw=getattr(where, "draw", -1) + 1, **alike)


def mask_key(setup: Setup, where: Table, source: Source, split: str) -> str:
    return key(setup.spec("localiser", where), **_unlearning(setup, source, split))


def make_mask(setup: Setup, data: str, forget: str, where: Table, source: Source) -> str:
    """Let a localiser choose weights of a chunk of originals, as a method does that starts from them; the mask is stored bit by bit."""
    split, chosen = load_split(setup, data, forget), setup.spec("localiser", where)
    made = mask_key(setup, where, source, split.fingerprint)

    def write(folder: Path) -> Table:
        request = load_request(setup, data, forget)  # this forget set alone, as the method sees it
        original, ctx = at_hand(setup, chosen, source, request, Progress())
        mask: Mask = chosen(original, *only_declared(chosen, request, ctx))
        write_mask(folder / "mask.safetensors", mask, localiser=chosen, forget=request.forget, seeds=source.seeds)
        counts = {"open": per_member(mask.open).tolist(), "live": per_member(Mask.everything(original).open).tolist()}
        return {"model": mask.parent, "forget": request.forget.fingerprint, "share": mask.share().tolist(), **counts}

    setup.store.make("masks", made, write, manifest={"spec": identity(chosen), **_unlearning(setup, source, split.fingerprint)})
    return made


def load_mask(setup: Setup, made: str) -> Mask:
    return read_mask(stored(setup, "masks", made) / "mask.safetensors")


def mask_share(setup: Setup, made: str) -> float:
    """Share of the live weights that a stored mask opens, mean over its models: as a budget, which counts no pruned ones."""
    held = setup.store.manifest("masks", made)
    return round(min(1.0, float(sum(held["open"]) / sum(held["live"]))), 6)


def describe_masks(setup: Setup, images: Images, masks: Sequence[str], controls: Sequence[str]) -> Table:
    """What there is to see of a localiser's masks beside those of its random control: open shares by layer, and overlap, over all models."""
    net, layers, shares = architecture(setup, images), dict[str, list[Tensor]](), dict[str, list[Tensor]]()
    overlaps, chances = list[Tensor](), list[Tensor]()
    for pair in zip(masks, controls, strict=True):
        mine, random = (load_mask(setup, made) for made in pair)
        for held, mask in ((layers, mine), (shares, random)):
            for name, share in layer_shares(mask, net).items():
                held.setdefault(name, []).append(share)
        facts = [setup.store.manifest("masks", made) for made in pair]
        chances.append(chance_jaccard(*(torch.tensor(held["open"]) / torch.tensor(held["live"]) for held in facts)))
        overlaps.append(jaccard(mine, random))
    sizes = [sum(dict(net.named_parameters())[name].numel() for name in names) for names in blocks(net)]
    rows = [(name, size, *(float(torch.cat(held[name]).mean()) for held in (layers, shares))) for name, size in zip(layers, sizes, strict=True)]
    opened, overlap = torch.tensor([share for made in masks for share in setup.store.manifest("masks", made)["share"]]), torch.cat(overlaps)
    return {
        "spec": setup.store.manifest("masks", masks[0])["spec"],
        "models": len(opened),
        "share": {"mean": float(opened.mean()), "least": float(opened.min()), "most": float(opened.max())},
        "layers": [dict(zip(("layer", "weights", "share", "random"), row, strict=True)) for row in rows],
        "jaccard": {"mean": float(overlap.mean()), "least": float(overlap.min()), "most": float(overlap.max())},
        "chance": float(torch.cat(chances).mean()),
    }


def _outside_mask(setup: Setup, data: str, forget: str, method: Any, source: Source, after: Stack, before: Stack) -> Table:
    """How many weights outside its stored mask a method changed, bit for bit, per member; nothing where it has no mask."""
    where = place_of(method)
    if where is None:
        return {}
    mask = load_mask(setup, make_mask(setup, data, forget, to_dict(where), replace(source, oracles=(), attribution="", scores=())))
    mask.require(before)
    opened = mask.opening(head_names(before)).open if opens_head(method) else mask.open
    changed = {name: (after.params[name] != p) & ~opened[name].to(p.device) for name, p in before.params.items()}
    return {"outside_mask": per_member(changed).tolist()}
