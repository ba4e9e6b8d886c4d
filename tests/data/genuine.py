"""What the tests of sources share: from files as released to trained weights, and proof that nobody touched the files."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from unlearnlab.data.images import Images
from unlearnlab.data.mapped import Mapped
from unlearnlab.data.partition import Released
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.stack import Stack
from unlearnlab.store import Store
from unlearnlab.train import Recipe


def listed(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below a folder, with its time of change and its content."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, sha256(path.read_bytes()).hexdigest()) for path in folder.rglob("*") if path.is_file()}


def agrees(dataset: Any, images: Images) -> None:
    """What a data set says of itself before its files are there holds of the files, as far as these small ones tell."""
    facts = getattr(dataset, "facts", None)
    if facts is None:  # the user's own
        return
    assert tuple(images.pixels.shape[1:]) == facts.shape
    assert images.classes == len(images.columns["wnid"].words if "wnid" in images.columns else range(facts.classes))
    assert bool(facts.test) == bool(images.columns["split"].values.any())


def trains(dataset: Any, root: Path, store: Store) -> Images:
    """The mapped images of a data set, after one epoch on its released training images changed two models; nothing in root changed."""
    before = listed(root)
    images = dataset(root, store)
    assert isinstance(images.pixels, Mapped)
    agrees(dataset, images)
    parts = Released(held_out=0.25, by_class=False)(images, seed=0)
    start = Stack.init(SmallCnn(widths=(4, 4, 4))(tuple(images.pixels.shape[1:]), images.classes, dataset.mean, dataset.std), (0, 1))
    trained = Recipe(epochs=1, batch=4)(start, parts.train)
    assert not trained.diverged
    for name, weights in trained.params.items():
        assert bool(torch.isfinite(weights).all()), name
        assert all(not torch.equal(weights[k], start.params[name][k]) for k in range(2)), name
    assert listed(root) == before
    return images
