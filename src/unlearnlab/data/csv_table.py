"""Your own images, listed in a CSV file; and reading such a file, for the releases that come with one."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from unlearnlab.data.images import Images
from unlearnlab.data.pictures import SPLITS, Decoder, Picture, number_classes
from unlearnlab.data.source import Release, damaged, load, usual_mean, usual_std
from unlearnlab.spec import InputError, Setting, info, spec, suggest
from unlearnlab.store import Store

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")  # what fits into 64 bits


@dataclass(frozen=True)
class Table:
    """A CSV file as texts by column; ``lines``: where each row stands in the file."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]


@spec("dataset", "csv")
class CsvTable:
    """Your own images, listed in a CSV file: a column of image paths, a column of labels, all other columns known of every image.

    Paths count from the folder of the file. Labels are classes counted from 0, or texts, whose sorted order then counts (column
    ``class``). A column of ``train`` and ``test`` says which images are released for testing; ``val`` is the test set where there
    is no ``test``; where there are both, ``val`` is left out. Images come in the order of the file, training images first; ids
    are positions in that order. RGB is normalised by ImageNet's mean and standard deviation, grey by 0.5 and 0.5.
    """

    path: Annotated[str, Setting("the .csv file, from the current folder")]
    image: Annotated[str | None, Setting("column of image paths (none given: image, path, file or img_path)")] = None
    label: Annotated[str | None, Setting("column of labels (none given: label, class or target)")] = None
    split: Annotated[str | None, Setting("column of train, test or val (none given: split, if there is one)")] = None
    folder: Annotated[str, Setting("what to put before every image path")] = ""
    size: Annotated[int | None, Setting("every image is resized to size×size (none given: all must be of one size)", ge=1, unit="pixels")] = None
    channels: Annotated[Literal[3, 1], Setting("3: RGB, 1: grey")] = 3

    @property
    def mean(self) -> tuple[float, ...]:
        return usual_mean(self.channels)

    @property
    def std(self) -> tuple[float, ...]:
        return usual_std(self.channels)

    def files(self, root: Path) -> Sequence[Path]:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise InputError(f"dataset 'csv': there is no file {path.absolute()}; give as path a CSV file with a column of image paths and one of labels")
        table = read_table(self, path)
        rows, _ = self._rows(table)
        names = table.columns[self._image(table)]
        files, seen = [], dict[Path, int]()
        for row in rows:
            file, line = path.parent / self.folder / names[row], table.lines[row]
            if not names[row] or not file.is_file():
                raise InputError(f"dataset 'csv': {path} names in line {line} '{names[row]}', but there is no file {file}; put it there, or set folder")
            if file in seen:
                raise InputError(f"dataset 'csv': {path} names {names[row]} in line {seen[file]} and again in line {line}; expected every image once")
            seen[file] = line
            files.append(file)
        return [path, *files]

    def read(self, files: Sequence[Path]) -> Release:
        table = read_table(self, files[0])
        rows, test = self._rows(table)
        image = self._image(table)
        label = choose_column(self, table.path, "label", self.label, ("label", "class", "target"), table.columns)
        held = [table.columns[label][row] for row in rows]
        empty = next((row for row, text in zip(rows, held, strict=True) if not text), None)
        if empty is not None:
            raise InputError(f"dataset 'csv': {table.path} has no label in line {table.lines[empty]} (column '{label}'); expected one for every image")
        broken = next((row for row, text in zip(rows, held, strict=True) if not float(text).is_integer()), None) if all(map(_is_number, held)) else None
        if broken is not None:
            raise InputError(
                f"dataset 'csv': {table.path} has the label {table.columns[label][broken]} in line {table.lines[broken]} (column '{label}'); "
                "expected a class, counted from 0 or a name: sort the images into classes first"
            )
        labels = [int(float(text)) for text in held] if all(map(_is_number, held)) else held
        numbers, names = number_classes(self, table.path, labels, test, lambda at: f"line {table.lines[rows[at]]}")
        used = {image, label, self._split(table)}
        columns: dict[str, Sequence[Any] | np.ndarray[Any, Any]] = {"file": [table.columns[image][row] for row in rows], **({"class": held} if names else {})}
        columns |= {name: typed(self, table, name, rows) for name in table.columns if name and name not in used}  # pandas leaves its row numbers unnamed
        decoder, pictures = Decoder(self, self.channels, self.size), [Picture(file) for file in files[1:]]
        shape = decoder.shape(pictures[0])
        return Release(shape, numbers, test, int(numbers.max()) + 1, lambda: decoder.blocks(pictures, shape), columns)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)

    def _image(self, table: Table) -> str:
        return choose_column(self, table.path, "image", self.image, ("image", "path", "file", "img_path"), table.columns)

    def _split(self, table: Table) -> str | None:
        return choose_column(self, table.path, "split", self.split, ("split",), table.columns) if self.split or "split" in table.columns else None

    def _rows(self, table: Table) -> tuple[list[int], list[bool]]:
        """The rows to read, training images first, and which are for testing."""
        column = self._split(table)
        if column is None:
            return list(range(len(table.lines))), [False] * len(table.lines)
        parts = []
        for text, line in zip(table.columns[column], table.lines, strict=True):
            if text.lower() not in SPLITS:
                raise InputError(f"dataset 'csv': {table.path} has '{text}' in line {line} (column '{column}'); expected train, test or val")
            parts.append(SPLITS[text.lower()])
        train, test = ([row for row, part in enumerate(parts) if part == wanted] for wanted in ("train", "test"))
        if not train:
            raise InputError(f"dataset 'csv': {table.path} has no row of the split train (column '{column}'); expected some images to train on")
        test = test or [row for row, part in enumerate(parts) if part == "validation"]
        return train + test, [False] * len(train) + [True] * len(test)


