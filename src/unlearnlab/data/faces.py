"""Faces with ages: AgeDB and UTKFace, classes are ranges of age."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np

from unlearnlab.data.csv_table import Table, read_table, typed
from unlearnlab.data.images import Facts, Images
from unlearnlab.data.pictures import Decoder, Picture
from unlearnlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Release, damaged, load, need
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.store import Store

# age_gender_race_date, of which some names of the release lack gender, race or one of them
_NAME = re.compile(r"(?P<age>\d{1,3})_((?P<gender>[01]?)_(?P<race>[0-4]?)_|\d_)\d{17}\D*")


@spec("dataset", "agedb")
class AgeDb:
    """AgeDB: 16 488 faces in ten classes of ten years of age; ROOT/agedb/AgeDB.csv and the images that it names.

    Classes are the ages [0, 10), [10, 20), …, [90, 100); ages of 100 and more count as 99. Folder 0 is the test set, all other
    folders are for training. The first five characters of ``img_path`` are a prefix to strip; the rest counts from ROOT/agedb/.
    Training images come first, both in the order of the file; ids are positions in that order. Columns: ``age`` as released,
    ``folder``, ``file``.

    Differs from the published code: that resizes training images only; here all images have one size.
    """

    mean: ClassVar[tuple[float, ...]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, ...]] = IMAGENET_STD

    size: Annotated[int, Setting("every image is resized to size×size", ge=1, unit="pixels")] = 180

    @property
    def facts(self) -> Facts:
        """The number of test images is unverified."""
        return Facts(train=14_784, test=1_704, classes=10, shape=(3, self.size, self.size))

    def files(self, root: Path) -> Sequence[Path]:
        how = "put the published AgeDB.csv (columns age, img_path, folder) there, and the images beside it"
        [path] = need("agedb", root, ["agedb/AgeDB.csv"], how)
        table = read_table(self, path)
        files = []
        for row in self._rows(table):
            name = table.columns["img_path"][row]
            files.append(path.parent / name[5:])
            if not files[-1].is_file():
                raise InputError(
                    f"dataset 'agedb': {path} names in line {table.lines[row]} '{name}', but there is no file {files[-1]}; unpack the images there "
                    f"(the first five characters, '{name[:5]}', are stripped)"
                )
        return [path, *files]

    def read(self, files: Sequence[Path]) -> Release:
        table = read_table(self, files[0])
        rows = self._rows(table)
        ages = [self._whole(table, "age", row) for row in rows]
        test = [self._whole(table, "folder", row) == 0 for row in rows]
        columns = {"age": ages, "folder": typed(self, table, "folder", rows), "file": [table.columns["img_path"][row][5:] for row in rows]}
        decoder, pictures = Decoder(self, size=self.size), [Picture(file) for file in files[1:]]
        shape = decoder.shape(pictures[0])
        return Release(shape, [min(age, 99) // 10 for age in ages], test, self.facts.classes, lambda: decoder.blocks(pictures, shape), columns)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)

    def _rows(self, table: Table) -> list[int]:
        """Training images first."""
        lacking = next((name for name in ("age", "img_path", "folder") if name not in table.columns), None)
        if lacking is not None:
            raise damaged(self, table.path, f"has no column '{lacking}' (its columns: {', '.join(table.columns)}), expected age, img_path and folder")
        return sorted(range(len(table.lines)), key=lambda row: self._whole(table, "folder", row) == 0)

    def _whole(self, table: Table, name: str, row: int) -> int:
        text = table.columns[name][row]
        if not re.fullmatch(r"\d{1,4}(\.0*)?", text):
            raise damaged(self, table.path, f"has '{text}' in line {table.lines[row]} (column '{name}'), expected a whole number")
        return int(float(text))


@spec("dataset", "utkface")
class UtkFace:
    """UTKFace: 23 708 faces in five classes of twenty years of age, or ten of ten; ROOT/UTKFace/*.jpg, aligned and cropped.

    Age, gender, race and date are the name of each file, ``age_gender_race_date.jpg.chip.jpg``; a few names of the release lack
    gender or race, whose columns are -1 there. The last class holds all who are older. Images are in the order of their names;
    ids are positions in that order. There is no released test set: use partition 'stratified'. Columns: ``age``, ``gender``
    (0 male, 1 female), ``race`` (0 White, 1 Black, 2 Asian, 3 Indian, 4 others), ``file``.

    Differs from the published code: that divides the files in the order in which the file system lists them.
    """

    mean: ClassVar[tuple[float, ...]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, ...]] = IMAGENET_STD

    bins: Annotated[Literal["20_years", "10_years"], Setting("classes: five of twenty years, or ten of ten")] = "20_years"
    size: Annotated[int, Setting("every image is resized to size×size (they are 200×200 as released)", ge=1, unit="pixels")] = 200

    @property
    def facts(self) -> Facts:
        return Facts(train=23_708, test=0, classes=5 if self.bins == "20_years" else 10, shape=(3, self.size, self.size))

    def files(self, root: Path) -> Sequence[Path]:
        files = sorted(file for file in (root / "UTKFace").glob("*.jpg") if not file.name.startswith("."))
        if not files:
            need("utkface", root, ["UTKFace/*.jpg"], "unpack UTKFace.tar.gz, the aligned and cropped faces, there")
        return files

    def read(self, files: Sequence[Path]) -> Release:
        ages, genders, races = np.array([self._facts(file) for file in files]).T
        decoder, pictures = Decoder(self, size=self.size), [Picture(file) for file in files]
        shape = decoder.shape(pictures[0])
        years, classes = 100 // self.facts.classes, self.facts.classes
        columns = {"age": ages, "gender": genders, "race": races, "file": [file.name for file in files]}
        return Release(shape, np.minimum(ages // years, classes - 1), [False] * len(files), classes, lambda: decoder.blocks(pictures, shape), columns)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)

    def _facts(self, file: Path) -> tuple[int, int, int]:
        """Age, gender and race; -1 for what the name leaves out."""
        found = _NAME.match(file.name)
        if found is None:
            raise InputError(f"dataset 'utkface': {file} is not named as the release's files are; expected age_gender_race_date.jpg: rename or remove it")
        return int(found["age"]), int(found["gender"] or -1), int(found["race"] or -1)
