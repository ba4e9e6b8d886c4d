"""Five unlearning methods on 32 small CNNs: stacked, against one model at a time as users write it today.

    python benchmarks/methods.py [--models 32] [--plain 4] [--repeats 3]

The task is that of the study ``digits``: ``small_cnn``, 438 images to retain, 62 to forget, the study's settings (``scrub``: those of
``digits_all``). Ours: stacks of eight, one process. Plain: a DataLoader over single items, ``torch.optim``, ``loss.item()`` at every
step, squared gradients from batches of one, a copy of the model as the teacher. It runs on the first ``--plain`` models only, and
its seconds are multiplied by 32 over that number, since models that run one after the other take equally long. One thread. The two
sides take turns, so that a busy machine slows both; ratios are those of the medians.

No speed is required; that both sides do the same work is, else 1 is returned. The examples that the plain loaders serve and the plain models
pass forward and backward must be exactly what ours report as cost. The plain loops draw their random numbers as ours do, so both sides
must have the same models after a few epochs, but for rounding (which a learning rate of 0.2 then blows up), and be equally accurate in the end.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR
from torch.utils.data import DataLoader, Dataset, Sampler

from unlearnlab.contract import Context, Method, only_declared
from unlearnlab.data.images import Images, Split
from unlearnlab.data.partition import Parts, split_for
from unlearnlab.progress import Progress
from unlearnlab.seeds import generator, model_seeds
from unlearnlab.stack import Stack, chunk_size
from unlearnlab.studyfiles import read
from unlearnlab.train import Recipe

METHODS = {"finetune": "digits", "neggrad_plus": "digits", "salun": "digits", "scrub": "digits_all", "ssd": "digits"}  # and whose settings
# What the sides are compared after: two epochs. Of scrub one more, since its first pass over the forget set has no slope, at a rate that shows.
BRIEF: dict[str, dict[str, Any]] = {"scrub": {"epochs": 3, "max_epochs": 2, "lr": 0.03}, "ssd": {}}
APART = 1e-4  # relative distance between both sides' logits then
LESS = 0.03  # difference in accuracy in the end

# ---------------------------------------------------------------- the plain way


class Scans(Dataset[tuple[Tensor, int]]):
    """What a user writes: one item at a time, scaled by a transform (what torchvision's ``ToTensor`` does)."""

    served = 0  # by all of them

    def __init__(self, images: Images) -> None:
        self.pixels, self.labels = images.pixels[:], images.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        Scans.served += 1
        return self.pixels[row].to(torch.float32).div(255), self.labels[row]


class Order(Sampler[int]):
    """``RandomSampler`` with the orders of ours."""

    def __init__(self, data: Scans, seed: int, purpose: str) -> None:
        self.count, self.seed, self.purpose, self.epoch = len(data), seed, purpose, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        yield from torch.randperm(self.count, generator=generator(self.seed, self.purpose, self.epoch - 1)).tolist()


Batches = DataLoader[Any]


def shuffled(data: Scans, batch: int, seed: int, purpose: str) -> Batches:
    return DataLoader(data, batch_size=batch, sampler=Order(data, seed, purpose))


def sgd(model: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def train(batches: Iterable[Any], loss_of: Callable[..., Tensor], optimizer: torch.optim.SGD, scheduler: CosineAnnealingLR | None = None) -> Iterator[None]:
    """The loop of every tutorial; pauses after every step."""
    running = 0.0
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(*batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        running += loss.item()
        yield


def finetune(original: nn.Module, method: Any, split: Split, seed: int) -> nn.Module:
    model = copy.deepcopy(original).train()
    retain = shuffled(Scans(split.retain), method.batch, seed, "order.retain")
    optimizer = sgd(model, method.lr)
    scheduler = CosineAnnealingLR(optimizer, method.epochs * len(retain))
    for _ in range(method.epochs):
        for _ in train(retain, lambda x, y: F.cross_entropy(model(x), y), optimizer, scheduler):
            pass
    return model


def neggrad_plus(original: nn.Module, method: Any, split: Split, seed: int) -> nn.Module:
    model = copy.deepcopy(original).train()
    retain = shuffled(Scans(split.retain), method.batch, seed, "order.retain")
    forget = shuffled(Scans(split.forget), method.batch, seed, "order.forget")
    optimizer = sgd(model, method.lr)
    scheduler = CosineAnnealingLR(optimizer, method.epochs * len(retain))

    def loss_of(kept: Any, gone: Any) -> Tensor:
        alpha: float = method.retain_weight
        return alpha * F.cross_entropy(model(kept[0]), kept[1]) - (1 - alpha) * F.cross_entropy(model(gone[0]), gone[1])

    again = itertools.chain.from_iterable(itertools.repeat(forget))  # in a new order each time
    for _ in range(method.epochs):
        for _ in train(zip(retain, again, strict=False), loss_of, optimizer, scheduler):
            pass
    return model


def salun(original: nn.Module, method: Any, split: Split, seed: int) -> nn.Module:
    model = copy.deepcopy(original).eval()
    for pixels, labels in DataLoader(Scans(split.forget), batch_size=method.batch):
        F.cross_entropy(model(pixels), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    salience = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).abs()
    chosen = salience.argsort(descending=True, stable=True)[: int(Decimal(str(method.budget)) * len(salience))]
    bits = torch.zeros(len(salience), dtype=torch.bool).index_fill_(0, chosen, True)
    opened = torch.split(bits, [p.numel() for p in model.parameters()])
    before = [p.detach().clone() for p in model.parameters()]

    model.train()
    data = Scans(split.train)
    random = torch.isin(split.train.ids, split.forget.ids).nonzero()[:, 0].tolist()
    loader = shuffled(data, method.batch, seed, "order.train")
    optimizer = sgd(model, method.lr)
    scheduler = CosineAnnealingLR(optimizer, method.epochs * len(loader))
    for epoch in range(method.epochs):
        drawn = torch.randint(10, (len(random),), generator=generator(seed, "labels", epoch)).tolist()
        for row, label in zip(random, drawn, strict=True):
            data.labels[row] = label
        for _ in train(loader, lambda x, y: F.cross_entropy(model(x), y), optimizer, scheduler):
            with torch.no_grad():
                for p, may, was in zip(model.parameters(), opened, before, strict=True):
                    p.copy_(torch.where(may.view_as(p), p, was))
    return model


def scrub(original: nn.Module, method: Any, split: Split, seed: int) -> nn.Module:
    model, teacher = copy.deepcopy(original).train(), copy.deepcopy(original).eval()
    retain = shuffled(Scans(split.retain), method.batch, seed, "order.retain")
    forget = shuffled(Scans(split.forget), method.forget_batch, seed, "order.forget")
    optimizer = sgd(model, method.lr)
    scheduler = MultiStepLR(optimizer, milestones=list(method.schedule.epochs), gamma=method.schedule.factor)

    gamma, alpha, warmth = float(method.label_weight), float(method.teacher_weight), float(method.temperature)

    def away(logits: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.softmax(teacher(pixels) / warmth, 1)
        return F.kl_div(F.log_softmax(logits / warmth, 1), wanted, reduction="batchmean") * warmth**2

    def near(pixels: Tensor, labels: Tensor) -> Tensor:
        logits = model(pixels)
        return gamma * F.cross_entropy(logits, labels) + alpha * away(logits, pixels)

    for epoch in range(method.epochs):
        if epoch < method.max_epochs:
            for _ in train(forget, lambda x, _: -away(model(x), x), optimizer):
                pass
        for _ in train(retain, near, optimizer):
            pass
        scheduler.step()
    return model


def ssd(original: nn.Module, method: Any, split: Split, seed: int) -> nn.Module:
    model = copy.deepcopy(original).eval()

    def importance(images: Images) -> list[Tensor]:
        """Batches of one, since ``backward`` only gives sums."""
        found = [torch.zeros_like(p) for p in model.parameters()]
        loader, running = DataLoader(Scans(images), batch_size=1), 0.0
        for pixels, labels in loader:
            model.zero_grad()
            loss = F.cross_entropy(model(pixels), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            running += loss.item()
            for total, p in zip(found, model.parameters(), strict=True):
                assert p.grad is not None
                total += p.grad**2
        return [total / len(loader) for total in found]

    of_forget, of_retain = importance(split.forget), importance(split.retain)
    n_f, n_r = len(split.forget), len(split.retain)
    with torch.no_grad():
        for p, i_f, i_r in zip(model.parameters(), of_forget, of_retain, strict=True):
            i_d = (n_f * i_f + n_r * i_r) / (n_f + n_r)
            p.copy_(torch.where(i_f > method.selection * i_d, p * (method.dampening * i_d / i_f).clamp(max=1), p))
    return model


PLAIN: dict[str, Callable[[nn.Module, Any, Split, int], nn.Module]] = {
    "finetune": finetune,
    "neggrad_plus": neggrad_plus,
    "salun": salun,
    "scrub": scrub,
    "ssd": ssd,
}


# ---------------------------------------------------------------- ours


def ours(chunks: list[Stack], method: Method, split: Split, recipe: Recipe) -> tuple[list[Stack], set[tuple[int, int]]]:
    """The unlearned stacks, and what each says that it cost, forward and backward."""
    made, costs = [], set()
    for chunk in chunks:
        ctx = Context(chunk.seeds, recipe, progress=Progress())
        made.append(method(chunk, *only_declared(method, split, ctx)))
        costs.add((ctx.progress.forward, ctx.progress.backward))
    return made, costs


def task() -> tuple[Split, Recipe, nn.Module, int]:
    """Images, recipe, net and seed of the study."""
    _, study = read("digits")
    parts = study.partition(study.dataset(), study.seed)
    parts = Parts(study.corruption(parts.train, study.seed), parts.held_out, parts.test)
    split = split_for(parts, study.forget(parts.train, study.seed), study.seed, corruption=study.corruption)
    return split, study.recipe, study.net(tuple(split.train.pixels.shape[1:]), split.train.classes), study.seed


def method_of(name: str, **changed: Any) -> Method:
    """With the settings that its study gives it."""
    return read(METHODS[name], [f"methods.{name}.{setting}={value}" for setting, value in changed.items()])[1].rows()[name]


# ---------------------------------------------------------------- side by side


def counted(name: str, original: nn.Module, method: Method, split: Split, seed: int) -> tuple[int, int, int]:
    """Examples that pass the plain model and its copies forward, backward, and that its loaders serve."""
    passed = {"forward": 0, "backward": 0}

    def backward(slope: Tensor) -> None:
        passed["backward"] += len(slope)

    def forward(_: nn.Module, given: tuple[Tensor], logits: Tensor) -> None:
        passed["forward"] += len(given[0])
        if logits.requires_grad:
            logits.register_hook(backward)  # type: ignore[no-untyped-call]

    watched = copy.deepcopy(original)
    watched.register_forward_hook(forward)  # copies of it bear the hook too
    Scans.served = 0
    PLAIN[name](watched, method, split, seed)
    return passed["forward"], passed["backward"], Scans.served


def apart(name: str, chunk: Stack, split: Split, recipe: Recipe) -> float:
    """Distance of both sides' logits, relative to their size, after a short run; of the members the one in the middle."""
    method, found = method_of(name, **BRIEF.get(name, {"epochs": 2})), []
    (made,), _ = ours([chunk], method, split, recipe)
    with torch.no_grad():
        logits = made.logits(split.train.pixels[:])
    for k, seed in enumerate(chunk.seeds):
        model = PLAIN[name](chunk.member(k), method, split, seed).eval()
        with torch.no_grad():
            plain = model(split.train.pixels[:])
        found.append(float((logits[k] - plain).norm() / plain.norm()))
    return statistics.median(found)


def accuracy(logits: Tensor, images: Images) -> float:
    return float((logits.argmax(-1) == images.labels).double().mean())


def hardware() -> str:
    info, kind = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    for line in info.read_text().splitlines() if info.exists() else ():
        kind = line.partition(":")[2].strip() if line.startswith("model name") else kind
    return f"{kind}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} thread"


def load() -> str:
    return f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=32)
    parser.add_argument("--plain", type=int, default=4, help="models of the plain side")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    split, recipe, net, study_seed = task()
    seeds, size, few = model_seeds("original", asked.models, study_seed), chunk_size(net), min(asked.plain, asked.models)
    print(f"{hardware()}; at the start {load()}", flush=True)
    chunks = [recipe(Stack.init(net, seeds[at : at + size]), split.train) for at in range(0, len(seeds), size)]
    originals = [chunks[k // size].member(k % size) for k in range(few)]
    print(f"{asked.models} originals trained ({recipe.epochs} epochs of {len(split.train)} images), now unlearning", flush=True)

    lines, failed = [], []
    for name in METHODS:
        method = method_of(name)
        forward, backward, served = counted(name, originals[0], method, split, seeds[0])
        distance = apart(name, chunks[0], split, recipe)  # this also warms both sides up
        wall: dict[str, list[float]] = {"ours": [], "plain": []}
        cpu: dict[str, list[float]] = {"ours": [], "plain": []}
        for turn in range(asked.repeats):
            for side in ("ours", "plain"):
                clock, own = time.perf_counter(), time.process_time()
                if side == "ours":
                    made, costs = ours(chunks, method, split, recipe)
                else:
                    models = [PLAIN[name](original, method, split, seed) for original, seed in zip(originals, seeds, strict=False)]
                share = 1 if side == "ours" else asked.models / few
                wall[side].append((time.perf_counter() - clock) * share)
                cpu[side].append((time.process_time() - own) * share)
            print(f"{name}, turn {turn + 1}: ours {wall['ours'][-1]:.2f} s, plain {wall['plain'][-1]:.2f} s; {load()}", flush=True)
        with torch.no_grad():
            pixels = split.train.pixels[:]
            right = accuracy(torch.cat([chunk.logits(pixels) for chunk in made])[:few], split.train)
            plainly = accuracy(torch.stack([model.eval()(pixels) for model in models]), split.train)
        if costs != {(forward, backward)} or served != backward:
            failed.append(f"{name}: ours reports {sorted(costs)} examples forward and backward, counted were {(forward, backward)}, and {served} served")
        if not (distance < APART and abs(right - plainly) < LESS):
            failed.append(
                f"{name}: the two sides' logits are {distance:.1e} apart after a short run, their accuracies in the end {right:.3f} and {plainly:.3f}"
            )
        medians = {side: statistics.median(wall[side]) for side in wall}
        busy = statistics.median(cpu["plain"]) / statistics.median(cpu["ours"])
        ratio = medians["plain"] / medians["ours"]
        lines.append(
            f"{name:13}{forward:>9}{backward:>10}{medians['plain']:>10.2f} s{medians['ours']:>8.2f} s{ratio:>8.2f}x{busy:>8.2f}x"
            f"{distance:>10.0e}{plainly:>8.3f}{right:>8.3f}"
        )

    print(f"\n{asked.models} models (plain: {few}, seconds times {asked.models / few:g}), {len(split.retain)} images to retain, {len(split.forget)} to forget")
    print(f"stacks of {size}, one thread, medians of {asked.repeats}; {hardware()}; at the end {load()}")
    print("forward, backward: examples per model, counted in the plain loops and reported by ours; cpu: ratio in seconds of processor time;")
    print(f"apart: the two sides after a short run; accuracy on the {len(split.train)} images and labels trained on, in the end, of {few} models\n")
    print(f"{'method':13}{'forward':>9}{'backward':>10}{'plain':>12}{'ours':>10}{'ratio':>9}{'cpu':>9}{'apart':>10}{'plain':>8}{'ours':>8}")
    print("\n".join(lines + [f"FAILED: {words}" for words in failed]))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
