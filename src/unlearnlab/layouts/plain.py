"""Plain files: one .npz or .safetensors for the oracles, one for the originals, one for each approach; also folders of our ``logits.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlearnlab.layouts.arrays import Held, build, opened
from unlearnlab.layouts.ensembles import Ensemble, Layout, Listing
from unlearnlab.layouts.writing import folder_name, writing
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError

ENDINGS = (".npz", ".safetensors")
ORACLES, ORIGINALS = ("oracles", "oracle"), "originals"
OURS = "logits.safetensors"  # of a chunk in a store


def listing(folder: Path) -> Listing:
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file() and not path.name.startswith(".")):
        if path.stem in found:
            raise InputError(f"{folder} holds {found[path.stem].name} and {path.name}, which are both '{path.stem}'; remove one of them")
        found[path.stem] = path
    return _listed("plain", folder, found)


def listing_of_folders(folder: Path) -> Listing:
    return _listed("study", folder, {path.parent.name: path for path in sorted(folder.glob(f"*/{OURS}"))})


def _listed(layout: Layout, folder: Path, found: dict[str, Path]) -> Listing:
    judges = [name for name in ORACLES if name in found]
    if len(judges) != 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in found.values())
        found_are = "two sets of oracles" if judges else "no oracles"
        raise InputError(f"{folder} holds {found_are} (there are: {names}); expected one named oracles, of models trained without the forgotten images")
    loads = {name: partial(read_file, path) for name, path in found.items()}
    oracles, originals = loads.pop(judges[0]), loads.pop(ORIGINALS, None)
    return Listing(layout, oracles, loads, originals)


def read_file(file: Path) -> Held:
    """One ensemble of an .npz or .safetensors file."""
    if file.suffix == ".npz":
        return build(file, opened(file, lambda: _npz(file)))
    arrays, models = opened(file, lambda: _safetensors(file))
    return build(file, arrays, models=models)


def _npz(file: Path) -> dict[str, Any]:
    with file.open("rb") as raw, np.load(raw, allow_pickle=False) as held:  # of a damaged file np.load leaves its own handle open
        return {name: held[name] for name in held.files}


def _safetensors(file: Path) -> tuple[dict[str, torch.Tensor], tuple[int, ...] | None]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as held:
        seeds = (held.metadata() or {}).get("models")
        models = None if seeds is None else tuple(int(seed) for seed in json.loads(seeds))
        return {name: held.get_tensor(name) for name in held.keys()}, models  # noqa: SIM118 - not a dict


def write_plain(folder: Path, oracles: Ensemble, originals: Ensemble | None, approaches: Sequence[Ensemble]) -> None:
    """Write all examples of these ensembles with parts, ids and membership, a .safetensors file each. Nothing is left of a folder that could not be written."""
    names = [folder_name(one.name) for one in approaches]
    if kept := [name for name in names if name in (*ORACLES, ORIGINALS)]:
        raise InputError(f"an approach may not be called '{kept[0]}' in this layout, which keeps that name; give it another")
    with writing(folder) as made:
        _write(made / "oracles.safetensors", oracles.outputs)
        if originals is not None:
            _write(made / "originals.safetensors", originals.outputs)
        for name, one in zip(names, approaches, strict=True):
            _write(made / f"{name}.safetensors", one.outputs)


def _write(file: Path, outputs: Outputs) -> None:
    from safetensors.torch import save_file

    tensors = {name: getattr(outputs, name).detach().cpu().contiguous() for name in ("logits", "member", "labels", "ids", "part")}
    save_file(tensors, file, metadata={"models": json.dumps(outputs.models)})
