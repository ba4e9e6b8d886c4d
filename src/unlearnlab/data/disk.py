"""How ``Images`` lie on disk: labels, ids and columns as safetensors, texts as JSON, pixels beside them or in a mapped file.

A converted data set is one artefact of the store (kind ``images``). Its pixels are one ``.npy``, which parts of a study refer
to by rows, so that no study copies them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnlab.data.images import Column, Images
from unlearnlab.data.mapped import Mapped
from unlearnlab.store import Store

PIXELS = "pixels.npy"
_OWN = ("labels", "ids", "true_labels", "triggered")


def save_images(path: Path, images: Images) -> None:
    """Write images to ``path``.safetensors and .json; mapped pixels as rows of their data set, with what was painted anew."""
    from safetensors.torch import save_file

    pixels = images.pixels
    tensors = {"at": pixels.at, "extra": pixels.extra} if isinstance(pixels, Mapped) else {"pixels": pixels}
    tensors |= {name: getattr(images, name) for name in _OWN} | {f"column:{name}": column.values for name, column in images.columns.items()}
    save_file({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(_words(images), encoding="utf-8")


def load_images(path: Path, store: Store) -> Images:
    """Images that ``save_images`` wrote; raises ``FileNotFoundError`` where the data set that their pixels are rows of is gone."""
    held, words = _read(path)
    if "pixels" in held:
        return _images(held["pixels"], held, words)
    whole = _pixels(store.root / find_mapped(store, words["mapped"]))
    return _images(Mapped(whole, held["at"], words["mapped"], held["extra"]), held, words)


def open_mapped(folder: Path) -> Images:
    """A converted data set, its pixels mapped from the disk."""
    held, words = _read(folder / "all")
    return _images(Mapped(_pixels(folder), held["at"], words["mapped"]), held, words)


def find_mapped(store: Store, name: str) -> str:
    """The converted data set with these pixels, as ``images/key``; raises ``FileNotFoundError`` where the store has none."""
    for row in store.list("images"):
        # an unreadable manifest has no date; and only the one that is wanted is worth a checksum of gigabytes
        if row.created and store.manifest("images", row.key).get("pixels") == name and store.get("images", row.key) is not None:
            return f"images/{row.key}"
    raise FileNotFoundError(f"the converted images {name} are not in the store {store.root}, or were damaged a moment ago; run the study again")


def content(images: Images) -> str:
    """Hash of all that a release says, what models never see included."""
    if not images.columns:
        return images.fingerprint
    found = hashlib.sha256(images.fingerprint.encode() + _words(images).encode())
    for column in images.columns.values():
        found.update(column.values.contiguous().numpy().tobytes())
    return found.hexdigest()[:32]


def _pixels(folder: Path) -> Tensor:
    return torch.from_numpy(np.load(folder / PIXELS, mmap_mode="c"))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors.torch import load_file

    return load_file(path.with_suffix(".safetensors")), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def _images(pixels: Tensor | Mapped, held: Mapping[str, Tensor], words: Mapping[str, Any]) -> Images:
    columns = {name: Column(held[f"column:{name}"], tuple(known)) for name, known in words["columns"].items()}
    return Images(pixels, held["labels"], held["ids"], words["classes"], held["true_labels"], held["triggered"], columns)


def _words(images: Images) -> str:
    columns = {name: column.words for name, column in images.columns.items()}
    mapped = {"mapped": images.pixels.name} if isinstance(images.pixels, Mapped) else {}
    return json.dumps({"classes": images.classes, **mapped, "columns": columns}, ensure_ascii=False)
