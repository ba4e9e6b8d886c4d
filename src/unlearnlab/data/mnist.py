"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017) from their idx files, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from unlearnlab.data.images import Facts, Images
from unlearnlab.data.source import Release, damaged, load, need
from unlearnlab.spec import info, spec
from unlearnlab.store import Store

_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FACTS = Facts(train=60_000, test=10_000, classes=10, shape=(1, 28, 28))
_GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@spec("dataset", "mnist")
class Mnist:
    """MNIST: 60 000 training images of handwritten digits, 28×28 grey, 10 000 for testing; ROOT/mnist/*-ubyte or *-ubyte.gz.

    torchvision's ROOT/MNIST/raw/ will do. Ids count through the training images, then the others.
    """

    mean: ClassVar[tuple[float, ...]] = (0.1307,)
    std: ClassVar[tuple[float, ...]] = (0.3081,)
    facts: ClassVar[Facts] = _FACTS

    def files(self, root: Path) -> Sequence[Path]:
        return _files(self, root, ("mnist", "MNIST/raw"))

    def read(self, files: Sequence[Path]) -> Release:
        return _read(self, files)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)


@spec("dataset", "fashion_mnist")
class FashionMnist:
    """Fashion-MNIST: 60 000 training images of garments in 10 classes, 28×28 grey, 10 000 for testing; ROOT/fashion-mnist/*-ubyte or *-ubyte.gz.

    torchvision's ROOT/FashionMNIST/raw/ will do. Ids count through the training images, then the others. Column ``class``.
    """

    mean: ClassVar[tuple[float, ...]] = (0.2860,)
    std: ClassVar[tuple[float, ...]] = (0.3530,)
    facts: ClassVar[Facts] = _FACTS

    def files(self, root: Path) -> Sequence[Path]:
        return _files(self, root, ("fashion-mnist", "FashionMNIST/raw"))

    def read(self, files: Sequence[Path]) -> Release:
        return _read(self, files, _GARMENTS)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)


def _files(dataset: Any, root: Path, folders: Sequence[str]) -> list[Path]:
    """All of one folder: images of one and labels of another would be read without complaint."""
    ends = ("", ".gz")
    folder = next((folder for folder in folders if any((root / folder / f"{name}{end}").is_file() for name in _NAMES for end in ends)), folders[0])
    wanted = [f"{folder}/{name}{'.gz' if (root / folder / f'{name}.gz').is_file() and not (root / folder / name).is_file() else ''}" for name in _NAMES]
    kind = info(dataset).name
    how = f"run 'unlearnlab fetch {kind}', or put {', '.join(_NAMES)} (or each with .gz) in {root / folder}"
    return need(kind, root, wanted, how)


def _read(dataset: Any, files: Sequence[Path], names: Sequence[str] = ()) -> Release:
    images, held = [], []
    for pixels, labels in zip(files[::2], files[1::2], strict=True):
        images.append(_idx(dataset, pixels, 3))
        if images[-1].shape[1:] != _FACTS.shape[1:]:
            raise damaged(dataset, pixels, f"has images of {images[-1].shape[1]}×{images[-1].shape[2]} pixels, expected 28×28")
        held.append(_idx(dataset, labels, 1))
        if len(held[-1]) != len(images[-1]):
            raise damaged(dataset, labels, f"has {len(held[-1])} labels, expected {len(images[-1])}, as many as images in {pixels.name}")
        bad = np.flatnonzero(held[-1] > 9)
        if len(bad):
            raise damaged(dataset, labels, f"gives image {bad[0]} the label {held[-1][bad[0]]}, expected 0 to 9")
    found = np.concatenate(held)
    test = np.arange(len(found)) >= len(held[0])
    columns = {"class": np.array(names)[found]} if names else {}
    return Release(_FACTS.shape, found, test, _FACTS.classes, lambda: [block[:, None] for block in images], columns)


def _idx(dataset: Any, path: Path, dimensions: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An idx file of unsigned bytes: 0, 0, 8, the number of dimensions; each size in four bytes, the highest first; the values."""
    held = path.read_bytes()
    if held[:2] == b"\x1f\x8b":  # whatever the name says: browsers unpack now and then
        try:
            held = gzip.decompress(held)
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(dataset, path, f"is truncated or damaged: its {len(held)} bytes are no whole gzip file ({error})") from error
    start = 4 + 4 * dimensions
    if held[:4] != bytes((0, 0, 8, dimensions)):
        raise damaged(dataset, path, f"starts with the bytes {held[:4].hex() or '(none)'}, expected 0000080{dimensions} (idx, bytes, {dimensions} dimensions)")
    if len(held) < start:
        raise damaged(dataset, path, f"is truncated: {len(held)} bytes, expected a header of {start}")
    shape = [int(size) for size in np.frombuffer(held, ">u4", dimensions, 4)]
    size = start + int(np.prod(shape, dtype=object))  # of Python's integers, which do not overflow
    if len(held) != size:
        what = "is truncated" if len(held) < size else "goes on after its end"
        raise damaged(dataset, path, f"{what}: {len(held)} bytes, expected {size} for {'×'.join(map(str, shape))} values")
    return np.frombuffer(held, np.uint8, offset=start).reshape(shape)
