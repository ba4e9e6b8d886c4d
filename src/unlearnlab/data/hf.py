"""Data sets of the Hugging Face hub, as they lie on the disk: parquet files, or the arrow files of ``save_to_disk``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from unlearnlab.data.csv_table import choose_column
from unlearnlab.data.images import Images
from unlearnlab.data.pictures import BLOCK, SPLITS, Decoder, Picture, number_classes
from unlearnlab.data.source import Release, damaged, load, usual_mean, usual_std
from unlearnlab.spec import InputError, Setting, info, spec
from unlearnlab.store import Store

IMAGE, LABEL = ("image", "img", "jpg"), ("label", "labels", "fine_label")
_SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?![a-z])")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@spec("dataset", "hf")
class Hf:
    """A data set of the Hugging Face hub on your disk: a folder of parquet files, one such file, or what save_to_disk wrote.

    ``validation`` is the test set where there is no ``test``; where there are both, ``validation`` is left out. Files without
    such names are all for training. Images come in the order of the files' names and rows, training images first; ids are
    positions in that order. Columns: ``class`` (the label's name), and every other column of numbers or texts. RGB is
    normalised by ImageNet's mean and standard deviation, grey by 0.5 and 0.5. Needs pyarrow: pip install 'unlearnlab[hub]'.
    """

    path: Annotated[str, Setting("the folder or the .parquet file, from the current folder")]
    image: Annotated[str | None, Setting("column of images (none given: image, img or jpg)")] = None
    label: Annotated[str | None, Setting("column of labels (none given: label, labels or fine_label)")] = None
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
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise InputError(f"dataset 'hf': there is no folder or file {path.absolute()}; give as path what `hf download` or save_to_disk wrote")
        return list_files(self, path)

    def read(self, files: Sequence[Path]) -> Release:
        return read_rows(self, files, Decoder(self, self.channels, self.size), self.image, self.label)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)


def list_files(dataset: Any, folder: Path) -> list[Path]:
    """The parquet or arrow files of a folder, those of the training images first, none missing."""
    states = [state for state in (folder / "state.json", *sorted(folder.glob("*/state.json"))) if state.is_file()]
    found = [file for state in states for file in _saved(dataset, state)] or _parquet(dataset, folder)
    if not found:
        raise InputError(
            f"dataset '{info(dataset).name}': {folder} holds neither parquet files nor a state.json; "
            "expected what `hf download` or save_to_disk wrote: give that folder"
        )
    splits = [_split(file) for file in found]
    if "train" not in splits:
        return found
    held_out = "test" if "test" in splits else "validation"
    return [file for wanted in ("train", held_out) for file, split in zip(found, splits, strict=True) if split == wanted]


def read_rows(dataset: Any, files: Sequence[Path], decoder: Decoder, image: str | None = None, label: str | None = None, classes: int | None = None) -> Release:
    """The images, labels and other columns of such files. ``classes``: how many there must be."""
    heads = {file: _schema(dataset, file) for file in files}
    first = heads[files[0]]
    image = choose_column(dataset, files[0], "image", image, IMAGE, first.names)
    label = choose_column(dataset, files[0], "label", label, LABEL, first.names)
    for file, head in heads.items():
        _check_types(dataset, file, head, image, label)
    shared = [name for name in first.names if all(name in head.names and _kind(head.field(name).type) for head in heads.values())]
    others = [name for name in shared if name not in (image, label)]
    values: dict[str, list[Any]] = {name: [] for name in (label, *others)}
    sizes: list[int] = []
    for file in files:
        for batch in _batches(dataset, file, list(values)):
            for name in values:
                values[name] += batch.column(name).to_pylist()
        sizes.append(len(values[label]) - sum(sizes))
    if not sum(sizes):
        raise damaged(dataset, files[0], "has no rows, expected one for every image")

    def place(at: int) -> tuple[Path, int]:
        ends = np.cumsum(sizes)
        k = int(np.searchsorted(ends, at, side="right"))
        return files[k], at - int(ends[k]) + sizes[k]

    splits = [_split(file) for file in files]
    test = np.repeat([split != "train" and "train" in splits for split in splits], sizes)
    names = _class_names(first, label)
    if classes is not None and names and len(names) != classes:
        raise damaged(dataset, files[0], f"names {len(names)} classes, expected {classes}")
    count = classes or len(names)
    for at, value in enumerate(values[label]):
        if value is None or (count and not 0 <= value < count):
            file, row = place(at)
            found = "no label" if value is None else f"the label {value}"
            raise damaged(dataset, file, f"has {found} in row {row}, expected {f'0 to {count - 1}' if count else 'one'}")
    if count:
        numbers = np.array(values[label])
    else:
        numbers, names = number_classes(dataset, files[0].parent, values[label], test, lambda at: "row {1} of {0}".format(*place(at)))
    columns = {"class": [names[number] for number in numbers]} if names else {}
    columns |= {name: _filled(values[name]) for name in others}

    def pictures() -> Iterator[Picture]:
        for file in files:
            row = 0
            for batch in _batches(dataset, file, [image]):
                for value in batch.column(0).to_pylist():
                    data = value["bytes"] if isinstance(value, dict) else value
                    if data is None:
                        held = f"only the path {value['path']}" if isinstance(value, dict) and value.get("path") else "no image"
                        raise damaged(dataset, file, f"holds {held} in row {row}, expected the image itself")
                    yield Picture(file, row, data)
                    row += 1

    shape = decoder.shape(next(pictures()))
    return Release(shape, numbers, test, count or int(numbers.max()) + 1, lambda: decoder.blocks(pictures(), shape), columns)


# ---- which files


def _saved(dataset: Any, state: Path) -> list[Path]:
    """The arrow files that a state.json of save_to_disk lists."""
    try:
        body = json.loads(state.read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in body["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(dataset, state, f"does not list the data files that save_to_disk wrote ({type(error).__name__}: {error})") from error
    if body.get("_indices_data_files"):
        raise InputError(
            f"dataset '{info(dataset).name}': {state} chooses rows of the files beside it; expected the rows alone: call flatten_indices() and save again"
        )
    for name in names:
        if not (state.parent / name).is_file():
            raise InputError(f"dataset '{info(dataset).name}': {state} names {name}, but there is no file {state.parent / name}; copy the whole folder again")
    return [state.parent / name for name in names]


def _parquet(dataset: Any, folder: Path) -> list[Path]:
    """All parquet files below a folder that are of one data set, with no shard missing."""
    found = [file for file in sorted(folder.rglob("*.parquet")) if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    homes = sorted({file.parent.parent if file.parent.name in SPLITS and file.parent != folder else file.parent for file in found})
    if len(homes) > 1:
        raise InputError(f"dataset '{info(dataset).name}': {folder} holds several data sets, in {homes[0]} and {homes[1]}; give one of these folders as path")
    shards: dict[str, list[Path]] = {}
    for file in found:
        shards.setdefault(str(file.parent / file.name.split("-")[0]), []).append(file)
    for files in shards.values():
        seen = {(int(match[1]), int(match[2])) for file in files if (match := _SHARD.search(file.name))}
        for total in {total for _, total in seen}:
            missing = next((at for at in range(total) if (at, total) not in seen), None)
            if missing is not None:
                name = f"{files[0].name.split('-')[0]}-{missing:05}-of-{total:05}…"
                raise InputError(f"dataset '{info(dataset).name}': there is no file {files[0].parent / name}; expected all {total} parts: download the rest")
    return found


def _split(file: Path) -> str | None:
    """Which split a file holds, by the beginning of its name or else by its folder."""
    found = _SPLIT.match(file.name)
    return SPLITS[found[1]] if found else SPLITS.get(file.parent.name)


# ---- what is in them


def _arrow(dataset: Any) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"dataset '{info(dataset).name}' needs pyarrow, which is not installed; pip install 'unlearnlab[hub]'") from error
    return pyarrow


@contextmanager
def _opened(dataset: Any, file: Path) -> Iterator[Any]:
    """An open parquet file or arrow stream; whatever pyarrow complains about meanwhile becomes an ``InputError``."""
    pa = _arrow(dataset)
    try:
        if file.suffix == ".arrow":
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
                yield reader
        else:
            with pa.parquet.ParquetFile(file) as parquet:
                yield parquet
    except (pa.ArrowException, OSError) as error:
        raise damaged(dataset, file, f"is truncated or damaged ({str(error).splitlines()[0]})") from error


def _schema(dataset: Any, file: Path) -> Any:
    with _opened(dataset, file) as held:
        return held.schema if file.suffix == ".arrow" else held.schema_arrow


def _batches(dataset: Any, file: Path, columns: Sequence[str]) -> Iterator[Any]:
    """The rows of a file, some at a time, in their order."""
    with _opened(dataset, file) as held:
        yield from (batch.select(columns) for batch in held) if file.suffix == ".arrow" else held.iter_batches(BLOCK, columns=columns)


def _check_types(dataset: Any, file: Path, head: Any, image: str, label: str) -> None:
    lacking = next((name for name in (image, label) if name not in head.names), None)
    if lacking is not None:
        raise damaged(dataset, file, f"has no column '{lacking}' (its columns: {', '.join(head.names)}), expected it as in the other files")
    pictures, labels = head.field(image).type, head.field(label).type
    types = _arrow(dataset).types
    inner = pictures.field("bytes").type if types.is_struct(pictures) and pictures.get_field_index("bytes") >= 0 else pictures
    if not (types.is_binary(inner) or types.is_large_binary(inner)):
        raise InputError(
            f"dataset '{info(dataset).name}': {file} has {pictures} in column '{image}'; expected image files as bytes: set image = … to their column"
        )
    if _kind(labels) not in ("whole", "text"):
        raise InputError(
            f"dataset '{info(dataset).name}': {file} has {labels} in column '{label}'; expected whole numbers or texts: set label = … to such a column"
        )


def _kind(type_: Any) -> str:
    """What a column becomes: whole numbers, numbers, texts, or nothing."""
    import pyarrow.types as types

    if types.is_integer(type_) or types.is_boolean(type_):
        return "whole"
    if types.is_floating(type_):
        return "number"
    return "text" if types.is_string(type_) or types.is_large_string(type_) else ""


def _filled(values: list[Any]) -> np.ndarray[Any, Any]:
    """A column without gaps: no text is an empty one, no number is NaN."""
    if any(isinstance(value, str) for value in values):
        return np.array([value or "" for value in values])
    return np.array([np.nan if value is None else value for value in values])


def _class_names(schema: Any, label: str) -> list[str]:
    """The names that the hub's ClassLabel gives the classes, empty where there are none."""
    try:
        return list(json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return []
