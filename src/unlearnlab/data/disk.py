"""How ``Images`` lie on disk: labels, ids and columns as safetensors, texts as JSON, pixels beside them or in a mapped file.

A converted data set is one artefact of the store (kind ``images``). Its pixels are one ``.npy``, which parts of a study refer
to by rows, so that no study copies them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

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
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(_words(images), encoding="utf-8")


def load_images(path: Path, release: Callable[[], Images]) -> Images:
    """Images that ``save_images`` wrote. ``release``: gives the mapped data set, and is asked only where pixels are rows of it."""
    from safetensors.torch import load_file

    held, words = load_file(path.with_suffix(".safetensors")), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    columns = {name: Column(held[f"column:{name}"], tuple(known)) for name, known in words["columns"].items()}
    if "pixels" in held:
        pixels: Tensor | Mapped = held["pixels"]
    else:
        mapped = release().pixels
        assert isinstance(mapped, Mapped), "rows of a data set that is not mapped"
        pixels = Mapped(mapped.whole, held["at"], mapped.name, held["extra"])
    return Images(pixels, held["labels"], held["ids"], words["classes"], held["true_labels"], held["triggered"], columns)


def open_mapped(store: Store, folder: Path) -> Images:
    """A converted data set, its pixels mapped from the disk."""
    name = store.manifest("images", folder.name)["content"]
    whole = torch.from_numpy(np.load(folder / PIXELS, mmap_mode="c"))
    everything = Images(Mapped(whole, torch.arange(len(whole)), name), *(torch.arange(len(whole)),) * 2, classes=len(whole))
    return load_images(folder / "all", lambda: everything)


def find_mapped(store: Store, name: str) -> Images:
    """The converted data set with this content; raises ``FileNotFoundError`` where the store has none."""
    for row in store.list("images"):
        folder = store.get("images", row.key)
        if folder is not None and store.manifest("images", row.key)["content"] == name:
            return open_mapped(store, folder)
    raise FileNotFoundError(f"the converted images {name} are not in the store {store.root}, or were damaged a moment ago; run the study again")


def content(images: Images) -> str:
    """Hash of all that a release says, what models never see included."""
    if isinstance(images.pixels, Mapped):
        return images.pixels.name
    if not images.columns:
        return images.fingerprint
    found = hashlib.sha256(images.fingerprint.encode())
    hash_beside_pixels(found, images)
    return found.hexdigest()[:32]


def hash_beside_pixels(found: hashlib._Hash, images: Images) -> None:
    """Add labels, ids, columns and words to a hash."""
    found.update(_words(images).encode())
    for tensor in (*(getattr(images, name) for name in _OWN), *(column.values for column in images.columns.values())):
        found.update(tensor.cpu().contiguous().numpy().tobytes())


def _words(images: Images) -> str:
    return json.dumps({"classes": images.classes, "columns": {name: column.words for name, column in images.columns.items()}}, ensure_ascii=False)
