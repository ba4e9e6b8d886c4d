"""How methods that own their training keep it: tensors and words in one file, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnlab.spec import InputError
from unlearnlab.stack import Tensors


def write(file: Path, tensors: Mapping[str, Tensor], words: Mapping[str, Any]) -> None:
    """Replace the file by these tensors and words (plain data); a crash leaves the old file or the new one."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    held = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(held, temporary, metadata={"words": json.dumps(words, allow_nan=False)})
    with temporary.open("rb+") as written:
        os.fsync(written.fileno())
    temporary.replace(file)


def read(file: Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and words; raises ``InputError`` for a file that is not there or is damaged."""
    from safetensors import safe_open

    words = read_words(file)
    if words is None:
        raise InputError(f"{file} is not there or is damaged; give the folder that the state was kept in")
    with safe_open(file, framework="pt") as held:
        return {name: held.get_tensor(name) for name in held.keys()}, words  # noqa: SIM118 - not a dict


def read_words(file: Path) -> dict[str, Any] | None:
    """The words alone; None for a file that is not there or is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as held:
            words: dict[str, Any] = json.loads(held.metadata()["words"])
            return words
    except (FileNotFoundError, SafetensorError):
        return None


def grouped(**groups: Mapping[str, Tensor]) -> Tensors:
    """Tensors of several groups under "group:name"."""
    return {f"{group}:{name}": tensor for group, held in groups.items() for name, tensor in held.items()}


def group(tensors: Mapping[str, Tensor], name: str, like: Mapping[str, Tensor] | None = None) -> Tensors:
    """Undo ``grouped`` for one group. ``like``: what the tensors must be named and shaped as, and in which order (a file keeps none)."""
    found = {whole.partition(":")[2]: tensor for whole, tensor in tensors.items() if whole.partition(":")[0] == name}
    if like is None:
        return found
    if {key: tensor.shape for key, tensor in found.items()} != {key: tensor.shape for key, tensor in like.items()}:
        raise InputError(f"the stored {name} are not those of this net: names or shapes differ; give the net that was trained")
    return {key: found[key].to(tensor.device) for key, tensor in like.items()}
