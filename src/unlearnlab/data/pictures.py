"""Picture files to blocks of pixels, and the names of classes and splits: what the sources made of such files share."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearnlab.data.source import Block, damaged
from unlearnlab.spec import InputError, info

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff"})
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "validation", "valid": "validation", "validation": "validation"}
BLOCK = 256  # pictures decoded at a time
_FAULTS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error)  # what pillow raises over damaged files


@dataclass(frozen=True)
class Picture:
    """A picture file, or one row of a file that holds many."""

    file: Path
    row: int | None = None
    data: bytes | None = None

    def fault(self, dataset: Any, what: str) -> InputError:
        return damaged(dataset, self.file, what if self.row is None else f"(row {self.row}) {what}")


@dataclass(frozen=True)
class Decoder:
    """How the pictures of a data set become uint8 pixels: turned as their EXIF note says, RGB or grey, transparency ignored.

    ``size``: every picture is resized to size×size (``crop``: its shorter side to ``size``, then the centred square), bilinear
    and antialiased. Without it all must have one size: ``side``×``side`` where the release promises that, else the first one's.
    """

    dataset: Any
    channels: int = 3
    size: int | None = None
    crop: bool = False
    side: int | None = None

    def shape(self, first: Picture) -> tuple[int, int, int]:
        """The shape [c h w] that all pictures will have."""
        side = self.size or self.side
        height, width = (side, side) if side else self(first).shape[1:]
        return self.channels, height, width

    def __call__(self, picture: Picture) -> Block:
        """The pixels [c h w]; raises ``InputError`` naming a file that is truncated, damaged or no picture."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(picture.file if picture.data is None else BytesIO(picture.data)) as opened:
                image = ImageOps.exif_transpose(opened)
        except UnidentifiedImageError as error:
            size = picture.file.stat().st_size if picture.data is None else len(picture.data)
            raise picture.fault(self.dataset, f"is not a picture ({size} bytes of another kind)" if size else "is an empty file, not a picture") from error
        except (*_FAULTS, Image.DecompressionBombError) as error:
            raise picture.fault(self.dataset, f"is damaged: {error}") from error
        if image.mode[0] in "IF":  # pillow would cut such values off at 255
            raise InputError(f"{self._named(picture)} has pixels of more than 8 bits (mode {image.mode}); expected 0 to 255: convert the image to 8 bits")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # pillow warns of any other way
        pixels = np.asarray(self._resized(image.convert("RGB" if self.channels == 3 else "L")))
        return pixels.transpose(2, 0, 1) if self.channels == 3 else pixels[None]

    def blocks(self, pictures: Iterable[Picture], shape: tuple[int, int, int]) -> Iterator[Block]:
        """All pictures in their order, decoded by several threads, a block at a time."""
        rest = iter(pictures)
        first: Picture | None = None
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            while some := list(islice(rest, BLOCK)):
                first = first or some[0]
                held = []
                for picture, pixels in zip(some, pool.map(self, some), strict=True):
                    if pixels.shape != shape:
                        raise self._odd(picture, pixels, first, shape)
                    held.append(pixels)
                yield np.stack(held)

    def _resized(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        if self.size is None:
            return image
        width, height = image.size
        if not self.crop:
            return image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        short = min(width, height)
        width, height = int(self.size * width / short), int(self.size * height / short)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + self.size, top + self.size))

    def _odd(self, picture: Picture, pixels: Block, first: Picture, shape: tuple[int, int, int]) -> InputError:
        height, width = pixels.shape[1:]
        found = f"has {height}×{width} pixels"
        if self.side is not None:
            return picture.fault(self.dataset, f"{found}, expected {self.side}×{self.side}")
        where = str(first.file) if first.row is None else f"row {first.row} of {first.file}"
        return InputError(
            f"{self._named(picture)} {found}, but {where} has {shape[1]}×{shape[2]}; set size = {min(shape[1:])} (or another) to resize all to one square"
        )

    def _named(self, picture: Picture) -> str:
        row = "" if picture.row is None else f" (row {picture.row})"
        return f"dataset '{info(self.dataset).name}': {picture.file}{row}"


def number_classes(
    dataset: Any,
    path: Path,
    labels: Sequence[Any] | np.ndarray[Any, Any],
    test: Sequence[bool] | np.ndarray[Any, Any],
    place: Callable[[int], str] = "image {}".format,
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """The class of every image and, where labels are texts, the sorted names; whole numbers are classes as they are.

    ``place`` says where a label stands. Raises ``InputError`` for a negative label, and for a class of which no training image is.
    """
    held, names = np.asarray(labels), list[str]()
    if held.dtype.kind == "U":
        words, held = np.unique(held, return_inverse=True)
        names = words.tolist()
    if int(held.min()) < 0:
        raise damaged(dataset, path, f"has the label {int(held.min())} in {place(int(held.argmin()))}, expected classes counted from 0")
    taught, classes = set(held[~np.asarray(test, dtype=bool)].tolist()), int(held.max()) + 1
    missing = next((label for label in range(classes) if label not in taught), None)
    if missing is not None:
        what = f"class '{names[missing]}'" if names else f"class {missing} (its labels go up to {classes - 1})"
        raise InputError(f"dataset '{info(dataset).name}': {path} has no training image of {what}; expected some of every class: add them, or leave no gap")
    return held, names
