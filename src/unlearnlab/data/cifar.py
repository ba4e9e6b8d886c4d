"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their Python release, and CIFAR-20: CIFAR-100 with its coarse labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from unlearnlab.data.images import Facts, Images
from unlearnlab.data.source import Block, Release, damaged, load, need
from unlearnlab.data.unpickle import read_pickle, text
from unlearnlab.spec import info, spec
from unlearnlab.store import Store

_TEN, _HUNDRED, _TWENTY = (Facts(train=50_000, test=10_000, classes=classes, shape=(3, 32, 32)) for classes in (10, 100, 20))
Named = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # number and name of each


@spec("dataset", "cifar10")
class Cifar10:
    """CIFAR-10: 50 000 training images of 32×32 in 10 classes, 10 000 for testing; below ROOT/cifar-10-batches-py/.

    Ids count through data_batch_1 to data_batch_5, then test_batch. Column ``class``: the names in batches.meta.
    """

    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)
    facts: ClassVar[Facts] = _TEN

    def files(self, root: Path) -> Sequence[Path]:
        return _files(self, root, "cifar-10", "cifar-10-batches-py", [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"])

    def read(self, files: Sequence[Path]) -> Release:
        pixels, labels, test = _batches(self, files[:-1], {"labels": self.facts.classes})
        names = _names(self, files[-1], "label_names", self.facts.classes)
        return Release(self.facts.shape, labels["labels"], test, self.facts.classes, lambda: pixels, {"class": names[labels["labels"]]})

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)


@spec("dataset", "cifar100")
class Cifar100:
    """CIFAR-100: 50 000 training images of 32×32 in 100 classes, 10 000 for testing; below ROOT/cifar-100-python/.

    Ids count through train, then test. Columns: ``class``, and ``coarse`` and ``coarse_label``: to which of 20 groups of five
    classes an image belongs.
    """

    mean: ClassVar[tuple[float, ...]] = (0.5071, 0.4866, 0.4409)
    std: ClassVar[tuple[float, ...]] = (0.2673, 0.2564, 0.2762)
    facts: ClassVar[Facts] = _HUNDRED

    def files(self, root: Path) -> Sequence[Path]:
        return _hundred_files(self, root)

    def read(self, files: Sequence[Path]) -> Release:
        pixels, test, (fine, names), (coarse, groups) = _hundred(self, files)
        return Release(self.facts.shape, fine, test, self.facts.classes, lambda: pixels, {"class": names, "coarse": groups, "coarse_label": coarse})

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)


@spec("dataset", "cifar20")
class Cifar20:
    """CIFAR-20: the images of CIFAR-100 in 20 classes of five sub-classes each, one of which can be forgotten; below ROOT/cifar-100-python/.

    Columns: ``class``, and ``fine`` and ``fine_label``: the sub-class (rocket is 69, mushroom 51, baby 2, lamp 40, sea 71).
    """

    mean: ClassVar[tuple[float, ...]] = Cifar100.mean
    std: ClassVar[tuple[float, ...]] = Cifar100.std
    facts: ClassVar[Facts] = _TWENTY

    def files(self, root: Path) -> Sequence[Path]:
        return _hundred_files(self, root)

    def read(self, files: Sequence[Path]) -> Release:
        pixels, test, (fine, names), (coarse, groups) = _hundred(self, files)
        return Release(self.facts.shape, coarse, test, self.facts.classes, lambda: pixels, {"class": groups, "fine": names, "fine_label": fine})

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)


def _files(dataset: Any, root: Path, archive: str, folder: str, names: Sequence[str]) -> list[Path]:
    name = info(dataset).name
    how = f"run 'unlearnlab fetch {name}', or unpack https://www.cs.toronto.edu/~kriz/{archive}-python.tar.gz in {root}"
    return need(name, root, [f"{folder}/{file}" for file in names], how)


def _hundred_files(dataset: Any, root: Path) -> list[Path]:
    return _files(dataset, root, "cifar-100", "cifar-100-python", ["train", "test", "meta"])


def _hundred(dataset: Any, files: Sequence[Path]) -> tuple[list[Block], list[bool], Named, Named]:
    """Pixels, which images are for testing, and for every image its class of 100 and its group of 20, by number and by name."""
    pixels, labels, test = _batches(dataset, files[:-1], {"fine_labels": _HUNDRED.classes, "coarse_labels": _TWENTY.classes})
    fine, coarse = labels["fine_labels"], labels["coarse_labels"]
    names, groups = (_names(dataset, files[-1], key, held.classes) for key, held in (("fine_label_names", _HUNDRED), ("coarse_label_names", _TWENTY)))
    return pixels, test, (fine, names[fine]), (coarse, groups[coarse])


def _batches(dataset: Any, files: Sequence[Path], kinds: Mapping[str, int]) -> tuple[list[Block], dict[str, np.ndarray[Any, Any]], list[bool]]:
    """Pixels of each file, labels of each kind, and which images are for testing. ``kinds``: the number of classes by key of labels."""
    pixels: list[Block] = []
    labels: dict[str, list[int]] = {key: [] for key in kinds}
    test: list[bool] = []
    for path in files:
        held = read_pickle(dataset, path)
        data = held.get("data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            what = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
            raise damaged(dataset, path, f"has under 'data' {what}, expected uint8 [n, 3072]")
        for key, classes in kinds.items():
            labels[key] += _labels(dataset, path, held, key, len(data), classes)
        pixels.append(data.reshape(-1, *dataset.facts.shape))  # a row is the red plane, the green, the blue, each line by line
        test += [path.name.startswith("test")] * len(data)
    return pixels, {key: np.array(found, dtype=np.int64) for key, found in labels.items()}, test


def _labels(dataset: Any, path: Path, held: Mapping[str, Any], key: str, count: int, classes: int) -> list[int]:
    found = held.get(key)
    if isinstance(found, np.ndarray):  # as subsets are sometimes written
        found = found.tolist()
    if not isinstance(found, list) or not all(type(label) is int for label in found):
        raise damaged(dataset, path, f"has no list of whole numbers under '{key}' (its keys: {', '.join(sorted(held))}), expected one label an image")
    if len(found) != count:
        raise damaged(dataset, path, f"has {len(found)} labels under '{key}', expected {count}, as many as images")
    bad = next((row for row, label in enumerate(found) if not 0 <= label < classes), None)
    if bad is not None:
        raise damaged(dataset, path, f"gives image {bad} the label {found[bad]} under '{key}', expected 0 to {classes - 1}")
    return found


def _names(dataset: Any, path: Path, key: str, count: int) -> np.ndarray[Any, Any]:
    found = read_pickle(dataset, path).get(key)
    if not isinstance(found, list) or len(found) != count:
        what = f"{len(found)} names" if isinstance(found, list) else "no list of names"
        raise damaged(dataset, path, f"has {what} under '{key}', expected {count}")
    return np.array([text(name) for name in found])
