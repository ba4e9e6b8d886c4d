"""Your own arrays, in one file of numpy."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from unlearnlab.data.images import Images
from unlearnlab.data.pictures import number_classes
from unlearnlab.data.source import Block, Release, damaged, load
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.store import Store

_IMAGES, _LABELS = ("x", "images", "pixels"), ("y", "labels")
_PARTS = ("train", "test", "val", "valid", "validation")
_ROWS = 1024  # images converted at a time


@dataclass(frozen=True)
class _Array:
    """What the header of one array in the file says."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


@spec("dataset", "npz")
class Npz:
    """Your own arrays in one .npz: x and y, or x_train, y_train, x_test, y_test (images or pixels, labels, train_images … will do).

    Pixels are whole numbers from 0 to 255: [n h w], [n h w c] or [n c h w] with 1 or 3 channels. Labels are classes counted from
    0, or texts, whose sorted order then counts (column ``class``). ``val`` is the test set where there is no ``test``; where there
    are both, ``val`` is left out. Training images come first; ids are positions in that order. Every other array of one number or
    text an image becomes a column (``age``, or ``age_train`` and ``age_test``); arrays of other lengths are passed over.
    Normalised by mean 0.5 and standard deviation 0.5.
    """

    mean: ClassVar[tuple[float, ...]] = (0.5,)
    std: ClassVar[tuple[float, ...]] = (0.5,)

    path: Annotated[str, Setting("the .npz file, from the current folder")]
    layout: Annotated[Literal["nhwc", "nchw"] | None, Setting("which axis holds the channels (none given: the one of length 1 or 3)")] = None

    def files(self, root: Path) -> Sequence[Path]:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise InputError(f"dataset 'npz': there is no file {path.absolute()}; write one with numpy.savez(path, x=pixels, y=labels)")
        return [path]

    def read(self, files: Sequence[Path]) -> Release:
        path = files[0]
        arrays = self._headers(path)
        parts = self._parts(arrays)
        pairs = [(self._named(path, arrays, _IMAGES, part), self._named(path, arrays, _LABELS, part)) for part in parts]
        first = pairs[0][0]
        last, shape = self._shape(path, first)
        sizes, labels = list[int](), []
        for images, named in pairs:
            if images.shape[1:] != first.shape[1:]:
                found = f"images of {images.shape[1:]} in '{images.name}', of {first.shape[1:]} in '{first.name}'"
                raise InputError(f"dataset 'npz': {path} has {found}; expected one shape")
            held = self._labels(path, named)
            if len(held) != images.shape[0]:
                found = f"{images.shape[0]} images in '{images.name}', {len(held)} labels in '{named.name}'"
                raise InputError(f"dataset 'npz': {path} has {found}; expected as many")
            sizes.append(len(held))
            labels.append(held)
        if not sizes[0]:
            raise InputError(f"dataset 'npz': {path} has no image in '{first.name}'; expected at least one")
        test = np.arange(sum(sizes)) >= sizes[0]
        numbers, names = number_classes(self, path, np.concatenate(labels), test)
        taken = {array.name for pair in pairs for array in pair}
        columns = self._columns(path, {name: array for name, array in arrays.items() if name not in taken}, parts, sizes)
        if names:
            columns = {"class": np.asarray(names)[numbers], **columns}

        def blocks() -> Iterator[Block]:
            for images, _ in pairs:
                for block in self._pixels(path, images):
                    yield block.reshape(len(block), *shape) if not last else block.transpose(0, 3, 1, 2)

        return Release(shape, numbers, test, int(numbers.max()) + 1, blocks, columns)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)

    def _headers(self, path: Path) -> dict[str, _Array]:
        found = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if member.endswith(".npy"):
                        with archive.open(member) as stream:
                            found[member[:-4]] = _Array(member[:-4], *_header(stream))
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
            raise damaged(self, path, f"is no .npz archive, or is damaged ({error})") from error
        return found

    def _parts(self, arrays: dict[str, _Array]) -> list[str]:
        """Which parts to read: ["" (all of it)], or train with test or val."""
        there = {part for part in _PARTS for base in _IMAGES if _either(arrays, base, part)}
        held_out = next((part for part in _PARTS[1:] if part in there), None)
        first = "train" if "train" in there else ""  # x beside x_test is welcome too
        return [first] if held_out is None else [first, held_out]

    def _named(self, path: Path, arrays: dict[str, _Array], bases: Sequence[str], part: str) -> _Array:
        found = [array for base in bases if (array := _either(arrays, base, part)) is not None]
        if len(found) != 1:
            names = " or ".join(f"{base}_{part}" if part else base for base in bases)
            there = ", ".join(sorted(arrays)) or "none"
            raise InputError(f"dataset 'npz': {path} needs exactly one array named {names}, got {len(found)} (its arrays: {there}); rename the arrays")
        return found[0]

    def _labels(self, path: Path, array: _Array) -> np.ndarray[Any, Any]:
        if len(array.shape) not in (1, 2) or array.shape[1:] not in ((), (1,)):
            raise InputError(f"dataset 'npz': {path} has labels of shape {array.shape} in '{array.name}'; expected one label an image, [n]")
        if array.dtype.kind not in "iubU":
            raise InputError(f"dataset 'npz': {path} has labels of {array.dtype} in '{array.name}'; expected whole numbers (or texts): convert them to int64")
        labels = np.concatenate([np.zeros(0, array.dtype), *(block.reshape(-1) for block in self._rows(path, array))])
        return labels if array.dtype.kind == "U" else labels.astype(np.int64)

    def _shape(self, path: Path, images: _Array) -> tuple[bool, tuple[int, int, int]]:
        """Whether the channels come last, and the shape [c h w]."""
        what = f"dataset 'npz': {path} has images of shape {images.shape} in '{images.name}'"
        if len(images.shape) == 3:
            return False, (1, images.shape[1], images.shape[2])
        if len(images.shape) != 4:
            raise InputError(f"{what}; expected [n h w], [n h w c] or [n c h w]")
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if self.layout == "nhwc" or (self.layout is None and last and not first):
            fits, at = last, 3
        elif self.layout == "nchw" or (self.layout is None and first and not last):
            fits, at = first, 1
        elif first and last:
            raise InputError(f"{what}: channels may come first or last; set layout = 'nchw' or 'nhwc'")
        else:
            raise InputError(f"{what}; expected 1 or 3 channels, first or last")
        if not fits:
            raise InputError(f"{what}, so that layout = '{self.layout}' means {images.shape[at]} channels; expected 1 or 3: choose the other layout")
        rest = images.shape[1:]
        return at == 3, (rest[2], rest[0], rest[1]) if at == 3 else (rest[0], rest[1], rest[2])

    def _pixels(self, path: Path, images: _Array) -> Iterator[Block]:
        """The pixels as uint8, some rows at a time; other types only where every value is a whole number from 0 to 255."""
        what, most = f"dataset 'npz': {path} has pixels of {images.dtype} in '{images.name}'", 0.0
        if images.dtype.kind not in "iuf":
            raise InputError(f"{what}; expected uint8")
        for block in self._rows(path, images):
            if images.dtype != np.uint8:
                least, most = float(block.min()), max(most, float(block.max()))
                if not (least >= 0 and most <= 255 and np.array_equal(block, np.rint(block))):
                    raise InputError(f"{what} with values such as {_odd(block)}; expected whole numbers from 0 to 255: convert them to uint8, 0 to 255")
            yield block.astype(np.uint8)
        if images.dtype.kind == "f" and most <= 1:  # black and white as 0.0 and 1.0 would be all but black
            raise InputError(f"{what}, all 0 or 1; expected 0 to 255: multiply by 255 and convert them to uint8")

    def _columns(self, path: Path, others: dict[str, _Array], parts: Sequence[str], sizes: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
        fit = {name: array for name, array in others.items() if array.dtype.kind in "iubfU" and array.shape and array.shape[1:] in ((), (1,))}
        found = {name: [array] for name, array in fit.items() if array.shape[0] == sum(sizes)}
        for name, train in fit.items() if len(parts) == 2 else ():
            base = name.removesuffix(f"_{parts[0]}").removeprefix(f"{parts[0]}_") if parts[0] else name
            test = _either(fit, base, parts[1])
            if test is not None and (train.shape[0], test.shape[0]) == tuple(sizes):
                found[base] = [train, test]
        return {name: np.concatenate([block.reshape(-1) for array in found[name] for block in self._rows(path, array)]) for name in sorted(found)}

    def _rows(self, path: Path, array: _Array) -> Iterator[np.ndarray[Any, Any]]:
        """An array of the file, some rows at a time: numpy alone would unpack it whole."""
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{array.name}.npy") as stream:
                _header(stream)
                if array.fortran:  # its rows do not lie together
                    with np.load(path, allow_pickle=False) as whole:
                        yield whole[array.name]
                    return
                each = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
                for at in range(0, array.shape[0], _ROWS):
                    rows = min(_ROWS, array.shape[0] - at)
                    held = stream.read(rows * each)
                    if len(held) != rows * each:
                        raise damaged(self, path, f"is truncated: '{array.name}' ends after {at + len(held) // max(each, 1)} of {array.shape[0]} rows")
                    yield np.frombuffer(held, array.dtype).reshape(rows, *array.shape[1:])
                if stream.read(1):  # the checksum is compared at the very end only
                    raise damaged(self, path, f"has more than {array.shape[0]} rows in '{array.name}'")
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise damaged(self, path, f"is damaged in '{array.name}' ({error})") from error


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type, and whether the array lies column by column; raises ``ValueError`` where that cannot be read."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, dtype, bool(fortran)


def _either(arrays: dict[str, _Array], base: str, part: str) -> _Array | None:
    """``x_test`` or ``test_x``; ``x`` itself for no part."""
    return arrays.get(base) if not part else arrays.get(f"{base}_{part}") or arrays.get(f"{part}_{base}")


def _odd(block: np.ndarray[Any, Any]) -> str:
    """A value that is no whole number from 0 to 255."""
    bad = ~((block >= 0) & (block <= 255) & (block == np.rint(block)))
    return f"{block[bad][0]:g}"
