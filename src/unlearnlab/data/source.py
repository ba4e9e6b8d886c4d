"""From the files of a public release to ``Images``: converted once into the store, then mapped from there.

A source names its files and reads them; what is common to all stands here. No source writes to the user's folders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap

from unlearnlab.data.disk import PIXELS, open_mapped, save_images
from unlearnlab.data.images import Column, Images
from unlearnlab.data.mapped import Mapped
from unlearnlab.spec import InputError, identity, info, key
from unlearnlab.store import Store

Block = np.ndarray[Any, np.dtype[np.uint8]]  # [m c h w]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def usual_mean(channels: int) -> tuple[float, ...]:
    """Where a data set has no mean of its own: ImageNet's for RGB, one half for grey."""
    return IMAGENET_MEAN if channels == 3 else (0.5,)


def usual_std(channels: int) -> tuple[float, ...]:
    return IMAGENET_STD if channels == 3 else (0.5,)


class Source(Protocol):
    """A data set. ``mean`` and ``std`` (per channel, in [0, 1] units) are applied inside the net."""

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    def files(self, root: Path) -> Sequence[Path]:
        """Every file that will be read, in a fixed order; raises ``InputError`` saying what to place where if one is missing."""
        ...

    def read(self, files: Sequence[Path]) -> Release:
        """What the files hold; raises ``InputError`` naming the file that is truncated, damaged or mislabelled."""
        ...

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images: ...


@dataclass(frozen=True, eq=False)
class Release:
    """A data set as it was released: the training images in their order, then the test images; ids count on through both.

    ``blocks`` yields the pixels in that order, some images at a time, so that no more than a block need fit in memory.
    ``test``: which images the release holds out for testing (all False: it holds out none). ``columns``: whatever else is
    known of every image, as numbers or as text.
    """

    shape: tuple[int, int, int]
    labels: Sequence[int] | np.ndarray[Any, Any]
    test: Sequence[bool] | np.ndarray[Any, Any]
    classes: int
    blocks: Callable[[], Iterable[Block]]
    columns: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]] = field(default_factory=dict)


def data_root(root: str | Path | None = None) -> Path:
    """Where public data sets lie: the folder given, else $UNLEARNLAB_DATA, else ``data`` here."""
    return Path(root or os.environ.get("UNLEARNLAB_DATA") or "data").expanduser()


def need(dataset: str, root: Path, wanted: Iterable[str], how: str) -> list[Path]:
    """The wanted files below the root; raises ``InputError`` naming the first that is not there, and how to get it."""
    paths = [root / name for name in wanted]
    for path in paths:
        if not path.is_file():
            raise InputError(f"dataset '{dataset}': there is no file {path}; {how} (--data-root or $UNLEARNLAB_DATA names the folder, now {root})")
    return paths


def load(source: Source, root: Path | None, store: Store | None) -> Images:
    """The images of a source, with pixels mapped from the store; without a store, whole in memory."""
    root = data_root(root)
    files = list(source.files(root))
    if store is None:
        return _in_memory(_read(source, files))
    stamps = _stamps(files, root)

    def write(folder: Path) -> Mapping[str, Any]:
        return {"pixels": _convert(_read(source, files), folder)}

    return open_mapped(store.make("images", key(source, files=stamps), write, manifest={"spec": identity(source), "files": stamps}))


def _read(source: Source, files: Sequence[Path]) -> Release:
    release = source.read(files)
    if not len(release.labels):
        raise damaged(source, files[0], "holds no image, nor does any other file of this data set; expected at least one")
    return release


def _stamps(files: Iterable[Path], root: Path) -> list[list[Any]]:
    """What tells whether files have changed without reading them: path, size, time of change."""
    found = []
    for path in files:
        stat = path.stat()
        found.append([str(path.relative_to(root) if path.is_relative_to(root) else path), stat.st_size, stat.st_mtime_ns])
    return found


def _convert(release: Release, folder: Path) -> str:
    """Write a release in our format; returns the hash of its pixels."""
    images, found, at = _without_pixels(release), sha256(str(release.shape).encode()), 0
    pixels = open_memmap(folder / PIXELS, mode="w+", dtype=np.uint8, shape=(len(images), *release.shape))
    for block in _checked(release):
        pixels[at : at + len(block)] = block
        found.update(np.ascontiguousarray(block).tobytes())
        at += len(block)
    pixels.flush()
    name = found.hexdigest()[:32]
    whole = torch.from_numpy(pixels)
    save_images(folder / "all", replace(images, pixels=Mapped(whole, torch.arange(len(whole)), name)))
    return name


def _in_memory(release: Release) -> Images:
    return replace(_without_pixels(release), pixels=torch.from_numpy(np.concatenate(list(_checked(release)))))


def _checked(release: Release) -> Iterator[Block]:
    """The blocks, as many images as there are labels."""
    seen = 0
    for block in release.blocks():
        assert block.dtype == np.uint8, f"a source gave pixels of {block.dtype}"
        assert block.shape[1:] == release.shape, f"a source gave images of shape {block.shape[1:]}, not {release.shape}"
        seen += len(block)
        yield block
    assert seen == len(release.labels), f"a source gave {seen} images for {len(release.labels)} labels"


def _without_pixels(release: Release) -> Images:
    n = len(release.labels)
    if "split" in release.columns:
        raise InputError("a column of the data set is called 'split', which is what tells training from test images here; rename yours")
    columns = {name: _column(values) for name, values in release.columns.items()}
    columns["split"] = Column(torch.as_tensor(np.asarray(release.test, dtype=np.int64)), ("train", "test"))
    labels = torch.as_tensor(np.asarray(release.labels, dtype=np.int64))
    true = labels.clone()  # safetensors saves no two tensors that share memory
    return Images(torch.zeros((n, 0, 0, 0), dtype=torch.uint8), labels, torch.arange(n), release.classes, true, columns=columns)


def _column(values: Sequence[Any] | np.ndarray[Any, Any]) -> Column:
    """Whole numbers and others as they are; text as positions among its words, in alphabetical order."""
    held = np.asarray(values)
    if held.dtype.kind in "OUS":
        words, at = np.unique(held.astype(str), return_inverse=True)
        return Column(torch.as_tensor(at.astype(np.int64)), tuple(words.tolist()))
    return Column(torch.as_tensor(held.astype(np.float64 if held.dtype.kind == "f" else np.int64)))


def damaged(dataset: Any, path: Path, what: str) -> InputError:
    """The error about a file that is not what it should be: `… is truncated: 12 of 3073 bytes`."""
    return InputError(f"dataset '{info(dataset).name}': {path} {what}; replace it with an intact copy")
