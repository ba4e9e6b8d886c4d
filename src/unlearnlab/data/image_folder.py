"""Your own images, in one folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from unlearnlab.data.images import Images
from unlearnlab.data.pictures import SPLITS, SUFFIXES, Decoder, Picture, number_classes
from unlearnlab.data.source import Release, load, usual_mean, usual_std
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.store import Store


@spec("dataset", "image_folder")
class ImageFolder:
    """Your own images, a folder a class: PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg (or val).

    ``val`` is the test set where there is no ``test``; where there are both, ``val`` is left out. Classes and files are in the
    order of their names, training images first; ids are positions in that order. Hidden files and files that do not bear the
    name of an image are passed over. Columns: ``class``, and ``file`` (from ``path``). RGB is normalised by ImageNet's mean and
    standard deviation, grey by 0.5 and 0.5.
    """

    path: Annotated[str, Setting("folder of class folders, from the current folder")]
    size: Annotated[int | None, Setting("every image is resized to size×size (none given: all must be of one size)", ge=1, unit="pixels")] = None
    channels: Annotated[Literal[3, 1], Setting("3: RGB, 1: grey")] = 3

    @property
    def mean(self) -> tuple[float, ...]:
        return usual_mean(self.channels)

    @property
    def std(self) -> tuple[float, ...]:
        return usual_std(self.channels)

    def files(self, root: Path) -> Sequence[Path]:
        base = Path(self.path).expanduser()
        if not base.is_dir():
            raise InputError(
                f"dataset 'image_folder': there is no folder {base.absolute()}; give as path a folder that holds a folder of images for every class"
            )
        parts = {SPLITS[folder.name]: folder for folder in _folders(base) if folder.name in SPLITS}
        if "train" not in parts or not _folders(parts["train"]):  # else a class may well be called train
            return [file for folder in self._class_folders(base) for file in self._images(folder)]
        files = [file for folder in self._class_folders(parts["train"]) for file in self._images(folder)]
        held_out = parts.get("test", parts.get("validation"))
        if held_out is None:
            return files
        taught = {folder.name for folder in _folders(parts["train"])}
        for folder in self._class_folders(held_out):
            if folder.name not in taught:
                raise InputError(f"dataset 'image_folder': {folder} is a class that {parts['train']} lacks; expected the same class folders in both")
            files += self._images(folder, some=False)
        return files

    def read(self, files: Sequence[Path]) -> Release:
        base, pictures = Path(self.path).expanduser(), [Picture(file) for file in files]
        inside = [file.relative_to(base) for file in files]
        test = [len(file.parts) == 3 and SPLITS[file.parts[0]] != "train" for file in inside]
        names = [file.parts[-2] for file in inside]
        labels, classes = number_classes(self, base, names, test)
        decoder = Decoder(self, self.channels, self.size)
        shape = decoder.shape(pictures[0])
        columns = {"class": names, "file": [file.as_posix() for file in inside]}
        return Release(shape, labels, test, len(classes), lambda: decoder.blocks(pictures, shape), columns)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)

    def _class_folders(self, base: Path) -> list[Path]:
        stray = next((file for file in _shown(base) if file.suffix.lower() in SUFFIXES and not file.is_dir()), None)
        if stray is not None:
            raise InputError(f"dataset 'image_folder': {stray} lies in no class folder; expected {base}/CLASS/{stray.name}: move it into one")
        folders = _folders(base)
        if not folders:
            raise InputError(f"dataset 'image_folder': {base} holds no class folder; expected {base}/CLASS/*.jpg (or .png …), a folder for every class")
        return folders

    def _images(self, folder: Path, some: bool = True) -> list[Path]:
        found = []
        for entry in _shown(folder):
            if entry.is_dir():
                raise InputError(
                    f"dataset 'image_folder': the class folder {folder} holds the folder {entry.name}; expected {self.path}/CLASS/*.jpg, "
                    f"or {self.path}/train/CLASS/*.jpg and {self.path}/test/CLASS/*.jpg: move the images up, or name its parent as path"
                )
            if entry.suffix.lower() in SUFFIXES:
                found.append(entry)
        if some and not found:
            raise InputError(
                f"dataset 'image_folder': {folder} holds no image; expected at least one {'/'.join(sorted(SUFFIXES))}: add some or remove the folder"
            )
        return found


def _shown(folder: Path) -> list[Path]:
    """What is in a folder, hidden files apart, sorted by name."""
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _shown(folder) if entry.is_dir()]
