"""What methods do on a forget set that they are tuned on: tried, observed and scored, without a look at the test images.

``make_trial`` is a job, as in ``artefacts``. Of a trial only what is needed to score it is kept, not the models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float64
from torch import Tensor

from unlearnlab import artefacts as make
from unlearnlab.contract import Answers, Forbidden, only_declared
from unlearnlab.data.images import PARTS, Images
from unlearnlab.groundwork import Setup, Table, load_split, stored
from unlearnlab.metrics.trace import Trace, hold_out, share_left
from unlearnlab.outputs import Outputs, observe
from unlearnlab.progress import OverBudget, Progress
from unlearnlab.spec import InputError, digest, identity

LOOKED_AT = ("forget", "retain", "validation")


@dataclass(frozen=True, eq=False)
class Seen:
    """What some models say of a forget set, and how many of their answers are right on each part of ``LOOKED_AT``.

    ``fault``: why there is nothing to score, if so.
    """

    margins: Float64[Tensor, "models forget"]
    right: Float64[Tensor, "models 3"]
    seeds: tuple[int, ...]
    fault: str = ""

    def outputs(self) -> Outputs:
        """As outputs on two classes, whose margin is the one that was kept."""
        none = torch.zeros(self.margins.shape[1], dtype=torch.int64)
        logits = torch.stack([self.margins, torch.zeros_like(self.margins)], -1)
        return Outputs(logits, torch.ones_like(self.margins, dtype=torch.bool), none, torch.arange(len(none)), none, self.seeds)


def trial_key(setup: Setup, method: Table, source: make.Source, split: str, limit: int | None) -> str:
    return digest({"trial": make.unlearned_key(setup, method, source, split), "limit": limit})


def make_trial(setup: Setup, data: str, forget: str, method: Table, source: make.Source, limit: int | None) -> str:
    """Let a method forget, starting from a chunk of models, and keep what can be scored; ``limit``: the example passes that it may take a model."""
    split, chosen = load_split(setup, data, forget), setup.spec("method", method)
    made = trial_key(setup, method, source, split.fingerprint, limit)

    def write(folder: Path) -> Table:
        from safetensors.torch import save_file

        shown = replace(split, test=cast(Images, Forbidden("tune", "test")))
        progress = Progress(setup.store.partial("trials", made), clock=make.clock(setup.device), limit=limit)
        original, ctx = make.at_hand(setup, chosen, source, shown, progress)
        parts = [getattr(shown, name) for name in LOOKED_AT]
        images = Images.join(parts)
        part = torch.repeat_interleave(torch.tensor([PARTS.index(name) for name in LOOKED_AT]), torch.tensor([len(one) for one in parts]))
        fault, seen = "", None
        try:
            if isinstance(chosen, Answers):
                logits = chosen.answer(original, *only_declared(chosen, shown, ctx), images).cpu()
                seen = Outputs(logits, torch.zeros(logits.shape[:2], dtype=torch.bool), images.labels.cpu(), images.ids.cpu(), part, source.seeds)
            else:
                stack = chosen(original, *only_declared(chosen, shown, ctx))
                fault = f"{len(stack.diverged)} of {len(stack)} models diverged" if stack.diverged else ""
                seen = observe(stack, images, member=torch.zeros(len(stack), len(images), dtype=torch.bool), part=part)
        except (InputError, OverBudget) as error:  # settings that do not go together, or cost too much
            fault = str(error)
        make.synchronise(setup.device)
        if seen is not None and not fault and not bool(torch.isfinite(seen.logits).all()):
            fault = "answers are not finite"
        if seen is None or fault:
            held = {"margins": torch.zeros(0, 0), "right": torch.zeros(0, len(LOOKED_AT))}
        else:
            right = [(one.predicted == one.labels).double().sum(1) for one in map(seen.of, LOOKED_AT)]
            held = {"margins": seen.of("forget").margin, "right": torch.stack(right, 1)}
        save_file({name: tensor.double().contiguous() for name, tensor in held.items()}, folder / "seen.safetensors")
        return {**make.cost(ctx.progress, len(source.seeds), setup.device), "fault": fault}

    inputs = {"parent": f"stacks/{source.parent}", "split": split.fingerprint, "recipe": identity(setup.spec("recipe")), "seeds": list(source.seeds)}
    setup.store.make("trials", made, write, manifest={"spec": identity(chosen), **inputs})
    return made


def load_trial(setup: Setup, keys: Sequence[str]) -> Seen:
    """What the chunks of a trial gave, in order."""
    from safetensors.torch import load_file

    facts = [setup.store.manifest("trials", made) for made in keys]
    seeds = tuple(seed for held in facts for seed in held["seeds"])
    fault = next((held["fault"] for held in facts if held["fault"]), "")
    if fault:
        return Seen(torch.zeros(0, 0), torch.zeros(0, len(LOOKED_AT)), seeds, fault)
    held = [load_file(stored(setup, "trials", made) / "seen.safetensors") for made in keys]
    return Seen(torch.cat([one["margins"] for one in held]), torch.cat([one["right"] for one in held]), seeds)


def score(originals: Seen, oracles: Seen, unlearned: Seen, sizes: Sequence[int]) -> Mapping[str, Any]:
    """How far a method is from oracles of its own forget set; ``sizes``: images of each part of ``LOOKED_AT``.

    ``objective`` = |trace| + (|ΔRA| + |ΔFA| + |ΔVA|)/3, differences in accuracy to the oracles on retain, forget and validation images. Where
    originals and oracles cannot be told apart (one-sided, 95 %) there is no trace to speak of: it is None, and not counted.
    """
    p, o, u = (seen.outputs() for seen in (originals, oracles, unlearned))
    own = torch.arange(len(p))
    left = share_left(p.margin, o.margin, u.margin, own, *hold_out(p, o, u, own, min(Trace().folds, len(p))))
    trace = left.value if left.gap_lower > 0 else None
    gaps = ((unlearned.right.mean(0) - oracles.right.mean(0)) / torch.tensor(sizes, dtype=torch.float64)).tolist()
    return {"objective": abs(trace or 0.0) + sum(map(abs, gaps)) / len(gaps), "trace": trace, **dict(zip(LOOKED_AT, gaps, strict=True))}
