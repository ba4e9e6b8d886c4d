"""Street View House Numbers (Netzer et al. 2011), cropped digits, from their .mat files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from unlearnlab.data.images import Facts, Images
from unlearnlab.data.source import Block, Release, damaged, load, need
from unlearnlab.spec import Setting, spec
from unlearnlab.store import Store

_SHAPE = (3, 32, 32)
_ROWS = 8192  # images at a time: extra_32x32.mat alone is 1.6 GB, and lies in the order of MATLAB


@spec("dataset", "svhn")
class Svhn:
    """SVHN: 73 257 training images of 32×32 house-number digits in 10 classes, 26 032 for testing; ROOT/svhn/train_32x32.mat and test_32x32.mat.

    The files may also lie in ROOT itself. Ids count through train_32x32.mat, extra_32x32.mat where asked for, then
    test_32x32.mat. A label is the digit: the release's label 10, the digit 0, becomes 0.
    """

    # of the two families of numbers in published code, that of the training images themselves
    mean: ClassVar[tuple[float, ...]] = (0.4377, 0.4438, 0.4728)
    std: ClassVar[tuple[float, ...]] = (0.1980, 0.2010, 0.1970)

    extra: Annotated[bool, Setting("train on the 531 131 easier images of extra_32x32.mat too")] = False

    @property
    def facts(self) -> Facts:
        return Facts(train=73_257 + (531_131 if self.extra else 0), test=26_032, classes=10, shape=_SHAPE)

    def files(self, root: Path) -> Sequence[Path]:
        names = ["train_32x32.mat", *(["extra_32x32.mat"] if self.extra else []), "test_32x32.mat"]
        folders = (root / "svhn", root)
        folder = next((folder for folder in folders if any((folder / name).is_file() for name in names)), folders[0])
        how = f"put {', '.join(names)} of http://ufldl.stanford.edu/housenumbers/ in {folder}"
        return need("svhn", root, [str((folder / name).relative_to(root)) for name in names], how if self.extra else f"run 'unlearnlab fetch svhn', or {how}")

    def read(self, files: Sequence[Path]) -> Release:
        held = [self._labels(path) for path in files]
        test = np.concatenate([np.full(len(labels), path.name.startswith("test")) for path, labels in zip(files, held, strict=True)])
        return Release(_SHAPE, np.concatenate(held), test, self.facts.classes, lambda: self._pixels(files))

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)

    def _labels(self, path: Path) -> np.ndarray[Any, Any]:
        """The digits of a file, whose other array must hold as many images; pixels are not read yet."""
        from scipy.io import whosmat

        there = {name: (shape, kind) for name, shape, kind in self._opened(path, whosmat)}
        if not {"X", "y"} <= set(there):
            raise damaged(self, path, f"is truncated or another file: it holds {' and '.join(sorted(there)) or 'nothing'}, expected X (images) and y (labels)")
        (shape, kind), (sizes, _) = there["X"], there["y"]
        shape = (*shape, 1) if len(shape) == 3 else shape  # MATLAB drops the last dimension of a single image
        if shape[:3] != (32, 32, 3) or len(shape) != 4 or kind != "uint8":
            raise damaged(self, path, f"has under X {kind} {list(shape)}, expected uint8 [32, 32, 3, n]")
        if sorted(sizes) != [1, shape[3]]:
            raise damaged(self, path, f"has labels y of {list(sizes)}, expected [{shape[3]}, 1], as many as images")
        labels = self._array(path, "y").reshape(-1)
        bad = np.flatnonzero(~np.isin(labels, np.arange(1, 11)))
        if len(bad):
            raise damaged(self, path, f"gives image {bad[0]} the label {labels[bad[0]]}, expected 1 to 10 (10 is the digit 0)")
        return labels.astype(np.int64) % 10

    def _pixels(self, files: Sequence[Path]) -> Iterator[Block]:
        for path in files:
            whole = self._array(path, "X").reshape(32, 32, 3, -1)
            for at in range(0, whole.shape[3], _ROWS):
                yield np.ascontiguousarray(whole[..., at : at + _ROWS].transpose(3, 2, 0, 1))

    def _array(self, path: Path, name: str) -> np.ndarray[Any, Any]:
        from scipy.io import loadmat

        held: np.ndarray[Any, Any] = self._opened(path, lambda file: loadmat(file, variable_names=(name,))[name])
        return held

    def _opened(self, path: Path, read: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # scipy only warns of an array that it cannot read
                return read(str(path))
        except Exception as error:  # garbage makes scipy raise nearly anything
            reason = " ".join(str(error).split())
            raise damaged(self, path, f"is truncated or damaged: its {path.stat().st_size} bytes are no whole .mat file ({reason})") from error