def read_table(dataset: Any, path: Path) -> Table:
    """All cells of a CSV file, stripped; raises ``InputError`` naming the line that has too many or too few."""
    rows, lines = list[list[str]](), list[int]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:  # -sig: spreadsheets put a mark before the first name
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise damaged(dataset, path, f"has {len(row)} cells in line {reader.line_num}, expected {len(header)} as in its first line")
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise damaged(dataset, path, f"is no CSV file in UTF-8 ({error})") from error
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"dataset '{info(dataset).name}': {path} has two columns '{twice}'; expected every name once")
    if not rows:
        raise damaged(dataset, path, "has no rows, expected a line of column names and a line for every image")
    return Table(path, {name: [row[at] for row in rows] for at, name in enumerate(header)}, lines)


def choose_column(dataset: Any, path: Path, setting: str, given: str | None, usual: Sequence[str], there: Iterable[str]) -> str:
    """The column given, else the first of the usual ones; raises ``InputError`` naming the columns that there are."""
    known = list(there)
    found = given if given in known else None if given is not None else next((name for name in usual if name in known), None)
    if found is None:
        wanted = f"'{given}'{suggest(given, known)}" if given is not None else " or ".join(usual)
        raise InputError(f"dataset '{info(dataset).name}': {path} has no column {wanted}; its columns are {', '.join(known)}: set {setting} = …")
    return found


def typed(dataset: Any, table: Table, name: str, rows: Sequence[int]) -> list[str] | np.ndarray[Any, Any]:
    """Some rows of a column as whole numbers or as numbers where all are, else as texts; a number missing among numbers is an error."""
    held = [table.columns[name][row] for row in rows]
    given = [text for text in held if not _missing(text)]
    if not given or not all(map(_is_number, given)):
        return held
    gap = next((row for row, text in zip(rows, held, strict=True) if _missing(text)), None)
    if gap is not None:
        raise InputError(
            f"dataset '{info(dataset).name}': {table.path} has no number in line {table.lines[gap]} (column '{name}'); expected one for every image: "
            "fill it in, or leave the column out"
        )
    return np.array([int(text) for text in held]) if all(map(_WHOLE.fullmatch, held)) else np.array([float(text) for text in held])


def _missing(text: str) -> bool:
    return text.lower() in ("", "nan", "na", "n/a", "none", "null")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
