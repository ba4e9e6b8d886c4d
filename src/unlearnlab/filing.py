"""Stacks and outputs in the store: how they are written, read and named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from unlearnlab.contract import Scores
from unlearnlab.data.images import Images
from unlearnlab.groundwork import Setup, stored
from unlearnlab.outputs import Outputs
from unlearnlab.scores.npz import read_npz
from unlearnlab.spec import digest
from unlearnlab.stack import Divergence, Stack


def architecture(setup: Setup, images: Images) -> torch.nn.Module:
    """The study's net for such images; raises ``InputError`` where it does not fit them."""
    channels, height, width = images.pixels.shape[1:]
    shape = (channels, height, width) if setup.view is None else (channels, setup.view, setup.view)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw weights when they are made; nobody reads these
        made = setup.spec("net")(shape, images.classes, **setup.normalised)
    return cast(torch.nn.Module, made)


def save_stack(path: Path, stack: Stack) -> None:
    groups = {"params": stack.params, "buffers": stack.buffers, "live": stack.live}
    tensors = {f"{group}:{name}": tensor for group, held in groups.items() for name, tensor in held.items()}
    _save(path, tensors, {"seeds": json.dumps(stack.seeds)})


def load_stack(setup: Setup, made: str, images: Images, which: str = "weights") -> Stack:
    """A stored chunk of models (``which`` = init: their own initial weights)."""
    return load_tensors(setup, stored(setup, "stacks", made), images, which)


def load_tensors(setup: Setup, folder: Path, images: Images, which: str = "weights") -> Stack:
    from safetensors import safe_open

    net = architecture(setup, images)
    with safe_open(folder / f"{which}.safetensors", framework="pt") as held:
        seeds = tuple(json.loads(held.metadata()["seeds"]))
        params = {name: held.get_tensor(f"params:{name}") for name, _ in net.named_parameters()}
        buffers = {name: held.get_tensor(f"buffers:{name}") for name, _ in net.named_buffers()}
        live = {name.removeprefix("live:"): held.get_tensor(name) for name in held.keys() if name.startswith("live:")}  # noqa: SIM118 - not a dict
    return Stack(net.requires_grad_(False), params, buffers, seeds, live=live).to(setup.device)


def divergences(setup: Setup, made: str, kind: str = "stacks") -> list[Divergence]:
    return [Divergence(seed, step, float(loss)) for seed, step, loss in setup.store.manifest(kind, made)["diverged"]]


def outputs_key(stack: str, split: str) -> str:
    return digest({"stack": stack, "split": split})


def save_outputs(folder: Path, seen: Outputs) -> None:
    fields = {field: getattr(seen, field).contiguous() for field in ("logits", "member", "labels", "ids", "part")}
    _save(folder / "logits.safetensors", fields, {"models": json.dumps(seen.models)})


def load_outputs(setup: Setup, keys: Iterable[str]) -> Outputs:
    """Outputs of several chunks, in order."""
    return _join_outputs(tuple(stored(setup, "outputs", made) for made in keys))


@lru_cache(maxsize=12)  # originals, oracles and what else metrics read are asked for again with every method
def _join_outputs(folders: tuple[Path, ...]) -> Outputs:
    return Outputs.join([read_outputs(folder) for folder in folders])


def read_outputs(folder: Path) -> Outputs:
    """What ``save_outputs`` wrote in a folder."""
    from safetensors import safe_open

    with safe_open(folder / "logits.safetensors", framework="pt") as held:
        models = tuple(json.loads(held.metadata()["models"]))
        return Outputs(**{name: held.get_tensor(name) for name in ("logits", "member", "labels", "ids", "part")}, models=models)


def save_curves(folder: Path, curves: Tensor) -> None:
    _save(folder / "curves.safetensors", {"accuracy": curves})


def load_curves(setup: Setup, keys: Iterable[str]) -> Tensor:
    """Relearning curves of several chunks [models, draws, steps], in order."""
    from safetensors.torch import load_file

    return torch.cat([load_file(stored(setup, "relearning", made) / "curves.safetensors")["accuracy"] for made in keys])


def load_scores(setup: Setup, made: str) -> Scores:
    """What a score says of every training image."""
    return _read_scores(stored(setup, "scores", made))


@lru_cache(maxsize=8)
def _read_scores(folder: Path) -> Scores:
    return read_npz(folder / "scores.npz")


def _save(path: Path, tensors: Mapping[str, Tensor], words: Mapping[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=dict(words or {}))
